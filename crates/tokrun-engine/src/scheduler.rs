//! Which request gets which tokens computed next. It does no I/O, reads no clock and draws no random number: the same
//! calls always lead to the same plans.
//!
//! A request is a row of tokens, prompt and output, of which the model has the first ones. What is left to feed is a chunk
//! of the prompt, or the token sampled last and a few guesses at what follows it. A step computes `step_tokens_max`
//! tokens at most: first those of requests that generate, then chunks of prompts, the longest waiting one first.
//!
//! Requests wait until a place and, in a paged cache, blocks for all their tokens are free. The tenant that was served
//! least comes first ([`fairness`]), then the longest wait; nobody overtakes the one whose turn it is because it is small. A
//! more urgent request takes the place in line of an earlier one of its own tenant, and never one of another's. When
//! running requests need more blocks than there are, the last in that order is preempted: it waits again, keeps its tokens,
//! and is computed anew later. So is one that keeps the next one waiting though its tenant is too far ahead, its own tenant
//! wants something more urgent, or its reader has stalled.
//!
//! A step may be planned while the one before is under way: a request then goes on from a token that is still to come. What
//! is computed past a token that turns out to end the answer is dropped. Blocks are published when their tokens are known.
//!
//! A request that is `window_tokens` ahead of what its reader has acknowledged is passed over until it is caught up with.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokrun_model::{BlockId, Paging, TokenId};

use crate::blocks::{Blocks, Chain};
use crate::request::{Finish, RequestId, TenantId};

mod drafter;
mod fairness;
mod sequence;
#[cfg(test)]
mod tests;

pub use fairness::Fairness;
use sequence::Sequence;

/// More requests than that in one step fill it without guesses.
const SPECULATING_SEQUENCES_MAX: usize = 4;

/// What bounds a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Requests that run at the same time.
    pub(crate) sequences_max: usize,
    /// Tokens computed in one step, over all requests.
    pub(crate) step_tokens_max: usize,
    /// Tokens a request may be ahead of its acknowledgements.
    pub(crate) window_tokens: u64,
    /// The blocks to hand out, for executors that leave that to the caller.
    pub(crate) paging: Option<Paging>,
    /// Share computed blocks between requests that begin alike.
    pub(crate) prefix_cache: bool,
    /// Guess tokens where there is room for them in a paged cache.
    pub(crate) speculation: bool,
}

/// What the scheduler must know of a request.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) request_id: RequestId,
    pub(crate) tenant: TenantId,
    pub(crate) priority: i32,
    pub(crate) cache_salt: u64,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) prompt_tokens: usize,
    /// At least 1; all together must fit the cache.
    pub(crate) max_new_tokens: usize,
    pub(crate) end_tokens: Vec<TokenId>,
}

/// One step.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// What the model keeps for these is to be dropped first; they may be in `work` again, from their beginning.
    pub(crate) preempted: Vec<RequestId>,
    pub(crate) work: Vec<Work>,
}

/// Tokens of one request to compute in this step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) request_id: RequestId,
    /// Position of the first of `tokens`, prompt and output counted as one row.
    pub(crate) start: usize,
    pub(crate) tokens: Vec<TokenId>,
    /// Its one token is not known yet: the step planned before samples it.
    pub(crate) to_come: bool,
    /// So many of `tokens`, at their end, are guesses.
    pub(crate) guesses: usize,
    /// Where the request lies in a paged cache.
    pub(crate) blocks: Arc<Vec<BlockId>>,
    /// The next token is to be sampled after the last token that is no guess, and after each guess that came true.
    pub(crate) samples: bool,
}

impl Work {
    /// Rows of logits that it samples from.
    pub(crate) fn rows(&self) -> usize {
        if self.samples { 1 + self.guesses } else { 0 }
    }
}

/// What a sampled token led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) finish: Option<Finish>,
    /// The token had been guessed: the next one can be sampled as well.
    pub(crate) samples_again: bool,
    /// Guesses that came to nothing.
    pub(crate) rejected: usize,
}

