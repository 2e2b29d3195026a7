//! A GGUF file as if its weights were float32.
//!
//! candle rounds activations to 8 bits before it multiplies them with quantised weights, and on x86-64 it does so one
//! number at a time unless it was compiled for the very machine. With the weights widened once, nothing is rounded, and
//! a small model needs a third of the time; it needs 4 bytes a weight, so large ones stay as they are.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Cursor, Read, Seek, SeekFrom};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo};
use candle_core::{Device, Storage, Tensor};

/// What candle reads tensors from.
pub(super) trait Source: Read + Seek {}

impl<T: Read + Seek> Source for T {}

/// Reads the tensors of a file, each widened when it is first touched.
pub(super) struct Widened<'a> {
    stored: Content,
    file: Cursor<&'a [u8]>,
    /// Where each tensor begins here, and its name there.
    names: BTreeMap<u64, String>,
    bytes: u64,
    at: u64,
    /// The tensor that is being read, and where it begins.
    current: Option<(u64, Tensor)>,
}

impl<'a> Widened<'a> {
    /// The tensors that `stored` describes in `file`, and the description of them as they are read from here.
    pub(super) fn new(stored: Content, file: &'a [u8]) -> (Content, Self) {
        let mut tensors: Vec<_> = stored.tensor_infos.iter().collect();
        tensors.sort_by_key(|(_, tensor)| tensor.offset);
        let (mut names, mut infos, mut bytes) = (BTreeMap::new(), HashMap::new(), 0);
        for (name, tensor) in tensors {
            names.insert(bytes, name.clone());
            let shape = tensor.shape.clone();
            infos.insert(name.clone(), TensorInfo { ggml_dtype: GgmlDType::F32, shape, offset: bytes });
            bytes += 4 * tensor.shape.elem_count() as u64;
        }
        let content = Content {
            magic: stored.magic,
            metadata: stored.metadata.clone(),
            tensor_infos: infos,
            tensor_data_offset: 0,
        };
        (content, Self { stored, file: Cursor::new(file), names, bytes, at: 0, current: None })
    }

    /// The tensor that begins at `start`, in f32.
    fn widen(&mut self, start: u64, name: &str) -> candle_core::Result<Tensor> {
        match self.current.take() {
            Some((current, tensor)) if current == start => Ok(tensor),
            _ => self.stored.tensor(&mut self.file, name, &Device::Cpu)?.dequantize(&Device::Cpu),
        }
    }
}

impl Read for Widened<'_> {
    /// Reads whole values; candle asks for whole tensors.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((&start, name)) = self.names.range(..=self.at).next_back() else { return Ok(0) };
        let first = self.at - start;
        if !first.is_multiple_of(4) || buffer.len() < 4 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "half of a value was asked for"));
        }
        let tensor = self.widen(start, &name.clone()).map_err(io::Error::other)?;
        let count = copy(&tensor, (first / 4) as usize, buffer).map_err(io::Error::other)?;
        self.at += count as u64;
        self.current = Some((start, tensor));
        Ok(count)
    }
}

/// Copies the values of `tensor` from `first` on to `buffer`, and says how many bytes that were.
fn copy(tensor: &Tensor, first: usize, buffer: &mut [u8]) -> candle_core::Result<usize> {
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("weights are not in main memory") };
    let rest = storage.as_slice::<f32>()?.get(first..).unwrap_or(&[]);
    for (bytes, value) in buffer.chunks_exact_mut(4).zip(rest) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    Ok(4 * rest.len().min(buffer.len() / 4))
}

impl Seek for Widened<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a seek before the start"))?;
        Ok(self.at)
    }
}
