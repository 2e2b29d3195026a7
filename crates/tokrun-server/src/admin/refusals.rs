//! What the ledger refuses to change, as HTTP tells it: under the same codes as the command line.

use axum::http::StatusCode;
use tokrun_ledger::LedgerError;

use crate::error::ApiError;

/// Why the ledger does not change anything.
pub(crate) fn refusal(error: &LedgerError) -> ApiError {
    use LedgerError as E;
    let (status, code) = match error {
        E::UnknownWallet { .. } => (StatusCode::NOT_FOUND, "unknown_wallet"),
        E::UnknownGrant { .. } => (StatusCode::NOT_FOUND, "unknown_grant"),
        E::NotSettled { .. } | E::UnknownAsk { .. } => (StatusCode::NOT_FOUND, "unknown_request"),
        E::UnknownLimit { .. } => (StatusCode::NOT_FOUND, "unknown_limit"),
        E::UnknownPrice { .. } => (StatusCode::NOT_FOUND, "unknown_price"),
        E::UnknownKey { .. } => (StatusCode::NOT_FOUND, "unknown_key"),
        E::WalletExists { .. } => (StatusCode::CONFLICT, "wallet_exists"),
        E::KeyExists { .. } => (StatusCode::CONFLICT, "key_exists"),
        E::Answered { .. } => (StatusCode::CONFLICT, "answered"),
        E::IdempotencyConflict { .. } => (StatusCode::CONFLICT, "idempotency_conflict"),
        E::Exhausted { .. } => (StatusCode::CONFLICT, "allowance_exhausted"),
        E::Frozen { .. } => (StatusCode::CONFLICT, "wallet_frozen"),
        E::WalletClosed { .. } => (StatusCode::CONFLICT, "wallet_closed"),
        E::InvalidName { .. }
        | E::InvalidWallet { .. }
        | E::InvalidGrant { .. }
        | E::InvalidReversal { .. }
        | E::InvalidLimit { .. }
        | E::InvalidPrice { .. }
        | E::InvalidKey { .. } => (StatusCode::BAD_REQUEST, "invalid"),
        _ => return ApiError::from(error),
    };
    ApiError::refused(status, code, format!("{error}."))
}
