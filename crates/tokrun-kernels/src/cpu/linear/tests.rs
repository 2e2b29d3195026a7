use super::{embed, linear};
use crate::cpu::activations::Encoded;
use crate::cpu::matrix::{Packed, Packer};
use crate::cpu::pool::Pool;
use crate::cpu::simd::Level;
use crate::cpu::testing::{Weights, noise};
use crate::{Store, WeightType};

const SHAPES: [(usize, usize); 4] = [(1, 256), (16, 512), (47, 256), (130, 768)];
const ROWS: [usize; 6] = [1, 2, 3, 7, 21, 45];

fn pack(pool: &mut Pool, level: Level, weights: &[&Weights]) -> Packed {
    let sources: Vec<_> = weights.iter().map(|weights| weights.source()).collect();
    Packer::new(level, pool.threads()).pack_in_turn(pool, &sources).expect("they can be read")
}

/// Encodes `x` and multiplies it.
fn product(pool: &mut Pool, level: Level, packed: &Packed, x: &[f32], store: Store, out: &mut [f32]) {
    let rows = x.len() / packed.columns();
    let mut input = Encoded::new(level, rows, packed.columns()).expect("little memory");
    input.encode(pool, level, x, rows, None, packed.forms());
    linear(pool, level, &input, packed, store, out);
}

/// What the products of a quantised type are exactly, and what they may differ by: rows are rounded to int8 in blocks of
/// 32, all else to f32; or to bf16, with 16-bit weights where the processor multiplies such.
fn expected(weights: &Weights, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let values = weights.values();
    let pairs = Level::best().prefers_bf16_dot() && matches!(weights.weight_type, WeightType::F16 | WeightType::BF16);
    let rounded = if pairs { 1.0 / 127.0 } else { 4e-6 };
    let floats = [WeightType::F32, WeightType::F16, WeightType::BF16, WeightType::FP8];
    let float = floats.contains(&weights.weight_type);
    let (mut exact, mut bound) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(weights.columns) {
        for w in values.chunks_exact(weights.columns) {
            let (mut sum, mut off) = (0.0, 0.0);
            for (x, w) in x.chunks(32).zip(w.chunks(32)) {
                let top = x.iter().fold(0.0, |top: f64, x| top.max(f64::from(x.abs())));
                let step = if float { 0.0 } else { top / 127.0 };
                for (x, w) in x.iter().zip(w) {
                    let (x, w) = (f64::from(*x), f64::from(*w));
                    sum += x * w;
                    off += w.abs() * step / 2.0 + rounded * (x * w).abs() + 1e-4 * step * w.abs();
                }
            }
            exact.push(sum);
            bound.push(off + 1e-3 * if float { 0.0 } else { off } + 2e-5);
        }
    }
    (exact, bound)
}

