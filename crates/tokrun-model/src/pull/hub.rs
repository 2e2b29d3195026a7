//! The model hub as a source: files that the shared cache holds are linked, the others are fetched and checked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};

use super::error::{Failure, PullError, SourceError, here};
use super::http::{Client, Head, HttpError};
use super::{Gathered, HubOptions, PullProgress, digest};
use crate::catalogue::{Digest, Entry};
use crate::store::ManifestFile;

/// Tries that may fail one after the other without a single byte received.
const TRIES_MAX: u32 = 5;

/// One repository, and the model that is gathered from it.
pub(super) struct Hub<'a> {
    entry: &'a Entry,
    repository: &'a str,
    /// As the catalogue names it.
    revision: &'a str,
    /// What it turned out to be: from then on every file is asked for at this very commit.
    commit: Option<String>,
    staging: &'a Path,
    options: &'a HubOptions,
    api: Api,
    client: Client,
    cache: Option<Cache>,
    progress: &'a dyn PullProgress,
}

impl<'a> Hub<'a> {
    pub(super) fn new(
        entry: &'a Entry,
        repository: &'a str,
        revision: &'a str,
        staging: &'a Path,
        options: &'a HubOptions,
        progress: &'a dyn PullProgress,
    ) -> Result<Self, SourceError> {
        let client = Client::new(options)?;
        let cache = options.cache.clone().map(Cache::new);
        let api = ApiBuilder::from_cache(Cache::new(options.cache.clone().unwrap_or_default()))
            .with_endpoint(options.endpoint.clone())
            .with_token(options.token.clone())
            .with_progress(false)
            .build()
            .map_err(|error| cannot_reach(options, error.to_string()))?;
        Ok(Self { entry, repository, revision, commit: None, staging, options, api, client, cache, progress })
    }

    /// Puts a GGUF `file`, or everything that a directory of safetensors needs, into the staging folder.
    pub(super) fn gather(mut self, file: Option<&str>) -> Result<Gathered, Failure> {
        let files = match file {
            Some(remote) => vec![self.required(remote, &self.entry.files[0].name)?],
            None => self.directory()?,
        };
        Ok(Gathered { revision: self.commit.unwrap_or_else(|| self.revision.to_owned()), files })
    }

