//! The thread that drives a model: it takes requests in, and reports what each step brought.
//!
//! Callers never wait for the model. What they say goes into an inbox, which holds at most one entry a kind for each live
//! request and so is bounded by their number; the thread empties it between two steps.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use tokrun_model::{Executor, ExecutorInfo};

use crate::error::{EngineError, InvalidParameter, SubmitError};
use crate::request::{RequestId, StepReport, Submission};
use crate::scheduler::Limits;

mod energy;
mod inbox;
#[cfg(test)]
mod tests;
mod worker;

use inbox::{Arrival, Inbox};
use worker::Worker;

/// What bounds an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Tokens a request may be ahead of what was acknowledged. At least 1.
    pub window_tokens: u32,
    /// Requests that may wait for a place; the next one is refused.
    pub waiting_max: usize,
    /// Tokens computed in one step, over all requests. At least 1.
    pub step_tokens_max: usize,
    /// Requests that run at the same time, at least 1; `None` for as many as the executor allows, which is the most.
    pub sequences_max: Option<usize>,
    /// Keep computed blocks of finished sequences for requests that begin alike. Only for paged executors.
    pub prefix_cache: bool,
    /// Guess tokens that repeat what came before and check several in one step; the answers are the same. Only for
    /// paged executors.
    pub speculation: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            window_tokens: 32,
            waiting_max: 256,
            step_tokens_max: 512,
            sequences_max: None,
            prefix_cache: true,
            speculation: true,
        }
    }
}

/// A model at work on its own thread. Dropping it cancels what is live and waits for the thread.
#[derive(Debug)]
pub struct Engine {
    info: ExecutorInfo,
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread. Of each row of logits, only the first `vocab_size` tokens (the tokenizer's) are ever sampled.
    ///
    /// `report` is called on that thread once a step, and must not block: the window already bounds how far a request
    /// can be ahead. Each request taken is reported with a `finish` exactly once, and never after that.
    ///
    /// # Errors
    /// When an option is 0, or the system refuses the thread.
    pub fn spawn(
        executor: Box<dyn Executor>,
        vocab_size: usize,
        options: EngineOptions,
        report: impl FnMut(StepReport) + Send + 'static,
    ) -> Result<Self, EngineError> {
        let info = executor.info().clone();
        let sequences_max = options.sequences_max.unwrap_or(usize::MAX).min(info.sequences_max);
        let limits = [
            ("vocab_size", vocab_size),
            ("window_tokens", options.window_tokens as usize),
            ("step_tokens_max", options.step_tokens_max),
            ("sequences_max", sequences_max),
            ("block_tokens", info.paging.map_or(1, |paging| paging.block_tokens)),
        ];
        if let Some((name, value)) = limits.into_iter().find(|(_, value)| *value == 0) {
            return Err(InvalidParameter { name, value: value.to_string(), range: "at least 1" }.into());
        }
        let limits = Limits {
            sequences_max,
            step_tokens_max: options.step_tokens_max,
            window_tokens: u64::from(options.window_tokens),
            paging: info.paging,
            prefix_cache: options.prefix_cache,
            speculation: options.speculation,
        };
        let inbox = Arc::new(Inbox::new(sequences_max.saturating_add(options.waiting_max)));
        let vocab_size = vocab_size.min(info.vocab_size);
        let worker = Worker::new(executor, vocab_size, limits, Arc::clone(&inbox), report);
        let thread = std::thread::Builder::new().name("tokrun-engine".to_owned());
        let thread = thread.spawn(move || worker.run()).map_err(EngineError::Spawn)?;
        Ok(Self { info, inbox, thread: Some(thread) })
    }

    /// Takes a request; its tokens arrive in reports.
    ///
    /// # Errors
    /// When the request cannot be run as it is, or no place is left. It is then not reported on.
    pub fn submit(&self, submission: Submission) -> Result<(), SubmitError> {
        self.check(&submission)?;
        self.inbox.submit(Arrival { submission, at: Instant::now() })
    }

    /// The reader of a request has the first `total_tokens` of its output for good. Late or repeated calls do no harm.
    pub fn acknowledge(&self, request_id: RequestId, total_tokens: u64) {
        self.inbox.acknowledge(request_id, total_tokens);
    }

    /// Ends a request: its last report says [`Cancelled`](crate::Finish::Cancelled), unless it ended before by itself.
    pub fn cancel(&self, request_id: RequestId) {
        self.inbox.cancel(request_id);
    }

    /// What the executor is and what it honours.
    pub fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    /// Cancels what is live, and waits until that is reported and the model is freed.
    pub fn shutdown(self) {
        drop(self);
    }

    /// Whether a request could be run at all: what [`submit`](Self::submit) refuses for good, without submitting it.
    ///
    /// # Errors
    /// When the request cannot be run as it is.
    pub fn check(&self, submission: &Submission) -> Result<(), SubmitError> {
        let (tokens, context_tokens) = (submission.prompt.len(), self.info.context_tokens);
        let vocab_size = self.info.vocab_size;
        if tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if tokens >= context_tokens {
            return Err(SubmitError::PromptTooLong { tokens, context_tokens });
        }
        if let Some(cache_tokens) = cache_tokens(&self.info).filter(|cache_tokens| tokens >= *cache_tokens) {
            return Err(SubmitError::CacheTooSmall { tokens, cache_tokens });
        }
        if submission.max_new_tokens == 0 {
            return Err(SubmitError::NothingToGenerate);
        }
        if let Some(token) = submission.prompt.iter().find(|token| **token as usize >= vocab_size) {
            return Err(SubmitError::UnknownToken { token: *token, vocab_size });
        }
        Ok(submission.sampling.validate()?)
    }
}

/// Tokens that a paged cache holds, over all sequences.
fn cache_tokens(info: &ExecutorInfo) -> Option<usize> {
    info.paging.map(|paging| paging.blocks.saturating_mul(paging.block_tokens))
}

/// Tokens that one sequence can have, prompt and output together.
fn sequence_tokens_max(info: &ExecutorInfo) -> usize {
    cache_tokens(info).map_or(info.context_tokens, |cache_tokens| info.context_tokens.min(cache_tokens))
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inbox.stop();
        let Some(thread) = self.thread.take() else { return };
        // Dropped from within `report`, it cannot wait for itself; the thread ends after that report.
        if thread.thread().id() != std::thread::current().id() {
            // The worker catches every panic and reports it, so there is nothing left to learn here.
            let _ = thread.join();
        }
    }
}
