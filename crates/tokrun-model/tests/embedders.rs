//! Every family of embedding models against sentence-transformers in float32, on tiny random models.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use support::{change_settings, copy_of, distance, fixtures};
use tokrun_model::{Embedder, LoadOptions, ModelError, ModelFile, Pooling, Shortening};

mod support;

/// Largest distance of a number from the reference. Those of vectors that are not normalised are about 1.
const DISTANCE_MAX: f32 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    token_ids: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
    pooled: std::collections::BTreeMap<String, Vec<Vec<f32>>>,
}

fn reference(fixture: &str) -> Reference {
    let text = fs::read_to_string(fixtures().join(fixture).join("reference.json")).expect("the fixture is committed");
    serde_json::from_str(&text).expect("the fixture is valid")
}

fn load(folder: &Path) -> Result<Embedder, ModelError> {
    ModelFile::open(folder)?.load_embedder(&LoadOptions::default())
}

fn rows(texts: &[Vec<u32>]) -> Vec<&[u32]> {
    texts.iter().map(Vec::as_slice).collect()
}

#[track_caller]
fn assert_near(computed: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(computed.len(), expected.len(), "{what}");
    for (index, (computed, expected)) in computed.iter().zip(expected).enumerate() {
        let distance = distance(computed, expected);
        assert!(distance <= DISTANCE_MAX, "{what}: text {index} is {distance} away");
    }
}

#[test]
fn every_family_agrees_with_the_reference() {
    for (fixture, pooling, normalised) in [
        ("embed-bert", Pooling::Mean, true),
        ("embed-xlm-roberta", Pooling::Cls, true),
        ("embed-distilbert", Pooling::Mean, false),
    ] {
        let (embedder, reference) = (load(&fixtures().join(fixture)).expect("it loads"), reference(fixture));
        let info = embedder.info();
        assert_eq!((info.pooling, info.normalised), (pooling, normalised), "{fixture}");
        assert_eq!((info.dimensions, info.context_tokens), (24, 64), "{fixture}");
        let vectors = embedder.embed(&rows(&reference.token_ids)).expect("it computes");
        assert_near(&vectors, &reference.vectors, fixture);
    }
}

#[test]
fn a_text_has_the_same_vector_alone_and_beside_longer_ones() {
    for fixture in ["embed-bert", "embed-xlm-roberta", "embed-distilbert"] {
        let (embedder, reference) = (load(&fixtures().join(fixture)).expect("it loads"), reference(fixture));
        let together = embedder.embed(&rows(&reference.token_ids)).expect("it computes");
        for (text, beside) in reference.token_ids.iter().zip(&together) {
            let alone = embedder.embed(&[text]).expect("it computes");
            assert!(distance(&alone[0], beside) < 1e-6, "{fixture}: {}", distance(&alone[0], beside));
        }
    }
}

