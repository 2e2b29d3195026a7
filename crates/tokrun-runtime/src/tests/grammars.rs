//! Requests that are held to a grammar, side by side.

use tokrun_engine::Grammar;

use super::*;

const END: &str = "<|im_end|>";

fn run(
    vocab_size: usize,
    sequences_max: usize,
    requests: Vec<GenerateRequest>,
) -> (Vec<Result<Outcome, String>>, Books) {
    let tokenizer = tokenizer();
    let mut executor = HashModel::new(vocab_size);
    executor.info.sequences_max = sequences_max;
    let end = tokenizer.token_id(END).expect("the fixture has it");
    let model = TextModel {
        name: "hash".to_owned(),
        executor: Box::new(executor),
        tokenizer,
        template: Err(tokrun_engine::EngineError::NoChatTemplate),
        end_tokens: vec![end],
    };
    let meter = Arc::new(SlowMeter::new(1_000_000, usize::MAX, vec![100]));
    let runtime =
        Runtime::start(model, Arc::clone(&meter) as Arc<dyn Meter>, EngineOptions::default()).expect("it starts");
    let outcomes = std::thread::scope(|scope| {
        let serve = |request| {
            let mut generation = runtime.generate(request).map_err(|error| error.to_string())?;
            loop {
                if let Event::Finished(outcome) = generation.next_event().expect("it ends by finishing") {
                    return Ok(*outcome);
                }
            }
        };
        let threads: Vec<_> = requests.into_iter().map(|request| scope.spawn(move || serve(request))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no caller panics")).collect()
    });
    drop(runtime);
    let books = std::mem::take(&mut *meter.books.lock().expect("no test thread panics"));
    (outcomes, books)
}

fn regex(expression: &str) -> Option<Grammar> {
    Some(Grammar::Regex(expression.to_owned()))
}

fn held(id: usize, grammar: Option<Grammar>, temperature: f32) -> GenerateRequest {
    let sampling = SamplingParams { temperature, seed: id as u64, ..SamplingParams::default() };
    GenerateRequest { grammar, sampling, ..request(id, 120, Vec::new()) }
}

/// Seven forms and a free one.
fn requests() -> Vec<GenerateRequest> {
    let schema = |schema: &str| Some(Grammar::JsonSchema(schema.to_owned()));
    let grammars = [
        schema(
            r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}}, "required": ["a", "b"]}"#,
        ),
        schema(r#"{"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 9}"#),
        regex(r"\d{4}-\d{2}-\d{2}(, \d{4}-\d{2}-\d{2}){2,4}"),
        Some(Grammar::Lark("start: \"(\" start \")\" | /[a-z ]{3,20}/\n".to_owned())),
        None,
        schema(r#"{"type": "string", "minLength": 5, "maxLength": 30}"#),
        regex("(ab|ba){4,30}"),
        schema("{}"),
    ];
    let request = |(id, grammar): (usize, Option<Grammar>)| {
        let mut request = held(id, grammar, [0.0, 1.0, 2.5][id % 3]);
        request.sampling.frequency_penalty = (id % 2) as f32;
        request.sampling.top_p = 0.9;
        request
    };
    grammars.into_iter().enumerate().map(request).collect()
}

#[test]
fn answers_together_are_those_alone() {
    let vocab_size = tokenizer().vocab_size();
    let (together, books) = run(vocab_size, 8, requests());
    for (id, (request, together)) in requests().into_iter().zip(together).enumerate() {
        let (alone, _) = run(vocab_size, 1, vec![request]);
        let (alone, together) = (alone[0].as_ref().expect("it runs"), together.expect("it runs"));
        assert_eq!(together.token_ids, alone.token_ids, "request {id}");
        assert_eq!((&together.text, together.finish_reason), (&alone.text, alone.finish_reason), "request {id}");
        assert_eq!(books.paid[&format!("request-{id}")], together.token_ids.len() as u64);
    }
}

