//! How quantised weights lie in memory, one small type for each storage type of model files.
//!
//! A *tile* is 16 rows of a matrix: lane = row, so nothing is ever summed across lanes. Its columns come in *units*, the
//! blocks of the file's type: 32 columns, or 256 for K-quants, which hold eight *blocks* of 32 columns. A block has eight
//! *groups* of four columns, a byte vector each. Codes are unpacked to unsigned bytes, `2^ZERO_BITS` larger than the weight
//! where weights have a sign; scales stay as the file has them. A tile takes no more than 4 % above its size in the file.

mod k_quants;
mod legacy;
mod planes;
mod spread;
mod tables;

pub(super) use k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(super) use legacy::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(super) use planes::Whole;
pub(super) use spread::{FromVectors, Spread, SpreadTile, spread_bytes};
pub(super) use tables::{Iq4Nl, Iq4Xs, Mxfp4};

use super::memory::Plain;
use super::simd::{LANES, Simd};
pub(super) use crate::codes::GROUPS;

/// Columns of a block.
pub(super) const BLOCK: usize = 32;

/// One packed form.
///
/// With `dot[h]` the integer products of half `h` of a block's columns, a block adds
/// `(dot[0] scale[0] + dot[1] scale[1]) x_scale + min[0] x_sum[0] + min[1] x_sum[1]` to an output. Without `HALVES`, scale,
/// minimum and product are of the whole block: those at 0. Without `MINS` there are no minimums.
pub(super) trait Format: Send + Sync + 'static {
    /// Codes of a unit of 16 rows.
    type Codes: Codes;
    /// Scales of a unit of 16 rows.
    type Scales: Scales;
    /// Blocks of 32 columns a unit.
    const BLOCKS: usize = Self::Codes::BLOCKS;
    /// Whether each 16 columns have a scale of their own.
    const HALVES: bool = Self::Scales::HALVES;
    /// Whether there are minimums.
    const MINS: bool = Self::Scales::MINS;
    /// Codes are so many powers of two larger than weights; none: they are what the scale multiplies.
    const ZERO_BITS: Option<u32>;
    /// Whether a tile comes from memory, and is worth asking for ahead of use.
    const COLD: bool = true;
}

/// A form that a storage type of model files is packed in.
pub(super) trait FileFormat: Format {
    /// What is multiplied with many rows.
    type Spread: Format<Codes = Whole, Scales: FromVectors>;

    /// Puts one block of the file, of row `row` of the tile, where it belongs.
    fn pack(file: &[u8], row: usize, codes: &mut Self::Codes, scales: &mut Self::Scales);
}

/// How codes lie.
pub(super) trait Codes: Plain {
    /// Blocks of 32 columns.
    const BLOCKS: usize = 1;

    /// The codes of columns `4 group..` of `block`, unsigned.
    fn get<S: Simd>(&self, simd: S, block: usize, group: usize) -> S::Bytes;
}

/// Superblocks.
impl<C: Codes, const BLOCKS: usize> Codes for [C; BLOCKS] {
    const BLOCKS: usize = BLOCKS;

    #[inline(always)]
    fn get<S: Simd>(&self, simd: S, block: usize, group: usize) -> S::Bytes {
        self[block].get(simd, 0, group)
    }
}

/// How scales lie.
pub(super) trait Scales: Plain {
    /// See [`Format`].
    const HALVES: bool = false;
    /// See [`Format`].
    const MINS: bool = false;

    /// Scales of a block.
    fn scales<S: Simd>(&self, simd: S, block: usize) -> [S::F32; 2];
    /// Minimums of a block.
    #[inline(always)]
    fn mins<S: Simd>(&self, simd: S, _: usize) -> [S::F32; 2] {
        [simd.splat(0.0); 2]
    }
}

