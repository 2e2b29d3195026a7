//! The thread that computes vectors: which texts next, and what becomes of requests whose texts are all computed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokrun_engine::{Embedder, Fairness, ModelError, TenantId, TokenId};
use tokrun_ledger::{Debit, Debited, FinishReason, LedgerError, PromptDebit, Settled, Settlement};

use super::{EmbedReply, Embedded};
use crate::active::micros;
use crate::{Allowance, Meter, Outcome, RuntimeError, Timing, Usage, with_causes};

/// Tokens of a batch at most, unless a single text has more: as many as make good use of the weights, and few enough that
/// whoever comes meanwhile does not wait long.
const BATCH_TOKENS_MAX: usize = 512;

pub(super) enum Message {
    Begin(Box<Job>),
    Shutdown,
}

/// What ends a request before all of its texts are computed.
pub(super) struct End {
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) deadline: Option<Instant>,
}

/// One admitted request.
pub(super) struct Job {
    request_id: String,
    tenant: TenantId,
    texts: Vec<Vec<TokenId>>,
    /// Texts that are not computed yet, by their number; the longest comes last and is taken first.
    waiting: Vec<usize>,
    vectors: Vec<Vec<f32>>,
    end: End,
    begun: Instant,
    admitted: Instant,
    /// When the first of its texts was taken up.
    taken_up: Option<Instant>,
    compute_us: u64,
    energy_uj: Option<u64>,
    reply: EmbedReply,
}

impl Job {
    pub(super) fn new(
        request_id: String,
        tenant: TenantId,
        texts: Vec<Vec<TokenId>>,
        end: End,
        begun: Instant,
        reply: EmbedReply,
    ) -> Self {
        let mut waiting: Vec<usize> = (0..texts.len()).collect();
        waiting.sort_by_key(|&text| texts[text].len());
        let vectors = vec![Vec::new(); texts.len()];
        let admitted = Instant::now();
        let (taken_up, compute_us, energy_uj) = (None, 0, None);
        Self {
            request_id,
            tenant,
            texts,
            waiting,
            vectors,
            end,
            begun,
            admitted,
            taken_up,
            compute_us,
            energy_uj,
            reply,
        }
    }

    fn tokens(&self) -> u64 {
        self.texts.iter().map(|text| text.len() as u64).sum()
    }

    /// How it has ended, if it has.
    fn ending(&self) -> Option<FinishReason> {
        let is_late = || self.end.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if self.end.cancelled.load(Ordering::Relaxed) {
            Some(FinishReason::Cancelled)
        } else if self.waiting.is_empty() {
            Some(FinishReason::Stop)
        } else {
            is_late().then_some(FinishReason::Deadline)
        }
    }
}

/// The thread's state.
pub(super) struct Worker {
    embedder: Embedder,
    meter: Arc<dyn Meter>,
    /// In the order in which they came.
    jobs: Vec<Job>,
    fairness: Fairness,
}

impl Worker {
    pub(super) fn new(embedder: Embedder, meter: Arc<dyn Meter>) -> Self {
        Self { embedder, meter, jobs: Vec::new(), fairness: Fairness::default() }
    }

