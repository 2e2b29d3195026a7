//! What the times of requests come to: exact, from all of them, by the definitions of `vllm bench serve`.

use std::time::Duration;

use super::stream::Answered;
use crate::args::{Objective, ObjectiveMetric};

pub(super) const PERCENTILES: [u8; 5] = [50, 75, 90, 95, 99];

/// How some times are spread.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) mean: f64,
    pub(super) median: f64,
    pub(super) std: f64,
    /// As [`PERCENTILES`].
    pub(super) percentiles: [f64; PERCENTILES.len()],
}

impl Spread {
    /// `None` of nothing.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        Some(Self {
            mean,
            median: percentile(&values, 50.0),
            std: variance.sqrt(),
            percentiles: PERCENTILES.map(|percent| percentile(&values, percent.into())),
        })
    }
}

/// Between the two nearest, of sorted values, as NumPy has it.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let place = percent / 100.0 * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// All of a load. Times are in milliseconds.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) duration_s: f64,
    pub(super) completed: usize,
    pub(super) input_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
    /// Requests that kept to all objectives; `None` without any.
    pub(super) good: Option<usize>,
    /// Pieces of text that came in the best second.
    pub(super) peak_pieces_per_s: usize,
    pub(super) peak_requests: usize,
    pub(super) ttft: Option<Spread>,
    pub(super) tpot: Option<Spread>,
    pub(super) itl: Option<Spread>,
    pub(super) e2el: Option<Spread>,
}

impl Figures {
    pub(super) fn of(answered: &[Answered], duration: Duration, objectives: &[Objective]) -> Self {
        let of_each = |ms: fn(&Answered) -> Option<f64>| Spread::of(answered.iter().filter_map(ms).collect());
        let sum = |tokens: fn(&Answered) -> u64| answered.iter().map(tokens).sum();
        let good = answered.iter().filter(|answer| objectives.iter().all(|objective| keeps(answer, objective))).count();
        Self {
            duration_s: duration.as_secs_f64(),
            completed: answered.len(),
            input_tokens: sum(|answer| answer.input_tokens),
            cached_tokens: sum(|answer| answer.cached_tokens),
            output_tokens: sum(Answered::output_tokens),
            good: (!objectives.is_empty()).then_some(good),
            peak_pieces_per_s: peak_pieces_per_s(answered),
            peak_requests: peak_requests(answered),
            ttft: of_each(ttft_ms),
            tpot: of_each(tpot_ms),
            itl: Spread::of(answered.iter().flat_map(Answered::gaps).map(ms).collect()),
            e2el: of_each(|answer| Some(ms(answer.latency()))),
        }
    }

