//! NEON with dot products: one vector is four registers, lanes 0 to 3, 4 to 7 and so on.

#![expect(unsafe_code, reason = "intrinsics; that the processor has them is proven by the value of type Neon")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "all unsafe operations here are intrinsics of one level")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, LANES, Simd};

/// NEON and its dot products of bytes. Only [`detect`](Self::detect) makes one, outside [`run`].
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// The proof that this processor has the instructions, if it has.
    pub(super) fn detect() -> Option<Self> {
        let has = std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod");
        has.then_some(Self(()))
    }
}

/// Runs `kernel` with these instructions. Only for [`Level`](super::Level), which exists where they were detected.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[target_feature(enable = "neon,dotprod")]
    fn compiled<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Neon(()))
    }
    // SAFETY: a `Level` of this kind is only made after `Neon::detect`.
    unsafe { compiled(kernel) }
}

/// `[f(x[0], ..), f(x[1], ..), f(x[2], ..), f(x[3], ..)]`.
macro_rules! each {
    ($operation:path, $($argument:expr),*) => {
        [
            $operation($($argument[0]),*),
            $operation($($argument[1]),*),
            $operation($($argument[2]),*),
            $operation($($argument[3]),*),
        ]
    };
}

/// Operations that do the same to all registers, by one function of the registers.
macro_rules! quarters {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty = $quarter:path;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($argument: $kind),*) -> $result {
                // SAFETY: `self` proves that the processor has the instructions.
                unsafe { each!($quarter, $($argument),*) }
            }
        )*
    };
}

/// Operations that fill all registers with the same.
macro_rules! splats {
    ($(fn $name:ident($argument:ident: $kind:ty) -> $result:ty = $all:expr;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $argument: $kind) -> $result {
                // SAFETY: `self` proves that the processor has the instructions.
                unsafe { [$all; 4] }
            }
        )*
    };
}

/// Operations that read 16 values, by a function of the address of 4.
macro_rules! loads {
    ($(fn $name:ident(&[$from:ty; LANES]) = $quarter:path;)*) => {
        $(
            #[inline(always)]
            fn $name(self, from: &[$from; LANES]) -> [float32x4_t; 4] {
                let from = from.as_ptr();
                // SAFETY: `self` proves that the processor has the instructions; `from` covers what is read.
                unsafe { [$quarter(from), $quarter(from.add(4)), $quarter(from.add(8)), $quarter(from.add(12))] }
            }
        )*
    };
}

/// Operations that write 16 values, by a function of the address of 4 and a register.
macro_rules! stores {
    ($(fn $name:ident(&mut [$to:ty; LANES]) = $quarter:path;)*) => {
        $(
            #[inline(always)]
            fn $name(self, x: [float32x4_t; 4], to: &mut [$to; LANES]) {
                let to = to.as_mut_ptr();
                // SAFETY: `self` proves that the processor has the instructions; `to` covers what is written.
                unsafe {
                    $quarter(to, x[0]);
                    $quarter(to.add(4), x[1]);
                    $quarter(to.add(8), x[2]);
                    $quarter(to.add(12), x[3]);
                }
            }
        )*
    };
}

impl Simd for Neon {
    type F32 = [float32x4_t; 4];
    type I32 = [int32x4_t; 4];
    type Bytes = [uint8x16_t; 4];
    const GROUP_ROWS: usize = 4;
    const PAIRS: bool = false;

