//! The models on this machine: `$TOKRUN_HOME/models/NAME/` holds a model's files and a manifest of what was pulled.
//!
//! A model's folder appears whole or not at all: a pull gathers it in `NAME.part/` and renames it. `NAME.lock` keeps
//! two processes from pulling or removing the same model at the same time.

#[cfg(test)]
mod tests;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Catalogue, Digest, Entry, Format};
use crate::pull::PullProgress;

const MANIFEST: &str = "manifest.json";

/// The models of one `$TOKRUN_HOME`. Opening it touches no file.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    catalogue: Catalogue,
}

/// What a name or path stands for.
#[derive(Clone, Debug)]
pub enum Resolved<'a> {
    /// A model of the user's own.
    Local {
        /// A GGUF file, or a directory with `config.json`.
        path: PathBuf,
    },
    /// A model of the catalogue that is here.
    Pulled {
        /// A GGUF file, or a directory with `config.json`.
        path: PathBuf,
        /// Its entry.
        entry: &'a Entry,
    },
    /// A model of the catalogue that has to be pulled first.
    NotPulled {
        /// Its entry.
        entry: &'a Entry,
    },
}

/// What was pulled, as recorded then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The model's name in the catalogue.
    pub name: String,
    /// One file or a directory.
    pub format: Format,
    /// Where it came from.
    pub source: String,
    /// The commit or version it was.
    pub revision: String,
    /// When.
    pub pulled_at: Timestamp,
    /// Every file.
    pub files: Vec<ManifestFile>,
}

/// One pulled file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name in the model's folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The digest of its content.
    pub sha256: Digest,
}

/// A file that is not as it was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its name in the model's folder.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What can go wrong with the models on this machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Neither the catalogue nor the disk knows the model.
    #[error("there is no model `{name}`{}", did_you_mean(similar))]
    NoSuchModel {
        /// What was asked for.
        name: String,
        /// Names that resemble it, best first.
        similar: Vec<String>,
    },
    /// A path leads nowhere, or to something that is no model.
    #[error("{path} is no model: {reason}")]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What it is, and what it should be.
        reason: String,
    },
    /// The model is not here.
    #[error("`{name}` is not on this machine: `tokrun model pull {name}` gets it")]
    NotPulled {
        /// The model.
        name: String,
    },
    /// Files are missing or changed.
    #[error("`{name}` is damaged{}; `tokrun model remove {name}` and pull it again", list(damage))]
    Damaged {
        /// The model.
        name: String,
        /// Each damaged file.
        damage: Vec<Damage>,
    },
    /// The record of a pull makes no sense.
    #[error("{path} cannot be understood: remove the model and pull it again")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What the reader said.
        source: serde_json::Error,
    },
    /// The operating system refused.
    #[error("cannot access {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Keeps other processes from pulling or removing one model, until dropped.
pub(crate) struct ModelLock {
    _file: File,
}

impl Store {
    /// The models in `home`, named by `catalogue`.
    pub fn new(home: &Path, catalogue: Catalogue) -> Self {
        Self { root: home.join("models"), catalogue }
    }

