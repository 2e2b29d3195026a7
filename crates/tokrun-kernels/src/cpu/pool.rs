//! The threads that compute: fork, join and barrier in about a hundred nanoseconds each, while all of them run.
//!
//! A decode step of a small model is some hundred short jobs, so a thread that waits first spins; only when the others do
//! not arrive for [`SPIN`] does it park. The thread that calls [`Pool::run`] is worker 0 of the job, so a pool of one
//! thread costs nothing at all.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::cmp::Ordering::{Equal, Greater, Less};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::KernelError;

/// How long a thread looks out for the others before it parks.
const SPIN: Duration = Duration::from_micros(100);
/// Looks before the first one at the clock: some microseconds, in which a running thread arrives.
const LOOKS_FIRST: u32 = 400;
/// Loops of chunks that one job may have.
const LOOPS_MAX: u64 = 16;
/// Bits of a chunk counter that hold the next chunk; those above hold the loop it belongs to.
const CHUNK_BITS: u32 = 24;

/// Threads that run one job together, again and again.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Whether the threads stay on one CPU each; the caller's is set at its first job.
    pin: bool,
    caller_pinned: bool,
}

impl Pool {
    /// Starts `threads - 1` threads; the caller of [`run`](Self::run) is the first. With `pin`, each stays on one of the
    /// CPUs that the process may use (where the system can do that).
    pub(crate) fn new(threads: usize, pin: bool) -> Result<Self, KernelError> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared::new(threads));
        let mut pool = Self { shared, threads: Vec::new(), pin, caller_pinned: false };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let main = move || {
                if pin {
                    pin_to_cpu(index);
                }
                shared.work(index);
            };
            let thread = std::thread::Builder::new()
                .name(format!("tokrun-cpu-{index}"))
                .spawn(main)
                .map_err(|source| KernelError::Threads { threads, source })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Threads that take part in a job, the caller among them.
    pub(crate) fn threads(&self) -> usize {
        self.shared.slots.len()
    }

    /// Runs `job` once on each thread and returns when all are done. A panic of any of them is raised again here.
    pub(crate) fn run(&mut self, job: impl Fn(&Worker<'_>) + Sync) {
        self.pin_caller();
        self.shared.run(&job, Latecomers::Awaited);
    }

    /// Runs `job` on each thread with the chunks of `0..count` that fall to it, and returns when all are done: a thread
    /// takes them one by one, its [`share`](Worker::share) first, then what is left of the others'. Threads that the
    /// system does not let run just now are not waited for. `job` goes through all that it is given.
    pub(crate) fn for_chunks(
        &mut self,
        count: usize,
        job: impl Fn(&Worker<'_>, &mut dyn Iterator<Item = usize>) + Sync,
    ) {
        if count == 0 {
            return;
        }
        self.pin_caller();
        self.shared.run(&|worker| job(worker, &mut worker.chunks(count)), Latecomers::LeftOut);
    }

    fn pin_caller(&mut self) {
        if self.pin && !std::mem::replace(&mut self.caller_pinned, true) {
            pin_to_cpu(0);
        }
    }

    /// Time of one barrier between all threads, in nanoseconds: the median of many. It tells how the threads' CPUs are
    /// connected just now.
    pub(crate) fn barrier_ns(&mut self) -> f64 {
        const SAMPLES: usize = 101;
        const BARRIERS: u32 = 64;
        let samples = Mutex::new(Vec::with_capacity(SAMPLES));
        self.run(|worker| {
            for _ in 0..SAMPLES {
                worker.barrier();
                let start = Instant::now();
                for _ in 0..BARRIERS {
                    worker.barrier();
                }
                if worker.index() == 0 {
                    let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
                    samples.push(start.elapsed().as_nanos() as f64 / f64::from(BARRIERS));
                }
            }
        });
        let mut samples = samples.into_inner().unwrap_or_else(PoisonError::into_inner);
        samples.sort_by(f64::total_cmp);
        samples[SAMPLES / 2]
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.publish(None);
        for thread in self.threads.drain(..) {
            // Jobs that panic are caught: there is nothing to hear from a thread that ended.
            let _ = thread.join();
        }
    }
}

/// One thread's part in a job.
pub(crate) struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    /// Barriers this thread arrived at, in all jobs.
    arrivals: Cell<u64>,
    /// Number of the next loop of chunks, over all jobs.
    next_loop: Cell<u64>,
}

