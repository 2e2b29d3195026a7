use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::Pool;

fn pool(threads: usize) -> Pool {
    Pool::new(threads, false).expect("threads start")
}

#[test]
fn a_job_runs_once_on_each_thread() {
    for threads in 1..5 {
        let mut pool = pool(threads);
        let ran: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..100 {
            pool.run(|worker| {
                assert_eq!(worker.threads(), threads);
                ran[worker.index()].fetch_add(1, SeqCst);
            });
        }
        assert!(ran.iter().all(|count| count.load(SeqCst) == 100));
    }
}

#[test]
fn what_was_written_before_a_barrier_is_read_after_it() {
    let mut pool = pool(3);
    let written: [AtomicUsize; 3] = Default::default();
    pool.run(|worker| {
        for round in 1..500 {
            written[worker.index()].store(round, SeqCst);
            worker.barrier();
            assert!(written.iter().all(|value| value.load(SeqCst) == round));
            worker.barrier();
        }
    });
}

#[test]
fn each_chunk_of_each_loop_is_done_once() {
    for threads in 1..4 {
        let mut pool = pool(threads);
        for count in [0, 1, 2, 7, 64] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..50 {
                pool.run(|worker| {
                    for _ in 0..3 {
                        for chunk in worker.chunks(count) {
                            done[chunk].fetch_add(1, SeqCst);
                        }
                    }
                });
            }
            assert!(done.iter().all(|times| times.load(SeqCst) == 150), "{threads} threads, {count} chunks");
        }
    }
}

#[test]
fn a_thread_that_is_held_up_is_helped() {
    let mut pool = pool(2);
    let by_first = AtomicUsize::new(0);
    pool.for_chunks(100, |worker, chunks| {
        for _ in chunks {
            if worker.index() == 1 {
                std::thread::sleep(Duration::from_millis(20));
            } else {
                by_first.fetch_add(1, SeqCst);
            }
        }
    });
    assert!(by_first.load(SeqCst) > 50, "its own half and more");
}

#[test]
fn each_chunk_is_done_once_whoever_is_left_out() {
    for threads in [1, 2, 3, 8] {
        let mut pool = pool(threads);
        for count in [0, 1, 3, 50] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for round in 0..300 {
                // Jobs that all must take part in, among those that the slow ones are left out of.
                if round % 7 == 0 {
                    let ran = AtomicUsize::new(0);
                    pool.run(|_| _ = ran.fetch_add(1, SeqCst));
                    assert_eq!(ran.load(SeqCst), threads);
                }
                pool.for_chunks(count, |_, chunks| chunks.for_each(|chunk| _ = done[chunk].fetch_add(1, SeqCst)));
            }
            assert!(done.iter().all(|times| times.load(SeqCst) == 300), "{threads} threads, {count} chunks");
        }
    }
}

#[test]
fn a_panic_in_a_chunk_reaches_the_caller() {
    let mut pool = pool(2);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        pool.for_chunks(10, |_, chunks| chunks.for_each(|chunk| assert!(chunk != 7, "chunk seven")));
    }));
    assert_eq!(*panic.expect_err("it panics").downcast_ref::<&str>().expect("a message"), "chunk seven");
    pool.for_chunks(10, |_, chunks| chunks.for_each(drop));
}

#[test]
fn shares_are_contiguous_and_complete() {
    let mut pool = pool(3);
    let seen = std::sync::Mutex::new(vec![0; 10]);
    pool.run(|worker| {
        for i in worker.share(10) {
            seen.lock().expect("no panic")[i] += 1;
        }
    });
    assert_eq!(seen.into_inner().expect("no panic"), vec![1; 10]);
}

/// The message of the panic that `job` ends with.
fn panic_of(pool: &mut Pool, job: impl Fn(&super::Worker<'_>) + Sync) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| pool.run(job))).expect_err("the job panics");
    panic.downcast_ref::<&str>().expect("a message").to_string()
}

#[test]
fn a_panic_of_any_thread_reaches_the_caller_and_the_pool_stays_usable() {
    for culprit in 0..3 {
        let mut pool = pool(3);
        let message = panic_of(&mut pool, |worker| {
            worker.barrier();
            if worker.index() == culprit {
                std::panic::panic_any("fell over");
            }
            // The others wait for a thread that never comes.
            worker.barrier();
            worker.barrier();
        });
        assert_eq!(message, "fell over");
        let after = AtomicUsize::new(0);
        pool.run(|worker| {
            worker.barrier();
            after.fetch_add(1, SeqCst);
        });
        assert_eq!(after.load(SeqCst), 3);
    }
}

#[test]
fn parked_threads_come_back() {
    let mut pool = pool(3);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(2));
        let ran = AtomicUsize::new(0);
        pool.run(|worker| {
            if worker.index() == 2 {
                // Longer than the others look out for it: they park at the barrier.
                std::thread::sleep(Duration::from_millis(1));
            }
            worker.barrier();
            ran.fetch_add(1, SeqCst);
        });
        assert_eq!(ran.load(SeqCst), 3);
    }
}

#[test]
fn many_more_threads_than_processors_still_get_on() {
    let start = Instant::now();
    let mut pool = pool(16);
    let sum = AtomicUsize::new(0);
    for _ in 0..100 {
        pool.run(|worker| {
            worker.barrier();
            sum.fetch_add(worker.index(), SeqCst);
            worker.barrier();
        });
    }
    assert_eq!(sum.load(SeqCst), 100 * (0..16).sum::<usize>());
    // 400 meetings of 16 threads; spinning alone would take a time slice for each arrival.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn barriers_can_be_timed() {
    assert!(pool(2).barrier_ns() > 0.0);
}

#[test]
fn pinned_threads_stay_on_their_processor() {
    // On a thread of its own: pinning changes the thread that runs jobs.
    std::thread::spawn(|| {
        let mut pool = Pool::new(2, true).expect("threads start");
        pool.run(|_| {
            #[cfg(target_os = "linux")]
            assert_eq!(rustix::thread::sched_getaffinity(None).expect("Linux tells").count(), 1);
        });
    })
    .join()
    .expect("no panic");
}
