//! Each rule as a trace.

use std::fmt::Write;

use super::*;

mod random;

const END: TokenId = 7;

/// For an executor whose sequences are opaque.
fn scheduler(sequences_max: usize, step_tokens_max: usize, window_tokens: u64) -> Scheduler {
    Scheduler::new(limits(sequences_max, step_tokens_max, window_tokens))
}

fn limits(sequences_max: usize, step_tokens_max: usize, window_tokens: u64) -> Limits {
    Limits { sequences_max, step_tokens_max, window_tokens, paging: None, prefix_cache: true, speculation: false }
}

/// With blocks of 4 tokens.
fn paged(sequences_max: usize, step_tokens_max: usize, blocks: usize) -> Scheduler {
    let paging = Some(Paging { block_tokens: 4, blocks, block_bytes: 1 });
    Scheduler::new(Limits { paging, ..limits(sequences_max, step_tokens_max, 1000) })
}

fn job(id: u64, prompt_tokens: usize, max_new_tokens: usize) -> Job {
    Job {
        request_id: RequestId(id),
        tenant: TenantId(0),
        priority: 0,
        cache_salt: 0,
        prompt: (0..prompt_tokens as TokenId).map(|token| 100 * id as TokenId + token).collect(),
        prompt_tokens,
        max_new_tokens,
        end_tokens: vec![END],
    }
}

/// One line a step: `1:0..4` is a chunk of request 1, `1:0..4!` one after which it sampled, `1:4..5+2!` one with two
/// guesses, `-1` a preemption, `.` a step with nothing to do.
fn trace(scheduler: &mut Scheduler, steps: usize) -> String {
    trace_of(scheduler, steps, |_, _| 0)
}

/// The same, with the token that each request samples at each position.
fn trace_of(scheduler: &mut Scheduler, steps: usize, token: impl Fn(RequestId, usize) -> TokenId) -> String {
    let mut trace = String::new();
    for _ in 0..steps {
        let Plan { preempted, work } = scheduler.plan();
        scheduler.computed(work.iter());
        let mut line: Vec<String> = preempted.iter().map(|request_id| format!("-{}", request_id.0)).collect();
        for work in work {
            let mut end = work.start + work.tokens.len() - work.guesses;
            let mut entry = format!("{}:{}..{end}", work.request_id.0, work.start);
            if work.guesses > 0 {
                let _ = write!(entry, "+{}", work.guesses);
            }
            let mut samples = work.samples;
            while samples {
                entry.push('!');
                let applied = scheduler.apply(work.request_id, token(work.request_id, end));
                end += 1;
                if let Some(finish) = applied.finish {
                    let _ = write!(entry, " {finish:?}");
                }
                samples = applied.samples_again;
            }
            line.push(entry);
        }
        trace.push_str(if line.is_empty() { "." } else { "" });
        trace.push_str(&line.join(", "));
        trace.push('\n');
    }
    trace
}

#[test]
fn a_prompt_is_fed_in_chunks_and_then_token_by_token() {
    let mut scheduler = scheduler(2, 4, 100);
    scheduler.add(job(1, 10, 3));
    assert_eq!(trace(&mut scheduler, 6), "1:0..4\n1:4..8\n1:8..10!\n1:10..11!\n1:11..12! Length\n.\n");
}

#[test]
fn a_long_prompt_does_not_hold_up_those_that_generate() {
    let mut scheduler = scheduler(3, 4, 100);
    scheduler.add(job(1, 1, 9));
    scheduler.add(job(2, 1, 9));
    assert_eq!(trace(&mut scheduler, 1), "1:0..1!, 2:0..1!\n");
    scheduler.add(job(3, 6, 9));
    assert_eq!(
        trace(&mut scheduler, 3),
        "1:1..2!, 2:1..2!, 3:0..2\n1:2..3!, 2:2..3!, 3:2..4\n1:3..4!, 2:3..4!, 3:4..6!\n"
    );
}

#[test]
fn requests_wait_in_the_order_they_came() {
    let mut scheduler = scheduler(1, 8, 100);
    for id in 1..=3 {
        scheduler.add(job(id, 2, 1));
    }
    assert_eq!(trace(&mut scheduler, 4), "1:0..2! Length\n2:0..2! Length\n3:0..2! Length\n.\n");
}

