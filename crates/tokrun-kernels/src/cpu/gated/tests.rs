use super::gated;
use crate::cpu::activations::{Encoded, Forms};
use crate::cpu::linear::linear;
use crate::cpu::matrix::Packer;
use crate::cpu::pool::Pool;
use crate::cpu::simd::Level;
use crate::cpu::testing::{Weights, everywhere, noise};
use crate::{Activation, KernelError, Store, WeightType};

const F32: Forms = Forms { int8: false, halves: false, bf16: false, f32: true };

/// The hidden values as f32: what `gated` encodes in that form.
fn hidden(pool: &mut Pool, level: Level, weights: &[Weights; 2], activation: Activation, x: &[f32]) -> Vec<f32> {
    let (columns, width) = (weights[0].columns, weights[0].rows);
    let rows = x.len() / columns;
    let sources = [weights[0].source(), weights[1].source()];
    let packed = Packer::new(level, pool.threads()).pack_side_by_side(pool, &sources).expect("they can be read");
    let mut input = Encoded::new(level, rows, columns).expect("little memory");
    input.encode(pool, level, x, rows, None, packed.forms());
    let mut out = Encoded::new(level, rows, width).expect("little memory");
    gated(pool, level, &input, &packed, activation, F32, &mut out);
    let mut values = vec![0.0; rows * width];
    for at in out.groups() {
        let blocks = width.div_ceil(32);
        for t in 0..at.size.min(rows - at.row) {
            for block in 0..blocks {
                let from = match at.size {
                    8 => out.f32::<8>(at, blocks)[block][t],
                    4 => out.f32::<4>(at, blocks)[block][t],
                    _ => out.f32::<1>(at, blocks)[block][t],
                };
                let to = &mut values[(at.row + t) * width..][..width][block * 32..];
                let count = to.len().min(32);
                to[..count].copy_from_slice(&from[..count]);
                assert!(from[count..].iter().all(|x| x.to_bits() == 0), "nothing after the last value");
            }
        }
    }
    values
}

#[test]
fn hidden_values_are_activation_of_gate_times_up() {
    for (gate, up) in [
        (WeightType::Q4_1, WeightType::Q4_1),
        (WeightType::Q5_0, WeightType::Q8_0),
        (WeightType::F32, WeightType::Q6_K),
    ] {
        let weights = [Weights::random(gate, 77, 256, 1), Weights::random(up, 77, 256, 2)];
        for (activation, reference) in [
            (Activation::Silu, (|x| x / (1.0 + (-x).exp())) as fn(f64) -> f64),
            (Activation::GeluTanh, |x| {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
            }),
        ] {
            for rows in [1, 6, 140] {
                let x: Vec<f32> = noise(rows * 256, 3).iter().map(|x| 0.2 * x).collect();
                let mut bits: Option<Vec<u32>> = None;
                everywhere(|pool, level| {
                    let values = hidden(pool, level, &weights, activation, &x);
                    let found: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
                    let expected = bits.get_or_insert_with(|| found.clone());
                    assert!(*expected == found, "{gate:?} {up:?} {activation:?} {rows} rows on {}", level.name());
                });
                let mut pool = Pool::new(1, false).expect("no threads");
                let product = |weights: &Weights, pool: &mut Pool| {
                    let packed = Packer::new(Level::best(), 1)
                        .pack_in_turn(pool, &[weights.source()])
                        .expect("they can be read");
                    let mut input = Encoded::new(Level::best(), rows, 256).expect("little memory");
                    input.encode(pool, Level::best(), &x, rows, None, packed.forms());
                    let mut out = vec![0.0; rows * 77];
                    linear(pool, Level::best(), &input, &packed, Store::Set, &mut out);
                    out
                };
                let (gates, ups) = (product(&weights[0], &mut pool), product(&weights[1], &mut pool));
                for ((value, gate), up) in bits.expect("levels").iter().zip(gates).zip(ups) {
                    let expected = reference(f64::from(gate)) * f64::from(up);
                    let off = (f64::from(f32::from_bits(*value)) - expected).abs();
                    let size = f64::from((gate * up).abs()).max(1.0);
                    assert!(off <= 1e-5 * size, "{activation:?}({gate}) * {up} = {}", f32::from_bits(*value));
                }
            }
        }
    }
}

#[test]
fn matrices_of_other_shapes_are_refused() {
    let weights = [Weights::random(WeightType::Q8_0, 32, 64, 1), Weights::random(WeightType::Q8_0, 33, 64, 2)];
    let mut pool = Pool::new(1, false).expect("no threads");
    let error = Packer::new(Level::best(), 1).pack_side_by_side(&mut pool, &[weights[0].source(), weights[1].source()]);
    assert!(matches!(error, Err(KernelError::Shape { .. })));
}
