//! The catalogue: which models have a name, where they come from, what they cost and how they like to be sampled.
//!
//! `models.toml` is compiled in; a file of the same form in `$TOKRUN_HOME` adds models and overrides single settings of
//! the built-in ones, by name.

mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use crate::digest::Digest;

const BUILT_IN: &str = include_str!("../../../models.toml");

/// Every model that has a name.
#[derive(Clone, Debug)]
pub struct Catalogue {
    entries: Vec<Entry>,
    default_model: String,
    starter_grant: Decimal,
}

/// One model of the catalogue.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What users type: lower-case letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// What people call it.
    pub title: String,
    /// The decoder family: `llama`, `qwen3`.
    pub architecture: String,
    /// One GGUF file, or a directory of safetensors.
    pub format: Format,
    /// Most frequent weight type: `Q4_1`, `BF16`.
    pub dtype: String,
    /// Weights, counted one by one; 0 if nobody wrote it down.
    pub parameters: u64,
    /// Longest sequence the model was made for, in tokens.
    pub context_tokens: usize,
    /// The licence's SPDX identifier, or its name.
    pub licence: String,
    /// Whether the hub wants its licence accepted and a token before it hands out the files.
    pub gated: bool,
    /// What is known of the files. A GGUF model has exactly one; for safetensors only what can be checked is listed.
    pub files: Vec<FileFacts>,
    /// Where to get it, best first.
    pub sources: Vec<Source>,
    /// What a token costs, oldest first; the first has no `from`.
    pub prices: Vec<Price>,
    /// What the model's makers recommend.
    pub sampling: SamplingDefaults,
    /// How a conversation begins.
    pub chat: ChatDefaults,
}

/// The shape of a model on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One file with everything.
    Gguf,
    /// A directory with `config.json`, `tokenizer.json` and weights.
    Safetensors,
}

/// What is known of one file before it is pulled.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    /// Its name on disk.
    pub name: String,
    /// Its length in bytes.
    pub size_bytes: Option<u64>,
    /// The digest of its content.
    pub sha256: Option<Digest>,
}

/// A place that has the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A repository of the model hub.
    Hub {
        /// `owner/name`.
        repository: String,
        /// A commit, tag or branch.
        revision: String,
        /// A GGUF file's path in the repository; `None` for safetensors.
        file: Option<String>,
    },
    /// A Python package that carries the GGUF file.
    Pip {
        /// The package's name.
        package: String,
        /// The one version that is asked for.
        version: String,
        /// The file's path inside the wheel.
        member: String,
    },
}

/// What a token costs from some instant on, in credits a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    /// When it begins; `None`: always was.
    pub from: Option<Timestamp>,
    /// A prompt token that had to be computed.
    pub prompt: Decimal,
    /// A prompt token found in the prefix cache.
    pub cached_prompt: Decimal,
    /// A generated token.
    pub output: Decimal,
    /// A generated token that was reasoning.
    pub reasoning: Decimal,
}

/// An exact decimal number, not negative: at most 12 digits before the point and 6 after it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Decimal(String);

/// How to sample when the user does not say; `None` leaves the choice to the runtime.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingDefaults {
    /// Temperature; 0 is greedy.
    pub temperature: Option<f64>,
    /// Nucleus mass, above 0 and up to 1.
    pub top_p: Option<f64>,
    /// How many of the best tokens stay; 0 is all.
    pub top_k: Option<u32>,
    /// Least probability, as a share of the best token's.
    pub min_p: Option<f64>,
    /// Divides the logits of tokens already there; 1 is off.
    pub repeat_penalty: Option<f64>,
}

/// How a conversation begins when the user does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatDefaults {
    /// The system message, if the model needs one that its template does not bring.
    pub system: Option<String>,
}

/// A catalogue that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// The operating system refused to read the user's file.
    #[error("cannot read the catalogue {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in it makes no sense.
    #[error("{path}:{line}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, and how it should be.
        reason: String,
    },
}

impl Catalogue {
    /// The built-in catalogue, extended by `models.toml` in `home` if there is one.
    ///
    /// # Errors
    /// When the user's file cannot be read, has an unknown key, or says something that makes no sense.
    pub fn load(home: &Path) -> Result<Self, CatalogueError> {
        let path = home.join("models.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => parse::extended(BUILT_IN, &text, &path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::built_in(),
            Err(source) => Err(CatalogueError::Read { path, source }),
        }
    }

    /// The built-in catalogue alone.
    ///
    /// # Errors
    /// None in a build that passed its tests.
    pub fn built_in() -> Result<Self, CatalogueError> {
        parse::built_in(BUILT_IN)
    }

    /// The model of that name or alias, in any case.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        let name = name.to_ascii_lowercase();
        let by_name = self.entries.iter().find(|entry| entry.name == name);
        by_name.or_else(|| self.entries.iter().find(|entry| entry.aliases.contains(&name)))
    }

    /// Every model: the built-in ones first, each file's order kept.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The model that is used when none is named.
    pub fn default_model(&self) -> &Entry {
        self.get(&self.default_model).expect("checked when the catalogue was read")
    }

    /// Credits a user's first wallet begins with.
    pub fn starter_grant(&self) -> &Decimal {
        &self.starter_grant
    }

    /// Names that resemble `name`, best first, at most three.
    pub fn similar(&self, name: &str) -> Vec<&str> {
        let name = name.to_ascii_lowercase();
        let likeness = |known: &str| {
            let contained = !name.is_empty() && (known.contains(&name) || name.contains(known));
            if contained { 1.0 } else { strsim::jaro_winkler(known, &name) }
        };
        let best_of = |entry: &Entry| entry.aliases.iter().map(|alias| likeness(alias)).fold(0.0, f64::max);
        let mut scored: Vec<(f64, &str)> = self
            .entries
            .iter()
            .map(|entry| (likeness(&entry.name).max(best_of(entry)), entry.name.as_str()))
            .filter(|(score, _)| *score > 0.8)
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().take(3).map(|(_, name)| name).collect()
    }
}

impl Entry {
    /// The price in force at `now`.
    pub fn price_at(&self, now: Timestamp) -> &Price {
        let in_force = self.prices.iter().rev().find(|price| price.from.is_none_or(|from| from <= now));
        in_force.expect("the first price has no beginning")
    }

    /// What is known of the file `name`.
    pub fn file(&self, name: &str) -> Option<&FileFacts> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Bytes of all files, where every one is known.
    pub fn size_bytes(&self) -> Option<u64> {
        if self.files.is_empty() { None } else { self.files.iter().map(|file| file.size_bytes).sum() }
    }
}

impl Decimal {
    /// Reads digits, perhaps with a point and more digits.
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str, most: usize| {
            (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        (digits(whole, 12) && digits(fraction, 6)).then(|| Self(text.to_owned()))
    }

    /// Exactly, in millionths.
    fn millionths(&self) -> u64 {
        let (whole, fraction) = self.0.split_once('.').unwrap_or((&self.0, ""));
        format!("{whole}{fraction:0<6}").parse().expect("at most 18 digits, checked when it was read")
    }

    /// As it was written: `0.25`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Decimal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| {
            format!("`{text}` is no amount: write it like \"0.25\", with at most six digits after the point")
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { repository, revision, .. } => write!(f, "hub {repository}@{revision}"),
            Self::Pip { package, version, .. } => write!(f, "Python package {package} {version}"),
        }
    }
}
