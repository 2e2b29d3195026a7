//! The balances of wallets, for Prometheus: of teams and organisations; of people where that was asked for, and of so many
//! of them at most.
//!
//! Where requests need a key, so do balances: without one, or with one that may not see everybody's, the metrics are those of
//! the machine alone.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::http::HeaderMap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokrun_ledger::{Action, Credits, MICRO, WalletKind};

use crate::app::App;
use crate::auth;
use crate::error::ApiError;

/// Of teams and organisations together.
const POOLS_MAX: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWallet {
    wallet: String,
    kind: &'static str,
}

type Gauges = Family<OfWallet, Gauge<f64, AtomicU64>>;

/// What whoever asks may see of the wallets; nothing, if it is nobody who may see all of them.
pub(crate) async fn of(app: &Arc<App>, headers: &HeaderMap) -> Result<Registry, ApiError> {
    let sees_all = match auth::secret(headers) {
        Some(_) => auth::key_or_session(app, headers).await?.role.may(Action::Read, false),
        None => app.options.payer.is_some(),
    };
    if !sees_all {
        return Ok(Registry::default());
    }
    app.blocking(|app| read(app)).await
}

fn read(app: &App) -> Result<Registry, ApiError> {
    let (balances, in_flight) = (Gauges::default(), Gauges::default());
    let mut rooms = [POOLS_MAX, app.options.metrics_users];
    let wallets = app.books.wallets().map_err(|error| ApiError::from(&error))?;
    for wallet in wallets.into_iter().filter(|wallet| wallet.closed.is_none()) {
        let is_pool = matches!(wallet.kind, WalletKind::Team | WalletKind::Organisation);
        let room = &mut rooms[usize::from(!is_pool)];
        if *room == 0 {
            continue;
        }
        *room -= 1;
        let of_wallet = OfWallet { wallet: wallet.name, kind: wallet.kind.as_str() };
        balances.get_or_create(&of_wallet).set(credits(wallet.balance));
        in_flight.get_or_create(&of_wallet).set(credits(wallet.in_flight));
    }
    let mut registry = Registry::default();
    registry.register("tokrun_wallet_balance_credits", "What wallets have left, net of what is in flight", balances);
    registry.register("tokrun_wallet_in_flight_credits", "Held by, or debited to, open requests", in_flight);
    Ok(registry)
}

fn credits(credits: Credits) -> f64 {
    credits.micro() as f64 / MICRO as f64
}
