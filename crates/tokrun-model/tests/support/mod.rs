//! Feeds executors of both kinds, those that keep sequences to themselves and those whose blocks the caller hands out,
//! and compares them with references.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokrun_model::{BlockId, Executor, Extend, ModelError, Place, SequenceHandle, Wanted};

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

#[derive(Deserialize)]
pub(crate) struct Reference {
    pub(crate) prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
pub(crate) struct Prompt {
    pub(crate) prompt_ids: Vec<u32>,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) margins: Vec<f32>,
    pub(crate) logits: Vec<Row>,
}

/// The logits after `position` tokens of prompt and continuation together.
#[derive(Deserialize)]
pub(crate) struct Row {
    pub(crate) position: usize,
    pub(crate) values: Vec<f32>,
}

/// Loads copies of fixtures with changed settings: each must be refused as unsupported, by what it says.
#[track_caller]
pub(crate) fn assert_refused(
    load: impl Fn(&Path) -> Result<Box<dyn Executor>, ModelError>,
    cases: &[(&str, &str, &str)],
) {
    for (fixture, changes, expected) in cases {
        let copy = copy_of(fixture);
        change_settings(copy.path(), changes);
        let error = load(copy.path()).err().unwrap_or_else(|| panic!("{fixture} with {changes} loads"));
        assert!(matches!(error, ModelError::Unsupported { .. }), "{fixture} with {changes}: {error:?}");
        assert!(error.to_string().contains(expected), "{fixture} with {changes}: {error} should say {expected}");
    }
}

impl Prompt {
    pub(crate) fn all(&self) -> Vec<u32> {
        self.prompt_ids.iter().chain(&self.token_ids).copied().collect()
    }
}

pub(crate) fn reference(path: &Path) -> Reference {
    let text = std::fs::read_to_string(path).expect("the fixture is committed");
    serde_json::from_str(&text).expect("the fixture is valid")
}

/// One sequence that grows.
pub(crate) struct Sequence {
    handle: SequenceHandle,
    length: usize,
    blocks: Vec<BlockId>,
}

impl Sequence {
    /// The `index`-th of several sequences, each with blocks of its own, in an order that is not the cache's.
    pub(crate) fn create(executor: &mut dyn Executor, index: usize) -> Result<Self, ModelError> {
        let handle = executor.create()?;
        let each = executor.info().paging.map_or(0, |paging| {
            let each = executor.info().context_tokens.div_ceil(paging.block_tokens);
            assert!((index + 1) * each <= paging.blocks, "the cache holds {index} + 1 contexts");
            each
        });
        let blocks = (index * each..(index + 1) * each).rev().map(|block| block as BlockId).collect();
        Ok(Self { handle, length: 0, blocks })
    }

    /// The part of a batch that appends `tokens`.
    pub(crate) fn part<'a>(&'a self, tokens: &'a [u32], wanted: Wanted) -> Extend<'a> {
        let place = Place { start: self.length, blocks: &self.blocks };
        Extend { sequence: self.handle, tokens, place, wanted }
    }

    /// Says that a batch appended so many.
    pub(crate) fn grow(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// Appends `tokens`; the logits after the last one.
    pub(crate) fn extend(&mut self, executor: &mut dyn Executor, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let row = executor.extend(&[self.part(tokens, Wanted::Last)])?.row(0).to_vec();
        self.length += tokens.len();
        Ok(row)
    }

    pub(crate) fn drop(self, executor: &mut dyn Executor) {
        executor.drop_sequence(self.handle);
    }
}

/// Logits after `tokens`, fed in pieces that end at `cuts`.
pub(crate) fn logits(executor: &mut dyn Executor, tokens: &[u32], cuts: &[usize]) -> Vec<f32> {
    let mut sequence = Sequence::create(executor, 0).expect("a sequence is free");
    let mut from = 0;
    let mut last = Vec::new();
    for &to in cuts.iter().filter(|&&cut| cut < tokens.len()).chain([&tokens.len()]) {
        last = sequence.extend(executor, &tokens[from..to]).expect("the model computes");
        from = to;
    }
    sequence.drop(executor);
    last
}

/// Largest distance of two rows of logits.
pub(crate) fn distance(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

/// The likeliest token.
pub(crate) fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary") as u32
}

/// A copy of a fixture, to be changed.
pub(crate) fn copy_of(fixture: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("there is room");
    for entry in std::fs::read_dir(fixtures().join(fixture)).expect("the fixture is committed") {
        let entry = entry.expect("it can be listed");
        if entry.path().is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("there is room");
        }
    }
    copy
}

/// Overwrites settings of `config.json` in `folder`.
pub(crate) fn change_settings(folder: &Path, changes: &str) {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).expect("the fixture has settings");
    let mut settings: serde_json::Map<_, _> = serde_json::from_str(&text).expect("they are valid");
    let changes: serde_json::Map<_, _> = serde_json::from_str(&format!("{{{changes}}}")).expect("the case is valid");
    settings.extend(changes);
    std::fs::write(&path, serde_json::to_string(&settings).expect("it is JSON")).expect("there is room");
}

/// Whether there is a CUDA device. Tests without one say that they were skipped, unless TOKRUN_REQUIRE_CUDA asks them to fail.
#[allow(clippy::print_stderr, reason = "nobody may take a skipped test for one that passed")]
pub(crate) fn has_cuda_device() -> bool {
    let found = tokrun_kernels::cuda::probe();
    if let Err(reason) = &found {
        assert!(std::env::var_os("TOKRUN_REQUIRE_CUDA").is_none(), "TOKRUN_REQUIRE_CUDA is set, but {reason}");
        eprintln!("skipped: {reason}");
    }
    found.is_ok()
}
