//! Compared with Hugging Face's Python library and with sentencepiece, by way of `tests/fixtures/make.py`.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::models::bpe::{BPE, Vocab};
use tokrun_model::gguf::{Metadata, Value};
use tokrun_model::{ModelFile, WeightType};

use super::*;

fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let json = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&json).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assets(tokenizer: TokenizerSource) -> Assets {
    Assets::of(tokenizer)
}

fn from_gguf(keys: &[(&str, Value)]) -> Result<Tokenizer, EngineError> {
    let keys: BTreeMap<String, Value> =
        keys.iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value.clone())).collect();
    Tokenizer::from_assets(&assets(TokenizerSource::Gguf(Arc::new(Metadata(keys)))))
}

#[derive(Deserialize)]
struct BpeFixture {
    tokens: Vec<String>,
    merges: Vec<String>,
    special: Vec<String>,
    user_defined: Vec<String>,
    /// For each way to cut words, the ids of each text.
    pre: BTreeMap<String, Vec<Vec<TokenId>>>,
}

impl BpeFixture {
    fn read() -> Self {
        fixture("tokenizer/bpe.json")
    }

    fn keys(&self, pre: &str) -> Vec<(&'static str, Value)> {
        let kind = |token: &String| match token {
            token if self.special.contains(token) => 3,
            token if self.user_defined.contains(token) => 4,
            _ => 1,
        };
        let begin = self.tokens.iter().position(|token| token == "<|begin|>").expect("it is there") as i64;
        vec![
            ("model", Value::String("gpt2".to_owned())),
            ("pre", Value::String(pre.to_owned())),
            ("tokens", Value::Strings(self.tokens.iter().collect())),
            ("merges", Value::Strings(self.merges.iter().collect())),
            ("token_type", Value::Ints(self.tokens.iter().map(kind).collect())),
            ("bos_token_id", Value::Int(begin)),
        ]
    }

    fn tokenizer(&self, pre: &str) -> Tokenizer {
        from_gguf(&self.keys(pre)).unwrap_or_else(|error| panic!("{pre}: {error}"))
    }

    /// The same tokenizer with the library's own byte-pair encoding.
    fn in_the_library(&self, tokenizer: &Tokenizer) -> tokenizers::Tokenizer {
        let vocabulary: Vocab = self.tokens.iter().cloned().zip(0..).collect();
        let merge = |line: &String| line.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
        let merges = self.merges.iter().map(|line| merge(line).expect("a pair")).collect();
        let model = BPE::builder().vocab_and_merges(vocabulary, merges).build().expect("it is well formed");
        let parts = &tokenizer.encoder;
        let mut library = tokenizers::Tokenizer::new(model);
        library.with_normalizer(parts.get_normalizer().cloned()).expect("there are no tokens to normalise");
        library.with_pre_tokenizer(parts.get_pre_tokenizer().cloned());
        library.with_decoder(parts.get_decoder().cloned());
        library.with_post_processor(parts.get_post_processor().cloned());
        library.with_added_vocabulary(parts.get_added_vocabulary().clone());
        library
    }
}

fn texts() -> Vec<String> {
    fixture("texts.json")
}

#[test]
fn every_way_to_cut_words_agrees_with_hugging_face() {
    let bpe = BpeFixture::read();
    let texts = texts();
    for (pre, expected) in &bpe.pre {
        let tokenizer = bpe.tokenizer(pre);
        assert_eq!(expected.len(), texts.len());
        for (text, expected) in texts.iter().zip(expected) {
            let tokens = tokenizer.encode(text, true).expect("every byte is a token");
            assert_eq!(&tokens, expected, "{pre}: {text:?}");
        }
    }
    let distinct: std::collections::BTreeSet<_> = bpe.pre.values().collect();
    assert!(distinct.len() >= 14, "the texts tell the ways apart: {} of {}", distinct.len(), bpe.pre.len());
}

#[test]
fn every_known_name_gives_a_tokenizer_that_keeps_the_text() {
    let bpe = BpeFixture::read();
    let names = ["default", "phi-2", "mpt", "refact", "codeshell", "exaone", "minerva-7b", "llama3", "dbrx", "glm4"];
    let more =
        ["deepseek-llm", "deepseek-r1-qwen", "viking", "poro-chat", "llama4", "hunyuan-dense", "exaone4", "jais"];
    for pre in names.into_iter().chain(more) {
        let tokenizer = bpe.tokenizer(pre);
        for text in texts().iter().filter(|text| !text.contains("<|")) {
            let tokens = tokenizer.encode(text, false).expect("every byte is a token");
            let composes = matches!(pre, "mpt" | "deepseek-r1-qwen");
            if !composes || text.is_ascii() {
                assert_eq!(&tokenizer.decode(&tokens).expect("they are tokens"), text, "{pre}");
            }
        }
    }
}

