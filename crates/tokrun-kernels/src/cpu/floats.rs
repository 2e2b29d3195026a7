//! Weights that are floating-point numbers: a column of 16 rows is a vector, products are fused multiply-adds.

use super::activations::{Encoded, Forms, GroupAt};
use super::formats::BLOCK;
use super::memory::Plain;
use super::product::{Weights, cast, prefetch_after};
use super::simd::{LANES, Simd};

const LINE_BYTES: usize = 64;

/// A storage type of floating-point weights.
pub(super) trait Float: Send + Sync + 'static {
    /// One number.
    type Value: Plain;

    /// 16 numbers as f32, exactly.
    fn load<S: Simd>(simd: S, from: &[Self::Value; LANES]) -> S::F32;
}

/// f32.
pub(super) struct Single;
/// f16.
pub(super) struct Half;
/// bf16.
pub(super) struct Brain;

impl Float for Single {
    type Value = f32;

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[f32; LANES]) -> S::F32 {
        simd.load(from)
    }
}

impl Float for Half {
    type Value = u16;

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[u16; LANES]) -> S::F32 {
        simd.load_f16(from)
    }
}

impl Float for Brain {
    type Value = u16;

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[u16; LANES]) -> S::F32 {
        simd.load_bf16(from)
    }
}

/// Weights of such a type, times f32.
pub(super) struct Floats<V>(std::marker::PhantomData<V>);

impl<V: Float> Weights for Floats<V> {
    /// Columns of 16 rows.
    type Tile<'a> = &'a [[[V::Value; LANES]; BLOCK]];
    const FORMS: Forms = Forms { int8: false, halves: false, bf16: false, f32: true };
    const SUMS: usize = 1;

    #[inline(always)]
    fn tile(bytes: &[u8], blocks: usize) -> Self::Tile<'_> {
        cast(bytes, blocks * BLOCK * LANES).as_chunks().0.as_chunks().0
    }

    #[inline(always)]
    fn multiply<S: Simd, const T: usize, const P: usize>(
        simd: S,
        tiles: [Self::Tile<'_>; P],
        (input, at): (&Encoded, GroupAt),
        sums: &mut [[S::F32; T]; P],
    ) {
        let blocks = tiles[0].len();
        let x = input.f32::<T>(at, blocks);
        for (block, x) in x.iter().enumerate() {
            for column in 0..BLOCK {
                let mut weights = [simd.splat(0.0); P];
                for p in 0..P {
                    let values = &tiles[p][block][column];
                    if size_of_val(values) >= LINE_BYTES || column % 2 == 0 {
                        prefetch_after(simd, std::ptr::from_ref(values).cast());
                    }
                    weights[p] = V::load(simd, values);
                }
                for t in 0..T {
                    let x = simd.splat(x[t][column]);
                    for p in 0..P {
                        sums[p][t] = simd.fma(weights[p], x, sums[p][t]);
                    }
                }
            }
        }
    }
}
