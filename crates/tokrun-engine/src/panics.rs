//! Panics of code that is not ours, turned into errors.

use std::any::Any;
use std::panic::AssertUnwindSafe;

/// Runs `work`; a panic becomes what it said. Whatever `work` changed must not be used again after a panic.
pub(crate) fn catching<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| reason(&*payload))
}

fn reason(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "for an unknown reason".to_owned())
}
