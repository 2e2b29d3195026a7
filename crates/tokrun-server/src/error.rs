//! What goes wrong with a request, found out once and told in the form that the client expects.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokrun_ledger::{Ledger, LedgerError, LimitReached};
use tokrun_runtime::{EngineError, InvalidParameter, RuntimeError, SubmitError, with_causes};

use crate::models::LoadError;
use crate::reply::json_response;

/// Whose clients are spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
}

impl Dialect {
    /// That of a route.
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") { Self::Anthropic } else { Self::OpenAi }
    }
}

/// Why a request is not answered, or not to its end.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    pub(crate) message: String,
    retry_after_s: Option<u64>,
    /// Trying again would not help, whatever the status suggests.
    is_final: bool,
    /// What is left, and when there will be more.
    tokrun: Option<Box<Value>>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, kind, code, param: None, message, retry_after_s: None, is_final: false, tokrun: None }
    }

    /// The request itself is wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// One of its parameters is wrong.
    pub(crate) fn invalid_param(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::invalid(message) }
    }

    /// A parameter that is understood, and cannot be honoured.
    pub(crate) fn unsupported(param: &str, why: &str) -> Self {
        let message = format!("Unsupported parameter: '{param}': {why}.");
        Self { code: Some("unsupported_parameter"), ..Self::invalid_param(param, message) }
    }

    /// The prompt leaves no room for an answer.
    pub(crate) fn too_long(message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::invalid_param("messages", message) }
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", Some("invalid_api_key"), message)
    }

    /// What the ledger does not change.
    pub(crate) fn refused(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", Some(code), message)
    }

    /// Nobody asked for an allowance under this id.
    pub(crate) fn unknown_ask(id: &str) -> Self {
        let message = format!("There is no request for an allowance `{id}`.");
        Self::refused(StatusCode::NOT_FOUND, "unknown_request", message)
    }

    pub(crate) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", Some(code), message)
    }

    /// There is no such model, or it is not for this key: the two are told alike.
    pub(crate) fn unknown_model(name: &str) -> Self {
        let message = format!("The model `{name}` does not exist or you do not have access to it.");
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message);
        Self { param: Some("model".to_owned()), ..error }
    }

    /// A model of another kind than is asked for.
    pub(crate) fn wrong_kind(message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_model"), ..Self::invalid_param("model", message) }
    }

    pub(crate) fn unknown_url(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        let message = format!("Unknown request URL: {method} {path}.");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("unknown_url"), message)
    }

    pub(crate) fn method_not_allowed(method: &str) -> Self {
        let message = format!("Not allowed to {method} there.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", Some("method_not_allowed"), message)
    }

    pub(crate) fn too_large(bytes_max: usize) -> Self {
        let message = format!("The request's body has more than {bytes_max} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", Some("request_too_large"), message)
    }

    pub(crate) fn timeout() -> Self {
        let message = "The request's body did not arrive in time.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", Some("request_timeout"), message)
    }

    /// All places are taken, or the server is about to end.
    pub(crate) fn overloaded(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("overloaded"), message);
        Self { retry_after_s: Some(1), ..error }
    }

    /// A model that is not in memory, and cannot be loaded. Trying again may help where there was no room for it.
    pub(crate) fn not_loaded(model: &str, error: &LoadError) -> Self {
        match error {
            LoadError::NoRoom(reason) => {
                Self::overloaded(format!("The model `{model}` cannot be loaded now: {reason}."))
            }
            LoadError::Failed(_) => {
                let message = format!("The model `{model}` cannot be loaded; the server's log says why.");
                let (status, code) = (StatusCode::INTERNAL_SERVER_ERROR, "model_not_loaded");
                Self { is_final: true, ..Self::new(status, "server_error", Some(code), message) }
            }
        }
    }

    /// The deadline passed before there was anything to answer with. Trying again comes too late as well.
    pub(crate) fn too_late() -> Self {
        let message = "The deadline passed before an answer began; nothing is charged.";
        let (status, code) = (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded");
        Self { is_final: true, ..Self::new(status, "server_error", Some(code), message) }
    }

    /// A failure of ours. Its cause is for the log: it may name files and people.
    pub(crate) fn internal(cause: &dyn std::error::Error) -> Self {
        tracing::error!(cause = %with_causes(cause), "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            Some("internal_error"),
            "The server failed to answer; nothing beyond what was delivered is charged. Its log has the cause.",
        )
    }

    /// A thread that panicked.
    pub(crate) fn panicked() -> Self {
        Self::internal(&std::io::Error::other("a handler panicked"))
    }

    fn limited(reached: &LimitReached) -> Self {
        let retry_after_s = reached.retry_after_s(Timestamp::now());
        let tokrun = json!({ "limit": { "id": reached.id, "what": reached.what, "resets": reached.resets } });
        let message = format!("A limit is reached: {reached}.");
        // Within the hour it is a rate, beyond it is a quota, which clients should not wait for.
        let (kind, code, is_final) = match retry_after_s {
            Some(wait_s) if wait_s <= 3600 => ("rate_limit_error", "rate_limit_exceeded", false),
            None if reached.what.contains("at once") => ("rate_limit_error", "rate_limit_exceeded", false),
            _ => ("insufficient_quota", "insufficient_quota", true),
        };
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, kind, Some(code), message);
        Self { retry_after_s, is_final, tokrun: Some(Box::new(tokrun)), ..error }
    }

    /// Why the metrics count it, in one word.
    pub(crate) fn reason(&self) -> &'static str {
        self.code.unwrap_or(self.kind)
    }

    /// OpenAI's error object.
    pub(crate) fn openai(&self) -> Value {
        let mut error = json!({ "message": self.message, "type": self.kind, "param": self.param, "code": self.code });
        if let Some(tokrun) = &self.tokrun {
            error["tokrun"] = Value::clone(tokrun);
        }
        json!({ "error": error })
    }

    /// Anthropic's.
    pub(crate) fn anthropic(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        };
        let mut error = json!({ "type": kind, "message": self.message });
        if let Some(tokrun) = &self.tokrun {
            error["tokrun"] = Value::clone(tokrun);
        }
        json!({ "type": "error", "error": error })
    }

    pub(crate) fn body(&self, dialect: Dialect) -> Value {
        match dialect {
            Dialect::OpenAi => self.openai(),
            Dialect::Anthropic => self.anthropic(),
        }
    }

    pub(crate) fn response(&self, dialect: Dialect) -> Response {
        let mut response = json_response(self.status, &self.body(dialect));
        let headers = response.headers_mut();
        if let Some(wait_s) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait_s));
        }
        if self.is_final {
            // Both clients ask this header before they try again.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Refused(self.reason()));
        response
    }
}

