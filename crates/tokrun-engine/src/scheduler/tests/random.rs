//! Random traces against a made-up paged executor that knows what is really written where.

use std::collections::{BTreeMap, HashMap, VecDeque};

use proptest::prelude::*;

use super::*;

const BLOCK: usize = 4;

/// What a made-up model says after these tokens: often the same again, so that guesses come true now and then.
fn model(tokens: &[TokenId]) -> TokenId {
    let hash =
        tokens.iter().fold(17_u64, |state, token| (state ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    match (hash >> 60, tokens) {
        (0, _) => END,
        (1..=9, [.., before, _, _]) => *before,
        (rest, _) => 10 + (rest % 3) as TokenId,
    }
}

/// Writes tokens where it is told to, and reads a sequence back from its blocks alone.
#[derive(Default)]
struct Cache {
    tokens: HashMap<(BlockId, usize), TokenId>,
}

impl Cache {
    /// Stores the new tokens of `work`; the tokens that the model sees after each of them.
    fn extend(&mut self, work: &Work) -> Vec<Vec<TokenId>> {
        let at = |position: usize| (work.blocks[position / BLOCK], position % BLOCK);
        for (index, token) in work.tokens.iter().enumerate() {
            self.tokens.insert(at(work.start + index), *token);
        }
        let end = work.start + work.tokens.len();
        let row: Vec<TokenId> = (0..end).map(|position| self.tokens[&at(position)]).collect();
        (work.start..end).map(|last| row[..=last].to_vec()).collect()
    }
}

#[derive(Clone, Debug)]
enum Event {
    Add { tenant: u64, priority: i32, prompt: Vec<TokenId>, max_new_tokens: usize },
    Remove(usize),
    Acknowledge(usize),
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    let prompt = prop_oneof![prop::collection::vec(1..3_u32, 1..20), prop::collection::vec(1..30_u32, 1..30)];
    let add = (0..3_u64, -1..2_i32, prompt, 1..16_usize);
    prop_oneof![
        3 => add.prop_map(|(tenant, priority, prompt, max_new_tokens)| Event::Add { tenant, priority, prompt, max_new_tokens }),
        1 => (0..16_usize).prop_map(Event::Remove),
        4 => (0..16_usize).prop_map(Event::Acknowledge),
        10 => Just(Event::Step),
    ]
}

/// What the test knows of a request.
struct Known {
    job: Job,
    output: Vec<TokenId>,
    /// Sampled in a step that is under way.
    to_come: Option<TokenId>,
    acknowledged: usize,
    /// Tokens that were computed for it or found, once each.
    seen: usize,
    steps_passed_over: usize,
    ended: bool,
}

/// A work under way, what it samples, and what it served its tenant.
struct Submitted {
    work: Work,
    tokens: Vec<TokenId>,
    served: u64,
    live: bool,
}

struct World {
    scheduler: Scheduler,
    /// Steps that may be under way when the next one is planned.
    depth: usize,
    under_way: VecDeque<Vec<Submitted>>,
    limits: Limits,
    cache: Cache,
    known: BTreeMap<RequestId, Known>,
    /// Tokens served to each tenant, counted by the test itself.
    served: BTreeMap<TenantId, u64>,
    /// For pairs of tenants that have work waiting: what each had been served when that began.
    contests: BTreeMap<(TenantId, TenantId), (u64, u64)>,
    largest_prompt: usize,
}

impl World {
    fn new(limits: Limits, depth: usize) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            depth,
            under_way: VecDeque::new(),
            limits,
            cache: Cache::default(),
            known: BTreeMap::new(),
            served: BTreeMap::new(),
            contests: BTreeMap::new(),
            largest_prompt: 0,
        }
    }

    fn add(&mut self, tenant: u64, priority: i32, prompt: Vec<TokenId>, max_new_tokens: usize) {
        let cache_tokens = self.limits.paging.map_or(usize::MAX, |paging| paging.blocks * BLOCK);
        let prompt_tokens = prompt.len();
        // The engine refuses what can never fit, and cuts what would outgrow the cache.
        if prompt_tokens >= cache_tokens {
            return;
        }
        let id = self.known.len() as u64;
        let max_new_tokens = max_new_tokens.min(cache_tokens - prompt_tokens);
        let job = Job { priority, prompt, prompt_tokens, ..of_tenant(tenant, job(id, 0, max_new_tokens)) };
        self.scheduler.add(job.clone());
        self.largest_prompt = self.largest_prompt.max(prompt_tokens);
        let known = Known {
            job,
            output: Vec::new(),
            to_come: None,
            acknowledged: 0,
            seen: 0,
            steps_passed_over: 0,
            ended: false,
        };
        self.known.insert(RequestId(id), known);
    }

    fn remove(&mut self, nth: usize) -> Result<(), TestCaseError> {
        if let Some((id, known)) = self.known.iter_mut().nth(nth) {
            prop_assert_eq!(self.scheduler.remove(*id), !known.ended);
            known.ended = true;
            let id = *id;
            self.forget(id);
        }
        Ok(())
    }

    fn acknowledge(&mut self, nth: usize) {
        if let Some((id, known)) = self.known.iter_mut().nth(nth) {
            known.acknowledged = known.output.len();
            self.scheduler.acknowledge(*id, known.acknowledged as u64);
        }
    }

    /// One step, with everything that a plan promises; how many tokens it computed.
    fn step(&mut self) -> Result<usize, TestCaseError> {
        if self.scheduler.waits_for_tokens() {
            while !self.under_way.is_empty() {
                self.collect()?;
            }
        }
        let Plan { preempted, work } = self.scheduler.plan();
        prop_assert!(preempted.iter().all(|id| !self.known[id].ended));
        let tokens: usize = work.iter().map(|work| work.tokens.len()).sum();
        prop_assert!(tokens <= self.limits.step_tokens_max && work.len() <= self.limits.sequences_max);
        self.check_blocks(&work)?;
        self.check_turns(&work)?;
        let submitted: Vec<Submitted> = work.into_iter().map(|work| self.submit(work)).collect::<Result<_, _>>()?;
        let nothing = submitted.is_empty();
        self.under_way.extend((!nothing).then_some(submitted));
        if nothing || self.under_way.len() > self.depth {
            self.collect()?;
        }
        self.check_fairness()?;
        Ok(tokens)
    }

    /// What is under way for a request that ended is of no use; what that had served.
    fn forget(&mut self, id: RequestId) -> u64 {
        let mut served = 0;
        for submitted in self.under_way.iter_mut().flatten().filter(|submitted| submitted.work.request_id == id) {
            submitted.live = false;
            served += submitted.served;
        }
        served
    }

    /// Whatever is written to belongs to one sequence, and no other reads it.
    fn check_blocks(&self, work: &[Work]) -> Result<(), TestCaseError> {
        let Some(paging) = self.limits.paging else { return Ok(()) };
        let mut writers: BTreeMap<BlockId, RequestId> = BTreeMap::new();
        for work in work {
            let end = work.start + work.tokens.len();
            prop_assert!(end <= work.blocks.len() * BLOCK && work.blocks.len() <= paging.blocks);
            for block in &work.blocks[work.start / BLOCK..end.div_ceil(BLOCK)] {
                prop_assert!((*block as usize) < paging.blocks);
                prop_assert_eq!(writers.insert(*block, work.request_id), None, "two write to one block");
            }
        }
        for sequence in &self.scheduler.running {
            for block in sequence.chain.as_ref().map_or(&[][..], Chain::blocks) {
                prop_assert!(writers.get(block).is_none_or(|writer| *writer == sequence.job.request_id));
            }
        }
        Ok(())
    }

    /// The model computes a work, and samples.
    fn submit(&mut self, mut work: Work) -> Result<Submitted, TestCaseError> {
        let known = self.known.get_mut(&work.request_id).expect("only known requests are planned");
        prop_assert!(!known.ended && !work.tokens.is_empty());
        let row: Vec<TokenId> = known.job.prompt.iter().chain(&known.output).copied().chain(known.to_come).collect();
        if work.to_come {
            prop_assert_eq!(work.tokens.len(), 1);
            work.tokens = vec![known.to_come.expect("it was sampled in the step before")];
        }
        let confirmed = work.start + work.tokens.len() - work.guesses;
        prop_assert_eq!(&work.tokens[..work.tokens.len() - work.guesses], &row[work.start..confirmed]);
        prop_assert_eq!(work.samples, confirmed == row.len());
        prop_assert!(work.guesses == 0 || work.samples && self.limits.paging.is_some());
        let output = row.len() - known.job.prompt_tokens;
        prop_assert!(!work.samples || output < known.job.max_new_tokens, "it goes on past its end");
        let served = confirmed.saturating_sub(known.seen.max(work.start)) as u64;
        *self.served.entry(known.job.tenant).or_default() += served;
        known.seen = known.seen.max(confirmed);
        // Without blocks the model keeps the row by itself.
        let seen = match self.limits.paging {
            Some(_) => self.cache.extend(&work),
            None => (work.start..confirmed).map(|last| row[..=last].to_vec()).collect(),
        };
        prop_assert_eq!(&seen[confirmed - work.start - 1], &row[..confirmed], "its blocks hold what it says");
        let sampled = if work.samples { &seen[confirmed - work.start - 1..] } else { &[] };
        let tokens: Vec<TokenId> = sampled.iter().map(|row| model(row)).collect();
        if work.samples {
            known.to_come = tokens.first().copied();
        }
        Ok(Submitted { work, tokens, served, live: true })
    }

    /// The earliest step under way is done.
    fn collect(&mut self) -> Result<(), TestCaseError> {
        let Some(step) = self.under_way.pop_front() else { return Ok(()) };
        self.scheduler.computed(step.iter().filter(|submitted| submitted.live).map(|submitted| &submitted.work));
        for Submitted { work, tokens, live, .. } in step {
            let known = self.known.get_mut(&work.request_id).expect("only known requests are planned");
            if !live || tokens.is_empty() {
                continue;
            }
            let later = |other: &Submitted| other.work.request_id == work.request_id && other.work.samples;
            if !self.under_way.iter().flatten().any(later) {
                known.to_come = None;
            }
            let tenant = known.job.tenant;
            for token in tokens {
                known.output.push(token);
                let ahead = known.output.len() - known.acknowledged;
                prop_assert!(ahead as u64 <= self.limits.window_tokens);
                let applied = self.scheduler.apply(work.request_id, token);
                let all = known.output.len() == known.job.max_new_tokens;
                let expected = if token == END { Some(Finish::Stop) } else { all.then_some(Finish::Length) };
                prop_assert_eq!(&applied.finish, &expected);
                known.ended = applied.finish.is_some();
                if !applied.samples_again {
                    break;
                }
                *self.served.entry(tenant).or_default() += 1;
                known.seen += 1;
            }
            if known.ended {
                let surplus = self.forget(work.request_id);
                *self.served.entry(tenant).or_default() -= surplus;
            }
        }
        Ok(())
    }

    /// A request that runs and could go on is not forgotten.
    fn check_turns(&mut self, work: &[Work]) -> Result<(), TestCaseError> {
        for sequence in &self.scheduler.running {
            let known = self.known.get_mut(&sequence.job.request_id).expect("only known requests run");
            let served = work.iter().any(|work| work.request_id == sequence.job.request_id);
            known.steps_passed_over = if served || !sequence.undone { 0 } else { known.steps_passed_over + 1 };
            // Others of its tenant take their turns, and other tenants catch up with its own first.
            let catching_up = 3 * (self.largest_prompt + self.limits.step_tokens_max);
            prop_assert!(known.steps_passed_over <= 2 * self.limits.sequences_max + catching_up, "it starves");
        }
        Ok(())
    }

    /// Two tenants that both have work waiting are served alike.
    fn check_fairness(&mut self) -> Result<(), TestCaseError> {
        let window = self.limits.window_tokens;
        let waiting = self.scheduler.waiting.iter().filter(|sequence| sequence.window_left(window) > 0);
        let waiting: BTreeSet<TenantId> = waiting.map(|sequence| sequence.job.tenant).collect();
        self.contests.retain(|(one, other), _| waiting.contains(one) && waiting.contains(other));
        let bound = 2 * (self.largest_prompt + self.limits.step_tokens_max) as u64;
        for one in &waiting {
            for other in waiting.range(..one) {
                let served = |tenant: &TenantId| self.served.get(tenant).copied().unwrap_or(0);
                let now = (served(one), served(other));
                let then = *self.contests.entry((*one, *other)).or_insert(now);
                let gap = (now.0 - then.0).abs_diff(now.1 - then.1);
                prop_assert!(gap <= bound, "{gap} tokens between two that wait, more than {bound}");
            }
        }
        Ok(())
    }

    /// With readers that keep up, everything comes to its end, with the text that it has alone.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..100_000 {
            (0..self.known.len()).for_each(|nth| self.acknowledge(nth));
            // Places that a stalled reader kept are given up after some empty steps only.
            if self.step()? == 0 && self.scheduler.running() + self.scheduler.waiting() == 0 {
                break;
            }
        }
        prop_assert!(self.known.values().all(|known| known.ended));
        prop_assert_eq!(self.scheduler.running() + self.scheduler.waiting(), 0);
        if let Some(blocks) = self.scheduler.blocks() {
            prop_assert_eq!(blocks.available(), blocks.total(), "a block leaked");
        }
        for known in self.known.values() {
            let mut row = known.job.prompt.clone();
            for token in &known.output {
                prop_assert_eq!(*token, model(&row), "the text is the model's own");
                row.push(*token);
            }
        }
        Ok(())
    }
}

