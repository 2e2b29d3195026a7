//! Bad input: a clear message with a remedy, the exit status of the contract, and books that have not changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Home, copy_directory, fixture, parse, text, tiny_model};

/// Runs, and expects this status, these words in the message, and unchanged books.
fn refused(home: &Home, arguments: &[&str], status: i32, words: &[&str]) {
    let before = home.books();
    let output = home.run(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    assert!(said.contains("error: "), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say `{word}`: {said}");
    }
    assert!(output.stdout.is_empty(), "{arguments:?} printed {}", text(&output.stdout));
    assert_eq!(home.books(), before, "{arguments:?} changed the books");

    // The same for programs.
    let output = home.run(&[arguments, &["--output", "json"]].concat());
    assert_eq!(output.status.code(), Some(status));
    let error = &parse(&output)["error"];
    assert!(error["code"].is_string() && error["message"].is_string(), "{error}");
}

fn home_with_money() -> Home {
    let home = Home::new();
    home.wallet("ada", 1_000);
    home
}

fn generate<'a>(model: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "Hello", "--model", model, "--user", "ada"][..], extra].concat()
}

fn gguf() -> PathBuf {
    let found = fs::read_dir(fixture("gguf-llama")).expect("the fixture is there");
    found
        .map(|entry| entry.expect("readable").path())
        .find(|path| path.extension().is_some_and(|end| end == "gguf"))
        .expect("a GGUF")
}

#[test]
fn a_truncated_gguf() {
    let home = home_with_money();
    let whole = fs::read(gguf()).expect("the fixture can be read");
    for length in [0, 3, 8, 23, 200, whole.len() / 2, whole.len() - 1] {
        let path = home.path().join("cut.gguf");
        fs::write(&path, &whole[..length]).expect("it can be written");
        refused(&home, &generate(path.to_str().expect("UTF-8"), &[]), 1, &["cut.gguf"]);
    }
}

#[test]
fn a_gguf_with_absurd_lengths() {
    let home = home_with_money();
    let whole = fs::read(gguf()).expect("the fixture can be read");
    // Number of tensors, number of metadata entries, length of the first key.
    for offset in [8, 16, 24] {
        for absurd in [u64::MAX, 1 << 62, 1 << 40, 1 << 31] {
            let mut bytes = whole.clone();
            bytes[offset..offset + 8].copy_from_slice(&absurd.to_le_bytes());
            let path = home.path().join("absurd.gguf");
            fs::write(&path, &bytes).expect("it can be written");
            refused(&home, &generate(path.to_str().expect("UTF-8"), &[]), 1, &["absurd.gguf"]);
        }
    }
}

/// A copy of the tiny model that a test may spoil.
fn copied_model(home: &Home) -> PathBuf {
    let copy = home.path().join("model");
    copy_directory(Path::new(&tiny_model()), &copy);
    copy
}

#[test]
fn a_safetensors_file_whose_header_lies() {
    let home = home_with_money();
    let model = copied_model(&home);
    let weights = model.join("model.safetensors");
    let whole = fs::read(&weights).expect("the fixture can be read");
    let header_bytes = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    let with_length = |length: u64| [&length.to_le_bytes()[..], &whole[8..]].concat();
    let header = String::from_utf8(whole[8..8 + header_bytes].to_vec()).expect("a header is JSON");
    let spoiled = [
        with_length(u64::MAX),
        with_length(whole.len() as u64 * 2),
        with_length(3),
        whole[..whole.len() - 5].to_vec(),
        // Offsets that point past the end.
        [&whole[..8], header.replacen("[0,", "[9,", 1).as_bytes(), &whole[8 + header_bytes..]].concat(),
    ];
    for (index, bytes) in spoiled.iter().enumerate() {
        fs::write(&weights, bytes).expect("it can be written");
        assert_ne!(bytes, &whole, "case {index} spoils nothing");
        refused(&home, &generate(model.to_str().expect("UTF-8"), &[]), 1, &["model"]);
    }
}

#[test]
fn a_missing_tokenizer() {
    let home = home_with_money();
    let model = copied_model(&home);
    fs::remove_file(model.join("tokenizer.json")).expect("it was copied");
    refused(&home, &generate(model.to_str().expect("UTF-8"), &[]), 1, &["tokenizer.json"]);
}

#[test]
fn a_missing_model() {
    let home = home_with_money();
    refused(&home, &generate("no-such-model", &[]), 4, &["no-such-model", "hint:"]);
    refused(&home, &generate("./no/such/file.gguf", &[]), 4, &["file.gguf"]);
}

#[test]
fn a_prompt_longer_than_the_context() {
    let home = home_with_money();
    let model = tiny_model();
    let long = "word ".repeat(20_000);
    let file = home.path().join("long.txt");
    fs::write(&file, long).expect("it can be written");
    let file = file.to_str().expect("UTF-8");
    refused(&home, &["generate", "--file", file, "--model", &model, "--user", "ada"], 2, &["context"]);
}

