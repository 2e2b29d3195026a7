//! What descriptions say of files, and that every backend follows them alike.

use std::sync::Arc;

use tokrun_kernels::cpu::{Cpu, CpuOptions, Level};
use tokrun_kernels::{Activation, Reference};

use super::*;
use crate::gguf::Value;
use crate::{Extend, KvType, ModelFile, Place, SequenceHandle, Wanted};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// What is read from a GGUF fixture whose settings were changed.
fn described(name: &str, changes: &[(&str, Value)]) -> Result<Architecture, ModelError> {
    let path = fixture(name);
    let file = MappedFile::open(&path).expect("the fixture is committed");
    let mut header = Header::parse(&path, &file).expect("the fixture is sound");
    let mut metadata = (*header.metadata).clone();
    let prefix = header.architecture().to_owned();
    metadata.0.extend(changes.iter().map(|(key, value)| (format!("{prefix}.{key}"), value.clone())));
    header.metadata = Arc::new(metadata);
    let weights = GgufWeights::new(&path, &header, &file);
    let architecture = gguf::architecture(&path, &header, &weights, usize::MAX)?;
    Sources::find(&architecture, &weights)?;
    Ok(architecture)
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

#[test]
fn keys_that_would_be_ignored_are_refused() {
    for (fixture, changes, expected) in [
        ("gguf-llama/f32.gguf", vec![("attention.trick", Value::Int(3))], "attention.trick"),
        ("gguf-llama/f32.gguf", vec![("logit_scale", Value::Float(0.5))], "logit_scale"),
        ("gguf-llama/f32.gguf", vec![("attention.value_length", Value::Int(8))], "attention.value_length"),
        ("gguf-llama/f32.gguf", vec![("rope.scaling.factor", Value::Float(4.0))], "without a type"),
        ("gguf-llama/f32.gguf", vec![("rope.scaling.type", text("magic"))], "magic"),
        ("gguf-llama3-rope/f32.gguf", vec![("rope.scaling.type", text("yarn"))], "yarn"),
        ("gguf-llama/f32.gguf", vec![("attention.causal", Value::Bool(false))], "attention.causal"),
        ("gguf-qwen3-moe/f32.gguf", vec![("expert_gating_func", Value::Int(2))], "expert_gating_func"),
        ("gguf-gemma3/f32.gguf", vec![("attention.sliding_window_pattern", text("x"))], "sliding_window_pattern"),
        ("gguf-qwen3/f32.gguf", vec![("attention.head_count_kv", Value::Int(3))], "cannot share"),
        ("gguf-mixtral/f32.gguf", vec![("expert_used_count", Value::Int(5))], "5 of 4 experts"),
    ] {
        let error = described(fixture, &changes).expect_err("it is refused");
        assert!(matches!(error, ModelError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{fixture}: {error} should say {expected}");
    }
}

#[test]
fn neutral_keys_pass_and_others_are_honoured() {
    let llama = |changes: &[(&str, Value)]| described("gguf-llama/f32.gguf", changes).expect("it is honoured");
    let plain = llama(&[]);
    let neutral = [
        ("attention.causal", Value::Bool(true)),
        ("rope.scaling.type", text("none")),
        ("rope.scaling.factor", Value::Float(1.0)),
        ("attention.clamp_kqv", Value::Float(0.0)),
        ("attention.sliding_window", Value::Int(4096)),
    ];
    let same = llama(&neutral);
    assert_eq!((same.ropes, same.layers), (plain.ropes.clone(), plain.layers.clone()));

    let capped = llama(&[
        ("attn_logit_softcapping", Value::Float(5.0)),
        ("attention.scale", Value::Float(0.25)),
        ("attention.sliding_window", Value::Int(32)),
        ("rope.scaling.type", text("linear")),
        ("rope.scaling.factor", Value::Float(4.0)),
    ]);
    assert_eq!((capped.attention_softcap, capped.attention_scale), (Some(5.0), 0.25));
    assert!(capped.layers.iter().all(|layer| layer.window_tokens == Some(32)));
    assert_eq!(capped.ropes[0].frequencies[0], 0.25);
    assert_eq!(plain.ropes[0].frequencies[0], 1.0);
}

/// Six of Gemma 3's layers of which one sees everything, with a rope of their own each; only that one is stretched.
#[test]
fn gemma3_has_two_kinds_of_layers() {
    let gemma = |changes: &[(&str, Value)]| described("gguf-gemma3/f32.gguf", changes).expect("it is honoured");
    let scaled = gemma(&[("rope.scaling.type", text("linear")), ("rope.scaling.factor", Value::Float(8.0))]);
    assert_eq!((scaled.activation, scaled.ropes.len()), (Activation::GeluTanh, 2));
    assert_eq!((scaled.ropes[0].frequencies[0], scaled.ropes[1].frequencies[0]), (0.125, 1.0));
    let kinds: Vec<_> = scaled.layers.iter().map(|layer| (layer.window_tokens, layer.rope)).collect();
    let sliding = (Some(16), Some(1));
    assert_eq!(kinds, [sliding, sliding, sliding, sliding, sliding, (None, Some(0)), sliding]);
    let third = gemma(&[("attention.sliding_window_pattern", Value::Int(3))]);
    assert_eq!(third.layers.iter().filter(|layer| layer.window_tokens.is_none()).count(), 2);
    let each = [true, false, true, false, true, false, true].to_vec();
    let listed = gemma(&[("attention.sliding_window_pattern", Value::Bools(each.clone()))]);
    assert_eq!(listed.layers.iter().map(|layer| layer.window_tokens.is_some()).collect::<Vec<_>>(), each);
}

/// The logits of every token of one sequence on a backend.
fn logits<B: Backend + 'static>(name: &str, backend: B) -> Vec<f32> {
    let path = fixture(name);
    let (file, model) = (MappedFile::open(&path), ModelFile::open(&path));
    let (file, model) = (file.expect("the fixture is committed"), model.expect("the fixture is sound"));
    let header = Header::parse(&path, &file).expect("the fixture is sound");
    let weights = GgufWeights::new(&path, &header, &file);
    let options = LoadOptions { kv_type: Some(KvType::F32), sequences_max: Some(1), ..LoadOptions::default() };
    let architecture = gguf::architecture(&path, &header, &weights, 128).expect("it is computed");
    let sources = Sources::find(&architecture, &weights).expect("it is complete");
    let place = memory::Place { device: "test".to_owned(), free_bytes: 1 << 30, total_bytes: 1 << 30, is_card: false };
    let plan = memory::plan(&architecture, &sources, model.info(), &options, place).expect("it fits");
    let energy = std::thread::spawn(|| None);
    let mut executor = build(backend, plan, Vec::new(), energy, &architecture, &sources).expect("it loads");
    let tokens: Vec<u32> = (0..100).map(|at| at * 7 % architecture.embedded_tokens as u32).collect();
    let place = Place { start: 0, blocks: &[4, 2, 0, 6, 1, 3, 5] };
    let part = Extend { sequence: SequenceHandle::new(0), tokens: &tokens, place, wanted: Wanted::All };
    let logits = executor.extend(&[part]).expect("the model computes");
    (0..logits.rows()).flat_map(|row| logits.row(row).to_vec()).collect()
}

/// The processor's vector levels agree to the bit, and with the reference up to the order of float32 sums.
#[test]
fn backends_and_levels_agree() {
    for name in ["gguf-gemma2/f32.gguf", "gguf-qwen3-moe/f32.gguf", "gguf-olmo2/f32.gguf", "gguf-types/q4_k.gguf"] {
        let level = |level| {
            let options = CpuOptions { threads: 2, level: Some(level), ..CpuOptions::default() };
            logits(name, Cpu::new(options).expect("threads start"))
        };
        let expected = level(Level::SCALAR);
        for other in Level::available() {
            assert!(level(other) == expected, "{name}: {other:?} differs from the plain level");
        }
        let reference = logits(name, Reference::default());
        let apart = expected.iter().zip(&reference).map(|(left, right)| (left - right).abs());
        if name.contains("f32") {
            let far = apart.fold(0.0, f32::max);
            assert!(far <= 1e-3, "{name}: {far} off the reference");
        } else {
            // Quantised weights multiply with activations of 8 bits: far less than the logits spread, on average.
            let count = reference.len() as f32;
            let mean = reference.iter().sum::<f32>() / count;
            let spread = (reference.iter().map(|logit| (logit - mean).powi(2)).sum::<f32>() / count).sqrt();
            let share = apart.sum::<f32>() / count / spread;
            assert!(share <= 0.02, "{name}: {share} of the logits' spread off the reference");
        }
    }
}

/// A CUDA device gives the logits of the processor, up to the order of sums and what 8-bit and bf16 inputs lose. Skipped
/// without a driver, unless TOKRUN_REQUIRE_CUDA asks for one.
#[test]
fn a_cuda_device_agrees_with_the_processor() {
    if let Err(reason) = tokrun_kernels::cuda::probe() {
        assert!(std::env::var_os("TOKRUN_REQUIRE_CUDA").is_none(), "TOKRUN_REQUIRE_CUDA is set, but {reason}");
        eprintln!("skipped: {reason}");
        return;
    }
    for name in [
        "gguf-llama/f32.gguf",
        "gguf-gemma2/f32.gguf",
        "gguf-gemma3/f32.gguf",
        "gguf-qwen3-moe/f32.gguf",
        "gguf-olmo2/f32.gguf",
        "gguf-phi3/f32.gguf",
        "gguf-types/q4_k.gguf",
        "gguf-types/q8_0.gguf",
    ] {
        let expected = logits(name, Cpu::new(CpuOptions::default()).expect("threads start"));
        let found = logits(name, Cuda::new(0, CudaOptions::default()).expect("the device opens"));
        let apart = expected.iter().zip(&found).map(|(left, right)| (left - right).abs());
        if name.contains("f32") {
            let far = apart.fold(0.0, f32::max);
            assert!(far <= 1e-3, "{name}: {far} off the processor");
        } else {
            // A rounding of 8 bits that falls the other way is a whole step of its block.
            let count = expected.len() as f32;
            let mean = expected.iter().sum::<f32>() / count;
            let spread = (expected.iter().map(|logit| (logit - mean).powi(2)).sum::<f32>() / count).sqrt();
            let share = apart.sum::<f32>() / count / spread;
            assert!(share <= 0.02, "{name}: {share} of the logits' spread off the processor");
        }
    }
}
