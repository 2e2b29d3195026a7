//! One request between its admission and its settlement. No I/O here: the runtime's thread feeds it and carries out what
//! it asks for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokrun_engine::{Finish, RequestId, SampledToken, SequenceStep, TokenId, TokenLogprob, Tokenizer};
use tokrun_ledger::{Debit, Debited, FinishReason, LedgerError, LimitReached, PromptDebit, Settled, Settlement};

use crate::transcript::{Rules, Step, Transcript};
use crate::{Allowance, Delta, Event, Outcome, RuntimeError, Sink, Timing, Usage};

/// Whether the engine must be told to stop computing for this request.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Continues,
    MustStop,
}

/// How soon what a request has generated should be paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    WithOthers,
    /// The reader waits for the first token or for the end, or the window is about to fill.
    Now,
}

/// As many tokens are paid at once: far below any window, so that no request has to wait for its debits.
const HURRY_TOKENS: usize = 8;

pub(crate) struct Active {
    pub(crate) id: RequestId,
    request_id: String,
    tokenizer: Arc<Tokenizer>,
    rules: Rules,
    prompt: Vec<TokenId>,
    wants_logprobs: bool,
    deadline: Option<Instant>,
    sink: Sink,

    transcript: Transcript,
    /// Generated and not yet paid, oldest first; the first `debiting` of them are in the debit under way.
    pending: VecDeque<Pending>,
    debiting: usize,
    prompt_debited: bool,
    ending: Option<FinishReason>,
    settling: bool,
    error: Option<RuntimeError>,
    limited: Option<LimitReached>,

    paid: Vec<TokenId>,
    /// The end token is paid, but is no text.
    paid_end_tokens: usize,
    logprobs: Vec<TokenLogprob>,
    shown: String,
    shown_reasoning: String,
    usage: Usage,
    energy_uj: Option<u64>,
    timing: Timing,
    begun: Instant,
    first_delivery: Option<Instant>,
    last_delivery: Instant,
    /// When the first and the last of the paid tokens were computed.
    computed: Option<(Instant, Instant)>,
}

struct Pending {
    token: SampledToken,
    text: String,
    reasoning: String,
    is_reasoning: bool,
    is_end: bool,
    computed: Instant,
}

/// What a request begins with.
pub(crate) struct Begin {
    pub(crate) id: RequestId,
    pub(crate) request_id: String,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) rules: Rules,
    pub(crate) transcript: Transcript,
    pub(crate) wants_logprobs: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) begun: Instant,
    pub(crate) admitted: Instant,
    pub(crate) sink: Sink,
}

impl Active {
    pub(crate) fn new(begin: Begin, tokenizer: &Arc<Tokenizer>) -> Self {
        Self {
            id: begin.id,
            request_id: begin.request_id,
            transcript: begin.transcript,
            tokenizer: Arc::clone(tokenizer),
            rules: begin.rules,
            prompt: begin.prompt,
            wants_logprobs: begin.wants_logprobs,
            deadline: begin.deadline,
            sink: begin.sink,
            pending: VecDeque::new(),
            debiting: 0,
            prompt_debited: false,
            ending: None,
            settling: false,
            error: None,
            limited: None,
            paid: Vec::new(),
            paid_end_tokens: 0,
            logprobs: Vec::new(),
            shown: String::new(),
            shown_reasoning: String::new(),
            usage: Usage::default(),
            energy_uj: None,
            timing: Timing { admit_us: micros(begin.begun, begin.admitted), ..Timing::default() },
            begun: begin.begun,
            first_delivery: None,
            last_delivery: begin.begun,
            computed: None,
        }
    }