    fn directory(&mut self) -> Result<Vec<ManifestFile>, Failure> {
        let mut files = Vec::new();
        for name in ["config.json", "tokenizer.json"] {
            files.push(self.required(name, name)?);
        }
        for name in ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"] {
            files.extend(self.file(name, name)?);
        }
        match self.file("model.safetensors.index.json", "model.safetensors.index.json")? {
            None => files.push(self.required("model.safetensors", "model.safetensors")?),
            Some(index) => {
                for shard in self.shards(&index.name)? {
                    files.push(self.required(&shard, &shard)?);
                }
                files.push(index);
            }
        }
        Ok(files)
    }

    /// The weight files that an index names.
    fn shards(&self, index: &str) -> Result<BTreeSet<String>, Failure> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: std::collections::HashMap<String, String>,
        }
        let bad = |reason: String| SourceError::BadAnswer { url: self.url(index), reason };
        let path = self.staging.join(index);
        let text = fs::read(&path).map_err(here(&path))?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        let shards: BTreeSet<String> = index.weight_map.into_values().collect();
        // The names come from outside and become paths here.
        match shards.iter().find(|name| !name.ends_with(".safetensors") || name.contains(['/', '\\'])) {
            Some(name) => Err(bad(format!("`{name}` is no name for weights")).into()),
            None => Ok(shards),
        }
    }

    fn required(&mut self, remote: &str, local: &str) -> Result<ManifestFile, Failure> {
        let missing = |hub: &Self| match hub.options.offline {
            true => SourceError::Offline { file: remote.to_owned() },
            false => SourceError::NotFound {
                repository: hub.repository.to_owned(),
                revision: hub.revision.to_owned(),
                file: remote.to_owned(),
            },
        };
        self.file(remote, local)?.ok_or_else(|| missing(self).into())
    }

    /// Puts one file into the staging folder; `None` if the repository (offline: the cache) does not have it.
    fn file(&mut self, remote: &str, local: &str) -> Result<Option<ManifestFile>, Failure> {
        let entry = self.entry;
        let wanted = entry.file(local).and_then(|facts| facts.sha256.as_ref());
        if let Some(wanted) = wanted
            && let Some(file) = self.at_hand(remote, local, wanted)?
        {
            return Ok(Some(file));
        }
        if self.options.offline {
            return self.take_cached(remote, local, wanted);
        }
        let head = match self.head(remote) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(None),
            Err(error @ SourceError::Unreachable { .. }) => {
                return self.take_cached(remote, local, wanted)?.map(Some).ok_or(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        self.commit = head.commit.clone().or(self.commit.take());
        let offered = Digest::parse(&head.etag);
        if let (Some(expected), Some(actual)) = (wanted, &offered)
            && expected != actual
        {
            let (expected, actual) = (expected.clone(), actual.clone());
            return Err(SourceError::WrongDigest { file: local.to_owned(), expected, actual }.into());
        }
        if let (None, Some(offered)) = (wanted, &offered)
            && let Some(file) = self.at_hand(remote, local, offered)?
        {
            return Ok(Some(file));
        }
        self.download(remote, local, &head, wanted.or(offered.as_ref())).map(Some)
    }

    /// A file of known content that an earlier pull or the shared cache has already.
    fn at_hand(&self, remote: &str, local: &str, wanted: &Digest) -> Result<Option<ManifestFile>, Failure> {
        let staged = self.staging.join(local);
        if staged.is_file() && digest(&staged, self.progress)? == *wanted {
            return self.staged(local, wanted.clone()).map(Some);
        }
        let blob = self.cache.as_ref().map(|cache| cache.repo(self.repo()).blob_path(wanted.as_str()));
        for cached in blob.into_iter().chain(self.cached(remote)).filter(|path| path.is_file()) {
            if digest(&cached, self.progress)? == *wanted {
                self.link(&cached, local)?;
                return self.staged(local, wanted.clone()).map(Some);
            }
        }
        Ok(None)
    }

    /// What the shared cache holds under that name, where the hub cannot be asked.
    fn take_cached(&self, remote: &str, local: &str, wanted: Option<&Digest>) -> Result<Option<ManifestFile>, Failure> {
        // A file of known content would have been found by its digest: what the cache has is another one.
        let Some(cached) = self.cached(remote).filter(|_| wanted.is_none()) else { return Ok(None) };
        let digest = digest(&cached, self.progress)?;
        self.link(&cached, local)?;
        self.staged(local, digest).map(Some)
    }

    /// A file's path in the shared cache, by branch or by commit.
    fn cached(&self, remote: &str) -> Option<PathBuf> {
        let repo = self.cache.as_ref()?.repo(self.repo());
        let by_commit = || repo.pointer_path(self.commit.as_deref().unwrap_or(self.revision)).join(remote);
        repo.get(remote).or_else(|| Some(by_commit()).filter(|path| path.is_file()))
    }

    fn link(&self, cached: &Path, local: &str) -> Result<(), PullError> {
        let target = self.staging.join(local);
        let link = || -> io::Result<()> {
            let cached = cached.canonicalize()?;
            if target.symlink_metadata().is_ok() {
                fs::remove_file(&target)?;
            }
            fs::hard_link(&cached, &target).or_else(|_| symlink_or_copy(&cached, &target))
        };
        link().map_err(here(&target))?;
        self.progress.note(&format!("{local} is linked from the hub cache"));
        Ok(())
    }

    fn head(&self, remote: &str) -> Result<Option<Head>, SourceError> {
        let url = self.url(remote);
        let mut tries = 1;
        loop {
            match self.client.head(&url) {
                Ok(head) => return Ok(Some(head)),
                Err(HttpError::Status(404)) => return Ok(None),
                Err(HttpError::Passing(reason)) if tries < TRIES_MAX => self.pause(remote, &reason, tries),
                // A hub that has answered before will do so again; one that never has is given up at once.
                Err(HttpError::Unreachable(reason)) if tries < TRIES_MAX && self.commit.is_some() => {
                    self.pause(remote, &reason, tries);
                }
                Err(error) => return Err(self.final_error(error, &url)),
            }
            tries += 1;
        }
    }

    fn download(
        &self,
        remote: &str,
        local: &str,
        head: &Head,
        expected: Option<&Digest>,
    ) -> Result<ManifestFile, Failure> {
        // The part is named after its content, so that it is never continued with another one.
        let tag: String = head.etag.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        let part = self.staging.join(format!("{local}.{tag}.part"));
        if expected.is_none() && part.exists() {
            fs::remove_file(&part).map_err(here(&part))?;
        }
        let received = self.receive(remote, local, head, &part);
        self.progress.end();
        received?;
        let actual = digest(&part, self.progress)?;
        if let Some(expected) = expected.filter(|expected| **expected != actual) {
            fs::remove_file(&part).map_err(here(&part))?;
            return Err(SourceError::WrongDigest { file: local.to_owned(), expected: expected.clone(), actual }.into());
        }
        let target = self.staging.join(local);
        fs::rename(&part, &target).map_err(here(&target))?;
        self.staged(local, actual)
    }

    /// Fetches what `part` lacks, again and again while anything comes.
    fn receive(&self, remote: &str, local: &str, head: &Head, part: &Path) -> Result<(), Failure> {
        let url = self.url(remote);
        let mut file = File::options().create(true).append(true).open(part).map_err(here(part))?;
        let mut fruitless = 0;
        loop {
            let have = file.metadata().map_err(here(part))?.len();
            if have == head.bytes {
                return Ok(file.sync_all().map_err(here(part))?);
            }
            let error = match self.receive_rest(&url, local, head, &mut file, have, part) {
                Ok(()) => continue,
                Err(Receive::Failed(failure)) => return Err(failure),
                Err(Receive::Http(error)) => error,
            };
            let received_bytes = file.metadata().map_err(here(part))?.len();
            fruitless = if received_bytes > have { 1 } else { fruitless + 1 };
            match error {
                // It has answered before, so this passes as well.
                HttpError::Passing(reason) | HttpError::Unreachable(reason) => {
                    if fruitless == TRIES_MAX {
                        let (file, total_bytes) = (local.to_owned(), head.bytes);
                        return Err(SourceError::BrokenOff { file, received_bytes, total_bytes, reason }.into());
                    }
                    self.pause(local, &reason, fruitless);
                }
                error => return Err(self.final_error(error, &url).into()),
            }
        }
    }

    /// One request for everything from byte `have` on.
    fn receive_rest(
        &self,
        url: &str,
        local: &str,
        head: &Head,
        file: &mut File,
        have: u64,
        part: &Path,
    ) -> Result<(), Receive> {
        let from = if have < head.bytes { have } else { 0 };
        let (mut received, mut content) = self.client.content(url, from)?;
        if received != have {
            file.set_len(received).map_err(here(part))?;
        }
        self.progress.begin(local, Some(head.bytes));
        self.progress.advance(received);
        let mut buffer = vec![0; 1 << 16];
        while received < head.bytes {
            let bytes = match content.read(&mut buffer) {
                Ok(0) => return Err(HttpError::Passing("the connection was closed".to_owned()).into()),
                Ok(bytes) => (bytes as u64).min(head.bytes - received) as usize,
                Err(error) => return Err(HttpError::Passing(error.to_string()).into()),
            };
            file.write_all(&buffer[..bytes]).map_err(here(part))?;
            received += bytes as u64;
            self.progress.advance(bytes as u64);
        }
        Ok(())
    }

    fn pause(&self, file: &str, reason: &str, attempt: u32) {
        self.progress.note(&format!("{file}: {reason}; trying again"));
        thread::sleep(self.options.retry_pause * 2_u32.pow(attempt - 1));
    }

    fn staged(&self, local: &str, sha256: Digest) -> Result<ManifestFile, Failure> {
        let path = self.staging.join(local);
        let bytes = fs::metadata(&path).map_err(here(&path))?.len();
        Ok(ManifestFile { name: local.to_owned(), bytes, sha256 })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.repository.to_owned(), RepoType::Model, self.revision.to_owned())
    }

    fn url(&self, remote: &str) -> String {
        let revision = self.commit.as_deref().unwrap_or(self.revision).to_owned();
        self.api.repo(Repo::with_revision(self.repository.to_owned(), RepoType::Model, revision)).url(remote)
    }

    fn final_error(&self, error: HttpError, url: &str) -> SourceError {
        match error {
            HttpError::Unreachable(reason) | HttpError::Passing(reason) => cannot_reach(self.options, reason),
            HttpError::Status(status @ (401 | 403)) => {
                SourceError::Gated { url: format!("{}/{}", self.options.endpoint, self.repository), status }
            }
            HttpError::Status(status) => {
                SourceError::BadAnswer { url: url.to_owned(), reason: format!("status {status}") }
            }
            HttpError::BadAnswer(reason) => SourceError::BadAnswer { url: url.to_owned(), reason },
        }
    }
}

/// Why one request did not bring the rest of a file.
enum Receive {
    Http(HttpError),
    Failed(Failure),
}

impl From<HttpError> for Receive {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
}

impl From<PullError> for Receive {
    fn from(error: PullError) -> Self {
        Self::Failed(error.into())
    }
}

fn cannot_reach(options: &HubOptions, reason: String) -> SourceError {
    SourceError::Unreachable { endpoint: options.endpoint.clone(), reason }
}

#[cfg(unix)]
fn symlink_or_copy(cached: &Path, target: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(cached, target)
}

#[cfg(not(unix))]
fn symlink_or_copy(cached: &Path, target: &Path) -> io::Result<()> {
    fs::copy(cached, target).map(|_| ())
}
