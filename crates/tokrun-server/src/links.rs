//! One-time links: whoever owns the ledger's file lets somebody sign in to the dashboard without handing them a secret.
//!
//! A link carries a code, of which a small file beside the ledger has the digest for its name. Following the link removes
//! that file, and the file system lets only one remove it: so each link works once, over any number of processes and
//! restarts, and reading the directory tells no code. The code stands behind the address's `#`, which browsers keep to
//! themselves: no log and no proxy sees it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokrun_ledger::{KeyView, Ledger};

/// The links of a ledger's services.
#[derive(Clone, Debug)]
pub struct Links {
    directory: PathBuf,
    ledger: PathBuf,
}

impl Links {
    /// Those of this ledger.
    pub fn of(ledger: &Ledger) -> Self {
        let ledger = ledger.path().to_owned();
        Self { directory: ledger.parent().unwrap_or(Path::new(".")).join("links"), ledger }
    }

    /// The code of a new link, with which somebody signs in as the owner of a key.
    ///
    /// # Errors
    /// When the directory beside the ledger cannot be written.
    pub fn create(&self, key: &KeyView, life: Duration) -> io::Result<String> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        self.remove_expired()?;
        let code = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let life_s = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        let until_s = Timestamp::now().as_second().saturating_add(life_s);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.file(&code))?;
        write!(file, "{until_s} {}", key.id)?;
        file.sync_all()?;
        Ok(code)
    }

    /// The id of the key that a code stands for, once.
    pub(crate) fn redeem(&self, code: &str) -> Option<String> {
        let file = self.file(code);
        if !self.is_of_owner(&file) {
            return None;
        }
        let said = fs::read_to_string(&file).ok()?;
        // Whoever removes it has it.
        fs::remove_file(&file).ok()?;
        let (until_s, key_id) = said.split_once(' ')?;
        (until_s.parse::<i64>().ok()? > Timestamp::now().as_second()).then(|| key_id.to_owned())
    }

    /// Whether it comes from whoever owns the ledger, or the superuser; nobody else lets anybody in.
    fn is_of_owner(&self, file: &Path) -> bool {
        let (Ok(link), Ok(ledger)) = (fs::symlink_metadata(file), fs::metadata(&self.ledger)) else { return false };
        link.is_file() && [ledger.uid(), 0].contains(&link.uid())
    }

    fn file(&self, code: &str) -> PathBuf {
        let digest: String = Sha256::digest(code).iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(digest)
    }

    fn remove_expired(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let until_s = fs::read_to_string(&path).ok().and_then(|said| said.split_once(' ')?.0.parse::<i64>().ok());
            if until_s.is_some_and(|until_s| until_s <= Timestamp::now().as_second()) {
                // Somebody else may have been quicker.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokrun_ledger::NewKey;

    use super::*;

    #[test]
    fn a_link_works_once_and_in_time() {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let ledger = Ledger::open(&home.path().join("ledger.db")).expect("a ledger can be made");
        ledger.create_wallet("ada", None).expect("a wallet can be made");
        let key = ledger.create_key(NewKey::new("ada", "laptop")).expect("a key can be made").view;
        let links = Links::of(&ledger);
        let late = links.create(&key, Duration::ZERO).expect("it can be made");
        assert_eq!(links.redeem(&late), None, "too late");
        let code = links.create(&key, Duration::from_secs(60)).expect("it can be made");
        let names: Vec<_> = fs::read_dir(&links.directory).expect("it is there").collect();
        assert_eq!(names.len(), 1);
        assert!(!format!("{names:?}").contains(&code), "the directory does not tell it");
        assert_eq!((links.redeem(&code), links.redeem(&code)), (Some(key.id), None));
        assert_eq!(links.redeem("../ledger.db"), None);
    }
}
