//! Every family that candle computes against Hugging Face transformers in float32, on tiny random models.
//!
//! The fixtures and their references come from `crates/xtask/fixtures`. Weights there are drawn so large that a wrong
//! window, rotation or scale moves logits by whole units; float32 in another order moves them by 1e-5.

use std::path::Path;

use support::{Reference, assert_refused, best, change_settings, copy_of, distance, fixtures, logits, reference};
use tokrun_model::{BackendChoice, Executor, Extend, LoadOptions, ModelError, ModelFile, SequenceHandle};

mod support;

/// Largest distance of a logit from the reference.
const DISTANCE_MAX: f32 = 1e-3;
/// The reference's lead, in logits, above which the same token must be chosen.
const MARGIN: f32 = 0.01;

/// A test a fixture.
macro_rules! families {
    ($($name:ident: $fixture:literal, $context:literal;)*) => {
        $(
            #[test]
            fn $name() {
                agrees_with_reference($fixture, "", "reference.json", $context);
            }
        )*

        /// Every fixture folder is either computed above or refused below, or there for the native executor.
        #[test]
        fn every_fixture_has_a_test() {
            let tested: Vec<_> = [$($fixture),*].into_iter().chain(NATIVE_ONLY.iter().copied()).collect();
            for entry in std::fs::read_dir(fixtures()).expect("the fixtures are committed") {
                let name = entry.expect("it can be listed").file_name().into_string().expect("names are UTF-8");
                let is_elsewhere = name.starts_with("gguf-") || name.starts_with("embed-");
                assert!(is_elsewhere || tested.contains(&name.as_str()), "nothing tests {name}");
            }
        }
    };
}

/// Fixtures that `native.rs` computes.
const NATIVE_ONLY: &[&str] = &[
    "gemma2-query-scale",
    "llama-bias",
    "llama-linear",
    "llama-yarn",
    "phi4-longrope",
    "qwen2-sliding",
    "smollm2-135m",
];

families! {
    // Fixture, and the context that is computed: candle's windows are off by one in the prompt and missing after it, so
    // the context ends where a window would bite (at 16 tokens).
    deepseek2: "deepseek2", 128;
    gemma: "gemma", 128;
    gemma2_within_its_window: "gemma2", 16;
    gemma3_sliding: "gemma3", 128;
    glm4: "glm4", 128;
    gpt_bigcode: "gpt-bigcode", 128;
    granite: "granite", 128;
    granite_hybrid: "granite-hybrid", 128;
    helium: "helium", 128;
    lfm2: "lfm2", 128;
    llama_grouped_and_tied: "llama", 128;
    llama3_rope: "llama3-rope", 128;
    mamba: "mamba", 128;
    mamba2: "mamba2", 128;
    mistral_within_its_window: "mistral", 16;
    mixtral: "mixtral", 128;
    olmo: "olmo", 128;
    olmo2: "olmo2", 128;
    phi: "phi", 128;
    phi3: "phi3", 128;
    qwen2: "qwen2", 128;
    qwen2_moe: "qwen2-moe", 128;
    qwen3: "qwen3", 128;
    qwen3_moe: "qwen3-moe", 128;
    smollm3: "smollm3", 128;
    stablelm: "stablelm", 128;
    starcoder2: "starcoder2", 128;
}

#[test]
fn gguf_architectures() {
    for name in ["glm4", "lfm2", "llama", "mixtral", "phi2", "phi3", "qwen2", "qwen3"] {
        agrees_with_reference(&format!("gguf-{name}"), "f32.gguf", "f32.json", 256);
    }
}

/// Weights are exact and activations are rounded to 8 bits.
#[test]
fn gguf_quantised() {
    for kind in ["q8_0", "q4_1"] {
        let path = fixtures().join("gguf-llama").join(format!("{kind}.gguf"));
        let mut executor = load(&path).expect("the model loads");
        let (mut sum, mut count) = (0.0, 0.0);
        for prompt in reference(&path.with_extension("json")).prompts {
            for row in &prompt.logits {
                let computed = logits(executor.as_mut(), &prompt.all()[..row.position], &[]);
                sum += computed.iter().zip(&row.values).map(|(ours, theirs)| (ours - theirs).abs()).sum::<f32>();
                count += row.values.len() as f32;
            }
        }
        // Logits of this model have a standard deviation of 8.
        let mean = sum / count;
        assert!(mean > 1e-3 && mean < 0.25, "{kind}: mean distance {mean}");
    }
}