    /// Takes what one engine step brought. Past the end of the request it is discarded, uncharged.
    pub(crate) fn on_step(&mut self, step: SequenceStep) -> Engine {
        if let Some(first) = step.first {
            self.timing.queue_us = first.queue_us;
            self.timing.prefill_us = first.prefill_us;
            self.usage.cached_tokens = first.cached_tokens as u64;
        }
        if let Some(energy_uj) = step.energy_uj {
            *self.energy_uj.get_or_insert(0) += energy_uj;
        }
        self.usage.rejected_draft_tokens += u64::from(step.rejected_draft_tokens);
        self.usage.discarded_tokens += u64::from(step.surplus_tokens);
        if self.ending.is_some() {
            self.usage.discarded_tokens += u64::from(step.token.is_some());
            return Engine::Continues;
        }
        let is_end = matches!(step.finish, Some(Finish::Stop));
        let mut engine = Engine::Continues;
        if let Some(token) = step.token {
            engine = self.take_token(token, is_end, step.at);
        }
        if self.ending.is_none() {
            self.ending = match step.finish {
                None => None,
                Some(Finish::Stop) => Some(FinishReason::Stop),
                Some(Finish::Length) => Some(FinishReason::Length),
                Some(Finish::Cancelled) => Some(FinishReason::Cancelled),
                Some(Finish::Failed(reason)) => {
                    self.error = Some(RuntimeError::Model(reason));
                    Some(FinishReason::Error)
                }
            };
        }
        engine
    }

    fn take_token(&mut self, token: SampledToken, is_end: bool, computed: Instant) -> Engine {
        if is_end {
            let is_reasoning = self.transcript.is_thinking();
            let (text, reasoning) = (String::new(), String::new());
            self.pending.push_back(Pending { token, text, reasoning, is_reasoning, is_end, computed });
            return Engine::Continues;
        }
        match self.transcript.push(token.id, &self.rules) {
            Ok(Step { text, reasoning, is_reasoning, stopped }) => {
                self.pending.push_back(Pending { token, text, reasoning, is_reasoning, is_end, computed });
                if stopped {
                    self.ending = Some(FinishReason::Stop);
                    return Engine::MustStop;
                }
                Engine::Continues
            }
            Err(error) => self.fail(error.into()),
        }
    }

    /// The caller gave up: what is not in a debit already is discarded.
    pub(crate) fn cancel(&mut self) -> Engine {
        self.end_early(FinishReason::Cancelled)
    }

