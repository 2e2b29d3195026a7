//! The ledger on a disk that fails: what a crash leaves of unsynced writes, and I/O calls that go wrong.
//!
//! The disk is simulated below SQLite (`vfs`), so every write that was not synced can be lost, torn or overtaken by a later
//! one. A seed decides everything; a failure names it, and `TOKRUN_CRASH_SEED=n` runs that one alone. `TOKRUN_CRASH_POINTS`
//! says how many crashes to look at, 2,000 if it does not.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]
#![allow(clippy::print_stderr, reason = "a failure names its seed")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

mod disk;
mod vfs;
mod workload;

use disk::Faults;

/// Runs wait for their commits most of the time.
const RUNS_AT_ONCE: usize = 16;

/// Acknowledged is there, refused is not, and nothing is invented, wherever the power fails.
#[test]
fn a_crash_loses_nothing_that_was_acknowledged() {
    let wanted = crash_points();
    let crashes = AtomicU64::new(0);
    over_seeds(|seed| {
        crashes.fetch_add(workload::run(seed, &Faults::default()), Ordering::Relaxed);
        crashes.load(Ordering::Relaxed) < wanted
    });
}

/// The same where calls fail, once or for good: what is refused changes nothing, and the ledger goes on or stops, whole.
#[test]
fn a_failing_disk_loses_nothing_that_was_acknowledged() {
    let wanted = crash_points() / 10;
    let (crashes, failures) = (AtomicU64::new(0), AtomicU64::new(0));
    over_seeds(|seed| {
        let faults = Faults::of_seed(seed);
        crashes.fetch_add(workload::run(seed, &faults), Ordering::Relaxed);
        failures.fetch_add(faults.happened(), Ordering::Relaxed);
        crashes.load(Ordering::Relaxed) < wanted
    });
    let failures = failures.into_inner();
    assert!(setting("TOKRUN_CRASH_SEED").is_some() || failures > wanted / 20, "only {failures} calls failed");
}

/// Runs `test` for one seed after the other, several at once, as long as it wants more.
fn over_seeds(test: impl Fn(u64) -> bool + Sync) {
    vfs::install();
    if let Some(seed) = setting("TOKRUN_CRASH_SEED") {
        test(seed);
        return;
    }
    let (next, stop) = (AtomicU64::new(fastrand::u64(..1 << 32)), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..RUNS_AT_ONCE {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let outcome = catch_unwind(AssertUnwindSafe(|| test(seed)));
                    if !matches!(outcome, Ok(true)) {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if let Err(panic) = outcome {
                        eprintln!("to see this again: TOKRUN_CRASH_SEED={seed}");
                        resume_unwind(panic);
                    }
                }
            });
        }
    });
}

fn crash_points() -> u64 {
    setting("TOKRUN_CRASH_POINTS").unwrap_or(2_000)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