    quarters! {
        fn add(a: Self::F32, b: Self::F32) -> Self::F32 = vaddq_f32;
        fn sub(a: Self::F32, b: Self::F32) -> Self::F32 = vsubq_f32;
        fn mul(a: Self::F32, b: Self::F32) -> Self::F32 = vmulq_f32;
        fn div(a: Self::F32, b: Self::F32) -> Self::F32 = vdivq_f32;
        fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 = multiply_add;
        fn min(a: Self::F32, b: Self::F32) -> Self::F32 = lesser;
        fn max(a: Self::F32, b: Self::F32) -> Self::F32 = greater;
        fn abs(a: Self::F32) -> Self::F32 = vabsq_f32;
        fn round(a: Self::F32) -> Self::F32 = vrndnq_f32;
        fn scale_by_power(a: Self::F32, n: Self::F32) -> Self::F32 = times_power;
        fn swap_pairs(a: Self::F32) -> Self::F32 = vrev64q_f32;
        fn bits_as_f32(a: Self::I32) -> Self::F32 = vreinterpretq_f32_s32;
        fn to_i32(a: Self::F32) -> Self::I32 = vcvtnq_s32_f32;
        fn and(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes = vandq_u8;
        fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes = vorrq_u8;
        fn dot4(sum: Self::I32, a: Self::Bytes, b: Self::Bytes) -> Self::I32 = add_dot4;
    }

    splats! {
        fn splat(x: f32) -> Self::F32 = vdupq_n_f32(x);
        fn splat_i32(x: i32) -> Self::I32 = vdupq_n_s32(x);
        fn splat_byte(x: u8) -> Self::Bytes = vdupq_n_u8(x);
        fn splat_lane(x: &[i8; 4]) -> Self::Bytes = vreinterpretq_u8_u32(vdupq_n_u32(u32::from_ne_bytes(x.map(i8::cast_unsigned))));
    }

    loads! {
        fn load(&[f32; LANES]) = vld1q_f32;
        fn load_f16(&[u16; LANES]) = four_f16;
        fn load_bf16(&[u16; LANES]) = four_bf16;
    }

    stores! {
        fn store(&mut [f32; LANES]) = vst1q_f32;
        fn store_f16(&mut [u16; LANES]) = put_four_f16;
        fn store_bf16(&mut [u16; LANES]) = put_four_bf16;
    }

    #[inline(always)]
    fn first_lanes(self, lanes: usize, a: Self::F32, other: Self::F32) -> Self::F32 {
        let lanes = lanes.min(LANES) as u32;
        // SAFETY: `self` proves that the processor has the instructions. So below.
        unsafe {
            let (lanes, number) = (vdupq_n_u32(lanes), vld1q_u32([0, 1, 2, 3].as_ptr()));
            [
                vbslq_f32(vcgtq_u32(lanes, number), a[0], other[0]),
                vbslq_f32(vcgtq_u32(lanes, vaddq_u32(number, vdupq_n_u32(4))), a[1], other[1]),
                vbslq_f32(vcgtq_u32(lanes, vaddq_u32(number, vdupq_n_u32(8))), a[2], other[2]),
                vbslq_f32(vcgtq_u32(lanes, vaddq_u32(number, vdupq_n_u32(12))), a[3], other[3]),
            ]
        }
    }

    #[inline(always)]
    fn sum(self, a: Self::F32) -> f32 {
        // SAFETY: as above.
        unsafe {
            let four = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    fn largest(self, a: Self::F32) -> f32 {
        // SAFETY: as above.
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a[0], a[1]), vmaxq_f32(a[2], a[3]))) }
    }

    #[inline(always)]
    fn sum_i32(self, a: Self::I32) -> i32 {
        // SAFETY: as above.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3]))) }
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        // SAFETY: as above.
        unsafe { each!(vaddq_s32, a, b) }
    }

    #[inline(always)]
    fn shift_left_i32<const BITS: u32>(self, a: Self::I32) -> Self::I32 {
        // SAFETY: as above.
        unsafe {
            let bits = [vdupq_n_s32(BITS as i32); 4];
            each!(vshlq_s32, a, bits)
        }
    }

    #[inline(always)]
    fn store_i8(self, a: Self::I32, to: &mut [i8; LANES]) {
        // SAFETY: as above; `to` covers what is written.
        unsafe {
            let low = vmovn_s16(vcombine_s16(vmovn_s32(a[0]), vmovn_s32(a[1])));
            let high = vmovn_s16(vcombine_s16(vmovn_s32(a[2]), vmovn_s32(a[3])));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(low, high));
        }
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::F32 {
        // SAFETY: as above; `from` covers what is read.
        unsafe {
            let bytes = vld1q_u8(from.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_u16(vget_high_u16(high))),
            ]
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F32 {
        // SAFETY: as above; `from` covers what is read.
        unsafe {
            let bytes = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))),
            ]
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> Self::Bytes {
        let from = from.as_ptr();
        // SAFETY: as above; `from` covers what is read.
        unsafe { [vld1q_u8(from), vld1q_u8(from.add(16)), vld1q_u8(from.add(32)), vld1q_u8(from.add(48))] }
    }

    #[inline(always)]
    fn store_bytes(self, x: Self::Bytes, to: &mut [u8; 64]) {
        let to = to.as_mut_ptr();
        // SAFETY: as above; `to` covers what is written.
        unsafe {
            vst1q_u8(to, x[0]);
            vst1q_u8(to.add(16), x[1]);
            vst1q_u8(to.add(32), x[2]);
            vst1q_u8(to.add(48), x[3]);
        }
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above. Shifting left by less than nothing is shifting right.
        unsafe {
            let bits = [vdupq_n_s8(-(BITS as i8)); 4];
            each!(vshlq_u8, a, bits)
        }
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above.
        unsafe {
            let bits = [vdupq_n_s8(BITS as i8); 4];
            each!(vshlq_u8, a, bits)
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], codes: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above; `table` covers what is read.
        unsafe {
            let table = [vld1q_u8(table.as_ptr()); 4];
            each!(vqtbl1q_u8, table, codes)
        }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: fetching ahead never faults and changes nothing that can be seen.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) address, options(readonly, nostack, preserves_flags)) }
    }

    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        // SAFETY: as above.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) address, options(readonly, nostack, preserves_flags)) }
    }
}

