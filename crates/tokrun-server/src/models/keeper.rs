//! The thread that loads models and takes them out of memory, one at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::LoadError;
use super::engines::Engines;
use super::shelf::{Shelf, Step};

/// Starts it. It ends when the shelf does.
pub(super) fn start(shelf: &Arc<Shelf>) -> std::io::Result<JoinHandle<()>> {
    let shelf = Arc::clone(shelf);
    std::thread::Builder::new().name("tokrun-keeper".to_owned()).spawn(move || run(&shelf))
}

fn run(shelf: &Arc<Shelf>) {
    let mut slots = shelf.lock();
    loop {
        let step = shelf.next_step(&mut slots);
        if let Step::Wait(at_most) = step {
            slots = shelf.wait(slots, at_most);
            continue;
        }
        // Nothing is dropped under the lock: engines wait for their threads, and leases take the lock.
        drop(slots);
        match step {
            Step::End => return,
            Step::Load(index) => load(shelf, index),
            Step::Drop(engines) => {
                let model = engines.runtime().model().to_owned();
                drop(engines);
                tracing::info!(model, "unloaded");
            }
            Step::Tell(answers, answer) => drop(answers.send_replace(Some(answer))),
            Step::Forget(answers) => drop(answers),
            Step::Wait(_) => {}
        }
        slots = shelf.lock();
    }
}

fn load(shelf: &Arc<Shelf>, index: usize) {
    let model = &shelf.models[index];
    tracing::info!(model = model.name(), "loading");
    let begun = Instant::now();
    let engines = || match (model.served.load)() {
        Ok(engines) if engines.is_empty() => Err(LoadError::Failed("it has no engine".to_owned())),
        engines => engines.map(Engines::new),
    };
    let panicked = |_| Err(LoadError::Failed("loading it panicked".to_owned()));
    let engines = catch_unwind(AssertUnwindSafe(engines)).unwrap_or_else(panicked);
    let took = begun.elapsed();
    match &engines {
        Ok(_) => tracing::info!(model = model.name(), ms = took.as_millis(), "loaded"),
        Err(error) => tracing::error!(model = model.name(), %error, "cannot be loaded"),
    }
    let (answers, answer) = shelf.loaded(index, engines, took);
    if let Some(answers) = answers {
        answers.send_replace(Some(answer));
    }
}
