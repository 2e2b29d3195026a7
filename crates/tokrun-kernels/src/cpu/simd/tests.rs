//! Every level against plain Rust, bit for bit.

use super::{Kernel, LANES, Level, Simd};

/// Numbers of all sizes and signs, different for each `seed`.
fn numbers(seed: u32) -> [f32; LANES] {
    std::array::from_fn(|i| {
        let mut x = (seed * 31 + i as u32 + 1).wrapping_mul(2_654_435_761);
        x ^= x >> 15;
        x = x.wrapping_mul(2_246_822_519);
        let size = (x % 13) as i32 - 6;
        ((x >> 8) as f32 / 8_388_608.0 - 1.0) * 10f32.powi(size)
    })
}

fn bytes(seed: u32) -> [u8; 64] {
    std::array::from_fn(|i| ((seed * 77 + i as u32).wrapping_mul(2_654_435_761) >> 13) as u8)
}

/// All operations on the numbers of one seed; the bits of what they give.
struct Everything(u32);

impl Kernel for Everything {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<u32> {
        let (a, b, c) = (numbers(self.0), numbers(self.0 + 1), numbers(self.0 + 2));
        let (va, vb, vc) = (simd.load(&a), simd.load(&b), simd.load(&c));
        let mut out = Vec::new();
        let mut keep = |x: S::F32| {
            let mut lanes = [0.0; LANES];
            simd.store(x, &mut lanes);
            out.extend(lanes.map(f32::to_bits));
        };
        keep(simd.add(va, vb));
        keep(simd.sub(va, vb));
        keep(simd.mul(va, vb));
        keep(simd.div(va, vb));
        keep(simd.fma(va, vb, vc));
        keep(simd.min(va, vb));
        keep(simd.max(va, vb));
        keep(simd.max(simd.splat(f32::NAN), vb));
        keep(simd.min(va, simd.splat(f32::NAN)));
        keep(simd.abs(va));
        keep(simd.round(va));
        keep(simd.exp2(va));
        keep(simd.silu(va));
        keep(simd.tanh(va));
        keep(simd.gelu_tanh(va));
        keep(simd.swap_pairs(va));
        for lanes in [0, 1, 7, 16, 40] {
            keep(simd.first_lanes(lanes, va, vb));
        }
        let mut half = [0; LANES];
        simd.store_f16(va, &mut half);
        keep(simd.load_f16(&half));
        simd.store_bf16(va, &mut half);
        keep(simd.load_bf16(&half));
        let whole = simd.to_i32(va);
        keep(simd.bits_as_f32(simd.shift_left_i32::<5>(whole)));
        let mut low = [0; LANES];
        simd.store_i8(whole, &mut low);
        keep(simd.load_i8(&low));
        keep(simd.load_u8(&low.map(i8::cast_unsigned)));
        keep(simd.splat(simd.sum(va)));
        keep(simd.splat(simd.largest(va)));
        keep(simd.splat(simd.sum_i32(whole) as f32));
        out.extend(byte_operations(simd, self.0));
        out
    }
}

#[inline(always)]
fn byte_operations<S: Simd>(simd: S, seed: u32) -> Vec<u32> {
    let (a, b) = (simd.load_bytes(&bytes(seed)), simd.load_bytes(&bytes(seed + 1)));
    let mut out = Vec::new();
    let mut keep = |x: S::Bytes| {
        let mut bytes = [0; 64];
        simd.store_bytes(x, &mut bytes);
        out.extend(bytes.map(u32::from));
    };
    keep(simd.and(a, b));
    keep(simd.or(a, b));
    keep(simd.shift_right::<3>(a));
    keep(simd.shift_left::<4>(a));
    keep(simd.splat_byte(200));
    keep(simd.splat_lane(&[1, -2, 3, -128]));
    keep(simd.look_up(&std::array::from_fn(|i| (i * i) as u8), simd.and(a, simd.splat_byte(15))));
    let mut lanes = [0.0; LANES];
    simd.store(simd.bits_as_f32(simd.dot4(simd.splat_i32(-9), a, b)), &mut lanes);
    out.extend(lanes.map(f32::to_bits));
    simd.store(simd.bits_as_f32(simd.dot4(simd.splat_i32(0), simd.splat_byte(255), simd.splat_byte(0x80))), &mut lanes);
    out.extend(lanes.map(f32::to_bits));
    out
}

