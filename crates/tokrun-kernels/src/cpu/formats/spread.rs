//! Tiles whose codes are bytes and whose scales are floats: what many rows are multiplied with. A tile is brought into that
//! form once for all of them, and stays in the cache meanwhile.

use super::super::memory::Plain;
use super::super::product::{UnitTile, cast_mut};
use super::super::simd::{Kernel, LANES, Simd};
use super::{Codes, FileFormat, Format, GROUPS, Scales, Whole, unit_bytes};

/// So many vectors of scales and minimums a block. Codes are `2^ZERO_BITS` larger than weights, unless that is 0.
pub(in crate::cpu) struct Spread<const VECTORS: usize, const HALVES: bool, const MINS: bool, const ZERO_BITS: u32>;

/// Scales, of both halves if they have their own, then minimums.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct Vectors<const VECTORS: usize, const HALVES: bool, const MINS: bool>([[f32; LANES]; VECTORS]);

impl<const VECTORS: usize, const HALVES: bool, const MINS: bool, const ZERO_BITS: u32> Format
    for Spread<VECTORS, HALVES, MINS, ZERO_BITS>
{
    type Codes = Whole;
    type Scales = Vectors<VECTORS, HALVES, MINS>;
    const ZERO_BITS: Option<u32> = if ZERO_BITS == 0 { None } else { Some(ZERO_BITS) };
    const COLD: bool = false;
}

impl<const VECTORS: usize, const HALVES: bool, const MINS: bool> Scales for Vectors<VECTORS, HALVES, MINS> {
    const HALVES: bool = HALVES;
    const MINS: bool = MINS;

    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, _: usize) -> [S::F32; 2] {
        [simd.load(&self.0[0]), simd.load(&self.0[usize::from(HALVES)])]
    }

    #[inline(always)]
    fn mins<S: Simd>(&self, simd: S, _: usize) -> [S::F32; 2] {
        if !MINS {
            return [simd.splat(0.0); 2];
        }
        let first = if HALVES { 2 } else { 1 };
        [simd.load(&self.0[first]), simd.load(&self.0[VECTORS - 1])]
    }
}

// SAFETY: it is `repr(C)` and an array of numbers alone.
#[expect(unsafe_code, reason = "what the memory holds cannot be checked")]
unsafe impl<const VECTORS: usize, const HALVES: bool, const MINS: bool> Plain for Vectors<VECTORS, HALVES, MINS> {}

/// Scales that a tile is spread to.
pub(in crate::cpu) trait FromVectors: Scales {
    /// Of scales and minimums, those that it has.
    fn from_vectors<S: Simd>(simd: S, scales: [S::F32; 2], mins: [S::F32; 2]) -> Self;
}

impl<const VECTORS: usize, const HALVES: bool, const MINS: bool> FromVectors for Vectors<VECTORS, HALVES, MINS> {
    #[inline(always)]
    fn from_vectors<S: Simd>(simd: S, scales: [S::F32; 2], mins: [S::F32; 2]) -> Self {
        let halves = if HALVES { 2 } else { 1 };
        let mut vectors = [[0.0; LANES]; VECTORS];
        for (to, from) in vectors.iter_mut().zip(scales[..halves].iter().chain(&mins[..halves])) {
            simd.store(*from, to);
        }
        Self(vectors)
    }
}

/// Bytes of a spread tile of so many blocks of columns.
pub(in crate::cpu) fn spread_bytes<F: FileFormat>(blocks: usize) -> usize {
    blocks * unit_bytes::<F::Spread>()
}

/// Spreads a tile.
pub(in crate::cpu) struct SpreadTile<'a, F: FileFormat> {
    pub(in crate::cpu) tile: UnitTile<'a, F>,
    /// [`spread_bytes`] of it.
    pub(in crate::cpu) to: &'a mut [u8],
}

impl<F: FileFormat> Kernel for SpreadTile<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { tile, to } = self;
        let blocks = tile.codes.len() * F::BLOCKS;
        let (codes, scales) = to.split_at_mut(blocks * size_of::<Whole>());
        let codes = cast_mut::<Whole>(codes, blocks).chunks_exact_mut(F::BLOCKS);
        let scales = cast_mut::<<F::Spread as Format>::Scales>(scales, blocks).chunks_exact_mut(F::BLOCKS);
        for (unit, (codes, scales)) in codes.zip(scales).enumerate() {
            for (block, (codes, scales)) in codes.iter_mut().zip(scales).enumerate() {
                tile.prefetch(simd, unit, block);
                for group in 0..GROUPS {
                    simd.store_bytes(tile.codes[unit].get(simd, block, group), &mut codes.0[group]);
                }
                let from = &tile.scales[unit];
                *scales = FromVectors::from_vectors(simd, from.scales(simd, block), from.mins(simd, block));
            }
        }
    }
}
