//! Random models that are held to grammars: whatever they would say, what they say has the form asked for.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokrun_model::{Assets, TokenizerSource};

use super::*;
use crate::sampler::{Sampler, SamplingParams};

mod checker;

/// The byte-level tokenizer of the tiny models: 384 tokens, `<|im_end|>` ends.
fn bytes() -> Arc<Tokenizer> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama/tokenizer.json");
    tokenizer(path)
}

fn tokenizer(path: PathBuf) -> Arc<Tokenizer> {
    let assets = Assets::of(TokenizerSource::Json(path));
    Arc::new(Tokenizer::from_assets(&assets).expect("the fixture is a tokenizer"))
}

/// As [`bytes`], and what answers are held with.
fn model() -> (Arc<Tokenizer>, GrammarCompiler) {
    let tokenizer = bytes();
    let end = tokenizer.token_id("<|im_end|>").expect("it has one");
    (Arc::clone(&tokenizer), GrammarCompiler::new(tokenizer, vec![end]))
}

/// A tokenizer of words whose text begins without the first word's space, `<end>` last.
fn words(words: &[&str], decoder: &Value) -> (Arc<Tokenizer>, GrammarCompiler) {
    let vocabulary: serde_json::Map<String, Value> =
        words.iter().chain(&["<end>"]).enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let end = words.len();
    let description = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": decoder,
        "added_tokens": [{
            "id": end, "content": "<end>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        }],
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": words[0] },
    });
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tokenizer.json");
    std::fs::write(&path, description.to_string()).expect("it can be written");
    let tokenizer = tokenizer(path);
    (Arc::clone(&tokenizer), GrammarCompiler::new(tokenizer, vec![end as TokenId]))
}

/// What a random model answers.
struct Writer {
    seed: u64,
    params: SamplingParams,
    /// From here on it prefers what ends things.
    patience: usize,
    tokens_max: usize,
}

#[derive(Debug, PartialEq)]
struct Answer {
    text: String,
    tokens: Vec<TokenId>,
    ended: bool,
}

impl Writer {
    fn new(seed: u64, temperature: f32) -> Self {
        let params = SamplingParams { seed, temperature, ..SamplingParams::default() };
        Self { seed, params, patience: 60, tokens_max: 1500 }
    }

    fn write(
        &self,
        (tokenizer, compiler): &(Arc<Tokenizer>, GrammarCompiler),
        grammar: &Grammar,
        continues: bool,
    ) -> Result<Answer, EngineError> {
        let constraint = compiler.compile(grammar, continues)?;
        let mut sampler = Sampler::new(self.params.clone(), &[], Some(constraint));
        let mut tokens = Vec::new();
        let mut stream = if continues { tokenizer.continuing_stream() } else { tokenizer.stream() };
        let mut text = String::new();
        let mut ended = false;
        while !ended && tokens.len() < self.tokens_max {
            let token = sampler.sample(&self.logits(tokenizer, compiler, &tokens))?;
            tokens.push(token);
            ended = compiler.end_tokens.contains(&token);
            text.push_str(&stream.push(token)?);
        }
        text.push_str(&stream.finish());
        Ok(Answer { text, tokens, ended })
    }

    /// By a hash of all tokens so far: deterministic, and different everywhere.
    fn logits(&self, tokenizer: &Tokenizer, compiler: &GrammarCompiler, tokens: &[TokenId]) -> Vec<f32> {
        let mix = |state: u64, word: u64| {
            let mixed = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            mixed ^ mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 31
        };
        let state = tokens.iter().fold(mix(self.seed, 77), |state, token| mix(state, u64::from(*token) + 1));
        let logit = |token: TokenId| {
            let random = (mix(state, u64::from(token) << 20) >> 40) as f32 / (1 << 20) as f32;
            let closes = compiler.end_tokens.contains(&token)
                || tokenizer.token_bytes(token).is_ok_and(|bytes| matches!(bytes, b"\"" | b"}" | b"]" | b")" | b"0"));
            // Else few documents would end by chance.
            let hurry = if tokens.len() > self.patience { 200.0 } else { 4.0 };
            if closes { random + hurry } else { random }
        };
        (0..tokenizer.vocab_size() as TokenId).map(logit).collect()
    }
}

