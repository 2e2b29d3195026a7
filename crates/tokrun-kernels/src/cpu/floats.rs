//! Weights that are floating-point numbers: a column of 16 rows is a vector, products are fused multiply-adds.
//!
//! Where the processor multiplies pairs of bf16, 16-bit weights are packed as such pairs, and rows are rounded to bf16. F16
//! weights are rounded too, when they are packed: three bits of them are lost there.
use super::activations::{Encoded, Forms, GroupAt};
use super::formats::BLOCK;
use super::memory::Plain;
use super::product::{Weights, cast, prefetch_after};
use super::simd::{Kernel, LANES, Simd};

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
                    if at.is_first() && (size_of_val(values) >= LINE_BYTES || column % 2 == 0) {
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

/// 16-bit weights as pairs of bf16, times bf16.
pub(super) struct Bf16Pairs;

impl Weights for Bf16Pairs {
    /// Pairs of columns of 16 rows.
    type Tile<'a> = &'a [[[[u8; 4]; LANES]; BLOCK / 2]];
    const FORMS: Forms = Forms { int8: false, halves: false, bf16: true, f32: false };
    const SUMS: usize = 1;

    #[inline(always)]
    fn tile(bytes: &[u8], blocks: usize) -> Self::Tile<'_> {
        cast(bytes, blocks)
    }

    #[inline(always)]
    fn multiply<S: Simd, const T: usize, const P: usize>(
        simd: S,
        tiles: [Self::Tile<'_>; P],
        (input, at): (&Encoded, GroupAt),
        sums: &mut [[S::F32; T]; P],
    ) {
        let blocks = tiles[0].len();
        let x = input.bf16::<T>(at, blocks);
        for (block, x) in x.iter().enumerate() {
            for pair in 0..BLOCK / 2 {
                let mut weights = [simd.splat_byte(0); P];
                for p in 0..P {
                    let values = tiles[p][block][pair].as_flattened();
                    prefetch_after(simd, values.as_ptr());
                    if let Some(values) = values.first_chunk() {
                        weights[p] = simd.load_bytes(values);
                    }
                }
                for t in 0..T {
                    let x = simd.splat_lane(&two(x[t][2 * pair], x[t][2 * pair + 1]));
                    for p in 0..P {
                        #[expect(unsafe_code, reason = "not every processor of a level has it")]
                        // SAFETY: products with these weights run where there is the instruction.
                        let sum = unsafe { simd.dot_bf16(sums[p][t], weights[p], x) };
                        sums[p][t] = sum;
                    }
                }
            }
        }
    }
}

/// Two numbers as the four bytes that hold them.
#[inline(always)]
fn two(first: u16, second: u16) -> [i8; 4] {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    [a, b, c, d].map(u8::cast_signed)
}

/// Rounds f16 to bf16, a row of a tile.
pub(super) struct RoundToBf16<'a> {
    pub(super) from: &'a [u8],
    pub(super) to: &'a mut Vec<u8>,
}

impl Kernel for RoundToBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.to.clear();
        for bytes in self.from.chunks(2 * LANES) {
            let mut values = [0; LANES];
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = u16::from_le_bytes(*bytes);
            }
            let wide = simd.load_f16(&values);
            simd.store_bf16(wide, &mut values);
            let rounded = values.map(u16::to_le_bytes);
            self.to.extend_from_slice(&rounded.as_flattened()[..bytes.len()]);
        }
    }
}
