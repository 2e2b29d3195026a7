//! Pulling from a hub that behaves, misbehaves and breaks off, and from a Python package.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{COMMIT, Hub, REPOSITORY, Recorder, Remote, content, options, sha256};
use tempfile::TempDir;
use tokrun_model::catalogue::{Catalogue, Entry};
use tokrun_model::pull::{PullError, PullOptions, SourceError};
use tokrun_model::store::{Resolved, Store, StoreError};

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

#[test]
fn a_pull_puts_the_file_in_place_and_records_it() {
    let (hub, body, progress) = (Hub::start(), content(BYTES), Recorder::default());
    hub.serve(FILE, large(&body));
    let home = Home::gguf(None);
    let path = home.store.pull_with(home.entry(), &hub.options(home.path()), &progress).unwrap();

    assert_eq!(path, home.path().join("models/tiny").join(FILE));
    assert_eq!(fs::read(&path).unwrap(), body);
    assert!(matches!(home.store.resolve("tiny").unwrap(), Resolved::Pulled { path: found, .. } if found == path));
    let manifest = home.store.list().unwrap().remove(0);
    assert_eq!((manifest.revision.as_str(), manifest.bytes()), (COMMIT, BYTES as u64));
    assert_eq!(manifest.files[0].sha256.as_str(), sha256(&body));
    assert_eq!(manifest.source, format!("hub {REPOSITORY}@main"));
    assert_eq!(
        *progress.begun.lock().unwrap(),
        [format!("{FILE} Some({BYTES})"), format!("checking {} Some({BYTES})", part_name(&body))]
    );
    assert_eq!(*progress.bytes.lock().unwrap(), BYTES as u64);
    assert!(home.staged().is_empty());

    let asked = hub.asked();
    let steps: Vec<_> = asked.iter().map(|asked| (asked.method.as_str(), asked.authorized)).collect();
    assert_eq!(steps, [("HEAD", true), ("GET", true), ("GET", false)], "the storage must not see the token");
    assert!(asked[1].path.contains(COMMIT), "the content is asked for at the commit that the branch stood for");
    home.pull(&hub.options(home.path())).unwrap();
    assert_eq!(hub.asked().len(), 3, "what is there is not pulled again");
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke_off() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, Remote { cuts: [70_000, 50_000].into(), ..large(&body) });
    let (home, progress) = (Home::gguf(Some(&sha256(&body))), Recorder::default());
    let path = home.store.pull_with(home.entry(), &hub.options(home.path()), &progress).unwrap();
    assert_eq!(fs::read(path).unwrap(), body);
    assert_eq!(hub.ranges(FILE), [None, Some("bytes=70000-".to_owned()), Some("bytes=120000-".to_owned())]);
    assert_eq!(progress.notes.lock().unwrap().len(), 2);
}

#[test]
fn a_connection_cut_for_good_leaves_the_part_for_the_next_pull() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, Remote { cuts: [123_456, 0, 0, 0, 0, 0].into(), ..large(&body) });
    let home = Home::gguf(Some(&sha256(&body)));
    let error = home.refused(&hub.options(home.path()));
    assert!(
        matches!(&error, SourceError::BrokenOff { received_bytes: 123_456, total_bytes, .. } if *total_bytes == BYTES as u64),
        "{error}"
    );
    assert_eq!(home.staged(), [part_name(&body)]);
    assert!(!home.is_pulled());

    hub.change(FILE, |remote| remote.cuts.clear());
    let (asked, progress) = (hub.ranges(FILE).len(), Recorder::default());
    let path = home.store.pull_with(home.entry(), &hub.options(home.path()), &progress).unwrap();
    assert_eq!(fs::read(path).unwrap(), body);
    assert_eq!(hub.ranges(FILE)[asked..], [Some("bytes=123456-".to_owned())]);
    assert_eq!(*progress.bytes.lock().unwrap(), BYTES as u64, "resumed bytes are counted");
}