/// `config.json` as transformers 4 wrote it gives the same model.
#[test]
fn version_4_settings() {
    for name in ["llama3-rope", "qwen2", "qwen3-moe"] {
        let copy = copy_of(name);
        std::fs::copy(fixtures().join(name).join("config-v4.json"), copy.path().join("config.json")).expect("copied");
        check(
            name,
            load(copy.path()).expect("the model loads").as_mut(),
            &reference(&copy.path().join("reference.json")),
        );
    }
}

/// Two sequences that grow in turns, in pieces of different sizes, give what each gives alone.
#[test]
fn interleaved_sequences_do_not_touch() {
    for name in ["llama", "qwen2", "phi3", "gemma3", "lfm2", "mamba"] {
        let mut executor = load(&fixtures().join(name)).expect("the model loads");
        let prompts = reference(&fixtures().join(name).join("reference.json")).prompts;
        let (one, other) = (prompts[0].all(), prompts[1].all());
        let expected = [logits(executor.as_mut(), &one, &[]), logits(executor.as_mut(), &other, &[])];
        let handles = [executor.create().expect("free"), executor.create().expect("free")];
        let cuts = [(4, 9), (5, 30), (6, 31), (one.len(), other.len())];
        let mut from = (0, 0);
        let mut last = Vec::new();
        for (to_one, to_other) in cuts {
            let batch =
                [Extend::new(handles[0], &one[from.0..to_one]), Extend::new(handles[1], &other[from.1..to_other])];
            let output = executor.extend(&batch).expect("the model computes");
            assert_eq!(output.rows(), 2);
            last = vec![output.row(0).to_vec(), output.row(1).to_vec()];
            from = (to_one, to_other);
        }
        for (computed, expected) in last.iter().zip(&expected) {
            assert!(distance(computed, expected) <= DISTANCE_MAX, "{name}");
        }
    }
}

/// Loads the fixture and compares it with its reference.
fn agrees_with_reference(fixture: &str, file: &str, reference_file: &str, context_tokens: usize) {
    let folder = fixtures().join(fixture);
    let path = if file.is_empty() { folder.clone() } else { folder.join(file) };
    let mut executor = load(&path).expect("the model loads");
    assert_eq!(executor.info().context_tokens, context_tokens, "{fixture}");
    check(fixture, executor.as_mut(), &reference(&folder.join(reference_file)));
}

/// Compares logits, whole and in pieces, and greedy choices with the reference, as far as the context reaches.
fn check(fixture: &str, executor: &mut dyn Executor, reference: &Reference) {
    let context_tokens = executor.info().context_tokens;
    for prompt in &reference.prompts {
        let all = prompt.all();
        for row in prompt.logits.iter().filter(|row| row.position <= context_tokens) {
            let single: Vec<_> = (1..row.position).collect();
            for cuts in [&[][..], &[3, 4, 9, 30], &single] {
                let far = distance(&logits(executor, &all[..row.position], cuts), &row.values);
                assert!(far <= DISTANCE_MAX, "{fixture}: {far} off after {} tokens in pieces {cuts:?}", row.position);
            }
        }
        for (step, (&token, &margin)) in prompt.token_ids.iter().zip(&prompt.margins).enumerate() {
            let length = prompt.prompt_ids.len() + step;
            if length <= context_tokens && margin > MARGIN {
                assert_eq!(
                    best(&logits(executor, &all[..length], &[])),
                    token,
                    "{fixture}: step {step} with margin {margin}"
                );
            }
        }
    }
}

#[test]
fn context_and_batches_are_checked() {
    let mut executor = load(&fixtures().join("mistral")).expect("the model loads");
    let sequence = executor.create().expect("a sequence is free");
    let mut refusal =
        |sequence, tokens: &[u32]| executor.extend(&[Extend::new(sequence, tokens)]).expect_err("it is refused");
    let full = refusal(sequence, &[5; 17]);
    assert!(matches!(full, ModelError::ContextFull { wanted_tokens: 17, context_tokens: 16 }), "{full}");
    assert!(matches!(refusal(sequence, &[]), ModelError::InvalidBatch { .. }));
    assert!(matches!(refusal(sequence, &[384]), ModelError::InvalidBatch { .. }));
    executor.drop_sequence(sequence);
    let unknown = executor.extend(&[Extend::new(sequence, &[5])]).expect_err("it was dropped");
    assert!(matches!(unknown, ModelError::InvalidBatch { .. }));
    let next = executor.create().expect("a sequence is free");
    let twice = [Extend::new(next, &[5]), Extend::new(next, &[6])];
    assert!(matches!(executor.extend(&twice), Err(ModelError::InvalidBatch { .. })));
    executor.extend(&[Extend::new(next, &[5; 16])]).expect("a refused batch changed nothing");
}