    pub(super) fn per_s(&self, count: impl Into<f64>) -> f64 {
        count.into() / self.duration_s.max(1e-9)
    }
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn ttft_ms(answer: &Answered) -> Option<f64> {
    answer.ttft().map(ms)
}

/// From the first piece to the end, over the tokens after the first.
fn tpot_ms(answer: &Answered) -> Option<f64> {
    let later_tokens = answer.output_tokens().checked_sub(1).filter(|tokens| *tokens > 0)?;
    Some(ms(answer.latency() - answer.ttft()?) / later_tokens as f64)
}

/// What was too short to be measured was no trouble.
fn keeps(answer: &Answered, objective: &Objective) -> bool {
    let measured_ms = match objective.metric {
        ObjectiveMetric::Ttft => ttft_ms(answer),
        ObjectiveMetric::Tpot => tpot_ms(answer),
        ObjectiveMetric::E2el => Some(ms(answer.latency())),
    };
    measured_ms.unwrap_or(0.0) <= objective.limit_ms
}

fn peak_pieces_per_s(answered: &[Answered]) -> usize {
    let Some(first) = answered.iter().map(|answer| answer.begun).min() else { return 0 };
    let mut seconds: Vec<usize> = Vec::new();
    for at in answered.iter().flat_map(|answer| &answer.pieces) {
        let second = (*at - first).as_secs() as usize;
        if seconds.len() <= second {
            seconds.resize(second + 1, 0);
        }
        seconds[second] += 1;
    }
    seconds.into_iter().max().unwrap_or(0)
}

fn peak_requests(answered: &[Answered]) -> usize {
    let begun = answered.iter().map(|answer| (answer.begun, 1));
    let mut changes: Vec<(Duration, i64)> = begun.chain(answered.iter().map(|answer| (answer.ended, -1))).collect();
    // One that ends as another begins was not beside it.
    changes.sort_unstable();
    let running = changes.iter().scan(0, |running, (_, change)| {
        *running += change;
        Some(*running)
    });
    running.max().and_then(|most| usize::try_from(most).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(begun_ms: u64, pieces_ms: &[u64], ended_ms: u64, tokens: u64) -> Answered {
        Answered {
            begun: Duration::from_millis(begun_ms),
            pieces: pieces_ms.iter().map(|at| Duration::from_millis(*at)).collect(),
            ended: Duration::from_millis(ended_ms),
            input_tokens: 10,
            cached_tokens: 4,
            reported_tokens: Some(tokens),
        }
    }

    #[test]
    fn percentiles_lie_between_the_two_nearest() {
        let spread = Spread::of((1..=5).rev().map(f64::from).collect()).expect("there are some");
        assert_eq!((spread.mean, spread.median, spread.std), (3.0, 3.0, 2.0_f64.sqrt()));
        for (found, expected) in spread.percentiles.iter().zip([3.0, 4.0, 4.6, 4.8, 4.96]) {
            assert!((found - expected).abs() < 1e-9, "{:?}", spread.percentiles);
        }
        let one = Spread::of(vec![7.0]).expect("there is one");
        assert_eq!((one.mean, one.std, one.percentiles), (7.0, 0.0, [7.0; 5]));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn figures_are_made_of_what_each_request_took() {
        let answered =
            [answer(0, &[100, 150, 250], 260, 5), answer(200, &[1300], 1300, 1), answer(260, &[1400], 1400, 1)];
        let figures = Figures::of(&answered, Duration::from_secs(2), &[]);
        assert_eq!(
            (figures.completed, figures.input_tokens, figures.cached_tokens, figures.output_tokens),
            (3, 30, 12, 7)
        );
        assert_eq!((figures.per_s(3), figures.good), (1.5, None));
        // The first one ends as the third begins.
        assert_eq!((figures.peak_requests, figures.peak_pieces_per_s), (2, 3));
        assert_eq!(figures.ttft.as_ref().expect("there are some").median, 1100.0);
        // Of the first alone: 160 ms for four tokens.
        assert_eq!(figures.tpot.as_ref().expect("there is one").mean, 40.0);
        let itl = figures.itl.as_ref().expect("there are two");
        assert_eq!((itl.mean, itl.std), (75.0, 25.0));
        let e2el = figures.e2el.as_ref().expect("there are some");
        assert!((e2el.percentiles[4] - (1100.0 + 0.98 * 40.0)).abs() < 1e-9, "{e2el:?}");
    }

    #[test]
    fn good_is_what_keeps_to_every_objective() {
        let answered = [answer(0, &[100, 150], 200, 3), answer(0, &[300], 300, 1), answer(0, &[50, 450], 450, 2)];
        let good = |objectives: &[&str]| {
            let objectives: Vec<Objective> = objectives.iter().map(|text| text.parse().expect("it is one")).collect();
            Figures::of(&answered, Duration::from_secs(1), &objectives).good
        };
        assert_eq!(good(&["ttft:100"]), Some(2));
        assert_eq!(good(&["tpot:50"]), Some(2), "one token has no time between tokens");
        assert_eq!(good(&["ttft:100", "tpot:50"]), Some(1));
        assert_eq!((good(&["e2el:300"]), good(&["e2el:299"])), (Some(2), Some(1)));
    }
}
