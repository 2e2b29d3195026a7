//! The catalogue that is compiled in, and what users may write over it.

use super::*;

fn with_user_file(text: &str) -> Result<Catalogue, CatalogueError> {
    let home = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(home.path().join("models.toml"), text).expect("writable");
    Catalogue::load(home.path())
}

/// The line and the reason of a refusal.
fn refusal(text: &str) -> (usize, String) {
    match with_user_file(text) {
        Err(CatalogueError::Invalid { line, reason, .. }) => (line, reason),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn the_built_in_catalogue_is_sane() {
    let catalogue = Catalogue::built_in().expect("the built-in catalogue can be read");
    let mut names: Vec<&str> = Vec::new();
    for entry in catalogue.entries() {
        names.push(&entry.name);
        names.extend(entry.aliases.iter().map(String::as_str));
        assert!((1024..=1 << 20).contains(&entry.context_tokens), "{}", entry.name);
        assert!(!entry.title.is_empty() && !entry.licence.is_empty() && !entry.dtype.is_empty(), "{}", entry.name);
        assert!(entry.sampling.temperature.is_none_or(|value| (0.0..=2.0).contains(&value)), "{}", entry.name);
        assert!(entry.sampling.top_p.is_none_or(|value| value > 0.0 && value <= 1.0), "{}", entry.name);
        // A 4-bit weight with its scales is at least half a byte, a 16-bit one two.
        if let (Some(bytes), true) = (entry.size_bytes(), entry.parameters > 0) {
            let bits = bytes as f64 * 8.0 / entry.parameters as f64;
            assert!((4.0..12.0).contains(&bits), "{}: {bits} bits a weight", entry.name);
        }
        for source in &entry.sources {
            if let Source::Hub { repository, revision, .. } = source {
                assert!(repository.split('/').count() == 2, "{}", entry.name);
                let is_pinned = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
                assert!(is_pinned || revision == "main", "{}: {revision}", entry.name);
            }
        }
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "every name and alias stands for one model");
}

#[test]
fn the_models_that_are_promised_are_there() {
    let catalogue = Catalogue::built_in().expect("the built-in catalogue can be read");
    let promised = [
        "smollm2-135m",
        "smollm2-1.7b",
        "qwen3-0.6b",
        "qwen3-4b",
        "qwen3-8b",
        "llama-3.2-1b",
        "llama-3.2-3b",
        "llama-3.1-8b",
        "mistral-7b",
        "gemma-3-1b",
        "gemma-3-4b",
        "phi-4-mini",
    ];
    for name in promised {
        assert!(catalogue.get(name).is_some(), "{name}");
    }
    let default = catalogue.default_model();
    assert_eq!(default.name, "smollm2-135m");
    assert_eq!(catalogue.get("SmolLM2").expect("an alias in any case").name, "smollm2-135m");
    assert_eq!(default.size_bytes(), Some(98_362_432));
    assert!(matches!(default.sources[..], [Source::Hub { .. }, Source::Pip { .. }]));
    assert_eq!((default.sampling.temperature, default.sampling.top_p), (Some(0.2), Some(0.9)));
    assert_eq!(catalogue.starter_grant().as_str(), "1000000");
    let price = default.price_at(Timestamp::UNIX_EPOCH);
    assert_eq!([&price.prompt, &price.cached_prompt, &price.output].map(Decimal::as_str), ["1", "1", "1"]);
}

#[test]
fn without_a_user_file_the_built_in_one_holds() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let count = Catalogue::load(home.path()).expect("nothing to read").entries().len();
    assert_eq!(count, Catalogue::built_in().expect("readable").entries().len());
}

#[test]
fn a_user_file_adds_models_and_overrides_single_settings() {
    let catalogue = with_user_file(
        r#"
        [defaults]
        model = "mine"

        [[model]]
        name = "mine"
        architecture = "llama"
        format = "safetensors"
        dtype = "BF16"
        context_tokens = 2048
        licence = "MIT"
        sources = [{ hub = "me/mine" }]

        [[model]]
        name = "smollm2-135m"
        prices = [{ prompt = "0.5", output = "2.000001" }]
        sampling = { temperature = 0.7 }
        "#,
    )
    .expect("a good file");
    assert_eq!(catalogue.default_model().title, "mine");
    assert_eq!(catalogue.starter_grant().as_str(), "1000000", "what is not overridden stays");
    let own = Source::Hub { repository: "me/mine".into(), revision: "main".into(), file: None };
    assert_eq!(catalogue.default_model().sources, [own]);

    let changed = catalogue.get("smollm2-135m").expect("still there");
    let original = Catalogue::built_in().expect("readable");
    let original = original.get("smollm2-135m").expect("built in");
    let price = changed.price_at(Timestamp::now());
    assert_eq!([&price.prompt, &price.cached_prompt, &price.output].map(Decimal::as_str), ["0.5", "0.5", "2.000001"]);
    assert_eq!((changed.sampling.temperature, changed.sampling.top_p), (Some(0.7), None));
    assert_eq!((&changed.files, &changed.sources), (&original.files, &original.sources));
}

#[test]
fn prices_change_at_their_instant() {
    let catalogue = with_user_file(
        r#"
        [[model]]
        name = "smollm2-135m"
        prices = [
            { from = 2027-06-01T12:00:00+02:00, prompt = "3", output = "3" },
            { from = 2027-01-01, prompt = "2", output = "2" },
        ]
        "#,
    )
    .expect("a good file");
    let entry = catalogue.get("smollm2-135m").expect("there");
    let at = |instant: &str| entry.price_at(instant.parse().expect("an instant")).output.as_str();
    assert_eq!(at("2026-12-31T23:59:59Z"), "1", "before the first price every token costs one credit");
    assert_eq!(at("2027-01-01T00:00:00Z"), "2");
    assert_eq!(at("2027-06-01T09:59:59Z"), "2");
    assert_eq!(at("2027-06-01T10:00:00Z"), "3");
}

#[test]
fn mistakes_are_named_with_their_line() {
    let entry = |line: &str| format!("[[model]]\nname = \"smollm2-135m\"\n{line}\n");
    let cases = [
        (entry("colour = 1"), 3, "unknown field `colour`"),
        (entry("files = [{ name = \"a.gguf\", sha256 = \"12\" }]"), 3, "not a sha256"),
        (entry("prices = [{ prompt = \"1.2345678\", output = \"1\" }]"), 3, "at most six digits"),
        (entry("prices = [{ prompt = \"-1\", output = \"1\" }]"), 3, "is no amount"),
        (entry("prices = [{ prompt = 0.5, output = \"1\" }]"), 3, "expected a string"),
        (entry("prices = [{ from = 12:00:00, prompt = \"1\", output = \"1\" }]"), 3, "is no instant"),
        (entry("sources = [{ hub = \"a/b\", member = \"c\" }]"), 3, "a source is"),
        (entry("sources = [{ hub = \"a/b\" }]"), 2, "needs the `file`"),
        (entry("sources = []"), 2, "at least one source"),
        (entry("files = []"), 2, "exactly one of `files`"),
        (entry("files = [{ name = \"../x.gguf\" }]"), 2, "leave out folders"),
        (entry("aliases = [\"../x\"]"), 2, "is no model name"),
        (entry("prices = [{ prompt = \"1\", output = \"1\" }, { prompt = \"2\", output = \"2\" }]"), 2, "same instant"),
        (format!("{}{}", entry(""), entry("")), 5, "is there twice"),
        ("[[model]]\nname = \"new\"\n".to_owned(), 2, "needs a `architecture`"),
        ("[defaults]\nmodel = \"nobody\"\n".to_owned(), 2, "has no entry"),
        ("[defaults]\n\nstarter_grant = \"lots\"\n".to_owned(), 3, "is no amount"),
        ("[[model]\n".to_owned(), 1, ""),
    ];
    for (text, line, reason) in cases {
        let (found_line, found) = refusal(&text);
        assert_eq!(found_line, line, "{text}: {found}");
        assert!(found.contains(reason), "{text}: {found}");
    }
}

#[test]
fn similar_names_are_found() {
    let catalogue = Catalogue::built_in().expect("readable");
    assert_eq!(catalogue.similar("smolm2-135m")[0], "smollm2-135m");
    assert!(catalogue.similar("qwen3").contains(&"qwen3-0.6b"));
    assert!(catalogue.similar("zzz").is_empty() && catalogue.similar("").is_empty());
}