#[test]
fn special_tokens_are_recognised_added_and_left_out() {
    let tokenizer = BpeFixture::read().tokenizer("llama-bpe");
    let begin = tokenizer.token_id("<|begin|>").expect("it is a token");
    let end = tokenizer.token_id("<|end|>").expect("it is a token");
    let with = tokenizer.encode("a<|end|>", true).expect("it can be tokenized");
    assert_eq!((with[0], with.last()), (begin, Some(&end)));
    assert_eq!(tokenizer.encode("a<|end|>", false).expect("it can be tokenized"), with[1..]);
    assert_eq!(tokenizer.decode(&with).expect("they are tokens"), "a");
    assert!(tokenizer.is_special(end) && !tokenizer.is_special(with[1]));
    assert_eq!(tokenizer.token_text(end).expect("it is a token"), "<|end|>");
    let think = tokenizer.token_id("<think>").expect("it is a token");
    assert_eq!(tokenizer.decode(&[begin, think, with[1]]).expect("they are tokens"), "<think>a", "user-defined: shown");
}

#[test]
fn the_keys_of_the_file_decide_what_is_added() {
    let bpe = BpeFixture::read();
    let mut keys = bpe.keys("llama-bpe");
    keys.extend([
        ("add_bos_token", Value::Bool(false)),
        ("add_eos_token", Value::Bool(true)),
        ("eos_token_id", Value::Int(2)),
    ]);
    let tokenizer = from_gguf(&keys).expect("it is well formed");
    assert_eq!(tokenizer.encode("a", true).expect("it can be tokenized").last(), Some(&2));
    assert_eq!(tokenizer.encode("a", true).expect("it can be tokenized").len(), 2);
    keys.retain(|(key, _)| *key != "eos_token_id");
    let error = from_gguf(&keys).expect_err("there is nothing to add").to_string();
    assert!(error.contains("tokenizer.ggml.eos_token_id is missing"), "{error}");
}

#[test]
fn padding_at_the_end_of_the_list_is_no_vocabulary() {
    let bpe = BpeFixture::read();
    let mut keys = bpe.keys("gpt-2");
    for (key, value) in &mut keys {
        match (*key, value) {
            ("tokens", Value::Strings(tokens)) => *tokens = tokens.iter().chain(["[PAD1]", "[PAD2]"]).collect(),
            ("token_type", Value::Ints(types)) => types.extend([5, 5]),
            _ => {}
        }
    }
    assert_eq!(from_gguf(&keys).expect("it is well formed").vocab_size(), bpe.tokens.len());
}

