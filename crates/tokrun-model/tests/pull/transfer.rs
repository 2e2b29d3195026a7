//! One file from the hub, in fair weather and foul.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokrun_model::pull::{PullError, SourceError};
use tokrun_model::store::{Resolved, StoreError};

use crate::mock_hub::{COMMIT, Hub, REPOSITORY, Recorder, Remote, content, options, sha256};
use crate::{BYTES, FILE, Home, large, part_name};

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
fn an_unreachable_hub_is_given_up_at_once() {
    let home = Home::gguf(None);
    for endpoint in ["http://127.0.0.1:1", "http://hub.invalid"] {
        let mut options = options(endpoint, home.path());
        options.hub.retry_pause = Duration::from_secs(60);
        let begun = Instant::now();
        let error = home.refused(&options);
        assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{endpoint} was tried again");
    }
}

#[test]
fn certificates_that_cannot_be_read_are_named() {
    let home = Home::gguf(None);
    let path = home.path().join("models.toml");
    let mut options = options("https://127.0.0.1:1", home.path());
    for (path, reason) in [(path, "it holds none"), (home.path().join("missing.pem"), "No such file")] {
        options.hub.certificates = Some(path.clone());
        let message = home.refused(&options).to_string();
        assert!(message.contains(path.to_str().unwrap()) && message.contains(reason), "{message}");
    }
}

#[test]
fn a_silent_connection_is_given_up_and_resumed() {
    let (hub, body) = (Hub::start(), content(BYTES));
    hub.serve(FILE, Remote { stalls: [50_000].into(), ..large(&body) });
    let home = Home::gguf(Some(&sha256(&body)));
    let mut options = hub.options(home.path());
    options.hub.silence_limit = Duration::from_millis(300);
    assert_eq!(fs::read(home.pull(&options).unwrap()).unwrap(), body);
    assert_eq!(hub.ranges(FILE), [None, Some("bytes=50000-".to_owned())]);
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
