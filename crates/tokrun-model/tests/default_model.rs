//! The real default model against a float32 reference.
//!
//! Runs where the file is: `$TOKRUN_TEST_MODEL`, `$TOKRUN_HOME/models` or the default data directory. With
//! `TOKRUN_REQUIRE_MODEL=1` (as in CI) a missing file fails the test.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use support::Sequence;
use tokrun_model::{Executor, LoadOptions, ModelFile, Processor, TokenizerSource};

mod support;

#[derive(Deserialize)]
struct Reference {
    file: String,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    prompt_ids: Vec<u32>,
    token_ids: Vec<u32>,
    margins: Vec<f32>,
    /// For each generated token, the likeliest and their log-probabilities.
    top: Vec<Vec<(u32, f32)>>,
}

/// Mean distance of log-probabilities from the reference that an executor with 8-bit activations may have.
const MEAN_DISTANCE_MAX: f32 = 0.11;
/// The reference's lead, in logits, above which the same token must be chosen.
const MARGIN: f32 = 0.5;

#[test]
fn default_model_agrees_with_the_float32_reference() {
    let Some((reference, path)) = reference() else { return };
    let file = ModelFile::open(&path).expect("the default model opens");
    assert_eq!(file.info().architecture, "llama");
    assert_eq!(file.info().dtype, "Q4_1");
    assert_eq!(file.info().parameters, 134_515_008);
    assert_eq!(file.info().kv_bytes_per_token, 46_080);
    assert_eq!(file.assets().end_token_ids, [2]);
    assert!(matches!(file.assets().tokenizer, TokenizerSource::Gguf(_)));
    let begun = Instant::now();
    let mut executor = file.load(&LoadOptions::default()).expect("the default model loads");
    eprintln!("loaded in {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    assert_eq!((executor.info().backend, executor.info().vocab_size), ("native", 49_152));

    let mut distances = Distances::default();
    for prompt in &reference.prompts {
        follow(executor.as_mut(), prompt, &mut distances);
    }
    let (mean, max) = (distances.sum / distances.count as f32, distances.max);
    eprintln!("top-five log-probabilities: mean distance {mean:.4}, largest {max:.4}, {} values", distances.count);
    assert!(distances.misses.is_empty(), "chose {}", distances.misses.join(", "));
    assert!(mean <= MEAN_DISTANCE_MAX, "mean distance {mean}");
}

/// The lead of the processor's choice above which a device must choose the same.
const DEVICE_MARGIN: f32 = 0.3;

/// A prompt goes through tensor cores, what follows token by token through captured graphs: the choices are the processor's.
#[test]
fn default_model_chooses_the_same_on_a_cuda_device() {
    if !support::has_cuda_device() {
        return;
    }
    let Some((reference, path)) = reference() else { return };
    let prompt: Vec<u32> = reference.prompts[0].prompt_ids.iter().copied().take(24).collect();
    let file = ModelFile::open(&path).expect("the default model opens");
    let load = |processor| {
        let options =
            LoadOptions { processor, sequences_max: Some(1), context_tokens: Some(64), ..LoadOptions::default() };
        let mut executor = file.load(&options).expect("the default model loads");
        let sequence = Sequence::create(executor.as_mut(), 0).expect("a sequence is free");
        (executor, sequence)
    };
    let ((mut cpu, mut on_cpu), (mut cuda, mut on_cuda)) = (load(Processor::Cpu), load(Processor::Cuda(0)));
    let mut tokens = prompt;
    let mut compared = 0;
    for step in 0..3 {
        let expected = extend(cpu.as_mut(), &mut on_cpu, &tokens);
        let found = extend(cuda.as_mut(), &mut on_cuda, &tokens);
        let mut order: Vec<usize> = (0..expected.len()).collect();
        order.select_nth_unstable_by(1, |&a, &b| expected[b].total_cmp(&expected[a]));
        let (first, second) = (order[0], order[1]);
        if expected[first] - expected[second] > DEVICE_MARGIN {
            assert_eq!(support::best(&found) as usize, first, "step {step}");
            compared += 1;
        }
        tokens = vec![first as u32];
    }
    assert!(compared > 0, "no choice was clear enough to compare");
}

/// The reference and the model's file, if that is anywhere.
#[allow(clippy::print_stderr, reason = "nobody may take a skipped test for one that passed")]
fn reference() -> Option<(Reference, PathBuf)> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/smollm2-135m/reference.json");
    let text = std::fs::read_to_string(fixture).expect("the fixture is committed");
    let reference: Reference = serde_json::from_str(&text).expect("the fixture is valid");
    let found = find(&reference.file);
    if found.is_none() {
        let required = std::env::var_os("TOKRUN_REQUIRE_MODEL").is_some_and(|value| value == "1");
        assert!(!required, "TOKRUN_REQUIRE_MODEL=1, but {} is nowhere; set TOKRUN_TEST_MODEL", reference.file);
        eprintln!("SKIPPED: {} is not here; set TOKRUN_TEST_MODEL to its path", reference.file);
    }
    found.map(|path| (reference, path))
}

#[derive(Default)]
struct Distances {
    sum: f32,
    max: f32,
    count: usize,
    /// Other choices than the reference's where its margin forbids them.
    misses: Vec<String>,
}

/// Feeds the reference's own tokens and compares each step with it.
fn follow(executor: &mut dyn Executor, prompt: &Prompt, distances: &mut Distances) {
    let mut sequence = Sequence::create(executor, 0).expect("a sequence is free");
    let mut logprobs = extend(executor, &mut sequence, &prompt.prompt_ids);
    for (step, (&token, &margin)) in prompt.token_ids.iter().zip(&prompt.margins).enumerate() {
        for &(id, expected) in &prompt.top[step][..5] {
            let distance = (logprobs[id as usize] - expected).abs();
            distances.sum += distance;
            distances.max = distances.max.max(distance);
            distances.count += 1;
        }
        let chosen = (0..logprobs.len()).max_by(|&a, &b| logprobs[a].total_cmp(&logprobs[b])).expect("not empty");
        if margin > MARGIN && chosen as u32 != token {
            distances.misses.push(format!("{chosen} for {token} at step {step} with margin {margin}"));
        }
        logprobs = extend(executor, &mut sequence, &[token]);
    }
    sequence.drop(executor);
}

/// Appends `tokens` and returns the log-probabilities of the next one.
fn extend(executor: &mut dyn Executor, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    let row = sequence.extend(executor, tokens).expect("the model computes");
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_sum = row.iter().map(|&logit| f64::from(logit - max).exp()).sum::<f64>().ln() as f32;
    row.iter().map(|&logit| logit - max - log_sum).collect()
}

/// Looks for the model where it may have been pulled to.
fn find(name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("TOKRUN_TEST_MODEL") {
        return Some(PathBuf::from(path));
    }
    let home = std::env::var_os("TOKRUN_HOME").map(PathBuf::from).or_else(|| {
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
        data.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")))
            .map(|dir| dir.join("tokrun"))
    })?;
    search(&home.join("models"), name, 3)
}

fn search(folder: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.is_file() && path.file_name().is_some_and(|file| file == name)).cloned();
    here.or_else(|| if depth > 0 { entries.iter().find_map(|path| search(path, name, depth - 1)) } else { None })
}
