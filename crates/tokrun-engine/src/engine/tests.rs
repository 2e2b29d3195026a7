//! With a small deterministic executor in place of a model.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use tokrun_model::{
    BlockId, Drawing, Drawn, Extend, Logits, ModelError, Outcome, Paging, Place, SequenceHandle, TokenId, Wanted,
};

use super::*;
use crate::request::{Finish, SequenceStep, TenantId};
use crate::sampler::SamplingParams;

mod energy;
mod serving;

const VOCAB_SIZE: usize = 50;
/// Rows of logits beyond the tokenizer's vocabulary, which would win every choice.
const PADDING: usize = 3;
const END: TokenId = 49;
/// After that a test has failed; nothing waits for longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Its logits depend on every token of the sequence, so that a lost, doubled or misplaced one changes the text.
struct Fake {
    info: ExecutorInfo,
    sequences: BTreeMap<SequenceHandle, Vec<TokenId>>,
    /// What a paged one has written, by block and place in it.
    cache: BTreeMap<(BlockId, usize), TokenId>,
    created: u64,
    gate: Arc<Gate>,
    /// What it is to do when it meets this token as the last one of a sequence.
    traps: BTreeMap<TokenId, Trap>,
    alive: Arc<Mutex<i64>>,
    /// What its device has used; 70 µJ go into each token that it computes.
    energy_uj: Option<Arc<AtomicU64>>,
    /// Whether it draws tokens by itself, and how far ahead.
    draws_ahead: Option<usize>,
    /// What came of the steps under way: tokens and logits.
    under_way: VecDeque<(Drawn, Vec<f32>)>,
}

#[derive(Clone, Copy)]
enum Trap {
    Fail,
    Panic,
    Nan,
}

/// Lets a test hold the executor still at the beginning of a step.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    held: bool,
}

impl Gate {
    fn close(&self) {
        self.state.lock().expect("nobody panics with it").closed = true;
    }

    fn open(&self) {
        self.state.lock().expect("nobody panics with it").closed = false;
        self.changed.notify_all();
    }

    /// Returns once the executor stands before the closed gate.
    fn await_held(&self) {
        let state = self.state.lock().expect("nobody panics with it");
        drop(self.changed.wait_timeout_while(state, PATIENCE, |state| !state.held).expect("nobody panics with it"));
    }

    fn pass(&self) {
        let mut state = self.state.lock().expect("nobody panics with it");
        state.held = state.closed;
        self.changed.notify_all();
        drop(self.changed.wait_timeout_while(state, PATIENCE, |state| state.closed).expect("nobody panics with it"));
    }
}

impl Fake {
    fn new(context_tokens: usize, sequences_max: usize) -> Self {
        let vocab_size = VOCAB_SIZE + PADDING;
        let info = ExecutorInfo {
            backend: "fake",
            device: "none".to_owned(),
            vocab_size,
            context_tokens,
            sequences_max,
            paging: None,
        };
        Self {
            info,
            draws_ahead: None,
            under_way: VecDeque::new(),
            sequences: BTreeMap::new(),
            cache: BTreeMap::new(),
            created: 0,
            gate: Arc::default(),
            traps: BTreeMap::new(),
            alive: Arc::default(),
            energy_uj: None,
        }
    }

    /// One that knows of a sequence only what lies in the blocks it is told of.
    fn paged(self, block_tokens: usize, blocks: usize) -> Self {
        let paging = Some(Paging { block_tokens, blocks, block_bytes: 1 });
        Self { info: ExecutorInfo { paging, ..self.info }, ..self }
    }

    /// One that draws tokens, while so many steps more are planned.
    fn drawing(self, ahead: usize) -> Self {
        Self { draws_ahead: Some(ahead), ..self }
    }

    /// Appends the tokens to their sequence; all of it.
    fn append(&mut self, extend: &Extend<'_>) -> Vec<TokenId> {
        let row = self.sequences.get_mut(&extend.sequence).expect("the engine extends what it created");
        let Some(Paging { block_tokens, .. }) = self.info.paging else {
            row.extend_from_slice(extend.tokens);
            return row.clone();
        };
        let Place { start, blocks } = extend.place;
        let at = |position: usize| (blocks[position / block_tokens], position % block_tokens);
        self.cache.extend(extend.tokens.iter().enumerate().map(|(index, token)| (at(start + index), *token)));
        (0..start + extend.tokens.len()).map(|position| self.cache[&at(position)]).collect()
    }