#[test]
fn all_levels_give_the_same_bits() {
    for seed in 0..200 {
        let expected = Level::SCALAR.run(Everything(seed));
        for level in Level::available() {
            let found = level.run(Everything(seed));
            let at = expected.iter().zip(&found).position(|(a, b)| a != b);
            assert_eq!(at, None, "level {}, seed {seed}", level.name());
            assert_eq!(expected.len(), found.len());
        }
    }
}

/// One function of one number.
struct Apply(fn(f32) -> f32, Function, f32);

#[derive(Clone, Copy, Debug)]
enum Function {
    Exp2,
    Silu,
    Tanh,
    Gelu,
}

impl Kernel for Apply {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (f32, f32) {
        let x = simd.splat(self.2);
        let y = match self.1 {
            Function::Exp2 => simd.exp2(x),
            Function::Silu => simd.silu(x),
            Function::Tanh => simd.tanh(x),
            Function::Gelu => simd.gelu_tanh(x),
        };
        let mut lanes = [0.0; LANES];
        simd.store(y, &mut lanes);
        (lanes[0], self.0(self.2))
    }
}

#[test]
fn functions_are_what_they_are_called() {
    let gelu: fn(f32) -> f32 = |x| {
        let x = f64::from(x);
        (0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())) as f32
    };
    let silu: fn(f32) -> f32 = |x| (f64::from(x) / (1.0 + (-f64::from(x)).exp())) as f32;
    for step in -4000..4000 {
        let x = step as f32 / 200.0;
        for (function, truth) in [
            (Function::Exp2, f32::exp2 as fn(f32) -> f32),
            (Function::Silu, silu),
            (Function::Tanh, f32::tanh),
            (Function::Gelu, gelu),
        ] {
            let (found, expected) = Level::best().run(Apply(truth, function, x));
            let bound = 4e-7 * expected.abs().max(x.abs()).max(1.0);
            assert!((found - expected).abs() <= bound, "{function:?}({x}) = {found}, not {expected}");
        }
    }
}

#[test]
fn functions_hold_at_the_ends() {
    for (function, x, expected) in [
        (Function::Exp2, -1e30, 1.175_494_4e-38),
        (Function::Exp2, 1e30, 8.507_059e37),
        (Function::Tanh, 1e30, 1.0),
        (Function::Tanh, -1e30, -1.0),
        (Function::Silu, 1e4, 1e4),
        (Function::Gelu, -1e4, 0.0),
    ] {
        let (found, _) = Level::best().run(Apply(|x| x, function, x));
        assert_eq!(found, expected, "{function:?}({x})");
    }
}

/// A chain of products of bf16 pairs, all exact.
struct Pairs;

impl Kernel for Pairs {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
        // 1.5 and -2.0; lane i of the other has i and 3.
        let first = simd.splat_lane(&[0xc0_u8, 0x3f, 0x00, 0xc0].map(u8::cast_signed));
        let mut second = [0; 64];
        for (i, lane) in second.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            lane[..2].copy_from_slice(&half::bf16::from_f32(i as f32).to_le_bytes());
            lane[2..].copy_from_slice(&half::bf16::from_f32(3.0).to_le_bytes());
        }
        let second = simd.load_bytes(&second);
        #[expect(unsafe_code, reason = "not every processor of a level has it")]
        // SAFETY: the test asks for the instruction.
        let sum = unsafe { simd.dot_bf16(simd.splat(0.25), first, second) };
        let mut lanes = [0.0; LANES];
        simd.store(sum, &mut lanes);
        lanes
    }
}

#[test]
fn pairs_of_bf16_are_multiplied_where_the_processor_can() {
    for level in Level::available().into_iter().filter(|level| level.has_bf16_dot()) {
        let found = level.run_with_bf16_dot(Pairs);
        assert_eq!(found, std::array::from_fn(|i| 0.25 - 6.0 + 1.5 * i as f32));
    }
}
