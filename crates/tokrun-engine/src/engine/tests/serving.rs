//! A paged executor under load: the answers are those that each request would get alone.

use super::*;
use crate::request::StepMetrics;

/// Prompts that begin alike in groups, of all lengths.
fn prompts() -> Vec<Vec<TokenId>> {
    let prompt = |id: usize| {
        let common = (0..40).map(|token| (token * (1 + id as TokenId % 3)) % 30);
        common.take(id * 7 % 41).chain([id as TokenId % 49, 2, 3]).collect()
    };
    (0..16).map(prompt).collect()
}

struct Served {
    answers: BTreeMap<u64, (Vec<TokenId>, Finish)>,
    cached: BTreeMap<u64, usize>,
    rejected: u64,
    surplus: u64,
    metrics: StepMetrics,
}

/// Serves all prompts, so many at a time.
fn serve(blocks: usize, at_once: usize, sampling: &SamplingParams, options: EngineOptions) -> Served {
    serve_with(Fake::new(200, 16).paged(4, blocks), at_once, std::slice::from_ref(sampling), options)
}

/// Each request with the next of the samplings.
fn serve_with(fake: Fake, at_once: usize, samplings: &[SamplingParams], options: EngineOptions) -> Served {
    let bench = Bench::new(fake, options);
    let (answers, cached) = (BTreeMap::new(), BTreeMap::new());
    let mut served = Served { answers, cached, rejected: 0, surplus: 0, metrics: StepMetrics::default() };
    for group in prompts().chunks(at_once).enumerate() {
        for (index, prompt) in group.1.iter().enumerate() {
            let id = (group.0 * at_once + index) as u64;
            let mut request = request(id, prompt, 60);
            request.sampling = SamplingParams { seed: id, ..samplings[id as usize % samplings.len()].clone() };
            request.tenant = TenantId(id % 3);
            bench.engine.submit(request).expect("there is room");
        }
        read(&bench, group.1.len(), &mut served);
    }
    served
}

/// Reads until `count` more requests have ended, acknowledging all.
fn read(bench: &Bench, count: usize, served: &mut Served) {
    let mut rows: BTreeMap<u64, Vec<TokenId>> = BTreeMap::new();
    let all = served.answers.len() + count;
    while served.answers.len() < all {
        let report = bench.reports.recv_timeout(PATIENCE).expect("a report");
        for step in report.sequences {
            let id = step.request_id.0;
            let row = rows.entry(id).or_default();
            assert_eq!(step.first.is_some(), row.is_empty(), "first comes with the first token, once");
            served.cached.extend(step.first.map(|first| (id, first.cached_tokens)));
            served.rejected += u64::from(step.rejected_draft_tokens);
            served.surplus += u64::from(step.surplus_tokens);
            row.extend(step.token.map(|token| token.id));
            bench.engine.acknowledge(step.request_id, row.len() as u64);
            if let Some(finish) = step.finish {
                assert!(served.answers.insert(id, (std::mem::take(row), finish)).is_none());
            }
        }
        served.metrics = report.metrics;
    }
}

#[test]
fn text_does_not_depend_on_batch_cache_chunks_speculation_or_memory() {
    let greedy_params = SamplingParams::greedy();
    let hot = SamplingParams { temperature: 0.7, top_p: 0.9, frequency_penalty: 0.1, ..SamplingParams::default() };
    for sampling in [&greedy_params, &hot] {
        let plain = EngineOptions { prefix_cache: false, speculation: false, ..EngineOptions::default() };
        let alone = serve(1000, 1, sampling, plain.clone());
        assert_eq!((alone.metrics.drafted_tokens, alone.metrics.cached_tokens, alone.metrics.preemptions), (0, 0, 0));
        if sampling.temperature == 0.0 {
            for (prompt, (tokens, _)) in prompts().iter().zip(alone.answers.values()) {
                assert_eq!(*tokens, greedy(prompt, 60), "it is the model's own");
            }
        }
        for (at_once, step_tokens_max, blocks) in
            [(1, 512, 1000), (1, 32, 60), (3, 32, 60), (16, 512, 1000), (16, 32, 1000), (16, 5, 40), (16, 32, 30)]
        {
            for (prefix_cache, speculation) in [(false, false), (true, false), (false, true), (true, true)] {
                let options = EngineOptions { step_tokens_max, prefix_cache, speculation, ..EngineOptions::default() };
                let served = serve(blocks, at_once, sampling, options);
                assert_eq!(served.answers, alone.answers, "{at_once} at once, chunks of {step_tokens_max}");
                let StepMetrics { drafted_tokens, accepted_tokens, cached_tokens, .. } = served.metrics;
                assert_eq!(served.rejected, drafted_tokens - accepted_tokens);
                assert!(prefix_cache || cached_tokens == 0);
                assert_eq!(speculation && at_once < 5, accepted_tokens > 0 && at_once < 5, "it repeats itself");
                assert!(at_once < 16 || blocks > 40 || served.metrics.preemptions > 0, "memory was scarce");
            }
        }
    }
}

