//! What chat and text completions have in common as requests.

use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::asked::Asked;
use crate::begin::{Begun, Sampling, Wanted};
use crate::error::ApiError;

/// Stop strings of one request.
const STOPS_MAX: usize = 16;

/// Attribution in `metadata`, as the reference service bounds it.
const METADATA_MAX: usize = 16;

/// Declares a request with its own fields and those that both have; any other field is refused by its name.
macro_rules! request {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$doc])* $field: $type,)*
            /// The model's name.
            model: String,
            /// Higher is more varied, 0 always takes the likeliest token.
            temperature: Option<f32>,
            /// Choose among the likeliest tokens that together have this probability.
            top_p: Option<f32>,
            /// Choose among this many likeliest tokens; 0 or -1 for all.
            top_k: Option<i64>,
            /// Choose among tokens with at least this share of the likeliest one's probability.
            min_p: Option<f32>,
            /// Lower tokens that the answer already has, once.
            presence_penalty: Option<f32>,
            /// Lower tokens that the answer already has, each time.
            frequency_penalty: Option<f32>,
            /// Divide the logits of tokens that occurred already.
            repetition_penalty: Option<f32>,
            /// Added to the logits of these tokens.
            logit_bias: Option<std::collections::BTreeMap<u32, f32>>,
            /// The same seed gives the same text.
            seed: Option<i64>,
            /// Strings that end the answer.
            stop: Option<$crate::openai::request::Stop>,
            /// Answers to each prompt.
            n: Option<usize>,
            /// Output tokens at most.
            max_tokens: Option<usize>,
            /// Among the requests of one wallet a lower one is served earlier; 0 is the usual.
            priority: Option<i32>,
            /// Go on past the model's end tokens.
            ignore_eos: Option<bool>,
            /// Send the answer as it comes.
            stream: Option<bool>,
            /// How.
            stream_options: Option<$crate::openai::request::StreamOptions>,
            /// Who it is for, in the client's words; a tag in the log.
            user: Option<String>,
            /// More tags.
            metadata: Option<std::collections::BTreeMap<String, String>>,
        }

        impl $name {
            fn common(&self) -> $crate::openai::request::Common<'_> {
                $crate::openai::request::Common {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    logit_bias: self.logit_bias.as_ref(),
                    seed: self.seed,
                    stop: self.stop.as_ref(),
                    n: self.n,
                    priority: self.priority,
                    ignore_eos: self.ignore_eos,
                    stream: self.stream,
                    stream_options: self.stream_options.as_ref(),
                    user: self.user.as_deref(),
                    metadata: self.metadata.as_ref(),
                }
            }
        }
    };
}

pub(super) use request;

/// A request for answers, of either kind.
pub(crate) trait Asks: DeserializeOwned + Send + 'static {
    /// What it comes to.
    fn wanted(&self) -> Result<Wanted, ApiError>;
    /// What both kinds say alike.
    fn common(&self) -> Common<'_>;
    /// The answers at their end.
    fn whole(begun: Begun, manner: &Manner) -> impl Future<Output = Result<Response, ApiError>> + Send;
    /// The answers as they come.
    fn stream(begun: Begun, manner: &Manner) -> Response;
}

/// Answers a request.
pub(crate) async fn create<R: Asks>(asked: Asked) -> Response {
    let begun = asked.begin(|request: R| {
        let wanted = request.wanted()?;
        let manner = request.common().manner(&wanted);
        Ok((wanted, manner))
    });
    match begun.await {
        Ok((begun, manner)) if manner.streams => R::stream(begun, &manner),
        Ok((begun, manner)) => R::whole(begun, &manner).await.unwrap_or_else(IntoResponse::into_response),
        Err(error) => error.into_response(),
    }
}

/// One string, or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(crate) enum Stop {
    One(String),
    Several(Vec<String>),
}