#[test]
fn products_are_those_of_the_numbers() {
    let mut pool = Pool::new(2, false).expect("threads start");
    for weight_type in WeightType::ALL {
        for (rows, columns) in SHAPES {
            let weights = Weights::random(weight_type, rows, columns, 7);
            let packed = pack(&mut pool, Level::best(), &[&weights]);
            for count in [1, 5, 40] {
                let x = noise(count * columns, 3);
                let mut out = vec![f32::NAN; count * rows];
                product(&mut pool, Level::best(), &packed, &x, Store::Set, &mut out);
                let (exact, bound) = expected(&weights, &x);
                for (i, ((out, exact), bound)) in out.iter().zip(exact).zip(bound).enumerate() {
                    let off = (f64::from(*out) - exact).abs();
                    assert!(off <= bound, "{weight_type:?} {rows} x {columns}, {count} rows, {i}: {out}, not {exact}");
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_those_beside_it() {
    for weight_type in WeightType::ALL {
        let weights = Weights::random(weight_type, 70, 512, 1);
        let x = noise(ROWS.iter().max().expect("some") * 512, 5);
        let mut expected: Option<Vec<u32>> = None;
        for level in Level::available() {
            if level.prefers_bf16_dot() && matches!(weight_type, WeightType::F16 | WeightType::BF16) {
                // Other numbers than those of other levels, but the same for any number of rows.
                expected = None;
            }
            for threads in [1, 3] {
                let mut pool = Pool::new(threads, false).expect("threads start");
                let packed = pack(&mut pool, level, &[&weights]);
                let mut products = |x: &[f32]| {
                    let mut out = vec![0.0; x.len() / 512 * 70];
                    product(&mut pool, level, &packed, x, Store::Set, &mut out);
                    out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                };
                let expected = expected.get_or_insert_with(|| x.chunks_exact(512).flat_map(&mut products).collect());
                for rows in ROWS {
                    let found = products(&x[..rows * 512]);
                    let who = format!("{weight_type:?}, {}, {threads} threads, {rows} rows", level.name());
                    assert!(found == expected[..rows * 70], "{who}");
                }
            }
        }
    }
}

#[test]
fn outputs_lie_side_by_side_and_are_added_where_asked() {
    let types = [WeightType::Q4_1, WeightType::Q6_K, WeightType::F16, WeightType::Q8_0];
    let weights: Vec<_> = types.iter().enumerate().map(|(i, t)| Weights::random(*t, 20 + 9 * i, 256, 2)).collect();
    let bias = noise(20, 9);
    for rows in [1, 3, 33] {
        let x = noise(rows * 256, 4);
        let mut pool = Pool::new(2, false).expect("threads start");
        let mut sources: Vec<_> = weights.iter().map(Weights::source).collect();
        sources[0].bias = Some(&bias);
        let packed = Packer::new(Level::best(), 2).pack_in_turn(&mut pool, &sources).expect("they can be read");
        let width = packed.outputs();
        let mut out = vec![f32::NAN; rows * width];
        product(&mut pool, Level::best(), &packed, &x, Store::Set, &mut out);
        let mut first = 0;
        for (index, weights) in weights.iter().enumerate() {
            let mut alone = vec![0.0; rows * weights.rows];
            let packed = pack(&mut pool, Level::best(), &[weights]);
            product(&mut pool, Level::best(), &packed, &x, Store::Set, &mut alone);
            for (out, alone) in out.chunks_exact(width).zip(alone.chunks_exact(weights.rows)) {
                for (i, alone) in alone.iter().enumerate() {
                    let bias = if index == 0 { bias[i] } else { 0.0 };
                    assert_eq!(out[first + i], alone + bias);
                }
            }
            first += weights.rows;
        }
        let before = out.clone();
        product(&mut pool, Level::best(), &packed, &x, Store::Add, &mut out);
        for (out, before) in out.iter().zip(before) {
            assert!((out - 2.0 * before).abs() <= 1e-3 * before.abs().max(1.0), "{before} + {before} = {out}");
        }
    }
}

#[test]
fn rows_of_tables_are_their_numbers() {
    let mut pool = Pool::new(2, false).expect("threads start");
    for weight_type in WeightType::ALL {
        let weights = Weights::random(weight_type, 37, 512, 6);
        let values = weights.values();
        for level in Level::available() {
            let packed = pack(&mut pool, level, &[&weights]);
            let rounded = if weight_type == WeightType::F16 && packed.matrices[0].bf16_pairs { 8e-3 } else { 0.0 };
            let tokens = [0, 36, 15, 16, 17];
            let mut out = vec![0.0; tokens.len() * 512];
            embed(&mut pool, level, &packed, &tokens, 2.0, &mut out);
            for (token, out) in tokens.iter().zip(out.chunks_exact(512)) {
                for (out, value) in out.iter().zip(&values[*token as usize * 512..]) {
                    assert!(
                        (out - 2.0 * value).abs() <= 1e-6 * value.abs().max(1.0) + rounded * value.abs(),
                        "{weight_type:?}: {out}, not {value}"
                    );
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "token 37 of 37")]
fn a_token_without_a_row_is_a_bug() {
    let mut pool = Pool::new(1, false).expect("no threads");
    let packed = pack(&mut pool, Level::best(), &[&Weights::random(WeightType::Q8_0, 37, 32, 6)]);
    embed(&mut pool, Level::best(), &packed, &[37], 1.0, &mut [0.0; 32]);
}
