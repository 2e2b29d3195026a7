//! Steps of many rows, which go through tensor cores. The cases of `tests/it` draw shapes at random; here are those of every
//! kernel: each type with each height of a tile, filled and not.
//!
//! How far outputs may be from the reference is what `common::through` derives: integer sums are exact, so what tensor cores
//! add to the roundings of int8 and bf16 inputs are f32 sums in another order, 1e-5 of the largest terms.

use tokrun_kernels::{Activation, WeightType};

use crate::{linear, mixture};

/// One for each height of a tile: 16, 32, 64 and 128 rows, of which the last are two where the type has none so high.
const ROWS: [usize; 4] = [16, 17, 50, 67];

#[test]
fn every_height_of_every_type_agrees() {
    for (i, weight_type) in WeightType::ALL.into_iter().enumerate() {
        for (j, rows) in ROWS.into_iter().enumerate() {
            let seed = (10 * i + j) as u64;
            // Columns in one part and in several, whole stages and not.
            let case = linear::Case::random(seed, &[weight_type], 3 + 7 * (j % 3), rows);
            linear::check_linear(&case.exact(seed), &[weight_type], seed);
        }
    }
}

#[test]
fn gated_blocks_of_every_height_agree() {
    for (i, weight_type) in WeightType::ALL.into_iter().enumerate() {
        let rows = ROWS[i % ROWS.len()];
        linear::check_gated([weight_type; 3], i as u64, 1 + i % 6, rows, Activation::Silu);
    }
}

/// More pairs than a tile holds, experts that nobody chose, and a single one.
#[test]
fn experts_of_many_rows_agree() {
    for (seed, experts, rows) in [(1, 1, 70), (2, 3, 40), (3, 40, 12), (4, 5, 9)] {
        mixture::check([WeightType::Q4_K, WeightType::Q4_K, WeightType::Q6_K], seed, experts, rows);
        mixture::check([WeightType::BF16, WeightType::BF16, WeightType::F16], seed, experts, rows);
        mixture::check([WeightType::Q8_0, WeightType::Q4_0, WeightType::F32], seed, experts, rows);
    }
}