/// Calls `$body` with `$F` standing for the format of a quantised weight type.
macro_rules! with_format {
    ($weight_type:expr, $F:ident => $body:expr, float => $float:expr) => {{
        use $crate::WeightType;
        use $crate::cpu::formats;
        macro_rules! arm {
            ($name:ident) => {{
                type $F = formats::$name;
                $body
            }};
        }
        match $weight_type {
            WeightType::Q4_0 => arm!(Q4_0),
            WeightType::Q4_1 => arm!(Q4_1),
            WeightType::Q5_0 => arm!(Q5_0),
            WeightType::Q5_1 => arm!(Q5_1),
            WeightType::Q8_0 => arm!(Q8_0),
            WeightType::Q2_K => arm!(Q2K),
            WeightType::Q3_K => arm!(Q3K),
            WeightType::Q4_K => arm!(Q4K),
            WeightType::Q5_K => arm!(Q5K),
            WeightType::Q6_K => arm!(Q6K),
            WeightType::IQ4_NL => arm!(Iq4Nl),
            WeightType::IQ4_XS => arm!(Iq4Xs),
            WeightType::MXFP4 => arm!(Mxfp4),
            WeightType::F32 | WeightType::F16 | WeightType::BF16 | WeightType::FP8 => $float,
        }
    }};
}
pub(super) use with_format;

/// Bytes of a unit of 16 rows.
pub(super) const fn unit_bytes<F: Format>() -> usize {
    size_of::<F::Codes>() + size_of::<F::Scales>()
}

/// The 32 columns of one block of row `row` of a tile, as numbers.
#[inline(always)]
pub(super) fn row_values<S: Simd, F: Format>(
    simd: S,
    (codes, scales): (&F::Codes, &F::Scales),
    block: usize,
    row: usize,
) -> [f32; BLOCK] {
    let scales_of_row = lanes_of(simd, scales.scales(simd, block), row);
    let mins_of_row = lanes_of(simd, scales.mins(simd, block), row);
    let zero = F::ZERO_BITS.map_or(0, |bits| 1 << bits);
    let mut values = [0.0; BLOCK];
    for (group, values) in values.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let half = if F::HALVES { group / 4 } else { 0 };
        let mut bytes = [0; 4 * LANES];
        simd.store_bytes(codes.get(simd, block, group), &mut bytes);
        for (value, code) in values.iter_mut().zip(&bytes[4 * row..]) {
            let product = scales_of_row[half] * (i32::from(*code) - zero) as f32;
            *value = if F::MINS { product + mins_of_row[half] } else { product };
        }
    }
    values
}

/// Lane `row` of each.
#[inline(always)]
fn lanes_of<S: Simd>(simd: S, vectors: [S::F32; 2], row: usize) -> [f32; 2] {
    let mut lanes = [[0.0; LANES]; 2];
    for (to, from) in lanes.iter_mut().zip(vectors) {
        simd.store(from, to);
    }
    [lanes[0][row], lanes[1][row]]
}

/// 16 scales of 16 rows, half precision.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Halfs([u16; LANES]);

impl Halfs {
    #[inline(always)]
    fn get<S: Simd>(&self, simd: S) -> S::F32 {
        simd.load_f16(&self.0)
    }

    /// Takes the two bytes at `at` of `file`.
    #[inline(always)]
    fn put(&mut self, row: usize, file: &[u8], at: usize) {
        self.0[row] = u16::from_le_bytes([file[at], file[at + 1]]);
    }
}

/// Says that types made of bytes alone, without padding, may be read from any bytes.
macro_rules! plain {
    ($($type:ty)*) => {$(
        // SAFETY: it is `repr(C)` and made of arrays of integers, or of such types, alone.
        #[expect(unsafe_code, reason = "what the memory holds cannot be checked")]
        unsafe impl $crate::cpu::memory::Plain for $type {}
    )*};
}
use plain;
plain!(Halfs);

/// A scale a row.
impl Scales for Halfs {
    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, _: usize) -> [S::F32; 2] {
        [self.get(simd); 2]
    }
}