#[test]
fn every_pooling_agrees_with_the_reference() {
    let reference = reference("embed-bert");
    for (mode, expected) in &reference.pooled {
        // As sentence-transformers wrote it until version 5, and as it does now.
        let old = format!(r#"{{"word_embedding_dimension": 24, "pooling_mode_{mode}": true}}"#)
            .replace("_cls\"", "_cls_token\"")
            .replace("_mean\"", "_mean_tokens\"")
            .replace("_max\"", "_max_tokens\"");
        for settings in [old, format!(r#"{{"embedding_dimension": 24, "pooling_mode": "{mode}"}}"#)] {
            let copy = copy_of_model("embed-bert");
            fs::write(copy.path().join("1_Pooling/config.json"), &settings).expect("there is room");
            let modules = fs::read_to_string(copy.path().join("modules.json")).expect("it is there");
            let mut modules: Vec<serde_json::Value> = serde_json::from_str(&modules).expect("it is JSON");
            modules.pop();
            fs::write(copy.path().join("modules.json"), serde_json::json!(modules).to_string()).expect("there is room");
            let embedder = load(copy.path()).expect("it loads");
            let vectors = embedder.embed(&rows(&reference.token_ids)).expect("it computes");
            assert_near(&vectors, expected, &settings);
        }
    }
    assert_eq!(reference.pooled.len(), 5);
}

#[test]
fn weights_that_stand_in_a_larger_model_and_under_old_names_are_found() {
    // What a checkpoint for masked words looks like: everything under `bert.`, a head beside it, and gamma for weight.
    let copy = copy_of_model("embed-bert");
    change_settings(copy.path(), r#""architectures": ["BertForMaskedLM"]"#);
    let file = copy.path().join("model.safetensors");
    let bytes = fs::read(&file).expect("it is there");
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + header_bytes]).expect("it is JSON");
    let renamed: serde_json::Map<String, serde_json::Value> = header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(|(name, tensor)| match name.strip_prefix("pooler.") {
            Some(rest) => (format!("cls.{rest}"), tensor),
            None => (format!("bert.{}", name.replace("LayerNorm.weight", "LayerNorm.gamma")), tensor),
        })
        .collect();
    let header = serde_json::to_vec(&renamed).expect("it is JSON");
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(header);
    changed.extend(&bytes[8 + header_bytes..]);
    fs::write(&file, changed).expect("there is room");
    let reference = reference("embed-bert");
    let vectors = load(copy.path()).expect("it loads").embed(&rows(&reference.token_ids)).expect("it computes");
    assert_near(&vectors, &reference.vectors, "renamed");
}

#[test]
fn shorter_vectors_are_for_models_that_say_so() {
    let embedder = load(&fixtures().join("embed-bert")).expect("it loads");
    let shortening = &embedder.info().shortening;
    assert_eq!(*shortening, Shortening::To(vec![8, 16]));
    assert!(shortening.allows(8, 24) && shortening.allows(24, 24));
    assert!(!shortening.allows(12, 24) && !shortening.allows(25, 24) && !shortening.allows(0, 24));
    let embedder = load(&fixtures().join("embed-distilbert")).expect("it loads");
    assert!(embedder.info().shortening.allows(24, 24) && !embedder.info().shortening.allows(8, 24));
    let copy = copy_of_model("embed-distilbert");
    change_settings(copy.path(), r#""is_matryoshka": true"#);
    let embedder = load(copy.path()).expect("it loads");
    assert!(embedder.info().shortening.allows(5, 24) && !embedder.info().shortening.allows(0, 24));
}

#[test]
fn what_would_be_ignored_is_refused_by_name() {
    let settings = |changes: &'static str| move |folder: &Path| change_settings(folder, changes);
    let file = |name: &'static str, text: &'static str| {
        move |folder: &Path| fs::write(folder.join(name), text).expect("there is room")
    };
    type Change = Box<dyn Fn(&Path)>;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(settings(r#""architectures": ["BertForSequenceClassification"]"#)), "BertForSequenceClassification"),
        (Box::new(settings(r#""is_decoder": true"#)), "is_decoder"),
        (Box::new(settings(r#""position_embedding_type": "relative_key""#)), "relative_key"),
        (Box::new(settings(r#""hidden_act": "silu""#)), "silu"),
        (Box::new(settings(r#""rope_theta": 10000.0"#)), "rope_theta"),
        (Box::new(file("1_Pooling/config.json", r#"{"pooling_mode": "weightedmean"}"#)), "weightedmean"),
        (
            Box::new(file(
                "1_Pooling/config.json",
                r#"{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}"#,
            )),
            "2 ways",
        ),
        (Box::new(file("1_Pooling/config.json", "{}")), "0 ways"),
        (Box::new(file("sentence_bert_config.json", r#"{"do_lower_case": true}"#)), "do_lower_case"),
        (
            Box::new(file("config_sentence_transformers.json", r#"{"default_prompt_name": "query"}"#)),
            "default_prompt_name",
        ),
        (
            Box::new(file(
                "modules.json",
                r#"[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "2_Dense"}]"#,
            )),
            "Dense",
        ),
    ];
    for (change, expected) in cases {
        let copy = copy_of_model("embed-bert");
        change(copy.path());
        let error = load(copy.path()).err().unwrap_or_else(|| panic!("{expected}: it loads"));
        assert!(matches!(error, ModelError::Unsupported { .. }), "{expected}: {error:?}");
        assert!(error.to_string().contains(expected), "{error} should say {expected}");
    }
}

#[test]
fn broken_folders_are_told() {
    for (name, text, expected) in [
        ("modules.json", "{}", "no list"),
        ("modules.json", r#"[{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "../x"}]"#, "../x"),
        ("1_Pooling/config.json", r#"{"pooling_mode": "mean", "embedding_dimension": 25}"#, "25"),
        ("1_Pooling/config.json", "]", "no JSON"),
    ] {
        let copy = copy_of_model("embed-bert");
        fs::write(copy.path().join(name), text).expect("there is room");
        let error = load(copy.path()).err().unwrap_or_else(|| panic!("{text}: it loads"));
        assert!(matches!(error, ModelError::Malformed { .. }), "{text}: {error:?}");
        assert!(error.to_string().contains(expected), "{error} should say {expected}");
    }
    for changes in [
        r#""vocab_size": 201"#,
        r#""max_position_embeddings": 65"#,
        r#""hidden_size": 26"#,
        r#""num_attention_heads": 0"#,
        r#""num_hidden_layers": 3"#,
    ] {
        let copy = copy_of_model("embed-bert");
        change_settings(copy.path(), changes);
        let error = load(copy.path()).err().unwrap_or_else(|| panic!("{changes}: it loads"));
        assert!(matches!(error, ModelError::Malformed { .. }), "{changes}: {error:?}");
    }
    let copy = copy_of_model("embed-bert");
    change_settings(copy.path(), r#""num_hidden_layers": 1"#);
    let error = load(copy.path()).err().expect("a layer is left over");
    assert!(error.to_string().contains("ignore tensor encoder.layer.1"), "{error}");
}

#[test]
fn texts_that_cannot_be_computed_are_refused() {
    let embedder = load(&fixtures().join("embed-bert")).expect("it loads");
    assert!(matches!(embedder.embed(&[&[2, 3], &[]]), Err(ModelError::InvalidBatch { .. })));
    assert!(matches!(embedder.embed(&[&[200]]), Err(ModelError::InvalidBatch { .. })));
    let error = embedder.embed(&[&[5; 65]]).err();
    assert!(matches!(error, Some(ModelError::ContextFull { wanted_tokens: 65, context_tokens: 64 })), "{error:?}");
    assert!(embedder.embed(&[]).is_ok_and(|vectors| vectors.is_empty()));
    let options = LoadOptions { context_tokens: Some(7), ..LoadOptions::default() };
    let file = ModelFile::open(&fixtures().join("embed-bert")).expect("it opens");
    assert_eq!(file.load_embedder(&options).expect("it loads").info().context_tokens, 7);
}

#[test]
fn models_that_speak_and_models_that_embed_are_not_taken_for_each_other() {
    let file = ModelFile::open(&fixtures().join("embed-bert")).expect("it opens");
    assert!(file.is_embedder());
    let error = file.load(&LoadOptions::default()).err().expect("it gives no logits");
    assert!(error.to_string().contains("/v1/embeddings"), "{error}");
    let file = ModelFile::open(&fixtures().join("llama")).expect("it opens");
    assert!(!file.is_embedder());
    let error = file.load_embedder(&LoadOptions::default()).err().expect("it embeds nothing");
    assert!(error.to_string().contains("llama is no embedding model"), "{error}");
}

/// A copy of a fixture with the folders in it.
fn copy_of_model(fixture: &str) -> tempfile::TempDir {
    let copy = copy_of(fixture);
    let pooling = fixtures().join(fixture).join("1_Pooling/config.json");
    if pooling.is_file() {
        fs::create_dir(copy.path().join("1_Pooling")).expect("there is room");
        fs::copy(pooling, copy.path().join("1_Pooling/config.json")).expect("there is room");
    }
    copy
}
