//! Any format unpacked for many input rows: a byte a code and scales in f32, made in a cache and used from there.

use super::planes::Whole;
use super::{BLOCK, Format, GROUPS, plain};
use crate::cpu::simd::{LANES, Simd};

/// What formats with these properties are unpacked to (`ZERO_BITS` of 0: none). Same numbers, so the same bits come out.
pub(in crate::cpu) struct Spread<const HALVES: bool, const MINS: bool, const ZERO_BITS: u32>;

/// Scales and minimums of a block; what the format does not have is never touched.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct SpreadScales {
    scales: [[f32; LANES]; 2],
    mins: [[f32; LANES]; 2],
}

plain!(SpreadScales);

impl<const HALVES: bool, const MINS: bool, const ZERO_BITS: u32> Format for Spread<HALVES, MINS, ZERO_BITS> {
    type Spread = Self;
    type Codes = Whole;
    type Scales = SpreadScales;
    const BLOCKS: usize = 1;
    const HALVES: bool = HALVES;
    const MINS: bool = MINS;
    const ZERO_BITS: Option<u32> = if ZERO_BITS > 0 { Some(ZERO_BITS) } else { None };
    const STREAMED: bool = false;

    #[inline(always)]
    fn codes<S: Simd>(simd: S, codes: &Whole, _: usize, group: usize) -> S::Bytes {
        codes.get(simd, group)
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, scales: &SpreadScales, _: usize) -> [S::F32; 2] {
        let first = simd.load(&scales.scales[0]);
        [first, if HALVES { simd.load(&scales.scales[1]) } else { first }]
    }

    #[inline(always)]
    fn mins<S: Simd>(simd: S, scales: &SpreadScales, _: usize) -> [S::F32; 2] {
        let first = simd.load(&scales.mins[0]);
        [first, if HALVES { simd.load(&scales.mins[1]) } else { first }]
    }
}

/// Spreads a unit of `F`.
#[inline(always)]
pub(in crate::cpu) fn spread_unit<S: Simd, F: Format>(
    simd: S,
    unit: (&F::Codes, &F::Scales),
    codes: &mut [Whole],
    scales: &mut [SpreadScales],
) {
    for (block, (codes, scales)) in codes.iter_mut().zip(scales).enumerate() {
        for group in 0..GROUPS {
            simd.store_bytes(F::codes(simd, unit.0, block, group), &mut codes.0[group]);
        }
        let halves = 1 + usize::from(F::HALVES);
        let (from_scales, from_mins) = (F::scales(simd, unit.1, block), F::mins(simd, unit.1, block));
        for half in 0..halves {
            simd.store(from_scales[half], &mut scales.scales[half]);
            if F::MINS {
                simd.store(from_mins[half], &mut scales.mins[half]);
            }
        }
    }
}

/// Columns of a block are the same in all formats.
const _: () = assert!(GROUPS * 4 == BLOCK);