/// What was done since the beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) computed_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) preemptions: u64,
    pub(crate) drafted_tokens: u64,
    pub(crate) accepted_tokens: u64,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    waiting: Vec<Sequence>,
    running: Vec<Sequence>,
    blocks: Option<Blocks>,
    fairness: Fairness,
    arrivals: u64,
    totals: Totals,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: Vec::new(),
            running: Vec::new(),
            blocks: limits.paging.map(|paging| Blocks::new(paging, limits.prefix_cache)),
            fairness: Fairness::default(),
            arrivals: 0,
            totals: Totals::default(),
        }
    }

    /// Takes a request; its id must not be live.
    pub(crate) fn add(&mut self, job: Job) {
        self.arrivals += 1;
        self.waiting.push(Sequence::new(job, self.arrivals));
    }

    /// The reader of a request has `total_tokens` of its output for good; less than before changes nothing.
    pub(crate) fn acknowledge(&mut self, request_id: RequestId, total_tokens: u64) {
        if let Some(sequence) = self.find(request_id) {
            sequence.acknowledge(total_tokens);
        }
    }

    /// Forgets a request; whether it was live.
    pub(crate) fn remove(&mut self, request_id: RequestId) -> bool {
        let is_it = |sequence: &Sequence| sequence.job.request_id == request_id;
        let removed = match self.running.iter().position(is_it) {
            Some(index) => Some(self.running.remove(index)),
            None => self.waiting.iter().position(is_it).map(|index| self.waiting.remove(index)),
        };
        let Some(sequence) = removed else { return false };
        self.release(sequence.chain);
        true
    }

    /// What to compute next; empty when nothing can be. Each work must be answered with `computed` or `remove`, and then
    /// with `apply` as often as it samples; all works of a plan before those of the next, which may be planned earlier.
    pub(crate) fn plan(&mut self) -> Plan {
        self.level();
        self.line_up();
        let mut preempted = Vec::new();
        self.admit(&mut preempted);
        self.make_room(&mut preempted);
        Plan { preempted, work: self.hand_out() }
    }

    /// Whether the tokens to come should be waited for before the next plan: where one goes on depends on guesses that are
    /// being checked, or what follows could be guessed.
    pub(crate) fn waits_for_tokens(&mut self) -> bool {
        let speculates = self.guesses_max() > 0;
        self.running.iter_mut().any(|sequence| {
            let expects = |s: &mut Sequence| s.awaits_token() && s.drafter.expects(&s.tokens);
            sequence.is_guessing() || speculates && expects(sequence)
        })
    }

    /// The model has computed what was planned.
    pub(crate) fn computed<'a>(&mut self, work: impl Iterator<Item = &'a Work>) {
        for work in work {
            self.totals.computed_tokens += work.tokens.len() as u64;
            let mut live = self.running.iter_mut().chain(&mut self.waiting);
            let Some(sequence) = live.find(|s| s.job.request_id == work.request_id) else { continue };
            sequence.step_done();
            if let (Some(blocks), Some(chain)) = (&mut self.blocks, &mut sequence.chain) {
                blocks.publish(chain, &sequence.tokens[..sequence.computed]);
            }
        }
    }

    /// A planned request has sampled `token`.
    pub(crate) fn apply(&mut self, request_id: RequestId, token: TokenId) -> Applied {
        let mut live = self.running.iter_mut().chain(&mut self.waiting);
        let Some(sequence) = live.find(|sequence| sequence.job.request_id == request_id) else {
            return Applied::default();
        };
        let fed = sequence.fed;
        let applied = sequence.take(token);
        self.totals.accepted_tokens += (sequence.fed - fed) as u64;
        let surplus = if applied.finish.is_some() { sequence.charged_under_way() } else { 0 };
        self.fairness.refund(sequence.job.tenant, (applied.rejected + surplus) as u64);
        if applied.finish.is_some() {
            self.remove(request_id);
        }
        applied
    }

    /// Prompt tokens of a live request that did not have to be computed.
    pub(crate) fn cached_tokens(&mut self, request_id: RequestId) -> usize {
        self.find(request_id).map_or(0, |sequence| sequence.cached)
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    fn find(&mut self, request_id: RequestId) -> Option<&mut Sequence> {
        let mut live = self.running.iter_mut().chain(&mut self.waiting);
        live.find(|sequence| sequence.job.request_id == request_id)
    }

    /// Settles who was left with work undone, and so how far anybody may be ahead.
    fn level(&mut self) {
        let window = self.limits.window_tokens;
        let waiting = self.waiting.iter();
        let left_over = self.running.iter().filter(|sequence| sequence.undone);
        let undone = waiting.chain(left_over).filter(|sequence| sequence.window_left(window) > 0);
        let undone: BTreeSet<TenantId> = undone.map(|sequence| sequence.job.tenant).collect();
        let live = self.waiting.iter().chain(&self.running);
        let longest_prompt = live.map(|sequence| sequence.job.prompt_tokens).max().unwrap_or(0);
        self.fairness.level(&undone, (longest_prompt + self.limits.step_tokens_max) as u64);
    }

    /// Gives the more urgent requests of a tenant the places in line of its earlier ones.
    fn line_up(&mut self) {
        let mut live: Vec<&mut Sequence> = self.waiting.iter_mut().chain(&mut self.running).collect();
        let are_alike = live.windows(2).all(|pair| pair[0].job.priority == pair[1].job.priority);
        if are_alike {
            return live.into_iter().for_each(|sequence| sequence.place = sequence.arrival);
        }
        live.sort_unstable_by_key(|sequence| (sequence.job.tenant, sequence.arrival));
        for own in live.chunk_by_mut(|one, next| one.job.tenant == next.job.tenant) {
            let places: Vec<u64> = own.iter().map(|sequence| sequence.arrival).collect();
            own.sort_by_key(|sequence| Reverse(sequence.job.priority));
            own.iter_mut().zip(places).for_each(|(sequence, place)| sequence.place = place);
        }
    }

    /// Starts waiting requests in their order, until the next one does not fit.
    fn admit(&mut self, preempted: &mut Vec<RequestId>) {
        while let Some(next) = self.next_waiting() {
            while !self.start(next) {
                let Some(victim) = self.victim_for(next) else { return };
                preempted.push(self.preempt(victim));
            }
        }
    }

    /// Whose turn it is. What a tenant's running requests are still to be fed counts as served already.
    fn next_waiting(&self) -> Option<usize> {
        if self.waiting.is_empty() {
            return None;
        }
        let mut promised: BTreeMap<TenantId, u64> = BTreeMap::new();
        for sequence in &self.running {
            *promised.entry(sequence.job.tenant).or_default() += sequence.pending() as u64;
        }
        let may_run = |sequence: &Sequence| {
            let runs_on = sequence.window_left(self.limits.window_tokens) > 0 && !sequence.is_complete();
            runs_on && self.fairness.allowance(sequence.job.tenant) > 0
        };
        let turn = |sequence: &Sequence| {
            let tenant = sequence.job.tenant;
            sequence.rank(self.fairness.served(tenant) + promised.get(&tenant).copied().unwrap_or(0))
        };
        let candidates = self.waiting.iter().enumerate().filter(|(_, sequence)| may_run(sequence));
        candidates.min_by_key(|(_, sequence)| turn(sequence)).map(|(index, _)| index)
    }

    /// Gives a waiting request a place and blocks, if there are.
    fn start(&mut self, index: usize) -> bool {
        if self.running.len() >= self.limits.sequences_max {
            return false;
        }
        let sequence = &mut self.waiting[index];
        if let Some(blocks) = &mut self.blocks {
            // Those that run will each soon need one more.
            let reserve = self.running.len();
            let Some(chain) = blocks.begin(sequence.job.cache_salt, &sequence.tokens, reserve) else { return false };
            self.totals.cached_tokens += blocks.published_tokens(&chain) as u64;
            sequence.skip_to(blocks.published_tokens(&chain));
            sequence.chain = Some(chain);
        }
        let sequence = self.waiting.remove(index);
        self.running.push(sequence);
        true
    }

    /// Who must give way to a waiting request, the last in rank first.
    fn victim_for(&self, waiting: usize) -> Option<usize> {
        let next = &self.waiting[waiting].job;
        let must_go = |sequence: &Sequence| {
            let Job { tenant, priority, .. } = sequence.job;
            let same = tenant == next.tenant;
            sequence.gives_way()
                || (same && priority < next.priority)
                || (!same && self.fairness.allowance(tenant) == 0)
        };
        self.last_in_rank(must_go)
    }

    fn last_in_rank(&self, may_go: impl Fn(&Sequence) -> bool) -> Option<usize> {
        let candidates = self.running.iter().enumerate().filter(|(_, sequence)| may_go(sequence));
        candidates.max_by_key(|(_, sequence)| self.rank(sequence)).map(|(index, _)| index)
    }

    fn rank(&self, sequence: &Sequence) -> (u64, u64) {
        sequence.rank(self.fairness.served(sequence.job.tenant))
    }

    fn preempt(&mut self, index: usize) -> RequestId {
        let mut sequence = self.running.remove(index);
        let chain = sequence.suspend();
        self.release(chain);
        self.totals.preemptions += 1;
        let request_id = sequence.job.request_id;
        self.waiting.push(sequence);
        request_id
    }

    fn release(&mut self, chain: Option<Chain>) {
        if let (Some(blocks), Some(chain)) = (&mut self.blocks, chain) {
            blocks.release(chain);
        }
    }

    /// Gives those that generate the blocks for their next token, in their order, and preempts from its end.
    fn make_room(&mut self, preempted: &mut Vec<RequestId>) {
        let lacks_blocks = |sequence: &Sequence| {
            let stalls = sequence.window_left(self.limits.window_tokens) == 0 || sequence.is_complete();
            let (Some(blocks), Some(chain)) = (&self.blocks, &sequence.chain) else { return false };
            !stalls && blocks.missing(chain, sequence.length()) > 0
        };
        let lacking = self.running.iter().filter(|sequence| lacks_blocks(sequence));
        let mut order: Vec<_> = lacking.map(|s| (self.rank(s), s.job.request_id)).collect();
        order.sort_unstable();
        for (_, request_id) in order {
            while let Some(sequence) = self.running.iter_mut().find(|s| s.job.request_id == request_id) {
                let length = sequence.length();
                let (Some(blocks), Some(chain)) = (&mut self.blocks, &mut sequence.chain) else { break };
                if blocks.grow(chain, length) {
                    break;
                }
                let victim = self.last_in_rank(|_| true).expect("it runs itself");
                preempted.push(self.preempt(victim));
            }
        }
    }

    /// Deals out the tokens of one step.
    fn hand_out(&mut self) -> Vec<Work> {
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.sort_by_cached_key(|index| {
            let sequence = &self.running[*index];
            let (decodes, passed_over) = (sequence.decodes(), sequence.passed_over);
            let was_forgotten = passed_over >= self.limits.sequences_max;
            let (served, place) = self.rank(sequence);
            // Those that generate take turns; prompts are finished one after the other.
            let turn = if decodes { passed_over } else { 0 };
            (!was_forgotten, !decodes, served, Reverse(turn), place)
        });
        let mut budget = self.limits.step_tokens_max;
        let mut work = Vec::new();
        for index in order {
            let planned = self.hand_to(index, budget);
            budget -= planned.as_ref().map_or(0, |work| work.tokens.len());
            work.extend(planned);
        }
        work
    }

    /// What one request gets of the step.
    fn hand_to(&mut self, index: usize, budget: usize) -> Option<Work> {
        let sequence = &mut self.running[index];
        if sequence.is_complete() {
            sequence.undone = false;
            return None;
        }
        let window_left = sequence.window_left(self.limits.window_tokens);
        sequence.undone = window_left > 0;
        sequence.stalled = if window_left > 0 { 0 } else { sequence.stalled + 1 };
        if window_left == 0 || budget == 0 {
            sequence.passed_over += usize::from(window_left > 0);
            return None;
        }
        self.skip_published(index);
        let sequence = &mut self.running[index];
        let tenant = sequence.job.tenant;
        let allowance = usize::try_from(self.fairness.allowance(tenant)).unwrap_or(usize::MAX);
        // What is computed anew after a preemption is on the house.
        let free = sequence.charged.saturating_sub(sequence.fed);
        let count = sequence.feedable().min(budget).min(free.saturating_add(allowance));
        sequence.undone = count < sequence.pending();
        if count == 0 {
            return None;
        }
        let fresh = count.saturating_sub(free);
        let guesses = self.guess(index, (budget - count).min(window_left - 1).min(allowance - fresh));
        self.fairness.charge(tenant, (fresh + guesses.len()) as u64);
        self.totals.drafted_tokens += guesses.len() as u64;
        Some(self.running[index].plan(count, &guesses))
    }

    /// Somebody may have computed meanwhile what this request is still to be fed.
    fn skip_published(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        if sequence.decodes() {
            return;
        }
        if let (Some(blocks), Some(chain)) = (&mut self.blocks, &mut sequence.chain) {
            blocks.adopt(chain, &sequence.tokens);
            let found = blocks.published_tokens(chain);
            self.totals.cached_tokens += found.saturating_sub(sequence.fed) as u64;
            sequence.skip_to(found);
        }
    }

    /// What may follow the token that a request is fed, at most `room` tokens.
    fn guess(&mut self, index: usize, room: usize) -> Vec<TokenId> {
        let guesses_max = self.guesses_max();
        let sequence = &mut self.running[index];
        if guesses_max == 0 || !sequence.decodes() || sequence.to_come > 0 {
            return Vec::new();
        }
        let output_left = sequence.job.max_new_tokens - sequence.generated();
        let guesses = sequence.drafter.guess(&sequence.tokens, room.min(output_left - 1).min(guesses_max));
        let (Some(blocks), Some(chain)) = (&mut self.blocks, &mut sequence.chain) else { return Vec::new() };
        if blocks.grow(chain, sequence.tokens.len() + guesses.len()) { guesses } else { Vec::new() }
    }

    /// Guesses that each request may add to its step.
    fn guesses_max(&self) -> usize {
        let few = self.running.len() <= SPECULATING_SEQUENCES_MAX;
        if !self.limits.speculation || self.blocks.is_none() || !few {
            return 0;
        }
        // The guesses of one must not take the place of another's next token.
        (self.limits.step_tokens_max / self.running.len().max(1)).saturating_sub(1)
    }
}