impl Worker<'_> {
    /// 0 for the caller of [`Pool::run`].
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Threads in the job.
    pub(crate) fn threads(&self) -> usize {
        self.shared.slots.len()
    }

    /// Returns when all threads of the job have called it as often.
    pub(crate) fn barrier(&self) {
        self.arrivals.set(self.arrivals.get() + 1);
        self.shared.barrier(self.index, self.arrivals.get());
    }

    /// This thread's fixed part of `count` things: contiguous, and the same for every job.
    pub(crate) fn share(&self, count: usize) -> Range<usize> {
        share(count, self.index, self.threads())
    }

    /// The chunks of `0..count` that this thread is to do: each goes to exactly one thread, whichever is first. All
    /// threads of a job call this equally often, with the same count, and go through all that they are given.
    fn chunks(&self, count: usize) -> impl Iterator<Item = usize> + '_ {
        assert!(count < 1 << CHUNK_BITS, "a loop of {count} chunks: make the chunks larger");
        let tag = self.next_loop.replace(self.next_loop.get() + 1);
        let threads = self.threads();
        (0..threads).flat_map(move |ahead| {
            let owner = (self.index + ahead) % threads;
            let share = share(count, owner, threads);
            let next = &self.shared.slots[owner].next_chunk;
            std::iter::from_fn(move || claim(next, tag, share.len()).map(|chunk| share.start + chunk))
        })
    }
}

/// Part `index` of `parts` of `count` things.
pub(super) fn share(count: usize, index: usize, parts: usize) -> Range<usize> {
    count * index / parts..count * (index + 1) / parts
}

/// Takes the next of `count` chunks of loop `tag`. A counter that still belongs to an earlier loop stands for 0, so that
/// nobody has to reset it; one that belongs to a later loop says that this one is over, as threads go on only when all
/// chunks are taken.
fn claim(counter: &AtomicU64, tag: u64, count: usize) -> Option<usize> {
    let mut seen = counter.load(Relaxed);
    loop {
        let next = match (seen >> CHUNK_BITS).cmp(&tag) {
            Less => 0,
            Equal => seen & ((1 << CHUNK_BITS) - 1),
            Greater => return None,
        };
        if next as usize >= count {
            return None;
        }
        // Relaxed: who does a chunk is decided by this counter; what chunks write is published by barriers and joins.
        match counter.compare_exchange_weak(seen, tag << CHUNK_BITS | (next + 1), Relaxed, Relaxed) {
            Ok(_) => return Some(next as usize),
            Err(now) => seen = now,
        }
    }
}

/// What becomes of threads that have not begun with a job when the caller is through with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Latecomers {
    /// Each thread has something of its own to do.
    Awaited,
    /// All there is to do is done: they need not begin.
    LeftOut,
}

