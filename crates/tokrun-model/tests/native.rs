//! Every family that the native executor computes against Hugging Face transformers in float32, on tiny random models.
//!
//! The fixtures and their references come from `crates/xtask/fixtures`. Weights there are drawn so large that a wrong
//! window, rotation or scale moves logits by whole units; float32 in another order moves them by 1e-5.

use std::path::{Path, PathBuf};

use support::{Reference, assert_refused, best, change_settings, copy_of, distance, fixtures, logits, reference};
use tokrun_model::{BackendChoice, Executor, LoadOptions, LoadProgress, ModelError, ModelFile, WeightType};

mod support;

/// Largest distance of a logit from the reference, for float32 weights.
const DISTANCE_MAX: f32 = 1e-3;
/// The reference's lead, in logits, above which the same token must be chosen.
const MARGIN: f32 = 0.01;

fn native() -> LoadOptions {
    LoadOptions { backend: BackendChoice::Native, sequences_max: Some(4), ..LoadOptions::default() }
}

fn load(path: &Path) -> Result<Box<dyn Executor>, ModelError> {
    ModelFile::open(path)?.load(&native())
}

/// A test a fixture: its folder, or its GGUF file.
macro_rules! families {
    ($($name:ident: $fixture:literal;)*) => {
        $(
            #[test]
            fn $name() {
                agrees_with_reference($fixture);
            }
        )*
    };
}

families! {
    gemma2: "gemma2";
    gemma2_query_scale: "gemma2-query-scale";
    gemma3: "gemma3";
    llama_grouped_and_tied: "llama";
    llama3_rope: "llama3-rope";
    llama_bias: "llama-bias";
    llama_linear_rope: "llama-linear";
    llama_yarn: "llama-yarn";
    mistral_sliding: "mistral";
    mixtral: "mixtral";
    olmo2: "olmo2";
    phi3: "phi3";
    qwen2: "qwen2";
    qwen2_sliding: "qwen2-sliding";
    qwen3: "qwen3";
    qwen3_moe: "qwen3-moe";
    smollm3: "smollm3";
    gguf_gemma2: "gguf-gemma2/f32.gguf";
    gguf_gemma3: "gguf-gemma3/f32.gguf";
    gguf_llama: "gguf-llama/f32.gguf";
    gguf_llama3_rope: "gguf-llama3-rope/f32.gguf";
    gguf_mixtral: "gguf-mixtral/f32.gguf";
    gguf_olmo2: "gguf-olmo2/f32.gguf";
    gguf_phi3: "gguf-phi3/f32.gguf";
    gguf_qwen2: "gguf-qwen2/f32.gguf";
    gguf_qwen2_yarn: "gguf-qwen2-yarn/f32.gguf";
    gguf_qwen3: "gguf-qwen3/f32.gguf";
    gguf_qwen3_moe: "gguf-qwen3-moe/f32.gguf";
    gguf_smollm3: "gguf-smollm3/f32.gguf";
}

/// The reference takes other factors beyond the original 32 tokens; here the context that is asked for decides.
#[test]
fn longrope_takes_the_factors_of_its_context() {
    for fixture in ["phi4-longrope", "gguf-phi4/f32.gguf"] {
        let path = fixtures().join(fixture);
        for (context_tokens, within) in [(32, 0..33), (128, 33..129)] {
            let options = LoadOptions { context_tokens: Some(context_tokens), ..native() };
            let mut executor = ModelFile::open(&path).and_then(|file| file.load(&options)).expect("the model loads");
            let mut compared = 0;
            for prompt in reference(&reference_path(&path)).prompts {
                for row in prompt.logits.iter().filter(|row| within.contains(&row.position)) {
                    let far = distance(&logits(executor.as_mut(), &prompt.all()[..row.position], &[]), &row.values);
                    assert!(far <= DISTANCE_MAX, "{fixture}: {far} off after {} tokens", row.position);
                    compared += 1;
                }
            }
            assert!(compared >= 4, "{fixture}: {compared} rows compared");
        }
    }
}