fn paging() -> impl Strategy<Value = Option<Paging>> {
    let paging = |blocks| Paging { block_tokens: BLOCK, blocks, block_bytes: 1 };
    prop_oneof![1 => Just(None), 4 => (4..40_usize).prop_map(move |blocks| Some(paging(blocks)))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn no_block_is_lost_or_shared_wrongly_and_everybody_ends_in_fairness(
        events in prop::collection::vec(event(), 1..100),
        sequences_max in 1..6_usize,
        step_tokens_max in 1..40_usize,
        window_tokens in 1..9_u64,
        paging in paging(),
        prefix_cache in any::<bool>(),
        speculation in any::<bool>(),
        depth in 0..2_usize,
    ) {
        let limits = Limits { sequences_max, step_tokens_max, window_tokens, paging, prefix_cache, speculation };
        let mut world = World::new(limits, depth);
        for event in events {
            match event {
                Event::Add { tenant, priority, prompt, max_new_tokens } => world.add(tenant, priority, prompt, max_new_tokens),
                Event::Remove(nth) => world.remove(nth)?,
                Event::Acknowledge(nth) => world.acknowledge(nth),
                Event::Step => { world.step()?; }
            }
        }
        world.finish()?;
    }
}

/// Two tenants with more work than can ever be done, of different kinds, and readers that keep up.
#[test]
fn two_busy_tenants_are_served_alike_to_the_end() {
    let paging = Some(Paging { block_tokens: BLOCK, blocks: 64, block_bytes: 1 });
    for (paging, sequences_max, step_tokens_max) in [(None, 4, 16), (paging, 4, 16), (paging, 8, 5), (None, 2, 64)] {
        let limits = Limits { paging, speculation: true, ..limits(sequences_max, step_tokens_max, 32) };
        let mut world = World::new(limits, sequences_max / 4 % 2);
        for id in 0..60 {
            world.add(1, 0, vec![id; 40], 2);
            world.add(2, (id % 3) as i32, vec![id, 2], 60);
        }
        world.finish().expect("the gap is never too large");
        assert!(world.served.values().all(|served| *served > 300), "both were busy: {:?}", world.served);
    }
}
