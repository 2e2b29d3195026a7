//! Superblocks of 256 columns whose scales are small integers times a half-precision number: Q2_K to Q6_K.
//!
//! Sub-scales are unpacked to a byte each. Products of a half and a small integer are exact in f32, so nothing is lost
//! by multiplying them first.

use super::legacy::FiveBits;
use super::planes::{Bits, Nibbles, Pairs};
use super::{Codes, FileFormat, Format, Halfs, Scales, Spread, plain};
use crate::codes::{bits, join, nibbles_of_block, pairs_of_block};
use crate::cpu::simd::{LANES, Simd};
use crate::dequantise::{k_scales, q3_k_scales};

/// `scale * code - minimum`, a scale and a minimum for each 16 columns.
pub(in crate::cpu) struct Q2K;
/// `scale * (code - 4)`, a scale for each 16 columns.
pub(in crate::cpu) struct Q3K;
/// `scale * code - minimum`.
pub(in crate::cpu) struct Q4K;
/// `scale * code - minimum`.
pub(in crate::cpu) struct Q5K;
/// `scale * (code - 32)`, a scale for each 16 columns.
pub(in crate::cpu) struct Q6K;

/// Blocks of 32 columns a superblock.
const BLOCKS: usize = 8;

/// Codes of three bits.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct ThreeBits {
    low: Pairs,
    high: Bits,
}

/// Codes of six bits.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct SixBits {
    low: Nibbles,
    high: Pairs,
}

/// Scales and minimums of each 32 columns.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct BlockScales {
    scale: Halfs,
    min: Halfs,
    scales: [[u8; LANES]; BLOCKS],
    mins: [[u8; LANES]; BLOCKS],
}

/// Scales of each 16 columns.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct HalfScales {
    scale: Halfs,
    scales: [[[i8; LANES]; 2]; BLOCKS],
}

/// Scales (low nibbles) and minimums (high nibbles) of each 16 columns.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct NibbleScales {
    scale: Halfs,
    min: Halfs,
    packed: [[[u8; LANES]; 2]; BLOCKS],
}

plain!(ThreeBits SixBits BlockScales HalfScales NibbleScales);

impl Codes for ThreeBits {
    #[inline(always)]
    fn get<S: Simd>(&self, simd: S, _: usize, group: usize) -> S::Bytes {
        simd.or(self.low.get(simd, 0, group), self.high.get::<S, 2>(simd, group))
    }
}

impl Codes for SixBits {
    #[inline(always)]
    fn get<S: Simd>(&self, simd: S, _: usize, group: usize) -> S::Bytes {
        simd.or(self.low.get(simd, 0, group), simd.shift_left::<4>(self.high.get(simd, 0, group)))
    }
}

impl Scales for BlockScales {
    const MINS: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, block: usize) -> [S::F32; 2] {
        [simd.mul(self.scale.get(simd), simd.load_u8(&self.scales[block])); 2]
    }

    #[inline(always)]
    fn mins<S: Simd>(&self, simd: S, block: usize) -> [S::F32; 2] {
        let min = simd.sub(simd.splat(0.0), self.min.get(simd));
        [simd.mul(min, simd.load_u8(&self.mins[block])); 2]
    }
}

impl BlockScales {
    /// From the 16 bytes at the start of a superblock.
    #[inline(always)]
    fn put(&mut self, row: usize, file: &[u8]) {
        self.scale.put(row, file, 0);
        self.min.put(row, file, 2);
        let (scales, mins) = k_scales(&file[4..16]);
        for block in 0..BLOCKS {
            self.scales[block][row] = scales[block];
            self.mins[block][row] = mins[block];
        }
    }
}

impl Scales for HalfScales {
    const HALVES: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, block: usize) -> [S::F32; 2] {
        let scale = self.scale.get(simd);
        let [first, second] = &self.scales[block];
        [simd.mul(scale, simd.load_i8(first)), simd.mul(scale, simd.load_i8(second))]
    }
}

impl HalfScales {
    #[inline(always)]
    fn put(&mut self, row: usize, file: &[u8], scale_at: usize, scales: [i8; 2 * BLOCKS]) {
        self.scale.put(row, file, scale_at);
        for (to, from) in self.scales.as_flattened_mut().iter_mut().zip(scales) {
            to[row] = from;
        }
    }
}

