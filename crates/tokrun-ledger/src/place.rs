//! Where a ledger lives: its directory, the files beside it, and the lock that its writers queue on.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::{LedgerError, Result};

/// The files of one ledger. They are named after the resolved path, so that all ways to a ledger lead to one lock.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The SQLite file.
    pub(crate) file: PathBuf,
}

impl Place {
    /// Resolves `path`, whose directory must exist.
    pub(crate) fn at(path: &Path) -> Result<Place> {
        let failed = |source| LedgerError::io("resolve", path, source);
        let file = match fs::canonicalize(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse_dangling(path)?;
                let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
                fs::canonicalize(parent(path)).map_err(failed)?.join(name)
            }
            Err(error) => return Err(failed(error)),
        };
        if file.is_dir() {
            return Err(LedgerError::NotALedger { path: file, reason: "it is a directory".into() });
        }
        Ok(Place { file })
    }

    /// As [`Place::at`], and makes the directory.
    pub(crate) fn make(path: &Path) -> Result<Place> {
        let directory = parent(path);
        create_dir_private(directory).map_err(|source| LedgerError::io("create", directory, source))?;
        Place::at(path)
    }

    /// A file beside the ledger: its name and `suffix`.
    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.file.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    /// The directory of the ledger.
    pub(crate) fn directory(&self) -> &Path {
        parent(&self.file)
    }

    /// The locks of running processes.
    pub(crate) fn run_directory(&self) -> PathBuf {
        self.directory().join("run")
    }

    /// Refuses whoever does not own the file and is not the superuser, who may do anything anyway.
    pub(crate) fn require_owner(&self) -> Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let owner = fs::metadata(&self.file).map(|file| file.uid());
            let owner = owner.map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => LedgerError::Replaced { path: self.file.clone() },
                _ => LedgerError::io("examine", &self.file, source),
            })?;
            if !may_administer(rustix::process::geteuid().as_raw(), owner) {
                return Err(LedgerError::NotOwner { path: self.file.clone() });
            }
        }
        Ok(())
    }

    /// Refuses a file that has other names, beside which its log and its locks would lie a second time.
    pub(crate) fn refuse_hard_links(&self) -> Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let links = fs::metadata(&self.file).map(|file| file.nlink());
            if links.map_err(|source| LedgerError::io("examine", &self.file, source))? > 1 {
                return Err(LedgerError::HardLinked { path: self.file.clone() });
            }
        }
        Ok(())
    }

    /// Refuses filesystems on which locks or shared memory do not reach every machine.
    pub(crate) fn refuse_network(&self) -> Result<()> {
        let statfs = rustix::fs::statfs(self.directory())
            .map_err(|error| LedgerError::io("examine", self.directory(), error.into()))?;
        match network_filesystem(&statfs) {
            Some(kind) => Err(LedgerError::NetworkFilesystem { path: self.file.clone(), kind }),
            None => Ok(()),
        }
    }

    /// Makes a file durable by name: its directory entry reaches the disk.
    pub(crate) fn sync_directory(&self) -> Result<()> {
        sync_directory(self.directory())
    }
}

/// The lock that all writers of a ledger queue on. SQLite's own waiting is a lottery: with sixteen writers, one of them
/// waits for seconds.
#[derive(Debug)]
pub(crate) struct WriteLock {
    path: PathBuf,
}

/// How long a writer queues before it says that somebody holds everybody up: a process that was stopped, say.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it queues for leaving in order, which is only a courtesy: what it left open others settle.
pub(crate) const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

impl WriteLock {
    /// Opens, and if need be creates, the lock file beside the ledger.
    pub(crate) fn open(place: &Place) -> Result<WriteLock> {
        let lock = WriteLock { path: place.beside(".lock") };
        lock.file()?;
        Ok(lock)
    }

    /// Waits for the turn of this process.
    ///
    /// # Errors
    /// [`LedgerError::Busy`] if it does not come within ten seconds.
    pub(crate) fn hold(&self) -> Result<WriteTurn> {
        self.hold_within(PATIENCE)
    }

    /// As [`WriteLock::hold`], with another patience.
    pub(crate) fn hold_within(&self, patience: Duration) -> Result<WriteTurn> {
        // Opened anew each time: what two threads lock through one descriptor, they hold both.
        let file = self.file()?;
        match file.try_lock() {
            Ok(()) => return Ok(WriteTurn(file)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(self.failed(error)),
        }
        // Only the kernel's own queue is fair, and it knows no time limit. So another thread stands in it; if the turn
        // comes when nobody waits for it any more, it is dropped with the channel and passed on.
        let (give, turn) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("ledger-turn".into())
            .spawn(move || drop(give.send(lock(file))))
            .map_err(|error| self.failed(error))?;
        match turn.recv_timeout(patience) {
            Ok(turn) => turn.map_err(|error| self.failed(error)),
            Err(_) => Err(LedgerError::Busy),
        }
    }

    fn file(&self) -> Result<File> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_lock_file(&self.path),
            outcome => outcome,
        };
        file.map_err(|source| LedgerError::io("open", &self.path, source))
    }

    fn failed(&self, error: io::Error) -> LedgerError {
        LedgerError::io("lock", &self.path, error)
    }
}

