//! One test: the requests it makes, and what of them is timed.
//!
//! Everything that serving a request takes is inside: scheduling, sampling, detokenising and, with the ledger on, durable
//! debits. Outside are tokenising (prompts are made of tokens), admission and settlement.
//!
//! - Prefill (`pp512`): from the first step that works on any of the requests until the last one's first token is
//!   delivered.
//! - Decode (`tg128`): from the moment all requests have their first token until the last token is delivered; what was
//!   delivered before does not count.
//! - Both (`pp512+tg128`): from the first step until the last token is delivered.

use std::time::{Duration, Instant};

use tokrun_engine::{SamplingParams, TokenId};
use tokrun_kernels::energy::EnergyMeter;
use tokrun_ledger::Price;
use tokrun_model::ExecutorInfo;
use tokrun_runtime::{Event, GenerateRequest, Generation, Outcome, Payer, Prompt, Runtime, RuntimeError};

use super::Scratch;
use crate::args::BenchArgs;
use crate::failure::{Failure, Status};
use crate::interrupt;

/// The counters of cards tick ten times a second.
const POWER_TIME_MIN: Duration = Duration::from_secs(1);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    /// Tokens of the prompt that are timed.
    pub(super) prompt: usize,
    /// Tokens that are decoded.
    pub(super) gen_tokens: usize,
    /// Tokens before all that.
    pub(super) depth: usize,
    /// Requests at once.
    pub(super) concurrency: usize,
}

/// What repetitions of a test came to.
pub(super) struct Measured {
    pub(super) test: Test,
    pub(super) samples: Vec<Sample>,
    /// Whether the device tells what it draws.
    pub(super) has_power: bool,
    /// What it drew on average, over all repetitions; where they took long enough.
    pub(super) power_w: Option<f64>,
}

/// One repetition.
pub(super) struct Sample {
    /// What is timed.
    pub(super) time: Duration,
    /// Tokens in that time, over all requests.
    pub(super) tokens: usize,
    /// From asking to the first delivered token, one a request, µs.
    pub(super) ttft_us: Vec<u64>,
    /// Between tokens, over all requests, µs.
    pub(super) itl_us: Vec<u64>,
    /// Of each request, from its first token to its last.
    pub(super) tokens_per_s: Vec<f64>,
}

impl Test {
    /// Every combination that was asked for, as llama-bench orders them.
    pub(super) fn all(args: &BenchArgs) -> Vec<Self> {
        let kinds = args.n_prompt.iter().map(|prompt| (*prompt, 0));
        let kinds = kinds.chain(args.n_gen.iter().map(|gen_tokens| (0, *gen_tokens))).chain(args.prompt_gen.clone());
        let mut tests = Vec::new();
        for (prompt, gen_tokens) in kinds.filter(|(prompt, gen_tokens)| prompt + gen_tokens > 0) {
            for &depth in &args.n_depth {
                for &concurrency in &args.concurrency {
                    tests.push(Self { prompt, gen_tokens, depth, concurrency });
                }
            }
        }
        tests
    }