impl Scales for NibbleScales {
    const HALVES: bool = true;
    const MINS: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, block: usize) -> [S::F32; 2] {
        let scale = self.scale.get(simd);
        let [first, second] = &self.packed[block];
        let ([first, _], [second, _]) = (Self::unpack(simd, first), Self::unpack(simd, second));
        [simd.mul(scale, first), simd.mul(scale, second)]
    }

    #[inline(always)]
    fn mins<S: Simd>(&self, simd: S, block: usize) -> [S::F32; 2] {
        let min = simd.sub(simd.splat(0.0), self.min.get(simd));
        let [first, second] = &self.packed[block];
        let ([_, first], [_, second]) = (Self::unpack(simd, first), Self::unpack(simd, second));
        [simd.mul(min, first), simd.mul(min, second)]
    }
}

impl NibbleScales {
    /// The low and the high nibbles of 16 bytes.
    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &[u8; LANES]) -> [S::F32; 2] {
        let both = simd.load_u8(packed);
        // `high + (low - 7.5) / 16` is nearest to `high`.
        let high = simd.round(simd.fma(both, simd.splat(1.0 / 16.0), simd.splat(-7.5 / 16.0)));
        [simd.fma(high, simd.splat(-16.0), both), high]
    }
}

impl Format for Q2K {
    type Codes = [Pairs; BLOCKS];
    type Scales = NibbleScales;
    const ZERO_BITS: Option<u32> = None;
}

impl FileFormat for Q2K {
    type Spread = Spread<4, true, true, 0>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Self::Codes, scales: &mut NibbleScales) {
        scales.scale.put(row, file, 80);
        scales.min.put(row, file, 82);
        for (to, from) in scales.packed.as_flattened_mut().iter_mut().zip(file) {
            to[row] = *from;
        }
        for (block, codes) in codes.iter_mut().enumerate() {
            codes.put(row, &pairs_of_block(&file[16..80], block));
        }
    }
}

impl Format for Q3K {
    type Codes = [ThreeBits; BLOCKS];
    type Scales = HalfScales;
    const ZERO_BITS: Option<u32> = Some(2);
}

impl FileFormat for Q3K {
    type Spread = Spread<2, true, false, 2>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Self::Codes, scales: &mut HalfScales) {
        scales.put(row, file, 108, q3_k_scales(&file[96..108]));
        for (block, codes) in codes.iter_mut().enumerate() {
            let low = pairs_of_block(&file[32..96], block);
            codes.low.put(row, &low);
            codes.high.put::<2>(row, &join::<2>(low, bits(file, block, 0x0101_0101)));
        }
    }
}

impl Format for Q4K {
    type Codes = [Nibbles; BLOCKS];
    type Scales = BlockScales;
    const ZERO_BITS: Option<u32> = None;
}

impl FileFormat for Q4K {
    type Spread = Spread<2, false, true, 0>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Self::Codes, scales: &mut BlockScales) {
        scales.put(row, file);
        for (block, codes) in codes.iter_mut().enumerate() {
            codes.put(row, &nibbles_of_block(&file[16..], block));
        }
    }
}

impl Format for Q5K {
    type Codes = [FiveBits; BLOCKS];
    type Scales = BlockScales;
    const ZERO_BITS: Option<u32> = None;
}

impl FileFormat for Q5K {
    type Spread = Spread<2, false, true, 0>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Self::Codes, scales: &mut BlockScales) {
        scales.put(row, file);
        for (block, codes) in codes.iter_mut().enumerate() {
            let high = bits(&file[16..48], block, 0x0101_0101);
            codes.put(row, &join::<4>(nibbles_of_block(&file[48..], block), high));
        }
    }
}

impl Format for Q6K {
    type Codes = [SixBits; BLOCKS];
    type Scales = HalfScales;
    const ZERO_BITS: Option<u32> = Some(5);
}

impl FileFormat for Q6K {
    type Spread = Spread<2, true, false, 5>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Self::Codes, scales: &mut HalfScales) {
        let mut sub_scales = [0; 2 * BLOCKS];
        for (to, from) in sub_scales.iter_mut().zip(&file[192..208]) {
            *to = from.cast_signed();
        }
        scales.put(row, file, 208, sub_scales);
        for (block, codes) in codes.iter_mut().enumerate() {
            // 128 columns share 64 bytes: blocks 0 and 1 their low nibbles, 2 and 3 their high ones.
            let bytes = &file[block / 4 * 64 + block % 2 * 32..];
            codes.low.put(row, &bits(bytes, block % 4 / 2 * 4, 0x0f0f_0f0f));
            codes.high.put(row, &pairs_of_block(&file[128..192], block));
        }
    }
}
