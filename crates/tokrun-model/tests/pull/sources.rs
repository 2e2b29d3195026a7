//! Whole directories, Python packages, and one source after the other.

use std::fs;
use std::path::Path;
use std::process::Command;

use tokrun_model::pull::{PullOptions, SourceError};

use crate::mock_hub::{Hub, REPOSITORY, Remote, content, options, sha256};
use crate::{BYTES, FILE, Home, large, small};

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
    // The etag of a small file is no digest, so nothing shows that this part belongs to it.
    let staging = home.path().join("models/tiny.part");
    fs::create_dir_all(&staging).unwrap();
    fs::write(staging.join("config.json.0123.part"), "[").unwrap();
    assert!(matches!(home.refused(&hub.options(home.path())), SourceError::BrokenOff { .. }));
    assert_eq!(fs::read_to_string(staging.join("config.json")).unwrap(), "{}");
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
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pull/fake-python");
    std::os::unix::fs::symlink(script, &python).unwrap();
    PullOptions { python, ..options("http://127.0.0.1:1", home.path()) }
}