#[test]
fn the_end_is_a_token_like_any_other_and_the_length_a_cut() {
    let tokenizer = tokenizer();
    let end = tokenizer.token_id(END).expect("the fixture has it");
    let short = GenerateRequest { max_tokens: Some(3), ..held(1, regex("(ab){3}"), 1.0) };
    let stopped = GenerateRequest { stop: vec!["ba".to_owned()], ..held(2, regex("(ab){3}"), 1.0) };
    let (outcomes, books) = run(tokenizer.vocab_size(), 4, vec![held(0, regex("(ab){3}"), 1.0), short, stopped]);
    let [whole, short, stopped] = &outcomes[..] else { panic!("three were asked for") };
    let whole = whole.as_ref().expect("it runs");
    assert_eq!((whole.text.as_str(), whole.finish_reason), ("ababab", FinishReason::Stop));
    assert_eq!(whole.token_ids.last(), Some(&end));
    assert_eq!(books.paid["request-0"], whole.token_ids.len() as u64);
    let short = short.as_ref().expect("it runs");
    assert_eq!((short.token_ids.len(), short.finish_reason), (3, FinishReason::Length));
    assert!("ababab".starts_with(&short.text), "{}", short.text);
    let stopped = stopped.as_ref().expect("it runs");
    assert_eq!((stopped.text.as_str(), stopped.finish_reason), ("a", FinishReason::Stop));
}

#[test]
fn log_probabilities_are_those_of_the_free_model() {
    let asked = GenerateRequest { logprobs: Some(1), ..held(0, regex("[xyz]{20}"), 1.0) };
    let vocab_size = tokenizer().vocab_size();
    let (outcomes, _) = run(vocab_size, 1, vec![asked]);
    let outcome = outcomes[0].as_ref().expect("it runs");
    // One token has logit 10, all others 0.
    let normaliser = (10_f32.exp() + (vocab_size - 1) as f32).ln();
    let logprobs = outcome.logprobs.as_ref().expect("they were asked for");
    assert_eq!(logprobs.len(), outcome.token_ids.len());
    let mut forbidden = 0;
    for (token, logprob) in outcome.token_ids.iter().zip(logprobs) {
        let (favourite, best) = logprob.top[0];
        assert!((best - (10.0 - normaliser)).abs() < 1e-4);
        let expected = if favourite == *token { best } else { -normaliser };
        assert!((logprob.logprob - expected).abs() < 1e-4, "{token}: {} for {expected}", logprob.logprob);
        forbidden += usize::from(favourite != *token);
    }
    assert!(forbidden > 10, "the grammar forbids most of what the model prefers");
}

#[test]
fn what_cannot_be_held_is_refused_before_anything_is_charged() {
    let broken = held(0, Some(Grammar::JsonSchema("{".to_owned())), 1.0);
    let endless = GenerateRequest { ignore_eos: true, ..held(1, regex("a"), 1.0) };
    let (outcomes, books) = run(tokenizer().vocab_size(), 1, vec![broken, endless]);
    for (outcome, reason) in outcomes.iter().zip(["the JSON schema cannot be used", "ignore_eos is true, but must be"])
    {
        let error = outcome.as_ref().expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
    assert!(books.paid.is_empty() && books.balance == 1_000_000, "the books have changed");
}

#[test]
fn an_answer_that_cannot_go_on_fails_and_what_was_generated_is_paid() {
    // The model computes no logits for the bytes of what must come third.
    let tokenizer = tokenizer();
    assert!(tokenizer.encode("ab", false).expect("it can be").iter().all(|token| *token < 120));
    assert!(tokenizer.encode("😀", false).expect("it can be").iter().all(|token| *token >= 120));
    let (outcomes, books) = run(120, 2, vec![held(0, regex("[ab]{2}😀"), 1.0), held(1, regex("[ab]{2}😀?"), 1.0)]);
    let failed = outcomes[0].as_ref().expect("it is admitted");
    let error = failed.error.as_ref().expect("it fails").to_string();
    assert!(error.contains("cannot go on under its grammar"), "{error}");
    assert_eq!((failed.token_ids.len(), failed.finish_reason), (2, FinishReason::Error));
    assert_eq!(books.paid["request-0"], 2);
    assert!(outcomes[1].is_ok(), "it fails alone");
}
