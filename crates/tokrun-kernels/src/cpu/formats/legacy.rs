//! Blocks of 32 columns with half-precision scales: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0. As large as in the file.

use super::planes::{Bits, Nibbles, Whole};
use super::{Codes, FileFormat, Format, GROUPS, Halfs, Scales, Spread, plain};
use crate::codes::{fifth_bits, join, nibbles, word};
use crate::cpu::simd::Simd;

/// `scale * (code - 8)`.
pub(in crate::cpu) struct Q4_0;
/// `scale * code + minimum`.
pub(in crate::cpu) struct Q4_1;
/// `scale * (code - 16)`.
pub(in crate::cpu) struct Q5_0;
/// `scale * code + minimum`.
pub(in crate::cpu) struct Q5_1;
/// `scale * (code - 128)`.
pub(in crate::cpu) struct Q8_0;

/// Codes of five bits.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct FiveBits {
    low: Nibbles,
    high: Bits,
}

impl Codes for FiveBits {
    #[inline(always)]
    fn get<S: Simd>(&self, simd: S, _: usize, group: usize) -> S::Bytes {
        simd.or(self.low.get(simd, 0, group), self.high.get::<S, 4>(simd, group))
    }
}

impl FiveBits {
    #[inline(always)]
    pub(super) fn put(&mut self, row: usize, codes: &[u32; GROUPS]) {
        self.low.put(row, codes);
        self.high.put::<4>(row, codes);
    }
}

/// A scale and a minimum a row.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct ScaleAndMin {
    scale: Halfs,
    min: Halfs,
}

impl Scales for ScaleAndMin {
    const MINS: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, _: usize) -> [S::F32; 2] {
        [self.scale.get(simd); 2]
    }

    #[inline(always)]
    fn mins<S: Simd>(&self, simd: S, _: usize) -> [S::F32; 2] {
        [self.min.get(simd); 2]
    }
}

impl ScaleAndMin {
    /// From the four bytes at the start of a block.
    #[inline(always)]
    fn put(&mut self, row: usize, file: &[u8]) {
        self.scale.put(row, file, 0);
        self.min.put(row, file, 2);
    }
}

plain!(FiveBits ScaleAndMin);

impl Format for Q4_0 {
    type Codes = Nibbles;
    type Scales = Halfs;
    const ZERO_BITS: Option<u32> = Some(3);
}

impl FileFormat for Q4_0 {
    type Spread = Spread<1, false, false, 3>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Nibbles, scales: &mut Halfs) {
        scales.put(row, file, 0);
        codes.put(row, &nibbles(&file[2..]));
    }
}

impl Format for Q4_1 {
    type Codes = Nibbles;
    type Scales = ScaleAndMin;
    const ZERO_BITS: Option<u32> = None;
}

impl FileFormat for Q4_1 {
    type Spread = Spread<2, false, true, 0>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Nibbles, scales: &mut ScaleAndMin) {
        scales.put(row, file);
        codes.put(row, &nibbles(&file[4..]));
    }
}

impl Format for Q5_0 {
    type Codes = FiveBits;
    type Scales = Halfs;
    const ZERO_BITS: Option<u32> = Some(4);
}

impl FileFormat for Q5_0 {
    type Spread = Spread<1, false, false, 4>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut FiveBits, scales: &mut Halfs) {
        scales.put(row, file, 0);
        codes.put(row, &join::<4>(nibbles(&file[6..]), fifth_bits(word(file, 2))));
    }
}

impl Format for Q5_1 {
    type Codes = FiveBits;
    type Scales = ScaleAndMin;
    const ZERO_BITS: Option<u32> = None;
}

impl FileFormat for Q5_1 {
    type Spread = Spread<2, false, true, 0>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut FiveBits, scales: &mut ScaleAndMin) {
        scales.put(row, file);
        codes.put(row, &join::<4>(nibbles(&file[8..]), fifth_bits(word(file, 4))));
    }
}

impl Format for Q8_0 {
    type Codes = Whole;
    type Scales = Halfs;
    const ZERO_BITS: Option<u32> = Some(7);
}

impl FileFormat for Q8_0 {
    type Spread = Spread<1, false, false, 7>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Whole, scales: &mut Halfs) {
        scales.put(row, file, 0);
        let mut offset = [0; GROUPS];
        for (i, offset) in offset.iter_mut().enumerate() {
            *offset = word(file, 2 + 4 * i) ^ 0x8080_8080;
        }
        codes.put(row, &offset);
    }
}
