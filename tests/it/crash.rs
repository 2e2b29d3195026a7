//! `kill -9` at any instant: what was read is paid, what is paid is at most the run-ahead window more, settled once.

use std::collections::HashSet;
use std::io::Read;
use std::process::Stdio;
use std::time::Instant;

use crate::support::{Home, Random, default_model, tiny_model};
use crate::transcript::Transcript;

/// The engine computes at most this many tokens past what the reader has.
const WINDOW: i64 = 32;

#[test]
fn kills_at_random_instants_lose_and_invent_nothing() {
    kill_often(&tiny_model(), 300, 400);
}

#[test]
fn kills_on_the_default_model_lose_and_invent_nothing() {
    if let Some(model) = default_model() {
        kill_often(&model, 20, 192);
    }
}

fn kill_often(model: &str, kills: usize, max_tokens: usize) {
    let home = Home::new();
    home.wallet("ada", 1_000_000_000);
    let max_tokens = max_tokens.to_string();
    let arguments = [
        "generate",
        "Tell me a story",
        "--model",
        model,
        "--user",
        "ada",
        "--ignore-eos",
        "--temperature",
        "0",
        "--max-tokens",
        &max_tokens,
    ];
    let begun = Instant::now();
    let whole = home.json(&arguments);
    let undisturbed = begun.elapsed();
    let transcript = Transcript::new(model, &whole);
    let mut random = Random::new();
    let mut spent = home.spent("ada");
    let mut cut_short = 0;

    for kill in 0..kills {
        let mut child =
            home.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
        let mut stdout = child.stdout.take().expect("it is piped");
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            stdout.read_to_end(&mut read).map(|_| read)
        });
        std::thread::sleep(undisturbed.mul_f64(random.unit() * 1.1));
        // One that ended by itself is not there to be killed: that counts too.
        let _ = child.kill();
        child.wait().expect("it is gone");
        let read = reader.join().expect("the reader lives").expect("the pipe can be read");
        let read = read.strip_suffix(b"\n").unwrap_or(&read);
        assert!(
            transcript.text.as_bytes().starts_with(read) || transcript.text.trim_end().as_bytes() == read,
            "kill {kill}: other text"
        );

        home.verify();
        let now = home.spent("ada");
        let debited = now - spent;
        spent = now;
        let (fewest, most) = transcript.tokens_for(read.len());
        let paid_prompt = if debited > 0 { transcript.prompt_tokens } else { 0 };
        assert!(fewest == 0 || debited > 0, "kill {kill}: {} bytes were read and nothing was paid", read.len());
        assert!(
            fewest <= debited - paid_prompt,
            "kill {kill}: {fewest} tokens were read, {} paid",
            debited - paid_prompt
        );
        assert!(
            debited - paid_prompt <= most + WINDOW,
            "kill {kill}: {} tokens paid, {most} were read",
            debited - paid_prompt
        );
        cut_short += usize::from((0..transcript.tokens() as i64).contains(&(debited - paid_prompt)) && debited > 0);
    }

    // The kills must have hit what they are meant to hit, and no request may be settled twice.
    assert!(cut_short * 10 > kills, "only {cut_short} of {kills} kills came in the middle of an answer");
    let statement = home.json(&["wallet", "statement", "ada"]);
    let lines = statement["lines"].as_array().expect("a list");
    let settled: Vec<&str> = lines
        .iter()
        .filter(|line| line["kind"] == "settle")
        .map(|line| line["request_id"].as_str().expect("an id"))
        .collect();
    assert_eq!(settled.iter().collect::<HashSet<_>>().len(), settled.len(), "a request was settled twice");
    assert_eq!(home.json(&["wallet", "show", "ada"])["in_flight"], 0);
    assert_eq!(home.balance("ada"), 1_000_000_000 - spent);
    assert_eq!(home.usage_tokens("ada"), spent);
}
