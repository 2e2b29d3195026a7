//! Memory-mapped files: the only place of this crate where the compiler takes our word.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::ModelError;

/// A whole file, mapped read-only.
///
/// Pages are read from disk as they are touched and shared between processes. A file that another program *shortens*
/// while it is mapped ends this process with a bus error; model files are replaced by renaming, never rewritten.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: memmap2::Mmap,
    file: File,
}

impl MappedFile {
    /// Maps the regular file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let read_error = |source| ModelError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        if !file.metadata().map_err(read_error)?.is_file() {
            return Err(ModelError::Malformed { path: path.to_owned(), reason: "it is not a regular file".to_owned() });
        }
        #[expect(unsafe_code, reason = "mapping a file cannot be expressed safely")]
        // SAFETY: the mapping is private to this value, read-only, and lives as long as its borrows. That nobody
        // rewrites the file meanwhile cannot be enforced; every length taken from it is checked before it is used, so
        // the worst a writer can cause is wrong numbers or a bus error, not memory corruption by this process.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read_error)?;
        Ok(Self { map, file })
    }

    /// Fills `bytes` from `offset` on, past the mapping: what is read so is not counted as this process's memory.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, offset)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