/// Schemas that are as different as the keywords allow.
fn schemas() -> Vec<Value> {
    vec![
        json!({
            "type": "object", "additionalProperties": false, "required": ["name", "age"],
            "properties": {
                "name": { "type": "string", "minLength": 1, "maxLength": 12 },
                "age": { "type": "integer", "minimum": 0, "maximum": 150 },
                "tags": { "type": "array", "items": { "type": "string" }, "maxItems": 3 },
            },
        }),
        json!({ "enum": ["red", "green", { "deep": [1, null, "blü"] }, 42, true] }),
        json!({ "const": { "a": [1.5, "\"quoted\" \\ back"] } }),
        json!({ "type": "array", "items": { "type": "number", "exclusiveMinimum": -5, "exclusiveMaximum": 7.5 },
                "minItems": 2, "maxItems": 5 }),
        json!({ "type": ["integer", "null"], "multipleOf": 7, "minimum": -100, "maximum": 9999 }),
        json!({ "anyOf": [{ "type": "string", "pattern": "^[A-Z]{2}[0-9]{1,3}$" }, { "type": "boolean" }] }),
        json!({ "oneOf": [
            { "type": "object", "required": ["kind"], "additionalProperties": false,
              "properties": { "kind": { "const": "circle" }, "radius": { "type": "number" } } },
            { "type": "object", "required": ["kind", "side"], "additionalProperties": false,
              "properties": { "kind": { "const": "square" }, "side": { "type": "integer", "exclusiveMinimum": 3 } } },
        ] }),
        json!({ "$ref": "#/$defs/tree", "$defs": { "tree": {
            "type": "object", "required": ["value"], "additionalProperties": false,
            "properties": { "value": { "type": "string", "maxLength": 2 },
                            "left": { "$ref": "#/$defs/tree" }, "right": { "$ref": "#/$defs/tree" } },
        } } }),
        json!({ "allOf": [{ "type": "object", "required": ["a"] },
                          { "properties": { "a": { "type": "integer" }, "b": { "type": "string" } } }] }),
        json!({ "type": "object", "additionalProperties": { "type": "integer" } }),
        json!({ "type": "string", "pattern": "ab+c", "maxLength": 9 }),
        json!(true),
    ]
}

#[test]
fn every_answer_is_json_that_its_schema_describes() {
    let model = model();
    let mut texts = HashSet::new();
    for schema in schemas() {
        let grammar = Grammar::JsonSchema(schema.to_string());
        for seed in 0..24 {
            let writer = Writer::new(seed, [0.0, 0.5, 1.0, 3.0][seed as usize % 4]);
            for continues in [false, true] {
                let answer = writer.write(&model, &grammar, continues).expect("the grammar holds");
                assert!(answer.ended, "{schema}, seed {seed}: {}", answer.text);
                let value: Value = serde_json::from_str(&answer.text)
                    .unwrap_or_else(|error| panic!("{schema}, seed {seed}: {error}: {}", answer.text));
                assert!(checker::describes(&schema, &value), "{schema}, seed {seed}: {}", answer.text);
                texts.insert(answer.text);
            }
        }
    }
    assert!(texts.len() > 150, "the model has much to say: {}", texts.len());
}

#[test]
fn the_checker_itself_can_say_no() {
    for (index, wrong) in [
        json!({ "name": "", "age": 3 }),
        json!("blue"),
        json!({ "a": [1.5] }),
        json!([1, 7.5]),
        json!(8),
        json!("AB1234"),
        json!({ "kind": "square", "side": 3 }),
        json!({ "value": "abc" }),
        json!({ "a": 1.5 }),
        json!({ "x": "1" }),
        json!("ac"),
    ]
    .iter()
    .enumerate()
    {
        assert!(!checker::describes(&schemas()[index], wrong), "{wrong}");
    }
}