#[test]
fn impossible_flags() {
    let home = home_with_money();
    let model = tiny_model();
    for flags in [
        &["--max-tokens", "0"][..],
        &["--temperature", "-1"],
        &["--temperature", "NaN"],
        &["--top-p", "2"],
        &["--min-p", "-0.1"],
        &["--repeat-penalty", "0"],
        &["--stop", ""],
        &["--logit-bias", "99999999=1"],
    ] {
        refused(&home, &generate(&model, flags), 2, &[]);
    }
}

#[test]
fn prompts_that_are_none() {
    let home = home_with_money();
    let model = tiny_model();
    for blank in ["", "  \n "] {
        refused(&home, &["generate", blank, "--model", &model, "--user", "ada"], 2, &["empty"]);
    }
    refused(&home, &["generate", "hi", "--model", &model, "--user", "ada", "--raw", "--system", "x"], 2, &[]);
    refused(&home, &["chat", "--model", &model, "--user", "ada", "--threads", "65535"], 2, &[]);
    refused(&home, &["bench", "--model", &model, "-p", "0", "-n", "100000", "-r", "1"], 2, &["context"]);
}

#[test]
#[cfg(unix)]
fn an_argument_that_is_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let home = home_with_money();
    let output = home.command(&["generate"]).arg(std::ffi::OsStr::from_bytes(b"bad\xff")).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

/// A full device is a failure that is told; a reader that left is none; in neither case does anything panic.
#[test]
#[cfg(target_os = "linux")]
fn a_stdout_that_takes_nothing() {
    let home = home_with_money();
    let model = tiny_model();
    let commands: [&[&str]; 6] = [
        &["wallet", "list"],
        &["usage", "--output", "json"],
        &["ledger", "verify"],
        &["model", "list"],
        &["completions", "bash"],
        &["generate", "Hi", "--model", &model, "--user", "ada", "--max-tokens", "3", "--output", "json"],
    ];
    for arguments in commands {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let output = home.command(arguments).stdout(full).output().expect("it starts");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("cannot write") && !said.contains("panicked"), "{arguments:?}: {said}");

        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        drop(reader);
        let output = home.command(arguments).stdout(writer).output().expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
    }
    home.verify();
}

#[test]
fn a_newcomer_is_not_sent_into_an_empty_wallet() {
    let home = Home::new();
    let output = home.run(&["wallet", "show"]);
    assert_eq!(output.status.code(), Some(4));
    let said = text(&output.stderr);
    assert!(said.contains("first `tokrun generate` opens it") && !said.contains("wallet create"), "{said}");
}

#[test]
fn unknown_and_frozen_wallets() {
    let home = home_with_money();
    let model = tiny_model();
    refused(&home, &["generate", "Hello", "--model", &model, "--user", "nobody-here"], 4, &["nobody-here"]);
    refused(&home, &["wallet", "show", "nobody-here"], 4, &["nobody-here"]);
    refused(&home, &["wallet", "grant", "nobody-here", "5"], 4, &["nobody-here"]);
    home.json(&["wallet", "freeze", "ada"]);
    refused(&home, &generate(&model, &[]), 3, &["frozen", "thaw"]);
    home.json(&["wallet", "thaw", "ada"]);
    home.json(&generate(&model, &["--max-tokens", "2"]));
}