#[test]
fn a_complete_part_is_not_asked_for_again() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, large(&body));
    let home = Home::gguf(Some(&sha256(&body)));
    let staging = home.path().join("models/tiny.part");
    fs::create_dir_all(&staging).unwrap();
    fs::write(staging.join(part_name(&body)), &body).unwrap();
    home.pull(&hub.options(home.path())).unwrap();
    assert!(hub.ranges(FILE).is_empty() && home.is_pulled());
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, Remote { cuts: [200_000].into(), ignores_range: true, ..large(&body) });
    let home = Home::gguf(Some(&sha256(&body)));
    assert_eq!(fs::read(home.pull(&hub.options(home.path())).unwrap()).unwrap(), body);
}

#[test]
fn an_overloaded_hub_is_asked_again() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, Remote { statuses: [503, 429].into(), ..large(&body) });
    let home = Home::gguf(None);
    home.pull(&hub.options(home.path())).unwrap();
    hub.serve(FILE, Remote { statuses: [503; 9].into(), ..large(&body) });
    let error = Home::gguf(None).refused(&hub.options(home.path()));
    assert!(matches!(&error, SourceError::Unreachable { reason, .. } if reason == "status 503"), "{error}");
}

#[test]
fn a_hub_that_offers_other_content_is_refused_before_the_transfer() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, large(&body));
    let home = Home::gguf(Some(&sha256(b"what the catalogue wants")));
    let error = home.refused(&hub.options(home.path()));
    assert!(matches!(&error, SourceError::WrongDigest { actual, .. } if actual.as_str() == sha256(&body)), "{error}");
    assert!(hub.ranges(FILE).is_empty() && !home.is_pulled());
}

#[test]
fn content_with_a_wrong_checksum_is_deleted() {
    let (hub, body, promised) = (Hub::start(), content(BYTES), sha256(b"promised"));
    hub.serve(FILE, Remote { false_digest: Some(promised.clone()), ..large(&body) });
    for home in [Home::gguf(Some(&promised)), Home::gguf(None)] {
        let message = home.refused(&hub.options(home.path())).to_string();
        assert!(message.contains(&promised) && message.contains(&sha256(&body)), "{message}");
        assert!(home.staged().is_empty() && !home.is_pulled());
    }
}

#[test]
fn gated_repositories_say_what_to_do() {
    let hub = Hub::start();
    for status in [401, 403] {
        hub.serve(FILE, Remote { statuses: [status].into(), ..large(b"secret") });
        let home = Home::gguf(None);
        let message = home.refused(&hub.options(home.path())).to_string();
        assert!(message.contains(&format!("/{REPOSITORY} and set HF_TOKEN")), "{message}");
    }
}

#[test]
fn a_missing_file_is_named_with_its_revision() {
    let hub = Hub::start();
    let home = Home::gguf(None);
    let error = home.pull(&hub.options(home.path())).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("acme/tiny has no tiny.gguf at revision main"), "{message}");
    assert!(error.hint().unwrap().contains("--model"));
    assert!(!home.path().join("models/tiny.part").exists());
}

#[test]
fn an_unreachable_hub_fails_quickly() {
    let home = Home::gguf(None);
    let begun = Instant::now();
    let error = home.refused(&options("http://127.0.0.1:1", home.path()));
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_full_disk_is_called_that() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, large(&body));
    let home = Home::gguf(Some(&sha256(&body)));
    let staging = home.path().join("models/tiny.part");
    fs::create_dir_all(&staging).unwrap();
    std::os::unix::fs::symlink("/dev/full", staging.join(part_name(&body))).unwrap();
    let error = home.pull(&hub.options(home.path())).unwrap_err();
    assert!(matches!(error, PullError::DiskFull { .. }), "{error:?}");
    assert!(!home.is_pulled());
}

