//! Vectors of 16 lanes, over which every kernel is written once.
//!
//! A kernel is a [`Kernel`]: its arguments, and a `run` that is generic over [`Simd`]. [`Level::run`] calls it compiled
//! for one instruction set. Everything between that call and the single operations must be `#[inline(always)]`, closures
//! avoided: only what is inlined is compiled for the instruction set of the entry point.
//!
//! All levels give the same bits: there are always 16 lanes, every multiply-add is fused, sums over lanes take one fixed
//! tree, and products of bytes are exact.

mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use crate::codes::GROUPS;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Operations on vectors of 16 lanes. A value of such a type proves that this machine has the instructions, so the
/// operations are safe.
///
/// `min` and `max` return their second argument where one is not a number. A *byte vector* holds 64 bytes: lane `i` has
/// the bytes `4 i .. 4 i + 4`.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// 16 x f32.
    type F32: Copy;
    /// 16 x i32.
    type I32: Copy;
    /// 16 x 4 bytes, signed or not as the operation says.
    type Bytes: Copy;
    /// Rows whose sums fit into the registers beside one tile of weights: 1, 4 or 8.
    const GROUP_ROWS: usize;
    /// Whether sums of a second tile do too.
    const PAIRS: bool;

    fn splat(self, x: f32) -> Self::F32;
    fn load(self, from: &[f32; LANES]) -> Self::F32;
    fn store(self, x: Self::F32, to: &mut [f32; LANES]);
    fn load_f16(self, from: &[u16; LANES]) -> Self::F32;
    /// Rounds to the nearest, ties to even; too large becomes infinite.
    fn store_f16(self, x: Self::F32, to: &mut [u16; LANES]);
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F32;
    /// Rounds to the nearest, ties to even. Not for values that are not numbers.
    fn store_bf16(self, x: Self::F32, to: &mut [u16; LANES]);

    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    /// To the nearest whole number, ties to even.
    fn round(self, a: Self::F32) -> Self::F32;
    /// `a * 2^n` for whole `n` from -126 to 126.
    fn scale_by_power(self, a: Self::F32, n: Self::F32) -> Self::F32;
    /// The first `lanes` lanes of `a`, `other` in those after them.
    fn first_lanes(self, lanes: usize, a: Self::F32, other: Self::F32) -> Self::F32;
    /// Exchanges lanes `2 i` and `2 i + 1`.
    fn swap_pairs(self, a: Self::F32) -> Self::F32;
    /// Sum over lanes: halves added until one lane is left (8 + 8, 4 + 4, 2 + 2, 1 + 1).
    fn sum(self, a: Self::F32) -> f32;
    /// The largest lane; no lane may be other than a number.
    fn largest(self, a: Self::F32) -> f32;

    fn splat_i32(self, x: i32) -> Self::I32;
    /// `a + b`, wrapping.
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `a << BITS`.
    fn shift_left_i32<const BITS: u32>(self, a: Self::I32) -> Self::I32;
    /// Sum over lanes, wrapping.
    fn sum_i32(self, a: Self::I32) -> i32;
    /// The floats that have these bits.
    fn bits_as_f32(self, a: Self::I32) -> Self::F32;
    /// To the nearest, ties to even; for values within the range of i32.
    fn to_i32(self, a: Self::F32) -> Self::I32;
    /// Keeps the low byte of each lane.
    fn store_i8(self, a: Self::I32, to: &mut [i8; LANES]);
    /// 16 unsigned bytes as f32.
    fn load_u8(self, from: &[u8; LANES]) -> Self::F32;
    /// 16 signed bytes as f32.
    fn load_i8(self, from: &[i8; LANES]) -> Self::F32;

    fn load_bytes(self, from: &[u8; 64]) -> Self::Bytes;
    fn store_bytes(self, x: Self::Bytes, to: &mut [u8; 64]);
    fn splat_byte(self, x: u8) -> Self::Bytes;
    /// The same four bytes in every lane.
    fn splat_lane(self, x: &[i8; 4]) -> Self::Bytes;
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each byte `>> BITS`, zeros moving in.
    fn shift_right<const BITS: u32>(self, a: Self::Bytes) -> Self::Bytes;
    /// Each byte `<< BITS`.
    fn shift_left<const BITS: u32>(self, a: Self::Bytes) -> Self::Bytes;
    /// `table[code]` for each byte of `codes`, all below 16.
    fn look_up(self, table: &[u8; 16], codes: Self::Bytes) -> Self::Bytes;
    /// Each lane of `sum`, plus the products of its four unsigned bytes of `a` with its four signed bytes of `b`. Exact.
    fn dot4(self, sum: Self::I32, a: Self::Bytes, b: Self::Bytes) -> Self::I32;
    /// Each row's sums, plus the products of `weights` with group `group` of the row's codes, as [`dot4`](Self::dot4).
    #[inline(always)]
    fn dot4_rows<const T: usize, const GROUP: usize>(
        self,
        sums: &mut [Self::I32; T],
        weights: Self::Bytes,
        codes: &[[[i8; 4]; GROUPS]; T],
    ) {
        for (sum, codes) in sums.iter_mut().zip(codes) {
            *sum = self.dot4(*sum, weights, self.splat_lane(&codes[GROUP]));
        }
    }

    /// Each lane of `sum`, plus its two products of bf16 pairs, `a[1] * b[1]` first. Subnormal numbers may count as zero.
    ///
    /// # Safety
    /// Only in what [`Level::run_with_bf16_dot`] runs.
    #[expect(unsafe_code, reason = "not every processor of a level has it")]
    unsafe fn dot_bf16(self, sum: Self::F32, _: Self::Bytes, _: Self::Bytes) -> Self::F32 {
        debug_assert!(false, "this level has no such instruction");
        sum
    }

    /// Asks for the cache line at `address` (which need not be mapped), to stay.
    fn prefetch(self, address: *const u8);
    /// Asks for the cache line at `address` (which need not be mapped), to lie in the second cache.
    fn prefetch_far(self, address: *const u8);

    /// `2^x`, off by at most 3e-7 of it; `x` is held within -126 and 126, so what should vanish is about 1e-38.
    #[inline(always)]
    fn exp2(self, x: Self::F32) -> Self::F32 {
        let x = self.min(self.max(x, self.splat(-126.0)), self.splat(126.0));
        let whole = self.round(x);
        let rest = self.sub(x, whole);
        let mut p = self.splat(1.326_472_7e-3);
        for coefficient in [9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, std::f32::consts::LN_2, 1.0] {
            p = self.fma(p, rest, self.splat(coefficient));
        }
        self.scale_by_power(p, whole)
    }

    /// `x / (1 + e^-x)`.
    #[inline(always)]
    fn silu(self, x: Self::F32) -> Self::F32 {
        let e = self.exp2(self.mul(x, self.splat(-std::f32::consts::LOG2_E)));
        self.div(x, self.add(self.splat(1.0), e))
    }

    /// `1 - 2 / (1 + e^2x)`: absolute error about 1e-7.
    #[inline(always)]
    fn tanh(self, x: Self::F32) -> Self::F32 {
        let e = self.exp2(self.mul(x, self.splat(2.0 * std::f32::consts::LOG2_E)));
        self.sub(self.splat(1.0), self.div(self.splat(2.0), self.add(self.splat(1.0), e)))
    }

    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    #[inline(always)]
    fn gelu_tanh(self, x: Self::F32) -> Self::F32 {
        let cubic = self.fma(self.mul(self.mul(x, x), x), self.splat(0.044_715), x);
        let t = self.tanh(self.mul(cubic, self.splat(0.797_884_6)));
        self.mul(self.mul(x, self.splat(0.5)), self.add(self.splat(1.0), t))
    }
}

