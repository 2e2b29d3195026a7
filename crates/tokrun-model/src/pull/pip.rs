//! A Python package as a source, through the user's own interpreter: its pip knows the mirrors, proxies and
//! certificates of this machine, and its zipfile opens the wheel.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::error::{Failure, PullError, SourceError, here};
use super::{Gathered, PullProgress, digest};
use crate::catalogue::Entry;
use crate::store::ManifestFile;

/// One version of a package, and the model that is taken out of it.
pub(super) struct Package<'a> {
    pub(super) entry: &'a Entry,
    pub(super) name: &'a str,
    pub(super) version: &'a str,
    pub(super) member: &'a str,
    pub(super) staging: &'a Path,
    pub(super) python: &'a Path,
    pub(super) progress: &'a dyn PullProgress,
}

impl Package<'_> {
    /// Downloads the wheel, takes the file out and checks it.
    pub(super) fn gather(&self) -> Result<Gathered, Failure> {
        let facts = &self.entry.files[0];
        let folder = self.staging.join("package");
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(here(&folder))?;
        }
        fs::create_dir(&folder).map_err(here(&folder))?;
        let unpacked = self.download(&folder).and_then(|wheel| self.unpack(&wheel, &folder));
        let gathered = unpacked.and_then(|file| {
            let sha256 = digest(&file, self.progress)?;
            if let Some(expected) = facts.sha256.clone().filter(|expected| *expected != sha256) {
                return Err(SourceError::WrongDigest { file: facts.name.clone(), expected, actual: sha256 }.into());
            }
            let target = self.staging.join(&facts.name);
            let placed =
                fs::File::open(&file).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&file, &target));
            placed.map_err(here(&target))?;
            let bytes = fs::metadata(&target).map_err(here(&target))?.len();
            let files = vec![ManifestFile { name: facts.name.clone(), bytes, sha256 }];
            Ok(Gathered { revision: self.version.to_owned(), files })
        });
        fs::remove_dir_all(&folder).map_err(here(&folder))?;
        gathered
    }

    /// Has pip put the wheel into `folder`. Only a wheel will do: building from source would run foreign code.
    fn download(&self, folder: &Path) -> Result<PathBuf, Failure> {
        let package = format!("{}=={}", self.name, self.version);
        self.progress.note(&format!("downloading the Python package {package} with {}", self.python.display()));
        let pip =
            "-m pip download --no-deps --only-binary :all: --no-input --disable-pip-version-check --progress-bar off";
        let arguments = pip.split(' ').map(OsStr::new).chain(["--dest".as_ref(), folder.as_os_str(), package.as_ref()]);
        let output = self.run(arguments, folder)?;
        if !output.status.success() {
            return Err(SourceError::Pip { reason: last_words(&output) }.into());
        }
        let wheel = fs::read_dir(folder)
            .map_err(here(folder))?
            .filter_map(|found| Some(found.ok()?.path()))
            .find(|path| path.extension() == Some("whl".as_ref()));
        Ok(wheel.ok_or_else(|| SourceError::Pip { reason: "it left no wheel".to_owned() })?)
    }

    /// Unpacks the wheel and returns the path of the one file that counts.
    fn unpack(&self, wheel: &Path, folder: &Path) -> Result<PathBuf, Failure> {
        let unpacked = folder.join("unpacked");
        let bad = |reason| SourceError::BadPackage { member: self.member.to_owned(), reason };
        let arguments =
            ["-m", "zipfile", "-e"].map(OsStr::new).into_iter().chain([wheel.as_os_str(), unpacked.as_os_str()]);
        let output = self.run(arguments, folder)?;
        if !output.status.success() {
            return Err(bad(last_words(&output)).into());
        }
        let file = unpacked.join(self.member);
        if file.is_file() { Ok(file) } else { Err(bad("it is another package than expected".to_owned()).into()) }
    }

    fn run<'b>(&self, arguments: impl Iterator<Item = &'b OsStr>, folder: &Path) -> Result<Output, Failure> {
        let output = Command::new(self.python)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| SourceError::NoPython { python: self.python.to_owned(), reason: error.to_string() })?;
        if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("No space left on device") {
            return Err(PullError::DiskFull { path: folder.to_owned() }.into());
        }
        Ok(output)
    }
}

/// What a failed program said: its `ERROR:` lines, else the last one.
fn last_words(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let errors: Vec<&str> = lines().filter_map(|line| line.strip_prefix("ERROR: ")).collect();
    let words =
        if errors.is_empty() { lines().next_back().unwrap_or("it said nothing").to_owned() } else { errors.join("; ") };
    words.chars().take(400).collect()
}