#[test]
fn broken_and_unknown_tokenizers_are_refused_by_name() {
    let bpe = BpeFixture::read();
    let with = |key: &'static str, value: Option<Value>| {
        let mut keys = bpe.keys("gpt-2");
        keys.retain(|(name, _)| *name != key);
        keys.extend(value.map(|value| (key, value)));
        from_gguf(&keys).map(|_| ()).expect_err("it is broken").to_string()
    };
    let string = |text: &str| Some(Value::String(text.to_owned()));
    let twice = bpe.tokens.iter().chain(&bpe.tokens[..1]).collect();
    let cases = [
        (with("pre", string("brand-new")), r#"tokenizer.ggml.pre is "brand-new""#),
        (with("pre", None), "tokenizer.ggml.pre is missing"),
        (with("model", string("gemma4")), r#"tokenizer.ggml.model is "gemma4""#),
        (with("model", None), "tokenizer.ggml.model is missing"),
        (with("tokens", None), "tokenizer.ggml.tokens is missing"),
        (with("tokens", Some(Value::Strings(twice))), "token_type is shorter"),
        (with("token_type", Some(Value::Ints(vec![1]))), "token_type is shorter"),
        (with("merges", None), "tokenizer.ggml.merges is missing"),
        (
            with("merges", Some(Value::Strings(["a qqqqqqqqq"].into_iter().collect()))),
            "the merge \"a qqqqqqqqq\" is not of tokens",
        ),
        (with("merges", Some(Value::Strings(["é é".repeat(9)].into_iter().collect()))), "is not of tokens"),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
    }
}

#[derive(Deserialize)]
struct SentencePieceFixture {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i64>,
    add_space_prefix: Option<bool>,
    precompiled_charsmap: Option<Vec<i64>>,
    cases: Vec<SentencePieceCase>,
}

#[derive(Deserialize)]
struct SentencePieceCase {
    text: String,
    ids: Vec<TokenId>,
    decoded: String,
}

impl SentencePieceFixture {
    fn tokenizer(&self, model: &str, bos: i64, eos: i64, unknown: i64) -> Tokenizer {
        let mut keys = vec![
            ("model", Value::String(model.to_owned())),
            ("tokens", Value::Strings(self.tokens.iter().collect())),
            ("scores", Value::Floats(self.scores.clone())),
            ("token_type", Value::Ints(self.types.clone())),
            ("bos_token_id", Value::Int(bos)),
            ("eos_token_id", Value::Int(eos)),
            ("unknown_token_id", Value::Int(unknown)),
        ];
        keys.extend(self.add_space_prefix.map(|add| ("add_space_prefix", Value::Bool(add))));
        keys.extend(self.precompiled_charsmap.clone().map(|map| ("precompiled_charsmap", Value::Ints(map))));
        from_gguf(&keys).expect("it is well formed")
    }
}

#[test]
fn bpe_with_scores_agrees_with_sentencepiece() {
    for name in ["tokenizer/sentencepiece.json", "tokenizer/sentencepiece_plain.json"] {
        let fixture: SentencePieceFixture = fixture(name);
        let tokenizer = fixture.tokenizer("llama", 1, 2, 0);
        for case in &fixture.cases {
            let tokens = tokenizer.encode(&case.text, false).expect("every byte is a token");
            assert_eq!(tokens, case.ids, "{name}: {:?}", case.text);
            assert_eq!(tokenizer.decode(&tokens).expect("they are tokens"), case.decoded, "{name}: {:?}", case.text);
            let with = tokenizer.encode(&case.text, true).expect("every byte is a token");
            assert_eq!((with[0], &with[1..]), (1, &case.ids[..]), "a begin token by default");
        }
        assert_eq!(tokenizer.encode("<s>a</s>", false).expect("it can be tokenized").first(), Some(&1));
    }
}

#[test]
fn unigram_agrees_with_sentencepiece() {
    let fixture: SentencePieceFixture = fixture("tokenizer/unigram.json");
    let tokenizer = fixture.tokenizer("t5", -1, 1, 2);
    for case in &fixture.cases {
        let tokens = tokenizer.encode(&case.text, false).expect("it can be tokenized");
        assert_eq!(tokens, case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&tokens).expect("they are tokens"), case.decoded, "{:?}", case.text);
        assert_eq!(tokenizer.encode(&case.text, true).expect("it can be tokenized").last(), Some(&1));
    }
}

#[test]
fn a_hostile_normalizer_table_costs_an_error() {
    let mut fixture: SentencePieceFixture = fixture("tokenizer/unigram.json");
    let map = fixture.precompiled_charsmap.as_mut().expect("it has one");
    map.truncate(16);
    map[..4].copy_from_slice(&[12, 0, 0, 0]);
    let tokenizer = fixture.tokenizer("t5", -1, 1, 2);
    let error = tokenizer.encode("hello", false).expect_err("its entries point nowhere");
    assert!(matches!(error, EngineError::Encode { .. }), "{error}");
}

