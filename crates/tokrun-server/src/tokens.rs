//! `/tokenize` and `/detokenize`, in vLLM's form.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokrun_runtime::{ChatMessage, Prompt, TokenId};

use crate::app::App;
use crate::auth::Caller;
use crate::begin::find_loaded;
use crate::body::Payload;
use crate::content::Content;
use crate::embedders::Embedder;
use crate::error::ApiError;
use crate::models::Lease;
use crate::reply::ok;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tokenize {
    model: Option<String>,
    /// Text, as a completion would begin with it.
    prompt: Option<String>,
    /// Or a conversation, as the model's template has it.
    messages: Option<Vec<Message>>,
    /// Add what the tokenizer puts around every text.
    add_special_tokens: Option<bool>,
    /// Tell the text of each token.
    #[serde(default)]
    return_token_strs: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: Content,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Detokenize {
    model: Option<String>,
    tokens: Vec<TokenId>,
}

/// Text or a conversation to tokens.
pub(crate) async fn tokenize(State(app): State<Arc<App>>, caller: Caller, payload: Payload) -> Response {
    let tokenized = async {
        let (request, payload) = app.blocking(move |_| Ok((payload.parse::<Tokenize>()?, payload))).await?;
        let name = named(&app, request.model.as_deref());
        if let Some(embedder) = app.embedders.find(&caller, name) {
            let tokenized = app.blocking(move |_| {
                let _counted = payload;
                request.by_embedder(&embedder)
            });
            return tokenized.await;
        }
        let model = find_loaded(&app, &caller, name).await?;
        let tokenized = app.blocking(move |_| {
            let _counted = payload;
            request.tokenized(&model)
        });
        tokenized.await
    };
    tokenized.await.map_or_else(IntoResponse::into_response, |body| ok(&body))
}

impl Tokenize {
    fn tokenized(&self, model: &Lease) -> Result<Value, ApiError> {
        let runtime = model.runtime();
        let special = self.add_special_tokens.unwrap_or(true);
        let encoded = match (&self.prompt, &self.messages) {
            (Some(text), None) => {
                model.could_fit(&Prompt::Text(text.clone()))?;
                runtime.tokenizer().encode(text, special).map_err(|error| ApiError::from(&error))
            }
            (None, Some(messages)) => {
                let messages: Result<Vec<ChatMessage>, ApiError> = messages.iter().map(Message::chat_message).collect();
                let prompt = Prompt::Chat(messages?.into());
                model.could_fit(&prompt)?;
                runtime.encode(&prompt).map_err(|error| ApiError::from(&error))
            }
            _ => Err(ApiError::invalid("Give either 'prompt' or 'messages'.")),
        };
        let tokens = encoded?;
        let texts: Option<Vec<String>> = self
            .return_token_strs
            .then(|| tokens.iter().map(|token| runtime.tokenizer().token_text(*token).unwrap_or_default()).collect());
        let context_tokens = runtime.info().context_tokens;
        Ok(json!({ "count": tokens.len(), "max_model_len": context_tokens, "tokens": tokens, "token_strs": texts }))
    }
}

/// The model that is meant.
fn named<'a>(app: &'a App, named: Option<&'a str>) -> &'a str {
    let first =
        || app.models.first().map(|model| model.name()).or_else(|| app.embedders.iter().next().map(|it| it.name()));
    named.or_else(first).unwrap_or_default()
}

impl Tokenize {
    /// The tokens that an embedding model makes of a text.
    fn by_embedder(&self, embedder: &Embedder) -> Result<Value, ApiError> {
        let (Some(text), None) = (&self.prompt, &self.messages) else {
            return Err(ApiError::invalid("Give 'prompt': an embedding model takes no conversations."));
        };
        let embeddings = &embedder.served.embeddings;
        let tokens = embeddings.encode(text, self.add_special_tokens.unwrap_or(true));
        let tokens = tokens.map_err(|error| ApiError::from(&error))?;
        let spelling = |token: &TokenId| embeddings.encoder().spelling(*token).unwrap_or_default();
        let texts: Option<Vec<String>> = self.return_token_strs.then(|| tokens.iter().map(spelling).collect());
        let context_tokens = embeddings.info().context_tokens;
        Ok(json!({ "count": tokens.len(), "max_model_len": context_tokens, "tokens": tokens, "token_strs": texts }))
    }
}

impl Message {
    fn chat_message(&self) -> Result<ChatMessage, ApiError> {
        Ok(ChatMessage::new(&self.role, self.content.text()?))
    }
}

/// Tokens to text.
pub(crate) async fn detokenize(State(app): State<Arc<App>>, caller: Caller, payload: Payload) -> Response {
    let text = async {
        let (request, payload) = app.blocking(move |_| Ok((payload.parse::<Detokenize>()?, payload))).await?;
        let model = find_loaded(&app, &caller, named(&app, request.model.as_deref())).await?;
        let text = app.blocking(move |_| {
            let _counted = payload;
            model.runtime().tokenizer().decode(&request.tokens).map_err(|error| ApiError::from(&error))
        });
        text.await
    };
    text.await.map_or_else(IntoResponse::into_response, |text| ok(&json!({ "prompt": text })))
}
