//! What a team lead types to limit what is used, and how somebody hears of it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use serde_json::{Value, json};

use crate::support::{Home, parse, text, tiny_model};

#[test]
fn a_limit_ends_an_answer_and_says_when_to_try_again() {
    let home = Home::new();
    home.wallet("ada", 1000);
    let limit = home.json(&["wallet", "limit", "set", "ada", "--tokens", "40", "--per", "month"]);
    assert_eq!((&limit["amount"], &limit["measure"], &limit["per"]), (&40.into(), &"tokens".into(), &"month".into()));
    let model = tiny_model();
    let arguments = ["generate", "--raw", "hello", "--model", &model, "--user", "ada", "--ignore-eos", "-n", "500"];
    let json = [&arguments[..], &["--output", "json"]].concat();
    let output = home.run(&json);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let answer = parse(&output);
    assert_eq!((&answer["finish_reason"], &answer["usage"]["total_tokens"]), (&"limit".into(), &40.into()));
    assert_eq!((&answer["limit"]["id"], &answer["allowance"]["balance"]), (&limit["id"], &960.into()));
    assert!(answer["limit"]["retry_after"].as_u64().is_some_and(|wait_s| wait_s > 0));

    let refused = home.run(&json);
    assert_eq!(refused.status.code(), Some(3));
    let error = &parse(&refused)["error"];
    assert_eq!(error["code"], "limit_reached");
    assert_eq!(error["limit"]["what"], "40 tokens a month of wallet ada");
    assert!(text(&home.run(&arguments).stderr).contains("it begins anew in"));
    let listed = home.json(&["wallet", "limit", "list", "ada"]);
    assert_eq!((&listed[0]["used"], &listed[0]["warn"]), (&40.into(), &json!([50, 80, 100])));
    assert!(text(&home.run(&["wallet", "limit", "list"]).stdout).contains("40 tokens"));

    home.json(&["wallet", "limit", "remove", limit["id"].as_str().unwrap()]);
    assert_eq!(home.json(&["wallet", "limit", "list"]), json!([]));
    assert_eq!(parse(&home.run(&json))["finish_reason"], "length");
    home.verify();
}

#[test]
fn limits_that_cannot_be_are_refused() {
    let home = Home::new();
    home.wallet("ada", 10);
    for (arguments, status) in [
        (&["set", "ada", "--tokens", "40"][..], 2),
        (&["set", "ada", "--tokens", "40", "--credits", "1", "--per", "day"], 2),
        (&["set", "--tokens", "40", "--per", "day"], 2),
        (&["set", "ada", "--tokens", "-1", "--per", "day"], 2),
        (&["set", "ada", "--requests", "1", "--per", "request"], 2),
        (&["set", "ada", "--tokens", "1", "--per", "day", "--warn", "200"], 2),
        (&["set", "eve", "--tokens", "40", "--per", "day"], 4),
        (&["list", "eve"], 4),
        (&["remove", "none"], 4),
    ] {
        let output = home.run(&[&["wallet", "limit"], arguments].concat());
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
    }
    assert_eq!(home.json(&["wallet", "limit", "list"]), json!([]));
}

/// Uses all of a limit at once.
fn reach_a_limit(home: &Home) {
    home.wallet("ada", 1000);
    home.json(&["wallet", "limit", "set", "ada", "--tokens", "40", "--per", "day"]);
    let model = tiny_model();
    home.run(&["generate", "--raw", "hello", "--model", &model, "--user", "ada", "--ignore-eos", "-n", "500"]);
}

#[test]
fn events_are_shown_and_posted_until_they_arrive() {
    let home = Home::new();
    reach_a_limit(&home);
    let events = home.json(&["events"]);
    let percents: Vec<&Value> = events.as_array().unwrap().iter().map(|event| &event["data"]["percent"]).collect();
    assert_eq!(percents, [50, 80, 100]);
    assert!(text(&home.run(&["events"]).stdout).contains("80 % of 40 tokens a day of wallet ada"));
    assert_eq!(home.json(&["events", "--since", "2999-01-01"]), json!([]));

    // The first answer is a failure; what it was for comes again.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", server.local_addr().unwrap());
    let receiver = thread::spawn(move || {
        let answers = ["503 Service Unavailable", "200 OK", "200 OK", "204 No Content"];
        answers.map(|answer| {
            let (mut stream, _) = server.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.ends_with(b"}") {
                let read = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..read]);
                assert!(read > 0, "the request ended early: {}", text(&request));
            }
            write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
            let request = text(&request);
            serde_json::from_str::<Value>(request.split_once("\r\n\r\n").unwrap().1).unwrap()
        })
    });
    let first = home.run(&["events", "--webhook", &url]);
    assert_eq!(first.status.code(), Some(1), "{}", text(&first.stderr));
    assert!(text(&first.stdout).contains("2 arrived, 1 did not"));
    let mut arrived = 0;
    while arrived == 0 {
        thread::sleep(std::time::Duration::from_millis(200));
        arrived = home.json(&["events", "--webhook", &url])["arrived"].as_u64().unwrap();
    }
    let posted = receiver.join().unwrap();
    assert_eq!(posted[0], posted[3], "the same event, under the same id");
    assert_eq!(&posted[..3], events.as_array().unwrap().as_slice());
    assert_eq!(home.json(&["events", "--webhook", &url]), json!({ "arrived": 0, "failed": 0 }));
    home.verify();
}

#[cfg(unix)]
#[test]
fn events_run_a_program() {
    use std::os::unix::fs::PermissionsExt;

    let home = Home::new();
    reach_a_limit(&home);
    let (program, heard) = (home.path().join("hear"), home.path().join("heard"));
    std::fs::write(&program, format!("#!/bin/sh\ncat >> {0}\necho >> {0}\n", heard.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let command = ["events", "--command", program.to_str().unwrap()];
    assert_eq!(home.json(&command), json!({ "arrived": 3, "failed": 0 }));
    assert_eq!(home.json(&command), json!({ "arrived": 0, "failed": 0 }));
    let heard = std::fs::read_to_string(heard).unwrap();
    let heard: Vec<Value> = heard.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(Value::from(heard), home.json(&["events"]));
    let none = home.run(&["events", "--command", "/no/such/program"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("sent again later"));
}
