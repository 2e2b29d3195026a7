//! Reading the catalogue's TOML: strict about keys, exact about lines, and merged setting by setting.

use std::ops::Range;
use std::path::Path;

use jiff::{Timestamp, civil};
use serde::Deserialize;
use toml::Spanned;

use super::{
    Catalogue, CatalogueError, ChatDefaults, Decimal, Entry, FileFacts, Format, Price, SamplingDefaults, Source,
};

/// Reads the built-in catalogue.
pub(super) fn built_in(text: &str) -> Result<Catalogue, CatalogueError> {
    let file = File { path: Path::new("models.toml"), text };
    Merged::default().add(file.read()?, &file)?.finish(&file)
}

/// Reads the built-in catalogue and lays the user's file over it.
pub(super) fn extended(built_in: &str, text: &str, path: &Path) -> Result<Catalogue, CatalogueError> {
    let own = File { path: Path::new("models.toml"), text: built_in };
    let user = File { path, text };
    Merged::default().add(own.read()?, &own)?.add(user.read()?, &user)?.finish(&user)
}

/// A file being read, for messages.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    defaults: Defaults,
    #[serde(default, rename = "model")]
    models: Vec<RawEntry>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Defaults {
    model: Option<Spanned<String>>,
    starter_grant: Option<Decimal>,
}

/// An entry as written: only the name is needed where another file has the rest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    name: Spanned<String>,
    aliases: Option<Vec<String>>,
    title: Option<String>,
    architecture: Option<String>,
    format: Option<Format>,
    dtype: Option<String>,
    parameters: Option<u64>,
    context_tokens: Option<usize>,
    licence: Option<String>,
    gated: Option<bool>,
    files: Option<Vec<FileFacts>>,
    sources: Option<Vec<RawSource>>,
    prices: Option<Vec<RawPrice>>,
    sampling: Option<SamplingDefaults>,
    chat: Option<ChatDefaults>,
}

#[derive(Clone, Deserialize)]
#[serde(try_from = "SourceKeys")]
struct RawSource(Source);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceKeys {
    hub: Option<String>,
    revision: Option<String>,
    file: Option<String>,
    pip: Option<String>,
    version: Option<String>,
    member: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(try_from = "PriceKeys")]
struct RawPrice(Price);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceKeys {
    from: Option<toml::value::Datetime>,
    prompt: Decimal,
    cached_prompt: Option<Decimal>,
    output: Decimal,
    reasoning: Option<Decimal>,
}

/// What the files read so far say together.
#[derive(Default)]
struct Merged {
    entries: Vec<Entry>,
    default_model: Option<(String, Range<usize>)>,
    starter_grant: Option<Decimal>,
}

impl File<'_> {
    fn read(&self) -> Result<Document, CatalogueError> {
        toml::from_str(self.text).map_err(|error| self.error(error.span().unwrap_or(0..0), error.message().to_owned()))
    }

    fn error(&self, span: Range<usize>, reason: String) -> CatalogueError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        CatalogueError::Invalid { path: self.path.to_owned(), line, reason }
    }
}

impl Merged {
    fn add(mut self, document: Document, file: &File<'_>) -> Result<Self, CatalogueError> {
        let mut seen: Vec<String> = Vec::new();
        for raw in document.models {
            let span = raw.name.span();
            let name = raw.name.get_ref().clone();
            if seen.contains(&name) {
                return Err(file.error(span, format!("`{name}` is there twice: put its settings in one place")));
            }
            let known = self.entries.iter().position(|entry| entry.name == name);
            let entry = raw
                .over(known.map(|index| &self.entries[index]))
                .and_then(|entry| check(&entry).map(|()| entry))
                .map_err(|reason| file.error(span, reason))?;
            match known {
                Some(index) => self.entries[index] = entry,
                None => self.entries.push(entry),
            }
            seen.push(name);
        }
        if let Some(model) = document.defaults.model {
            self.default_model = Some((model.get_ref().clone(), model.span()));
        }
        self.starter_grant = document.defaults.starter_grant.or(self.starter_grant);
        Ok(self)
    }

    fn finish(self, file: &File<'_>) -> Result<Catalogue, CatalogueError> {
        let missing = |key: &str| file.error(0..0, format!("`{key}` is missing in [defaults]"));
        let (default_model, span) = self.default_model.ok_or_else(|| missing("model"))?;
        let starter_grant = self.starter_grant.ok_or_else(|| missing("starter_grant"))?;
        let catalogue = Catalogue { entries: self.entries, default_model, starter_grant };
        if catalogue.get(&catalogue.default_model).is_none() {
            return Err(file.error(span, format!("the default model `{}` has no entry", catalogue.default_model)));
        }
        Ok(catalogue)
    }
}

