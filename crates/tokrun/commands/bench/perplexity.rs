//! `--perplexity`: how well a model predicts a text, as llama.cpp's tool of that name measures it.
//!
//! A text that fits the context is one window, in which every token but the first is scored, each with all before it. A
//! longer one is cut into windows as long as the context: the first half of each is context alone, the second half is
//! scored, and a rest that fills no window is left out. Where the tokenizer begins texts with a special token, each
//! window begins with it, in place of its first token.

use std::path::Path;

use serde_json::json;
use tokrun_engine::{TokenId, Tokenizer};
use tokrun_model::Executor;

use super::bare::Sequence;
use super::model_type;
use crate::args::{BenchArgs, Device, Format};
use crate::failure::{Failure, Status};
use crate::load::{self, Found};

/// Tokens a step: their logits are held at once, which takes some megabytes.
const STEP_TOKENS: usize = 32;

pub(super) fn run(
    args: &BenchArgs,
    device: Device,
    found: &Found,
    file: &Path,
    format: Format,
) -> Result<Status, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::io(&format!("cannot read {}", file.display()), &error))?;
    let options = args.engine.load_options(device, args.threads.first().copied(), 1);
    let (mut model, info) = load::open(found, &options)?;
    let tokens = model.tokenizer.encode(&text, true)?;
    let context_tokens = model.executor.info().context_tokens;
    let windows = windows(&tokens, context_tokens, begin_token(&model.tokenizer)?);
    let mut losses = Vec::new();
    for window in &windows {
        score(&mut *model.executor, window, &mut losses)?;
    }
    if losses.is_empty() {
        let what = format!("{} has {} tokens, and two are the least", file.display(), tokens.len());
        return Err(Failure::new(Status::Usage, "usage", what).hint("name a longer text"));
    }
    let result = Perplexity::of(&losses);
    let window_tokens = windows[0].tokens.len();
    match format {
        Format::Json | Format::Jsonl => out!(
            "{}",
            json!({
                "model_filename": found.name,
                "model_type": model_type(&info),
                "backends": model.executor.info().backend,
                "perplexity": result.value,
                "perplexity_stddev": result.deviation,
                "nll": result.loss,
                "n_tokens": tokens.len(),
                "n_scored": losses.len(),
                "n_windows": windows.len(),
                "n_ctx": window_tokens,
            })
        ),
        Format::Csv => {
            out!("model_filename,perplexity,perplexity_stddev,nll,n_tokens,n_scored,n_windows,n_ctx");
            out!(
                "\"{}\",{},{},{},{},{},{},{window_tokens}",
                found.name.replace('"', "\"\""),
                result.value,
                result.deviation,
                result.loss,
                tokens.len(),
                losses.len(),
                windows.len()
            );
        }
        Format::Text | Format::Md | Format::Html => {
            out!("| model | backend | windows | tokens scored | nll a token | perplexity |");
            out!("| --- | --- | ---: | ---: | ---: | ---: |");
            out!(
                "| {} ({}) | {} | {} of {window_tokens} | {} | {:.5} | {:.4} ± {:.4} |",
                model_type(&info),
                found.name,
                model.executor.info().backend,
                windows.len(),
                losses.len(),
                result.loss,
                result.value,
                result.deviation
            );
        }
    }
    Ok(Status::Done)
}

/// Tokens that are read together, and from which on they are scored.
#[derive(Debug, PartialEq)]
struct Window {
    tokens: Vec<TokenId>,
    first_scored: usize,
}

fn windows(tokens: &[TokenId], context_tokens: usize, begin: Option<TokenId>) -> Vec<Window> {
    if tokens.len() <= context_tokens {
        return vec![Window { tokens: tokens.to_vec(), first_scored: 1 }];
    }
    let window = |piece: &[TokenId]| {
        let mut tokens = piece.to_vec();
        tokens[0] = begin.unwrap_or(tokens[0]);
        Window { tokens, first_scored: context_tokens / 2 + 1 }
    };
    tokens.chunks_exact(context_tokens).map(window).collect()
}

/// The token that the tokenizer puts in front of every text, if it does.
fn begin_token(tokenizer: &Tokenizer) -> Result<Option<TokenId>, Failure> {
    let (with, without) = (tokenizer.encode("a", true)?, tokenizer.encode("a", false)?);
    Ok(with.first().copied().filter(|first| Some(first) != without.first()))
}

/// Adds the negative log-probability of each scored token, in nats.
fn score(executor: &mut dyn Executor, window: &Window, losses: &mut Vec<f64>) -> Result<(), Failure> {
    let Window { tokens, first_scored } = window;
    let Some(scored) = tokens.get(*first_scored..).filter(|scored| !scored.is_empty()) else { return Ok(()) };
    let mut sequence = Sequence::begin(executor, tokens.len())?;
    // The logits after a token judge the next one.
    let (context, read) = tokens[..tokens.len() - 1].split_at(first_scored - 1);
    sequence.skip(context, STEP_TOKENS)?;
    let mut targets = scored.iter();
    sequence.read(read, STEP_TOKENS, |logits| {
        let target = targets.next().expect("a row for each scored token");
        losses.push(-log_probability(logits, *target));
    })?;
    Ok(())
}

/// In double precision, since thousands of them are added up.
fn log_probability(logits: &[f32], target: TokenId) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    f64::from(logits[target as usize] - most) - sum.ln()
}

/// What the losses come to.
struct Perplexity {
    value: f64,
    /// Of the perplexity, from that of the mean loss.
    deviation: f64,
    loss: f64,
}

impl Perplexity {
    fn of(losses: &[f64]) -> Self {
        let count = losses.len() as f64;
        let loss = losses.iter().sum::<f64>() / count;
        let variance = losses.iter().map(|each| (each - loss).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        let value = loss.exp();
        Self { value, deviation: value * (variance / count).sqrt(), loss }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_is_one_window() {
        let tokens = [5, 6, 7];
        assert_eq!(windows(&tokens, 3, Some(1)), [Window { tokens: tokens.to_vec(), first_scored: 1 }]);
    }

    #[test]
    fn a_long_text_is_cut_and_its_rest_left_out() {
        let tokens: Vec<TokenId> = (10..21).collect();
        let expected = [(vec![1, 11, 12, 13], 3), (vec![1, 15, 16, 17], 3)];
        let expected = expected.map(|(tokens, first_scored)| Window { tokens, first_scored });
        assert_eq!(windows(&tokens, 4, Some(1)), expected);
        assert_eq!(windows(&tokens, 4, None)[1].tokens, [14, 15, 16, 17]);
    }

    #[test]
    fn probabilities_are_those_of_a_softmax() {
        let logits = [1.0_f32, 3.0, 2.0];
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        assert!((log_probability(&logits, 2) - (2_f64.exp() / sum).ln()).abs() < 1e-12);
        assert!((log_probability(&[1000.0, 0.0], 1) + 1000.0).abs() < 1e-9, "nothing overflows");
    }

    #[test]
    fn perplexity_is_the_exponential_of_the_mean_loss() {
        let result = Perplexity::of(&[1.0, 2.0, 3.0]);
        assert!((result.value - 2_f64.exp()).abs() < 1e-12 && result.loss == 2.0);
        assert!((result.deviation - 2_f64.exp() * (1.0_f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
