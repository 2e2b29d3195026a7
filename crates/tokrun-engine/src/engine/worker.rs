//! What the engine's thread does: take mail, plan, compute, sample, report.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokrun_model::{Drawing, Executor, Extend, ModelError, Outcome, Place, SequenceHandle, TokenId, Wanted};

use super::energy::{Share, Steps};
use super::inbox::{Arrival, Inbox};
use super::sequence_tokens_max;
use crate::blocks::Blocks;
use crate::error::EngineError;
use crate::panics::catching;
use crate::request::{Finish, FirstStep, RequestId, SampledToken, SequenceStep, StepMetrics, StepReport};
use crate::sampler::{Sampler, token_logprob};
use crate::scheduler::{Job, Limits, Plan, Scheduler, Work};

/// How long the thread sleeps when it can do nothing and nobody says anything.
const IDLE: Duration = Duration::from_secs(3600);
/// The same while requests wait: those that only keep places must be found out.
const BRIEFLY: Duration = Duration::from_millis(10);

/// Everything that lives on the thread.
pub(super) struct Worker<R> {
    core: Core,
    inbox: Arc<Inbox>,
    report: R,
}

/// The part that computes; after a panic in it, it is not used again.
struct Core {
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    vocab_size: usize,
    requests: BTreeMap<RequestId, Request>,
    /// Steps that were submitted and not collected, the earliest first.
    under_way: VecDeque<Vec<Submitted>>,
    energy: Steps,
}

/// What a step under way computes for one request.
struct Submitted {
    work: Work,
    /// Tokens it draws.
    draws: usize,
    /// Rows of logits it gives, for the host to sample from.
    given: usize,
    /// The request has not ended since.
    live: bool,
}

/// A live request.
struct Request {
    /// What the executor keeps for it, while it runs.
    sequence: Option<SequenceHandle>,
    sampler: Sampler,
    logprobs: Option<usize>,
    submitted: Instant,
    /// When work on it began.
    started: Option<Instant>,
    /// Its first token has been reported.
    has_output: bool,
    /// What went into it since its last report.
    energy: Share,
}

impl<R: FnMut(StepReport)> Worker<R> {
    pub(super) fn new(
        executor: Box<dyn Executor>,
        vocab_size: usize,
        limits: Limits,
        inbox: Arc<Inbox>,
        report: R,
    ) -> Self {
        let (scheduler, requests) = (Scheduler::new(limits), BTreeMap::new());
        let (under_way, energy) = (VecDeque::new(), Steps::default());
        let core = Core { executor, scheduler, vocab_size, requests, under_way, energy };
        Self { core, inbox, report }
    }

    /// Runs until it is told to stop, or until something panics; either way every live request gets its last report.
    pub(super) fn run(mut self) {
        let last_words = match catching(|| self.serve()) {
            Ok(()) => Finish::Cancelled,
            Err(reason) => Finish::Failed(format!("the engine panicked: {reason}")),
        };
        let (mut report, inbox) = (self.report, self.inbox);
        let at = Instant::now();
        let end = |request_id| ended(request_id, last_words.clone(), at);
        let sequences: Vec<SequenceStep> = inbox.close().into_iter().map(end).collect();
        if !sequences.is_empty() {
            // If it is the report that panics, there is nobody left to tell.
            let _ = catching(|| report(StepReport { sequences, metrics: StepMetrics::default() }));
        }
        // Freeing a model that has panicked may panic again.
        let core = self.core;
        let _ = catching(move || drop(core));
    }

    fn serve(&mut self) {
        let mut patience = IDLE;
        loop {
            let mail = self.inbox.take(patience);
            if mail.stop {
                return;
            }
            if !patience.is_zero() {
                self.core.energy.idled(self.core.executor.energy_uj());
            }
            mail.arrivals.into_iter().for_each(|arrival| self.core.add(arrival));
            for (request_id, total_tokens) in mail.acknowledged {
                self.core.scheduler.acknowledge(request_id, total_tokens);
            }
            let now = Instant::now();
            let mut sequences = Vec::new();
            for request_id in mail.cancelled {
                self.core.cancel(request_id, now, &mut sequences);
            }
            let busy = self.core.step(&mut sequences);
            patience = match (busy, self.core.scheduler.waiting()) {
                (true, _) => Duration::ZERO,
                (false, 0) => IDLE,
                (false, _) => BRIEFLY,
            };
            self.send(sequences);
        }
    }

