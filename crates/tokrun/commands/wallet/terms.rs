//! `tokrun wallet create` and `set`: what a wallet is.

use tokrun_ledger::{Credits, DrawTerms, NewWallet, WalletChange, WalletKind};

use super::period;
use crate::args::{Kind, TermsArgs};

pub(super) fn new_wallet(name: String, terms: TermsArgs) -> NewWallet {
    let change = change(terms, false);
    NewWallet {
        kind: change.kind.unwrap_or(WalletKind::Person),
        parent: change.parent.flatten(),
        zone: change.zone.flatten(),
        overdraft: change.overdraft.unwrap_or(Credits::ZERO),
        draw: change.draw,
        ..NewWallet::new(name)
    }
}

pub(super) fn change(terms: TermsArgs, no_parent: bool) -> WalletChange {
    let every = terms.draw_every.map(period);
    WalletChange {
        kind: terms.kind.map(kind),
        parent: if no_parent { Some(None) } else { terms.parent.map(Some) },
        zone: terms.zone.map(Some),
        overdraft: terms.overdraft,
        draw: terms.draw.map(|cap| DrawTerms { cap: cap.0, every }),
        idempotency_key: None,
    }
}

pub(super) fn kind(kind: Kind) -> WalletKind {
    match kind {
        Kind::Organisation => WalletKind::Organisation,
        Kind::Team => WalletKind::Team,
        Kind::Person => WalletKind::Person,
        Kind::Service => WalletKind::Service,
    }
}
