//! How each weight type lies on the device: what kernels/formats.cuh reads.
//!
//! A row is cut into chunks (32 columns of quantised weights, 16 of 8-bit floats, 8 of 16-bit floats, 4 of f32), and what belongs to a chunk
//! into planes, so that the lanes of a warp read consecutive words of each. Codes stay as small as the file has them;
//! six-bit sub-scales become bytes.

use crate::WeightType;
use crate::codes::{bits, fifth_bits, join, nibbles, nibbles_of_block, pairs_of_block, word};
use crate::dequantise::{iq4_xs_scales, k_scales, q3_k_scales};

/// Columns of a block, which activations are encoded in and quantised weights are cut into.
pub(super) const BLOCK: usize = 32;
/// Chunks of a superblock of 256 columns.
const SUPER_CHUNKS: usize = 8;

/// Which form of the activations weights multiply with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Int8,
    BF16,
    F32,
}

/// The form for a type.
pub(super) const fn form(weight_type: WeightType) -> Form {
    match weight_type {
        WeightType::F32 => Form::F32,
        WeightType::F16 | WeightType::BF16 | WeightType::FP8 => Form::BF16,
        _ => Form::Int8,
    }
}

/// Planes of a matrix: codes, further bits of the codes, scales, what sub-scales are multiplied with.
pub(super) const PLANES: usize = 4;

/// The shape of a packed row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    weight_type: WeightType,
    /// Chunks a row.
    pub(super) chunks: usize,
    /// Bytes of a row in each plane.
    pub(super) row_bytes: [usize; PLANES],
}

impl Layout {
    /// Of rows of `columns` columns, whole blocks of the type.
    pub(super) fn new(weight_type: WeightType, columns: usize) -> Self {
        let chunks = columns.div_ceil(chunk_columns(weight_type));
        let [codes, high, scales, supers] = chunk_bytes(weight_type);
        let row_bytes = [chunks * codes, chunks * high, chunks * scales, chunks / SUPER_CHUNKS * supers];
        Self { weight_type, chunks, row_bytes }
    }

    /// Packs a row of the file; `planes` are zeroed and have a row each.
    pub(super) fn pack(&self, file: &[u8], planes: &mut [&mut [u8]; PLANES]) {
        let file_blocks = file.chunks_exact(self.weight_type.block_bytes());
        match self.weight_type {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => planes[0][..file.len()].copy_from_slice(file),
            WeightType::FP8 => {
                for (index, block) in file_blocks.enumerate() {
                    planes[0][128 * index..][..128].copy_from_slice(&block[4..]);
                    planes[3][4 * index..][..4].copy_from_slice(&block[..4]);
                }
            }
            _ if self.weight_type.block_size() == BLOCK => {
                for (chunk, block) in file_blocks.enumerate() {
                    self.pack_block(chunk, block, planes);
                }
            }
            _ => {
                for (index, block) in file_blocks.enumerate() {
                    self.pack_superblock(index, block, planes);
                }
            }
        }
    }

    /// A block of 32 columns with scales of its own.
    fn pack_block(&self, chunk: usize, file: &[u8], planes: &mut [&mut [u8]; PLANES]) {
        let (scale_bytes, groups) = match self.weight_type {
            WeightType::Q4_0 | WeightType::IQ4_NL => (2, nibbles(&file[2..])),
            WeightType::Q4_1 => (4, nibbles(&file[4..])),
            WeightType::Q5_0 => (2, join::<4>(nibbles(&file[6..]), fifth_bits(word(file, 2)))),
            WeightType::Q5_1 => (4, join::<4>(nibbles(&file[8..]), fifth_bits(word(file, 4)))),
            WeightType::Q8_0 => (2, std::array::from_fn(|group| word(file, 2 + 4 * group))),
            WeightType::MXFP4 => (1, nibbles(&file[1..])),
            other => unreachable!("{} has no blocks of 32 columns", other.name()),
        };
        self.put_codes(chunk, &groups, planes);
        planes[2][chunk * scale_bytes..][..scale_bytes].copy_from_slice(&file[..scale_bytes]);
    }

    /// A block of 256 columns: eight chunks with sub-scales of two bytes, and what those are multiplied with.
    fn pack_superblock(&self, index: usize, file: &[u8], planes: &mut [&mut [u8]; PLANES]) {
        let (supers, sub_scales) = super_scales(self.weight_type, file);
        planes[3][index * supers.len()..][..supers.len()].copy_from_slice(supers);
        for (block, scales) in sub_scales.into_iter().enumerate() {
            let chunk = index * SUPER_CHUNKS + block;
            self.put_codes(chunk, &super_codes(self.weight_type, file, block), planes);
            planes[2][2 * chunk..][..2].copy_from_slice(&scales);
        }
    }

