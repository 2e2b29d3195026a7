//! Reads a header from bytes nobody vouches for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::{Header, Metadata, TensorInfo, TensorType, Value};

/// Why a file is refused.
type Reason = String;

/// Tensors and keys a file may have: far above what models have, low enough that a lie costs little memory.
const ENTRIES_MAX: u64 = 1 << 20;
/// Elements that all arrays of a file may have together. The largest vocabularies have about 2^18 tokens and 2^19 merges.
const ARRAY_ELEMENTS_MAX: u64 = 1 << 24;
/// Dimensions a tensor may have.
const DIMS_MAX: u32 = 4;

pub(super) fn read_header(file: &[u8]) -> Result<Header, Reason> {
    let mut reader = Reader { file, at: 0, array_elements_left: ARRAY_ELEMENTS_MAX };
    let version = reader.version()?;
    let tensor_count = reader.count("tensors", TENSOR_INFO_BYTES_MIN)?;
    let key_count = reader.count("metadata keys", KEY_VALUE_BYTES_MIN)?;
    let metadata = reader.metadata(key_count)?;
    check_keys(&metadata)?;
    let tensors = reader.tensors(tensor_count)?;
    let alignment = alignment(&metadata)?;
    let data_offset = (reader.at as u64).next_multiple_of(alignment);
    check_extents(&tensors, alignment, data_offset, file.len() as u64)?;
    Ok(Header { version, metadata: Arc::new(metadata), tensors, data_offset })
}

/// The least that a tensor's entry takes: name length, dimension count, one dimension, type, offset.
const TENSOR_INFO_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;
/// The least that a key and its value take: key length, type, one byte.
const KEY_VALUE_BYTES_MIN: u64 = 8 + 4 + 1;

fn check_keys(metadata: &Metadata) -> Result<(), Reason> {
    match metadata.get("general.architecture") {
        Some(Value::String(name)) if !name.is_empty() => Ok(()),
        Some(_) => Err("key general.architecture is no name".to_owned()),
        None => Err("it lacks the key general.architecture".to_owned()),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, Reason> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::Int(value)) if (1..=1 << 20).contains(value) && value.count_ones() == 1 => Ok(*value as u64),
        Some(value) => Err(format!("general.alignment is {value:?}, not a power of two up to 2^20")),
    }
}

/// Every tensor is aligned, ends inside the file and shares no byte with another.
fn check_extents(
    tensors: &BTreeMap<String, TensorInfo>,
    alignment: u64,
    data_offset: u64,
    file_bytes: u64,
) -> Result<(), Reason> {
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, tensor)| tensor.offset);
    let mut free_from = 0;
    for (name, tensor) in by_offset {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(format!("tensor {name}: offset {} is not a multiple of {alignment}", tensor.offset));
        }
        if tensor.offset < free_from {
            return Err(format!("tensor {name}: offset {} lies inside another tensor", tensor.offset));
        }
        let end = tensor.offset.checked_add(tensor.bytes);
        let end_in_file = end.and_then(|end| end.checked_add(data_offset)).filter(|&end| end <= file_bytes);
        let (Some(end), Some(_)) = (end, end_in_file) else {
            return Err(format!(
                "tensor {name} ({} bytes at {data_offset} + {}) ends beyond the file's {file_bytes} bytes; \
                 the file was cut short, fetch it again",
                tensor.bytes, tensor.offset
            ));
        };
        free_from = end;
    }
    Ok(())
}

/// A cursor that never passes the end of the file.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    array_elements_left: u64,
}

