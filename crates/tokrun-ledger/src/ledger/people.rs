//! Who acts for whom, who asks for what, and what becomes of a wallet that nobody uses any more.

use std::time::Duration;

use crate::{
    Approval, AskView, Closing, CreatedKey, Delegate, KeyView, Ledger, NewAsk, NewKey, Result, WalletView, asks,
    closing, delegation, keys,
};

/// Access keys. Only the owner of the file, and the superuser, may change them.
impl Ledger {
    /// Creates an access key. Its secret is shown this once.
    ///
    /// # Errors
    /// [`LedgerError::InvalidKey`](crate::LedgerError::InvalidKey), [`KeyExists`](crate::LedgerError::KeyExists),
    /// [`UnknownWallet`](crate::LedgerError::UnknownWallet).
    pub fn create_key(&self, key: NewKey) -> Result<CreatedKey> {
        self.administer(move |tx| keys::create(tx, &key))
    }

    /// Every access key, or those of a wallet, in the order in which they were created.
    pub fn keys(&self, wallet: Option<&str>) -> Result<Vec<KeyView>> {
        self.read(|conn, _| keys::list(conn, wallet))
    }

    /// One access key, by its id or its name.
    ///
    /// # Errors
    /// [`LedgerError::UnknownKey`](crate::LedgerError::UnknownKey).
    pub fn key(&self, id: &str) -> Result<KeyView> {
        self.read(|conn, _| keys::find(conn, id))
    }

    /// Makes an access key good for nothing, for good: what runs may end. Again, it changes nothing, with an
    /// idempotency key or without.
    ///
    /// # Errors
    /// [`LedgerError::UnknownKey`](crate::LedgerError::UnknownKey).
    pub fn revoke_key(&self, id: &str, idempotency_key: Option<String>) -> Result<KeyView> {
        let id = id.to_owned();
        self.administer(move |tx| keys::revoke(tx, &id, idempotency_key.as_deref()))
    }

    /// Gives an access key another secret; the one before is good for `grace` longer. With an idempotency key, repeating it
    /// replaces nothing more.
    ///
    /// # Errors
    /// [`LedgerError::UnknownKey`](crate::LedgerError::UnknownKey), [`InvalidKey`](crate::LedgerError::InvalidKey) of one
    /// that is revoked or has expired.
    pub fn rotate_key(&self, id: &str, grace: Duration, idempotency_key: Option<String>) -> Result<CreatedKey> {
        let id = id.to_owned();
        self.administer(move |tx| keys::rotate(tx, &id, grace, idempotency_key.as_deref()))
    }

    /// The access key that a secret is of: an indexed read, cheap enough for every request of a service.
    ///
    /// # Errors
    /// [`LedgerError::KeyRefused`](crate::LedgerError::KeyRefused); its message does not tell why.
    pub fn authenticate(&self, secret: &str) -> Result<KeyView> {
        self.read(|conn, now_us| keys::authenticate(conn, secret, now_us))
    }
}

/// Requests for an allowance. Everybody may ask; only the owner of the file, and the superuser, may answer.
impl Ledger {
    /// Asks for an allowance, which raises an event. With an idempotency key, repeating it asks once.
    ///
    /// # Errors
    /// [`LedgerError::InvalidGrant`](crate::LedgerError::InvalidGrant),
    /// [`UnknownWallet`](crate::LedgerError::UnknownWallet), [`WalletClosed`](crate::LedgerError::WalletClosed).
    pub fn ask(&self, ask: NewAsk) -> Result<AskView> {
        self.write(move |tx| asks::ask(tx, &ask))
    }

    /// All that was asked for, or all for a wallet, in its order.
    pub fn asks(&self, wallet: Option<&str>) -> Result<Vec<AskView>> {
        self.read(|conn, _| asks::list(conn, wallet))
    }

    /// Gives what was asked for, or another amount, and raises an event: once, in one transaction.
    ///
    /// # Errors
    /// [`LedgerError::UnknownAsk`](crate::LedgerError::UnknownAsk), [`Answered`](crate::LedgerError::Answered), and those of
    /// [`Ledger::grant`] and [`Ledger::transfer`].
    pub fn approve(&self, approval: Approval) -> Result<AskView> {
        self.administer(move |tx| asks::approve(tx, &approval))
    }

    /// Gives nothing, for a reason, and raises an event.
    ///
    /// # Errors
    /// [`LedgerError::UnknownAsk`](crate::LedgerError::UnknownAsk), [`Answered`](crate::LedgerError::Answered).
    pub fn deny(&self, ask_id: &str, reason: Option<String>, idempotency_key: Option<String>) -> Result<AskView> {
        let id = ask_id.to_owned();
        self.administer(move |tx| asks::deny(tx, &id, reason.as_deref(), idempotency_key.as_deref()))
    }
}

/// Parts of wallets, and their end.
impl Ledger {
    /// Opens a wallet for a program under another one, which fills it. With an idempotency key, repeating it delegates
    /// nothing more.
    ///
    /// # Errors
    /// Those of [`Ledger::open_wallet`] and [`Ledger::transfer`].
    pub fn delegate(&self, delegate: Delegate) -> Result<WalletView> {
        self.administer(move |tx| delegation::delegate(tx, &delegate))
    }

    /// Ends a delegation: what is left goes back to the grants that it came from, open requests get no further than what
    /// they have taken, and what they give back follows. One that has a time ends then, with whatever is written next.
    /// Again, what has come back meanwhile goes back; with an idempotency key, nothing more.
    ///
    /// # Errors
    /// [`LedgerError::InvalidWallet`](crate::LedgerError::InvalidWallet) of a wallet that nobody delegated.
    pub fn revoke(&self, wallet: &str, idempotency_key: Option<String>) -> Result<WalletView> {
        let name = wallet.to_owned();
        self.administer(move |tx| delegation::revoke(tx, &name, idempotency_key.as_deref()))
    }

    /// Closes the wallet of somebody who leaves, for good: what it delegated is revoked, what recurs or has not vested is
    /// void, its keys are revoked, what it asked for is denied, and what is left goes to another wallet or is void. Open
    /// requests get no further than what they have taken; what they give back goes the same way once they
    /// end, or when it is closed again; with an idempotency key, repeating it changes nothing.
    ///
    /// # Errors
    /// [`LedgerError::InvalidWallet`](crate::LedgerError::InvalidWallet) if other wallets stand under it, or it was closed
    /// with another heir.
    pub fn close(&self, closing: Closing) -> Result<WalletView> {
        self.administer(move |tx| closing::close(tx, &closing))
    }
}
