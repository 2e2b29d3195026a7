//! Which request gets which tokens computed next. It does no I/O, reads no clock and draws no random number: the same
//! calls always lead to the same plans.
//!
//! Requests wait in the order they came and run as soon as one of the `sequences_max` places is free. A running request
//! is a row of tokens, prompt and output, of which some are in the model already; what is left to feed is a chunk of the
//! prompt or the one token generated last. Each plan goes round the running requests and hands out `step_tokens_max`
//! tokens; whoever was served goes to the back, so nobody is passed over twice.
//!
//! A request that is `window_tokens` ahead of what its reader has acknowledged is passed over until it is caught up with.

use std::collections::VecDeque;
use std::ops::Range;

use tokrun_model::TokenId;

use crate::request::{Finish, RequestId};

#[cfg(test)]
mod tests;

/// What bounds a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Requests that run at the same time.
    pub(crate) sequences_max: usize,
    /// Tokens computed in one step, over all requests.
    pub(crate) step_tokens_max: usize,
    /// Tokens a request may be ahead of its acknowledgements.
    pub(crate) window_tokens: u64,
}

/// What the scheduler must know of a request.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) request_id: RequestId,
    pub(crate) prompt_tokens: usize,
    /// At least 1.
    pub(crate) max_new_tokens: usize,
    pub(crate) end_tokens: Vec<TokenId>,
}

/// Tokens of one request to compute in this step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) request_id: RequestId,
    /// Which of its tokens, prompt and output counted as one row.
    pub(crate) tokens: Range<usize>,
    /// Nothing is left to feed after these: the next token is to be sampled.
    pub(crate) samples: bool,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Job>,
    /// The one to be served next is in front.
    running: VecDeque<Sequence>,
}

#[derive(Debug)]
struct Sequence {
    job: Job,
    /// Tokens that the model has.
    fed: usize,
    generated: usize,
    acknowledged: u64,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, waiting: VecDeque::new(), running: VecDeque::new() }
    }

    /// Takes a request; its id must not be live.
    pub(crate) fn add(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// The reader of a request has `total_tokens` of its output for good; less than before changes nothing.
    pub(crate) fn acknowledge(&mut self, request_id: RequestId, total_tokens: u64) {
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.job.request_id == request_id) {
            sequence.acknowledged = sequence.acknowledged.max(total_tokens);
        }
    }

    /// Forgets a request; whether it was live.
    pub(crate) fn remove(&mut self, request_id: RequestId) -> bool {
        let before = self.waiting.len() + self.running.len();
        self.waiting.retain(|job| job.request_id != request_id);
        self.running.retain(|sequence| sequence.job.request_id != request_id);
        self.waiting.len() + self.running.len() < before
    }

    /// What to compute next; empty when nothing can be. Each entry must be answered with `apply` or `remove`.
    pub(crate) fn plan(&mut self) -> Vec<Work> {
        self.start_waiting();
        let mut budget = self.limits.step_tokens_max;
        let mut plan = Vec::new();
        let mut passed_over = VecDeque::new();
        let mut served = VecDeque::new();
        for mut sequence in self.running.drain(..) {
            if budget == 0 || !sequence.is_runnable(self.limits.window_tokens) {
                passed_over.push_back(sequence);
                continue;
            }
            let work = sequence.next_work(budget);
            budget -= work.tokens.len();
            sequence.fed = work.tokens.end;
            plan.push(work);
            served.push_back(sequence);
        }
        passed_over.append(&mut served);
        self.running = passed_over;
        plan
    }

    /// A planned request has sampled `token`; its end, if that was it.
    pub(crate) fn apply(&mut self, request_id: RequestId, token: TokenId) -> Option<Finish> {
        let sequence = self.running.iter_mut().find(|sequence| sequence.job.request_id == request_id)?;
        sequence.generated += 1;
        let finish = if sequence.job.end_tokens.contains(&token) {
            Finish::Stop
        } else if sequence.generated >= sequence.job.max_new_tokens {
            Finish::Length
        } else {
            return None;
        };
        self.remove(request_id);
        Some(finish)
    }

    fn start_waiting(&mut self) {
        let places = self.limits.sequences_max.saturating_sub(self.running.len()).min(self.waiting.len());
        for job in self.waiting.drain(..places) {
            self.running.push_back(Sequence { job, fed: 0, generated: 0, acknowledged: 0 });
        }
    }
}

impl Sequence {
    fn tokens(&self) -> usize {
        self.job.prompt_tokens + self.generated
    }

    fn is_runnable(&self, window_tokens: u64) -> bool {
        (self.generated as u64).saturating_sub(self.acknowledged) < window_tokens
    }

    fn next_work(&self, budget: usize) -> Work {
        let end = self.tokens().min(self.fed + budget);
        Work { request_id: self.job.request_id, tokens: self.fed..end, samples: end == self.tokens() }
    }
}
