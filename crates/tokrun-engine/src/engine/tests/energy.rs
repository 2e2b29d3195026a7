//! What goes into each request adds up to what the device used for all of them, and idling is nobody's.

use super::*;

/// Serves requests at once and sums up what was reported of each.
fn serve(bench: &Bench, ids: std::ops::Range<u64>) -> BTreeMap<u64, u64> {
    for id in ids.clone() {
        let prompt = vec![id as TokenId; 5 + 9 * id as usize];
        bench.engine.submit(request(id, &prompt, 10 + id as usize)).expect("there is room");
    }
    let (mut energy_uj, mut ended): (BTreeMap<u64, u64>, usize) = (BTreeMap::new(), 0);
    while ended < ids.clone().count() {
        for step in bench.next() {
            *energy_uj.entry(step.request_id.0).or_default() += step.energy_uj.unwrap_or(0);
            bench.engine.acknowledge(step.request_id, 100);
            ended += usize::from(step.finish.is_some());
        }
    }
    energy_uj
}

#[test]
fn the_energy_of_requests_is_that_of_their_tokens() {
    let total_uj = Arc::new(AtomicU64::new(5_000));
    let fake = Fake { energy_uj: Some(Arc::clone(&total_uj)), ..Fake::new(100, 8) };
    let bench = Bench::new(fake, EngineOptions { step_tokens_max: 16, ..EngineOptions::default() });
    for ids in [0..1, 1..5, 5..6] {
        // While it idles, the device goes on using energy.
        std::thread::sleep(Duration::from_millis(30));
        let idle_uj = total_uj.fetch_add(1_000_000, Relaxed) + 1_000_000;
        let energy_uj = serve(&bench, ids);
        let used_uj = total_uj.load(Relaxed) - idle_uj;
        let counted_uj: u64 = energy_uj.values().sum();
        assert!(counted_uj.abs_diff(used_uj) <= energy_uj.len() as u64, "{energy_uj:?} of {used_uj} µJ");
        for (id, energy_uj) in energy_uj {
            // The whole prompt, and all but the last token, at 70 µJ each; the answer may have ended early.
            let prompt_uj = 70 * (5 + 9 * id);
            assert!((prompt_uj..=prompt_uj + 70 * (10 + id)).contains(&(energy_uj + 1)), "{id}: {energy_uj} µJ");
        }
    }
}

#[test]
fn without_a_meter_nothing_is_told() {
    let bench = Bench::new(Fake::new(100, 8), EngineOptions::default());
    assert!(serve(&bench, 0..3).values().all(|energy_uj| *energy_uj == 0));
}
