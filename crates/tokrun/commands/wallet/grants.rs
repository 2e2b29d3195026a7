//! `tokrun wallet grant` and `transfer`: what a wallet is given.

use tokrun_ledger::{
    Credits, Deposit, GrantClass, GrantRequest, GrantTerms, GrantView, Ledger, Period, RecurringGrant, RecurringView,
    Transferred, Vesting, WalletView, json,
};

use super::period;
use crate::args::{CreditTermsArgs, DepositArgs, Format, GrantArgs};
use crate::failure::Failure;
use crate::output;

pub(super) fn grant(ledger: &Ledger, args: GrantArgs, format: Format) -> Result<(), Failure> {
    let user = args.user.clone();
    if args.every.is_some() {
        let recurring = ledger.grant_every(recurring_grant(args))?;
        granted_every(&recurring, &ledger.wallet(&user)?, format);
    } else if let Some(periods) = args.vest {
        let vesting = Vesting { every: period(args.vest_every), periods, cliff: args.cliff };
        let parts = ledger.grant_vesting(grant_request(args), vesting)?;
        granted_vesting(&parts, &ledger.wallet(&user)?, format);
    } else {
        let grant = ledger.grant(grant_request(args))?;
        granted(&grant, &ledger.wallet(&user)?, format);
    }
    Ok(())
}

fn grant_request(args: GrantArgs) -> GrantRequest {
    GrantRequest {
        wallet: args.user,
        amount: args.amount,
        priority: args.priority,
        effective: args.effective,
        expires: args.expires,
        memo: args.memo,
        terms: terms(args.terms),
        idempotency_key: args.idempotency_key,
    }
}

fn recurring_grant(args: GrantArgs) -> RecurringGrant {
    RecurringGrant {
        wallet: args.user,
        amount: args.amount,
        priority: args.priority,
        every: args.every.map_or(Period::Month, period),
        on: args.on,
        start: args.effective,
        until: args.until,
        rollover: args.rollover,
        memo: args.memo,
        terms: terms(args.terms),
        idempotency_key: args.idempotency_key,
    }
}

fn terms(args: CreditTermsArgs) -> GrantTerms {
    let class = if args.promotional { GrantClass::Promotional } else { GrantClass::Paid };
    GrantTerms { class, scope: args.models, value: args.value }
}

pub(super) fn deposit(ledger: &Ledger, args: DepositArgs, format: Format) -> Result<(), Failure> {
    let shares = ledger.deposit(Deposit {
        wallet: args.wallet,
        amount: args.amount,
        weights: args.weights,
        priority: args.priority,
        expires: args.expires,
        terms: terms(args.terms),
        memo: args.memo,
        idempotency_key: args.idempotency_key,
    })?;
    if format == Format::Json {
        out!("{}", json::deposited(&shares));
        return Ok(());
    }
    let rows = shares.iter().map(|share| vec![share.wallet.clone(), output::credits(share.amount)]);
    out!("{}", output::table(&["wallet", "got"], &[1], rows));
    Ok(())
}

fn granted_vesting(parts: &[GrantView], wallet: &WalletView, format: Format) {
    let Some((first, last)) = parts.first().zip(parts.last()) else { return };
    if format == Format::Json {
        out!("{}", json::granted_vesting(parts, wallet));
        return;
    }
    out!(
        "{} vests to {} in {} parts, from {} to {}",
        output::credits(Credits::from_micro(parts.iter().map(|part| part.amount.micro()).sum())),
        wallet.name,
        parts.len(),
        first.effective,
        last.effective
    );
}

fn granted(grant: &GrantView, wallet: &WalletView, format: Format) {
    if format == Format::Json {
        out!("{}", json::granted(grant, wallet));
        return;
    }
    out!(
        "granted {} to {}, who has {} now",
        output::credits(grant.amount),
        wallet.name,
        output::credits(wallet.balance)
    );
}

fn granted_every(recurring: &RecurringView, wallet: &WalletView, format: Format) {
    if format == Format::Json {
        out!("{}", json::granted_every(recurring, wallet));
        return;
    }
    out!(
        "{} every {} to {}, who has {} now; next at {}",
        output::credits(recurring.amount),
        recurring.every,
        wallet.name,
        output::credits(wallet.balance),
        recurring.next.map_or_else(|| "no time".to_owned(), |next| next.to_string())
    );
}

pub(super) fn transferred(done: &Transferred, format: Format) {
    let amount = done.amount;
    if format == Format::Json {
        out!("{}", json::transferred(done));
        return;
    }
    out!(
        "{} went from {}, who has {} now, to {}, who has {}",
        output::credits(amount),
        done.from.name,
        output::credits(done.from.balance),
        done.to.name,
        output::credits(done.to.balance)
    );
}
