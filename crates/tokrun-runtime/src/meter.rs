//! Where debits go.

use tokrun_ledger::{Admission, Admitted, Credits, Debit, Debited, Ledger, LedgerError, Settled, Settlement};

/// Called once, with the answer to what was asked, when it is durable.
pub type Reply<T> = Box<dyn FnOnce(Result<T, LedgerError>) + Send>;

/// Pays for requests. Replies may come on another thread, in the order asked.
pub trait Meter: Send + Sync {
    /// Holds what the prompt and one token cost; returns when that is durable.
    ///
    /// # Errors
    /// When the wallet is unknown, frozen or too empty, or the ledger cannot record.
    fn admit(&self, admission: Admission) -> Result<Admitted, LedgerError>;

    /// Pays for generated tokens, each whole or not at all.
    fn debit(&self, debits: Vec<Debit>, reply: Reply<Vec<Debited>>);

    /// Ends a request, once.
    fn settle(&self, settlement: Settlement, reply: Reply<Settled>);
}

/// The real meter: the allowance ledger.
pub struct LedgerMeter(pub Ledger);

impl Meter for LedgerMeter {
    fn admit(&self, admission: Admission) -> Result<Admitted, LedgerError> {
        self.0.admit(admission)
    }

    fn debit(&self, debits: Vec<Debit>, reply: Reply<Vec<Debited>>) {
        self.0.debit(debits, reply);
    }

    fn settle(&self, settlement: Settlement, reply: Reply<Settled>) {
        self.0.settle_then(settlement, reply);
    }
}

/// Grants everything and records nothing: the baseline against which the cost of metering is measured.
/// Nothing but `tokrun bench --ledger off`, which shows no text, uses it.
pub struct Unmetered;

impl Meter for Unmetered {
    fn admit(&self, admission: Admission) -> Result<Admitted, LedgerError> {
        let nothing = Credits::ZERO;
        Ok(Admitted {
            wallet_id: String::new(),
            team_id: String::new(),
            wallet_created: false,
            price: admission.price,
            held: nothing,
            balance: nothing,
        })
    }

    fn debit(&self, debits: Vec<Debit>, reply: Reply<Vec<Debited>>) {
        let grant = |debit: Debit| Debited {
            request_id: debit.request_id,
            granted: debit.output_tokens,
            exhausted: false,
            limited: None,
            refused: None,
        };
        reply(Ok(debits.into_iter().map(grant).collect()));
    }

    fn settle(&self, settlement: Settlement, reply: Reply<Settled>) {
        reply(Ok(Settled {
            debited: Credits::ZERO,
            balance: Credits::ZERO,
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            finish_reason: settlement.finish_reason,
        }));
    }
}
