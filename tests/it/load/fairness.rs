//! Whether wallets that had work waiting were served alike, as far as it shows from outside.
//!
//! The log says when a request waited for its first step, the clients when its tokens came. What is computed comes to a
//! client a little later, so a gap that is seen may be wider than the engine's by what was on its way at either end of the
//! time that is looked at. The scheduler's own tests hold the bound itself, step by step.

use std::collections::HashMap;

use super::client::Seen;
use super::{CLIENTS, RUNNING_MAX, Row, STEP_TOKENS, WINDOW};

/// The log tells when a request was admitted, and the engine has it a moment later.
const ADMISSION_US: i64 = 20_000;

/// From when to when.
type Span = (i64, i64);

pub(super) fn everybody_was_served_alike(seen: &[Seen], rows: &HashMap<String, Row>) {
    let largest_prompt = rows.values().map(|row| row.prompt_tokens).max().expect("there are some");
    let bound = 2 * (largest_prompt + STEP_TOKENS);
    let unseen = STEP_TOKENS + RUNNING_MAX as u64 * WINDOW;
    let wallets = 0..CLIENTS.len();
    let waiting: Vec<Vec<Span>> = wallets.clone().map(|wallet| waiting(wallet, rows)).collect();
    let served: Vec<Vec<(i64, i64)>> = wallets.clone().map(|wallet| served(wallet, seen, rows)).collect();
    let (mut widest, mut contested_us, mut tokens) = (0, 0, 0);
    for one in wallets {
        for other in 0..one {
            for span in both(&waiting[one], &waiting[other]) {
                let (gap, served) = gap(span, &served[one], &served[other]);
                widest = widest.max(gap);
                tokens += served;
                contested_us += span.1 - span.0;
            }
        }
    }
    let contested_s = contested_us as f64 / 1e6;
    eprintln!(
        "{widest} tokens at most between two wallets, {bound} allowed, in {contested_s:.1} s and {tokens} tokens"
    );
    assert!(contested_us > 0, "no two wallets ever waited at once");
    assert!(widest <= bound + unseen, "{widest} tokens between two wallets that waited, {bound} are allowed");
}

/// When a wallet had a request that waited, as spans that do not touch.
fn waiting(wallet: usize, rows: &HashMap<String, Row>) -> Vec<Span> {
    let of_wallet = rows.values().filter(|row| row.wallet == wallet);
    let spans = of_wallet.map(|row| (row.started_us + ADMISSION_US, row.started_us + row.queue_us));
    let mut spans: Vec<Span> = spans.filter(|(from, to)| from < to).collect();
    spans.sort_unstable();
    let mut apart: Vec<Span> = Vec::new();
    for (from, to) in spans {
        match apart.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => apart.push((from, to)),
        }
    }
    apart
}

/// When tokens were seen to have been served to a wallet, and how many: the prompt with the first of the answer.
fn served(wallet: usize, seen: &[Seen], rows: &HashMap<String, Row>) -> Vec<(i64, i64)> {
    let mut served = Vec::new();
    for seen in seen.iter().filter(|seen| seen.wallet == wallet) {
        let Some(row) = seen.id.as_ref().and_then(|id| rows.get(id)) else { continue };
        let mut before = 0;
        for (index, &(at_us, tokens)) in seen.pieces.iter().enumerate() {
            let prompt = if index == 0 { row.prompt_tokens - row.cached_tokens } else { 0 };
            served.push((at_us, (prompt + tokens - before) as i64));
            before = tokens;
        }
    }
    served.sort_unstable();
    served
}

fn both(one: &[Span], other: &[Span]) -> Vec<Span> {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| (one.0.max(other.0), one.1.min(other.1))));
    pairs.filter(|(from, to)| from < to).collect()
}

/// The widest that the two came apart since the beginning of the span, and what they were served in it together.
fn gap((from, to): Span, one: &[(i64, i64)], other: &[(i64, i64)]) -> (u64, i64) {
    let one = one.iter().map(|(at, tokens)| (*at, *tokens));
    let other = other.iter().map(|(at, tokens)| (*at, -tokens));
    let mut changes: Vec<(i64, i64)> = one.chain(other).filter(|(at, _)| (from..=to).contains(at)).collect();
    changes.sort_unstable();
    let (mut ahead, mut widest, mut served) = (0_i64, 0, 0);
    for (_, tokens) in changes {
        ahead += tokens;
        served += tokens.abs();
        widest = widest.max(ahead.unsigned_abs());
    }
    (widest, served)
}