/// Every weight type against the float32 that its blocks stand for: how far logits are off on average, as a share of how
/// far they spread. Quantised weights multiply with activations of 8 bits.
#[test]
fn gguf_weight_types() {
    let mut faults = Vec::new();
    for &(kind, share_max) in TYPES {
        let path = fixtures().join("gguf-types").join(format!("{kind}.gguf"));
        let mut executor = load(&path).expect("the model loads");
        let (mut apart, mut sum, mut squares, mut count) = (0.0, 0.0, 0.0, 0.0);
        for prompt in reference(&reference_path(&path)).prompts {
            for row in &prompt.logits {
                let computed = logits(executor.as_mut(), &prompt.all()[..row.position], &[]);
                apart += computed.iter().zip(&row.values).map(|(ours, theirs)| (ours - theirs).abs()).sum::<f32>();
                sum += row.values.iter().sum::<f32>();
                squares += row.values.iter().map(|value| value * value).sum::<f32>();
                count += row.values.len() as f32;
            }
        }
        let spread = (squares / count - (sum / count).powi(2)).sqrt();
        let share = apart / count / spread;
        eprintln!("{kind}: {share:.5} of {spread:.2}");
        if share > share_max {
            faults.push(format!("{kind}: {share}"));
        }
    }
    assert!(faults.is_empty(), "{faults:?}");
}

/// What [`gguf_weight_types`] allows.
const TYPES: &[(&str, f32)] = &[
    // These multiply with activations rounded to bf16, where the processor can.
    ("f16", 0.005),
    ("bf16", 0.005),
    ("q8_0", 0.02),
    ("q4_0", 0.02),
    ("q4_1", 0.02),
    ("q5_0", 0.02),
    ("q5_1", 0.02),
    ("q2_k", 0.02),
    ("q3_k", 0.02),
    ("q4_k", 0.02),
    ("q5_k", 0.02),
    ("q6_k", 0.02),
    ("iq4_nl", 0.02),
    ("iq4_xs", 0.02),
    ("mxfp4", 0.02),
];

/// `config.json` as transformers 4 wrote it gives the same model.
#[test]
fn version_4_settings() {
    for name in ["llama3-rope", "qwen2", "qwen3-moe"] {
        let copy = copy_of(name);
        std::fs::copy(fixtures().join(name).join("config-v4.json"), copy.path().join("config.json")).expect("copied");
        let mut executor = load(copy.path()).expect("the model loads");
        check(name, executor.as_mut(), &reference(&copy.path().join("reference.json")));
    }
}

fn agrees_with_reference(fixture: &str) {
    let path = fixtures().join(fixture);
    let mut executor = load(&path).expect("the model loads");
    assert_eq!(executor.info().backend, "native");
    assert_eq!(executor.notes(), [""; 0]);
    check(fixture, executor.as_mut(), &reference(&reference_path(&path)));
}

/// A folder's reference lies in it, a file's beside it.
fn reference_path(model: &Path) -> PathBuf {
    if model.is_dir() { model.join("reference.json") } else { model.with_extension("json") }
}

/// Compares logits, whole and in pieces, and greedy choices with the reference.
fn check(fixture: &str, executor: &mut dyn Executor, reference: &Reference) {
    for prompt in &reference.prompts {
        let all = prompt.all();
        assert!(executor.info().context_tokens >= all.len(), "{fixture}");
        for row in &prompt.logits {
            let whole = logits(executor, &all[..row.position], &[]);
            let far = distance(&whole, &row.values);
            assert!(far <= DISTANCE_MAX, "{fixture}: {far} off after {} tokens", row.position);
            let single: Vec<_> = (1..row.position).collect();
            for cuts in [&[3, 4, 9, 30][..], &single] {
                let pieces = logits(executor, &all[..row.position], cuts);
                assert!(pieces == whole, "{fixture}: pieces {cuts:?} differ after {} tokens", row.position);
            }
        }
        for (step, (&token, &margin)) in prompt.token_ids.iter().zip(&prompt.margins).enumerate() {
            if margin > MARGIN {
                let length = prompt.prompt_ids.len() + step;
                let chosen = best(&logits(executor, &all[..length], &[]));
                assert_eq!(chosen, token, "{fixture}: step {step} with margin {margin}");
            }
        }
    }
}

