//! SQLite's view of a [`Disk`]: its own files underneath, with every change told, and calls that fail when the disk says so.
#![allow(unsafe_code, clippy::multiple_unsafe_ops_per_block, reason = "fault injection at a C interface, in a test")]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, Once};

use rusqlite::ffi;

use crate::disk::Disk;

/// The disks there are, by directory. Files anywhere else are SQLite's own business.
static DISKS: LazyLock<Mutex<HashMap<PathBuf, Arc<Disk>>>> = LazyLock::new(Mutex::default);

pub(crate) fn mount(disk: &Arc<Disk>) {
    DISKS.lock().unwrap().insert(disk.directory().to_owned(), Arc::clone(disk));
}

pub(crate) fn unmount(disk: &Disk) {
    DISKS.lock().unwrap().remove(disk.directory());
}

fn disk_of(path: &Path) -> Option<Arc<Disk>> {
    DISKS.lock().unwrap().get(path.parent()?).cloned()
}

/// Makes SQLite open every file through this module.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    // SAFETY: the first VFS is SQLite's default one, which lives as long as the process; the copy is leaked, so it does too.
    ONCE.call_once(|| unsafe {
        ffi::sqlite3_initialize();
        let real = ffi::sqlite3_vfs_find(std::ptr::null());
        let vfs = Box::leak(Box::new(std::ptr::read(real)));
        vfs.szOsFile += HEADER as c_int;
        vfs.zName = c"crashing".as_ptr();
        vfs.pNext = std::ptr::null_mut();
        // Only what is replaced here gets this `sqlite3_vfs`; the others look at none, or at `pAppData`, which is copied.
        vfs.xOpen = Some(open);
        vfs.xDelete = Some(delete);
        REAL.set(Real(real)).ok();
        assert_eq!(ffi::sqlite3_vfs_register(vfs, 1), ffi::SQLITE_OK);
    });
}

struct Real(*mut ffi::sqlite3_vfs);
// SAFETY: SQLite uses its VFS from every thread.
unsafe impl Send for Real {}
// SAFETY: as above.
unsafe impl Sync for Real {}

static REAL: std::sync::OnceLock<Real> = std::sync::OnceLock::new();

fn real() -> *mut ffi::sqlite3_vfs {
    REAL.get().unwrap().0
}

/// What SQLite allocates for a file: this, and SQLite's own file behind it.
#[repr(C)]
struct File {
    methods: *const ffi::sqlite3_io_methods,
    /// From `Box::into_raw`; null for files that nobody watches.
    watched: *mut Watched,
}

struct Watched {
    disk: Arc<Disk>,
    path: PathBuf,
}

const HEADER: usize = size_of::<File>();

/// SQLite's own file.
unsafe fn inner(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: `szOsFile` made room for both.
    unsafe { file.byte_add(HEADER) }
}

/// Who wants to know what happens to a file.
unsafe fn watched<'a>(file: *mut ffi::sqlite3_file) -> Option<&'a Watched> {
    // SAFETY: `open` wrote the header, and `close` comes last.
    unsafe { (*file.cast::<File>()).watched.as_ref() }
}

/// Calls a method of SQLite's own file.
macro_rules! inner {
    ($method:ident, $file:expr $(, $argument:expr)*) => {{
        let file = inner($file);
        (*(*file).pMethods).$method.unwrap()(file $(, $argument)*)
    }};
}

/// Methods that are SQLite's own, for the file inside.
macro_rules! forward {
    ($($name:ident = $method:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $argument: $kind)*) $(-> $result)? {
            // SAFETY: SQLite calls it with a file that `open` opened.
            unsafe { inner!($method, file $(, $argument)*) }
        }
    )*};
}