    pub(super) fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            let message = if self.jobs.is_empty() {
                inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                inbox.try_recv()
            };
            match message {
                Ok(Message::Begin(job)) => self.jobs.push(*job),
                Ok(Message::Shutdown) | Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    self.step();
                    self.end_what_ended();
                }
            }
        }
        for job in self.jobs.drain(..) {
            end(&self.meter, job, FinishReason::Cancelled, None);
        }
    }

    /// Computes a batch.
    fn step(&mut self) {
        let batch = self.next_batch();
        if batch.is_empty() {
            return;
        }
        let texts: Vec<&[TokenId]> = batch.iter().map(|&(job, text)| self.jobs[job].texts[text].as_slice()).collect();
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        let begun = Instant::now();
        let energy_before_uj = self.embedder.energy_uj();
        let vectors = self.embedder.embed(&texts);
        let energy_uj =
            self.embedder.energy_uj().zip(energy_before_uj).map(|(after, before)| after.saturating_sub(before));
        let compute_us = micros(begun, Instant::now());
        match vectors {
            Ok(vectors) => {
                for ((job, text), vector) in batch.into_iter().zip(vectors) {
                    let job = &mut self.jobs[job];
                    let share = |sum: u64| (u128::from(sum) * job.texts[text].len() as u128 / tokens as u128) as u64;
                    job.compute_us += share(compute_us);
                    if let Some(energy_uj) = energy_uj {
                        job.energy_uj = Some(job.energy_uj.unwrap_or(0) + share(energy_uj));
                    }
                    job.taken_up.get_or_insert(begun);
                    job.vectors[text] = vector;
                }
            }
            Err(error) => self.fail(&batch, &error),
        }
    }

    /// The next texts to compute, by job and number; they are taken off those that wait. The first is one of whoever was
    /// served least; what is about as long goes along, so that hardly anything is computed for padding.
    fn next_batch(&mut self) -> Vec<(usize, usize)> {
        let tenants: BTreeSet<TenantId> = self.jobs.iter().map(|job| job.tenant).collect();
        self.fairness.level(&tenants, 0);
        let mut batch = Vec::new();
        let mut width = 0;
        loop {
            let fits = |job: &Job| {
                let tokens = job.waiting.last().map(|&text| job.texts[text].len())?;
                let is_first = batch.is_empty();
                let goes_along =
                    tokens <= width && tokens * 4 >= width * 3 && (batch.len() + 1) * width <= BATCH_TOKENS_MAX;
                (is_first || goes_along).then_some(self.fairness.served(job.tenant))
            };
            let served = self.jobs.iter().enumerate().filter_map(|(index, job)| Some((fits(job)?, index)));
            let Some((_, index)) = served.min() else { return batch };
            let job = &mut self.jobs[index];
            let text = job.waiting.pop().expect("it has one that fits");
            let tokens = job.texts[text].len();
            width = width.max(tokens);
            self.fairness.charge(job.tenant, tokens as u64);
            batch.push((index, text));
        }
    }

    /// Ends the jobs of a batch that could not be computed.
    fn fail(&mut self, batch: &[(usize, usize)], error: &ModelError) {
        let mut failed: Vec<usize> = batch.iter().map(|&(job, _)| job).collect();
        failed.sort_unstable();
        failed.dedup();
        for index in failed.into_iter().rev() {
            let job = self.jobs.remove(index);
            end(&self.meter, job, FinishReason::Error, Some(RuntimeError::Model(with_causes(error))));
        }
    }

    fn end_what_ended(&mut self) {
        let mut index = 0;
        while index < self.jobs.len() {
            match self.jobs[index].ending() {
                Some(reason) => end(&self.meter, self.jobs.remove(index), reason, None),
                None => index += 1,
            }
        }
    }
}

/// Pays a request that is computed, settles it, and answers when that is durable. Both go into the ledger's queue at once,
/// so that one commit has them.
fn end(meter: &Arc<dyn Meter>, job: Job, reason: FinishReason, error: Option<RuntimeError>) {
    let debited = Arc::new(Mutex::new(None));
    if reason == FinishReason::Stop {
        let (request_id, prompt) = (job.request_id.clone(), Some(PromptDebit { cached_tokens: 0 }));
        let debit = Debit { request_id, prompt, output_tokens: 0, reasoning_tokens: 0 };
        let heard = Arc::clone(&debited);
        meter.debit(
            vec![debit],
            Box::new(move |result| *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(paid(result))),
        );
    }
    let timing = Timing {
        admit_us: micros(job.begun, job.admitted),
        queue_us: job.taken_up.map_or(0, |taken_up| micros(job.admitted, taken_up)),
        prefill_us: job.compute_us,
        total_us: micros(job.begun, Instant::now()),
        ..Timing::default()
    };
    let settlement = Settlement {
        queue_us: timing.queue_us,
        total_us: timing.total_us,
        energy_uj: job.energy_uj,
        ..Settlement::new(job.request_id.clone(), reason)
    };
    let answer = move |settled| {
        // The ledger answers in the order in which it is asked.
        let debited = debited.lock().unwrap_or_else(PoisonError::into_inner).take();
        let error = error.or_else(|| debited.and_then(Result::err).map(RuntimeError::Unpaid));
        answer(job, reason, error, timing, settled);
    };
    meter.settle(settlement, Box::new(answer));
}

fn paid(debited: Result<Vec<Debited>, LedgerError>) -> Result<(), LedgerError> {
    debited?.into_iter().find_map(|debited| debited.refused).map_or(Ok(()), Err)
}

fn answer(
    job: Job,
    reason: FinishReason,
    mut error: Option<RuntimeError>,
    timing: Timing,
    settled: Result<Settled, LedgerError>,
) {
    let allowance = match settled {
        Ok(settled) => Some(Allowance { debited: settled.debited, balance: settled.balance }),
        Err(failed) => {
            error.get_or_insert(failed.into());
            None
        }
    };
    let is_paid = reason == FinishReason::Stop && error.is_none();
    let usage = Usage { prompt_tokens: if is_paid { job.tokens() } else { 0 }, ..Usage::default() };
    let outcome = Outcome {
        finish_reason: if error.is_some() { FinishReason::Error } else { reason },
        error,
        usage,
        energy_uj: job.energy_uj,
        timing,
        allowance,
        ..Outcome::nothing(job.request_id)
    };
    (job.reply)(Embedded { vectors: if is_paid { job.vectors } else { Vec::new() }, outcome });
}