/// Settings that would be ignored are refused by name.
#[test]
fn ignored_settings_are_refused() {
    let cases = [
        ("llama", r#""mlp_bias": true"#, "mlp_bias = true"),
        ("llama", r#""hidden_act": "gelu""#, "hidden_act"),
        ("qwen2", r#""rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}"#, "dynamic"),
        ("qwen3", r#""quantization_config": {"quant_method": "gptq"}"#, "quantization_config"),
        (
            "qwen3",
            r#""quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}"#,
            "quantization_config",
        ),
        (
            "phi3",
            r#""rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0]}"#,
            "short_factor",
        ),
        (
            "llama",
            r#""rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "trick": 3}"#,
            "trick",
        ),
        ("gemma3", r#""layer_types": ["full_attention", "chunked_attention"]"#, "chunked_attention"),
        ("olmo2", r#""clip_qkv": 8.0"#, "clip_qkv"),
        ("mistral", r#""new_rope_trick": 3"#, "new_rope_trick"),
        ("llama", r#""model_type": "t5""#, "no native executor for t5"),
        ("qwen2", r#""model_type": "llama""#, "ignore tensor model.layers.0.self_attn.k_proj.bias"),
    ];
    assert_refused(load, &cases);
}

/// What has no native decoder goes to candle, which is said; what neither computes is refused with both reasons.
#[test]
fn candle_computes_the_rest() {
    let load = |fixture: &str, backend| {
        let options = LoadOptions { backend, ..LoadOptions::default() };
        ModelFile::open(&fixtures().join(fixture)).and_then(|file| file.load(&options))
    };
    for (fixture, reason) in [("glm4", "no native executor for glm4"), ("gguf-lfm2/f32.gguf", "architecture lfm2")] {
        let executor = load(fixture, BackendChoice::Auto).expect("candle computes it");
        assert_eq!(executor.info().backend, "candle");
        let [note] = executor.notes() else { panic!("{fixture}: {:?}", executor.notes()) };
        assert!(note.contains("candle computes this model") && note.contains(reason), "{note}");
        let error = load(fixture, BackendChoice::Native).err().expect("it is refused");
        assert!(matches!(&error, ModelError::Unsupported { reason: found } if found.contains(reason)), "{error}");
    }
    for fixture in ["llama", "gguf-llama/q4_1.gguf"] {
        for (backend, expected) in
            [(BackendChoice::Auto, "native"), (BackendChoice::Native, "native"), (BackendChoice::Candle, "candle")]
        {
            let executor = load(fixture, backend).expect("both compute it");
            assert_eq!((executor.info().backend, executor.notes().len()), (expected, 0));
        }
    }
    let copy = copy_of("llama");
    change_settings(copy.path(), r#""mlp_bias": true, "attention_bias": true"#);
    let error = ModelFile::open(copy.path()).and_then(|file| file.load(&LoadOptions::default()));
    let error = error.err().expect("neither computes it").to_string();
    assert!(error.contains("mlp_bias") && error.contains("candle"), "{error}");
}

/// The rows that a made-up model gives are numbers, and not all alike.
#[test]
fn synthetic_models_compute() {
    let file = ModelFile::synthetic("smollm2-135m", WeightType::Q4_K).expect("the shape is known");
    assert_eq!((file.info().parameters, file.info().dtype.as_str()), (134_515_008, "Q4_K"));
    let mut executor = file.load(&LoadOptions { context_tokens: Some(64), ..native() }).expect("it is made up");
    let row = logits(executor.as_mut(), &[1, 2, 3, 40_000], &[2]);
    let (low, high) = row.iter().fold((f32::MAX, f32::MIN), |(low, high), &value| (low.min(value), high.max(value)));
    assert!(row.iter().all(|value| value.is_finite()) && high - low > 1.0 && high - low < 100.0, "{low} to {high}");
    let error = ModelFile::synthetic("gpt-5", WeightType::F16).expect_err("nobody knows its shape").to_string();
    assert!(ModelFile::synthetic_shapes().all(|shape| error.contains(shape)), "{error}");
}

/// All bytes of the weights are counted as they are read; a plan reads none of them.
#[test]
fn loading_tells_how_far_it_has_come() {
    let file = ModelFile::open(&fixtures().join("gguf-llama/q8_0.gguf")).expect("the fixture is sound");
    let progress = LoadProgress::default();
    let options =
        LoadOptions { progress: Some(progress.clone()), backend: BackendChoice::Native, ..LoadOptions::default() };
    let plan = file.plan(&options).expect("it fits");
    assert_eq!(plan.weight_bytes, file.info().weight_bytes);
    let vectors = progress.bytes_read();
    assert!(vectors < plan.weight_bytes / 10, "{vectors} bytes were read for a plan");
    file.load(&options).expect("it loads");
    assert_eq!(progress.bytes_read() - vectors, plan.weight_bytes);
}