#[test]
fn every_answer_matches_its_regular_expression() {
    let model = model();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    type Check = Box<dyn Fn(&str) -> bool>;
    let cases: Vec<(&str, Check)> = vec![
        (
            r"\d{3}-\d{4}",
            Box::new(move |text| {
                text.split_once('-')
                    .is_some_and(|(left, right)| left.len() == 3 && right.len() == 4 && digits(left) && digits(right))
            }),
        ),
        (r"^(yes|no|maybe)$", Box::new(|text| ["yes", "no", "maybe"].contains(&text))),
        (
            r"[äöü]{2,5}/é?",
            Box::new(|text| {
                let body = text.trim_end_matches('é').strip_suffix('/').unwrap_or_default();
                (2..=5).contains(&body.chars().count()) && body.chars().all(|letter| "äöü".contains(letter))
            }),
        ),
        (r"(?i)abc|", Box::new(|text| text.is_empty() || text.eq_ignore_ascii_case("abc"))),
        (
            r"(a|b)*a(a|b){6}",
            Box::new(|text| {
                text.len() > 6
                    && text.bytes().all(|byte| byte == b'a' || byte == b'b')
                    && text.as_bytes()[text.len() - 7] == b'a'
            }),
        ),
        (r"<\|im_end\|>\.", Box::new(|text| text == "<|im_end|>.")),
    ];
    for (expression, check) in cases {
        let grammar = Grammar::Regex(expression.to_owned());
        for seed in 0..40 {
            let writer = Writer::new(seed, [0.0, 1.0, 4.0][seed as usize % 3]);
            let answer = writer.write(&model, &grammar, seed % 2 == 0).expect("the grammar holds");
            assert!(answer.ended && check(&answer.text), "{expression}, seed {seed}: {:?}", answer.text);
        }
    }
}

#[test]
fn every_answer_is_of_its_context_free_language() {
    /// Reads one expression; what is left after it.
    fn expression(text: &str) -> Option<&str> {
        let after_term = match text.strip_prefix('(') {
            Some(inner) => expression(inner)?.strip_prefix(')')?,
            None => {
                let rest = text.trim_start_matches(|digit: char| digit.is_ascii_digit());
                (rest.len() < text.len()).then_some(rest)?
            }
        };
        match after_term.strip_prefix(['+', '*']) {
            Some(next) => expression(next),
            None => Some(after_term),
        }
    }
    let model = model();
    let grammar = Grammar::Lark(
        "start: sum\nsum: term ((\"+\" | \"*\") term)*\nterm: NUMBER | \"(\" sum \")\"\nNUMBER: /[0-9]+/\n".to_owned(),
    );
    for seed in 0..60 {
        let answer = Writer::new(seed, 1.0).write(&model, &grammar, true).expect("the grammar holds");
        assert!(answer.ended && expression(&answer.text) == Some(""), "seed {seed}: {}", answer.text);
    }
}

#[test]
fn nothing_but_the_grammar_can_force_or_forbid_the_end() {
    let (tokenizer, compiler) = model();
    let end = compiler.end_tokens[0];
    let loud = tokenizer.token_id("x").expect("every letter is a token");
    let grammar = Grammar::Regex("(ab){3}".to_owned());
    let model = (tokenizer, compiler);
    for (temperature, bias) in [(0.0, 100.0), (2.0, 100.0), (2.0, -100.0)] {
        let mut writer = Writer::new(5, temperature);
        writer.params.logit_bias = [(end, bias), (loud, 100.0)].into();
        writer.params.frequency_penalty = 2.0;
        writer.params.repeat_penalty = 1.5;
        let answer = writer.write(&model, &grammar, true).expect("the grammar holds");
        assert_eq!((answer.text.as_str(), answer.tokens.last()), ("ababab", Some(&end)));
    }
}

#[test]
fn special_tokens_come_only_where_they_are_named() {
    let model = model();
    let start = model.0.token_id("<|im_start|>").expect("it has one");
    let grammar = Grammar::Lark("start: \"a\" <|im_start|> /.{0,9}/\n".to_owned());
    for seed in 0..20 {
        let answer = Writer::new(seed, 1.0).write(&model, &grammar, true).expect("the grammar holds");
        assert_eq!(answer.tokens.iter().filter(|token| **token == start).count(), 1);
        assert_eq!(answer.tokens[1], start);
    }
    let free = Grammar::Regex("(?s).{0,30}".to_owned());
    for seed in 0..20 {
        let answer = Writer::new(seed, 1.0).write(&model, &free, true).expect("the grammar holds");
        let special = answer.tokens.iter().filter(|token| model.0.is_special(**token)).count();
        assert_eq!(special, 1, "the end, once: {:?}", answer.tokens);
    }
}

