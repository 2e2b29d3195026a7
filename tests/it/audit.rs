//! What holds for every command, found by asking the program which ones it has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Home, text, tiny_model};

/// Arguments with which commands do something, in an order in which they can. `MODEL` is a tiny one, `FILE` a new file,
/// `TABLE` one to import. A command that is missing here is run without any, and may refuse that.
const RUNS: [&str; 50] = [
    "wallet create ada",
    "wallet create bob",
    "wallet set ada --overdraft 5",
    "wallet grant ada 500",
    "wallet transfer ada bob 10",
    "wallet set bob --parent ada --kind service",
    "wallet deposit ada 10 --weight bob=2",
    "wallet import TABLE --dry-run",
    "wallet freeze bob",
    "wallet thaw bob",
    "generate --raw hello --model MODEL --user ada --ignore-eos -n 3",
    "chat --model MODEL --user ada --ignore-eos -n 3",
    "wallet list",
    "wallet show ada",
    "wallet statement ada",
    "wallet void none",
    "wallet refund none",
    "wallet correct none",
    "key create ada ci",
    "key rotate ci",
    "key list ada",
    "key show ci",
    "key revoke ci",
    "project budget web 100 --every week",
    "project list",
    "wallet request 5 --user ada --reason demo",
    "wallet requests --open",
    "wallet approve none",
    "wallet deny none",
    "wallet create leaver",
    "wallet grant leaver 9",
    "wallet delegate leaver agent 5",
    "wallet revoke agent",
    "wallet close leaver --to ada",
    "ledger anchor",
    "usage",
    "usage --by day",
    "ledger verify",
    "ledger anchor --check none:0:00",
    "ledger backup FILE",
    "ledger export --format json",
    "serve --model MODEL --user nobody",
    "bench --model MODEL -p 2 -n 2 -r 1 --ledger off",
    "model list",
    "model show MODEL",
    "model verify",
    "model remove nothing",
    "doctor --model MODEL",
    "completions bash",
    "man FILE.d",
];

#[test]
fn every_command_prints_json_has_a_manual_page_and_is_completed() {
    let home = Home::new();
    let table = home.path().join("people.csv");
    fs::write(&table, "wallet,amount\neve,5\n").expect("it can be written");
    let commands: BTreeSet<String> = leaves(&home).into_keys().collect();
    let mut ran = BTreeSet::new();
    for run in RUNS {
        let named = commands.iter().filter(|command| format!("{run} ").starts_with(&format!("{command} ")));
        let Some(command) = named.max_by_key(|command| command.len()) else { panic!("`{run}` is no command") };
        ran.insert(command.clone());
        let file = home.path().join("file");
        let arguments: Vec<String> = run
            .split(' ')
            .map(|word| {
                let word = word.replace("MODEL", &tiny_model()).replace("TABLE", &table.display().to_string());
                word.replace("FILE", &file.display().to_string())
            })
            .collect();
        is_json(&home, &arguments);
    }
    for command in commands.difference(&ran) {
        is_json(&home, &command.split(' ').map(str::to_owned).collect::<Vec<_>>());
    }

    let script = home.json(&["completions", "bash"])["script"].as_str().expect("a script").to_owned();
    for command in &commands {
        let state = format!("tokrun__{}", command.replace(' ', "__"));
        let words = script.replace("__subcmd__", "__");
        assert!(words.contains(&state), "`{command}` is not completed");
    }
}

#[test]
fn every_command_that_changes_the_ledger_takes_an_idempotency_key() {
    let is_of_the_ledger =
        |command: &str| ["wallet", "price", "key", "project"].contains(&command.split(' ').next().unwrap_or(""));
    let keyless: Vec<String> = leaves(&Home::new())
        .into_iter()
        .filter(|(command, page)| is_of_the_ledger(command) && !page.contains("idempotency"))
        .map(|(command, _)| command)
        .collect();
    // The rows of a table that is imported are their own keys, and a link that signs somebody in is no entry.
    let expected = [
        "key link",
        "key list",
        "key show",
        "price estimate",
        "price list",
        "project list",
        "wallet import",
        "wallet limit list",
        "wallet list",
        "wallet requests",
        "wallet show",
        "wallet statement",
    ];
    assert_eq!(keyless, expected);
}

/// What a run prints on stdout is JSON, whether it did what it was asked to or not.
fn is_json(home: &Home, arguments: &[String]) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--output", "json"]).collect();
    let mut child = home
        .command(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // Only `chat` reads it.
    child.stdin.take().expect("it is piped").write_all(b"hello\n").ok();
    let output = child.wait_with_output().expect("it ends");
    let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(&output.stdout).into_iter().collect();
    let told = format!("{arguments:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(values.is_ok_and(|values| !values.is_empty()), "{told}");
}

/// The commands that do something by themselves, as their manual pages name them, `wallet show`, and these pages.
fn leaves(home: &Home) -> BTreeMap<String, String> {
    let directory = home.path().join("man");
    home.json(&["man", &directory.display().to_string()]);
    let mut pages = BTreeMap::new();
    for page in fs::read_dir(directory).expect("it was written") {
        let page = page.expect("it can be listed").path();
        let shown = fs::read_to_string(&page).expect("it is text");
        assert!(shown.contains(".SH SYNOPSIS") && shown.contains(".SH DESCRIPTION"), "{}", page.display());
        let name = page.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        // With one of those that must be under it, it is nothing by itself.
        let is_whole = !shown.contains("<\\fIsubcommands\\fR>");
        if let Some(command) = name.strip_prefix("tokrun-").filter(|_| is_whole) {
            pages.insert(command.replace('-', " "), shown);
        }
    }
    pages
}