#[test]
fn a_folder_of_the_users_is_left_alone() {
    let hub = Hub::start();
    hub.serve(FILE, large(b"model"));
    let home = Home::gguf(None);
    let mine = home.path().join("models/tiny/mine.txt");
    fs::create_dir_all(mine.parent().unwrap()).unwrap();
    fs::write(&mine, "mine").unwrap();
    assert!(matches!(home.pull(&hub.options(home.path())), Err(PullError::InTheWay { .. })));
    assert!(matches!(home.store.remove("tiny", &()), Err(StoreError::NotPulled { .. })));
    assert_eq!(fs::read_to_string(mine).unwrap(), "mine");
}

#[test]
fn two_pulls_at_once_share_one_transfer() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, Remote { delay: Duration::from_millis(200), ..large(&body) });
    let home = Arc::new(Home::gguf(Some(&sha256(&body))));
    let pulls: Vec<_> = (0..4)
        .map(|_| {
            let (home, options) = (Arc::clone(&home), hub.options(home.path()));
            std::thread::spawn(move || home.pull(&options).unwrap())
        })
        .collect();
    let paths: Vec<PathBuf> = pulls.into_iter().map(|pull| pull.join().unwrap()).collect();
    assert!(paths.iter().all(|path| fs::read(path).unwrap() == body));
    assert_eq!(hub.ranges(FILE), [None]);
}

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
fn a_sharded_directory_is_pulled_from_one_commit() {
    let hub = Hub::start();
    let index =
        r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    for (name, text) in [("config.json", "{}"), ("tokenizer.json", "{\"t\":1}"), ("chat_template.jinja", "{{ x }}")] {
        hub.serve(name, small(text));
    }
    hub.serve("model.safetensors.index.json", small(index));
    hub.serve("model-1.safetensors", large(&content(50_000)));
    hub.serve("model-2.safetensors", large(&content(40_000)));
    hub.serve("model.safetensors", large(b"must not be fetched"));
    let home = Home::safetensors();
    let path = home.pull(&hub.options(home.path())).unwrap();

    assert_eq!(path, home.path().join("models/tiny"));
    let mut names: Vec<String> =
        fs::read_dir(&path).unwrap().map(|found| found.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "chat_template.jinja",
            "config.json",
            "manifest.json",
            "model-1.safetensors",
            "model-2.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
    assert_eq!(fs::read(path.join("model-2.safetensors")).unwrap(), content(40_000));
    assert_eq!(home.store.verify("tiny", &()).unwrap().files.len(), 6);
    let at_branch = hub.asked().iter().filter(|asked| asked.path.contains("/resolve/main/")).count();
    assert_eq!(at_branch, 1, "after the first answer everything is asked for at its commit");
}

#[test]
fn an_unfinished_directory_goes_on_where_it_stopped() {
    let hub = Hub::start();
    hub.serve("config.json", small("{}"));
    hub.serve("tokenizer.json", large(&content(9_000)));
    hub.serve("model.safetensors", Remote { dead: true, ..large(&content(50_000)) });
    let home = Home::safetensors();
    assert!(matches!(home.refused(&hub.options(home.path())), SourceError::BrokenOff { .. }));
    assert!(!home.is_pulled());
    hub.change("model.safetensors", |remote| remote.dead = false);
    let path = home.pull(&hub.options(home.path())).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), content(50_000));
    assert_eq!(hub.ranges("tokenizer.json"), [None], "a finished file is not fetched twice");
}

#[test]
fn an_index_that_leads_out_of_the_folder_is_refused() {
    let hub = Hub::start();
    hub.serve("config.json", small("{}"));
    hub.serve("tokenizer.json", small("{}"));
    for index in [r#"{"weight_map": {"a": "../evil.safetensors"}}"#, r#"{"weight_map": {"a": "config.json"}}"#, "[]"] {
        hub.serve("model.safetensors.index.json", small(index));
        let home = Home::safetensors();
        let error = home.refused(&hub.options(home.path()));
        assert!(matches!(error, SourceError::BadAnswer { .. }), "{index}: {error}");
    }
}

