//! What is agreed beside money, and what somebody should hear of.

use jiff::Timestamp;

use crate::{EventView, Ledger, LimitView, NewLimit, NewPrice, PriceView, Result, events, limits, prices};

/// Limits. Only the owner of the file, and the superuser, may change them.
impl Ledger {
    /// Sets a limit, or another amount of one: it holds for what is admitted or debited from now on.
    ///
    /// # Errors
    /// [`LedgerError::InvalidLimit`], [`UnknownWallet`](LedgerError::UnknownWallet).
    pub fn set_limit(&self, limit: NewLimit) -> Result<LimitView> {
        self.administer(move |tx| limits::set(tx, &limit))
    }

    /// Removes a limit. With an idempotency key, repeating it is no error.
    ///
    /// # Errors
    /// [`LedgerError::UnknownLimit`].
    pub fn remove_limit(&self, limit_id: &str, idempotency_key: Option<String>) -> Result<()> {
        let id = limit_id.to_owned();
        self.administer(move |tx| limits::remove(tx, &id, idempotency_key.as_deref()))
    }

    /// Every limit, in the order in which they were set.
    pub fn limits(&self) -> Result<Vec<LimitView>> {
        self.read(limits::views)
    }
}

/// Prices. Only the owner of the file, and the superuser, may change them.
impl Ledger {
    /// Sets what a model's tokens cost: for what is admitted from then on, whichever price it comes with.
    ///
    /// # Errors
    /// [`LedgerError::InvalidPrice`] says what of it cannot be.
    pub fn set_price(&self, price: NewPrice) -> Result<PriceView> {
        self.administer(move |tx| prices::set(tx, &price))
    }

    /// Removes a price: what held before it holds again. With an idempotency key, repeating it is no error.
    ///
    /// # Errors
    /// [`LedgerError::UnknownPrice`].
    pub fn remove_price(&self, price_id: &str, idempotency_key: Option<String>) -> Result<()> {
        let id = price_id.to_owned();
        self.administer(move |tx| prices::remove(tx, &id, idempotency_key.as_deref()))
    }

    /// Every price by model and beginning, or the one of each model that holds at an instant.
    pub fn prices(&self, at: Option<Timestamp>) -> Result<Vec<PriceView>> {
        self.read(|conn, _| prices::list(conn, at))
    }
}

/// Events.
impl Ledger {
    /// What happened at this time or later and comes after an event's number (0: from the first on), in its order.
    pub fn events(&self, since: Option<Timestamp>, after: i64) -> Result<Vec<EventView>> {
        self.read(|conn, _| events::list(conn, since, after))
    }

    /// What happened at this time or later, has not arrived at a sink, and is due to be delivered there: once more, or
    /// for the first time. A sink is whatever name its deliverer gives it.
    pub fn events_due(&self, sink: &str, since: Option<Timestamp>) -> Result<Vec<EventView>> {
        self.read(|conn, now_us| events::due(conn, sink, since, now_us))
    }

    /// Keeps what came of delivering an event to a sink: it arrived, or is to be tried again after a pause that doubles.
    ///
    /// # Errors
    /// [`LedgerError::UnknownEvent`](crate::LedgerError::UnknownEvent).
    pub fn event_attempted(&self, sink: &str, event_id: &str, arrived: bool) -> Result<()> {
        let (sink, id) = (sink.to_owned(), event_id.to_owned());
        self.administer(move |tx| events::attempted(tx, &sink, &id, arrived))
    }
}
