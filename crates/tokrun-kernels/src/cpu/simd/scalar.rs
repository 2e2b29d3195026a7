//! The level that every machine has: plain Rust, lane by lane.
//!
//! Its operations are calls, unlike those of other levels: spelled out in each kernel they would take most of the time that
//! this crate takes to compile, and no machine of today is helped by it.

use half::{bf16, f16};

use super::{LANES, Simd};

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn map<A: Copy, B: Copy + Default>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    let mut out = [B::default(); LANES];
    for (out, a) in out.iter_mut().zip(a) {
        *out = f(a);
    }
    out
}

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out = f(*out, b);
    }
    out
}

#[inline(always)]
fn map_bytes(a: [u8; 64], f: impl Fn(u8) -> u8) -> [u8; 64] {
    let mut out = a;
    for byte in &mut out {
        *byte = f(*byte);
    }
    out
}

#[inline(always)]
fn zip_bytes(a: [u8; 64], b: [u8; 64], f: impl Fn(u8, u8) -> u8) -> [u8; 64] {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out = f(*out, b);
    }
    out
}

impl Simd for Scalar {
    type F32 = [f32; LANES];
    type I32 = [i32; LANES];
    type Bytes = [u8; 64];
    const GROUP_ROWS: usize = 1;
    const PAIRS: bool = false;

    #[inline(never)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }

    #[inline(never)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        *from
    }

    #[inline(never)]
    fn store(self, x: Self::F32, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(never)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F32 {
        map(*from, |bits| f16::from_bits(bits).to_f32())
    }

    #[inline(never)]
    fn store_f16(self, x: Self::F32, to: &mut [u16; LANES]) {
        *to = map(x, |x| f16::from_f32(x).to_bits());
    }

    #[inline(never)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F32 {
        map(*from, |bits| bf16::from_bits(bits).to_f32())
    }

    #[inline(never)]
    fn store_bf16(self, x: Self::F32, to: &mut [u16; LANES]) {
        *to = map(x, |x| bf16::from_f32(x).to_bits());
    }

    #[inline(never)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a + b)
    }

    #[inline(never)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a - b)
    }

    #[inline(never)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a * b)
    }

    #[inline(never)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a / b)
    }

    #[inline(never)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        let mut out = c;
        for lane in 0..LANES {
            out[lane] = a[lane].mul_add(b[lane], c[lane]);
        }
        out
    }

    #[inline(never)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(never)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(never)]
    fn abs(self, a: Self::F32) -> Self::F32 {
        map(a, f32::abs)
    }

    #[inline(never)]
    fn round(self, a: Self::F32) -> Self::F32 {
        map(a, f32::round_ties_even)
    }

    #[inline(never)]
    fn scale_by_power(self, a: Self::F32, n: Self::F32) -> Self::F32 {
        zip(a, n, |a, n| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(never)]
    fn first_lanes(self, lanes: usize, a: Self::F32, other: Self::F32) -> Self::F32 {
        let mut out = other;
        let lanes = lanes.min(LANES);
        out[..lanes].copy_from_slice(&a[..lanes]);
        out
    }

    #[inline(never)]
    fn swap_pairs(self, a: Self::F32) -> Self::F32 {
        let mut out = a;
        for lane in 0..LANES {
            out[lane] = a[lane ^ 1];
        }
        out
    }

    #[inline(never)]
    fn sum(self, a: Self::F32) -> f32 {
        let mut a = a;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                a[lane] += a[lane + half];
            }
        }
        a[0]
    }

    #[inline(never)]
    fn largest(self, a: Self::F32) -> f32 {
        let mut top = a[0];
        for x in a {
            top = if x > top { x } else { top };
        }
        top
    }

    #[inline(never)]
    fn splat_i32(self, x: i32) -> Self::I32 {
        [x; LANES]
    }

    #[inline(never)]
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(never)]
    fn shift_left_i32<const BITS: u32>(self, a: Self::I32) -> Self::I32 {
        map(a, |a| a << BITS)
    }

    #[inline(never)]
    fn sum_i32(self, a: Self::I32) -> i32 {
        let mut sum = 0i32;
        for x in a {
            sum = sum.wrapping_add(x);
        }
        sum
    }

    #[inline(never)]
    fn bits_as_f32(self, a: Self::I32) -> Self::F32 {
        map(a, |a| f32::from_bits(a.cast_unsigned()))
    }

    #[inline(never)]
    fn to_i32(self, a: Self::F32) -> Self::I32 {
        map(a, |a| a.round_ties_even() as i32)
    }

    #[inline(never)]
    fn store_i8(self, a: Self::I32, to: &mut [i8; LANES]) {
        *to = map(a, |a| a as i8);
    }

    #[inline(never)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::F32 {
        map(*from, f32::from)
    }

    #[inline(never)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F32 {
        map(*from, f32::from)
    }

    #[inline(never)]
    fn load_bytes(self, from: &[u8; 64]) -> Self::Bytes {
        *from
    }

    #[inline(never)]
    fn store_bytes(self, x: Self::Bytes, to: &mut [u8; 64]) {
        *to = x;
    }

    #[inline(never)]
    fn splat_byte(self, x: u8) -> Self::Bytes {
        [x; 64]
    }

    #[inline(never)]
    fn splat_lane(self, x: &[i8; 4]) -> Self::Bytes {
        let mut out = [0; 64];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = x[i % 4] as u8;
        }
        out
    }

    #[inline(never)]
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        zip_bytes(a, b, |a, b| a & b)
    }

    #[inline(never)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        zip_bytes(a, b, |a, b| a | b)
    }

    #[inline(never)]
    fn shift_right<const BITS: u32>(self, a: Self::Bytes) -> Self::Bytes {
        map_bytes(a, |a| a >> BITS)
    }

    #[inline(never)]
    fn shift_left<const BITS: u32>(self, a: Self::Bytes) -> Self::Bytes {
        map_bytes(a, |a| a << BITS)
    }

    #[inline(never)]
    fn look_up(self, table: &[u8; 16], codes: Self::Bytes) -> Self::Bytes {
        map_bytes(codes, |code| table[usize::from(code & 15)])
    }

    #[inline(never)]
    fn dot4(self, sum: Self::I32, a: Self::Bytes, b: Self::Bytes) -> Self::I32 {
        let mut out = sum;
        for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
            out[i / 4] += i32::from(a) * i32::from(b as i8);
        }
        out
    }

    #[inline(never)]
    fn prefetch(self, _: *const u8) {}

    #[inline(never)]
    fn prefetch_far(self, _: *const u8) {}
}
