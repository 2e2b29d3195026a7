//! The picture in `crates/README.md`, held against what Cargo builds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Every arrow between crates that the picture has. Dev-dependencies are exempt.
fn picture() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    BTreeMap::from([
        (
            "tokrun",
            BTreeSet::from([
                "tokrun-server",
                "tokrun-runtime",
                "tokrun-engine",
                "tokrun-ledger",
                "tokrun-model",
                "tokrun-kernels",
            ]),
        ),
        ("tokrun-server", BTreeSet::from(["tokrun-runtime", "tokrun-ledger"])),
        ("tokrun-runtime", BTreeSet::from(["tokrun-engine", "tokrun-ledger"])),
        ("tokrun-engine", BTreeSet::from(["tokrun-model"])),
        ("tokrun-model", BTreeSet::from(["tokrun-kernels"])),
        ("tokrun-ledger", BTreeSet::new()),
        ("tokrun-kernels", BTreeSet::new()),
        ("xtask", BTreeSet::new()),
    ])
}

#[test]
fn crates_depend_on_each_other_as_the_picture_says() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata runs");
    let names: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let picture = picture();
    assert_eq!(names, picture.keys().copied().collect(), "a crate is missing from the picture, or from the workspace");
    for package in &metadata.packages {
        let arrows: BTreeSet<&str> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind != DependencyKind::Development && names.contains(&*dependency.name))
            .map(|dependency| &*dependency.name)
            .collect();
        let unknown: Vec<_> = arrows.difference(&picture[package.name.as_str()]).collect();
        assert!(unknown.is_empty(), "{} depends on {unknown:?}, which the picture does not have", package.name);
    }
}

/// What the owner fixed: these libraries are used, not only listed.
#[test]
fn the_fixed_libraries_are_used() {
    let sources = sources();
    for name in
        ["candle_core", "candle_transformers", "cudarc", "tokenizers", "hf_hub", "safetensors", "clap", "rusqlite"]
    {
        let used = sources.iter().any(|(_, text)| text.contains(&format!("{name}::")));
        assert!(used, "{name} is not used");
    }
}

/// The engine never hears of money, and the ledger never hears of models.
#[test]
fn engine_and_ledger_do_not_know_each_other() {
    for (path, text) in sources() {
        let path = path.replace('\\', "/");
        if path.contains("tokrun-engine/") || path.contains("tokrun-model/") {
            assert!(!text.contains("tokrun_ledger"), "{path} names the ledger");
        }
        if path.contains("tokrun-ledger/") {
            assert!(!text.contains("tokrun_engine") && !text.contains("tokrun_model"), "{path} names the engine");
        }
    }
}

/// Top level: what the owner fixed, and nothing beside it.
#[test]
fn the_top_level_is_as_fixed() {
    let allowed = [
        "Cargo.toml",
        "crates",
        "kernels",
        "models.toml",
        "examples",
        "tests",
        "README.md",
        "Cargo.lock",
        "LICENSE",
        "CHANGELOG.md",
    ];
    for entry in std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("the root can be read") {
        let name = entry.expect("an entry can be read").file_name().to_string_lossy().into_owned();
        assert!(
            name.starts_with('.') || name == "target" || allowed.contains(&name.as_str()),
            "{name} does not belong there"
        );
    }
}

fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("crates"), &mut found);
    found
}

fn collect(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(directory).expect("the tree can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
            found.push((path.display().to_string(), text));
        }
    }
}
