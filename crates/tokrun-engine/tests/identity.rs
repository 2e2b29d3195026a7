//! The native executor through the engine: a greedy answer is the same token for token, whatever else goes on.
//!
//! The default model is named by `TOKRUN_TEST_MODEL`. Without it that test says that it was skipped, unless
//! `TOKRUN_REQUIRE_MODEL=1`.
#![allow(clippy::print_stderr, reason = "a test that was skipped says so")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use tokrun_engine::{
    Engine, EngineOptions, Finish, RequestId, SamplingParams, StepMetrics, Submission, TenantId, TokenId, Tokenizer,
};
use tokrun_model::{BackendChoice, LoadOptions, ModelFile};

type Answers = BTreeMap<u64, (Vec<TokenId>, Finish)>;

/// One way to serve the same requests.
#[derive(Clone, Copy, Debug)]
struct Way {
    at_once: usize,
    threads: usize,
    chunk: usize,
    prefix_cache: bool,
    speculation: bool,
}

const ALONE: Way = Way { at_once: 1, threads: 1, chunk: 512, prefix_cache: false, speculation: false };

/// Prompts that begin alike, are longer than a small chunk, and invite repetition.
fn prompts(tokenizer: &Tokenizer, count: usize) -> Vec<Vec<TokenId>> {
    let story = "The cat sat on the mat. The dog sat on the log. The cow sat on the plough. ".repeat(2);
    let question = |n: usize| format!("{story}Number {n}: {}The frog sat on the", "one two three ".repeat(n % 5));
    (0..count).map(|n| tokenizer.encode(&question(n), true).expect("it can be tokenized")).collect()
}

fn serve(file: &ModelFile, prompts: &[Vec<TokenId>], max_new_tokens: usize, way: Way) -> (Answers, StepMetrics) {
    let load = LoadOptions {
        backend: BackendChoice::Native,
        sequences_max: Some(way.at_once),
        threads: Some(way.threads),
        context_tokens: Some(512),
        ..LoadOptions::default()
    };
    let executor = file.load(&load).expect("it can be run");
    let options = EngineOptions {
        step_tokens_max: way.chunk,
        prefix_cache: way.prefix_cache,
        speculation: way.speculation,
        ..EngineOptions::default()
    };
    let (sender, reports) = channel();
    let report = move |step| sender.send(step).expect("the test listens");
    let vocab_size = executor.info().vocab_size;
    let engine = Engine::spawn(executor, vocab_size, options, report).expect("it starts");
    let submission = |(id, prompt): (usize, &Vec<TokenId>)| Submission {
        request_id: RequestId(id as u64),
        prompt: prompt.clone(),
        max_new_tokens,
        end_tokens: Vec::new(),
        sampling: SamplingParams::greedy(),
        logprobs: None,
        tenant: TenantId::default(),
        priority: 0,
        cache_salt: 0,
        grammar: None,
    };
    let mut waiting = prompts.iter().enumerate().map(submission);
    let mut submit = || {
        if let Some(request) = waiting.next() {
            engine.submit(request).expect("it fits");
        }
    };
    (0..way.at_once).for_each(|_| submit());
    let mut answers: Answers = BTreeMap::new();
    let mut ended = 0;
    let mut metrics = StepMetrics::default();
    while ended < prompts.len() {
        let step = reports.recv().expect("a report");
        metrics = step.metrics;
        for step in step.sequences {
            let (tokens, finish) = answers.entry(step.request_id.0).or_insert((Vec::new(), Finish::Cancelled));
            tokens.extend(step.token.map(|token| token.id));
            engine.acknowledge(step.request_id, tokens.len() as u64);
            if let Some(end) = step.finish {
                *finish = end;
                ended += 1;
                submit();
            }
        }
    }
    (answers, metrics)
}

/// Serves the same prompts in every way.
fn check(file: &ModelFile, prompts: &[Vec<TokenId>], max_new_tokens: usize) {
    let (alone, _) = serve(file, prompts, max_new_tokens, ALONE);
    assert!(alone.values().all(|(tokens, finish)| tokens.len() == max_new_tokens && *finish == Finish::Length));
    let ways = [
        Way { threads: 2, ..ALONE },
        Way { chunk: 32, ..ALONE },
        Way { prefix_cache: true, ..ALONE },
        Way { speculation: true, ..ALONE },
        Way { at_once: 3, threads: 2, chunk: 32, prefix_cache: true, speculation: true },
        Way { at_once: 16, threads: 2, ..ALONE },
        Way { at_once: 16, threads: 2, chunk: 32, prefix_cache: true, speculation: true },
    ];
    for way in ways {
        let (answers, metrics) = serve(file, prompts, max_new_tokens, way);
        assert_eq!(answers, alone, "{way:?}");
        assert_eq!(way.prefix_cache, metrics.cached_tokens > 0, "{way:?} {metrics:?}");
        assert!(!way.speculation || way.at_once > 4 || metrics.drafted_tokens > 0, "{way:?} {metrics:?}");
        assert!(way.speculation || metrics.drafted_tokens == 0, "{way:?} {metrics:?}");
    }
}

#[test]
fn a_small_model_gives_the_same_answers_in_every_way() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
    let file = ModelFile::open(&fixture).expect("the fixture opens");
    let tokens = file.info().vocab_size as TokenId;
    let prompt =
        |n: TokenId| (0..60 + n % 7).map(|index| if index < 40 { index } else { (index + n) % tokens }).collect();
    let prompts: Vec<Vec<TokenId>> = (0..18).map(prompt).collect();
    check(&file, &prompts, 40);
}

#[test]
fn the_default_model_gives_the_same_answers_in_every_way() {
    let path = std::env::var_os("TOKRUN_TEST_MODEL").map(PathBuf::from);
    let required = std::env::var_os("TOKRUN_REQUIRE_MODEL").is_some_and(|required| required == "1");
    assert!(path.is_some() || !required, "TOKRUN_REQUIRE_MODEL=1, but TOKRUN_TEST_MODEL does not name the model file");
    let Some(path) = path else {
        eprintln!("skipped: TOKRUN_TEST_MODEL does not name the model file");
        return;
    };
    let file = ModelFile::open(&path).expect("the model file is whole");
    let tokenizer = Tokenizer::from_assets(file.assets()).expect("its tokenizer is known");
    check(&file, &prompts(&tokenizer, 16), 24);
}