/// Held by the one that writes.
#[derive(Debug)]
pub(crate) struct WriteTurn(File);

impl Drop for WriteTurn {
    fn drop(&mut self) {
        // Closing it unlocks as well, unless a process that is just being started has inherited it for a moment.
        self.0.unlock().ok();
    }
}

fn lock(file: File) -> io::Result<WriteTurn> {
    loop {
        match file.lock() {
            Ok(()) => return Ok(WriteTurn(file)),
            // A signal arrived that the program handles.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Creates a file to be locked. It is empty, and readable by everybody who gets as far as its directory: a lock that the
/// superuser left must not shut the owner out.
pub(crate) fn create_lock_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Another user's file, created just now, has these permissions already.
        file.set_permissions(fs::Permissions::from_mode(0o644)).ok();
    }
    Ok(file)
}

/// Opens a file that only its owner may read.
pub(crate) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}

/// Creates a directory, and those above it, for its owner alone.
pub(crate) fn create_dir_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path)
}

/// Makes a file's content durable. Never for a file that SQLite has open: closing it would drop SQLite's locks.
pub(crate) fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|source| LedgerError::io("sync", path, source))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| LedgerError::io("sync", directory, source))?;
    Ok(())
}

#[cfg(unix)]
fn may_administer(user: u32, owner: u32) -> bool {
    user == owner || user == 0
}

/// A link that leads nowhere is a ledger that is missing, on a disk that is not mounted say: not a place for a new one.
fn refuse_dangling(path: &Path) -> Result<()> {
    match fs::read_link(path) {
        Ok(target) => {
            let reason = format!("it is a link to {}, which does not exist (a disk not mounted?)", target.display());
            Err(LedgerError::NotALedger { path: path.to_owned(), reason })
        }
        Err(_) => Ok(()),
    }
}

/// `.` for a bare file name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The name of a filesystem shared over a network. FUSE may be local or not, and is allowed.
#[cfg(target_os = "linux")]
fn network_filesystem(statfs: &rustix::fs::StatFs) -> Option<&'static str> {
    // The type is a 32-bit number in a field whose width and sign differ between architectures.
    match statfs.f_type as u32 {
        0x0000_6969 => Some("nfs"),
        0x0000_517b => Some("smb"),
        0xff53_4d42 => Some("cifs"),
        0xfe53_4d42 => Some("smb2"),
        0x0102_1997 => Some("9p"),
        0x00c3_6400 => Some("ceph"),
        0x5346_414f | 0x6b41_4653 => Some("afs"),
        0x7375_7245 => Some("coda"),
        0x0bd0_0bd0 => Some("lustre"),
        0x4750_4653 => Some("gpfs"),
        0x7461_636f => Some("ocfs2"),
        0x0116_1970 => Some("gfs2"),
        0x1983_0326 => Some("beegfs"),
        0x2003_0528 => Some("orangefs"),
        0x786f_4256 => Some("vboxsf"),
        _ => None,
    }
}

#[cfg(target_vendor = "apple")]
fn network_filesystem(statfs: &rustix::fs::StatFs) -> Option<&'static str> {
    const MNT_LOCAL: u32 = 0x1000;
    (statfs.f_flags & MNT_LOCAL == 0).then_some("not a local mount")
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn network_filesystem(_: &rustix::fs::StatFs) -> Option<&'static str> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_owner_and_the_superuser_administer() {
        assert!(may_administer(1000, 1000) && may_administer(0, 1000) && may_administer(0, 0));
        assert!(!may_administer(1001, 1000) && !may_administer(1000, 0));
    }
    #[test]
    fn nobody_waits_for_ever_and_a_turn_that_comes_too_late_is_passed_on() {
        let home = tempfile::tempdir().unwrap();
        let place = Place::at(&home.path().join("ledger.db")).unwrap();
        let lock = WriteLock::open(&place).unwrap();
        let turn = lock.hold().unwrap();
        // Of the same process and through the same handle, it is still somebody else's turn.
        let impatient = lock.hold_within(Duration::from_millis(20));
        assert!(matches!(impatient, Err(LedgerError::Busy)), "{impatient:?}");
        drop(turn);
        for _ in 0..100 {
            drop(lock.hold_within(Duration::from_secs(5)).unwrap());
        }
    }

    #[test]
    fn turns_are_taken_one_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let place = Place::at(&home.path().join("ledger.db")).unwrap();
        let lock = WriteLock::open(&place).unwrap();
        let inside = std::sync::atomic::AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _turn = lock.hold().unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        thread::yield_now();
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