    /// When it must have ended, if it has not.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| self.ending.is_none())
    }

    /// Its deadline has passed: what is not in a debit already is discarded.
    pub(crate) fn run_late(&mut self) -> Engine {
        self.end_early(FinishReason::Deadline)
    }

    /// Something broke; what was paid stays paid.
    pub(crate) fn fail(&mut self, error: RuntimeError) -> Engine {
        self.error.get_or_insert(error);
        self.end_early(FinishReason::Error)
    }

    fn end_early(&mut self, reason: FinishReason) -> Engine {
        // The answer may have ended by itself with its last tokens not yet sent to be paid: then they are dropped here.
        let dropped = self.pending.len() - self.debiting;
        if self.ending.is_some() && dropped == 0 && reason != FinishReason::Error {
            return Engine::Continues;
        }
        self.pending.truncate(self.debiting);
        self.usage.discarded_tokens += dropped as u64;
        self.ending = Some(reason);
        Engine::MustStop
    }

    /// Whether something is generated and not paid.
    pub(crate) fn waits_to_be_paid(&self) -> Option<Urgency> {
        let hurries = !self.prompt_debited || self.ending.is_some() || self.pending.len() >= HURRY_TOKENS;
        (!self.pending.is_empty()).then_some(if hurries { Urgency::Now } else { Urgency::WithOthers })
    }

    /// The debit for all that is not paid yet; the runtime keeps one under way at a time.
    pub(crate) fn debit(&mut self) -> Option<Debit> {
        assert_eq!(self.debiting, 0, "one debit at a time");
        if self.pending.is_empty() {
            return None;
        }
        self.debiting = self.pending.len();
        let cached_tokens = self.usage.cached_tokens;
        let prompt = (!self.prompt_debited).then_some(PromptDebit { cached_tokens });
        Some(Debit {
            request_id: self.request_id.clone(),
            prompt,
            output_tokens: u32::try_from(self.debiting).expect("the window bounds what is pending"),
            // Thoughts come before the answer, so they are the first of them.
            reasoning_tokens: self.pending.iter().filter(|pending| pending.is_reasoning).count() as u32,
        })
    }

    /// The debit is durable: what it paid goes to the caller now, and not before.
    pub(crate) fn on_debited(&mut self, debited: &Debited, now: Instant, waited: Duration) -> Engine {
        let waited_us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.timing.commit_wait_max_us = self.timing.commit_wait_max_us.max(waited_us);
        if let Some(refused) = &debited.refused {
            return self.on_debit_failed(RuntimeError::Unpaid(refused.clone()));
        }
        let granted = debited.granted as usize;
        assert!(granted <= self.debiting, "the ledger granted more than was asked for");
        debug_assert_eq!(debited.exhausted, granted < self.debiting, "exhausted means that something was not granted");
        self.debiting = 0;
        self.prompt_debited |= granted > 0;
        let delivered = self.deliver(granted, now);
        if debited.exhausted {
            self.usage.discarded_tokens += self.pending.len() as u64;
            self.pending.clear();
            self.limited = debited.limited.clone();
            let ended = if self.limited.is_some() { FinishReason::Limit } else { FinishReason::Allowance };
            self.ending = Some(ended);
            return Engine::MustStop;
        }
        // To a caller that is gone nothing is delivered any more.
        if delivered { Engine::Continues } else { self.cancel() }
    }

    /// The debit was not recorded: nothing of it was charged, and nothing of it is delivered.
    pub(crate) fn on_debit_failed(&mut self, error: RuntimeError) -> Engine {
        self.debiting = 0;
        self.fail(error)
    }

    fn deliver(&mut self, tokens: usize, now: Instant) -> bool {
        if tokens == 0 {
            return true;
        }
        self.measure(tokens, now);
        let paid: Vec<Pending> = self.pending.drain(..tokens).collect();
        let mut is_heard = true;
        let mut delta = nothing_yet(now);
        for (left, pending) in (0..tokens).rev().zip(paid) {
            self.pay(pending, &mut delta);
            // Each token by itself, so that a reader can be shown them one after another; those that say nothing go with
            // the one after them.
            if left == 0 || !(delta.text.is_empty() && delta.reasoning.is_empty()) {
                is_heard &= (self.sink)(Event::Delta(std::mem::replace(&mut delta, nothing_yet(now))));
            }
        }
        is_heard
    }

    /// Adds a token that is paid to the answer, and to what is told next.
    fn pay(&mut self, pending: Pending, delta: &mut Delta) {
        delta.text.push_str(&pending.text);
        delta.reasoning.push_str(&pending.reasoning);
        delta.tokens += 1;
        self.shown.push_str(&pending.text);
        self.shown_reasoning.push_str(&pending.reasoning);
        self.usage.completion_tokens += 1;
        self.usage.reasoning_tokens += u64::from(pending.is_reasoning);
        self.paid.push(pending.token.id);
        self.paid_end_tokens += usize::from(pending.is_end);
        self.computed = Some((self.computed.map_or(pending.computed, |(first, _)| first), pending.computed));
        if let Some(logprob) = pending.token.logprob.filter(|_| self.wants_logprobs) {
            delta.logprobs.push((pending.token.id, logprob.clone()));
            self.logprobs.push(logprob);
        }
    }

    fn measure(&mut self, tokens: usize, now: Instant) {
        if self.first_delivery.is_none() {
            self.first_delivery = Some(now);
            self.timing.ttft_us = Some(micros(self.begun, now));
            self.timing.itl_us.extend(std::iter::repeat_n(0, tokens - 1));
        } else {
            let share_us = micros(self.last_delivery, now) / tokens as u64;
            self.timing.itl_us.extend(std::iter::repeat_n(share_us, tokens));
        }
        self.last_delivery = now;
    }

    /// The settlement, when all that was generated is paid or dropped; once.
    pub(crate) fn settlement(&mut self, now: Instant) -> Option<Settlement> {
        let finish_reason = self.ending?;
        if self.settling || !self.pending.is_empty() {
            return None;
        }
        self.settling = true;
        let delivered_us = self.first_delivery.map_or(0, |first| micros(first, self.last_delivery));
        // An answer that one commit paid was delivered at once, but it was not computed at once.
        let computed_us = self.computed.map_or(0, |(first, last)| micros(first, last));
        self.timing.decode_us = delivered_us.max(computed_us);
        self.timing.total_us = micros(self.begun, now);
        Some(Settlement {
            request_id: self.request_id.clone(),
            finish_reason,
            queue_us: self.timing.queue_us,
            ttft_us: self.timing.ttft_us,
            decode_us: self.timing.decode_us,
            total_us: self.timing.total_us,
            itl: self.timing.itl_us.iter().copied().collect(),
            reasoning_tokens: self.usage.reasoning_tokens,
            energy_uj: self.energy_uj,
        })
    }

    /// The end: hands the caller what was still held back, and the outcome.
    pub(crate) fn finish(mut self, settled: Result<Settled, LedgerError>) {
        if self.usage.completion_tokens > 0 {
            self.usage.prompt_tokens = self.prompt.len() as u64;
        } else {
            self.usage.cached_tokens = 0;
        }
        let allowance = match settled {
            Ok(settled) => Some(Allowance { debited: settled.debited, balance: settled.balance }),
            Err(error) => {
                self.error.get_or_insert(error.into());
                self.ending = Some(FinishReason::Error);
                None
            }
        };
        if let Err(error) = self.show_the_rest() {
            self.error.get_or_insert(error);
        }
        let finish_reason = self.ending.expect("only an ended request is settled");
        let stopped_by = self.transcript.stopped_by().filter(|_| finish_reason == FinishReason::Stop);
        let outcome = Outcome {
            request_id: self.request_id,
            stopped_by: stopped_by.map(str::to_owned),
            text: self.shown,
            reasoning: self.shown_reasoning,
            finish_reason,
            error: self.error,
            prompt_token_ids: self.prompt,
            token_ids: self.paid,
            logprobs: self.wants_logprobs.then_some(self.logprobs),
            usage: self.usage,
            energy_uj: self.energy_uj,
            timing: self.timing,
            limited: self.limited,
            allowance,
        };
        // Nobody listens any more: the ledger has it all.
        (self.sink)(Event::Finished(Box::new(outcome)));
    }

    /// What could have become a stop string or a whole character, and did not: its tokens are paid, so it is shown.
    /// It is decoded afresh from the paid tokens, since the running transcript may have seen tokens that nobody paid.
    fn show_the_rest(&mut self) -> Result<(), RuntimeError> {
        let tokens = &self.paid[..self.paid.len() - self.paid_end_tokens];
        let (reasoning, text) = Transcript::whole(&self.tokenizer, &self.rules, tokens)?;
        let reasoning = reasoning.strip_prefix(self.shown_reasoning.as_str()).unwrap_or_default().to_owned();
        let text = text.strip_prefix(self.shown.as_str()).unwrap_or_default().to_owned();
        if !text.is_empty() || !reasoning.is_empty() {
            self.shown_reasoning.push_str(&reasoning);
            self.shown.push_str(&text);
            (self.sink)(Event::Delta(Delta { text, reasoning, ..nothing_yet(Instant::now()) }));
        }
        Ok(())
    }
}

/// What a commit that was heard of then has paid for, before anything is added.
fn nothing_yet(paid: Instant) -> Delta {
    Delta { text: String::new(), reasoning: String::new(), tokens: 0, logprobs: Vec::new(), paid }
}

pub(crate) fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}
