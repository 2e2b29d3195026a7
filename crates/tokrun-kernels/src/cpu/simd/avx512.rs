//! AVX-512 with VNNI: one vector is one register.

#![expect(unsafe_code, reason = "intrinsics; that the processor has them is proven by the value of type Avx512")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "all unsafe operations here are intrinsics of one level")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Kernel, LANES, Simd};
use crate::codes::GROUPS;

/// AVX-512 F, BW, VL, DQ and VNNI. Only [`detect`](Self::detect) makes one, outside [`run`].
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof that this processor has the instructions, if it has.
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

/// Runs `kernel` with these instructions. Only for [`Level`](super::Level), which exists where they were detected.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn compiled<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }
    // SAFETY: a `Level` of this kind is only made after `Avx512::detect`.
    unsafe { compiled(kernel) }
}

/// As [`run`], with products of bf16 pairs: only where they were detected too.
pub(super) fn run_with_bf16<K: Kernel>(kernel: K) -> K::Output {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
    fn compiled<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }
    // SAFETY: `Level::run_with_bf16_dot` asks for both.
    unsafe { compiled(kernel) }
}

/// Rounding to the nearest, ties to even, without exceptions.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Operations that are one expression of intrinsics.
macro_rules! operations {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)? = $body:expr;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($argument: $kind),*) $(-> $result)? {
                // SAFETY: `self` proves that the processor has the instructions; references cover what is read or written.
                unsafe { $body }
            }
        )*
    };
}

impl Simd for Avx512 {
    type F32 = __m512;
    type I32 = __m512i;
    type Bytes = __m512i;
    const GROUP_ROWS: usize = 8;
    const PAIRS: bool = true;

    operations! {
        fn splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn load(from: &[f32; LANES]) -> __m512 = _mm512_loadu_ps(from.as_ptr());
        fn store(x: __m512, to: &mut [f32; LANES]) = _mm512_storeu_ps(to.as_mut_ptr(), x);
        fn load_f16(from: &[u16; LANES]) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()));
        fn store_f16(x: __m512, to: &mut [u16; LANES]) = _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<NEAREST>(x));
        fn load_bf16(from: &[u16; LANES]) -> __m512 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()))));
        fn store_bf16(x: __m512, to: &mut [u16; LANES]) = _mm256_storeu_si256(to.as_mut_ptr().cast(), round_to_bf16(x));
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        fn max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn abs(a: __m512) -> __m512 = _mm512_abs_ps(a);
        fn round(a: __m512) -> __m512 = _mm512_roundscale_ps::<NEAREST>(a);
        fn scale_by_power(a: __m512, n: __m512) -> __m512 = _mm512_scalef_ps(a, n);
        fn swap_pairs(a: __m512) -> __m512 = _mm512_permute_ps::<0b10_11_00_01>(a);
        fn splat_i32(x: i32) -> __m512i = _mm512_set1_epi32(x);
        fn bits_as_f32(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
        fn to_i32(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
        fn store_i8(a: __m512i, to: &mut [i8; LANES]) = _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(a));
        fn load_u8(from: &[u8; LANES]) -> __m512 = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())));
        fn load_i8(from: &[i8; LANES]) -> __m512 = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())));
        fn load_bytes(from: &[u8; 64]) -> __m512i = _mm512_loadu_si512(from.as_ptr().cast());
        fn store_bytes(x: __m512i, to: &mut [u8; 64]) = _mm512_storeu_si512(to.as_mut_ptr().cast(), x);
        fn splat_byte(x: u8) -> __m512i = _mm512_set1_epi8(x.cast_signed());
        fn splat_lane(x: &[i8; 4]) -> __m512i = _mm512_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned)));
        fn and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        fn or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        fn look_up(table: &[u8; 16], codes: __m512i) -> __m512i = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), codes);
        fn dot4(sum: __m512i, a: __m512i, b: __m512i) -> __m512i = _mm512_dpbusd_epi32(sum, a, b);
        fn prefetch(address: *const u8) = _mm_prefetch::<_MM_HINT_T0>(address.cast());
        fn prefetch_far(address: *const u8) = _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }

    #[inline(always)]
    fn dot4_rows<const T: usize, const GROUP: usize>(
        self,
        sums: &mut [__m512i; T],
        weights: __m512i,
        codes: &[[[i8; 4]; GROUPS]; T],
    ) {
        if let (([sums], []), ([codes], [])) = (sums.as_chunks_mut(), codes.as_chunks()) {
            // SAFETY: as above.
            return unsafe { dot4_of_eight::<GROUP>(sums, weights, codes) };
        }
        if let (([sums], []), ([codes], [])) = (sums.as_chunks_mut(), codes.as_chunks()) {
            // SAFETY: as above.
            return unsafe { dot4_of_four::<GROUP>(sums, weights, codes) };
        }
        for (sum, codes) in sums.iter_mut().zip(codes) {
            *sum = self.dot4(*sum, weights, self.splat_lane(&codes[GROUP]));
        }
    }

    #[inline(always)]
    unsafe fn dot_bf16(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: the caller has the instruction; all three types are 64 plain bytes.
        unsafe { _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) }
    }

    #[inline(always)]
    fn first_lanes(self, lanes: usize, a: __m512, other: __m512) -> __m512 {
        let mask = if lanes >= LANES { u16::MAX } else { (1 << lanes) - 1 };
        // SAFETY: as above.
        unsafe { _mm512_mask_blend_ps(mask, other, a) }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: as above.
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    fn sum_i32(self, a: __m512i) -> i32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_epi32(a) }
    }

    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn shift_left_i32<const BITS: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_slli_epi32::<BITS>(a) }
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: as above. Words are shifted, and what crossed into the lower byte is masked off.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<BITS>(a), _mm512_set1_epi8((0xff_u8 >> BITS).cast_signed())) }
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: as above. Words are shifted, and what crossed into the upper byte is masked off.
        unsafe { _mm512_and_si512(_mm512_slli_epi16::<BITS>(a), _mm512_set1_epi8((0xff_u8 << BITS).cast_signed())) }
    }
}

/// bf16 of 16 numbers. `vcvtneps2bf16` needs another extension and flushes subnormal numbers, so: add half of the last
/// kept bit, and one more where the last kept bit is odd and it is a tie.
#[inline(always)]
unsafe fn round_to_bf16(x: __m512) -> __m256i {
    // SAFETY: the caller has the instructions.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
    }
}

/// Defines a function for [`Simd::dot4_rows`] of so many rows. Compilers put all products of a row one after another, and
/// wait for each sum; here they come row by row.
macro_rules! dot4_rows {
    ($name:ident, $rows:literal: $($sum:ident $row:literal)*) => {
        #[inline]
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn $name<const GROUP: usize>(
            sums: &mut [__m512i; $rows],
            weights: __m512i,
            codes: &[[[i8; 4]; GROUPS]; $rows],
        ) {
            let [$(mut $sum),*] = *sums;
            // SAFETY: rows of codes have eight groups of four bytes each.
            unsafe {
                asm!(
                    $(concat!("vpdpbusd {", stringify!($sum), "}, {w}, dword ptr [{x} + {at} + 32*", $row, "]{{1to16}}"),)*
                    x = in(reg) codes,
                    at = const { 4 * GROUP },
                    w = in(zmm_reg) weights,
                    $($sum = inout(zmm_reg) $sum,)*
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            *sums = [$($sum),*];
        }
    };
}

dot4_rows!(dot4_of_four, 4: a 0 b 1 c 2 d 3);
dot4_rows!(dot4_of_eight, 8: a 0 b 1 c 2 d 3 e 4 f 5 g 6 h 7);
