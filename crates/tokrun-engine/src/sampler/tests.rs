use super::*;

fn sampler(params: SamplingParams) -> Sampler {
    params.validate().expect("the parameters are valid");
    Sampler::new(params, &[], None)
}

fn sample(params: SamplingParams, logits: &[f32]) -> TokenId {
    sampler(params).sample(logits).expect("the logits are numbers")
}

/// How often each token comes in `draws` draws, one a seed.
fn shares(params: &SamplingParams, logits: &[f32], draws: u64) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for seed in 0..draws {
        counts[sample(SamplingParams { seed, ..params.clone() }, logits) as usize] += 1.0 / draws as f64;
    }
    counts
}

fn ln(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|probability| probability.ln()).collect()
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let infinite = f32::INFINITY;
    for (logits, token) in [(vec![0.0, f32::NAN, 1.0], 1), (vec![0.0, 1.0, infinite], 2), (vec![-infinite; 3], 0)] {
        for params in [SamplingParams::greedy(), SamplingParams::default()] {
            let error = sampler(params).sample(&logits).expect_err("there is no choice to make");
            assert!(
                matches!(error, EngineError::BadLogits { token: found, .. } if found == token),
                "{logits:?}: {error}"
            );
        }
    }
}

#[test]
fn draws_follow_the_distribution_and_the_temperature() {
    let logits = ln(&[0.5, 0.3, 0.15, 0.05]);
    let cases = [(1.0, [0.5, 0.3, 0.15, 0.05]), (0.5, [0.685, 0.247, 0.062, 0.007]), (1e9, [0.25; 4])];
    for (temperature, expected) in cases {
        let shares = shares(&SamplingParams { temperature, ..SamplingParams::default() }, &logits, 20_000);
        for (share, expected) in shares.iter().zip(expected) {
            assert!((share - expected).abs() < 0.012, "at {temperature}: {shares:?}");
        }
    }
}