#[test]
fn impossible_grants() {
    let home = home_with_money();
    for amount in ["0", "abc", "1e9", "0.0000001", "99999999999999999999", "NaN", "9223372036854"] {
        refused(&home, &["wallet", "grant", "ada", amount], 2, &[]);
    }
    refused(&home, &["wallet", "grant", "ada", "5", "--expires", "2001-01-01"], 2, &[]);
    refused(&home, &["wallet", "create", "ada"], 1, &["ada"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_home_that_cannot_be_written() {
    let home = Home::new();
    // Nobody can make a directory there, not even root.
    for unwritable in ["/sys/tokrun", "/proc/tokrun"] {
        let output = home
            .command(&["generate", "Hello", "--model", &tiny_model()])
            .env("TOKRUN_HOME", unwritable)
            .output()
            .expect("the program starts");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(unwritable) && said.contains("TOKRUN_HOME"), "{said}");
    }
}

#[test]
fn a_ledger_from_a_newer_version() {
    let home = home_with_money();
    let file = home.path().join("ledger.db");
    let before = with_ledger(&file, |connection| {
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a version");
        connection.execute_batch(&format!("PRAGMA user_version = {}", version + 1)).expect("it can be set");
        version
    });
    let output = home.run(&generate(&tiny_model(), &[]));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("newer") || said.contains("upgrade"), "{said}");
    with_ledger(&file, |connection| {
        connection.execute_batch(&format!("PRAGMA user_version = {before}")).expect("it can be set")
    });
    assert_eq!(home.balance("ada"), 1_000);
    home.verify();
}

#[test]
fn a_ledger_that_was_tampered_with() {
    let home = home_with_money();
    home.json(&generate(&tiny_model(), &["--max-tokens", "3"]));
    with_ledger(&home.path().join("ledger.db"), |connection| {
        connection
            .execute_batch(
                "DROP TRIGGER posting_is_final_update; UPDATE posting SET amount = amount + 1000000 WHERE line = 0;",
            )
            .expect("it can be done");
    });
    let verify = home.run(&["ledger", "verify"]);
    assert_eq!(verify.status.code(), Some(1));
    assert!(text(&verify.stderr).contains("entry"), "{}", text(&verify.stderr));
    let output = home.run(&generate(&tiny_model(), &["--max-tokens", "3"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("restore"), "{}", text(&output.stderr));
}

fn with_ledger<T>(file: &Path, change: impl FnOnce(&rusqlite::Connection) -> T) -> T {
    change(&rusqlite::Connection::open(file).expect("the ledger opens"))
}

/// A disk of 1 MB, in a mount namespace of its own: full before the request, and full in the middle of one.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk() {
    let mount = tempfile::tempdir().expect("a temporary directory can be made");
    if !can_mount(mount.path()) {
        assert!(std::env::var_os("TOKRUN_REQUIRE_MOUNT").is_none(), "mounting is required here, and does not work");
        eprintln!("SKIPPED: this account may not mount a small disk");
        return;
    }
    let script = r#"
        set -u
        mount -t tmpfs -o size=1200k tokrun-test "$DISK" || exit 99
        export TOKRUN_HOME="$DISK/home"
        "$TOKRUN" wallet create ada >/dev/null && "$TOKRUN" wallet grant ada 100000 >/dev/null || exit 98
        before=$("$TOKRUN" wallet statement ada --output json)
        leave() { rm -f "$DISK/fill"; free=$(df --output=avail -k "$DISK" | tail -n 1); dd if=/dev/zero of="$DISK/fill" bs=1k count=$((free - $1)) 2>/dev/null; }

        leave 0
        "$TOKRUN" generate Hello --model "$MODEL" --user ada --max-tokens 5 >"$OUT/full.out" 2>"$OUT/full.err"; echo $? >"$OUT/full.status"
        rm -f "$DISK/fill"
        [ "$before" = "$("$TOKRUN" wallet statement ada --output json)" ] || { echo "a full disk changed the books" >&2; exit 97; }

        leave 200
        "$TOKRUN" generate Hello --model "$MODEL" --user ada --ignore-eos --max-tokens 2000 --temperature 0 >"$OUT/middle.out" 2>"$OUT/middle.err"; echo $? >"$OUT/middle.status"
        rm -f "$DISK/fill"
        "$TOKRUN" ledger verify >/dev/null || exit 96
        "$TOKRUN" wallet statement ada --output json >"$OUT/statement"
        "$TOKRUN" wallet show ada --output json >"$OUT/wallet"
    "#;
    let out = tempfile::tempdir().expect("a temporary directory can be made");
    let output = in_namespace(script, mount.path(), out.path());
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    let read = |name: &str| fs::read_to_string(out.path().join(name)).expect("the script wrote it");
    assert_eq!(read("full.status").trim(), "1", "{}", read("full.err"));
    assert!(read("full.err").contains("space"), "{}", read("full.err"));
    assert_eq!(read("full.out"), "");

    assert_eq!(read("middle.status").trim(), "1", "{}", read("middle.err"));
    assert!(read("middle.err").contains("space"), "{}", read("middle.err"));
    assert!(!read("middle.out").is_empty(), "nothing was delivered before the disk was full");
    let wallet: serde_json::Value = serde_json::from_str(&read("wallet")).expect("JSON");
    let statement: serde_json::Value = serde_json::from_str(&read("statement")).expect("JSON");
    assert_eq!(wallet["in_flight"], 0, "the open request was not settled at the next start");
    assert_eq!(statement["closing"], wallet["balance"]);
    assert!(wallet["balance"].as_i64().expect("whole") < 100_000, "what was delivered was not paid");
}

#[cfg(target_os = "linux")]
fn in_namespace(script: &str, disk: &Path, out: &Path) -> Output {
    Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script])
        .env("DISK", disk)
        .env("OUT", out)
        .env("TOKRUN", env!("CARGO_BIN_EXE_tokrun"))
        .env("MODEL", tiny_model())
        .output()
        .expect("unshare starts")
}

#[cfg(target_os = "linux")]
fn can_mount(at: &Path) -> bool {
    let output = in_namespace(r#"mount -t tmpfs -o size=64k tokrun-test "$DISK""#, at, at);
    output.status.success()
}
