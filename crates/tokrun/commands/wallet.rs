//! `tokrun wallet`: who has how much.

mod grants;
mod import;
pub(super) mod limits;
mod requests;
mod reversals;
mod show;
mod statement;
mod terms;

use tokrun_ledger::{Closing, Correction, Delegate, NewWallet, Period, Refund, Transfer, WalletChange};

use super::answer;
use crate::args::{DelegateArgs, Every, Format, WalletCommand};
use crate::failure::{Failure, Status};
use crate::home;

pub(crate) fn run(command: WalletCommand, format: Format) -> Result<Status, Failure> {
    use WalletCommand as W;
    let looks = matches!(command, W::List | W::Show { .. } | W::Statement(_) | W::Requests { .. });
    let ledger = if looks { answer::ledger_to_read()? } else { answer::ledger()? };
    let own_or = |user: Option<String>| user.map_or_else(home::account, Ok);
    match command {
        WalletCommand::List => show::list(&ledger.wallets()?, format),
        WalletCommand::Show { user } => {
            let user = own_or(user)?;
            show::show_with_forecast(&ledger.wallet(&user)?, ledger.forecast(&user)?.as_ref(), format);
        }
        WalletCommand::Create { user, terms, idempotency_key } => {
            let new = NewWallet { idempotency_key, ..terms::new_wallet(user, terms) };
            show::show(&ledger.open_wallet(new)?, format);
        }
        WalletCommand::Set { user, terms, no_parent, idempotency_key } => {
            let change = WalletChange { idempotency_key, ..terms::change(terms, no_parent) };
            show::show(&ledger.change_wallet(&user, change)?, format);
        }
        WalletCommand::Deposit(args) => grants::deposit(&ledger, args, format)?,
        WalletCommand::Grant(args) => grants::grant(&ledger, args, format)?,
        WalletCommand::Transfer { from, to, amount, expires, memo, idempotency_key } => {
            let done = ledger.transfer(Transfer { from, to, amount, expires, memo, idempotency_key })?;
            grants::transferred(&done, format);
        }
        WalletCommand::Refund { request, amount, memo, idempotency_key } => {
            let refund = Refund { request_id: request, amount, memo, idempotency_key };
            reversals::refunded(&ledger.refund(refund)?, format);
        }
        WalletCommand::Correct { grant, amount, memo, idempotency_key } => {
            let correction = Correction { grant_id: grant, amount, memo, idempotency_key };
            reversals::corrected(&ledger.correct(correction)?, format);
        }
        WalletCommand::Void { grant, idempotency_key } => show::show(&ledger.void(&grant, idempotency_key)?, format),
        WalletCommand::Limit(command) => limits::run(&ledger, command, format)?,
        WalletCommand::Freeze { user, idempotency_key } => show::show(&ledger.freeze(&user, idempotency_key)?, format),
        WalletCommand::Thaw { user, idempotency_key } => show::show(&ledger.thaw(&user, idempotency_key)?, format),
        WalletCommand::Request(args) => requests::ask(&ledger, args, format)?,
        WalletCommand::Requests { user, open } => requests::list(&ledger, user.as_deref(), open, format)?,
        WalletCommand::Approve(args) => requests::approve(&ledger, args, format)?,
        WalletCommand::Deny { id, reason, idempotency_key } => {
            requests::show(&ledger.deny(&id, reason, idempotency_key)?, format);
        }
        WalletCommand::Delegate(args) => show::show(&ledger.delegate(delegate(args))?, format),
        WalletCommand::Revoke { name, idempotency_key } => show::show(&ledger.revoke(&name, idempotency_key)?, format),
        WalletCommand::Close { user, to, idempotency_key } => {
            show::show(&ledger.close(Closing { wallet: user, to, idempotency_key })?, format);
        }
        WalletCommand::Import(args) => import::run(&ledger, &args, format)?,
        WalletCommand::Statement(args) => statement::run(&ledger, &args, format)?,
    }
    Ok(Status::Done)
}

fn delegate(args: DelegateArgs) -> Delegate {
    let DelegateArgs { from, name, amount, expires, memo, idempotency_key } = args;
    Delegate { from, name, amount, expires, memo, idempotency_key }
}

fn period(every: Every) -> Period {
    match every {
        Every::Day => Period::Day,
        Every::Week => Period::Week,
        Every::Month => Period::Month,
    }
}