#[test]
fn a_tokenizer_json_is_taken_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tokenizer.json");
    let load = |json: &str| {
        std::fs::write(&path, json).expect("it can be written");
        Tokenizer::from_assets(&assets(TokenizerSource::Json(path.clone())))
    };
    let bpe = BpeFixture::read();
    let original = bpe.tokenizer("smollm");
    let json = bpe.in_the_library(&original).to_string(false).expect("it can be written");
    let tokenizer = load(&json).expect("it is well formed");
    assert_eq!(tokenizer.vocab_size(), bpe.tokens.len());
    for text in texts() {
        let tokens = original.encode(&text, true).expect("every byte is a token");
        assert_eq!(tokenizer.encode(&text, true).expect("every byte is a token"), tokens);
        assert_eq!(tokenizer.decode(&tokens).ok(), original.decode(&tokens).ok());
    }
    let padded = json.replace(
        r#""truncation":null"#,
        r#""truncation":{"max_length":2,"stride":0,"strategy":"LongestFirst","direction":"Right"}"#,
    );
    assert_ne!(padded, json);
    assert!(
        load(&padded).expect("it is well formed").encode("0 1 2 3 4 5", true).expect("it can be tokenized").len() > 2
    );

    assert!(matches!(load("{"), Err(EngineError::BrokenTokenizer { .. })));
    let words = r#"{"model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"},"decoder":null}"#;
    assert_eq!(load(words).expect("it is well formed").decode(&[1, 0, 1]).expect("they are tokens"), "b a b");
    let suffixes = words.replace("null", r#"{"type":"BPEDecoder","suffix":"</w>"}"#);
    let error = load(&suffixes).expect_err("no stream can be decoded that way").to_string();
    assert!(error.contains("BPEDecoder"), "{error}");
    std::fs::remove_file(&path).expect("it was there");
    let error = Tokenizer::from_assets(&assets(TokenizerSource::Json(path.clone()))).expect_err("it is gone");
    assert!(matches!(error, EngineError::Read { .. }), "{error}");
}

#[test]
fn a_stream_never_shows_part_of_a_character() {
    let tokenizer = BpeFixture::read().tokenizer("gpt-2");
    let spelled = "\u{f0}\u{141}\u{132}\u{122}";
    let bytes: Vec<TokenId> =
        spelled.chars().map(|byte| tokenizer.token_id(&byte.to_string()).expect("each byte is a token")).collect();
    let mut stream = tokenizer.stream();
    let shown: Vec<String> = bytes.iter().map(|token| stream.push(*token).expect("it is a token")).collect();
    assert_eq!(shown.concat() + &stream.finish(), tokenizer.decode(&bytes).expect("they are tokens"));
    let (first, rest) = (bytes[0], &bytes[1..]);
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(first).expect("it is a token"), "");
    assert_eq!(stream.clone().finish(), "\u{fffd}", "what never became whole");
    assert!(stream.push(rest[0]).expect("it is a token").is_empty());
    let error = stream.push(u32::MAX).expect_err("there is no such token");
    assert!(matches!(error, EngineError::UnknownToken { token: u32::MAX, .. }), "{error}");
}

#[test]
fn the_space_in_front_of_a_text_is_none_unless_the_text_continues_another() {
    let fixture: SentencePieceFixture = fixture("tokenizer/sentencepiece.json");
    let tokenizer = fixture.tokenizer("llama", 1, 2, 0);
    let tokens = tokenizer.encode("world", true).expect("it can be tokenized");
    let run = |mut stream: DetokenizeStream| {
        let text: String = tokens.iter().map(|token| stream.push(*token).expect("it is a token")).collect();
        text + &stream.finish()
    };
    assert_eq!(run(tokenizer.stream()), "world");
    assert_eq!(run(tokenizer.continuing_stream()), " world");
}

proptest! {
    #[test]
    fn streaming_any_tokens_is_decoding_the_whole(tokens in prop::collection::vec(0u32..690, 0..40)) {
        static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| BpeFixture::read().tokenizer("gpt-2"));
        let tokenizer = &TOKENIZER;
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        for token in &tokens {
            text.push_str(&stream.push(*token).expect("it is a token"));
        }
        text.push_str(&stream.finish());
        // The library decodes the whole at once, and broken UTF-8 the same way.
        prop_assert_eq!(text, tokenizer.encoder.decode(&tokens, true).expect("they are tokens"));
    }

    #[test]
    fn text_survives(text in any::<String>()) {
        static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| BpeFixture::read().tokenizer("llama-bpe"));
        let tokenizer = &TOKENIZER;
        let tokens = tokenizer.encode(&text, true).expect("every byte is a token");
        prop_assert_eq!(tokenizer.decode(&tokens).expect("they are tokens"), text);
    }
}

/// Made-up models read text byte by byte.
#[test]
fn synthetic_models_have_a_tokenizer() {
    let file = ModelFile::synthetic("smollm2-135m", WeightType::Q4_0).expect("the shape is known");
    let tokenizer = Tokenizer::from_assets(file.assets()).expect("it is complete");
    let text = "Why is the sky blue? \u{e9}\u{4f60}\n\0";
    let ids = tokenizer.encode(text, false).expect("any text can be read");
    assert_eq!(ids.len(), text.len());
    assert_eq!(tokenizer.decode(&ids).expect("and written"), text);
}