    /// Where the codes of a chunk, eight groups of four columns, belong.
    fn put_codes(&self, chunk: usize, groups: &[u32; 8], planes: &mut [&mut [u8]; PLANES]) {
        let mut put =
            |plane: usize, at: usize, word: u32| planes[plane][at..at + 4].copy_from_slice(&word.to_le_bytes());
        match self.weight_type {
            WeightType::Q8_0 => {
                // First halves of all chunks of the row, then second halves.
                for (group, word) in groups.iter().enumerate() {
                    put(0, (group / 4 * self.chunks + chunk) * 16 + group % 4 * 4, *word);
                }
            }
            WeightType::IQ4_NL | WeightType::IQ4_XS | WeightType::MXFP4 => {
                for (i, pair) in groups.as_chunks::<2>().0.iter().enumerate() {
                    put(0, chunk * 16 + 4 * i, in_sequence(pair[0]) | in_sequence(pair[1]) << 16);
                }
            }
            WeightType::Q2_K | WeightType::Q3_K => {
                for (i, word) in pairs(groups, 0).into_iter().enumerate() {
                    put(0, chunk * 8 + 4 * i, word);
                }
            }
            _ => {
                for i in 0..4 {
                    put(0, chunk * 16 + 4 * i, (groups[i] & 0x0f0f_0f0f) | (groups[4 + i] & 0x0f0f_0f0f) << 4);
                }
            }
        }
        match self.weight_type {
            WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5_K => put(1, chunk * 4, single_bits(groups, 4)),
            WeightType::Q3_K => put(1, chunk * 4, single_bits(groups, 2)),
            WeightType::Q6_K => {
                for (i, word) in pairs(groups, 4).into_iter().enumerate() {
                    put(1, chunk * 8 + 4 * i, word);
                }
            }
            _ => {}
        }
    }
}

const fn chunk_columns(weight_type: WeightType) -> usize {
    match weight_type {
        WeightType::F32 => 4,
        WeightType::F16 | WeightType::BF16 => 8,
        WeightType::FP8 => 16,
        _ => BLOCK,
    }
}

/// Bytes of a chunk in each plane; of the last, of eight chunks.
const fn chunk_bytes(weight_type: WeightType) -> [usize; PLANES] {
    match weight_type {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => [16, 0, 0, 0],
        WeightType::Q4_0 | WeightType::IQ4_NL => [16, 0, 2, 0],
        WeightType::Q4_1 => [16, 0, 4, 0],
        WeightType::Q5_0 => [16, 4, 2, 0],
        WeightType::Q5_1 => [16, 4, 4, 0],
        WeightType::Q8_0 => [32, 0, 2, 0],
        WeightType::Q2_K => [8, 0, 2, 4],
        WeightType::Q3_K => [8, 4, 2, 2],
        WeightType::Q4_K => [16, 0, 2, 4],
        WeightType::Q5_K => [16, 4, 2, 4],
        WeightType::Q6_K => [16, 8, 2, 2],
        WeightType::IQ4_XS => [16, 0, 2, 2],
        WeightType::MXFP4 => [16, 0, 1, 0],
        WeightType::FP8 => [16, 0, 0, 4],
    }
}

/// Of a superblock: the bytes of its scale (and of the scale of its minimums), and the two bytes of each chunk.
fn super_scales(weight_type: WeightType, file: &[u8]) -> (&[u8], [[u8; 2]; SUPER_CHUNKS]) {
    match weight_type {
        WeightType::Q2_K => (&file[80..84], std::array::from_fn(|block| [file[2 * block], file[2 * block + 1]])),
        WeightType::Q3_K => {
            let scales = q3_k_scales(&file[96..108]).map(i8::cast_unsigned);
            (&file[108..110], std::array::from_fn(|block| [scales[2 * block], scales[2 * block + 1]]))
        }
        WeightType::Q4_K | WeightType::Q5_K => {
            let (scales, minimums) = k_scales(&file[4..16]);
            (&file[..4], std::array::from_fn(|block| [scales[block], minimums[block]]))
        }
        WeightType::Q6_K => {
            (&file[208..210], std::array::from_fn(|block| [file[192 + 2 * block], file[193 + 2 * block]]))
        }
        WeightType::IQ4_XS => (&file[..2], iq4_xs_scales(&file[2..8]).map(|scale| [scale.cast_unsigned(); 2])),
        other => unreachable!("{} has no superblocks", other.name()),
    }
}

/// The codes of a block of a superblock, eight groups of four columns.
fn super_codes(weight_type: WeightType, file: &[u8], block: usize) -> [u32; 8] {
    match weight_type {
        WeightType::Q2_K => pairs_of_block(&file[16..80], block),
        WeightType::Q3_K => join::<2>(pairs_of_block(&file[32..96], block), bits(file, block, 0x0101_0101)),
        WeightType::Q4_K => nibbles_of_block(&file[16..], block),
        WeightType::Q5_K => join::<4>(nibbles_of_block(&file[48..], block), bits(&file[16..48], block, 0x0101_0101)),
        WeightType::Q6_K => {
            // 128 columns share 64 bytes: blocks 0 and 1 their low nibbles, 2 and 3 their high ones.
            let low = bits(&file[block / 4 * 64 + block % 2 * 32..], block % 4 / 2 * 4, 0x0f0f_0f0f);
            join::<4>(low, pairs_of_block(&file[128..192], block))
        }
        WeightType::IQ4_XS => nibbles(&file[8 + 16 * block..]),
        other => unreachable!("{} has no superblocks", other.name()),
    }
}

/// Four nibbles in four bytes, next to each other.
fn in_sequence(group: u32) -> u32 {
    let [a, b, c, d] = group.to_le_bytes().map(u32::from);
    a | b << 4 | c << 8 | d << 12
}

/// Bits `at` and `at + 1` of each code: those of group `4 w + i` in bits `2 i` and `2 i + 1` of the bytes of word `w`.
fn pairs(groups: &[u32; 8], at: u32) -> [u32; 2] {
    std::array::from_fn(|word| (0..4).fold(0, |all, i| all | ((groups[4 * word + i] >> at) & 0x0303_0303) << (2 * i)))
}

/// Bit `at` of each code: that of group `i` in bit `i` of the bytes.
fn single_bits(groups: &[u32; 8], at: u32) -> u32 {
    groups.iter().enumerate().fold(0, |all, (i, group)| all | ((group >> at) & 0x0101_0101) << i)
}
