//! A client that remembers what it received, and when; and that leaves when it likes.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::support::Random;

/// How a request ended, as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Read to its end.
    Whole,
    /// The client left.
    Left,
    /// The server did.
    Broken,
    /// With this status.
    Refused(u16),
}

/// One request, as its client saw it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) wallet: usize,
    /// What the ledger calls it; `None` if not even the head of an answer came.
    pub(super) id: Option<String>,
    pub(super) end: End,
    /// How many tokens had been received, and when, with each piece.
    pub(super) pieces: Vec<(i64, u64)>,
    /// The usage, if it was told.
    pub(super) usage: Value,
    /// Why it ended, and what was paid, in the ledger's words.
    pub(super) tokrun: Value,
}

impl Seen {
    pub(super) fn received_tokens(&self) -> u64 {
        self.pieces.last().map_or(0, |(_, tokens)| *tokens)
    }
}

pub(super) struct Client {
    pub(super) wallet: usize,
    pub(super) key: String,
    pub(super) model: String,
    pub(super) random: Random,
}

/// Prompts and answers have up to so many words, and tokens.
const PROMPT_WORDS: u64 = 150;
const OUTPUT_TOKENS: u64 = 60;

const WORDS: [&str; 16] = [
    "light", "house", "river", "green", "time", "people", "water", "music", "winter", "stone", "story", "north",
    "king", "garden", "silver", "road",
];

impl Client {
    /// Asks once, for a random length; every third time it leaves on the way.
    pub(super) fn ask(&mut self, address: &str) -> Seen {
        let words = self.random.within(1..=PROMPT_WORDS);
        let prompt: Vec<&str> = (0..words).map(|_| WORDS[self.random.within(0..=15) as usize]).collect();
        let max_tokens = self.random.within(1..=OUTPUT_TOKENS);
        let leaves_after = (self.random.unit() < 1.0 / 3.0).then(|| self.random.within(0..=max_tokens));
        // With the log-probability of each token, a piece says how many it is. That leaves special ones out, so none is drawn.
        let none_special: Value = (0..=16).map(|id| (id.to_string(), json!(-100))).collect::<Map<_, _>>().into();
        let body = json!({
            "model": self.model, "prompt": prompt.join(" "), "max_tokens": max_tokens, "ignore_eos": true, "logprobs": 0,
            "logit_bias": none_special, "stream": true, "stream_options": { "include_usage": true },
        });
        let mut seen = Seen {
            wallet: self.wallet,
            id: None,
            end: End::Broken,
            pieces: Vec::new(),
            usage: Value::Null,
            tokrun: Value::Null,
        };
        // What breaks is `Broken`, which is what it says already.
        if let Ok(end) = self.exchange(address, &body.to_string(), leaves_after, &mut seen) {
            seen.end = end;
        }
        seen
    }

    fn exchange(&self, address: &str, body: &str, leaves_after: Option<u64>, seen: &mut Seen) -> std::io::Result<End> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\nConnection: close\r\n\r\n",
            self.key,
            body.len()
        );
        stream.write_all((head + body).as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status: u16 =
            line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(ErrorKind::UnexpectedEof)?;
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().split_once(": ") {
                Some(("x-request-id", id)) => seen.id = Some(id.to_owned()),
                Some(_) => {}
                None => break,
            }
        }
        if status != 200 {
            return Ok(End::Refused(status));
        }
        // Sizes of chunks stand on lines of their own, and no event is cut by one.
        let mut line = Vec::new();
        loop {
            if leaves_after.is_some_and(|tokens| seen.received_tokens() >= tokens) {
                return leave(reader, seen);
            }
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(End::Broken);
            }
            if take(&line, seen) {
                return Ok(End::Whole);
            }
        }
    }
}

/// Takes what has come by now, and goes. What nobody read was not received, though it was sent.
fn leave(mut reader: BufReader<TcpStream>, seen: &mut Seen) -> std::io::Result<End> {
    reader.get_ref().set_nonblocking(true)?;
    let mut line = Vec::new();
    loop {
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(End::Broken),
            Ok(_) if take(&line, seen) => return Ok(End::Whole),
            Ok(_) => line.clear(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(End::Left),
            Err(error) => return Err(error),
        }
    }
}

/// Reads a line. Returns whether it was the last of the answer.
fn take(line: &[u8], seen: &mut Seen) -> bool {
    let Some(data) = line.strip_prefix(b"data: ") else { return false };
    if data.starts_with(b"[DONE]") {
        return true;
    }
    let event: Value = serde_json::from_slice(data).expect("events are JSON");
    assert!(event["error"].is_null(), "it failed: {event}");
    if let Some(tokens) = event["choices"][0]["logprobs"]["tokens"].as_array().filter(|tokens| !tokens.is_empty()) {
        seen.pieces.push((now_us(), seen.received_tokens() + tokens.len() as u64));
    }
    for (name, kept) in [("usage", &mut seen.usage), ("tokrun", &mut seen.tokrun)] {
        if event[name].is_object() {
            *kept = event[name].clone();
        }
    }
    false
}

/// As the ledger's times are.
pub(super) fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(now.as_micros()).expect("not for some hundred thousand years")
}