/// Work that is written once and compiled for every level.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// Does it; `#[inline(always)]`, like all that it calls.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// [`Simd::GROUP_ROWS`] of a level.
struct GroupRows;

impl Kernel for GroupRows {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::GROUP_ROWS
    }
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(Kind);

/// From slow to fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// The level that needs nothing: for tests, and for processors without any other.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// The levels of this machine, from slow to fast.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        if avx2::Avx2::detect().is_some() {
            levels.push(Self(Kind::Avx2));
        }
        #[cfg(target_arch = "x86_64")]
        if avx512::Avx512::detect().is_some() {
            levels.push(Self(Kind::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        if neon::Neon::detect().is_some() {
            levels.push(Self(Kind::Neon));
        }
        levels
    }

    /// The fastest.
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::SCALAR)
    }

    /// `scalar`, `avx512` ...
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
        }
    }

    /// Rows that kernels of this level work on at once.
    pub(crate) fn group_rows(self) -> usize {
        self.run(GroupRows)
    }

    /// Whether this machine multiplies pairs of bf16 at this level.
    pub(crate) fn has_bf16_dot(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => is_x86_feature_detected!("avx512bf16"),
            _ => false,
        }
    }

    /// Whether that is quicker than multiplying them one by one, as f32.
    pub(crate) fn prefers_bf16_dot(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512fp16") {
            // Sapphire Rapids and what came after it take two cycles for a product of pairs, in which they multiply twice as
            // many f32. They can be told by this.
            return false;
        }
        self.has_bf16_dot()
    }

    /// Runs `kernel`, which may use [`Simd::dot_bf16`].
    ///
    /// # Panics
    /// When this machine has no such instruction.
    pub(crate) fn run_with_bf16_dot<K: Kernel>(self, kernel: K) -> K::Output {
        assert!(self.has_bf16_dot(), "products of bf16 pairs on {}", self.name());
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => avx512::run_with_bf16(kernel),
            _ => self.run(kernel),
        }
    }

    /// Runs `kernel` compiled for this level.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Scalar => kernel.run(scalar::Scalar),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => avx512::run(kernel),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => neon::run(kernel),
        }
    }
}
