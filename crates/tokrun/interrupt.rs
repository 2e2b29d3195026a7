//! Ctrl-C: the first ends what is being generated, cleanly; another, or one with nothing running, ends the process.

use std::sync::{Mutex, OnceLock, PoisonError};

use tokrun_runtime::Canceller;

use crate::args::Format;
use crate::failure::{Failure, Status};

#[derive(Default)]
struct State {
    running: Vec<Canceller>,
    requested: bool,
    /// How to say that it ended before there was an answer.
    format: Option<Format>,
}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();

fn with_state<T>(change: impl FnOnce(&mut State) -> T) -> T {
    let state = STATE.get_or_init(Mutex::default);
    change(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Takes over Ctrl-C, termination and hang-up.
pub(crate) fn install(format: Format) -> Result<(), Failure> {
    with_state(|state| state.format = Some(format));
    ctrlc::set_handler(on_signal)
        .map_err(|error| Failure::new(Status::Failed, "signal", format!("cannot handle Ctrl-C: {error}")))
}

fn on_signal() {
    let leave = with_state(|state| {
        if state.running.is_empty() || state.requested {
            return true;
        }
        for canceller in &state.running {
            canceller.cancel();
        }
        state.requested = true;
        false
    });
    if leave {
        if with_state(|state| state.format) == Some(Format::Json) {
            Failure::interrupted().report(Format::Json);
        }
        // Nothing is lost: what was paid is in the ledger, and its next start settles what is open.
        std::process::exit(Status::Interrupted as i32);
    }
}

/// The next Ctrl-C is to cancel this too. One that came while it was on its way cancels it now.
pub(crate) fn cancels(canceller: Canceller) {
    with_state(|state| {
        if state.requested {
            canceller.cancel();
        }
        state.running.push(canceller);
    });
}

/// Nothing is running any more. Returns whether Ctrl-C had ended it.
pub(crate) fn done() -> bool {
    with_state(|state| {
        state.running.clear();
        std::mem::take(&mut state.requested)
    })
}
