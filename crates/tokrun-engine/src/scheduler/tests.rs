use std::collections::BTreeMap;
use std::fmt::Write;

use proptest::prelude::*;

use super::*;

const END: TokenId = 7;

fn scheduler(sequences_max: usize, step_tokens_max: usize, window_tokens: u64) -> Scheduler {
    Scheduler::new(Limits { sequences_max, step_tokens_max, window_tokens })
}

fn job(id: u64, prompt_tokens: usize, max_new_tokens: usize) -> Job {
    Job { request_id: RequestId(id), prompt_tokens, max_new_tokens, end_tokens: vec![END] }
}

/// One line a step: `1:0..4` is a chunk of request 1, `1:0..4!` one after which it sampled, `.` a step with nothing to do.
fn trace(scheduler: &mut Scheduler, steps: usize) -> String {
    let mut trace = String::new();
    for _ in 0..steps {
        let plan = scheduler.plan();
        let mut line = Vec::new();
        for work in plan {
            let mut entry = format!("{}:{}..{}", work.request_id.0, work.tokens.start, work.tokens.end);
            if work.samples {
                entry.push('!');
                if let Some(finish) = scheduler.apply(work.request_id, 0) {
                    let _ = write!(entry, " {finish:?}");
                }
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
    let expected = "1:0..1!\n2:0..1!\n3:0..1!\n1:1..2! Length\n2:1..2! Length\n3:1..2! Length\n.\n";
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
    assert_eq!(scheduler.apply(RequestId(1), END), Some(Finish::Stop));
    assert_eq!(scheduler.apply(RequestId(1), 0), None, "it is gone");
    let mut ignoring = job(2, 1, 2);
    ignoring.end_tokens.clear();
    scheduler.add(ignoring);
    scheduler.plan();
    assert_eq!(scheduler.apply(RequestId(2), END), None);
    scheduler.plan();
    assert_eq!(scheduler.apply(RequestId(2), END), Some(Finish::Length));
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

#[derive(Clone, Debug)]
enum Event {
    Add {
        prompt_tokens: usize,
        max_new_tokens: usize,
    },
    Remove(usize),
    Acknowledge(usize),
    /// A step in which every token that is a multiple of this ends its request.
    Step(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1usize..20, 1usize..12).prop_map(|(prompt_tokens, max_new_tokens)| Event::Add { prompt_tokens, max_new_tokens }),
        1 => (0usize..16).prop_map(Event::Remove),
        4 => (0usize..16).prop_map(Event::Acknowledge),
        8 => (1u32..40).prop_map(Event::Step),
    ]
}

/// What the test knows of a request.
#[derive(Default)]
struct Known {
    prompt_tokens: usize,
    max_new_tokens: usize,
    fed: usize,
    generated: usize,
    acknowledged: usize,
    steps_passed_over: usize,
    ended: bool,
}

/// Runs one step, and checks everything a plan promises.
fn checked_step(
    scheduler: &mut Scheduler,
    known: &mut BTreeMap<RequestId, Known>,
    limits: Limits,
    ends: u32,
) -> Result<usize, TestCaseError> {
    let plan = scheduler.plan();
    let tokens: usize = plan.iter().map(|work| work.tokens.len()).sum();
    prop_assert!(tokens <= limits.step_tokens_max);
    prop_assert!(plan.len() <= limits.sequences_max);
    let served: Vec<RequestId> = plan.iter().map(|work| work.request_id).collect();
    for work in plan {
        let request = known.get_mut(&work.request_id).expect("only known requests are planned");
        prop_assert!(!request.ended && !work.tokens.is_empty());
        prop_assert_eq!(work.tokens.start, request.fed, "every token is fed once, in order");
        request.fed = work.tokens.end;
        prop_assert_eq!(work.samples, request.fed == request.prompt_tokens + request.generated);
        request.steps_passed_over = 0;
        if work.samples {
            request.generated += 1;
            prop_assert!((request.generated - request.acknowledged) as u64 <= limits.window_tokens);
            let token = if (request.fed as u32).is_multiple_of(ends) { END } else { 0 };
            let finish = scheduler.apply(work.request_id, token);
            let all = request.generated == request.max_new_tokens;
            let expected = if token == END { Some(Finish::Stop) } else { all.then_some(Finish::Length) };
            prop_assert_eq!(&finish, &expected);
            request.ended = finish.is_some();
        }
    }
    for (id, request) in known.iter_mut().filter(|(id, _)| !served.contains(id)) {
        let runs = scheduler.running.iter().any(|sequence| sequence.job.request_id == *id);
        let may_run = runs && ((request.generated - request.acknowledged) as u64) < limits.window_tokens;
        request.steps_passed_over += usize::from(may_run);
        prop_assert!(request.steps_passed_over <= limits.sequences_max, "somebody starves");
    }
    Ok(tokens)
}

proptest! {
    #[test]
    fn everybody_ends_nobody_starves_and_the_window_holds(
        events in prop::collection::vec(event(), 1..80),
        sequences_max in 1usize..5,
        step_tokens_max in 1usize..12,
        window_tokens in 1u64..5,
    ) {
        let limits = Limits { sequences_max, step_tokens_max, window_tokens };
        let mut scheduler = Scheduler::new(limits);
        let mut known: BTreeMap<RequestId, Known> = BTreeMap::new();
        for event in events {
            let nth = |known: &BTreeMap<RequestId, Known>, n: usize| known.keys().nth(n).copied();
            match event {
                Event::Add { prompt_tokens, max_new_tokens } => {
                    let id = known.len() as u64;
                    scheduler.add(job(id, prompt_tokens, max_new_tokens));
                    known.insert(RequestId(id), Known { prompt_tokens, max_new_tokens, ..Known::default() });
                }
                Event::Remove(n) => if let Some(id) = nth(&known, n) {
                    let request = known.get_mut(&id).expect("it was just found");
                    prop_assert_eq!(scheduler.remove(id), !request.ended);
                    request.ended = true;
                },
                Event::Acknowledge(n) => if let Some(id) = nth(&known, n) {
                    let request = known.get_mut(&id).expect("it was just found");
                    request.acknowledged = request.generated;
                    scheduler.acknowledge(id, request.generated as u64);
                },
                Event::Step(ends) => {
                    checked_step(&mut scheduler, &mut known, limits, ends)?;
                }
            }
        }
        // With readers that keep up, everything comes to its end.
        for _ in 0..100_000 {
            for (id, request) in &mut known {
                request.acknowledged = request.generated;
                scheduler.acknowledge(*id, request.generated as u64);
            }
            if checked_step(&mut scheduler, &mut known, limits, 1000)? == 0 {
                break;
            }
        }
        prop_assert!(known.values().all(|request| request.ended));
        prop_assert!(scheduler.waiting.is_empty() && scheduler.running.is_empty());
    }
}