/// Models that cannot be copied serve one sequence at a time, again and again.
#[test]
fn one_sequence_after_another() {
    for path in ["stablelm", "gpt-bigcode", "deepseek2", "gguf-qwen2/f32.gguf", "gguf-lfm2/f32.gguf"] {
        let mut executor = load(&fixtures().join(path)).expect("the model loads");
        assert_eq!(executor.info().sequences_max, 1, "{path}");
        let first = logits(executor.as_mut(), &[7, 8, 9], &[]);
        let sequence = executor.create().expect("a sequence is free");
        assert!(matches!(executor.create(), Err(ModelError::SequencesFull { sequences_max: 1 })));
        let again = extend(executor.as_mut(), sequence, &[7, 8, 9]);
        assert_eq!(first, again, "{path}");
    }
}

/// Settings that candle would ignore are refused by name.
#[test]
fn ignored_settings_are_refused() {
    let cases = [
        ("gemma2-query-scale", "", "query_pre_attn_scalar 12"),
        ("llama", r#""rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}"#, "yarn"),
        ("llama", r#""rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": null"#, "linear"),
        ("llama", r#""attention_bias": true"#, "attention_bias = true"),
        ("llama", r#""mlp_bias": true"#, "mlp_bias = true"),
        ("llama", r#""head_dim": 16"#, "head_dim = 16"),
        ("llama", r#""hidden_act": "gelu""#, "hidden_act"),
        (
            "qwen2",
            r#""rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}"#,
            "rope_scaling",
        ),
        ("qwen3", r#""quantization_config": {"quant_method": "fp8"}"#, "quantization_config"),
        (
            "phi3",
            r#""rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0]}"#,
            "longrope",
        ),
        (
            "gemma3",
            r#""layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention",
            "sliding_attention", "sliding_attention"]"#,
            "layer_types",
        ),
        ("granite", r#""embedding_multiplier": 12.0"#, "embedding_multiplier"),
        ("granite", r#""attention_multiplier": 0.5"#, "attention_multiplier"),
        ("granite-hybrid", r#""layer_types": ["mamba", "attention"]"#, "mamba"),
        ("olmo2", r#""clip_qkv": 8.0"#, "clip_qkv"),
        ("qwen3-moe", r#""mlp_only_layers": [0]"#, "mlp_only_layers"),
        ("mistral", r#""new_rope_trick": 3"#, "new_rope_trick"),
        ("llama", r#""model_type": "falcon""#, "gelu"),
        ("llama", r#""model_type": "recurrent_gemma""#, "recurrence"),
        ("llama", r#""model_type": "t5""#, "no executor for t5"),
        ("llama", r#""model_type": "bert""#, "an embedding model"),
        ("qwen2", r#""model_type": "llama""#, "ignore tensor model.layers.0.self_attn.k_proj.bias"),
    ];
    assert_refused(load, &cases);
}

/// A window as wide as the context changes nothing; a narrower one ends the context.
#[test]
fn windows_limit_the_context() {
    for (fixture, changes, context_tokens) in [
        ("mistral", r#""sliding_window": 128"#, 128),
        ("mistral", r#""sliding_window": null"#, 128),
        ("mistral", r#""sliding_window": 40"#, 40),
        ("qwen2", r#""use_sliding_window": true, "sliding_window": 24, "layer_types": null"#, 24),
        ("qwen2", r#""use_sliding_window": false, "sliding_window": 24, "layer_types": null"#, 128),
        ("gemma2", r#""layer_types": ["full_attention", "full_attention"]"#, 128),
    ] {
        let copy = copy_of(fixture);
        change_settings(copy.path(), changes);
        let executor = load(copy.path()).expect("the model loads");
        assert_eq!(executor.info().context_tokens, context_tokens, "{fixture} with {changes}");
    }
}

fn candle() -> LoadOptions {
    LoadOptions { backend: BackendChoice::Candle, ..LoadOptions::default() }
}

fn load(path: &Path) -> Result<Box<dyn Executor>, ModelError> {
    ModelFile::open(path)?.load(&candle())
}

fn extend(executor: &mut dyn Executor, sequence: SequenceHandle, tokens: &[u32]) -> Vec<f32> {
    executor.extend(&[Extend::new(sequence, tokens)]).expect("the model computes").row(0).to_vec()
}