/// Of an executor that draws tokens, at once or while the next step is planned: the same texts, whether it draws for all
/// requests or for some.
#[test]
fn text_does_not_depend_on_who_draws_and_when() {
    let plain = EngineOptions { prefix_cache: false, speculation: false, ..EngineOptions::default() };
    let greedy = SamplingParams::greedy();
    let hot = SamplingParams { temperature: 0.7, top_p: 0.9, top_k: 20, ..SamplingParams::default() };
    let penalised = SamplingParams { presence_penalty: 0.3, ..SamplingParams::default() };
    let cases = [vec![greedy.clone()], vec![hot.clone()], vec![penalised.clone()], vec![hot, penalised, greedy]];
    for (case, samplings) in cases.iter().enumerate() {
        let alone = serve_with(Fake::new(200, 16).paged(4, 1000), 1, samplings, plain.clone());
        for ahead in [0, 1] {
            let mut surplus = 0;
            for (at_once, step_tokens_max, blocks) in
                [(1, 512, 1000), (3, 32, 60), (16, 512, 1000), (16, 5, 40), (16, 32, 30)]
            {
                for (prefix_cache, speculation) in [(false, false), (true, true)] {
                    let options =
                        EngineOptions { step_tokens_max, prefix_cache, speculation, ..EngineOptions::default() };
                    let fake = Fake::new(200, 16).paged(4, blocks).drawing(ahead);
                    let served = serve_with(fake, at_once, samplings, options);
                    assert_eq!(served.answers, alone.answers, "{at_once} at once, chunks of {step_tokens_max}");
                    let StepMetrics { drafted_tokens, accepted_tokens, .. } = served.metrics;
                    assert_eq!(served.rejected, drafted_tokens - accepted_tokens);
                    surplus += served.surplus;
                }
            }
            assert_eq!(alone.surplus, 0);
            let under_way_at_an_end = surplus > 0;
            // Alone, what is neither penalised nor anything else runs ahead in all cases but the third.
            assert_eq!(under_way_at_an_end, ahead == 1 && case != 2, "case {case}, {ahead} ahead: {surplus}");
        }
    }
}

#[test]
fn who_begins_alike_is_told_what_was_found() {
    let bench = Bench::new(Fake::new(200, 4).paged(4, 100), EngineOptions::default());
    let mut served = Served {
        answers: BTreeMap::new(),
        cached: BTreeMap::new(),
        rejected: 0,
        surplus: 0,
        metrics: StepMetrics::default(),
    };
    let prompt: Vec<TokenId> = (0..21).collect();
    for (id, cache_salt) in [(1, 0), (2, 0), (3, 5)] {
        bench.engine.submit(Submission { cache_salt, ..request(id, &prompt, 2) }).expect("there is room");
        read(&bench, 1, &mut served);
    }
    assert_eq!(served.cached, [(1, 0), (2, 20), (3, 0)].into());
    assert_eq!(served.metrics.cached_tokens, 20);
    assert_eq!((served.metrics.running, served.metrics.blocks_used, served.metrics.blocks), (0, 0, 100));
    assert!(served.metrics.blocks_cached >= 10);
}

#[test]
fn what_can_never_fit_the_cache_is_refused_and_what_would_outgrow_it_is_cut() {
    let bench = Bench::new(Fake::new(200, 4).paged(4, 5), EngineOptions::default());
    let error = bench.engine.submit(request(1, &[1; 20], 1)).expect_err("it has no room for an answer");
    assert_eq!(error, SubmitError::CacheTooSmall { tokens: 20, cache_tokens: 20 });
    assert!(error.to_string().contains("--kv-cache-bytes"), "{error}");
    let mut request = request(2, &[1; 13], 100);
    request.end_tokens.clear();
    bench.engine.submit(request).expect("it fits");
    let (tokens, finish) = &bench.read(1)[&2];
    assert_eq!((tokens.len(), finish), (7, &Finish::Length));
}

#[test]
fn a_cancelled_request_gives_its_blocks_back_at_any_time() {
    let fake = Fake::new(200, 4).paged(4, 20);
    let (gate, alive) = (Arc::clone(&fake.gate), Arc::clone(&fake.alive));
    let bench = Bench::new(fake, EngineOptions { step_tokens_max: 8, ..EngineOptions::default() });
    gate.close();
    // In the middle of its prompt, waiting, and before it was ever looked at.
    for id in 1..=3 {
        bench.engine.submit(request(id, &[id as TokenId; 60], 10)).expect("there is room");
    }
    gate.await_held();
    for id in 1..=3 {
        bench.engine.cancel(RequestId(id));
    }
    gate.open();
    assert!(bench.read(3).values().all(|answer| *answer == (Vec::new(), Finish::Cancelled)));
    assert_eq!(*alive.lock().expect("nobody panics with it"), 0);
    bench.engine.submit(request(4, &[4; 70], 1)).expect("there is room");
    let last = bench.reports.recv_timeout(PATIENCE).expect("a report");
    assert_eq!(last.metrics.blocks_used, 0);
}
