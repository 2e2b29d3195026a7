//! `tokrun serve` as a service manager has it: told to read again, handed a socket, asked how far it is; over TLS; and with a
//! link for whoever is to sign in.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::serve::{Served, terminate};
use crate::support::{Home, copy_directory, text, tiny_model};

/// A model of the catalogue, at a price.
fn catalogue(home: &Home, output_price: &str) -> String {
    let entry = format!(
        "[[model]]\nname = \"tiny\"\narchitecture = \"llama\"\nformat = \"safetensors\"\ndtype = \"F32\"\n\
         context_tokens = 16384\nlicence = \"none\"\nsources = [{{ hub = \"nobody/tiny\", revision = \"main\" }}]\n\
         prices = [{{ prompt = \"0\", output = \"{output_price}\" }}]\n"
    );
    fs::write(home.path().join("models.toml"), entry).expect("it can be written");
    let place = home.path().join("models/tiny");
    if !place.exists() {
        copy_directory(Path::new(&tiny_model()), &place);
    }
    place.to_str().expect("UTF-8").to_owned()
}

/// What the service manager is told, until it hears this.
fn hear(manager: &UnixDatagram, word: &str) -> String {
    let mut said = String::new();
    let mut bytes = [0; 4096];
    while !said.contains(word) {
        let length = manager.recv(&mut bytes).unwrap_or_else(|error| panic!("it says no {word} ({error}): {said}"));
        said.push_str(&String::from_utf8_lossy(&bytes[..length]));
        said.push('\n');
    }
    said
}

#[test]
fn a_manager_hears_how_far_it_is_and_has_it_read_prices_again() {
    let home = Home::new();
    home.wallet("ada", 1000);
    let model = catalogue(&home, "2");
    let socket = home.path().join("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket can be made");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("it can be set");
    let mut command = home.command(&["serve", "--model", &model, "--port", "0", "--output", "json", "--user", "ada"]);
    let served = Served::of(command.env("NOTIFY_SOCKET", &socket));
    hear(&manager, "READY=1");
    let cost = || served.chat("tiny", &json!({ "max_tokens": 3, "ignore_eos": true }))["tokrun"]["debited"].clone();
    assert_eq!(cost(), 6);
    let hang_up = || assert!(Command::new("kill").args(["-HUP", &served.id()]).status().expect("kill runs").success());
    catalogue(&home, "5");
    hang_up();
    let said = hear(&manager, "READY=1");
    assert!(said.contains("RELOADING=1") && said.contains("MONOTONIC_USEC="), "{said}");
    assert_eq!(cost(), 15);
    catalogue(&home, "nonsense");
    hang_up();
    hear(&manager, "READY=1");
    assert_eq!(cost(), 15, "what cannot be read changes nothing");
    catalogue(&home, "1");
    assert_eq!(served.terminate().code(), Some(0));
    hear(&manager, "STOPPING=1");
    home.verify();
}

/// A port that nobody else has just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
    listener.local_addr().expect("it has an address").port()
}

fn get(url: &str) -> Option<String> {
    ureq::get(url).call().ok()?.body_mut().read_to_string().ok()
}

