//! `tokrun serve` as a process: what it says, what it refuses, and how it ends. What it answers is tested in its crate.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::{Value, json};

use crate::support::{Home, text, tiny_model};

/// A server that listens.
pub(crate) struct Served {
    child: Child,
    pub(crate) url: String,
}

impl Served {
    pub(crate) fn start(home: &Home, arguments: &[&str]) -> Self {
        Self::start_with(home, arguments, &[])
    }

    /// With settings in its environment.
    fn start_with(home: &Home, arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let model = tiny_model();
        let all = [&["serve", "--model", &model, "--port", "0", "--output", "json"], arguments].concat();
        Self::of(home.command(&all).envs(settings.iter().copied()))
    }

    /// The one that a command with `--output json` starts.
    pub(crate) fn of(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("it can be read");
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        Self { child, url: said["url"].as_str().expect("it says where").to_owned() }
    }

    pub(crate) fn id(&self) -> String {
        self.child.id().to_string()
    }

    pub(crate) fn chat(&self, model: &str, extra: &Value) -> Value {
        let mut request = json!({ "model": model, "messages": [{ "role": "user", "content": "The light" }] });
        request.as_object_mut().expect("it is one").extend(extra.as_object().expect("it is one").clone());
        let response = ureq::post(format!("{}/v1/chat/completions", self.url)).send(request.to_string().as_bytes());
        let text = response.expect("it answers").body_mut().read_to_string().expect("it can be read");
        serde_json::from_str(&text).expect("it is JSON")
    }

    /// Ends it as a service manager does.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        terminate(&mut self.child)
    }
}

/// Says that a process is to end, and waits until it has.
pub(crate) fn terminate(child: &mut Child) -> ExitStatus {
    let killed = Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
    assert!(killed.success());
    child.wait().expect("it ends")
}

/// A directory of safetensors is called by its own name.
fn model_name() -> String {
    tiny_model().rsplit('/').next().expect("it has a name").to_owned()
}

#[test]
fn it_serves_and_ends_when_it_is_told() {
    let home = Home::new();
    home.wallet("ada", 1000);
    let served = Served::start(&home, &["--user", "ada"]);
    let answer = served.chat(&model_name(), &json!({ "max_tokens": 5, "ignore_eos": true }));
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    let paid = answer["tokrun"]["debited"].as_i64().expect("a sum");
    assert_eq!(served.terminate().code(), Some(0));
    assert_eq!(home.balance("ada"), 1000 - paid);
    home.verify();
    // From now on nothing is created by itself.
    let model = tiny_model();
    assert_eq!(home.run(&["generate", "hi", "--model", &model, "-n", "1"]).status.code(), Some(4));
}

/// Two answers at once are computed by two cards, and the ledger knows by which.
#[test]
fn cuda_cards_have_an_engine_each() {
    if !crate::cuda::device() || !crate::cuda::is_driver_for_tests() {
        return;
    }
    let home = Home::new();
    home.wallet("ada", 1000);
    let served = Served::start_with(&home, &["--user", "ada", "--device", "cuda:all"], &[("FAKECUDA_DEVICES", "2")]);
    let answer = served.chat(&model_name(), &json!({ "max_tokens": 5, "ignore_eos": true, "n": 2 }));
    assert_eq!(answer["usage"]["completion_tokens"], 10);
    assert_eq!(served.terminate().code(), Some(0));
    home.verify();
    let requests = text(&home.run(&["ledger", "export", "--format", "focus"]).stdout);
    // A line for what came in and one for what went out.
    assert_eq!((requests.matches("cuda:0").count(), requests.matches("cuda:1").count()), (2, 2), "{requests}");
}

#[test]
fn what_it_must_not_do_it_refuses_at_once() {
    let home = Home::new();
    let model = tiny_model();
    let serve = |arguments: &[&str]| {
        let output = home.run(&[&["serve", "--model", &model, "--port", "0"], arguments].concat());
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = serve(&["--host", "0.0.0.0"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("no request would need a key") && said.contains("hint:"), "{said}");
    let (code, said) = serve(&["--user", "nobody"]);
    assert_eq!(code, Some(4), "{said}");
    home.wallet("ada", 10);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let port = taken.local_addr().expect("it has one").port().to_string();
    let output = home.run(&["serve", "--model", &model, "--user", "ada", "--port", &port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("hint: choose another --port"));
}