impl RawEntry {
    /// These settings, and `base`'s where they are silent.
    fn over(self, base: Option<&Entry>) -> Result<Entry, String> {
        let name = self.name.into_inner();
        let needs = |key: &str| format!("`{name}` needs a `{key}`");
        Ok(Entry {
            aliases: self.aliases.or_else(|| base.map(|base| base.aliases.clone())).unwrap_or_default(),
            title: self.title.or_else(|| base.map(|base| base.title.clone())).unwrap_or_else(|| name.clone()),
            architecture: self
                .architecture
                .or_else(|| base.map(|base| base.architecture.clone()))
                .ok_or_else(|| needs("architecture"))?,
            format: self.format.or_else(|| base.map(|base| base.format)).ok_or_else(|| needs("format"))?,
            dtype: self.dtype.or_else(|| base.map(|base| base.dtype.clone())).ok_or_else(|| needs("dtype"))?,
            parameters: self.parameters.or_else(|| base.map(|base| base.parameters)).unwrap_or_default(),
            context_tokens: self
                .context_tokens
                .or_else(|| base.map(|base| base.context_tokens))
                .ok_or_else(|| needs("context_tokens"))?,
            licence: self.licence.or_else(|| base.map(|base| base.licence.clone())).ok_or_else(|| needs("licence"))?,
            gated: self.gated.or_else(|| base.map(|base| base.gated)).unwrap_or_default(),
            files: self.files.or_else(|| base.map(|base| base.files.clone())).unwrap_or_default(),
            sources: self
                .sources
                .map(|sources| sources.into_iter().map(|source| source.0).collect())
                .or_else(|| base.map(|base| base.sources.clone()))
                .ok_or_else(|| needs("sources"))?,
            prices: self
                .prices
                .map(|prices| complete(prices.into_iter().map(|price| price.0).collect()))
                .or_else(|| base.map(|base| base.prices.clone()))
                .unwrap_or_else(|| complete(Vec::new())),
            sampling: self.sampling.or_else(|| base.map(|base| base.sampling.clone())).unwrap_or_default(),
            chat: self.chat.or_else(|| base.map(|base| base.chat.clone())).unwrap_or_default(),
            name,
        })
    }
}

/// Sorts prices by their beginning and puts one credit a token before them where nothing else is in force.
fn complete(mut prices: Vec<Price>) -> Vec<Price> {
    if prices.iter().all(|price| price.from.is_some()) {
        let one = || Decimal("1".to_owned());
        prices.push(Price { from: None, prompt: one(), cached_prompt: one(), output: one(), reasoning: one() });
    }
    prices.sort_by_key(|price| price.from);
    prices
}

/// What an entry must hold beyond its types.
fn check(entry: &Entry) -> Result<(), String> {
    let name = &entry.name;
    if let Some(bad) = std::iter::once(name).chain(&entry.aliases).find(|name| !is_name(name)) {
        return Err(format!("`{bad}` is no model name: use lower-case letters, digits, `-`, `_` and inner `.`"));
    }
    if entry.sources.is_empty() {
        return Err(format!("`{name}` needs at least one source"));
    }
    if let Some(file) = entry.files.iter().find(|file| !is_file_name(&file.name)) {
        return Err(format!("`{}` is no file name: leave out folders", file.name));
    }
    if entry.prices.windows(2).any(|pair| pair[0].from == pair[1].from) {
        return Err(format!("`{name}` has two prices from the same instant"));
    }
    match entry.format {
        Format::Gguf if entry.files.len() != 1 => Err(format!("`{name}` needs exactly one of `files`: it is a GGUF")),
        Format::Gguf if entry.sources.iter().any(|source| matches!(source, Source::Hub { file: None, .. })) => {
            Err(format!("`{name}` needs the `file` in its hub source: it is a GGUF"))
        }
        Format::Safetensors if entry.sources.iter().any(|source| !matches!(source, Source::Hub { file: None, .. })) => {
            Err(format!("`{name}` can only come from whole hub repositories: it is a directory of safetensors"))
        }
        _ => Ok(()),
    }
}

/// Whether `name` is fit to be typed and to name a folder; `.part` and `.lock` belong to pulls.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && ![".part", ".lock", ".gguf"].iter().any(|ending| name.ends_with(ending))
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']) && !name.ends_with(".part")
}

impl TryFrom<SourceKeys> for RawSource {
    type Error = String;

    fn try_from(keys: SourceKeys) -> Result<Self, String> {
        match keys {
            SourceKeys { hub: Some(repository), revision, file, pip: None, version: None, member: None } => {
                let revision = revision.unwrap_or_else(|| "main".to_owned());
                Ok(Self(Source::Hub { repository, revision, file }))
            }
            SourceKeys {
                pip: Some(package),
                version: Some(version),
                member: Some(member),
                hub: None,
                revision: None,
                file: None,
            } => Ok(Self(Source::Pip { package, version, member })),
            _ => Err("a source is { hub, revision, file } or { pip, version, member }".to_owned()),
        }
    }
}

impl TryFrom<PriceKeys> for RawPrice {
    type Error = String;

    fn try_from(keys: PriceKeys) -> Result<Self, String> {
        let from = keys.from.map(|from| instant(&from.to_string())).transpose()?;
        let cached_prompt = keys.cached_prompt.unwrap_or_else(|| keys.prompt.clone());
        if cached_prompt.millionths() > keys.prompt.millionths() {
            return Err("a cached prompt token must not cost more than one that is computed".to_owned());
        }
        let reasoning = keys.reasoning.unwrap_or_else(|| keys.output.clone());
        Ok(Self(Price { from, prompt: keys.prompt, cached_prompt, output: keys.output, reasoning }))
    }
}

/// An instant, or the beginning of a day in UTC.
fn instant(text: &str) -> Result<Timestamp, String> {
    let day_start = |day: civil::Date| day.at(0, 0, 0, 0).in_tz("UTC").map(|start| start.timestamp());
    text.parse::<Timestamp>()
        .or_else(|error| if text.len() == 10 { text.parse().and_then(day_start) } else { Err(error) })
        .map_err(|_| {
            format!("`{text}` is no instant: write a day (2026-12-01) or a time with its zone (2026-12-01T00:00:00Z)")
        })
}
