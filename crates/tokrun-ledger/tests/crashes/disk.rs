//! A disk: what it holds for certain, and what it was told since.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fastrand::Rng;

use crate::workload::State;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// Of the calls that change something, one in so many is a point at which a crash is looked at.
const CALLS_A_CRASH: u64 = 12;

/// The directory of one ledger.
pub(crate) struct Disk {
    directory: PathBuf,
    faults: Faults,
    inner: Mutex<Inner>,
}

struct Inner {
    rng: Rng,
    files: BTreeMap<String, File>,
    /// Removed, and maybe not for good.
    removed: BTreeMap<String, File>,
    /// What the caller of the ledger knows.
    known: Known,
    crashes: Vec<Crash>,
}

/// What must be found after a crash.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// All that was acknowledged.
    pub(crate) sure: State,
    /// The same with what has been asked for since and not been acknowledged: the disk may have it or not.
    pub(crate) doubtful: Vec<State>,
}

/// What is left after a crash, and what must be found in it.
pub(crate) struct Crash {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) known: Known,
}

#[derive(Clone, Default)]
struct File {
    synced: Vec<u8>,
    since: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { length: usize },
}

impl Disk {
    /// Of a directory with its files as they are, all of them synced.
    pub(crate) fn new(directory: &Path, seed: u64, faults: Faults) -> Arc<Disk> {
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_file());
        let file = |path: PathBuf| File { synced: fs::read(path).unwrap(), since: Vec::new() };
        let files = files.map(|entry| (name(&entry.path()), file(entry.path()))).collect();
        let inner = Inner {
            rng: Rng::with_seed(seed),
            files,
            removed: BTreeMap::new(),
            known: Known::default(),
            crashes: Vec::new(),
        };
        Arc::new(Disk { directory: directory.to_owned(), faults, inner: Mutex::new(inner) })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether this call of SQLite fails.
    pub(crate) fn fails(&self) -> bool {
        self.faults.strike()
    }

    pub(crate) fn write(&self, path: &Path, offset: usize, bytes: &[u8]) {
        self.change(path, Change::Write { offset, bytes: bytes.to_vec() });
    }

    pub(crate) fn truncate(&self, path: &Path, length: usize) {
        self.change(path, Change::Truncate { length });
    }

    pub(crate) fn sync(&self, path: &Path) {
        let mut inner = self.inner.lock().unwrap();
        inner.maybe_crash();
        let name = name(path);
        // A new file of an old name, in a directory that SQLite syncs with it: the old one cannot come back.
        inner.removed.remove(&name);
        if let Some(file) = inner.files.get_mut(&name) {
            let since = std::mem::take(&mut file.since);
            since.iter().for_each(|change| change.apply(&mut file.synced));
        }
    }

    pub(crate) fn remove(&self, path: &Path, for_good: bool) {
        let mut inner = self.inner.lock().unwrap();
        let name = name(path);
        if let Some(file) = inner.files.remove(&name)
            && !for_good
        {
            inner.removed.insert(name, file);
        }
        inner.maybe_crash();
    }

    /// Tells what must be found from now on.
    pub(crate) fn know(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.inner.lock().unwrap().known);
    }

    /// The power fails now.
    pub(crate) fn crash(&self) {
        self.inner.lock().unwrap().crash();
    }

    pub(crate) fn take_crashes(&self) -> Vec<Crash> {
        std::mem::take(&mut self.inner.lock().unwrap().crashes)
    }

    fn change(&self, path: &Path, change: Change) {
        let mut inner = self.inner.lock().unwrap();
        inner.files.entry(name(path)).or_default().since.push(change);
        inner.maybe_crash();
    }
}

impl Inner {
    fn maybe_crash(&mut self) {
        if self.rng.u64(..CALLS_A_CRASH) == 0 {
            self.crash();
        }
    }

