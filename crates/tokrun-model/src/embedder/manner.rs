//! How the vectors of tokens become that of a text: what sentence-transformers writes beside a model.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;
use crate::config::Config;

/// How a text's vector is made of those of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// That of the first token.
    Cls,
    /// Their mean.
    Mean,
    /// Their sum over the root of how many they are.
    MeanSqrtLen,
    /// The largest of each number.
    Max,
    /// That of the last token.
    LastToken,
}

/// What becomes of a vector's meaning when it is cut short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shortening {
    /// The model was not made for it.
    Refused,
    /// It was (Matryoshka representations), for any length.
    Any,
    /// It was, for these.
    To(Vec<usize>),
}

impl Pooling {
    const NAMES: &[(&str, Self)] = &[
        ("cls", Self::Cls),
        ("cls_token", Self::Cls),
        ("mean", Self::Mean),
        ("mean_tokens", Self::Mean),
        ("mean_sqrt_len_tokens", Self::MeanSqrtLen),
        ("max", Self::Max),
        ("max_tokens", Self::Max),
        ("lasttoken", Self::LastToken),
    ];

    /// Of rows of `width` numbers, at least one.
    pub(super) fn pool(self, rows: &[f32], width: usize) -> Vec<f32> {
        let count = rows.len() / width;
        let sum = || -> Vec<f64> {
            let mut sum = vec![0.0; width];
            for row in rows.chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
            sum
        };
        let over = |divisor: f64| sum().into_iter().map(|value| (value / divisor) as f32).collect();
        match self {
            Self::Cls => rows[..width].to_vec(),
            Self::LastToken => rows[rows.len() - width..].to_vec(),
            Self::Mean => over(count as f64),
            Self::MeanSqrtLen => over((count as f64).sqrt()),
            Self::Max => {
                let larger = |largest: Vec<f32>, row: &[f32]| {
                    largest.into_iter().zip(row).map(|(largest, value)| largest.max(*value)).collect()
                };
                rows.chunks_exact(width).fold(vec![f32::NEG_INFINITY; width], larger)
            }
        }
    }
}

impl Shortening {
    /// Whether vectors of `dimensions` numbers may be cut to `wanted`.
    pub fn allows(&self, wanted: usize, dimensions: usize) -> bool {
        let is_made_for = match self {
            Self::Refused => false,
            Self::Any => wanted > 0,
            Self::To(lengths) => lengths.contains(&wanted),
        };
        wanted == dimensions || (is_made_for && wanted < dimensions)
    }

    fn of(config: &Config) -> Self {
        let lengths = config.get("matryoshka_dimensions").and_then(Value::as_array);
        let lengths = lengths.map(|lengths| {
            lengths.iter().filter_map(|length| usize::try_from(length.as_u64()?).ok()).collect::<Vec<_>>()
        });
        match lengths.filter(|lengths| !lengths.is_empty()) {
            Some(lengths) => Self::To(lengths),
            None if config.bool("is_matryoshka") == Some(true) => Self::Any,
            None => Self::Refused,
        }
    }
}

/// What a folder says of the way from tokens to a text's vector.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manner {
    pub(super) pooling: Pooling,
    pub(super) normalised: bool,
    /// Longest text, where it is less than the encoder has positions.
    pub(super) context_tokens: Option<usize>,
    pub(super) shortening: Shortening,
}