#[test]
fn with_room_for_one_token_a_step_everybody_has_a_turn() {
    let mut scheduler = scheduler(3, 1, 100);
    for id in 1..=3 {
        scheduler.add(job(id, 1, 2));
    }
    let expected = "1:0..1!\n1:1..2! Length\n2:0..1!\n3:0..1!\n2:1..2! Length\n3:1..2! Length\n.\n";
    assert_eq!(trace(&mut scheduler, 7), expected);
}

#[test]
fn who_is_too_far_ahead_waits_for_its_reader() {
    let mut scheduler = scheduler(2, 8, 2);
    scheduler.add(job(1, 1, 9));
    scheduler.add(job(2, 1, 9));
    scheduler.acknowledge(RequestId(2), 0);
    assert_eq!(trace(&mut scheduler, 3), "1:0..1!, 2:0..1!\n1:1..2!, 2:1..2!\n.\n");
    scheduler.acknowledge(RequestId(2), 1);
    assert_eq!(trace(&mut scheduler, 2), "2:2..3!\n.\n");
    scheduler.acknowledge(RequestId(1), 2);
    scheduler.acknowledge(RequestId(1), 1);
    scheduler.acknowledge(RequestId(9), 1);
    assert_eq!(trace(&mut scheduler, 3), "1:2..3!\n1:3..4!\n.\n");
    // Nonsense from a reader is not believed beyond what there is.
    scheduler.acknowledge(RequestId(1), u64::MAX);
    assert_eq!(trace(&mut scheduler, 1), "1:4..5!\n");
}

#[test]
fn an_end_token_ends_and_counts() {
    let mut scheduler = scheduler(1, 8, 100);
    scheduler.add(job(1, 1, 2));
    scheduler.plan();
    assert_eq!(scheduler.apply(RequestId(1), END).finish, Some(Finish::Stop));
    assert_eq!(scheduler.apply(RequestId(1), 0), Applied::default(), "it is gone");
    let mut ignoring = job(2, 1, 2);
    ignoring.end_tokens.clear();
    scheduler.add(ignoring);
    scheduler.plan();
    assert_eq!(scheduler.apply(RequestId(2), END).finish, None);
    scheduler.plan();
    assert_eq!(scheduler.apply(RequestId(2), END).finish, Some(Finish::Length));
}

#[test]
fn a_removed_request_frees_its_place() {
    let mut scheduler = scheduler(1, 8, 100);
    for id in 1..=3 {
        scheduler.add(job(id, 1, 9));
    }
    assert_eq!(trace(&mut scheduler, 1), "1:0..1!\n");
    assert!(scheduler.remove(RequestId(1)) && scheduler.remove(RequestId(2)) && !scheduler.remove(RequestId(2)));
    assert_eq!(trace(&mut scheduler, 1), "3:0..1!\n");
}

fn of_tenant(tenant: u64, job: Job) -> Job {
    Job { tenant: TenantId(tenant), cache_salt: tenant, ..job }
}

#[test]
fn tenants_take_turns_however_much_one_asks_for() {
    let mut scheduler = scheduler(1, 8, 100);
    for id in 1..=4 {
        scheduler.add(of_tenant(1, job(id, 4, 1)));
    }
    scheduler.add(of_tenant(2, job(5, 4, 1)));
    scheduler.add(of_tenant(2, job(6, 4, 1)));
    let order = "1:0..4! Length\n5:0..4! Length\n2:0..4! Length\n6:0..4! Length\n3:0..4! Length\n4:0..4! Length\n";
    assert_eq!(trace(&mut scheduler, 6), order);
}

#[test]
fn who_asked_for_nothing_has_saved_up_nothing() {
    let mut scheduler = scheduler(1, 8, 100);
    for id in 1..=9 {
        scheduler.add(of_tenant(1, job(id, 4, 1)));
    }
    trace(&mut scheduler, 5);
    // It comes late, and gets every other turn from here on, not all of them.
    for id in 11..=13 {
        scheduler.add(of_tenant(2, job(id, 4, 1)));
    }
    let order = "11:0..4! Length\n6:0..4! Length\n12:0..4! Length\n7:0..4! Length\n";
    assert_eq!(trace(&mut scheduler, 4), order);
}

