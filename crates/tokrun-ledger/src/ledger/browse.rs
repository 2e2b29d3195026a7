//! What a person looks at.

use crate::{Ledger, LoggedRequest, Result, WalletDay, browse};

/// Looking around.
impl Ledger {
    /// What became of a wallet, or of its subtree, day by day up to today: a year at most.
    ///
    /// # Errors
    /// [`LedgerError::UnknownWallet`](crate::LedgerError::UnknownWallet).
    pub fn days(&self, wallet: &str, subtree: bool, days: u16) -> Result<Vec<WalletDay>> {
        self.read(|conn, now_us| browse::days(conn, wallet, subtree, days, now_us))
    }

    /// The last settled requests of a wallet, or of its subtree, the newest first.
    ///
    /// # Errors
    /// [`LedgerError::UnknownWallet`](crate::LedgerError::UnknownWallet).
    pub fn last_requests(&self, wallet: &str, subtree: bool, count: u16) -> Result<Vec<LoggedRequest>> {
        self.read(|conn, _| browse::requests(conn, wallet, subtree, count))
    }

    /// The name of the wallet that a grant is of, a recurring or vesting one too.
    ///
    /// # Errors
    /// [`LedgerError::UnknownGrant`](crate::LedgerError::UnknownGrant).
    pub fn wallet_of_grant(&self, grant_id: &str) -> Result<String> {
        self.read(|conn, _| browse::wallet_of_grant(conn, grant_id))
    }

    /// The name of the wallet that a settled request is of.
    ///
    /// # Errors
    /// [`LedgerError::NotSettled`](crate::LedgerError::NotSettled).
    pub fn wallet_of_request(&self, request_id: &str) -> Result<String> {
        self.read(|conn, _| browse::wallet_of_request(conn, request_id))
    }
}
