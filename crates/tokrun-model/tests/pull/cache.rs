//! What is on the disk already: in the cache shared with other programs, and in the store.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokrun_model::pull::SourceError;
use tokrun_model::store::{Store, StoreError};

use crate::mock_hub::{COMMIT, Hub, REPOSITORY, content, options, sha256};
use crate::{BYTES, FILE, Home, large};

#[test]
fn a_file_in_the_shared_cache_is_linked() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, large(&body));
    // By its digest without a word to the hub, by its name where the hub must or can not be asked, by the hub's digest.
    let known = Home::gguf(Some(&sha256(&body)));
    let offline = Home::gguf(None);
    let unreachable = Home::gguf(None);
    let asked = Home::gguf(None);
    let mut cases = [
        (&known, hub.options(known.path())),
        (&offline, hub.options(offline.path())),
        (&unreachable, options("http://127.0.0.1:1", unreachable.path())),
        (&asked, hub.options(asked.path())),
    ];
    cases[1].1.hub.offline = true;
    for (home, options) in &cases {
        let blob = cache(home.path(), FILE, &body);
        let path = home.pull(options).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), fs::metadata(blob).unwrap().ino());
        assert_eq!(home.store.verify("tiny", &()).unwrap().files[0].sha256.as_str(), sha256(&body));
    }
    assert!(hub.ranges(FILE).is_empty());
    assert_eq!(hub.asked().len(), 1);
}

#[test]
fn a_wrong_file_in_the_shared_cache_is_fetched_anew() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, large(&body));
    let home = Home::gguf(Some(&sha256(&body)));
    let blob = cache(home.path(), FILE, b"something else");
    assert_eq!(fs::read(home.pull(&hub.options(home.path())).unwrap()).unwrap(), body);
    assert_eq!(fs::read(blob).unwrap(), b"something else", "the cache is not ours to change");
}

#[test]
fn offline_without_a_cached_file_says_so() {
    let hub = Hub::start();
    hub.serve(FILE, large(b"model"));
    let home = Home::gguf(None);
    let mut options = hub.options(home.path());
    options.hub.offline = true;
    assert!(matches!(home.refused(&options), SourceError::Offline { .. }));
    assert!(hub.asked().is_empty());
}

#[test]
fn verify_finds_damage_and_remove_clears_it() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, large(&body));
    let home = Home::gguf(None);
    assert!(matches!(home.store.verify("tiny", &()), Err(StoreError::NotPulled { .. })));
    let path = home.pull(&hub.options(home.path())).unwrap();
    home.store.verify("tiny", &()).unwrap();

    let mut changed = body.clone();
    changed[1234] ^= 1;
    fs::write(&path, &changed).unwrap();
    assert!(home.is_pulled(), "the quick look at each start does not read the file");
    let message = home.store.verify("tiny", &()).unwrap_err().to_string();
    assert!(message.contains(&sha256(&changed)) && message.contains(&sha256(&body)), "{message}");

    fs::write(&path, &body[..100]).unwrap();
    assert!(matches!(home.store.resolve("tiny"), Err(StoreError::Damaged { .. })));
    home.store.remove("tiny", &()).unwrap();
    assert!(!home.path().join("models/tiny").exists() && !home.is_pulled());
    assert!(home.store.list().unwrap().is_empty());
    home.pull(&hub.options(home.path())).unwrap();
}

#[test]
fn a_catalogue_that_learned_a_digest_is_heeded() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, large(&body));
    let home = Home::gguf(None);
    home.pull(&hub.options(home.path())).unwrap();
    let stricter = Home::gguf(Some(&sha256(b"the true one")));
    let store = Store::new(home.path(), stricter.store.catalogue().clone());
    let message = store.verify("tiny", &()).unwrap_err().to_string();
    assert!(message.contains("in the catalogue"), "{message}");
}

/// Lays a file into the shared cache of a home as the hub's own clients do, and returns its blob.
fn cache(home: &Path, name: &str, body: &[u8]) -> PathBuf {
    let repository = home.join("hub").join(format!("models--{}", REPOSITORY.replace('/', "--")));
    let (blob, snapshot) = (repository.join("blobs").join(sha256(body)), repository.join("snapshots").join(COMMIT));
    for folder in [blob.parent().unwrap(), &snapshot, &repository.join("refs")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(&blob, body).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    std::os::unix::fs::symlink(&blob, snapshot.join(name)).unwrap();
    blob
}