#[test]
fn a_tenant_too_far_ahead_makes_place_for_one_that_waits() {
    let mut scheduler = scheduler(2, 8, 100);
    scheduler.add(of_tenant(1, job(1, 4, 90)));
    scheduler.add(of_tenant(1, job(2, 4, 90)));
    trace(&mut scheduler, 3);
    scheduler.add(of_tenant(2, job(3, 4, 90)));
    // The slack is 4 + 8, and 2 tokens were served in the step before.
    let held: String = (6..11).map(|fed| format!("1:{fed}..{0}!, 2:{fed}..{0}!\n", fed + 1)).collect();
    assert_eq!(trace(&mut scheduler, 5), held);
    assert_eq!(trace(&mut scheduler, 1), "-2, 3:0..4!\n");
    assert_eq!(trace(&mut scheduler, 1), "1:11..12!, 3:4..5!\n", "and no more of them than need be");
}

#[test]
fn the_more_urgent_request_of_a_tenant_goes_first_and_takes_a_place_if_need_be() {
    let mut scheduler = scheduler(1, 8, 100);
    scheduler.add(job(1, 2, 2));
    scheduler.add(job(2, 2, 1));
    scheduler.add(Job { priority: 5, ..job(3, 2, 1) });
    assert_eq!(trace(&mut scheduler, 2), "3:0..2! Length\n1:0..2!\n");
    scheduler.add(Job { priority: 1, ..job(4, 2, 1) });
    assert_eq!(trace(&mut scheduler, 3), "-1, 4:0..2! Length\n1:0..3! Length\n2:0..2! Length\n");
    // It has no say over the requests of others.
    scheduler.add(job(5, 2, 9));
    trace(&mut scheduler, 1);
    scheduler.add(Job { priority: 9, ..of_tenant(2, job(6, 2, 1)) });
    assert_eq!(trace(&mut scheduler, 1), "5:2..3!\n");
}

#[test]
fn an_urgent_request_overtakes_nobody_elses() {
    let mut scheduler = scheduler(1, 8, 100);
    scheduler.add(of_tenant(1, job(1, 2, 1)));
    scheduler.add(of_tenant(2, job(2, 2, 1)));
    scheduler.add(of_tenant(3, job(3, 2, 1)));
    // Nobody was served yet, so all are equal, and the first to come is the first.
    scheduler.add(Job { priority: 9, ..of_tenant(2, job(4, 2, 1)) });
    scheduler.add(Job { priority: i32::MAX, ..of_tenant(4, job(5, 2, 1)) });
    let all = "1:0..2! Length\n4:0..2! Length\n3:0..2! Length\n5:0..2! Length\n2:0..2! Length\n";
    assert_eq!(trace(&mut scheduler, 5), all);
}

#[test]
fn a_reader_that_stalls_does_not_keep_a_place_for_ever() {
    let mut scheduler = scheduler(1, 8, 2);
    scheduler.add(job(1, 1, 9));
    scheduler.add(job(2, 1, 9));
    assert_eq!(trace(&mut scheduler, 2), "1:0..1!\n1:1..2!\n");
    assert_eq!(trace(&mut scheduler, 16), ".\n".repeat(16));
    assert_eq!(trace(&mut scheduler, 2), "-1, 2:0..1!\n2:1..2!\n");
    scheduler.acknowledge(RequestId(1), 2);
    assert_eq!(trace(&mut scheduler, 16), ".\n".repeat(16));
    assert_eq!(trace(&mut scheduler, 2), "-2, 1:0..3!\n1:3..4!\n");
}

#[test]
fn a_request_starts_when_there_are_blocks_for_all_its_tokens() {
    let mut scheduler = paged(9, 8, 6);
    scheduler.add(job(1, 9, 3));
    scheduler.add(job(2, 12, 1));
    scheduler.add(job(3, 1, 1));
    // The third would fit, but must not overtake; one block is held back for the first one's next tokens.
    assert_eq!(trace(&mut scheduler, 4), "1:0..8\n1:8..9!\n1:9..10!\n1:10..11! Length\n");
    assert_eq!(trace(&mut scheduler, 2), "2:0..8\n2:8..12! Length, 3:0..1! Length\n");
}

