//! `tokrun serve` as a process: what it says, what it refuses, and how it ends. What it answers is tested in its crate.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Home, copy_directory, default_model, text, tiny_model};

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

    pub(crate) fn get(&self, path: &str) -> Value {
        let response = ureq::get(format!("{}{path}", self.url)).call();
        let text = response.expect("it answers").body_mut().read_to_string().expect("it can be read");
        serde_json::from_str(&text).expect("it is JSON")
    }

    /// Ends it as a loss of power does.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is gone");
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

/// Copies of the tiny model under other names.
fn models(home: &Home, names: &[&str]) -> Vec<String> {
    let copy = |name: &&str| {
        let place = home.path().join(name);
        copy_directory(Path::new(&tiny_model()), &place);
        place.to_str().expect("UTF-8").to_owned()
    };
    names.iter().map(copy).collect()
}

/// What all of its models take is known before they are loaded: so much is one of them.
fn bytes_of_one(served: &Served) -> u64 {
    let models = served.get("/v1/models");
    models["data"][0]["tokrun"]["memory_bytes"].as_u64().expect("a size")
}

#[test]
fn models_are_loaded_when_they_are_wanted() {
    let home = Home::new();
    home.wallet("ada", 1000);
    let places = models(&home, &["one", "two"]);
    let small = ["--context", "64", "--max-running", "2", "--user", "ada"];
    let all = [&small[..], &["--model", &places[0], "--model", &places[1]]].concat();
    let served = Served::start(&home, &all);
    let states = |served: &Served| -> Vec<Value> {
        let models = served.get("/v1/models");
        models["data"].as_array().expect("a list").iter().map(|model| model["tokrun"]["state"].clone()).collect()
    };
    assert_eq!(states(&served), ["loaded", "unloaded", "unloaded"]);
    let answer = |served: &Served, model: &str| served.chat(model, &json!({ "max_tokens": 3, "ignore_eos": true }));
    assert_eq!(answer(&served, "one")["usage"]["completion_tokens"], 3);
    assert_eq!(states(&served), ["loaded", "loaded", "unloaded"], "there is no budget");
    let bytes = bytes_of_one(&served);
    assert_eq!(served.terminate().code(), Some(0));
    // As many as fit two of them, but not three.
    let budget = (5 * bytes / 2).to_string();
    let served = Served::start(&home, &[&all[..], &["--memory-budget", &budget]].concat());
    assert_eq!(bytes_of_one(&served), bytes);
    for model in ["one", "two"] {
        assert_eq!(answer(&served, model)["usage"]["completion_tokens"], 3, "{model}");
    }
    assert_eq!(states(&served), ["unloaded", "loaded", "loaded"]);
    assert_eq!(served.terminate().code(), Some(0));
    home.verify();
    // What can never be is refused at once, and says what to do.
    let tiny = tiny_model();
    let serve = |arguments: &[&str]| {
        let output = home.run(&[&["serve", "--port", "0", "--model", &tiny], &all[..], arguments].concat());
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let said = serve(&["--memory-budget", &(bytes / 2).to_string()]);
    assert!(said.contains("hint: raise --memory-budget"), "{said}");
    let said = serve(&["--preload", "--memory-budget", &budget]);
    assert!(said.contains("all models together") && said.contains("hint: raise --memory-budget"), "{said}");
}

/// Bytes of its memory that are in use.
fn resident_bytes(served: &Served) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", served.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the system tells it");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}

#[test]
fn an_idle_model_gives_its_memory_back() {
    let Some(model) = default_model() else { return };
    let home = Home::new();
    home.wallet("ada", 1000);
    let arguments = ["serve", "--model", &model, "--user", "ada", "--keep-alive", "1s", "--port", "0"];
    let served = Served::of(home.command(&arguments).args(["--output", "json"]));
    let models = served.get("/v1/models");
    let name = models["data"][0]["id"].as_str().expect("it has a name");
    let ask =
        || served.chat(name, &json!({ "max_tokens": 2, "ignore_eos": true }))["usage"]["completion_tokens"].clone();
    assert_eq!(ask(), 2);
    let loaded = resident_bytes(&served);
    let begun = Instant::now();
    while served.get("/v1/models")["data"][0]["tokrun"]["state"] != "unloaded" {
        assert!(begun.elapsed() < Duration::from_secs(60), "it stays in memory");
        std::thread::sleep(Duration::from_millis(50));
    }
    let unloaded = resident_bytes(&served);
    eprintln!("{} MB with the model, {} MB without", loaded >> 20, unloaded >> 20);
    // Its weights are 98 MB.
    assert!(loaded > unloaded + (90 << 20), "{loaded} bytes before, {unloaded} after");
    assert_eq!(ask(), 2);
    assert_eq!(served.terminate().code(), Some(0));
    home.verify();
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
