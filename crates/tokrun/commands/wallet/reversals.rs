//! `tokrun wallet refund` and `correct`: what is taken back.

use tokrun_ledger::{Credits, Reversed, json};

use crate::args::Format;
use crate::output;

pub(super) fn refunded(done: &Reversed, format: Format) {
    tell(done, "request_id", "refunded", format);
}

pub(super) fn corrected(done: &Reversed, format: Format) {
    tell(done, "grant", "took back", format);
}

fn tell(done: &Reversed, of: &str, did: &str, format: Format) {
    if format == Format::Json {
        out!("{}", json::reversed(done, of));
        return;
    }
    out!(
        "{did} {} of {}; {} has {} now",
        output::credits(done.amount),
        done.of,
        done.wallet.name,
        output::credits(done.wallet.balance)
    );
    if done.expired != Credits::ZERO {
        out!("{} of it went to grants that have expired or are void, and is gone", output::credits(done.expired));
    }
}