#[test]
fn when_blocks_run_out_the_youngest_is_computed_again_later() {
    let mut scheduler = paged(2, 16, 5);
    scheduler.add(job(1, 7, 8));
    scheduler.add(job(2, 7, 6));
    assert_eq!(trace(&mut scheduler, 2), "1:0..7!, 2:0..7!\n1:7..8!, 2:7..8!\n");
    // Each needs a third block, and there is one.
    assert_eq!(trace(&mut scheduler, 1), "-2, 1:8..9!\n");
    let rest = "1:9..10!\n1:10..11!\n1:11..12!\n1:12..13!\n1:13..14! Length\n";
    assert_eq!(trace(&mut scheduler, 5), rest);
    // Its first block was still there; nothing is sampled twice.
    assert_eq!(trace(&mut scheduler, 4), "2:4..9!\n2:9..10!\n2:10..11!\n2:11..12! Length\n");
    assert_eq!((scheduler.totals().preemptions, scheduler.blocks().map(Blocks::available)), (1, Some(5)));
}

#[test]
fn a_prompt_that_was_computed_before_is_not_computed_again() {
    let mut scheduler = paged(4, 16, 20);
    let same = |id| Job { prompt: (0..10).collect(), prompt_tokens: 10, ..job(id, 10, 1) };
    scheduler.add(same(1));
    scheduler.add(same(2));
    // The second finds out, once it is due, what the first has computed by then.
    assert_eq!(trace(&mut scheduler, 2), "1:0..10! Length, 2:0..6\n2:8..10! Length\n");
    scheduler.add(same(3));
    scheduler.add(Job { cache_salt: 9, ..same(4) });
    scheduler.plan();
    assert_eq!([3, 4].map(|id| scheduler.cached_tokens(RequestId(id))), [8, 0]);
}

#[test]
fn guesses_are_checked_in_one_step_and_only_those_that_came_true_count() {
    let paging = Some(Paging { block_tokens: 4, blocks: 50, block_bytes: 1 });
    let mut scheduler = Scheduler::new(Limits { paging, speculation: true, ..limits(2, 16, 100) });
    let prompt: Vec<TokenId> = [1, 2, 3, 4].repeat(3);
    scheduler.add(Job { prompt_tokens: prompt.len(), prompt, ..job(1, 12, 40) });
    let periodic = |_, position: usize| (position % 4 + 1) as TokenId;
    assert_eq!(trace_of(&mut scheduler, 2, periodic), "1:0..12!\n1:12..13+1!!\n");
    trace_of(&mut scheduler, 2, periodic);
    assert!(trace_of(&mut scheduler, 1, periodic).ends_with("+2!!!\n"), "it grows bolder");
    let Totals { drafted_tokens, accepted_tokens, .. } = scheduler.totals();
    assert_eq!(drafted_tokens, accepted_tokens);
    let Plan { work, .. } = scheduler.plan();
    scheduler.computed(work.iter());
    assert_eq!(work[0].tokens.len(), 1 + work[0].guesses);
    let applied = scheduler.apply(RequestId(1), 99);
    assert_eq!(applied, Applied { finish: None, samples_again: false, rejected: work[0].guesses });
    // It goes on from what was sampled, in place of the guesses.
    let next = &scheduler.plan().work[0];
    assert_eq!((next.start, next.tokens[0]), (work[0].start + 1, 99));
}

#[test]
fn guesses_keep_to_the_window_and_to_the_length() {
    let paging = Some(Paging { block_tokens: 4, blocks: 50, block_bytes: 1 });
    let mut scheduler = Scheduler::new(Limits { paging, speculation: true, ..limits(1, 99, 3) });
    scheduler.add(Job { prompt: vec![5; 9], prompt_tokens: 9, ..job(1, 9, 30) });
    let mut generated = 0;
    while scheduler.running() + scheduler.waiting() > 0 {
        let Plan { work, .. } = scheduler.plan();
        scheduler.computed(work.iter());
        let work = &work[0];
        assert!(work.guesses < 3, "no more than may be reported");
        for row in 0..=work.guesses {
            let applied = scheduler.apply(RequestId(1), 5);
            generated += 1;
            assert_eq!(applied.finish.is_some(), generated == 30);
            assert_eq!(applied.samples_again, row < work.guesses && generated < 30);
            assert_eq!(applied.rejected, 0);
        }
        scheduler.acknowledge(RequestId(1), generated);
    }
    assert_eq!(generated, 30);
}
