//! What the engine's thread does: take mail, plan, compute, sample, report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokrun_model::{Executor, Extend, Logits, ModelError, SequenceHandle, TokenId, Wanted};

use super::inbox::{Arrival, Inbox};
use crate::panics::catching;
use crate::request::{Finish, FirstStep, RequestId, SampledToken, SequenceStep, StepReport};
use crate::sampler::{Sampler, token_logprob};
use crate::scheduler::{Job, Limits, Scheduler, Work};

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
}

/// A live request.
struct Request {
    /// Created when the first of its tokens is computed.
    sequence: Option<SequenceHandle>,
    /// Prompt and output.
    tokens: Vec<TokenId>,
    sampler: Sampler,
    logprobs: Option<usize>,
    submitted: Instant,
    /// When work on it began.
    started: Option<Instant>,
    /// Its first token has been reported.
    has_output: bool,
}

impl<R: FnMut(StepReport)> Worker<R> {
    pub(super) fn new(
        executor: Box<dyn Executor>,
        vocab_size: usize,
        limits: Limits,
        inbox: Arc<Inbox>,
        report: R,
    ) -> Self {
        let core = Core { executor, scheduler: Scheduler::new(limits), vocab_size, requests: BTreeMap::new() };
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
            let _ = catching(|| report(StepReport { sequences }));
        }
        // Freeing a model that has panicked may panic again.
        let core = self.core;
        let _ = catching(move || drop(core));
    }

    fn serve(&mut self) {
        let mut idle = true;
        loop {
            let mail = self.inbox.take(idle);
            if mail.stop {
                return;
            }
            mail.arrivals.into_iter().for_each(|arrival| self.core.add(arrival));
            for (request_id, total_tokens) in mail.acknowledged {
                self.core.scheduler.acknowledge(request_id, total_tokens);
            }
            let now = Instant::now();
            let cancelled = mail.cancelled.into_iter().filter(|request_id| self.core.cancel(*request_id));
            let mut sequences: Vec<SequenceStep> = cancelled.map(|id| ended(id, Finish::Cancelled, now)).collect();
            idle = !self.core.step(&mut sequences);
            self.send(sequences);
        }
    }

    fn send(&mut self, sequences: Vec<SequenceStep>) {
        for sequence in sequences.iter().filter(|sequence| sequence.finish.is_some()) {
            self.inbox.finished(sequence.request_id);
        }
        if !sequences.is_empty() {
            (self.report)(StepReport { sequences });
        }
    }
}

impl Core {
    fn add(&mut self, Arrival { submission, at }: Arrival) {
        let context_left = self.executor.info().context_tokens - submission.prompt.len();
        self.scheduler.add(Job {
            request_id: submission.request_id,
            prompt_tokens: submission.prompt.len(),
            max_new_tokens: submission.max_new_tokens.min(context_left),
            end_tokens: submission.end_tokens,
        });
        let request = Request {
            sequence: None,
            sampler: Sampler::new(submission.sampling, &submission.prompt, submission.grammar),
            tokens: submission.prompt,
            logprobs: submission.logprobs,
            submitted: at,
            started: None,
            has_output: false,
        };
        self.requests.insert(submission.request_id, request);
    }

    /// Forgets a request; whether it was live.
    fn cancel(&mut self, request_id: RequestId) -> bool {
        self.forget(request_id);
        self.scheduler.remove(request_id)
    }

    /// Computes one step and adds what it brought to `report`; whether there was anything to compute.
    fn step(&mut self, report: &mut Vec<SequenceStep>) -> bool {
        let planned = self.scheduler.plan();
        let busy = !planned.is_empty();
        let plan = self.start(planned, report);
        if plan.is_empty() {
            return busy;
        }
        match self.extend(&plan) {
            Ok(logits) => {
                let at = Instant::now();
                for (row, work) in plan.iter().filter(|work| work.samples).enumerate() {
                    report.push(self.sample(work, logits.row(row), at));
                }
            }
            Err(error) => {
                let reason = with_causes(&error);
                report.extend(plan.iter().map(|work| self.fail(work.request_id, reason.clone())));
            }
        }
        true
    }

    /// Gives each planned request a sequence; those that get none fail.
    fn start(&mut self, mut plan: Vec<Work>, report: &mut Vec<SequenceStep>) -> Vec<Work> {
        plan.retain(|work| {
            let request = self.requests.get_mut(&work.request_id).expect("the scheduler plans live requests only");
            if request.sequence.is_some() {
                return true;
            }
            request.started = Some(Instant::now());
            match self.executor.create() {
                Ok(sequence) => {
                    request.sequence = Some(sequence);
                    true
                }
                Err(error) => {
                    report.push(self.fail(work.request_id, with_causes(&error)));
                    false
                }
            }
        });
        plan
    }

    fn extend(&mut self, plan: &[Work]) -> Result<Logits<'static>, ModelError> {
        let batch: Vec<Extend<'_>> = plan
            .iter()
            .map(|work| {
                let request = &self.requests[&work.request_id];
                let sequence = request.sequence.expect("a planned request has been started");
                let wanted = if work.samples { Wanted::Last } else { Wanted::Nothing };
                Extend { wanted, ..Extend::new(sequence, &request.tokens[work.tokens.clone()]) }
            })
            .collect();
        self.executor.extend(&batch).map(Logits::into_owned)
    }

    /// Chooses the next token of a request from its row of logits.
    fn sample(&mut self, work: &Work, logits: &[f32], at: Instant) -> SequenceStep {
        let request = self.requests.get_mut(&work.request_id).expect("the scheduler plans live requests only");
        let id = match request.sampler.sample(&logits[..self.vocab_size]) {
            Ok(id) => id,
            Err(error) => return self.fail(work.request_id, with_causes(&error)),
        };
        request.tokens.push(id);
        let logprob = request.logprobs.map(|top_n| token_logprob(logits, self.vocab_size, id, top_n));
        let first = (!request.has_output).then(|| request.first_step(at));
        request.has_output = true;
        let finish = self.scheduler.apply(work.request_id, id);
        if finish.is_some() {
            self.forget(work.request_id);
        }
        SequenceStep { request_id: work.request_id, first, token: Some(SampledToken { id, logprob }), finish, at }
    }

    fn fail(&mut self, request_id: RequestId, reason: String) -> SequenceStep {
        self.cancel(request_id);
        ended(request_id, Finish::Failed(reason), Instant::now())
    }

    /// Frees what the executor keeps for a request.
    fn forget(&mut self, request_id: RequestId) {
        if let Some(sequence) = self.requests.remove(&request_id).and_then(|request| request.sequence) {
            self.executor.drop_sequence(sequence);
        }
    }
}

impl Request {
    fn first_step(&self, now: Instant) -> FirstStep {
        let started = self.started.unwrap_or(now);
        FirstStep {
            queue_us: micros(self.submitted, started),
            prefill_us: micros(started, now),
            // A sequence begins empty: the seam to executors has no way to share a prefix.
            cached_tokens: 0,
        }
    }
}

fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}

/// The last report of a request that ended without a token.
fn ended(request_id: RequestId, finish: Finish, at: Instant) -> SequenceStep {
    SequenceStep { request_id, first: None, token: None, finish: Some(finish), at }
}

/// An error with all that led to it, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
