//! Safetensors files: where each tensor of a model lies, checked against the files before anything is read.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::ModelError;
use crate::mmap::MappedFile;

#[cfg(test)]
mod tests;

/// One tensor: what it is and where its bytes are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorInfo {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    shard: usize,
    start: usize,
    end: usize,
}

impl TensorInfo {
    /// Length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        (self.end - self.start) as u64
    }

    /// How many numbers it holds.
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

/// The weights of one model, in one file or several, memory-mapped.
#[derive(Debug)]
pub(crate) struct Weights {
    shards: Vec<MappedFile>,
    tensors: BTreeMap<String, TensorInfo>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Maps the weights in `folder`: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut weights = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        let (single, index_path) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
        if single.is_file() || !index_path.is_file() {
            weights.add_shard(&single)?;
            return Ok(weights);
        }
        let index = read_index(&index_path)?;
        let mut files: Vec<_> = index.weight_map.values().collect();
        files.sort_unstable();
        files.dedup();
        for file in files {
            if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
                return Err(malformed(&index_path, format!("it names {file:?}, which is no file beside it")));
            }
            weights.add_shard(&folder.join(file))?;
        }
        match index.weight_map.keys().find(|name| !weights.tensors.contains_key(*name)) {
            Some(name) => Err(malformed(&index_path, format!("it lists tensor {name}, which no shard holds"))),
            None => Ok(weights),
        }
    }

    /// Every tensor, by name.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The bytes of a tensor of this model, little endian.
    pub(crate) fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.shards[tensor.shard][tensor.start..tensor.end]
    }

    /// The file that a tensor of this model lies in, and its first byte there.
    pub(crate) fn place(&self, tensor: &TensorInfo) -> (&MappedFile, u64) {
        (&self.shards[tensor.shard], tensor.start as u64)
    }

    fn add_shard(&mut self, path: &Path) -> Result<(), ModelError> {
        let file = MappedFile::open(path)?;
        // Checks that the header fits, parses, and that the tensors cover the rest of the file without gap or overlap.
        let (header_bytes, header) = SafeTensors::read_metadata(&file)
            .map_err(|error| malformed(path, format!("{error}; was the download cut short?")))?;
        let data_start = 8 + header_bytes;
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let tensor = TensorInfo {
                dtype: info.dtype,
                shape: info.shape.clone(),
                shard: self.shards.len(),
                start: data_start + start,
                end: data_start + end,
            };
            match self.tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(tensor),
                Entry::Occupied(entry) => {
                    return Err(malformed(path, format!("tensor {} is also in another shard", entry.key())));
                }
            };
        }
        self.shards.push(file);
        Ok(())
    }
}

fn read_index(path: &Path) -> Result<Index, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|error| malformed(path, format!("it is no index of shards: {error}")))
}

fn malformed(path: &Path, reason: String) -> ModelError {
    ModelError::Malformed { path: PathBuf::from(path), reason }
}