    /// `pp512 x16 @ d1024`.
    pub(super) fn name(&self) -> String {
        let mut name = match (self.prompt, self.gen_tokens) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, gen_tokens) => format!("tg{gen_tokens}"),
            (prompt, gen_tokens) => format!("pp{prompt}+tg{gen_tokens}"),
        };
        if self.concurrency > 1 {
            name.push_str(&format!(" x{}", self.concurrency));
        }
        if self.depth > 0 {
            name.push_str(&format!(" @ d{}", self.depth));
        }
        name
    }

    /// The longest sequence, in tokens.
    pub(super) fn context_tokens(&self) -> usize {
        // One more is what the last token needs to be decoded after, one what a prompt leaves for its answer.
        [self.depth, self.prompt.max(1), self.gen_tokens, 2].into_iter().fold(0, usize::saturating_add)
    }

    /// Whether the model can run it.
    pub(super) fn check(&self, executor: &ExecutorInfo) -> Result<(), Failure> {
        let (needed, has) = (self.context_tokens(), executor.context_tokens);
        let refused = |what: String, hint: &str| Err(Failure::new(Status::Usage, "usage", what).hint(hint));
        if needed > has {
            let what = format!("{} needs {needed} tokens, and the context has {has}", self.name());
            return refused(what, "choose a smaller -p, -n or -d");
        }
        if self.concurrency > executor.sequences_max {
            let what = format!("{} runs {} requests at once", executor.backend, executor.sequences_max);
            return refused(what, "choose a smaller --concurrency");
        }
        if self.prompt > 0 && self.depth > 0 {
            let Some(paging) = &executor.paging else {
                let what = format!("{} needs a cache of prefixes, and {} has none", self.name(), executor.backend);
                return refused(what, "leave out -d or -p, or use a model that the native engine knows");
            };
            if !self.depth.is_multiple_of(paging.block_tokens) {
                let what = format!("{}: prefixes are cached in blocks of {} tokens", self.name(), paging.block_tokens);
                return refused(what, "choose a -d that is a multiple of it");
            }
        }
        Ok(())
    }

    pub(super) fn measure(
        &self,
        runtime: &Runtime,
        vocab_size: usize,
        repetitions: u16,
        mut energy: Option<&mut EnergyMeter>,
    ) -> Result<Measured, Failure> {
        // The first one warms caches, that of prefixes included, and is not counted.
        self.sample(runtime, vocab_size, 0)?;
        let mut energy_uj = || energy.as_mut().map(|meter| meter.total_uj());
        let (begin, before_uj) = (Instant::now(), energy_uj());
        let samples = (1..=repetitions).map(|repetition| self.sample(runtime, vocab_size, repetition));
        let samples = samples.collect::<Result<Vec<_>, Failure>>()?;
        let (time, after_uj) = (begin.elapsed(), energy_uj());
        let used_uj = after_uj.zip(before_uj).map(|(after, before)| after - before);
        let power_w = used_uj.filter(|_| time >= POWER_TIME_MIN).map(|uj| uj as f64 / time.as_micros() as f64);
        Ok(Measured { test: *self, samples, has_power: used_uj.is_some(), power_w })
    }

    fn sample(&self, runtime: &Runtime, vocab_size: usize, repetition: u16) -> Result<Sample, Failure> {
        let requests = (0..self.concurrency).map(|number| self.request(vocab_size, repetition, number)).collect();
        let served = serve(runtime, requests)?;
        if repetition > 0 && self.prompt > 0 {
            let cached = served.iter().map(|request| request.outcome.usage.cached_tokens).min().unwrap_or(0);
            if cached != self.depth as u64 {
                let what = format!("{}: {cached} of {} tokens were in the cache", self.name(), self.depth);
                return Err(Failure::new(Status::Failed, "bench", what)
                    .hint("choose a larger --kv-cache-bytes, or a smaller -d or --concurrency"));
            }
        }
        Ok(self.time(&served))
    }

    fn time(&self, served: &[Served]) -> Sample {
        let first_step = served.iter().map(Served::first_step).min().unwrap_or_default();
        let all_started = served.iter().map(Served::first_token).max().unwrap_or_default();
        let all_answered = served.iter().map(Served::first_delivery).max().unwrap_or_default();
        let last_delivery = served.iter().map(Served::last_delivery).max().unwrap_or_default();
        let (from, to, tokens) = match (self.prompt, self.gen_tokens) {
            (prompt, 0) => (first_step, all_answered, prompt * served.len()),
            (0, _) => {
                (all_started, last_delivery, served.iter().map(|request| request.tokens_after(all_started)).sum())
            }
            (prompt, gen_tokens) => (first_step, last_delivery, (prompt + gen_tokens) * served.len()),
        };
        Sample {
            time: to.saturating_sub(from),
            tokens,
            ttft_us: served.iter().filter_map(|request| request.outcome.timing.ttft_us).collect(),
            itl_us: served.iter().flat_map(|request| request.outcome.timing.itl_us.iter().copied()).collect(),
            tokens_per_s: served.iter().filter_map(|request| request.outcome.timing.decode_tokens_per_s()).collect(),
        }
    }

    /// What comes before is the same in each repetition, so that it can be in the cache; what is timed never is.
    fn request(&self, vocab_size: usize, repetition: u16, number: usize) -> GenerateRequest {
        let mut prompt = tokens(self.depth, vocab_size, number as u64);
        let seed = ((u64::from(repetition) + 1) << 32) | number as u64;
        prompt.extend(tokens(self.prompt.max(1), vocab_size, seed));
        GenerateRequest {
            request_id: None,
            prompt: Prompt::Tokens(prompt),
            max_tokens: Some(self.gen_tokens + 1),
            sampling: SamplingParams::greedy(),
            stop: Vec::new(),
            grammar: None,
            ignore_eos: true,
            splits_reasoning: false,
            logprobs: None,
            priority: 0,
            deadline: None,
            payer: Payer { wallet: Scratch::WALLET.to_owned(), ..Payer::default() },
            price: Price::default(),
        }
    }
}