    fn send(&mut self, sequences: Vec<SequenceStep>) {
        for sequence in sequences.iter().filter(|sequence| sequence.finish.is_some()) {
            self.inbox.finished(sequence.request_id);
        }
        if !sequences.is_empty() {
            (self.report)(StepReport { sequences, metrics: self.core.metrics() });
        }
    }
}

impl Core {
    fn add(&mut self, Arrival { submission, at }: Arrival) {
        let prompt_tokens = submission.prompt.len();
        let tokens_max = sequence_tokens_max(self.executor.info());
        let request = Request {
            sequence: None,
            sampler: Sampler::new(submission.sampling, &submission.prompt, submission.grammar),
            logprobs: submission.logprobs,
            submitted: at,
            started: None,
            has_output: false,
            energy: Share::default(),
        };
        self.requests.insert(submission.request_id, request);
        self.scheduler.add(Job {
            request_id: submission.request_id,
            tenant: submission.tenant,
            priority: submission.priority,
            cache_salt: submission.cache_salt,
            prompt: submission.prompt,
            prompt_tokens,
            max_new_tokens: submission.max_new_tokens.min(tokens_max - prompt_tokens),
            end_tokens: submission.end_tokens,
        });
    }

    /// Ends a request, if it is live, with a report that says so.
    fn cancel(&mut self, request_id: RequestId, at: Instant, report: &mut Vec<SequenceStep>) {
        if self.requests.contains_key(&request_id) {
            let first_new = report.len();
            report.push(ended(request_id, Finish::Cancelled, at));
            self.forget_ended(report, first_new);
        }
    }

    /// Forgets the requests that end in the report from `first` on, and says there what is under way for nothing.
    fn forget_ended(&mut self, report: &mut [SequenceStep], first: usize) {
        for step in report[first..].iter_mut().filter(|step| step.finish.is_some()) {
            let under_way = self.under_way.iter_mut().flatten();
            for submitted in under_way.filter(|s| s.live && s.work.request_id == step.request_id) {
                submitted.live = false;
                step.surplus_tokens += submitted.draws as u32;
            }
            self.suspend(step.request_id);
            self.requests.remove(&step.request_id);
            self.scheduler.remove(step.request_id);
        }
    }

    /// Computes one step, or brings one that is under way to its end, and adds what that brought to `report`; whether there
    /// was anything to do.
    fn step(&mut self, report: &mut Vec<SequenceStep>) -> bool {
        // Who samples on the host must have this step's logits before the next one can be planned.
        let plain = self.requests.values().all(Request::is_plain);
        let ahead = self.executor.draws_ahead().map(|ahead| if plain { ahead } else { 0 });
        if !self.under_way.is_empty() && (ahead == Some(0) || self.scheduler.waits_for_tokens()) {
            self.collect_all(report);
        }
        let Plan { preempted, work } = self.scheduler.plan();
        preempted.into_iter().for_each(|request_id| self.suspend(request_id));
        let busy = !work.is_empty() || !self.under_way.is_empty();
        let work = self.start(work, report);
        match (work.is_empty(), ahead) {
            (true, _) => self.collect(report),
            (false, Some(ahead)) => self.submit(work, ahead, report),
            (false, None) => self.extend(work, report),
        }
        busy
    }