/// Goes along with a refusal, for the metrics.
#[derive(Clone, Copy)]
pub(crate) struct Refused(pub(crate) &'static str);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.response(Dialect::OpenAi)
    }
}

impl From<&RuntimeError> for ApiError {
    fn from(error: &RuntimeError) -> Self {
        match error {
            RuntimeError::Submit(error) => Self::from(error),
            RuntimeError::NoTemplate(_) => Self::invalid(error.to_string()),
            RuntimeError::Engine(error) => Self::from(error),
            RuntimeError::Ledger(error) => Self::from(error),
            RuntimeError::InputTooLong { .. } => {
                Self { param: Some("input".to_owned()), ..Self::too_long(error.to_string()) }
            }
            RuntimeError::InvalidInput { .. } => Self::invalid_param("input", error.to_string()),
            RuntimeError::TooLate => Self::too_late(),
            RuntimeError::Stopped => Self::overloaded("The model has stopped; try again."),
            _ => Self::internal(error),
        }
    }
}

impl From<&SubmitError> for ApiError {
    fn from(error: &SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { .. } | SubmitError::Stopped => Self::overloaded(format!("{error}.")),
            SubmitError::PromptTooLong { .. } | SubmitError::CacheTooSmall { .. } => Self::too_long(error.to_string()),
            SubmitError::InvalidSampling(parameter) => Self::from(parameter),
            SubmitError::NothingToGenerate => Self::invalid_param("max_tokens", error.to_string()),
            _ => Self::invalid(error.to_string()),
        }
    }
}

impl From<&InvalidParameter> for ApiError {
    fn from(error: &InvalidParameter) -> Self {
        Self::invalid_param(error.name, error.to_string())
    }
}

impl From<&EngineError> for ApiError {
    fn from(error: &EngineError) -> Self {
        match error {
            EngineError::InvalidParameter(parameter) => Self::from(parameter),
            EngineError::InvalidGrammar { .. } | EngineError::NoGrammars { .. } => {
                Self::invalid_param("response_format", error.to_string())
            }
            EngineError::TemplateRefused { .. }
            | EngineError::NoChatTemplate
            | EngineError::BrokenTemplate { .. }
            | EngineError::UnknownToken { .. }
            | EngineError::Encode { .. } => Self::invalid(error.to_string()),
            _ => Self::internal(error),
        }
    }
}

impl From<&LedgerError> for ApiError {
    fn from(error: &LedgerError) -> Self {
        match error {
            LedgerError::Exhausted { needed, balance, .. } => {
                let message = format!("Your allowance is used up: {needed} credits are needed, {balance} are left.");
                let error =
                    Self::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", Some("insufficient_quota"), message);
                let tokrun = json!({ "needed": needed, "balance": balance, "unit": "credits" });
                Self { is_final: true, tokrun: Some(Box::new(tokrun)), ..error }
            }
            LedgerError::Limited { reached } => Self::limited(reached),
            LedgerError::Frozen { .. } => Self::forbidden("wallet_frozen", "Your wallet is frozen."),
            LedgerError::WalletClosed { .. } => Self::forbidden("wallet_closed", "Your wallet is closed."),
            LedgerError::UnknownWallet { .. } => Self::forbidden("unknown_wallet", "There is no such wallet."),
            LedgerError::KeyRefused { .. } => Self::unauthorized("Incorrect API key provided."),
            LedgerError::KeyScope { .. } => Self::forbidden("key_scope", format!("{error}.")),
            LedgerError::InvalidRequest { reason, .. } => Self::invalid((*reason).to_owned()),
            LedgerError::Busy => Self::overloaded("The ledger is busy; try again."),
            _ => Self::internal(error),
        }
    }
}

impl ApiError {
    /// Says when an allowance that is used up gets more, and takes the status that the operator chose for it.
    pub(crate) fn with_refill(mut self, ledger: &Ledger, wallet: &str, exhausted_status: StatusCode) -> Self {
        if self.kind != "insufficient_quota" {
            return self;
        }
        self.status = exhausted_status;
        let Ok(view) = ledger.wallet(wallet) else { return self };
        let next = view.recurring.iter().filter_map(|grant| Some((grant.next?, grant.amount))).min();
        let tokrun = self.tokrun.get_or_insert_with(|| Box::new(json!({})));
        tokrun["balance"] = json!(view.balance);
        tokrun["refill"] = json!(next.map(|(at, amount)| json!({ "at": at, "amount": amount })));
        if let Some((at, amount)) = next {
            self.message.push_str(&format!(" The next {amount} come at {at}."));
        }
        self
    }
}
