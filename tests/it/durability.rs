//! Commit, then deliver, as the kernel saw it: before each write of answer text, an fsync of the log had ended that made
//! the debit of every token in it durable. The log is rebuilt from the traced writes up to that fsync and opened.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use rusqlite::{Connection, OpenFlags};

use crate::support::{Home, text, tiny_model};
use crate::transcript::Transcript;

#[test]
fn every_write_of_answer_text_comes_after_the_fsync_of_its_debit() {
    if !can_trace() {
        assert!(std::env::var_os("TOKRUN_REQUIRE_STRACE").is_none(), "strace is required here, and does not work");
        eprintln!("SKIPPED: strace is not installed, or may not trace");
        return;
    }
    let model = tiny_model();
    let arguments = [
        "generate",
        "Tell me a story",
        "--model",
        &model,
        "--user",
        "ada",
        "--ignore-eos",
        "--temperature",
        "0",
        "--max-tokens",
        "150",
    ];
    let home = Home::new();
    home.wallet("ada", 100_000);
    let transcript = Transcript::new(&model, &home.json(&arguments));

    // The last one to close the ledger has folded its log into it: the traced run begins with an empty log.
    let before = home.path().join("before.db");
    std::fs::copy(home.path().join("ledger.db"), &before).expect("the ledger can be copied");
    let trace_file = home.path().join("trace");
    trace(&home, &arguments, &trace_file);
    let events = events(&std::fs::read_to_string(&trace_file).expect("the trace is text"));

    let mut writes = 0;
    let mut shown = 0;
    for event in events.iter().filter(|event| event.is_answer()) {
        shown += event.data.len();
        let (fewest, _) = transcript.tokens_for(shown.min(transcript.text.len()));
        let durable = durable_tokens(&events, event.begun, &before);
        assert!(fewest <= durable, "{fewest} tokens were shown when {durable} were durable");
        writes += 1;
    }
    assert!(shown >= transcript.text.len(), "the trace lacks answer text: {shown} of {} bytes", transcript.text.len());
    assert!(writes > 3, "only {writes} writes of answer text: the test shows too little");
}

fn can_trace() -> bool {
    Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success())
}

fn trace(home: &Home, arguments: &[&str], file: &Path) {
    let program = home.command(arguments);
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-y", "-xx", "-s", "10000000", "-e", "trace=write,pwrite64,lseek,ftruncate,fsync,fdatasync", "-o"])
        .arg(file)
        .arg(program.get_program())
        .args(program.get_args())
        .arg("--no-stats");
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    let output = strace.output().expect("strace starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// One system call: the lines of the trace on which it began and ended.
struct Event {
    begun: usize,
    ended: usize,
    call: String,
    /// `1<pipe:[123]>` or `7</home/ledger.db-wal>`.
    descriptor: String,
    data: Vec<u8>,
    /// Arguments after the data.
    rest: String,
    result: i64,
}

impl Event {
    fn is_answer(&self) -> bool {
        self.call == "write" && self.descriptor.starts_with("1<")
    }

    fn is_on_log(&self) -> bool {
        self.descriptor.ends_with("ledger.db-wal>")
    }
}

/// Tokens of the running request whose debit was durable when line `line` of the trace began.
fn durable_tokens(events: &[Event], line: usize, before: &Path) -> i64 {
    let fsync = events
        .iter()
        .filter(|event| event.is_on_log() && event.call.contains("sync") && event.result == 0 && event.ended < line)
        .max_by_key(|event| event.begun);
    let Some(fsync) = fsync else { return 0 };
    let mut log: Vec<u8> = Vec::new();
    let mut position = 0_usize;
    for event in events.iter().filter(|event| event.is_on_log() && event.ended < fsync.begun) {
        match event.call.as_str() {
            "lseek" => position = event.result as usize,
            "pwrite64" => {
                let offset = event.rest.rsplit(", ").next().and_then(|offset| offset.parse().ok()).expect("an offset");
                put(&mut log, offset, &event.data);
            }
            "write" => {
                put(&mut log, position, &event.data);
                position += event.data.len();
            }
            "ftruncate" => log.clear(),
            _ => {}
        }
    }
    let scratch = tempfile::tempdir().expect("a temporary directory can be made");
    let copy = scratch.path().join("ledger.db");
    std::fs::copy(before, &copy).expect("the ledger can be copied");
    std::fs::write(scratch.path().join("ledger.db-wal"), &log).expect("the log can be written");
    let connection = Connection::open_with_flags(&copy, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("it opens");
    let running = "SELECT coalesce(sum(output_tokens), 0) FROM progress";
    let running: i64 = connection.query_row(running, [], |row| row.get(0)).expect("it is a ledger");
    if running > 0 {
        return running;
    }
    // Settled already: the second request in the log, after the undisturbed one.
    let settled =
        "SELECT coalesce(sum(output_tokens), 0) FROM request_log WHERE seq > (SELECT min(seq) FROM request_log)";
    connection.query_row(settled, [], |row| row.get(0)).expect("it is a ledger")
}

fn put(log: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if log.len() < end {
        log.resize(end, 0);
    }
    log[offset..end].copy_from_slice(data);
}

/// The calls in a trace of several threads: `PID call(args) = result`, possibly in two halves.
fn events(trace: &str) -> Vec<Event> {
    let mut unfinished: HashMap<&str, (usize, String)> = HashMap::new();
    let mut events = Vec::new();
    for (line, content) in trace.lines().enumerate() {
        let Some((pid, content)) = content.split_once(' ') else { continue };
        let content = content.trim_start();
        if let Some(head) = content.strip_suffix("<unfinished ...>") {
            unfinished.insert(pid, (line, head.trim_end().to_owned()));
        } else if let Some(resumed) = content.strip_prefix("<... ") {
            let tail = resumed.split_once("resumed>").map_or("", |(_, tail)| tail);
            if let Some((begun, head)) = unfinished.remove(pid) {
                events.extend(event(&format!("{head}{tail}"), begun, line));
            }
        } else {
            events.extend(event(content, line, line));
        }
    }
    events.sort_by_key(|event| event.ended);
    events
}

fn event(content: &str, begun: usize, ended: usize) -> Option<Event> {
    let (call, content) = content.split_once('(')?;
    let (content, result) = content.rsplit_once(" = ")?;
    let result = result.split_whitespace().next()?.parse().ok()?;
    let content = content.trim_end().strip_suffix(')')?;
    let (descriptor, content) = content.split_once('>').map(|(head, tail)| (format!("{head}>"), tail))?;
    // With -xx strace writes names in hexadecimal too.
    let descriptor = match descriptor.split_once('<') {
        Some((number, name)) => format!("{number}<{}", unescape_name(name)),
        None => descriptor,
    };
    let content = content.strip_prefix(", ").unwrap_or(content);
    let (data, rest) = match content.strip_prefix('"') {
        Some(quoted) => {
            let (hex, rest) = quoted.split_once('"')?;
            (unescape(hex), rest.to_owned())
        }
        None => (Vec::new(), content.to_owned()),
    };
    Some(Event { begun, ended, call: call.to_owned(), descriptor, data, rest, result })
}

fn unescape_name(name: &str) -> String {
    if name.starts_with("\\x") { text(&unescape(name.trim_end_matches('>'))) + ">" } else { name.to_owned() }
}

/// `\x41\x42` as bytes.
fn unescape(hex: &str) -> Vec<u8> {
    hex.split("\\x").skip(1).map(|byte| u8::from_str_radix(&byte[..2], 16).expect("two hexadecimal digits")).collect()
}
