//! What names and paths stand for.

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let home = tempfile::tempdir().expect("a temporary folder");
    let catalogue = Catalogue::built_in().expect("the built-in catalogue can be read");
    let store = Store::new(home.path(), catalogue);
    (home, store)
}

#[test]
fn paths_lead_to_models_of_the_users_own() {
    let (home, store) = store();
    let file = home.path().join("own.gguf");
    let folder = home.path().join("own");
    fs::create_dir(&folder).expect("writable");
    let resolve = |path: &Path| store.resolve(path.to_str().expect("plain")).map(|_| ());
    assert!(matches!(resolve(&file), Err(StoreError::NotAModel { .. })));
    assert!(matches!(resolve(&folder), Err(StoreError::NotAModel { reason, .. }) if reason.contains("config.json")));
    fs::write(&file, "GGUF").expect("writable");
    fs::write(folder.join("config.json"), "{}").expect("writable");
    assert!(resolve(&file).is_ok() && resolve(&folder).is_ok());
    assert!(matches!(store.resolve("missing.gguf"), Err(StoreError::NotAModel { .. })), "it ends like a path");
}

#[test]
fn names_lead_to_the_catalogue_or_to_suggestions() {
    let (_home, store) = store();
    assert!(matches!(store.resolve("smollm2"), Ok(Resolved::NotPulled { entry }) if entry.name == "smollm2-135m"));
    let message = store.resolve("smolm2-135m").expect_err("a typo").to_string();
    assert!(message.contains("did you mean `smollm2-135m`"), "{message}");
    let message = store.resolve("zzz").expect_err("nothing like it").to_string();
    assert!(message.contains("tokrun model list"), "{message}");
    assert!(matches!(store.resolve(""), Err(StoreError::NoSuchModel { .. })));
}

#[test]
fn an_empty_home_has_no_models_and_stays_empty() {
    let (home, store) = store();
    assert!(store.list().expect("nothing there").is_empty());
    assert!(matches!(store.verify("smollm2-135m", &()), Err(StoreError::NotPulled { .. })));
    assert!(matches!(store.remove("smollm2-135m", &()), Err(StoreError::NotPulled { .. })));
    assert!(matches!(store.remove("../../etc", &()), Err(StoreError::NoSuchModel { .. })));
    assert_eq!(fs::read_dir(home.path()).expect("readable").count(), 0);
}

#[test]
fn a_broken_manifest_is_named_and_can_be_removed() {
    let (home, store) = store();
    let folder = home.path().join("models/smollm2-135m");
    fs::create_dir_all(&folder).expect("writable");
    fs::write(folder.join(MANIFEST), "{").expect("writable");
    assert!(matches!(store.resolve("smollm2-135m"), Err(StoreError::Manifest { .. })));
    store.remove("smollm2-135m", &()).expect("removable");
    assert!(!folder.exists());
}