    /// Submits a step, and collects those before that it is too far ahead of.
    fn submit(&mut self, work: Vec<Work>, ahead: usize, report: &mut Vec<SequenceStep>) {
        match self.begin(&work) {
            Ok(()) => {
                let submitted = work.into_iter().map(|work| {
                    let is_plain = self.requests[&work.request_id].is_plain();
                    Submitted::new(work, is_plain)
                });
                self.under_way.push_back(submitted.collect());
                if self.under_way.len() > ahead {
                    self.collect(report);
                }
            }
            Err(error) => {
                // What came before is still good.
                self.collect_all(report);
                self.fail(work.iter().map(|work| work.request_id), &error, report);
            }
        }
    }

    fn begin(&mut self, plan: &[Work]) -> Result<(), ModelError> {
        let Self { executor, vocab_size, requests, under_way, .. } = self;
        let planned: Vec<&Request> = plan.iter().map(|work| &requests[&work.request_id]).collect();
        // All of them in one row, which each work has a piece of.
        let (mut draws, mut ends) = (Vec::with_capacity(plan.len()), Vec::with_capacity(plan.len()));
        for (work, request) in plan.iter().zip(&planned) {
            let rows = if request.is_plain() { work.rows() } else { 0 };
            let first = usize::from(work.to_come);
            draws.extend((first..first + rows).map(|ahead| request.sampler.plain_draw(*vocab_size, ahead)));
            ends.push(draws.len());
        }
        // Where in the step before its token is drawn.
        let mut drawn = BTreeMap::new();
        let mut index = 0;
        for submitted in under_way.back().into_iter().flatten() {
            drawn.insert(submitted.work.request_id, index);
            index += submitted.draws;
        }
        let mut batch = Vec::with_capacity(plan.len());
        let mut first = 0;
        for ((work, request), end) in plan.iter().zip(planned).zip(ends) {
            let sequence = request.sequence.expect("a planned request has been started");
            let follows = work.to_come.then(|| drawn[&work.request_id]);
            batch.push(Drawing { extend: extend(work, sequence), follows, draws: &draws[first..end] });
            first = end;
        }
        executor.submit(&batch)
    }

    fn collect_all(&mut self, report: &mut Vec<SequenceStep>) {
        while !self.under_way.is_empty() {
            self.collect(report);
        }
    }

    /// Brings the earliest step under way to its end, if there is one.
    fn collect(&mut self, report: &mut Vec<SequenceStep>) {
        let Some(step) = self.under_way.pop_front() else { return };
        let first_new = report.len();
        let Self { executor, scheduler, vocab_size, requests, .. } = self;
        match executor.collect() {
            Ok(outcome) => take(&step, outcome, *vocab_size, requests, scheduler, report),
            Err(error) => {
                let live = step.iter().filter(|submitted| submitted.live);
                return self.fail(live.map(|submitted| submitted.work.request_id), &error, report);
            }
        }
        self.account(&step, report, first_new);
    }

    /// Computes a step of which the host samples everything.
    fn extend(&mut self, work: Vec<Work>, report: &mut Vec<SequenceStep>) {
        let first_new = report.len();
        let Self { executor, scheduler, vocab_size, requests, .. } = self;
        let sequence = |work: &Work| requests[&work.request_id].sequence.expect("a planned request has been started");
        let batch: Vec<Extend<'_>> = work.iter().map(|work| extend(work, sequence(work))).collect();
        let logits = match executor.extend(&batch) {
            Ok(logits) => logits,
            Err(error) => return self.fail(work.iter().map(|work| work.request_id), &error, report),
        };
        let step: Vec<Submitted> = work.into_iter().map(|work| Submitted::new(work, false)).collect();
        take(&step, Outcome { drawn: Vec::new(), logits }, *vocab_size, requests, scheduler, report);
        self.account(&step, report, first_new);
    }

    /// Charges a step's energy, and forgets who ended with it: what it brought is in the report from `first_new` on.
    fn account(&mut self, step: &[Submitted], report: &mut [SequenceStep], first_new: usize) {
        self.split_energy(step.iter().map(|submitted| &submitted.work), &mut report[first_new..]);
        self.forget_ended(report, first_new);
    }