impl Manner {
    /// Reads it. A folder that says nothing is a plain encoder: its vectors are means, as sentence-transformers has it.
    pub(super) fn read(folder: &Path, config: &Config) -> Result<Self, ModelError> {
        let mut manner = Self {
            pooling: Pooling::Mean,
            normalised: false,
            context_tokens: None,
            shortening: Shortening::of(config),
        };
        refuse_changes(folder)?;
        for (file, name) in
            [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
        {
            let settings = object(&folder.join(file))?.unwrap_or_default();
            let length = settings.get(name).and_then(Value::as_u64).filter(|&length| length > 0);
            let length = length.and_then(|length| usize::try_from(length).ok());
            manner.context_tokens = manner.context_tokens.into_iter().chain(length).min();
        }
        let path = folder.join("modules.json");
        let Some(modules) = json(&path)? else { return Ok(manner) };
        let modules = modules.as_array().ok_or_else(|| malformed(&path, "it is no list"))?;
        for (index, module) in modules.iter().enumerate() {
            let kind = module["type"].as_str().and_then(|kind| kind.rsplit('.').next()).unwrap_or_default();
            match kind {
                "Transformer" if index == 0 && module["path"] == "" => {}
                "Pooling" if index == 1 => manner.pooling = pooling(&module_folder(folder, &path, module)?, config)?,
                "Normalize" if index > 0 => manner.normalised = true,
                _ => {
                    let reason = format!("its part {index} in modules.json is {module}, which is not computed here");
                    return Err(ModelError::Unsupported { reason });
                }
            }
        }
        Ok(manner)
    }
}

/// Refuses what would change texts or vectors by default, and would be ignored.
fn refuse_changes(folder: &Path) -> Result<(), ModelError> {
    for (file, name) in [
        ("config_sentence_transformers.json", "default_prompt_name"),
        ("config_sentence_transformers.json", "truncate_dim"),
        ("sentence_bert_config.json", "do_lower_case"),
    ] {
        let settings = object(&folder.join(file))?.unwrap_or_default();
        if let Some(value) = settings.get(name).filter(|value| !value.is_null() && **value != Value::Bool(false)) {
            return Err(ModelError::Unsupported { reason: format!("{name} = {value} in {file} would be ignored") });
        }
    }
    Ok(())
}

/// The folder of a part, beside the model.
fn module_folder(folder: &Path, modules: &Path, module: &Value) -> Result<PathBuf, ModelError> {
    let name = module["path"].as_str().unwrap_or_default();
    if Path::new(name).file_name().is_none_or(|last| last != name) {
        return Err(malformed(modules, &format!("it names {name:?}, which is no folder beside it")));
    }
    Ok(folder.join(name))
}

fn pooling(folder: &Path, config: &Config) -> Result<Pooling, ModelError> {
    let path = folder.join("config.json");
    let settings = object(&path)?.ok_or_else(|| malformed(&path, "it is missing"))?;
    let width = settings.get("word_embedding_dimension").or_else(|| settings.get("embedding_dimension"));
    if let Some(width) =
        width.and_then(Value::as_u64).filter(|&width| config.uint("hidden_size") != Some(width as usize))
    {
        return Err(malformed(&path, &format!("it is for vectors of {width} numbers")));
    }
    // One name, or a switch for each.
    let mut modes: Vec<&str> = settings.get("pooling_mode").and_then(Value::as_str).into_iter().collect();
    let switched = settings.iter().filter(|(_, value)| **value == Value::Bool(true));
    modes.extend(switched.filter_map(|(name, _)| name.strip_prefix("pooling_mode_")));
    let known = |mode: &str| Pooling::NAMES.iter().find(|(name, _)| *name == mode).map(|(_, pooling)| *pooling);
    match modes.as_slice() {
        [mode] => known(mode).ok_or_else(|| ModelError::Unsupported { reason: format!("pooling by {mode}") }),
        modes => Err(ModelError::Unsupported { reason: format!("pooling in {} ways at once: {modes:?}", modes.len()) }),
    }
}

fn object(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    match json(path)? {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(malformed(path, "it is no JSON object")),
    }
}

/// The JSON in a file; `None` where there is no such file.
fn json(path: &Path) -> Result<Option<Value>, ModelError> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map(Some).map_err(|error| malformed(path, &format!("it is no JSON: {error}")))
}

fn malformed(path: &Path, reason: &str) -> ModelError {
    ModelError::Malformed { path: path.to_owned(), reason: reason.to_owned() }
}
