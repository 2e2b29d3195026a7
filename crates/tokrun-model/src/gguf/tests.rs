//! A file may claim anything; reading it must end in a header that holds or in an error.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// Writes GGUF files byte by byte, so that each field can be wrong.
#[derive(Clone, Default)]
struct Writer {
    bytes: Vec<u8>,
    /// Where each field begins.
    boundaries: Vec<usize>,
}

impl Writer {
    fn begin(version: u32, tensors: u64, keys: u64) -> Self {
        let mut writer = Self::default();
        writer.raw(b"GGUF").u32(version).u64(tensors).u64(keys);
        writer
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.boundaries.push(self.bytes.len());
        self.bytes.extend(bytes);
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    fn string(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    fn key_string(&mut self, key: &str, value: &str) -> &mut Self {
        self.string(key).u32(8).string(value)
    }

    fn key_u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.string(key).u32(4).u32(value)
    }

    fn tensor(&mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> &mut Self {
        self.string(name).u32(dims.len() as u32);
        for &dim in dims {
            self.u64(dim);
        }
        self.u32(kind).u64(offset)
    }

    /// Pads to 32 bytes and adds `data_bytes` of tensor data.
    fn finish(&mut self, data_bytes: usize) -> Vec<u8> {
        let header = self.bytes.len().next_multiple_of(32);
        let mut bytes = self.bytes.clone();
        bytes.resize(header + data_bytes, 0x55);
        bytes
    }
}

/// A file with every kind of value and two tensors.
fn sound() -> (Vec<u8>, Vec<usize>) {
    let mut writer = Writer::begin(3, 2, 9);
    writer.key_string("general.architecture", "llama").key_u32("llama.block_count", 2);
    writer.string("a.bool").u32(7).raw(&[1]);
    writer.string("a.negative").u32(1).raw(&[0xfe]);
    writer.string("a.f32").u32(6).raw(&1.5_f32.to_le_bytes());
    writer.string("a.f64").u32(12).raw(&2.5_f64.to_le_bytes());
    writer.string("a.strings").u32(9).u32(8).u64(2).string("x").string("");
    writer.string("a.ints").u32(9).u32(3).u64(2).raw(&(-3_i16).to_le_bytes()).raw(&7_i16.to_le_bytes());
    writer.string("a.floats").u32(9).u32(6).u64(1).raw(&0.25_f32.to_le_bytes());
    writer.tensor("embed", &[64, 2], 3, 0).tensor("norm", &[8], 0, 96);
    let boundaries = writer.boundaries.clone();
    (writer.finish(128), boundaries)
}

fn parse(bytes: &[u8]) -> Result<Header, String> {
    Header::parse(Path::new("test.gguf"), bytes).map_err(|error| error.to_string())
}

fn refusal(bytes: &[u8]) -> String {
    parse(bytes).expect_err("the file is broken")
}

#[test]
fn reads_every_kind_of_value() {
    let header = parse(&sound().0).expect("the file is sound");
    let metadata = &header.metadata;
    assert_eq!(header.version, 3);
    assert_eq!(header.architecture(), "llama");
    assert_eq!(metadata.uint("llama.block_count"), Some(2));
    assert_eq!(metadata.bool("a.bool"), Some(true));
    assert_eq!(metadata.get("a.negative"), Some(&Value::Int(-2)));
    assert_eq!(metadata.uint("a.negative"), None);
    assert_eq!(metadata.float("a.f32"), Some(1.5));
    assert_eq!(metadata.float("a.f64"), Some(2.5));
    assert_eq!(metadata.strings("a.strings"), Some(&["x", ""].into_iter().collect()));
    assert_eq!(metadata.ints("a.ints"), Some(&[-3, 7][..]));
    assert_eq!(metadata.floats("a.floats"), Some(&[0.25][..]));
    let embed = &header.tensors["embed"];
    assert_eq!((embed.tensor_type.name, &embed.dims[..], embed.bytes), ("Q4_1", &[2, 64][..], 80));
    assert_eq!(header.tensors["norm"].elements(), 8);
    assert_eq!(header.data_offset % 32, 0);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (bytes, boundaries) = sound();
    let used = parse(&bytes).expect("the file is sound").data_offset as usize + 128;
    for length in boundaries.into_iter().chain(0..used) {
        assert!(parse(&bytes[..length]).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn absurd_counts_and_lengths_are_refused_by_name() {
    for (bytes, expected) in [
        (Writer::begin(3, u64::MAX, 0).finish(64), "tensors do not fit"),
        (Writer::begin(3, 0, u64::MAX / 2).finish(64), "metadata keys do not fit"),
        (Writer::begin(3, 0, 1).u64(u64::MAX).finish(64), "bytes are announced"),
        (Writer::begin(3, 0, 1).string("k").u32(9).u32(4).u64(1 << 61).finish(64), "array of"),
        (Writer::begin(3, 0, 1).string("k").u32(9).u32(9).u64(1).finish(64), "nested"),
        (Writer::begin(3, 0, 1).string("k").u32(99).finish(64), "unknown value type 99"),
        (Writer::begin(3, 0, 1).string("k").u32(7).raw(&[2]).finish(64), "no truth value"),
        (Writer::begin(3, 0, 1).string("k").u32(10).u64(u64::MAX).finish(64), "beyond 2^63"),
        (Writer::begin(3, 0, 2).key_u32("k", 1).key_u32("k", 1).finish(64), "key k appears twice"),
        (Writer::begin(3, 0, 1).key_u32("k", 1).finish(64), "lacks the key general.architecture"),
        (Writer::begin(1, 0, 0).finish(64), "version 1 is not read"),
        (Writer::begin(3_u32.swap_bytes(), 0, 0).finish(64), "big endian"),
        (Writer::begin(4, 0, 0).finish(64), "version 4 is not known"),
        (b"GGML\0\0\0\0".to_vec(), "does not begin with GGUF"),
        (Vec::new(), "announced where 0 are left"),
    ] {
        let message = refusal(&bytes);
        assert!(message.contains(expected), "{message:?} should say {expected:?}");
        assert!(message.starts_with("test.gguf is not a usable model file"), "{message}");
    }
}

#[test]
fn impossible_tensors_are_refused_by_name() {
    let with = |alignment: u32, tensors: &[(&str, &[u64], u32, u64)]| {
        let mut writer = Writer::begin(3, tensors.len() as u64, 2);
        writer.key_string("general.architecture", "llama").key_u32("general.alignment", alignment);
        for (name, dims, kind, offset) in tensors {
            writer.tensor(name, dims, *kind, *offset);
        }
        writer.finish(256)
    };
    parse(&with(32, &[("a", &[32], 0, 0), ("b", &[32], 0, 128)])).expect("the file is sound");
    for (bytes, expected) in [
        (with(32, &[("a", &[32], 0, 0), ("a", &[32], 0, 128)]), "tensor a appears twice"),
        (with(32, &[("a", &[32], 0, 0), ("b", &[32], 0, 96)]), "lies inside another tensor"),
        (with(32, &[("a", &[32], 0, 16)]), "not a multiple of 32"),
        (with(32, &[("a", &[32], 0, 256)]), "ends beyond the file"),
        (with(32, &[("a", &[32], 0, u64::MAX - 31)]), "ends beyond the file"),
        (with(32, &[("a", &[u64::MAX, 4], 0, 0)]), "impossible"),
        (with(32, &[("a", &[33], 3, 0)]), "impossible"),
        (with(32, &[("a", &[0], 0, 0)]), "impossible"),
        (with(32, &[("a", &[], 0, 0)]), "0 dimensions"),
        (with(32, &[("a", &[1; 5], 0, 0)]), "5 dimensions"),
        (with(32, &[("a", &[32], 77, 0)]), "unknown tensor type 77"),
        (with(24, &[]), "general.alignment"),
        (with(0, &[]), "general.alignment"),
    ] {
        let message = refusal(&bytes);
        assert!(message.contains(expected), "{message:?} should say {expected:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Flipped bytes end in an error, or in a header whose every promise holds.
    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((0_usize..600, any::<u8>()), 1..8)) {
        let mut bytes = sound().0;
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Ok(header) = parse(&bytes) {
            for tensor in header.tensors.values() {
                prop_assert!(header.data_offset + tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
        }
    }

    /// Neither do bytes that were never a file.
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400), tensors in 0_u64..4, keys in 0_u64..4) {
        let mut writer = Writer::begin(3, tensors, keys);
        writer.raw(&noise);
        let _ = parse(&writer.bytes);
    }
}