impl<'a> Reader<'a> {
    fn version(&mut self) -> Result<u32, Reason> {
        if self.take(4, "the magic number")? != b"GGUF" {
            return Err("it does not begin with GGUF".to_owned());
        }
        match self.u32("the version")? {
            version @ (2 | 3) => Ok(version),
            1 => Err("GGUF version 1 is not read; convert it with a current tool".to_owned()),
            version if version.swap_bytes() <= 3 => {
                Err("it is big endian; convert it to little endian (gguf_convert_endian.py)".to_owned())
            }
            version => Err(format!("GGUF version {version} is not known; versions 2 and 3 are")),
        }
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata, Reason> {
        let mut metadata = BTreeMap::new();
        for index in 0..count {
            let key = self.name(&format!("metadata key {index}"))?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key)?;
            match metadata.entry(key) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(entry) => return Err(format!("key {} appears twice", entry.key())),
            };
        }
        Ok(Metadata(metadata))
    }

    fn value(&mut self, kind: u32, what: &str) -> Result<Value, Reason> {
        Ok(match Kind::from_id(kind) {
            Some(Kind::Bool) => Value::Bool(self.bool(what)?),
            Some(Kind::String) => Value::String(self.text(what)?),
            Some(Kind::F32) => Value::Float(f64::from(f32::from_le_bytes(self.array(what)?))),
            Some(Kind::F64) => Value::Float(f64::from_le_bytes(self.array(what)?)),
            Some(Kind::Int(bytes, signed)) => Value::Int(self.int(bytes, signed, what)?),
            Some(Kind::Array) => self.values(what)?,
            None => return Err(self.at_byte(what, &format!("unknown value type {kind}"))),
        })
    }

    fn values(&mut self, what: &str) -> Result<Value, Reason> {
        let kind_id = self.u32(what)?;
        let kind = Kind::from_id(kind_id);
        let Some(bytes_min) = kind.and_then(Kind::bytes_min) else {
            return Err(self.at_byte(what, &format!("an array of type {kind_id} (nested or unknown) is not read")));
        };
        let length = self.u64(what)?;
        if length > self.remaining() / bytes_min || length > self.array_elements_left {
            return Err(self.at_byte(what, &format!("an array of {length} elements does not fit the file")));
        }
        self.array_elements_left -= length;
        Ok(match kind.expect("its size is known") {
            Kind::Bool => Value::Bools((0..length).map(|_| self.bool(what)).collect::<Result<_, _>>()?),
            Kind::String => Value::Strings((0..length).map(|_| self.borrowed_text(what)).collect::<Result<_, _>>()?),
            Kind::F32 => Value::Floats(self.numbers(length, what, f32::from_le_bytes)?),
            Kind::F64 => Value::Floats(self.numbers(length, what, |bytes| f64::from_le_bytes(bytes) as f32)?),
            // What vocabularies are full of.
            Kind::Int(4, true) => Value::Ints(self.numbers(length, what, |bytes| i32::from_le_bytes(bytes).into())?),
            Kind::Int(bytes, signed) => {
                Value::Ints((0..length).map(|_| self.int(bytes, signed, what)).collect::<Result<_, _>>()?)
            }
            Kind::Array => unreachable!("an array has no size of its own"),
        })
    }

    /// An array of numbers of `N` bytes.
    fn numbers<T, const N: usize>(
        &mut self,
        length: u64,
        what: &str,
        number: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Reason> {
        let bytes = self.take(length * N as u64, what)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect())
    }

    fn tensors(&mut self, count: u64) -> Result<BTreeMap<String, TensorInfo>, Reason> {
        let mut tensors = BTreeMap::new();
        for index in 0..count {
            let name = self.name(&format!("name of tensor {index}"))?;
            let tensor = self.tensor(&format!("tensor {name}"))?;
            match tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(tensor),
                Entry::Occupied(entry) => return Err(format!("tensor {} appears twice", entry.key())),
            };
        }
        Ok(tensors)
    }

    fn tensor(&mut self, what: &str) -> Result<TensorInfo, Reason> {
        let dim_count = self.u32(what)?;
        if !(1..=DIMS_MAX).contains(&dim_count) {
            return Err(self.at_byte(what, &format!("{dim_count} dimensions, expected 1 to {DIMS_MAX}")));
        }
        let mut dims = Vec::with_capacity(dim_count as usize);
        for _ in 0..dim_count {
            dims.push(self.u64(what)?);
        }
        let type_id = self.u32(what)?;
        let Some(tensor_type) = TensorType::from_id(type_id) else {
            return Err(self.at_byte(what, &format!("unknown tensor type {type_id}")));
        };
        let offset = self.u64(what)?;
        let elements = dims.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
        let bytes =
            elements.and_then(|elements| (elements / tensor_type.block_size).checked_mul(tensor_type.block_bytes));
        let Some(bytes) = bytes.filter(|&bytes| bytes > 0 && dims[0].is_multiple_of(tensor_type.block_size)) else {
            return Err(self.at_byte(what, &format!("shape {dims:?} is impossible for type {}", tensor_type.name)));
        };
        // Each dimension is at most the number of elements, which was just counted in 64 bits; `bytes` bounds it by the
        // file's length once the extents are checked.
        let dims = dims.iter().rev().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>();
        let dims = dims.map_err(|_| self.at_byte(what, "a dimension exceeds this machine's address space"))?;
        Ok(TensorInfo { tensor_type, dims, offset, bytes })
    }

    /// A count of entries of at least `bytes_min` bytes each.
    fn count(&mut self, what: &str, bytes_min: u64) -> Result<u64, Reason> {
        let count = self.u64(what)?;
        if count > self.remaining() / bytes_min || count > ENTRIES_MAX {
            return Err(self.at_byte("header", &format!("{count} {what} do not fit the file")));
        }
        Ok(count)
    }

    /// A string that names something: not empty, and valid UTF-8.
    fn name(&mut self, what: &str) -> Result<String, Reason> {
        match std::str::from_utf8(self.string_bytes(what)?) {
            Ok("") => Err(self.at_byte(what, "it is empty")),
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(self.at_byte(what, "it is not UTF-8")),
        }
    }

    /// A string value. Some published files end strings with zeros, or hold pieces of UTF-8 in their vocabulary.
    fn text(&mut self, what: &str) -> Result<String, Reason> {
        Ok(self.borrowed_text(what)?.into_owned())
    }

    fn borrowed_text(&mut self, what: &str) -> Result<Cow<'a, str>, Reason> {
        let mut bytes = self.string_bytes(what)?;
        while let [rest @ .., 0] = bytes {
            bytes = rest;
        }
        // Quicker than the lossy reading, which is seldom needed.
        Ok(str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed))
    }

    fn string_bytes(&mut self, what: &str) -> Result<&'a [u8], Reason> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    fn bool(&mut self, what: &str) -> Result<bool, Reason> {
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.at_byte(what, &format!("{other} is no truth value"))),
        }
    }

    fn int(&mut self, bytes: usize, signed: bool, what: &str) -> Result<i64, Reason> {
        let low = self.take(bytes as u64, what)?;
        let fill = if signed && low[bytes - 1] >= 0x80 { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..bytes].copy_from_slice(low);
        let value = i64::from_le_bytes(wide);
        if !signed && value < 0 {
            return Err(self.at_byte(what, "a number beyond 2^63 is not read"));
        }
        Ok(value)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Reason> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Reason> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Reason> {
        Ok(self.take(N as u64, what)?.try_into().expect("N bytes were taken"))
    }

    fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8], Reason> {
        if length > self.remaining() {
            let left = self.remaining();
            return Err(self.at_byte(what, &format!("{length} bytes are announced where {left} are left")));
        }
        let start = self.at;
        self.at += length as usize;
        Ok(&self.file[start..self.at])
    }

    fn remaining(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    fn at_byte(&self, what: &str, problem: &str) -> Reason {
        format!("{what}: {problem} (near byte {})", self.at)
    }
}

/// The kinds of metadata values.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    /// Bytes, and whether it is signed.
    Int(usize, bool),
    F32,
    F64,
    String,
    Array,
}

impl Kind {
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::Int(1, false),
            1 => Self::Int(1, true),
            2 => Self::Int(2, false),
            3 => Self::Int(2, true),
            4 => Self::Int(4, false),
            5 => Self::Int(4, true),
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::Int(8, false),
            11 => Self::Int(8, true),
            12 => Self::F64,
            _ => return None,
        })
    }

    /// The least an array element of this kind takes; `None` for arrays, which do not nest.
    fn bytes_min(self) -> Option<u64> {
        match self {
            Self::Bool => Some(1),
            Self::Int(bytes, _) => Some(bytes as u64),
            Self::F32 => Some(4),
            Self::F64 | Self::String => Some(8),
            Self::Array => None,
        }
    }
}
