//! AVX2 with FMA and F16C: one vector is two registers, lanes 0 to 7 and 8 to 15.

#![expect(unsafe_code, reason = "intrinsics; that the processor has them is proven by the value of type Avx2")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "all unsafe operations here are intrinsics of one level")]

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// AVX2, FMA and F16C. Only [`detect`](Self::detect) makes one, outside [`run`].
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof that this processor has the instructions, if it has.
    pub(super) fn detect() -> Option<Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

/// Runs `kernel` with these instructions. Only for [`Level`](super::Level), which exists where they were detected.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compiled<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }
    // SAFETY: a `Level` of this kind is only made after `Avx2::detect`.
    unsafe { compiled(kernel) }
}

/// Rounding to the nearest, ties to even, without exceptions.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Operations that do the same to both registers, by one function of the registers.
macro_rules! halves {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty = $half:path;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($argument: $kind),*) -> $result {
                // SAFETY: `self` proves that the processor has the instructions.
                unsafe { [$half($($argument[0]),*), $half($($argument[1]),*)] }
            }
        )*
    };
}

/// Operations that fill both registers with the same.
macro_rules! splats {
    ($(fn $name:ident($argument:ident: $kind:ty) -> $result:ty = $both:expr;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $argument: $kind) -> $result {
                // SAFETY: `self` proves that the processor has the instructions.
                unsafe { [$both; 2] }
            }
        )*
    };
}

/// Operations that read 16 values, by a function of the address of 8.
macro_rules! loads {
    ($(fn $name:ident(&[$from:ty; LANES]) = $half:path;)*) => {
        $(
            #[inline(always)]
            fn $name(self, from: &[$from; LANES]) -> [__m256; 2] {
                // SAFETY: `self` proves that the processor has the instructions; `from` covers what is read.
                unsafe { [$half(from.as_ptr()), $half(from.as_ptr().add(8))] }
            }
        )*
    };
}

impl Simd for Avx2 {
    type F32 = [__m256; 2];
    type I32 = [__m256i; 2];
    type Bytes = [__m256i; 2];
    const GROUP_ROWS: usize = 4;
    const PAIRS: bool = false;

