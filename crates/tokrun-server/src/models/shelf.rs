//! Which models are in memory, which are wanted there, and who gives way to whom. What is decided here the keeper does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokrun_runtime::StepMetrics;

use super::engines::{Engines, Lease};
use super::{LoadError, Model};

/// What is kept in memory, and for how long.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// What all models together may take of each device, bytes; of a device that is not named, whatever there is.
    pub(crate) budget_bytes: BTreeMap<String, u64>,
    /// An idle model goes after so long.
    pub(crate) keep_alive: Option<Duration>,
}

/// All models, and what is in memory of them.
pub(super) struct Shelf {
    pub(super) models: Vec<Arc<Model>>,
    rules: Rules,
    slots: Mutex<Slots>,
    /// For the keeper.
    changed: Condvar,
}

/// The state of all models.
pub(super) struct Slots {
    of: Vec<Slot>,
    /// The models that are wanted, in the order in which they were asked for; the first is being loaded, or made room for.
    /// Nobody overtakes it because it is small.
    queue: VecDeque<usize>,
    is_ending: bool,
    is_loading: bool,
    /// The keeper waits for a model to fall idle.
    wants_room: bool,
}

#[derive(Default)]
struct Slot {
    engines: Option<Arc<Engines>>,
    /// Where those who wait for it hear what became of it.
    waiting: Option<Answers>,
    /// It takes no new requests, so that it falls idle: another one needs its room.
    gives_way: bool,
    /// When somebody last asked for it, or left it.
    used: Option<Instant>,
    counts: Counts,
    failure: Option<String>,
}

/// What became of a model that was waited for.
type Answer = Option<Result<Lease, LoadError>>;
pub(super) type Answers = watch::Sender<Answer>;

/// What happened to a model since the server began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) loads: u64,
    pub(crate) failed_loads: u64,
    /// Because it was idle for long.
    pub(crate) unloads_idle: u64,
    /// To make room for another one.
    pub(crate) unloads_room: u64,
    pub(crate) load_time: Duration,
    /// Of engines that are gone.
    preemptions: u64,
}

/// A model, with its engines and how long it took to load them, where it is in memory.
pub(super) type Stocked = (Arc<Model>, Option<(Engines, Duration)>);

/// What a request for a model leads to.
pub(super) enum Asked {
    Here(Lease),
    Waits(watch::Receiver<Answer>),
    Ending,
}

/// What is to be done next.
pub(super) enum Step {
    Load(usize),
    /// Out of memory with it: it takes a while, so it is done without the lock.
    Drop(Arc<Engines>),
    /// Those who waited for it are told.
    Tell(Answers, Result<Lease, LoadError>),
    /// Nobody waits any more.
    Forget(Answers),
    Wait(Duration),
    End,
}

/// How a model is seen from outside.
pub(crate) struct Seen {
    /// `loaded`, `loading` or `unloaded`.
    pub(crate) state: &'static str,
    /// What it takes now, all devices together.
    pub(crate) bytes: u64,
    pub(crate) device: Option<String>,
    pub(crate) context_tokens: Option<usize>,
    pub(crate) sequences_max: Option<usize>,
    /// With the preemptions of engines that are gone.
    pub(crate) metrics: StepMetrics,
    pub(crate) counts: Counts,
    /// Why it could not be loaded, if that was so the last time.
    pub(crate) failure: Option<String>,
}

/// The keeper looks so often whether anybody still waits for what there is no room for yet.
const ROOM_CHECK: Duration = Duration::from_millis(100);

/// As good as forever.
const LONG: Duration = Duration::from_secs(3600);

