//! `tokrun wallet`: who has how much.

mod grants;
mod import;
mod limits;
mod reversals;
mod show;
mod statement;
mod terms;

use tokrun_ledger::{Correction, NewWallet, Period, Refund, Transfer};

use super::answer;
use crate::args::{Every, Format, WalletCommand};
use crate::failure::{Failure, Status};
use crate::home;

pub(crate) fn run(command: WalletCommand, format: Format) -> Result<Status, Failure> {
    let looks = matches!(command, WalletCommand::List | WalletCommand::Show { .. } | WalletCommand::Statement(_));
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
        WalletCommand::Set { user, terms, no_parent } => {
            show::show(&ledger.change_wallet(&user, terms::change(terms, no_parent))?, format);
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
        WalletCommand::Void { grant } => show::show(&ledger.void(&grant)?, format),
        WalletCommand::Limit(command) => limits::run(&ledger, command, format)?,
        WalletCommand::Freeze { user } => show::show(&ledger.freeze(&user)?, format),
        WalletCommand::Thaw { user } => show::show(&ledger.thaw(&user)?, format),
        WalletCommand::Import(args) => import::run(&ledger, &args, format)?,
        WalletCommand::Statement(args) => statement::run(&ledger, &args, format)?,
    }
    Ok(Status::Done)
}

fn period(every: Every) -> Period {
    match every {
        Every::Day => Period::Day,
        Every::Week => Period::Week,
        Every::Month => Period::Month,
    }
}
