//! The cuts against sorting everything, and draws against sums.

use proptest::prelude::*;

use super::*;

const PLAIN: Draw = Draw { vocab_size: 0, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, number: 0 };
const GREEDY: Draw = Draw { temperature: 0.0, ..PLAIN };

fn choose(draw: Draw, logits: &[f32]) -> u32 {
    Draw { vocab_size: logits.len(), ..draw }.choose(logits).expect("the logits are numbers")
}

/// Tokens that may be drawn.
fn kept(draw: Draw, logits: &[f32]) -> Vec<u32> {
    let best = most_probable(logits).expect("the logits are numbers");
    let distribution = Distribution::new(logits, logits[best as usize], draw.temperature);
    Draw { vocab_size: logits.len(), ..draw }.keep(&distribution).iter().map(|candidate| candidate.token).collect()
}

fn ln(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|probability| probability.ln()).collect()
}

#[test]
fn greedy_takes_the_largest_and_of_equal_ones_the_lowest() {
    assert_eq!(choose(GREEDY, &[0.0, 3.0, 3.0, -1.0]), 1);
    assert_eq!(choose(GREEDY, &[f32::NEG_INFINITY, -5.0]), 1);
}

#[test]
fn each_cut_keeps_what_it_says() {
    // Sorted by probability: 2, 0, 4, then 1 and 3, which are equal.
    let logits = ln(&[0.25, 0.05, 0.5, 0.05, 0.15]);
    let top_k = |top_k| kept(Draw { top_k, ..PLAIN }, &logits);
    assert_eq!((top_k(1), top_k(2), top_k(4)), (vec![2], vec![0, 2], vec![0, 1, 2, 4]));
    assert_eq!((top_k(0), top_k(5), top_k(99)), (vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4]));
    let top_p = |top_p| kept(Draw { top_p, ..PLAIN }, &logits);
    assert_eq!((top_p(1e-9), top_p(0.49), top_p(0.51)), (vec![2], vec![2], vec![0, 2]));
    assert_eq!((top_p(0.74), top_p(0.76), top_p(0.91)), (vec![0, 2], vec![0, 2, 4], vec![0, 1, 2, 4]));
    let min_p = |min_p| kept(Draw { min_p, ..PLAIN }, &logits);
    assert_eq!((min_p(0.6), min_p(0.4), min_p(0.09), min_p(1.0)), (vec![2], vec![0, 2], vec![0, 1, 2, 3, 4], vec![2]));
    // Top-p counts within what top-k left: 2/3, 1/3.
    let both = Draw { top_k: 2, top_p: 0.6, ..PLAIN };
    assert_eq!(kept(both, &logits), [2]);
    let hot = Draw { temperature: 2.0, min_p: 0.5, ..PLAIN };
    assert_eq!(kept(hot, &logits), [0, 2, 4], "min-p judges what the temperature made: 0.15 / 0.5 becomes 0.55");
}

#[test]
fn impossible_tokens_never_come() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0];
    for draw in [PLAIN, Draw { top_k: 3, ..PLAIN }, Draw { top_p: 0.999_999, temperature: 1e6, ..PLAIN }] {
        assert_eq!(kept(draw, &logits), [1, 3], "{draw:?}");
    }
}

/// What is left after top-k, top-p and min-p, by sorting everything.
fn naive(draw: Draw, logits: &[f32]) -> Vec<u32> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |logit: f32| ((f64::from(logit) - largest) / f64::from(draw.temperature)).exp();
    let mut tokens: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, logit)| (id as u32, *logit)).collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if draw.top_k > 0 {
        tokens.truncate(draw.top_k);
    }
    if draw.top_p < 1.0 {
        let total: f64 = tokens.iter().map(|(_, logit)| weight(*logit)).sum();
        let mut before = 0.0;
        tokens.retain(|(_, logit)| {
            let keep = before < f64::from(draw.top_p) * total;
            before += weight(*logit);
            keep
        });
    }
    tokens.retain(|(_, logit)| weight(*logit) >= f64::from(draw.min_p));
    let mut ids: Vec<u32> = tokens.into_iter().map(|(token, _)| token).collect();
    ids.sort_unstable();
    ids
}

proptest! {
    #[test]
    fn the_largest_is_found_wherever_it_stands(
        logits in prop::collection::vec((-20i32..20).prop_map(|half| half as f32 / 2.0), 1..1500),
        bad in prop::option::of((0usize..1500, prop_oneof![Just(f32::NAN), Just(f32::INFINITY)])),
    ) {
        let mut logits = logits;
        let (mut best, mut bad_at) = (0, None);
        for token in 0..logits.len() {
            best = if logits[token] > logits[best] { token } else { best };
        }
        if let Some((place, value)) = bad.filter(|(place, _)| *place < logits.len()) {
            logits[place] = value;
            bad_at = Some(place as u32);
        }
        match most_probable(&logits) {
            Ok(token) => prop_assert_eq!((token, None), (best as u32, bad_at)),
            Err(BadLogit { token, .. }) => prop_assert_eq!(Some(token), bad_at),
        }
    }

    #[test]
    fn partial_selection_keeps_what_sorting_everything_keeps(
        // Halves make ties; the spread goes well past the first heads.
        logits in prop::collection::vec((-120i32..40).prop_map(|half| half as f32 / 2.0), 1..200),
        temperature in 0.05f32..20.0,
        top_k in prop_oneof![Just(0usize), 1usize..250],
        // Away from sums that rounding could push over the edge either way.
        top_p in prop_oneof![Just(1.0f32), 0.0137f32..0.9871],
        min_p in prop_oneof![Just(0.0f32), 0.0011f32..0.9],
    ) {
        let draw = Draw { temperature, top_k, top_p, min_p, ..PLAIN };
        prop_assert_eq!(kept(draw, &logits), naive(draw, &logits));
    }

    #[test]
    fn a_draw_finds_its_place_in_the_line(
        logits in prop::collection::vec(-6.0f32..6.0, 1..1500),
        number in any::<u64>(),
    ) {
        let token = choose(Draw { number, ..PLAIN }, &logits) as usize;
        let number = number as f64 / 2_f64.powi(64);
        let weights: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
        let total: f64 = weights.iter().sum();
        let before = weights[..token].iter().sum::<f64>() / total;
        let after = before + weights[token] / total;
        prop_assert!(before - 1e-5 <= number && number <= after + 1e-5, "{} is not in {}..{}", number, before, after);
    }

    #[test]
    fn only_what_was_kept_is_drawn(
        logits in prop::collection::vec(-8.0f32..8.0, 1..60),
        top_k in 0usize..20,
        top_p in 0.05f32..=1.0,
        number in any::<u64>(),
    ) {
        let draw = Draw { top_k, top_p, number, ..PLAIN };
        prop_assert!(kept(draw, &logits).contains(&choose(draw, &logits)));
    }
}