/// The instruction multiplies signed bytes only: 128 is taken from the unsigned ones, and 128 times the sum of the signed
/// ones added again. That sum is the same for all `a` that `b` meets, so the compiler computes it once.
#[inline(always)]
unsafe fn add_dot4(sum: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    // SAFETY: the caller has the instructions. So below.
    unsafe {
        let b_sum = signed_dot4(vdupq_n_s32(0), vdupq_n_u8(1), b);
        let start = vaddq_s32(sum, vshlq_n_s32::<7>(b_sum));
        signed_dot4(start, veorq_u8(a, vdupq_n_u8(0x80)), b)
    }
}

/// The intrinsic is not stable.
#[inline(always)]
unsafe fn signed_dot4(mut sum: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    // SAFETY: as above; the instruction reads and writes these registers alone.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

#[inline(always)]
unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vfmaq_f32(c, a, b) }
}

/// NEON's own minimum is not a number where either is not.
#[inline(always)]
unsafe fn lesser(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

#[inline(always)]
unsafe fn greater(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

#[inline(always)]
unsafe fn times_power(a: float32x4_t, n: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe {
        let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
        vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
    }
}

#[inline(always)]
unsafe fn four_f16(from: *const u16) -> float32x4_t {
    // SAFETY: as above; the caller may read 4 values at `from`.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))) }
}

#[inline(always)]
unsafe fn put_four_f16(to: *mut u16, x: float32x4_t) {
    // SAFETY: as above; the caller may write 4 values at `to`.
    unsafe { vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(x))) }
}

#[inline(always)]
unsafe fn four_bf16(from: *const u16) -> float32x4_t {
    // SAFETY: as above; the caller may read 4 values at `from`.
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from)))) }
}

/// Half of the last kept bit is added, and one more where the last kept bit is odd and it is a tie.
#[inline(always)]
unsafe fn put_four_bf16(to: *mut u16, x: float32x4_t) {
    // SAFETY: as above; the caller may write 4 values at `to`.
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        vst1_u16(to, vshrn_n_u32::<16>(rounded));
    }
}
