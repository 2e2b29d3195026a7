//! How a wallet stands to whoever wants something of it.

use tokrun_ledger::{Action, Ledger, LedgerError, WalletKind};

/// How a wallet stands to that of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is the key's own, or one that its owner opened for an agent.
    Theirs,
    /// It stands under the key's: a member's, seen from the team.
    Below,
    /// The key's wallet draws on it.
    Pool,
    /// Somebody else's.
    Other,
}

impl Standing {
    pub(crate) fn of(ledger: &Ledger, own: &str, wallet: &str) -> Result<Self, LedgerError> {
        if own == wallet {
            return Ok(Self::Theirs);
        }
        let mine = ledger.wallet(own)?;
        let mut above = ledger.wallet(wallet)?.parent;
        while let Some(parent) = above {
            if parent == own {
                // What stands under a person is nobody else's.
                let is_persons = matches!(mine.kind, WalletKind::Person | WalletKind::Service);
                return Ok(if is_persons { Self::Theirs } else { Self::Below });
            }
            above = ledger.wallet(&parent)?.parent;
        }
        let mut drawer = mine;
        while let (Some(_), Some(pool)) = (drawer.draw, drawer.parent) {
            if pool == wallet {
                return Ok(Self::Pool);
            }
            drawer = ledger.wallet(&pool)?;
        }
        Ok(Self::Other)
    }

    /// Whether it counts as one's own: generously where one's own may be seen, or must not be raised, and narrowly where one's
    /// own may be given away.
    pub(crate) fn is_own(self, action: Action) -> bool {
        match action {
            Action::Read => matches!(self, Self::Theirs | Self::Below),
            Action::Fund | Action::Manage => matches!(self, Self::Theirs | Self::Pool),
            _ => self == Self::Theirs,
        }
    }
}