/// A job as the threads see it: it lives until [`Pool::run`] returns, which the type cannot say.
type Job = *const (dyn Fn(&Worker<'_>) + Sync);

/// A line of memory for each, so that threads do not disturb each other.
#[repr(align(128))]
struct Padded<T>(T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// What all threads see.
struct Shared {
    post: Padded<Post>,
    slots: Box<[Padded<Slot>]>,
    /// Threads that are parked, or about to.
    sleepers: Padded<AtomicUsize>,
    /// A thread panicked in this job: the others must not wait for it at barriers.
    failed: AtomicBool,
    failure: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Where jobs are published.
struct Post {
    /// Jobs published so far.
    jobs: AtomicU64,
    /// The latest; none ends the threads.
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `job` is written while no thread but the writer looks at it (before `jobs` grows, after all threads finished
// the last one), and what it points to is `Sync`.
#[expect(unsafe_code, reason = "a cell of the pool's own protocol")]
unsafe impl Sync for Post {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a cell of the pool's own protocol")]
unsafe impl Send for Post {}

/// What one thread tells the others.
#[derive(Default)]
struct Slot {
    /// Barriers it arrived at.
    arrivals: AtomicU64,
    /// The last job that it began, or that it was left out of: whoever sets this to a job's number decides which.
    begun: AtomicU64,
    /// The last job that it needs not be waited for any more.
    finished: AtomicU64,
    /// The next chunk of its share: see [`claim`].
    next_chunk: AtomicU64,
    /// Whether it has to be woken, and how.
    parked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Slot {
    /// Whether this thread is to take part in job `number`, the one after the last.
    fn begin(&self, number: u64) -> bool {
        self.begun.compare_exchange(number - 1, number, AcqRel, Relaxed).is_ok()
    }

    /// Leaves the thread out of job `number`, if it has not begun with it.
    fn leave_out(&self, number: u64) -> bool {
        let left_out = self.begin(number);
        if left_out {
            self.finished.store(number, Relaxed);
        }
        left_out
    }
}

/// The panic of a thread whose job fell apart because another one panicked: not worth reporting.
struct Abandoned;

impl Shared {
    fn new(threads: usize) -> Self {
        Self {
            post: Padded(Post { jobs: AtomicU64::new(0), job: UnsafeCell::new(None) }),
            slots: (0..threads).map(|_| Padded(Slot::default())).collect(),
            sleepers: Padded(AtomicUsize::new(0)),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// The caller's side of a job.
    fn run(&self, job: &(dyn Fn(&Worker<'_>) + Sync), latecomers: Latecomers) {
        // Widens the lifetime, no more: `finish_all` below returns only when no thread uses the job any longer.
        #[expect(unsafe_code, reason = "threads that outlive the job borrow it")]
        // SAFETY: both are the same wide pointer; see above for how long it is used.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), Job>(job) };
        let number = self.publish(Some(job));
        self.take_part(0, number, job);
        self.finish_all(number, latecomers);
    }

    /// Gives all threads the next job and returns its number.
    fn publish(&self, job: Option<Job>) -> u64 {
        #[expect(unsafe_code, reason = "a cell of the pool's own protocol")]
        // SAFETY: all threads finished the job before this one, and none reads the cell until `jobs` grows below.
        unsafe {
            *self.post.job.get() = job;
        }
        let number = self.post.jobs.load(Relaxed) + 1;
        self.post.jobs.store(number, Release);
        self.wake(&self.slots[1..]);
        number
    }

    /// The life of thread `index`.
    fn work(&self, index: usize) {
        for number in 1.. {
            self.wait(index, || self.post.jobs.load(Acquire) >= number);
            if !self.slots[index].begin(number) {
                continue;
            }
            #[expect(unsafe_code, reason = "a cell of the pool's own protocol")]
            // SAFETY: job `number` is published, and the next one is not before this thread has finished it, as it began.
            let job = unsafe { *self.post.job.get() };
            let Some(job) = job else { return };
            self.take_part(index, number, job);
            self.slots[index].finished.store(number, Release);
            self.wake(&self.slots[..1]);
        }
    }

    /// Runs the job on this thread, keeping a panic for the caller.
    fn take_part(&self, index: usize, number: u64, job: Job) {
        let arrivals = Cell::new(self.slots[index].arrivals.load(Relaxed));
        let worker = Worker { shared: self, index, arrivals, next_loop: Cell::new(number * LOOPS_MAX) };
        #[expect(unsafe_code, reason = "the job is borrowed from the caller")]
        // SAFETY: the caller of `run` keeps the job alive until all threads have finished it.
        let job = unsafe { &*job };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            if !panic.is::<Abandoned>() {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(panic);
            }
            self.failed.store(true, Relaxed);
            self.wake(&self.slots);
        }
        debug_assert!(worker.next_loop.get() < (number + 1) * LOOPS_MAX, "a job has at most {LOOPS_MAX} loops");
    }

    /// Returns when no thread uses job `number` any more, and raises the panic it ended with, if any.
    fn finish_all(&self, number: u64, latecomers: Latecomers) {
        let done = |slot: &Padded<Slot>| {
            slot.finished.load(Acquire) >= number || latecomers == Latecomers::LeftOut && slot.leave_out(number)
        };
        self.wait(0, || self.slots[1..].iter().all(done));
        if self.failed.load(Relaxed) {
            self.failed.store(false, Relaxed);
            for slot in &self.slots {
                slot.arrivals.store(0, Relaxed);
            }
            let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
            resume_unwind(failure.unwrap_or_else(|| Box::new(Abandoned)));
        }
    }

    fn barrier(&self, index: usize, arrivals: u64) {
        if self.slots.len() == 1 {
            return;
        }
        let all = || self.slots.iter().all(|slot| slot.arrivals.load(Acquire) >= arrivals);
        self.slots[index].arrivals.store(arrivals, Release);
        fence(SeqCst);
        if all() {
            // The last to arrive comes here: those that parked wait for it.
            return self.wake(&self.slots);
        }
        self.wait(index, || all() || self.failed.load(Relaxed));
        if !all() {
            resume_unwind(Box::new(Abandoned));
        }
    }

    /// Returns when `done`, which another thread makes true before it calls [`wake`](Self::wake).
    fn wait(&self, index: usize, done: impl Fn() -> bool) {
        for _ in 0..LOOKS_FIRST {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        while start.elapsed() < SPIN {
            // Where there are more threads than CPUs, the one that is waited for may need this one.
            std::thread::yield_now();
            for _ in 0..32 {
                if done() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        self.park(index, done);
    }

    #[cold]
    fn park(&self, index: usize, done: impl Fn() -> bool) {
        let slot = &self.slots[index];
        *slot.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        slot.parked.store(true, Relaxed);
        self.sleepers.fetch_add(1, SeqCst);
        // Pairs with the fence in `wake`: either this thread sees what the other did, or the other sees it parked.
        fence(SeqCst);
        while !done() {
            std::thread::park();
        }
        self.sleepers.fetch_sub(1, SeqCst);
        slot.parked.store(false, Relaxed);
    }

    /// Lets those of `slots` that are parked look again.
    fn wake(&self, slots: &[Padded<Slot>]) {
        fence(SeqCst);
        if self.sleepers.load(Relaxed) > 0 {
            unpark(slots);
        }
    }
}

#[cold]
fn unpark(slots: &[Padded<Slot>]) {
    for slot in slots.iter().filter(|slot| slot.parked.load(Relaxed)) {
        if let Some(thread) = &*slot.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

/// Keeps this thread on the CPU number `index` of those it may use. Where that fails, it runs where it did.
fn pin_to_cpu(index: usize) {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return };
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
        if !cpus.is_empty() {
            let mut one = CpuSet::new();
            one.set(cpus[index % cpus.len()]);
            let _ = sched_setaffinity(None, &one);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = index;
}

#[cfg(test)]
mod tests;