/// Any tokens will do; those of one seed are always the same.
pub(super) fn tokens(count: usize, vocab_size: usize, seed: u64) -> Vec<TokenId> {
    let mut state = seed;
    let mut next = || {
        // SplitMix64: every bit of the seed reaches every bit of what comes out.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    (0..count).map(|_| (next() % vocab_size as u64) as TokenId).collect()
}

/// A request that was served, and when it was made: durations count from the first one of the repetition.
struct Served {
    begun: Duration,
    outcome: Outcome,
}

impl Served {
    fn first_step(&self) -> Duration {
        let timing = &self.outcome.timing;
        self.begun + Duration::from_micros(timing.admit_us + timing.queue_us)
    }

    /// When the engine had it.
    fn first_token(&self) -> Duration {
        self.first_step() + Duration::from_micros(self.outcome.timing.prefill_us)
    }

    fn first_delivery(&self) -> Duration {
        self.begun + Duration::from_micros(self.outcome.timing.ttft_us.unwrap_or(0))
    }

    fn last_delivery(&self) -> Duration {
        self.first_delivery() + Duration::from_micros(self.outcome.timing.decode_us)
    }

    /// Tokens but the first that were delivered after that moment.
    fn tokens_after(&self, moment: Duration) -> usize {
        let mut at = self.first_delivery();
        let after = |us: &&u64| {
            at += Duration::from_micros(**us);
            at > moment
        };
        self.outcome.timing.itl_us.iter().filter(after).count()
    }
}

/// Serves requests at once, each followed by a thread of its own.
fn serve(runtime: &Runtime, requests: Vec<GenerateRequest>) -> Result<Vec<Served>, Failure> {
    let begin = Instant::now();
    let served: Vec<Result<Served, RuntimeError>> = std::thread::scope(|scope| {
        let followers: Vec<_> = requests
            .into_iter()
            .map(|request| {
                scope.spawn(move || {
                    let begun = begin.elapsed();
                    let outcome = follow(runtime.generate(request)?)?;
                    Ok(Served { begun, outcome })
                })
            })
            .collect();
        followers.into_iter().map(|follower| follower.join().unwrap_or(Err(RuntimeError::Stopped))).collect()
    });
    if interrupt::done() {
        return Err(Failure::interrupted());
    }
    served.into_iter().map(|served| served.map_err(Failure::from)).collect()
}

fn follow(mut generation: Generation) -> Result<Outcome, RuntimeError> {
    interrupt::cancels(generation.canceller());
    while let Some(event) = generation.next_event() {
        if let Event::Finished(mut outcome) = event {
            return match outcome.error.take() {
                Some(error) => Err(error),
                None => Ok(*outcome),
            };
        }
    }
    Err(RuntimeError::Stopped)
}

#[cfg(test)]
mod tests {
    use tokrun_runtime::Timing;

    use super::*;

    fn served(begun_us: u64, timing: Timing) -> Served {
        let outcome = Outcome {
            request_id: String::new(),
            text: String::new(),
            finish_reason: tokrun_ledger::FinishReason::Length,
            error: None,
            limited: None,
            reasoning: String::new(),
            stopped_by: None,
            prompt_token_ids: Vec::new(),
            token_ids: Vec::new(),
            logprobs: None,
            usage: tokrun_runtime::Usage::default(),
            energy_uj: None,
            timing,
            allowance: None,
        };
        Served { begun: Duration::from_micros(begun_us), outcome }
    }

    /// Two requests, the second 100 µs after the first: 10 until the engine has them, 20 of prefill, 5 until delivery.
    fn pair() -> Vec<Served> {
        let timing = Timing {
            admit_us: 4,
            queue_us: 6,
            prefill_us: 20,
            ttft_us: Some(35),
            itl_us: vec![60, 60, 60],
            decode_us: 180,
            ..Timing::default()
        };
        vec![served(0, timing.clone()), served(100, timing)]
    }

    #[test]
    fn what_is_timed_lies_between_steps_and_deliveries() {
        let test = |prompt, gen_tokens| Test { prompt, gen_tokens, depth: 0, concurrency: 2 };
        let prefill = test(8, 0).time(&pair());
        assert_eq!((prefill.time, prefill.tokens), (Duration::from_micros(135 - 10), 16));
        // The first request's tokens come at 95, 155 and 215, the second's at 195, 255 and 315; both have their first
        // at 130.
        let decode = test(0, 3).time(&pair());
        assert_eq!((decode.time, decode.tokens), (Duration::from_micros(315 - 130), 5));
        let both = test(8, 3).time(&pair());
        assert_eq!((both.time, both.tokens), (Duration::from_micros(315 - 10), 22));
        assert_eq!(both.ttft_us, [35, 35]);
    }

    #[test]
    fn tests_have_names() {
        let name = |prompt, gen_tokens, depth, concurrency| Test { prompt, gen_tokens, depth, concurrency }.name();
        assert_eq!(name(512, 0, 0, 1), "pp512");
        assert_eq!(name(0, 128, 1024, 1), "tg128 @ d1024");
        assert_eq!(name(100, 128, 16, 4), "pp100+tg128 x4 @ d16");
    }

    #[test]
    fn tokens_differ_by_seed_alone() {
        assert_eq!(tokens(5, 100, 1), tokens(5, 100, 1));
        assert_ne!(tokens(5, 100, 1), tokens(5, 100, 2));
        assert!(tokens(1000, 7, 3).iter().all(|token| *token < 7));
    }
}
