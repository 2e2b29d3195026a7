//! Who acts for whom.

use std::time::Duration;

use crate::{CreatedKey, KeyView, Ledger, NewKey, Result, keys};

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

    /// Makes an access key good for nothing, for good: what runs may end. Again, it changes nothing.
    ///
    /// # Errors
    /// [`LedgerError::UnknownKey`](crate::LedgerError::UnknownKey).
    pub fn revoke_key(&self, id: &str) -> Result<KeyView> {
        let id = id.to_owned();
        self.administer(move |tx| keys::revoke(tx, &id))
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
    /// [`LedgerError::KeyRefused`](crate::LedgerError::KeyRefused); neither its message nor its timing tells why.
    pub fn authenticate(&self, secret: &str) -> Result<KeyView> {
        self.read(|conn, now_us| keys::authenticate(conn, secret, now_us))
    }
}