    /// Ends those of the requests that are live.
    fn fail(
        &mut self,
        request_ids: impl Iterator<Item = RequestId>,
        error: &ModelError,
        report: &mut Vec<SequenceStep>,
    ) {
        let (reason, at, first_new) = (with_causes(error), Instant::now(), report.len());
        let live = request_ids.filter(|request_id| self.requests.contains_key(request_id));
        report.extend(live.map(|request_id| ended(request_id, Finish::Failed(reason.clone()), at)));
        self.forget_ended(report, first_new);
    }

    /// Charges a step to the requests it computed for, and tells those that are reported.
    fn split_energy<'a>(&mut self, work: impl Iterator<Item = &'a Work> + Clone, report: &mut [SequenceStep]) {
        let Some(step_uj) = self.energy.step(self.executor.energy_uj()) else { return };
        let all_tokens = work.clone().map(|work| work.tokens.len()).sum();
        for work in work {
            if let Some(request) = self.requests.get_mut(&work.request_id) {
                request.energy.add(step_uj, work.tokens.len(), all_tokens);
            }
        }
        for step in report {
            step.energy_uj = self.requests.get_mut(&step.request_id).and_then(|request| request.energy.take());
        }
    }

    /// Gives each planned request a sequence; those that get none fail.
    fn start(&mut self, mut plan: Vec<Work>, report: &mut Vec<SequenceStep>) -> Vec<Work> {
        let mut failed = Vec::new();
        plan.retain(|work| {
            let request = self.requests.get_mut(&work.request_id).expect("the scheduler plans live requests only");
            if request.sequence.is_some() {
                return true;
            }
            let now = Instant::now();
            request.started.get_or_insert(now);
            match self.executor.create() {
                Ok(sequence) => {
                    request.sequence = Some(sequence);
                    true
                }
                Err(error) => {
                    failed.push(ended(work.request_id, Finish::Failed(with_causes(&error)), now));
                    false
                }
            }
        });
        self.forget_ended(&mut failed, 0);
        report.extend(failed);
        plan
    }

    /// Frees what the executor keeps for a request.
    fn suspend(&mut self, request_id: RequestId) {
        if let Some(sequence) = self.requests.get_mut(&request_id).and_then(|request| request.sequence.take()) {
            self.executor.drop_sequence(sequence);
        }
    }

    fn metrics(&self) -> StepMetrics {
        let totals = self.scheduler.totals();
        let blocks = self.scheduler.blocks();
        StepMetrics {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            blocks: blocks.map_or(0, Blocks::total),
            blocks_used: blocks.map_or(0, |blocks| blocks.total() - blocks.available()),
            blocks_cached: blocks.map_or(0, Blocks::idle),
            computed_tokens: totals.computed_tokens,
            cached_tokens: totals.cached_tokens,
            preemptions: totals.preemptions,
            drafted_tokens: totals.drafted_tokens,
            accepted_tokens: totals.accepted_tokens,
        }
    }
}

impl Submitted {
    /// What was submitted for a request; the device draws for those that are plain.
    fn new(work: Work, is_plain: bool) -> Self {
        let rows = work.rows();
        let (draws, given) = if is_plain { (rows, 0) } else { (0, rows) };
        Self { work, draws, given, live: true }
    }
}