/// What is ended when a test ends, however it does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_serves_on_a_socket_that_it_is_handed() {
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        eprintln!("SKIPPED: systemd-socket-activate is not here");
        return;
    }
    let home = Home::new();
    home.wallet("ada", 1000);
    let port = free_port();
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen=127.0.0.1:{port}"));
    command.args(["--setenv", &format!("TOKRUN_HOME={}", home.path().display()), "--setenv=HF_HUB_OFFLINE=1"]);
    // The port that is asked for is taken: by its own socket.
    let port_text = port.to_string();
    command.args([
        env!("CARGO_BIN_EXE_tokrun"),
        "serve",
        "--user",
        "ada",
        "--port",
        &port_text,
        "--model",
        &tiny_model(),
    ]);
    let mut child = Ended(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts"));
    let begun = Instant::now();
    let health = loop {
        if let Some(health) = get(&format!("http://127.0.0.1:{port}/health")) {
            break health;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody answers");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(health, r#"{"status":"ok"}"#);
    assert!(terminate(&mut child.0).success());
}

#[test]
fn it_speaks_tls_and_http_2() {
    let home = Home::new();
    home.wallet("ada", 1000);
    let made =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("it is made");
    let (certificate, key) = (home.path().join("certificate.pem"), home.path().join("key.pem"));
    fs::write(&certificate, made.cert.pem()).expect("it can be written");
    fs::write(&key, made.signing_key.serialize_pem()).expect("it can be written");
    let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let wrong = home.run(&[
        "serve",
        "--model",
        &tiny_model(),
        "--user",
        "ada",
        "--port",
        "0",
        "--tls-cert",
        &path(&key),
        "--tls-key",
        &path(&key),
    ]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("it has no certificate"), "{}", text(&wrong.stderr));
    let served = Served::start(&home, &["--user", "ada", "--tls-cert", &path(&certificate), "--tls-key", &path(&key)]);
    assert!(served.url.starts_with("https://127.0.0.1:"), "{}", served.url);
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: curl is not here");
        return;
    }
    let ask = |version: &str, url: &str| {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--cacert",
            &path(&certificate),
            version,
            "--write-out",
            " %{http_version}",
        ]);
        let output = curl.arg(format!("{url}/health")).output().expect("curl runs");
        format!("{}{}", text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(ask("--http2", &served.url), r#"{"status":"ok"} 2"#);
    assert_eq!(ask("--http1.1", &served.url), r#"{"status":"ok"} 1.1"#);
    assert!(!ask("--http1.1", &served.url.replace("https", "http")).contains("ok"), "nothing is said in the clear");
    assert_eq!(served.terminate().code(), Some(0));
}

#[test]
fn the_units_are_sound() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("SKIPPED: systemd-analyze is not here");
        return;
    }
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let mut units = Vec::new();
    for name in ["tokrun.service", "tokrun.socket"] {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd").join(name);
        let unit = fs::read_to_string(example).expect("it is there");
        // It is checked whether the program is there.
        let unit = unit.replace("/usr/local/bin/tokrun", env!("CARGO_BIN_EXE_tokrun"));
        units.push(place.path().join(name));
        fs::write(&units[units.len() - 1], unit).expect("it can be written");
    }
    let output = Command::new("systemd-analyze").arg("verify").args(&units).output().expect("it runs");
    let said = text(&output.stderr);
    let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("tokrun.")).collect();
    assert!(output.status.success() && about_ours.is_empty(), "{said}");
    // And what it starts is a command.
    let unit = fs::read_to_string(&units[0]).expect("it is there");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("it starts something");
    let mut words = start.split(' ');
    let help = Command::new(words.next().expect("a program")).args(words).arg("--help").output().expect("it runs");
    assert!(help.status.success());
}

#[test]
fn a_link_lets_somebody_sign_in_once() {
    let home = Home::new();
    home.wallet("ada", 1000);
    home.json(&["key", "create", "ada", "laptop"]);
    let served = Served::start(&home, &[]);
    let link = text(&home.run(&["key", "link", "laptop", "--url", &served.url]).stdout);
    let code = link.trim_end().strip_prefix(&format!("{}/#link=", served.url)).unwrap_or_else(|| panic!("{link}"));
    let sign_in = || {
        let body = json!({ "link": code }).to_string();
        let answer = ureq::post(format!("{}/dashboard/session", served.url)).send(body.as_bytes());
        answer.map(|mut answer| answer.body_mut().read_to_string().expect("it can be read"))
    };
    let signed_in: Value = serde_json::from_str(&sign_in().expect("it works")).expect("it is JSON");
    assert_eq!(signed_in["key"]["name"], "laptop");
    assert!(matches!(sign_in(), Err(ureq::Error::StatusCode(401))), "and once only");
    home.json(&["key", "revoke", "laptop"]);
    let refused = home.run(&["key", "link", "laptop"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("is revoked"), "{}", text(&refused.stderr));
    assert_eq!(served.terminate().code(), Some(0));
}