forward! {
    file_size = xFileSize(size: *mut i64) -> c_int;
    lock = xLock(level: c_int) -> c_int;
    unlock = xUnlock(level: c_int) -> c_int;
    check_reserved_lock = xCheckReservedLock(answer: *mut c_int) -> c_int;
    file_control = xFileControl(operation: c_int, argument: *mut c_void) -> c_int;
    sector_size = xSectorSize() -> c_int;
    shm_map = xShmMap(region: c_int, size: c_int, extend: c_int, memory: *mut *mut c_void) -> c_int;
    shm_lock = xShmLock(offset: c_int, count: c_int, flags: c_int) -> c_int;
    shm_barrier = xShmBarrier();
    shm_unmap = xShmUnmap(delete: c_int) -> c_int;
}

/// Version 2: no memory-mapped reads, which would pass by.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// A disk that promises nothing, so SQLite takes every precaution.
unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    0
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives room for `szOsFile` bytes, and a name that outlives the file, or none.
    unsafe {
        let header = file.cast::<File>();
        header.write(File { methods: std::ptr::null(), watched: std::ptr::null_mut() });
        let path = (!name.is_null()).then(|| path(name));
        let disk = path.as_ref().and_then(|path| disk_of(path));
        if disk.as_ref().is_some_and(|disk| disk.fails()) {
            return ffi::SQLITE_CANTOPEN;
        }
        let outcome = (*real()).xOpen.unwrap()(real(), name, inner(file), flags, flags_out);
        if outcome != ffi::SQLITE_OK {
            return outcome;
        }
        if let (Some(disk), Some(path)) = (disk, path) {
            (*header).watched = Box::into_raw(Box::new(Watched { disk, path }));
        }
        (*header).methods = &raw const METHODS;
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once, and `open` made the box.
    unsafe {
        let watched = (*file.cast::<File>()).watched;
        if !watched.is_null() {
            drop(Box::from_raw(watched));
        }
        inner!(xClose, file)
    }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, amount: c_int, offset: i64) -> c_int {
    // SAFETY: as for the others.
    unsafe {
        match watched(file).is_some_and(|watched| watched.disk.fails()) {
            true => ffi::SQLITE_IOERR_READ,
            false => inner!(xRead, file, to, amount, offset),
        }
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, amount: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite gives `amount` bytes.
    unsafe {
        let Some(watched) = watched(file) else { return inner!(xWrite, file, from, amount, offset) };
        let fails = watched.disk.fails();
        // A disk that is full has written a part.
        let amount = if fails { amount / 2 } else { amount };
        let outcome = inner!(xWrite, file, from, amount, offset);
        if outcome == ffi::SQLITE_OK && amount > 0 {
            let bytes = std::slice::from_raw_parts(from.cast::<u8>(), amount as usize);
            watched.disk.write(&watched.path, offset as usize, bytes);
        }
        if fails { ffi::SQLITE_FULL } else { outcome }
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: i64) -> c_int {
    // SAFETY: as for the others.
    unsafe {
        let Some(watched) = watched(file) else { return inner!(xTruncate, file, length) };
        if watched.disk.fails() {
            return ffi::SQLITE_IOERR_TRUNCATE;
        }
        let outcome = inner!(xTruncate, file, length);
        if outcome == ffi::SQLITE_OK {
            watched.disk.truncate(&watched.path, length as usize);
        }
        outcome
    }
}

/// The real file needs no sync: the machine that runs the test does not crash.
unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: as for the others.
    unsafe {
        let Some(watched) = watched(file) else { return inner!(xSync, file, flags) };
        if watched.disk.fails() {
            return ffi::SQLITE_IOERR_FSYNC;
        }
        watched.disk.sync(&watched.path);
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: SQLite gives a name.
    unsafe {
        let path = path(name);
        let disk = disk_of(&path);
        if disk.as_ref().is_some_and(|disk| disk.fails()) {
            return ffi::SQLITE_IOERR_DELETE;
        }
        let outcome = (*real()).xDelete.unwrap()(real(), name, 0);
        if let (Some(disk), ffi::SQLITE_OK) = (disk, outcome) {
            disk.remove(&path, sync_directory != 0);
        }
        outcome
    }
}

unsafe fn path(name: *const c_char) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: the caller has a name that ends with a zero byte.
    let name = unsafe { CStr::from_ptr(name) };
    PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))
}
