//! Files that lie about themselves are refused.

use super::*;

/// A file with the header `json` and `data_bytes` bytes of data.
fn write(path: &Path, json: &str, data_bytes: usize) {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    std::fs::write(path, bytes).expect("there is room");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("there is room")
}

const ONE: &str = r#"{"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}"#;
const OTHER: &str = r#"{"b": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}"#;

#[test]
fn one_file_is_read() {
    let folder = folder();
    write(&folder.path().join("model.safetensors"), ONE, 16);
    let weights = Weights::open(folder.path()).expect("the file is sound");
    let tensor = &weights.tensors()["a"];
    assert_eq!((tensor.dtype, &tensor.shape[..], tensor.bytes(), tensor.elements()), (Dtype::F32, &[2, 2][..], 16, 4));
    assert_eq!(weights.bytes(tensor), [0; 16]);
}

#[test]
fn shards_are_joined_as_the_index_says() {
    let folder = folder();
    let index = |map: &str| {
        let text = format!(r#"{{"metadata": {{}}, "weight_map": {map}}}"#);
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).expect("there is room");
    };
    write(&folder.path().join("1.safetensors"), ONE, 16);
    write(&folder.path().join("2.safetensors"), OTHER, 8);
    index(r#"{"a": "1.safetensors", "b": "2.safetensors"}"#);
    let weights = Weights::open(folder.path()).expect("the shards are sound");
    assert_eq!(weights.tensors().keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(weights.bytes(&weights.tensors()["b"]).len(), 8);
    for (map, expected) in [
        (r#"{"a": "1.safetensors", "c": "2.safetensors"}"#, "no shard holds"),
        (r#"{"a": "../1.safetensors"}"#, "no file beside it"),
        (r#"{"a": "/etc/passwd"}"#, "no file beside it"),
        (r#"{"a": "3.safetensors"}"#, "cannot read"),
        ("3", "no index"),
    ] {
        index(map);
        let error = Weights::open(folder.path()).expect_err("the index lies").to_string();
        assert!(error.contains(expected), "{map}: {error}");
    }
    write(&folder.path().join("2.safetensors"), ONE, 16);
    index(r#"{"a": "1.safetensors", "b": "2.safetensors"}"#);
    let error = Weights::open(folder.path()).expect_err("both hold the tensor").to_string();
    assert!(error.contains("also in another shard"), "{error}");
}

#[test]
fn lying_headers_are_refused() {
    let cases = [
        (ONE, 15, "not fully covered"),
        (ONE, 17, "not fully covered"),
        (r#"{"a": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 16]}}"#, 16, "invalid shape"),
        (r#"{"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [4, 20]}}"#, 20, "invalid offset"),
        (r#"{"a": {"dtype": "F32", "shape": [18446744073709551615, 8], "data_offsets": [0, 16]}}"#, 16, "overflow"),
        (r#"{"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}"#, 16, "invalid JSON"),
        ("{", 0, "invalid JSON"),
    ];
    for (json, data_bytes, expected) in cases {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        write(&path, json, data_bytes);
        let error = Weights::open(folder.path()).expect_err("the header lies").to_string();
        assert!(error.contains(expected) && error.contains("model.safetensors"), "{json}: {error}");
    }
    for bytes in [&[][..], &[1, 2, 3], &[0xff; 64], &(1_u64 << 40).to_le_bytes()] {
        let folder = folder();
        std::fs::write(folder.path().join("model.safetensors"), bytes).expect("there is room");
        assert!(matches!(Weights::open(folder.path()), Err(ModelError::Malformed { .. })));
    }
}

#[test]
fn a_missing_file_is_named() {
    let folder = folder();
    let error = Weights::open(folder.path()).expect_err("there is none").to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}