#[test]
fn an_end_token_that_is_spelled_like_text_is_still_no_text() {
    let tokenizer = bytes();
    let end = tokenizer.token_id("a").expect("every letter is a token");
    let model = (Arc::clone(&tokenizer), GrammarCompiler::new(tokenizer, vec![end]));
    let answer = Writer::new(1, 1.0).write(&model, &Grammar::Regex("[ab]{5}".to_owned()), true);
    let answer = answer.expect("there is `b`");
    assert!(answer.ended && answer.text == "bbbbba", "its spelling is all that is left of it: {}", answer.text);
}

#[test]
fn a_space_that_would_not_be_shown_does_not_count() {
    let strip = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ] });
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    for decoder in [strip, metaspace] {
        let model = words(&["▁", "▁a", "a", "▁b", "b"], &decoder);
        for seed in 0..20 {
            let writer = Writer::new(seed, 1.0);
            for expression in ["[ab]{2}", "a ?b", " ?a b"] {
                let grammar = Grammar::Regex(expression.to_owned());
                for continues in [false, true] {
                    let answer = writer.write(&model, &grammar, continues).expect("the grammar holds");
                    let spaced = answer.text.trim_start_matches(' ');
                    let (text, lead) = (answer.text.as_str(), answer.text.len() - spaced.len());
                    assert!(answer.ended && (lead == 0 || (expression == " ?a b" && lead == 1)), "{text:?}");
                    let fits = match expression {
                        "[ab]{2}" => ["aa", "ab", "ba", "bb"].contains(&spaced),
                        "a ?b" => ["ab", "a b"].contains(&spaced),
                        _ => spaced == "a b",
                    };
                    assert!(fits, "/{expression}/: {text:?}");
                }
            }
            let spaced = Grammar::Regex(" a".to_owned());
            let error = writer.write(&model, &spaced, false).expect_err("no first token shows a space");
            assert!(matches!(error, EngineError::InvalidGrammar { .. }), "{error}");
            assert_eq!(writer.write(&model, &spaced, true).expect("here they do").text, " a");
        }
    }
}

#[test]
fn models_that_cannot_be_held_say_so() {
    let grammar = Grammar::Regex("a".to_owned());
    let (_, joined) = words(&["a", "b"], &Value::Null);
    let error = joined.compile(&grammar, true).expect_err("its words would be spaced out");
    assert!(error.to_string().contains("space between any two tokens"), "{error}");
    for ends in [vec![], vec![999_999]] {
        let endless = GrammarCompiler::new(bytes(), ends);
        let error = endless.compile(&grammar, true).expect_err("nothing could end its answers");
        assert!(error.to_string().contains("names no token that ends"), "{error}");
    }
}

#[test]
fn a_dead_end_is_an_error() {
    let strip = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
    let model = words(&["?", "a", "b"], &strip);
    let error = Writer::new(1, 1.0).write(&model, &Grammar::Regex("a+c".to_owned()), true);
    // It may write any number of `a`, and there is no `c`.
    assert_eq!(error.expect("`a` is always possible").tokens.len(), 1500);
    let error = Writer::new(1, 1.0).write(&model, &Grammar::Regex("abc".to_owned()), true).expect_err("no `c`");
    assert!(matches!(error, EngineError::GrammarStuck { .. }), "{error}");
    let error = model.1.compile(&Grammar::Regex("c".to_owned()), true).expect_err("not even a beginning");
    assert!(matches!(error, EngineError::InvalidGrammar { .. }), "{error}");
}