impl Request {
    /// Samples from the rows of one step in order, as far as they hold: a row after a guess holds if that came true.
    fn sample<'a>(
        &mut self,
        request_id: RequestId,
        rows: impl Iterator<Item = &'a [f32]>,
        vocab_size: usize,
        scheduler: &mut Scheduler,
        at: Instant,
        report: &mut Vec<SequenceStep>,
    ) {
        let mut rows = rows;
        self.report(request_id, scheduler, at, report, |request| {
            let logits = rows.next()?;
            let token = request.sampler.sample(&logits[..vocab_size]);
            let logprob = |id| request.logprobs.map(|top_n| token_logprob(logits, vocab_size, id, top_n));
            Some(token.map(|id| SampledToken { id, logprob: logprob(id) }))
        });
    }

    /// Takes the tokens that one step drew, as far as they hold.
    fn take(
        &mut self,
        request_id: RequestId,
        mut tokens: impl Iterator<Item = Result<TokenId, EngineError>>,
        scheduler: &mut Scheduler,
        at: Instant,
        report: &mut Vec<SequenceStep>,
    ) {
        self.report(request_id, scheduler, at, report, |request| {
            let token = tokens.next()?;
            if let Ok(id) = token {
                request.sampler.accept(id);
            }
            Some(token.map(|id| SampledToken { id, logprob: None }))
        });
    }

    /// Reports tokens for as long as the one before says that the next one holds.
    fn report(
        &mut self,
        request_id: RequestId,
        scheduler: &mut Scheduler,
        at: Instant,
        report: &mut Vec<SequenceStep>,
        mut next: impl FnMut(&mut Self) -> Option<Result<SampledToken, EngineError>>,
    ) {
        while let Some(token) = next(self) {
            let token = match token {
                Ok(token) => token,
                Err(error) => return report.push(ended(request_id, Finish::Failed(with_causes(&error)), at)),
            };
            let first = (!self.has_output).then(|| self.first_step(scheduler.cached_tokens(request_id), at));
            self.has_output = true;
            let applied = scheduler.apply(request_id, token.id);
            report.push(SequenceStep {
                request_id,
                first,
                token: Some(token),
                rejected_draft_tokens: applied.rejected as u32,
                surplus_tokens: 0,
                energy_uj: None,
                finish: applied.finish,
                at,
            });
            if !applied.samples_again {
                return;
            }
        }
    }

    /// Whether its tokens can be drawn without the host.
    fn is_plain(&self) -> bool {
        self.logprobs.is_none() && self.sampler.is_plain()
    }

    fn first_step(&self, cached_tokens: usize, now: Instant) -> FirstStep {
        let started = self.started.unwrap_or(now);
        FirstStep { queue_us: micros(self.submitted, started), prefill_us: micros(started, now), cached_tokens }
    }
}

/// Hands the requests that are live what a step drew and gave.
fn take(
    step: &[Submitted],
    outcome: Outcome<'_>,
    vocab_size: usize,
    requests: &mut BTreeMap<RequestId, Request>,
    scheduler: &mut Scheduler,
    report: &mut Vec<SequenceStep>,
) {
    let at = Instant::now();
    scheduler.computed(step.iter().filter(|submitted| submitted.live).map(|submitted| &submitted.work));
    let (mut drawn, mut row) = (outcome.drawn.into_iter(), 0);
    for Submitted { work, draws, given, live } in step {
        let mut tokens = drawn.by_ref().take(*draws).map(|token| token.map_err(EngineError::from));
        let rows = (row..row + given).map(|row| outcome.logits.row(row));
        row += given;
        if let Some(request) = requests.get_mut(&work.request_id).filter(|_| *live) {
            if *given > 0 {
                request.sample(work.request_id, rows, vocab_size, scheduler, at, report);
            } else {
                request.take(work.request_id, &mut tokens, scheduler, at, report);
            }
        }
        // Those past the end of the answer.
        tokens.for_each(drop);
    }
}

fn extend(work: &Work, sequence: SequenceHandle) -> Extend<'_> {
    let wanted = match (work.samples, work.guesses) {
        (false, _) => Wanted::Nothing,
        (true, 0) => Wanted::Last,
        (true, _) => Wanted::All,
    };
    let place = Place { start: work.start, blocks: &work.blocks };
    Extend { place, wanted, ..Extend::new(sequence, &work.tokens) }
}

fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}

/// The last report of a request that ended without a token.
fn ended(request_id: RequestId, finish: Finish, at: Instant) -> SequenceStep {
    SequenceStep {
        request_id,
        first: None,
        token: None,
        rejected_draft_tokens: 0,
        surplus_tokens: 0,
        energy_uj: None,
        finish: Some(finish),
        at,
    }
}

/// An error with all that led to it, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