impl Shelf {
    /// Of these models.
    pub(super) fn new(models: Vec<Stocked>, rules: Rules) -> Self {
        let slot = |(engines, load_time)| Slot {
            engines: Some(Arc::new(engines)),
            used: Some(Instant::now()),
            counts: Counts { loads: 1, load_time, ..Counts::default() },
            ..Slot::default()
        };
        let (models, of) =
            models.into_iter().map(|(model, loaded)| (model, loaded.map(slot).unwrap_or_default())).unzip();
        let slots = Slots { of, queue: VecDeque::new(), is_ending: false, is_loading: false, wants_room: false };
        Self { models, rules, slots: Mutex::new(slots), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something changed.
    pub(super) fn wait<'a>(&self, slots: MutexGuard<'a, Slots>, at_most: Duration) -> MutexGuard<'a, Slots> {
        self.changed.wait_timeout(slots, at_most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The use of a model, or a place among those who wait for it.
    pub(super) fn ask(self: &Arc<Self>, model: &Arc<Model>) -> Asked {
        let mut slots = self.lock();
        let is_ending = slots.is_ending;
        let slot = &mut slots.of[model.index];
        slot.used = Some(Instant::now());
        match (&slot.engines, &slot.waiting) {
            (Some(engines), None) if !slot.gives_way => Asked::Here(Lease::new(model, engines, self)),
            _ if is_ending => Asked::Ending,
            (_, Some(waiting)) => Asked::Waits(waiting.subscribe()),
            _ => {
                let (sender, receiver) = watch::channel(None);
                slot.waiting = Some(sender);
                slots.queue.push_back(model.index);
                self.changed.notify_all();
                Asked::Waits(receiver)
            }
        }
    }

    /// The last lease of a model is gone.
    pub(super) fn fell_idle(&self, model: &Model) {
        let mut slots = self.lock();
        slots.of[model.index].used = Some(Instant::now());
        if slots.wants_room {
            self.changed.notify_all();
        }
    }

    /// No model is loaded any more, and none unloaded. Those who wait are to be told.
    pub(super) fn end(&self) -> Vec<Answers> {
        let mut slots = self.lock();
        slots.is_ending = true;
        slots.queue.clear();
        self.changed.notify_all();
        slots.of.iter_mut().filter_map(|slot| slot.waiting.take()).collect()
    }

    /// Whether the keeper is at something that may take minutes.
    pub(super) fn is_loading(&self) -> bool {
        self.lock().is_loading
    }

    /// All that is in memory; nothing is, from now on.
    pub(super) fn clear(&self) -> Vec<Arc<Engines>> {
        self.lock().of.iter_mut().filter_map(|slot| slot.engines.take()).collect()
    }

    pub(super) fn see(&self, model: &Model) -> Seen {
        let slots = self.lock();
        let slot = &slots.of[model.index];
        let info = slot.engines.as_ref().map(|engines| engines.runtime().info());
        let mut metrics = slot.engines.as_ref().map(|engines| engines.metrics()).unwrap_or_default();
        metrics.preemptions += slot.counts.preemptions;
        let state = match (&slot.engines, &slot.waiting) {
            (_, Some(_)) => "loading",
            (Some(_), None) => "loaded",
            (None, None) => "unloaded",
        };
        Seen {
            state,
            bytes: if info.is_some() { model.memory_bytes() } else { 0 },
            device: info.map(|info| info.device.clone()),
            context_tokens: info.map(|info| info.context_tokens),
            sequences_max: info.map(|info| info.sequences_max),
            metrics,
            counts: slot.counts,
            failure: slot.failure.clone(),
        }
    }

    /// What is to be done now.
    pub(super) fn next_step(self: &Arc<Self>, slots: &mut Slots) -> Step {
        if slots.is_ending {
            return Step::End;
        }
        slots.wants_room = false;
        let Some(&next) = slots.queue.front() else { return self.rest(slots) };
        let slot = &mut slots.of[next];
        let is_wanted = slot.waiting.as_ref().is_some_and(|waiting| waiting.receiver_count() > 0);
        if !is_wanted || slot.engines.is_some() {
            // It was to give way, and whom for is gone; or nobody waits.
            let answers = slots.done(next);
            let engines = slots.of[next].engines.as_ref();
            return match (engines, answers) {
                (Some(engines), Some(answers)) => {
                    Step::Tell(answers, Ok(Lease::new(&self.models[next], engines, self)))
                }
                (None, Some(answers)) => Step::Forget(answers),
                (_, None) => Step::Wait(Duration::ZERO),
            };
        }
        if self.has_room(slots, next) {
            slots.is_loading = true;
            return Step::Load(next);
        }
        self.make_room(slots, next)
    }

    /// Nobody wants anything loaded: who was idle for long goes.
    fn rest(&self, slots: &mut Slots) -> Step {
        let Some(keep_alive) = self.rules.keep_alive else { return Step::Wait(LONG) };
        let now = Instant::now();
        let mut next = keep_alive.min(LONG);
        for slot in &mut slots.of {
            if !slot.engines.as_ref().is_some_and(|engines| engines.is_idle()) {
                continue;
            }
            let left = (slot.used.unwrap_or(now) + keep_alive).saturating_duration_since(now);
            if left.is_zero() {
                slot.counts.unloads_idle += 1;
                return slot.unload();
            }
            next = next.min(left);
        }
        Step::Wait(next)
    }

    /// Whether a model fits beside those that are in memory.
    fn has_room(&self, slots: &Slots, next: usize) -> bool {
        let wanted = &self.models[next].served.memory;
        wanted.iter().all(|memory| match self.rules.budget_bytes.get(&memory.device) {
            Some(budget) => memory.bytes.saturating_add(self.taken_bytes(slots, &memory.device)) <= *budget,
            None => true,
        })
    }

    fn taken_bytes(&self, slots: &Slots, device: &str) -> u64 {
        let loaded = self.models.iter().zip(&slots.of).filter(|(_, slot)| slot.engines.is_some());
        loaded.map(|(model, _)| model.bytes_on(device)).sum()
    }

    /// The idle model that was used least lately goes. Where none is idle, the one that was asked for least lately is lent to
    /// nobody any more until it is: else those who wait could wait forever.
    fn make_room(&self, slots: &mut Slots, next: usize) -> Step {
        let wanted = &self.models[next].served.memory;
        let frees = |index: usize| wanted.iter().any(|memory| self.models[index].bytes_on(&memory.device) > 0);
        let is_loaded = |index: usize| slots.of[index].engines.is_some();
        let candidates: Vec<usize> = (0..slots.of.len()).filter(|index| is_loaded(*index) && frees(*index)).collect();
        let idle = |index: &&usize| slots.of[**index].engines.as_ref().is_some_and(|engines| engines.is_idle());
        let least_lately = |index: &&usize| slots.of[**index].used;
        if let Some(&index) = candidates.iter().filter(idle).min_by_key(least_lately) {
            slots.of[index].counts.unloads_room += 1;
            return slots.of[index].unload();
        }
        if !candidates.iter().any(|index| slots.of[*index].gives_way)
            && let Some(&index) = candidates.iter().min_by_key(least_lately)
        {
            slots.of[index].gives_way = true;
        }
        slots.wants_room = true;
        Step::Wait(ROOM_CHECK)
    }

    /// A model was loaded, or it could not be: who is to be told so.
    pub(super) fn loaded(
        self: &Arc<Self>,
        index: usize,
        loaded: Result<Engines, LoadError>,
        took: Duration,
    ) -> (Option<Answers>, Result<Lease, LoadError>) {
        let mut slots = self.lock();
        slots.is_loading = false;
        let slot = &mut slots.of[index];
        let answer = match loaded {
            Ok(engines) => {
                slot.counts.loads += 1;
                slot.counts.load_time += took;
                slot.failure = None;
                slot.used = Some(Instant::now());
                let engines = slot.engines.insert(Arc::new(engines));
                Ok(Lease::new(&self.models[index], engines, self))
            }
            Err(error) => {
                slot.counts.failed_loads += 1;
                slot.failure = Some(error.to_string());
                Err(error)
            }
        };
        (slots.done(index), answer)
    }
}

impl Slots {
    /// The first in the queue is dealt with, and nobody need give way to it any more.
    fn done(&mut self, index: usize) -> Option<Answers> {
        self.queue.retain(|queued| *queued != index);
        self.of.iter_mut().for_each(|slot| slot.gives_way = false);
        self.of[index].waiting.take()
    }
}

impl Slot {
    fn unload(&mut self) -> Step {
        self.gives_way = false;
        match self.engines.take() {
            Some(engines) => {
                self.counts.preemptions += engines.metrics().preemptions;
                Step::Drop(engines)
            }
            None => Step::Wait(Duration::ZERO),
        }
    }
}
