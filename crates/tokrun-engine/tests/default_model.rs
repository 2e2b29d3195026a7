//! The default model's own tokenizer and template, against what its published `tokenizer.json` and transformers give.
//!
//! Needs the model file: `TOKRUN_TEST_MODEL` names it. Without it the test says that it was skipped, unless
//! `TOKRUN_REQUIRE_MODEL=1`.
#![allow(clippy::print_stderr, reason = "a test that was skipped says so")]

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use serde::Deserialize;
use tokrun_engine::{
    ChatMessage, ChatTemplate, Engine, EngineOptions, Finish, RenderOptions, RequestId, SamplingParams, Submission,
    TenantId, TokenId, Tokenizer,
};
use tokrun_model::{LoadOptions, ModelFile};

#[derive(Deserialize)]
struct Reference {
    texts: Vec<String>,
    ids: Vec<Vec<TokenId>>,
    decoded: Vec<String>,
    rendered: String,
}

fn model() -> Option<PathBuf> {
    let path = std::env::var_os("TOKRUN_TEST_MODEL").map(PathBuf::from);
    let required = std::env::var_os("TOKRUN_REQUIRE_MODEL").is_some_and(|required| required == "1");
    assert!(path.is_some() || !required, "TOKRUN_REQUIRE_MODEL=1, but TOKRUN_TEST_MODEL does not name the model file");
    if path.is_none() {
        eprintln!("skipped: TOKRUN_TEST_MODEL does not name the model file");
    }
    path
}

#[test]
fn the_default_model_speaks_as_its_makers_meant_it() {
    let Some(path) = model() else { return };
    let file = ModelFile::open(&path).expect("the model file is whole");
    let tokenizer = Tokenizer::from_assets(file.assets()).expect("its tokenizer is known");
    assert_eq!(tokenizer.vocab_size(), 49152);
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/smollm2.json");
    let reference = std::fs::read(reference).expect("the reference is committed");
    let reference: Reference = serde_json::from_slice(&reference).expect("it is well formed");
    assert_eq!((reference.texts.len(), reference.texts.len()), (reference.ids.len(), reference.decoded.len()));
    for ((text, ids), decoded) in reference.texts.iter().zip(&reference.ids).zip(&reference.decoded) {
        assert_eq!(&tokenizer.encode(text, true).expect("every byte is a token"), ids, "{text:?}");
        assert_eq!(&tokenizer.decode(ids).expect("they are tokens"), decoded, "{text:?}");
    }
    let template = ChatTemplate::compile(file.assets()).expect("its template compiles");
    let question = ChatMessage::new("user", "Why is the sky blue?");
    let options = RenderOptions { add_generation_prompt: true, now: jiff::civil::date(2024, 7, 5).at(9, 3, 7, 0) };
    assert_eq!(template.render(&vec![question].into(), &options).expect("it renders"), reference.rendered);
}

#[test]
fn the_default_model_answers_through_the_engine() {
    let Some(path) = model() else { return };
    let file = ModelFile::open(&path).expect("the model file is whole");
    let tokenizer = Tokenizer::from_assets(file.assets()).expect("its tokenizer is known");
    let prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let executor = file.load(&LoadOptions::default()).expect("it can be run");
    let (sender, reports) = channel();
    // A budget of 7 cuts the prompt into chunks.
    let options = EngineOptions { step_tokens_max: 7, ..EngineOptions::default() };
    let report = move |step| sender.send(step).expect("the test listens");
    let engine = Engine::spawn(executor, tokenizer.vocab_size(), options, report).expect("it starts");
    let submission = Submission {
        request_id: RequestId(1),
        prompt: tokenizer.encode(prompt, false).expect("it can be tokenized"),
        max_new_tokens: 24,
        end_tokens: file.assets().end_token_ids.clone(),
        sampling: SamplingParams::greedy(),
        logprobs: Some(1),
        tenant: TenantId::default(),
        priority: 0,
        cache_salt: 0,
        grammar: None,
    };
    engine.submit(submission).expect("there is room");
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    let mut finish = None;
    while finish.is_none() {
        for step in reports.recv().expect("a report").sequences {
            if let Some(token) = step.token {
                let logprob = token.logprob.expect("it was asked for");
                let top = (logprob.top[0].0, logprob.top[0].1);
                assert_eq!(top, (token.id, logprob.logprob), "greedy is the most probable");
                text.push_str(&stream.push(token.id).expect("it is a token"));
            }
            finish = step.finish;
        }
    }
    text.push_str(&stream.finish());
    assert!(text.contains("Paris"), "{text:?}");
    assert_eq!(finish, Some(Finish::Stop), "{text:?}");
}