    /// The catalogue it goes by.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Finds out what `name_or_path` stands for. What has a separator in it or ends in `.gguf` is a path; any other
    /// word is a name first.
    ///
    /// # Errors
    /// When it is neither a known name nor a model's path, or the pulled model is incomplete.
    pub fn resolve(&self, name_or_path: &str) -> Result<Resolved<'_>, StoreError> {
        let path = Path::new(name_or_path);
        if name_or_path.contains(std::path::is_separator) || name_or_path.ends_with(".gguf") {
            return local(path);
        }
        if let Some(entry) = self.catalogue.get(name_or_path) {
            let path = self.pulled(&entry.name)?;
            return Ok(path.map_or(Resolved::NotPulled { entry }, |path| Resolved::Pulled { path, entry }));
        }
        if !name_or_path.is_empty() && path.exists() {
            return local(path);
        }
        let similar = self.catalogue.similar(name_or_path).into_iter().map(str::to_owned).collect();
        Err(StoreError::NoSuchModel { name: name_or_path.to_owned(), similar })
    }

    /// What was pulled, by name.
    ///
    /// # Errors
    /// When the folder or a manifest in it cannot be read.
    pub fn list(&self) -> Result<Vec<Manifest>, StoreError> {
        let folders = match fs::read_dir(&self.root) {
            Ok(folders) => folders,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::Io { path: self.root.clone(), source }),
        };
        let mut manifests = Vec::new();
        for folder in folders {
            let folder = folder.map_err(|source| StoreError::Io { path: self.root.clone(), source })?;
            let name = folder.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".part") {
                manifests.extend(self.manifest(&name)?);
            }
        }
        manifests.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(manifests)
    }

    /// Reads every file of a pulled model again and compares it with the manifest, and with the catalogue where that
    /// knows a digest.
    ///
    /// # Errors
    /// When the model is unknown, not here, or damaged.
    pub fn verify(&self, name: &str, progress: &dyn PullProgress) -> Result<Manifest, StoreError> {
        let name = self.known_name(name)?;
        let manifest = self.manifest(&name)?.ok_or_else(|| StoreError::NotPulled { name: name.clone() })?;
        let mut damage = Vec::new();
        for file in &manifest.files {
            if let Some(reason) = self.check(&name, file, progress)? {
                damage.push(Damage { file: file.name.clone(), reason });
            }
        }
        if damage.is_empty() { Ok(manifest) } else { Err(StoreError::Damaged { name, damage }) }
    }

    /// Deletes a pulled model, and what an unfinished pull of it has left.
    ///
    /// # Errors
    /// When the model is unknown or not here, or cannot be deleted.
    pub fn remove(&self, name: &str, progress: &dyn PullProgress) -> Result<(), StoreError> {
        let name = self.known_name(name)?;
        let (folder, staging) = (self.folder(&name), self.staging(&name));
        if !folder.join(MANIFEST).exists() && !staging.exists() {
            return Err(StoreError::NotPulled { name });
        }
        let _lock = self.lock(&name, progress)?;
        // Renamed first, so that whatever happens the model is whole or gone.
        if folder.join(MANIFEST).exists() {
            delete(&staging)?;
            fs::rename(&folder, &staging).map_err(|source| StoreError::Io { path: folder, source })?;
        }
        delete(&staging)
    }

    /// The path of a model that is here: each of its files exists and has its length.
    pub(crate) fn pulled(&self, name: &str) -> Result<Option<PathBuf>, StoreError> {
        let Some(manifest) = self.manifest(name)? else { return Ok(None) };
        let folder = self.folder(name);
        let damage: Vec<Damage> = manifest.files.iter().filter_map(|file| shortfall(&folder, file)).collect();
        if !damage.is_empty() {
            return Err(StoreError::Damaged { name: name.to_owned(), damage });
        }
        match (manifest.format, manifest.files.first()) {
            (Format::Gguf, Some(file)) => Ok(Some(folder.join(&file.name))),
            _ => Ok(Some(folder)),
        }
    }

    /// Waits for its turn with one model.
    pub(crate) fn lock(&self, name: &str, progress: &dyn PullProgress) -> Result<ModelLock, StoreError> {
        let path = self.root.join(format!("{name}.lock"));
        let locked = || -> io::Result<File> {
            let file = File::options().create(true).append(true).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    progress.note(&format!("waiting for another process that is busy with {name}"));
                    file.lock()?;
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            Ok(file)
        };
        match locked() {
            Ok(file) => Ok(ModelLock { _file: file }),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// Where the models lie.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a model lies when it is complete.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where a pull gathers a model.
    pub(crate) fn staging(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.part"))
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, StoreError> {
        let path = self.folder(name).join(MANIFEST);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|source| StoreError::Manifest { path, source }),
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// The catalogue's spelling of a name, or that of a model pulled under an earlier catalogue.
    fn known_name(&self, name: &str) -> Result<String, StoreError> {
        if let Some(entry) = self.catalogue.get(name) {
            return Ok(entry.name.clone());
        }
        if self.list()?.iter().any(|manifest| manifest.name == name) {
            return Ok(name.to_owned());
        }
        let similar = self.catalogue.similar(name).into_iter().map(str::to_owned).collect();
        Err(StoreError::NoSuchModel { name: name.to_owned(), similar })
    }

    /// What is wrong with one file, if anything.
    fn check(
        &self,
        name: &str,
        file: &ManifestFile,
        progress: &dyn PullProgress,
    ) -> Result<Option<String>, StoreError> {
        let folder = self.folder(name);
        if let Some(damage) = shortfall(&folder, file) {
            return Ok(Some(damage.reason));
        }
        let path = folder.join(&file.name);
        progress.begin(&file.name, Some(file.bytes));
        let actual = Digest::of_file(&path, |bytes| progress.advance(bytes));
        progress.end();
        let actual = actual.map_err(|source| StoreError::Io { path, source })?;
        let catalogued = self.catalogue.get(name).and_then(|entry| entry.file(&file.name)?.sha256.as_ref());
        let expected = [("when it was pulled", Some(&file.sha256)), ("in the catalogue", catalogued)];
        let differs = expected.into_iter().find(|(_, digest)| digest.is_some_and(|digest| *digest != actual));
        Ok(differs.and_then(|(place, digest)| Some(format!("its sha256 is {actual}, and {} {place}", digest?))))
    }
}

impl Manifest {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Writes itself into a model's folder, durably.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        let mut file = File::create(folder.join(MANIFEST))?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.sync_all()
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Checks that a path leads to something that looks like a model.
fn local(path: &Path) -> Result<Resolved<'static>, StoreError> {
    let not_a_model = |reason: &str| StoreError::NotAModel { path: path.to_owned(), reason: reason.to_owned() };
    let facts = fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => not_a_model("nothing is there"),
        _ => StoreError::Io { path: path.to_owned(), source },
    })?;
    if facts.is_dir() && !path.join("config.json").is_file() {
        return Err(not_a_model("the directory has no config.json; name the GGUF file itself if it holds one"));
    }
    Ok(Resolved::Local { path: path.to_owned() })
}

/// Whether a file is missing or has another length.
fn shortfall(folder: &Path, file: &ManifestFile) -> Option<Damage> {
    let reason = match fs::metadata(folder.join(&file.name)) {
        Ok(facts) if facts.len() == file.bytes => return None,
        Ok(facts) => format!("it has {} bytes instead of {}", facts.len(), file.bytes),
        Err(error) => format!("it cannot be read: {error}"),
    };
    Some(Damage { file: file.name.clone(), reason })
}

fn delete(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { path: folder.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn did_you_mean(similar: &[String]) -> String {
    if similar.is_empty() {
        return ": `tokrun model list` shows those there are, and a path to a GGUF file works too".to_owned();
    }
    format!(": did you mean {}?", similar.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or "))
}

fn list(damage: &[Damage]) -> String {
    damage.iter().map(|damage| format!("; {}: {}", damage.file, damage.reason)).collect()
}