#[test]
fn a_token_depends_on_the_seed_and_its_place_alone() {
    let logits = vec![0.0; 1000];
    let draw = |seed| {
        let mut sampler = sampler(SamplingParams { seed, ..SamplingParams::default() });
        (0..8).map(|_| sampler.sample(&logits).expect("they are numbers")).collect::<Vec<_>>()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    let places: std::collections::BTreeSet<_> = draw(7).into_iter().collect();
    assert!(places.len() > 4, "each place has a number of its own");
    // Pinned: a text must not change with a release of the generator.
    let numbers = [uniform(0, 0), uniform(0, 1), uniform(1, 0), uniform(u64::MAX, u64::MAX)];
    let millionths = numbers.map(|number| ((u128::from(number) * 1_000_000) >> 64) as u32);
    assert_eq!(millionths, PINNED, "{numbers:?}");
}

/// ChaCha8 with the seed as the first 8 bytes of the key and the place as the stream, in millionths.
const PINNED: [u32; 4] = [836_919, 789_161, 381_489, 971_168];

#[test]
fn bias_and_penalties_follow_their_formulas() {
    let prompt = [0, 1, 1];
    let params = SamplingParams {
        repeat_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        logit_bias: [(3, 10.0), (99, 1.0)].into(),
        ..SamplingParams::greedy()
    };
    let mut sampler = Sampler::new(params, &prompt, None);
    let logits = [4.0, -4.0, 3.0, -5.0];
    let adjusted = |sampler: &Sampler| {
        let mut adjusted = logits.to_vec();
        sampler.adjust(&mut adjusted);
        adjusted
    };
    // The prompt halves or doubles 0 and 1, once each; the bias lifts 3.
    assert_eq!(adjusted(&sampler), [2.0, -8.0, 3.0, 5.0]);
    assert_eq!(sampler.sample(&logits).expect("they are numbers"), 3);
    // 3 has now occurred: (−5 + 10) / 2 − 0.25 − 0.5.
    assert_eq!(adjusted(&sampler), [2.0, -8.0, 3.0, 1.75]);
    assert_eq!(sampler.sample(&logits).expect("they are numbers"), 2);
    assert_eq!(adjusted(&sampler), [2.0, -8.0, 0.75, 1.75]);
    assert_eq!(sampler.sample(&logits).expect("they are numbers"), 0);
    assert_eq!(sampler.sample(&logits).expect("they are numbers"), 3);
    assert_eq!(adjusted(&sampler), [1.25, -8.0, 0.75, 1.5], "frequency counts, presence does not");
}

#[test]
fn the_repeat_penalty_looks_back_as_far_as_it_is_told() {
    let params = SamplingParams { repeat_penalty: 2.0, repeat_last_n: Some(2), ..SamplingParams::greedy() };
    let mut sampler = Sampler::new(params.clone(), &[0, 1, 1], None);
    let tokens = |sampler: &Sampler| sampler.repeated.counts.keys().copied().collect::<Vec<_>>();
    assert_eq!(tokens(&sampler), [1]);
    assert_eq!(sampler.sample(&[1.0, 0.0, 5.0]).expect("they are numbers"), 2);
    assert_eq!(tokens(&sampler), [1, 2]);
    assert_eq!(sampler.sample(&[6.0, 0.0, 5.0]).expect("they are numbers"), 0);
    assert_eq!(tokens(&sampler), [0, 2]);
    let off = Sampler::new(SamplingParams { repeat_last_n: Some(0), ..params }, &[0, 1], None);
    assert_eq!(tokens(&off), [0; 0]);
}

#[test]
fn parameters_outside_their_range_are_named() {
    let plain = SamplingParams::default();
    let nan = f32::NAN;
    let cases = [
        (SamplingParams { temperature: -0.1, ..plain.clone() }, "temperature is -0.1, but must be a number from 0 up"),
        (SamplingParams { temperature: nan, ..plain.clone() }, "temperature is NaN, but must be a number from 0 up"),
        (SamplingParams { top_p: 0.0, ..plain.clone() }, "top_p is 0, but must be above 0 and at most 1"),
        (SamplingParams { top_p: nan, ..plain.clone() }, "top_p is NaN, but must be above 0 and at most 1"),
        (SamplingParams { min_p: 1.5, ..plain.clone() }, "min_p is 1.5, but must be from 0 to 1"),
        (SamplingParams { repeat_penalty: 0.0, ..plain.clone() }, "repeat_penalty is 0, but must be a number above 0"),
        (
            SamplingParams { presence_penalty: 2.5, ..plain.clone() },
            "presence_penalty is 2.5, but must be from -2 to 2",
        ),
        (
            SamplingParams { frequency_penalty: nan, ..plain.clone() },
            "frequency_penalty is NaN, but must be from -2 to 2",
        ),
        (
            SamplingParams { logit_bias: [(1, 101.0)].into(), ..plain },
            "logit_bias is 101, but must be from -100 to 100",
        ),
    ];
    for (params, expected) in cases {
        assert_eq!(params.validate().expect_err("it is out of range").to_string(), expected);
    }
}

#[test]
fn log_probabilities_are_of_the_whole_unmodified_row() {
    let logits = ln(&[0.2, 0.1, 0.4, 0.2, 0.1]);
    let logprob = token_logprob(&logits, 4, 3, 3);
    let close = |a: f32, b: f32| (a - b.ln()).abs() < 1e-6;
    assert!(close(logprob.logprob, 0.2), "{logprob:?}");
    assert_eq!(logprob.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [2, 0, 3]);
    assert!(close(logprob.top[0].1, 0.4) && close(logprob.top[2].1, 0.2), "{logprob:?}");
    assert_eq!(token_logprob(&logits, 4, 0, 0).top, []);
    assert_eq!(token_logprob(&logits, 4, 0, 99).top.len(), 4, "padded rows are never named");
    let shifted: Vec<f32> = logits.iter().map(|logit| logit + 1e4).collect();
    assert!((token_logprob(&shifted, 5, 2, 0).logprob - 0.4_f32.ln()).abs() < 2e-3, "large logits do not overflow");
}

/// Lets only tokens of one remainder modulo 3 come, which changes with each.
#[derive(Debug)]
struct Modulo(u32);

impl Constraint for Modulo {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        let forbidden = |token: usize| token as u32 % 3 != self.0;
        logits.iter_mut().enumerate().filter(|(token, _)| forbidden(*token)).for_each(|(_, l)| *l = f32::NEG_INFINITY);
        Ok(())
    }

    fn advance(&mut self, token: TokenId) -> Result<(), EngineError> {
        assert_eq!(token % 3, self.0, "it hears of what was sampled");
        self.0 = (self.0 + 1) % 3;
        Ok(())
    }
}

#[test]
fn a_constraint_has_the_last_word() {
    let params = SamplingParams {
        temperature: 0.0,
        logit_bias: [(3, 100.0), (4, 50.0)].into(),
        frequency_penalty: 2.0,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(params, &[], Some(Box::new(Modulo(1))));
    let logits = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let tokens: Vec<TokenId> = (0..6).map(|_| sampler.sample(&logits).expect("they are numbers")).collect();
    assert_eq!(tokens, [4, 5, 3, 4, 5, 3]);
    let hot = SamplingParams { temperature: 2.0, ..SamplingParams::default() };
    let mut sampler = Sampler::new(hot, &[], Some(Box::new(Modulo(0))));
    for step in 0..50 {
        assert_eq!(sampler.sample(&logits).expect("they are numbers") % 3, step % 3);
    }
}