#[test]
fn a_directory_without_a_tokenizer_is_refused() {
    let hub = Hub::start();
    hub.serve("config.json", small("{}"));
    let home = Home::safetensors();
    assert!(
        matches!(home.refused(&hub.options(home.path())), SourceError::NotFound { file, .. } if file == "tokenizer.json")
    );
}

#[test]
fn a_python_package_is_downloaded_and_unpacked() {
    let body = content(BYTES);
    let home = Home::pip(&sha256(&body));
    let options = with_python(&home, Some(&body));
    let path = home.pull(&options).unwrap();
    assert_eq!(fs::read(path).unwrap(), body);
    let manifest = home.store.verify("tiny", &()).unwrap();
    assert_eq!((manifest.source.as_str(), manifest.revision.as_str()), ("Python package tiny-model 1.0", "1.0"));
    let calls = fs::read_to_string(home.path().join("python/calls")).unwrap();
    assert!(calls.contains("-m pip download --no-deps --only-binary :all:"), "{calls}");
    assert!(calls.trim_end().ends_with("tiny-model==1.0"), "{calls}");
}

#[test]
fn a_package_with_other_content_is_refused() {
    let home = Home::pip(&sha256(b"expected"));
    let options = with_python(&home, Some(b"delivered"));
    let error = home.refused(&options);
    assert!(matches!(&error, SourceError::WrongDigest { .. }), "{error}");
    assert!(home.staged().is_empty() && !home.is_pulled());
}

#[test]
fn what_pip_says_is_passed_on() {
    let home = Home::pip(&sha256(b"expected"));
    let options = with_python(&home, None);
    let message = home.refused(&options).to_string();
    assert_eq!(message, "pip failed: No matching distribution found for tiny-model==1.0");
    let no_python = PullOptions { python: home.path().join("no-python"), ..options };
    assert!(matches!(home.refused(&no_python), SourceError::NoPython { .. }));
}

#[test]
fn the_next_source_steps_in_and_every_failure_is_told() {
    let body = content(BYTES);
    let lines = format!(
        "format = \"gguf\"\nfiles = [{{ name = \"{FILE}\", sha256 = \"{}\" }}]\n\
         sources = [{{ hub = \"{REPOSITORY}\", file = \"{FILE}\" }}, \
         {{ pip = \"tiny-model\", version = \"1.0\", member = \"tiny_model/{FILE}\" }}]",
        sha256(&body)
    );
    let home = Home::new(&lines);
    let mut options = options("http://127.0.0.1:1", home.path());
    let message = home.pull(&options).unwrap_err().to_string();
    assert!(message.contains("hub acme/tiny@main: cannot reach http://127.0.0.1:1"), "{message}");
    assert!(message.contains("Python package tiny-model 1.0: cannot run"), "{message}");
    options.python = with_python(&home, Some(&body)).python;
    home.pull(&options).unwrap();
    assert_eq!(home.store.list().unwrap()[0].source, "Python package tiny-model 1.0");
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

/// The name under which a large file is received.
fn part_name(body: &[u8]) -> String {
    format!("{FILE}.{}.part", &sha256(body)[..16])
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

/// Options with an interpreter whose pip finds a wheel with this model in it, or nothing.
fn with_python(home: &Home, model: Option<&[u8]>) -> PullOptions {
    let folder = home.path().join("python");
    fs::create_dir_all(folder.join("tiny_model")).unwrap();
    if let Some(model) = model {
        fs::write(folder.join("tiny_model").join(FILE), model).unwrap();
        let wheel = Command::new("python3")
            .args(["-m", "zipfile", "-c", "tiny_model-1.0-py3-none-any.whl", "tiny_model"])
            .current_dir(&folder)
            .status()
            .expect("this test needs python3");
        assert!(wheel.success());
    }
    let python = folder.join("python3");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/fake-python");
    std::os::unix::fs::symlink(script, &python).unwrap();
    PullOptions { python, ..options("http://127.0.0.1:1", home.path()) }
}