    fn crash(&mut self) {
        let rng = &mut self.rng;
        let mut files: BTreeMap<_, _> =
            self.files.iter().map(|(name, file)| (name.clone(), file.after_crash(rng))).collect();
        for (name, file) in &self.removed {
            if rng.bool() {
                files.insert(name.clone(), file.after_crash(rng));
            }
        }
        self.crashes.push(Crash { files, known: self.known.clone() });
    }
}

impl File {
    /// Any of the changes since the last sync may be lost, torn between sectors, or overtaken by another.
    fn after_crash(&self, rng: &mut Rng) -> Vec<u8> {
        let mut since = self.since.clone();
        // A disk that lost all, none, or some of it.
        let kept = [0.0, 1.0, rng.f64(), rng.f64()][rng.usize(..4)];
        if rng.bool() {
            rng.shuffle(&mut since);
        }
        let mut bytes = self.synced.clone();
        for change in since {
            if rng.f64() < kept {
                change.apply(&mut bytes);
            } else if rng.bool() {
                change.sectors().into_iter().filter(|_| rng.f64() < kept).for_each(|part| part.apply(&mut bytes));
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => {
                let end = offset + bytes.len();
                file.resize(file.len().max(end), 0);
                file[*offset..end].copy_from_slice(bytes);
            }
            Change::Truncate { length } => file.truncate(*length),
        }
    }

    /// What can come to pass of it one by one.
    fn sectors(self) -> Vec<Change> {
        let Change::Write { offset, bytes } = self else { return Vec::new() };
        let mut parts = Vec::new();
        let mut from = 0;
        while from < bytes.len() {
            let to = (from + SECTOR - (offset + from) % SECTOR).min(bytes.len());
            parts.push(Change::Write { offset: offset + from, bytes: bytes[from..to].to_vec() });
            from = to;
        }
        parts
    }
}

/// Which calls fail.
#[derive(Clone, Default)]
pub(crate) struct Faults(Option<Arc<Fault>>);

struct Fault {
    /// Calls before the first that fails; the disk is sound once they are `u64::MAX`.
    left: AtomicU64,
    /// How many fail.
    count: u64,
    /// Whether somebody mends the disk before the ledger is opened again.
    is_mended: bool,
    happened: AtomicU64,
}

impl Faults {
    /// One call, a few in a row, or all from some point on, for good or until the ledger is closed.
    pub(crate) fn of_seed(seed: u64) -> Faults {
        let mut rng = Rng::with_seed(!seed);
        let (count, is_mended) =
            [(1, false), (rng.u64(2..6), false), (u64::MAX, true), (u64::MAX, false)][rng.usize(..4)];
        let left = AtomicU64::new(rng.u64(..600));
        Faults(Some(Arc::new(Fault { left, count, is_mended, happened: AtomicU64::new(0) })))
    }

    /// The ledger is closed.
    pub(crate) fn close(&self) {
        if self.0.as_ref().is_some_and(|fault| fault.is_mended) && self.happened() > 0 {
            self.end();
        }
    }

    pub(crate) fn happened(&self) -> u64 {
        self.0.as_ref().map_or(0, |fault| fault.happened.load(Ordering::Relaxed))
    }

    /// From now on nothing fails.
    pub(crate) fn end(&self) {
        if let Some(fault) = &self.0 {
            fault.left.store(u64::MAX, Ordering::Relaxed);
        }
    }

    fn strike(&self) -> bool {
        let Some(fault) = &self.0 else { return false };
        let left = fault.left.load(Ordering::Relaxed);
        if left > 0 {
            // Calls of one ledger come from few threads; an exact order among them is not needed.
            fault.left.store(if left == u64::MAX { left } else { left - 1 }, Ordering::Relaxed);
            return false;
        }
        let strikes = fault.happened.load(Ordering::Relaxed) < fault.count;
        fault.happened.fetch_add(u64::from(strikes), Ordering::Relaxed);
        strikes
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
