//! The official packages of Python and npm against the server, as they come: `tests/clients/`.

use std::path::Path;
use std::process::Command;

use crate::support::{Choices, EMBEDDER, MODEL, Service};

/// A Python with `openai` and `anthropic`: named by `TOKRUN_CLIENTS_PYTHON`, else the one on the path. Required where
/// `TOKRUN_REQUIRE_CLIENTS` is set; elsewhere a test that lacks it says so.
fn python() -> Option<String> {
    let python = std::env::var("TOKRUN_CLIENTS_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python).args(["-c", "import openai, anthropic"]).output();
    if probe.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(
        std::env::var_os("TOKRUN_REQUIRE_CLIENTS").is_none(),
        "the Python packages `openai` and `anthropic` are required: pip install openai anthropic"
    );
    eprintln!("SKIPPED: the Python packages `openai` and `anthropic` are not here");
    None
}

#[test]
fn the_official_python_clients_are_served() {
    let Some(python) = python() else { return };
    let service = Service::with(Choices { context_tokens: 4096, embeds: true, ..Choices::default() });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/conformance.py");
    let output = Command::new(python)
        .arg(script)
        .args([&service.url(""), MODEL, EMBEDDER])
        .env_remove("OPENAI_API_KEY")
        .env_remove("ANTHROPIC_API_KEY")
        .output()
        .expect("python runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

/// A folder whose `node_modules` has the npm package `openai`, named by `TOKRUN_CLIENTS_NODE`. Required where
/// `TOKRUN_REQUIRE_NODE` is set; elsewhere a test that lacks it says so.
fn node_folder() -> Option<String> {
    let folder = std::env::var("TOKRUN_CLIENTS_NODE").ok();
    if let Some(folder) = folder.filter(|folder| Path::new(folder).join("node_modules/openai").is_dir()) {
        return Some(folder);
    }
    assert!(
        std::env::var_os("TOKRUN_REQUIRE_NODE").is_none(),
        "the npm package `openai` is required: npm install openai, and name the folder in TOKRUN_CLIENTS_NODE"
    );
    eprintln!("SKIPPED: TOKRUN_CLIENTS_NODE names no folder with the npm package `openai`");
    None
}

#[test]
fn the_official_npm_client_is_served() {
    let Some(folder) = node_folder() else { return };
    let service = Service::with(Choices { context_tokens: 4096, embeds: true, ..Choices::default() });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/conformance.mjs");
    let output = Command::new("node")
        .arg(script)
        .args([&service.url(""), MODEL, EMBEDDER])
        .env("TOKRUN_CLIENTS_NODE", folder)
        .output()
        .expect("node runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn the_python_example_asks_and_sees_what_it_cost() {
    let Some(python) = python() else { return };
    let service = Service::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/client.py");
    let output = Command::new(python).arg(example).args([&service.url(""), MODEL]).output().expect("python runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("{} left]", service.balance())), "{said}");
}

#[test]
fn the_curl_example_asks() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: curl is not here");
        return;
    }
    let service = Service::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/curl.sh");
    let output = Command::new("sh").arg(example).args([&service.url(""), MODEL]).output().expect("sh runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("\"balance\":1000000") && said.trim_end().ends_with("data: [DONE]"), "{said}");
}