/// `stream_options`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// Send the usage in a last chunk.
    #[serde(default)]
    pub(crate) include_usage: bool,
    /// Padding against those who measure the length of packets; there is none here.
    #[serde(default)]
    #[expect(dead_code, reason = "known, so that it is not refused; it asks for no more than padding")]
    include_obfuscation: bool,
}

/// How to answer.
pub(crate) struct Manner {
    pub(crate) streams: bool,
    pub(crate) includes_usage: bool,
    pub(crate) wants_logprobs: bool,
}

/// What both kinds of requests say alike.
pub(crate) struct Common<'a> {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) logit_bias: Option<&'a BTreeMap<u32, f32>>,
    pub(crate) seed: Option<i64>,
    pub(crate) stop: Option<&'a Stop>,
    pub(crate) n: Option<usize>,
    pub(crate) priority: Option<i32>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<&'a StreamOptions>,
    pub(crate) user: Option<&'a str>,
    pub(crate) metadata: Option<&'a BTreeMap<String, String>>,
}

impl Common<'_> {
    pub(crate) fn manner(&self, wanted: &Wanted) -> Manner {
        Manner {
            streams: self.streams(),
            includes_usage: self.stream_options.is_some_and(|options| options.include_usage),
            wants_logprobs: wanted.logprobs.is_some(),
        }
    }

    fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// What is wanted, without prompts, model and what else only one kind has.
    pub(crate) fn wanted(&self) -> Result<Wanted, ApiError> {
        if self.stream_options.is_some() && !self.streams() {
            let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
            return Err(ApiError::invalid_param("stream_options", message));
        }
        Ok(Wanted {
            n: self.n.unwrap_or(1),
            sampling: self.sampling()?,
            stop: self.stop()?,
            priority: self.priority.unwrap_or(0),
            ignore_eos: self.ignore_eos == Some(true),
            tags: tags(self.user, self.metadata)?,
            ..Wanted::default()
        })
    }

    fn sampling(&self) -> Result<Sampling, ApiError> {
        if self.temperature.is_some_and(|temperature| temperature > 2.0) {
            return Err(ApiError::invalid_param("temperature", "temperature is above 2, the highest there is."));
        }
        let top_k = match self.top_k {
            Some(-1) => Some(0),
            Some(k) => Some(usize::try_from(k).map_err(|_| ApiError::invalid_param("top_k", "top_k is negative."))?),
            None => None,
        };
        Ok(Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repeat_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.cloned().unwrap_or_default(),
            seed: self.seed.map(i64::cast_unsigned),
        })
    }

    fn stop(&self) -> Result<Vec<String>, ApiError> {
        let stops = match self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop.clone()],
            Some(Stop::Several(stops)) => stops.clone(),
        };
        if stops.len() > STOPS_MAX {
            let message = format!("There are {} stop strings; {STOPS_MAX} are the most.", stops.len());
            return Err(ApiError::invalid_param("stop", message));
        }
        if stops.iter().any(String::is_empty) {
            return Err(ApiError::invalid_param("stop", "A stop string is empty."));
        }
        Ok(stops)
    }
}

/// Attribution for the log.
pub(crate) fn tags(
    user: Option<&str>,
    metadata: Option<&BTreeMap<String, String>>,
) -> Result<BTreeMap<String, String>, ApiError> {
    let mut tags = metadata.cloned().unwrap_or_default();
    let fits = |(key, value): (&String, &String)| key.chars().count() <= 64 && value.chars().count() <= 512;
    if tags.len() > METADATA_MAX || !tags.iter().all(fits) {
        let message = "metadata has at most 16 pairs, of keys up to 64 and values up to 512 characters.";
        return Err(ApiError::invalid_param("metadata", message));
    }
    if let Some(user) = user {
        if user.chars().count() > 512 {
            return Err(ApiError::invalid_param("user", "user has more than 512 characters."));
        }
        tags.insert("user".to_owned(), user.to_owned());
    }
    Ok(tags)
}
