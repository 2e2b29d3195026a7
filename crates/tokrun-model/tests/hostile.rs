//! Files that parse and still lie: loading and running them ends in a result or an error, never in a panic or an abort.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tokrun_model::{Extend, LoadOptions, ModelError, ModelFile};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// Opens, loads and runs a few tokens.
fn run(path: &Path, options: &LoadOptions) -> Result<(), ModelError> {
    let mut executor = ModelFile::open(path)?.load(options)?;
    let sequence = executor.create()?;
    executor.extend(&[Extend { sequence, tokens: &[1, 2, 3] }])?;
    executor.extend(&[Extend { sequence, tokens: &[4] }])?;
    Ok(())
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
        let error = run(&path, &LoadOptions::default()).expect_err("the file is cut");
        assert!(matches!(error, ModelError::Malformed { .. }), "{error}");
    }
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
    fn flipped_gguf_headers(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), widen: bool) {
        let mut file = std::fs::read(fixtures().join("gguf-llama/q4_1.gguf")).expect("the fixture is committed");
        let header = header_bytes(&file);
        for (at, value) in flips {
            file[at.index(header)] = value;
        }
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("flipped.gguf");
        std::fs::write(&path, file).expect("there is room");
        let options = LoadOptions { float32_bytes_max: Some(if widen { u64::MAX } else { 0 }), ..LoadOptions::default() };
        must_not_panic(run(&path, &options));
    }

    #[test]
    fn absurd_gguf_numbers(key in 0_usize..10, value in prop::sample::select(&[0_u32, 1, 2, 3, 7, 64, 1 << 16, u32::MAX][..])) {
        let name = ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
            "attention.head_count_kv", "rope.dimension_count", "rope.freq_base", "attention.layer_norm_rms_epsilon", "vocab"][key];
        let mut file = std::fs::read(fixtures().join("gguf-llama/q8_0.gguf")).expect("the fixture is committed");
        let full = format!("llama.{name}");
        let Some(at) = file.windows(full.len()).position(|window| window == full.as_bytes()) else { return Ok(()) };
        let value_at = at + full.len() + 4;
        file[value_at..value_at + 4].copy_from_slice(&value.to_le_bytes());
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("absurd.gguf");
        std::fs::write(&path, file).expect("there is room");
        must_not_panic(run(&path, &LoadOptions::default()));
    }

    #[test]
    fn absurd_settings(
        fixture in prop::sample::select(&["llama", "qwen2", "qwen3-moe", "phi3", "gemma3", "glm4", "deepseek2", "lfm2",
            "gpt-bigcode", "mamba", "mamba2", "stablelm", "granite-hybrid", "smollm3"][..]),
        which: prop::sample::Index,
        value in prop::sample::select(&["0", "1", "3", "-1", "0.5", "1e300", "4294967296", "9223372036854775807", "\"x\"", "[]", "null"][..]),
    ) {
        let folder = tempfile::tempdir().expect("there is room");
        for name in ["model.safetensors", "tokenizer.json"] {
            std::fs::copy(fixtures().join(fixture).join(name), folder.path().join(name)).expect("there is room");
        }
        let text = std::fs::read_to_string(fixtures().join(fixture).join("config.json")).expect("the fixture is committed");
        let mut settings: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).expect("it is valid");
        let numbers: Vec<_> = settings.iter().filter(|(_, value)| value.is_number()).map(|(name, _)| name.clone()).collect();
        let name = &numbers[which.index(numbers.len())];
        settings.insert(name.clone(), serde_json::from_str(value).expect("the case is valid"));
        std::fs::write(folder.path().join("config.json"), serde_json::to_string(&settings).expect("JSON")).expect("room");
        let result = run(folder.path(), &LoadOptions::default());
        if let Err(error) = &result {
            prop_assert!(!format!("{error:?}").contains("panicked"), "{fixture}: {name} = {value}: {error:?}");
        }
    }
}
