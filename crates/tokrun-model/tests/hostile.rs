//! Files that parse and still lie: loading and running them ends in a result or an error, never in a panic or an abort.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Map, Value};
use support::{Sequence, fixtures};
use tokrun_model::{BackendChoice, LoadOptions, ModelError, ModelFile};

mod support;

/// Opens, loads and runs a few tokens.
fn run(path: &Path, options: &LoadOptions) -> Result<(), ModelError> {
    let mut executor = ModelFile::open(path)?.load(options)?;
    let mut sequence = Sequence::create(executor.as_mut(), 0)?;
    sequence.extend(executor.as_mut(), &[1, 2, 3])?;
    sequence.extend(executor.as_mut(), &[4])?;
    Ok(())
}

/// The native executor where it can, and candle.
const BACKENDS: [BackendChoice; 2] = [BackendChoice::Auto, BackendChoice::Candle];

fn options(backend: BackendChoice) -> LoadOptions {
    // Small sizes, so that a lie about them is what costs memory.
    LoadOptions { backend, threads: Some(1), sequences_max: Some(2), ..LoadOptions::default() }
}

/// A panic that was caught is one that a check should have foreseen.
fn must_not_panic(result: Result<(), ModelError>) {
    if let Err(error) = result {
        let text = format!("{error} {error:?}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

/// Where the tensor data of the fixture begins: its header is what flips are aimed at.
fn header_bytes(file: &[u8]) -> usize {
    let names: &[u8] = b"output_norm.weight";
    let last = file.windows(names.len()).rposition(|window| window == names).expect("the fixture has an output norm");
    last + 64
}

#[test]
fn truncated_files_are_refused() {
    let folder = tempfile::tempdir().expect("there is room");
    let file = std::fs::read(fixtures().join("gguf-llama/q4_1.gguf")).expect("the fixture is committed");
    let path = folder.path().join("cut.gguf");
    for length in (0..file.len()).step_by(997).chain([file.len() - 1]) {
        std::fs::write(&path, &file[..length]).expect("there is room");
        for backend in BACKENDS {
            let error = run(&path, &options(backend)).expect_err("the file is cut");
            assert!(matches!(error, ModelError::Malformed { .. }), "{error}");
        }
    }
}

/// One part of a model that was split lacks the tensors of the others.
#[test]
fn a_part_of_a_split_model_is_named() {
    let mut file = std::fs::read(fixtures().join("gguf-llama/q4_1.gguf")).expect("the fixture is committed");
    // Two keys more, of 64 bytes together, so that what follows stays aligned.
    let key = |name: &str, kind: u32, value: &[u8]| {
        [&(name.len() as u64).to_le_bytes()[..], name.as_bytes(), &kind.to_le_bytes(), value].concat()
    };
    let keys = [key("split.count", 4, &3_u32.to_le_bytes()), key(&"x".repeat(24), 7, &[1])].concat();
    assert_eq!(keys.len(), 64);
    let count = u64::from_le_bytes(file[16..24].try_into().expect("eight bytes"));
    file[16..24].copy_from_slice(&(count + 2).to_le_bytes());
    file.splice(24..24, keys);
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("part.gguf");
    std::fs::write(&path, file).expect("there is room");
    let error = ModelFile::open(&path).expect_err("two parts are missing").to_string();
    assert!(error.contains("one of 3 parts"), "{error}");
}

#[test]
fn a_missing_tokenizer_is_named() {
    let folder = tempfile::tempdir().expect("there is room");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixtures().join("llama").join(name), folder.path().join(name)).expect("there is room");
    }
    let error = ModelFile::open(folder.path()).expect_err("it lacks the tokenizer").to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_file_in_the_folder_stands_for_it() {
    let file = ModelFile::open(&fixtures().join("llama/model.safetensors")).expect("its folder is a model");
    let info = file.info();
    assert_eq!((info.architecture.as_str(), info.dtype.as_str(), info.layers), ("llama", "F32", 3));
    assert_eq!((info.context_tokens, info.vocab_size), (128, 384));
    // 3 layers of 2 key heads of 8 values, keys and values of 4 bytes.
    assert_eq!(info.kv_bytes_per_token, 3 * 2 * 8 * 2 * 4);
    assert_eq!(file.assets().end_token_ids, [2, 0]);
    assert_eq!(file.assets().eos_token.as_deref(), Some("<|im_end|>"));
    assert!(file.assets().chat_template.as_ref().is_some_and(|template| template.contains("<|im_start|>")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_gguf_headers(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), backend in 0..2_usize) {
        let mut file = std::fs::read(fixtures().join("gguf-llama/q4_1.gguf")).expect("the fixture is committed");
        let header = header_bytes(&file);
        for (at, value) in flips {
            file[at.index(header)] = value;
        }
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("flipped.gguf");
        std::fs::write(&path, file).expect("there is room");
        must_not_panic(run(&path, &options(BACKENDS[backend])));
    }
}

/// Every number that the GGUF fixtures say about their models, replaced by each of some others.
#[test]
fn absurd_gguf_numbers() {
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("absurd.gguf");
    for (fixture, architecture) in [
        ("gguf-gemma3", "gemma3"),
        ("gguf-glm4", "glm4"),
        ("gguf-lfm2", "lfm2"),
        ("gguf-llama", "llama"),
        ("gguf-mixtral", "llama"),
        ("gguf-phi2", "phi2"),
        ("gguf-phi3", "phi3"),
        ("gguf-qwen2", "qwen2"),
        ("gguf-qwen3", "qwen3"),
        ("gguf-qwen3-moe", "qwen3moe"),
    ] {
        let file = std::fs::read(fixtures().join(fixture).join("f32.gguf")).expect("the fixture is committed");
        for key in GGUF_NUMBERS {
            let key = format!("{architecture}.{key}");
            let Some(at) = file.windows(key.len()).position(|window| window == key.as_bytes()) else { continue };
            // After the key lie four bytes of type, then the value.
            let at = at + key.len() + 4;
            for value in [0_u32, 1, 2, 3, 7, 64, 1 << 16, u32::MAX] {
                let mut file = file.clone();
                file[at..at + 4].copy_from_slice(&value.to_le_bytes());
                std::fs::write(&path, file).expect("there is room");
                BACKENDS.iter().for_each(|backend| must_not_panic(run(&path, &options(*backend))));
            }
        }
    }
}

/// Keys of four bytes, after the architecture.
const GGUF_NUMBERS: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "shortconv.l_cache",
];

/// Every number in every `config.json`, replaced by each of some others.
#[test]
fn absurd_settings() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut panics = Vec::new();
    for entry in std::fs::read_dir(fixtures()).expect("the fixtures are committed") {
        let fixture = entry.expect("it can be listed").path();
        let Ok(text) = std::fs::read_to_string(fixture.join("config.json")) else { continue };
        for name in ["model.safetensors", "tokenizer.json"] {
            std::fs::copy(fixture.join(name), folder.path().join(name)).expect("there is room");
        }
        let settings: Map<String, Value> = serde_json::from_str(&text).expect("the fixture is valid");
        for name in settings.iter().filter(|(_, value)| value.is_number()).map(|(name, _)| name) {
            for value in
                ["0", "1", "3", "-1", "0.5", "1e300", "4294967296", "9223372036854775807", "\"x\"", "[]", "null"]
            {
                let mut settings = settings.clone();
                settings.insert(name.clone(), serde_json::from_str(value).expect("the case is valid"));
                let text = serde_json::to_string(&settings).expect("it is JSON");
                std::fs::write(folder.path().join("config.json"), text).expect("there is room");
                for backend in BACKENDS {
                    if let Err(error) = run(folder.path(), &options(backend))
                        && format!("{error:?}").contains("panicked")
                    {
                        panics.push(format!("{}: {name} = {value}: {error:?}", fixture.display()));
                    }
                }
            }
        }
    }
    assert!(panics.is_empty(), "{}", panics.join("\n"));
}