    halves! {
        fn add(a: Self::F32, b: Self::F32) -> Self::F32 = _mm256_add_ps;
        fn sub(a: Self::F32, b: Self::F32) -> Self::F32 = _mm256_sub_ps;
        fn mul(a: Self::F32, b: Self::F32) -> Self::F32 = _mm256_mul_ps;
        fn div(a: Self::F32, b: Self::F32) -> Self::F32 = _mm256_div_ps;
        fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 = _mm256_fmadd_ps;
        fn min(a: Self::F32, b: Self::F32) -> Self::F32 = _mm256_min_ps;
        fn max(a: Self::F32, b: Self::F32) -> Self::F32 = _mm256_max_ps;
        fn abs(a: Self::F32) -> Self::F32 = absolute;
        fn round(a: Self::F32) -> Self::F32 = _mm256_round_ps::<NEAREST>;
        fn scale_by_power(a: Self::F32, n: Self::F32) -> Self::F32 = times_power;
        fn swap_pairs(a: Self::F32) -> Self::F32 = _mm256_permute_ps::<0b10_11_00_01>;
        fn bits_as_f32(a: Self::I32) -> Self::F32 = _mm256_castsi256_ps;
        fn to_i32(a: Self::F32) -> Self::I32 = _mm256_cvtps_epi32;
        fn and(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes = _mm256_and_si256;
        fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes = _mm256_or_si256;
        fn dot4(sum: Self::I32, a: Self::Bytes, b: Self::Bytes) -> Self::I32 = add_dot4;
    }

    splats! {
        fn splat(x: f32) -> Self::F32 = _mm256_set1_ps(x);
        fn splat_i32(x: i32) -> Self::I32 = _mm256_set1_epi32(x);
        fn splat_byte(x: u8) -> Self::Bytes = _mm256_set1_epi8(x.cast_signed());
        fn splat_lane(x: &[i8; 4]) -> Self::Bytes = _mm256_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned)));
    }

    loads! {
        fn load(&[f32; LANES]) = _mm256_loadu_ps;
        fn load_f16(&[u16; LANES]) = eight_f16;
        fn load_bf16(&[u16; LANES]) = eight_bf16;
        fn load_u8(&[u8; LANES]) = eight_u8;
        fn load_i8(&[i8; LANES]) = eight_i8;
    }

    #[inline(always)]
    fn store(self, x: Self::F32, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves that the processor has the instructions; `to` covers what is written. So below.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        }
    }

    #[inline(always)]
    fn store_f16(self, x: Self::F32, to: &mut [u16; LANES]) {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_set_m128i(high, low));
        }
    }

    #[inline(always)]
    fn store_bf16(self, x: Self::F32, to: &mut [u16; LANES]) {
        // SAFETY: as above.
        unsafe {
            let packed = _mm256_packus_epi32(rounded_to_bf16(x[0]), rounded_to_bf16(x[1]));
            // Packing worked within halves of registers.
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }

    #[inline(always)]
    fn first_lanes(self, lanes: usize, a: Self::F32, other: Self::F32) -> Self::F32 {
        let lanes = lanes.min(LANES) as i32;
        // SAFETY: as above.
        unsafe {
            let number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let low = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), number);
            let high = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes - 8), number);
            [
                _mm256_blendv_ps(other[0], a[0], _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(other[1], a[1], _mm256_castsi256_ps(high)),
            ]
        }
    }

    #[inline(always)]
    fn sum(self, a: Self::F32) -> f32 {
        // SAFETY: as above.
        unsafe {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn largest(self, a: Self::F32) -> f32 {
        // SAFETY: as above.
        unsafe {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn sum_i32(self, a: Self::I32) -> i32 {
        // SAFETY: as above.
        unsafe {
            let eight = _mm256_add_epi32(a[0], a[1]);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
        }
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        // SAFETY: as above.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn shift_left_i32<const BITS: u32>(self, a: Self::I32) -> Self::I32 {
        // SAFETY: as above.
        unsafe {
            let bits = _mm_cvtsi32_si128(BITS as i32);
            [_mm256_sll_epi32(a[0], bits), _mm256_sll_epi32(a[1], bits)]
        }
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above. Words are shifted, and what crossed into the lower byte is masked off.
        unsafe {
            let (bits, kept) = (_mm_cvtsi32_si128(BITS as i32), _mm256_set1_epi8((0xff_u8 >> BITS).cast_signed()));
            [_mm256_and_si256(_mm256_srl_epi16(a[0], bits), kept), _mm256_and_si256(_mm256_srl_epi16(a[1], bits), kept)]
        }
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above. Words are shifted, and what crossed into the upper byte is masked off.
        unsafe {
            let (bits, kept) = (_mm_cvtsi32_si128(BITS as i32), _mm256_set1_epi8((0xff_u8 << BITS).cast_signed()));
            [_mm256_and_si256(_mm256_sll_epi16(a[0], bits), kept), _mm256_and_si256(_mm256_sll_epi16(a[1], bits), kept)]
        }
    }

    #[inline(always)]
    fn store_i8(self, a: Self::I32, to: &mut [i8; LANES]) {
        // SAFETY: as above.
        unsafe {
            // The low bytes of four lanes go into the first or the second four bytes of each half of a register.
            let first = _mm256_broadcastsi128_si256(_mm_setr_epi32(0x0c08_0400, -1, -1, -1));
            let second = _mm256_broadcastsi128_si256(_mm_setr_epi32(-1, 0x0c08_0400, -1, -1));
            let both = _mm256_or_si256(_mm256_shuffle_epi8(a[0], first), _mm256_shuffle_epi8(a[1], second));
            let bytes = _mm_unpacklo_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> Self::Bytes {
        // SAFETY: as above; `from` covers what is read.
        unsafe { [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(32).cast())] }
    }

    #[inline(always)]
    fn store_bytes(self, x: Self::Bytes, to: &mut [u8; 64]) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), x[1]);
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], codes: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above; `table` covers what is read.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])]
        }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: as above; fetching ahead never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}

/// Products of two neighbouring bytes are added in 16 bits, which two times 255 * -128 would overflow. So the top bit of
/// the unsigned bytes is multiplied apart: 2 * 127 * -128 and 2 * 128 * -128 both fit. Where the codes are known to have no
/// top bit, the compiler drops that part.
#[inline(always)]
unsafe fn add_dot4(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has the instructions. So below.
    unsafe {
        let (rest, top) = (_mm256_set1_epi8(0x7f), _mm256_set1_epi8(i8::MIN));
        let ones = _mm256_set1_epi16(1);
        let low = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(a, rest), b), ones);
        let high = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(a, top), b), ones);
        _mm256_add_epi32(sum, _mm256_add_epi32(low, high))
    }
}

#[inline(always)]
unsafe fn absolute(a: __m256) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
}

#[inline(always)]
unsafe fn times_power(a: __m256, n: __m256) -> __m256 {
    // SAFETY: as above.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }
}

/// The bits of bf16 numbers in the low half of each lane: half of the last kept bit is added, and one more where the last
/// kept bit is odd and it is a tie.
#[inline(always)]
unsafe fn rounded_to_bf16(x: __m256) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        _mm256_srli_epi32::<16>(rounded)
    }
}

#[inline(always)]
unsafe fn eight_f16(from: *const u16) -> __m256 {
    // SAFETY: as above; the caller may read 8 values at `from`. So below.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}

#[inline(always)]
unsafe fn eight_bf16(from: *const u16) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
}

#[inline(always)]
unsafe fn eight_u8(from: *const u8) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))) }
}

#[inline(always)]
unsafe fn eight_i8(from: *const i8) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
}