    fn logits(tokens: &[TokenId]) -> Vec<f32> {
        let mut state: u64 = 0xcbf2_9ce4_8422_2325;
        for token in tokens {
            state = (state ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        }
        let logit = |token: u64| {
            let mixed = (state ^ token.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f32 / (1 << 22) as f32
        };
        let mut logits: Vec<f32> = (0..VOCAB_SIZE as u64).map(logit).collect();
        // It likes to repeat itself, as texts do.
        if let [.., before, _, _] = tokens
            && !state.is_multiple_of(7)
        {
            logits[*before as usize] += 3.0;
        }
        logits.extend([100.0; PADDING]);
        logits
    }
}

impl Executor for Fake {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn create(&mut self) -> Result<SequenceHandle, ModelError> {
        if self.sequences.len() >= self.info.sequences_max {
            return Err(ModelError::SequencesFull { sequences_max: self.info.sequences_max });
        }
        self.created += 1;
        let handle = SequenceHandle::new(self.created);
        self.sequences.insert(handle, Vec::new());
        *self.alive.lock().expect("nobody panics with it") += 1;
        Ok(handle)
    }

    fn extend(&mut self, batch: &[Extend<'_>]) -> Result<Logits<'_>, ModelError> {
        self.gate.pass();
        let mut values = Vec::new();
        for extend in batch {
            if let Some(energy_uj) = &self.energy_uj {
                energy_uj.fetch_add(70 * extend.tokens.len() as u64, Relaxed);
            }
            let row = self.append(extend);
            assert!(row.len() <= self.info.context_tokens && !extend.tokens.is_empty());
            let wanted = match extend.wanted {
                Wanted::Nothing => row.len() + 1..=row.len(),
                Wanted::Last => row.len()..=row.len(),
                Wanted::All => row.len() - extend.tokens.len() + 1..=row.len(),
            };
            for end in wanted {
                let mut logits = Self::logits(&row[..end]);
                match self.traps.get(&row[end - 1]) {
                    Some(Trap::Fail) => return Err(ModelError::InvalidBatch { reason: "trapped".to_owned() }),
                    Some(Trap::Panic) => panic!("trapped"),
                    Some(Trap::Nan) => logits[5] = f32::NAN,
                    None => {}
                }
                values.extend(logits);
            }
        }
        Ok(Logits::new(values, self.info.vocab_size))
    }

    fn draws_ahead(&self) -> Option<usize> {
        self.draws_ahead
    }

    fn submit(&mut self, batch: &[Drawing<'_>]) -> Result<(), ModelError> {
        let ahead = self.draws_ahead.expect("it draws");
        assert!(self.under_way.len() <= ahead, "{ahead} steps may be under way beside this one");
        assert!(self.under_way.iter().all(|(_, given)| given.is_empty()), "logits are collected first");
        let before = self.under_way.back().map(|(drawn, _)| drawn.clone()).unwrap_or_default();
        let (mut drawn, mut given) = (Drawn::new(), Vec::new());
        for part in batch {
            let token = part.follows.map(|index| before[index].unwrap_or(0));
            let tokens = token.map_or(part.extend.tokens.to_vec(), |token| vec![token]);
            let extend = Extend { tokens: &tokens, ..part.extend };
            assert_eq!(extend.rows(), part.draws.len() + part.rows_given());
            let logits = self.extend(&[extend])?;
            drawn.extend(part.draws.iter().enumerate().map(|(row, draw)| draw.choose(logits.row(row))));
            given.extend((0..part.rows_given()).flat_map(|row| logits.row(row)));
        }
        self.under_way.push_back((drawn, given));
        Ok(())
    }

    fn collect(&mut self) -> Result<Outcome<'_>, ModelError> {
        let (drawn, given) = self.under_way.pop_front().expect("it was submitted");
        Ok(Outcome { drawn, logits: Logits::new(given, self.info.vocab_size) })
    }

    fn drop_sequence(&mut self, sequence: SequenceHandle) {
        if self.sequences.remove(&sequence).is_some() {
            *self.alive.lock().expect("nobody panics with it") -= 1;
        }
    }

    fn energy_uj(&mut self) -> Option<u64> {
        self.energy_uj.as_ref().map(|energy_uj| energy_uj.load(Relaxed))
    }
}

/// An engine with its reports, of which the test is the reader.
struct Bench {
    engine: Engine,
    reports: Receiver<StepReport>,
}

impl Bench {
    fn new(fake: Fake, options: EngineOptions) -> Self {
        let (sender, reports): (Sender<StepReport>, _) = channel();
        let report = move |step| sender.send(step).expect("the test listens");
        let engine = Engine::spawn(Box::new(fake), VOCAB_SIZE, options, report).expect("it starts");
        Self { engine, reports }
    }

    fn next(&self) -> Vec<SequenceStep> {
        self.reports.recv_timeout(PATIENCE).expect("a report").sequences
    }

    /// Reads until `count` requests have ended, acknowledging all; each one's tokens and end.
    fn read(&self, count: usize) -> BTreeMap<u64, (Vec<TokenId>, Finish)> {
        let mut tokens: BTreeMap<u64, Vec<TokenId>> = BTreeMap::new();
        let mut ended = BTreeMap::new();
        while ended.len() < count {
            for step in self.next() {
                let id = step.request_id.0;
                assert!(!ended.contains_key(&id), "nothing comes after the end");
                let row = tokens.entry(id).or_default();
                assert_eq!(
                    step.first.is_some(),
                    step.token.is_some() && row.is_empty(),
                    "first comes with the first token"
                );
                row.extend(step.token.map(|token| token.id));
                self.engine.acknowledge(step.request_id, row.len() as u64);
                if let Some(finish) = step.finish {
                    ended.insert(id, (row.clone(), finish));
                }
            }
        }
        ended
    }
}

fn request(id: u64, prompt: &[TokenId], max_new_tokens: usize) -> Submission {
    Submission {
        request_id: RequestId(id),
        prompt: prompt.to_vec(),
        max_new_tokens,
        end_tokens: vec![END],
        sampling: SamplingParams { seed: id, ..SamplingParams::default() },
        logprobs: None,
        tenant: TenantId::default(),
        priority: 0,
        cache_salt: 0,
        grammar: None,
    }
}

/// What the fake says to a prompt, greedily, without an engine.
fn greedy(prompt: &[TokenId], max_new_tokens: usize) -> Vec<TokenId> {
    let mut tokens = prompt.to_vec();
    for _ in 0..max_new_tokens {
        let logits = &Fake::logits(&tokens)[..VOCAB_SIZE];
        let best = (0..VOCAB_SIZE).fold(0, |best, token| if logits[token] > logits[best] { token } else { best });
        tokens.push(best as TokenId);
        if best as TokenId == END {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

#[test]
fn greedy_text_is_the_models_own() {
    let bench = Bench::new(Fake::new(64, 4), EngineOptions { step_tokens_max: 3, ..EngineOptions::default() });
    for id in 0..4 {
        let mut request = request(id, &[id as TokenId, 2, 3, 4, 5], 20);
        request.sampling = SamplingParams::greedy();
        bench.engine.submit(request).expect("there is room");
    }
    for (id, (tokens, finish)) in bench.read(4) {
        assert_eq!(tokens, greedy(&[id as TokenId, 2, 3, 4, 5], 20));
        assert_eq!(finish, if tokens.last() == Some(&END) { Finish::Stop } else { Finish::Length });
    }
}

#[test]
fn text_depends_on_the_request_alone() {
    let run = |sequences_max, step_tokens_max, window_tokens, ids: &[u64]| {
        let options = EngineOptions {
            window_tokens,
            waiting_max: 64,
            step_tokens_max,
            sequences_max: Some(sequences_max),
            ..EngineOptions::default()
        };
        let bench = Bench::new(Fake::new(100, 16), options);
        for id in ids {
            let mut request = request(*id, &vec![*id as TokenId; 1 + *id as usize * 3 % 17], 5 + *id as usize % 30);
            request.sampling.repeat_penalty = 1.0 + (id % 3) as f32 / 4.0;
            request.sampling.top_p = 1.0 - (id % 2) as f32 / 8.0;
            bench.engine.submit(request).expect("there is room");
        }
        bench.read(ids.len())
    };
    let all: Vec<u64> = (0..12).collect();
    let reversed: Vec<u64> = all.iter().rev().copied().collect();
    let alone: BTreeMap<_, _> = all.iter().flat_map(|id| run(1, 512, 32, &[*id])).collect();
    assert!(alone.values().any(|(_, finish)| *finish == Finish::Stop) && alone.len() == 12);
    for (sequences_max, step_tokens_max, window_tokens) in [(1, 1, 1), (3, 2, 2), (12, 7, 5), (16, 512, 32)] {
        assert_eq!(run(sequences_max, step_tokens_max, window_tokens, &all), alone);
        assert_eq!(run(sequences_max, step_tokens_max, window_tokens, &reversed), alone);
    }
}

#[test]
fn a_request_never_runs_ahead_of_its_reader_by_more_than_the_window() {
    let options = EngineOptions { window_tokens: 4, ..EngineOptions::default() };
    let bench = Bench::new(Fake::new(100, 2), options);
    let mut request = request(1, &[1], 10);
    request.end_tokens.clear();
    bench.engine.submit(request).expect("there is room");
    let mut tokens = 0;
    for _ in 0..4 {
        tokens += bench.next().len();
    }
    assert!(bench.reports.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
    bench.engine.acknowledge(RequestId(1), 3);
    for _ in 0..3 {
        tokens += bench.next().len();
    }
    assert!(bench.reports.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
    assert_eq!(tokens, 7);
    bench.engine.acknowledge(RequestId(1), 7);
    assert_eq!(bench.next()[0].finish, None);
    assert_eq!(bench.next()[0].finish, None);
    assert_eq!(bench.next()[0].finish, Some(Finish::Length));
}

#[test]
fn a_cancelled_request_is_reported_once_more() {
    let fake = Fake::new(100, 1);
    let alive = Arc::clone(&fake.alive);
    let bench = Bench::new(fake, EngineOptions { window_tokens: 2, ..EngineOptions::default() });
    bench.engine.submit(request(1, &[1], 50)).expect("there is room");
    bench.engine.submit(request(2, &[2], 50)).expect("it waits");
    bench.next();
    bench.next();
    for id in [2, 1, 1, 9] {
        bench.engine.cancel(RequestId(id));
    }
    let mut last: Vec<SequenceStep> = bench.next();
    while last.len() < 2 {
        last.extend(bench.next());
    }
    assert!(
        last.iter().all(|step| step.finish == Some(Finish::Cancelled) && step.token.is_none() && step.first.is_none())
    );
    bench.engine.cancel(RequestId(1));
    bench.engine.acknowledge(RequestId(1), 2);
    assert!(bench.reports.recv_timeout(Duration::from_millis(50)).is_err(), "nothing comes after the end");
    assert_eq!(*alive.lock().expect("nobody panics with it"), 0, "what was kept for them is freed");
    bench.engine.submit(request(1, &[1], 1)).expect("the id is free again");
    assert_eq!(bench.read(1)[&1].0.len(), 1);
}

#[test]
fn what_cannot_be_run_is_refused_with_a_reason() {
    let fake = Fake::new(8, 1);
    let gate = Arc::clone(&fake.gate);
    let bench = Bench::new(fake, EngineOptions { waiting_max: 1, ..EngineOptions::default() });
    let refused = |request: Submission| bench.engine.submit(request).expect_err("it is refused");
    assert_eq!(refused(request(1, &[], 1)), SubmitError::EmptyPrompt);
    assert_eq!(refused(request(1, &[0; 8], 1)), SubmitError::PromptTooLong { tokens: 8, context_tokens: 8 });
    assert_eq!(refused(request(1, &[1], 0)), SubmitError::NothingToGenerate);
    assert_eq!(refused(request(1, &[1, 53], 1)), SubmitError::UnknownToken { token: 53, vocab_size: 53 });
    let mut hot = request(1, &[1], 1);
    hot.sampling.temperature = -1.0;
    assert!(matches!(refused(hot), SubmitError::InvalidSampling(_)));
    gate.close();
    bench.engine.submit(request(1, &[1; 7], usize::MAX)).expect("there is room");
    assert_eq!(refused(request(1, &[1], 1)), SubmitError::DuplicateRequest);
    bench.engine.submit(request(2, &[1], 2)).expect("it may wait");
    assert_eq!(refused(request(3, &[1], 1)), SubmitError::QueueFull { live: 2 });
    gate.open();
    let ended = bench.read(2);
    assert_eq!(ended[&1].0.len(), 1, "the context has room for one more token");
    assert_eq!(ended[&1].1, if ended[&1].0[0] == END { Finish::Stop } else { Finish::Length });
}

#[test]
fn options_of_zero_are_refused() {
    let zeros = [
        EngineOptions { window_tokens: 0, ..EngineOptions::default() },
        EngineOptions { step_tokens_max: 0, ..EngineOptions::default() },
        EngineOptions { sequences_max: Some(0), ..EngineOptions::default() },
    ];
    for options in zeros {
        let error = Engine::spawn(Box::new(Fake::new(8, 1)), VOCAB_SIZE, options, |_| {}).expect_err("it cannot run");
        assert!(error.to_string().ends_with("is 0, but must be at least 1"), "{error}");
    }
}

/// Three requests in one batch, of which the one of prompt `[7]` meets a trap.
fn trapped(trap: Trap) -> (Bench, BTreeMap<u64, (Vec<TokenId>, Finish)>) {
    let mut fake = Fake::new(100, 8);
    fake.traps.insert(7, trap);
    let gate = Arc::clone(&fake.gate);
    gate.close();
    let bench = Bench::new(fake, EngineOptions::default());
    // The first keeps the engine busy until the others are there, so that they share a batch.
    bench.engine.submit(request(0, &[1], 1)).expect("there is room");
    gate.await_held();
    for (id, token) in [(1, 2), (2, 7), (3, 3)] {
        bench.engine.submit(request(id, &[token], 1)).expect("there is room");
    }
    gate.open();
    let ended = bench.read(4);
    (bench, ended)
}

#[test]
fn a_failure_of_the_model_fails_its_batch_and_nothing_else() {
    let (bench, ended) = trapped(Trap::Fail);
    let failed = Finish::Failed("invalid batch: trapped".to_owned());
    assert!([1, 2, 3].iter().all(|id| ended[id] == (Vec::new(), failed.clone())), "{ended:?}");
    assert_eq!(ended[&0].0.len(), 1, "it was not in that batch");
    bench.engine.submit(request(9, &[1], 1)).expect("the engine goes on");
    assert_eq!(bench.read(1)[&9].0.len(), 1);
}

#[test]
fn logits_that_are_no_numbers_fail_their_request_alone() {
    let (bench, ended) = trapped(Trap::Nan);
    assert!(
        matches!(&ended[&2].1, Finish::Failed(reason) if reason.contains("NaN as the logit of token 5")),
        "{ended:?}"
    );
    assert!([0, 1, 3].iter().all(|id| ended[id].0.len() == 1), "{ended:?}");
    bench.engine.submit(request(9, &[1], 1)).expect("the engine goes on");
    assert_eq!(bench.read(1)[&9].0.len(), 1);
}

#[test]
fn a_panic_of_the_model_leaves_nobody_waiting() {
    let (bench, ended) = trapped(Trap::Panic);
    assert_eq!(ended[&2].1, Finish::Failed("the engine panicked: trapped".to_owned()));
    // The thread closes its inbox before it reports.
    assert_eq!(bench.engine.submit(request(9, &[1], 1)), Err(SubmitError::Stopped));
    bench.engine.cancel(RequestId(2));
    bench.engine.shutdown();
    assert!(bench.reports.try_recv().is_err());
}

#[test]
fn a_shutdown_ends_what_is_live() {
    let fake = Fake::new(100, 1);
    let bench = Bench::new(fake, EngineOptions { window_tokens: 1, ..EngineOptions::default() });
    bench.engine.submit(request(1, &[1], 50)).expect("there is room");
    bench.engine.submit(request(2, &[1], 50)).expect("it waits");
    bench.next();
    let Bench { engine, reports } = bench;
    engine.shutdown();
    let ended: Vec<SequenceStep> = reports.into_iter().flat_map(|report| report.sequences).collect();
    assert_eq!(ended.len(), 2, "the channel is closed, so the thread has ended");
    assert!(ended.iter().all(|step| step.finish == Some(Finish::Cancelled)));
}

#[test]
fn an_engine_may_be_dropped_from_within_a_report() {
    let (sender, done) = channel();
    let slot: Arc<Mutex<Option<Engine>>> = Arc::default();
    let held = Arc::clone(&slot);
    let report = move |_| {
        drop(held.lock().expect("nobody panics with it").take());
        let _ = sender.send(());
    };
    let options = EngineOptions::default();
    let engine = Engine::spawn(Box::new(Fake::new(100, 1)), VOCAB_SIZE, options, report).expect("it starts");
    let mut filled = slot.lock().expect("nobody panics with it");
    engine.submit(request(1, &[1], 50)).expect("there is room");
    *filled = Some(engine);
    drop(filled);
    done.recv_timeout(PATIENCE).expect("the report returns");
}

#[test]
fn log_probabilities_and_times_come_with_the_tokens() {
    let bench = Bench::new(Fake::new(100, 1), EngineOptions::default());
    let mut request = request(1, &[4, 5], 2);
    request.logprobs = Some(3);
    request.end_tokens.clear();
    bench.engine.submit(request).expect("there is room");
    let step = &bench.next()[0];
    let token = step.token.as_ref().expect("a token");
    let logprob = token.logprob.as_ref().expect("it was asked for");
    let logits = Fake::logits(&[4, 5]);
    let normaliser = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
    let expected = (f64::from(logits[token.id as usize]) - normaliser) as f32;
    assert!((logprob.logprob - expected).abs() < 1e-4, "{logprob:?} against {expected}");
    assert_eq!(logprob.top.len(), 3);
    assert_eq!(logprob.top[0].0, greedy(&[4, 5], 1)[0]);
    assert_eq!(step.first.expect("it is the first").cached_tokens, 0);
    assert_eq!(bench.engine.info().backend, "fake");
}