#[test]
fn what_cannot_be_used_is_refused_with_a_reason() {
    let (_, compiler) = model();
    let schema = |text: &str| Grammar::JsonSchema(text.to_owned());
    let regex = |text: &str| Grammar::Regex(text.to_owned());
    let lark = |text: &str| Grammar::Lark(text.to_owned());
    let cases = [
        (schema("  "), "the JSON schema cannot be used: it is empty"),
        (schema("{"), "it is no JSON: EOF"),
        (schema("[]"), "must be an object or boolean"),
        (schema("false"), "Unsatisfiable"),
        (schema(r#"{"not": {}}"#), r#"Unimplemented keys: ["not"]"#),
        (schema(r#"{"type": "array", "uniqueItems": true}"#), "uniqueItems"),
        (schema(r#"{"type": "strnig"}"#), "strnig"),
        (schema(r#"{"type": "integer", "minimum": 5, "maximum": 4}"#), "minimum (5) is greater than maximum (4)"),
        (schema(r#"{"allOf": [{"type": "integer"}, {"type": "string"}]}"#), "incompatible types"),
        (schema(r##"{"$ref": "#/$defs/nobody"}"##), "not found"),
        (schema(r#"{"$ref": "https://example.org/schema"}"#), "$ref"),
        (schema(r##"{"$ref": "#"}"##), "nothing that this model can write fits it"),
        (schema(r#"{"type": "string", "pattern": "(?=a)b"}"#), "look-ahead"),
        (regex("(ab"), "the regular expression cannot be used: unclosed group"),
        (regex("*"), "repetition operator missing expression"),
        (regex("(?=a)b"), "look-ahead"),
        (regex(r"(a)\1"), "backreferences are not supported"),
        (regex(r"[^\s\S]"), "nothing that this model can write fits it"),
        (lark("start: nobody\n"), "the grammar cannot be used: at 1(8): unknown name: \"nobody\""),
        (lark("start \"a\"\n"), "Expected token ':'"),
        (lark("nobody: \"a\"\n"), "no start rule found"),
        (lark("start: start\n"), "nothing that this model can write fits it"),
        (lark("start: <|nobody|>\n"), "unknown special token"),
        (lark("start: word\nword[temperature=0.5]: /[a-z]+/\n"), "it sets a temperature"),
    ];
    for (grammar, reason) in cases {
        let error = compiler.compile(&grammar, true).expect_err(&format!("{grammar:?}")).to_string();
        assert!(error.contains(reason), "{grammar:?}: {error}");
        assert!(!error.contains('\n') && !error.contains("backtrace") && error.len() < 600, "{error}");
    }
}

#[test]
fn hostile_grammars_cost_an_error_or_little_time() {
    let model = model();
    let nested = |open: &str, close: &str, depth: usize| open.repeat(depth) + "\"a\"" + &close.repeat(depth);
    let numbers = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
    let refused = [
        Grammar::JsonSchema(" ".repeat(2 << 20) + "{}"),
        Grammar::JsonSchema(nested(r#"{"items":"#, "}", 100_000)),
        Grammar::JsonSchema(
            json!({ "allOf": vec![json!({ "anyOf": [{ "minimum": 1 }, { "maximum": 2 }] }); 40] }).to_string(),
        ),
        Grammar::Regex(nested("(", ")", 100_000)),
        Grammar::Lark(format!("start: {}\n", nested("(", ")", 100_000))),
        Grammar::Lark(format!("start: {}\n", nested("(", ")", 150))),
    ];
    for grammar in refused {
        let error = model.1.compile(&grammar, true).expect_err("it is too much").to_string();
        assert!(error.len() < 600, "{error}");
    }
    let deep: Value = (0..60).fold(json!({}), |schema, _| json!({ "type": "array", "items": schema }));
    let survived = [
        Grammar::JsonSchema(deep.to_string()),
        Grammar::JsonSchema(json!({ "type": "string", "minLength": 100_000, "maxLength": 1_000_000_000 }).to_string()),
        Grammar::JsonSchema(json!({ "type": "array", "minItems": 100_000, "items": {} }).to_string()),
        Grammar::JsonSchema(json!({ "enum": numbers(5000) }).to_string()),
        // No finite document fits it.
        Grammar::JsonSchema(
            json!({ "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"] }).to_string(),
        ),
        Grammar::Regex("((a{1000}){1000}){1000}".to_owned()),
        Grammar::Regex("(.*a){20}.*".to_owned()),
        Grammar::Regex("(([a-z]{1,50}){1,50}){1,50}".to_owned()),
        Grammar::Regex(format!("{}a{}", "(".repeat(190), ")".repeat(190))),
        Grammar::Lark("start: a a a\na: a a | \"b\" | \"\"\n".to_owned()),
        Grammar::Lark("start: (((\"a\"{1000}){1000}){1000}){1000}\n".to_owned()),
        Grammar::Lark("start: \"a\" start\n".to_owned()),
    ];
    for grammar in survived {
        let writer = Writer { tokens_max: 100, ..Writer::new(3, 1.0) };
        let begun = std::time::Instant::now();
        let result = writer.write(&model, &grammar, true);
        // Mostly they end in milliseconds; a busy machine takes its time.
        assert!(begun.elapsed().as_secs() < 20, "{grammar:?}");
        if let Err(error) = result {
            assert!(matches!(error, EngineError::GrammarStuck { .. } | EngineError::InvalidGrammar { .. }), "{error}");
        }
    }
}
