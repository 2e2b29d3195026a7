//! The gated feed-forward block: `activation(gate x) * (up x)`, encoded for the matrix that comes next while it is still
//! in the cache.

use super::activations::{Encoded, Forms, GROUP_ROWS_MAX, Slots};
use super::formats::BLOCK;
use super::linear::multiply;
use super::matrix::Packed;
use super::memory::Disjoint;
use super::pool::Pool;
use super::product::{Place, Target};
use super::simd::{Kernel, LANES, Level, Simd};
use crate::Activation;

#[cfg(test)]
mod tests;

/// Rows whose products are kept at once: whole groups.
const ROWS: usize = 16 * GROUP_ROWS_MAX;
/// Multiplications below which waking the other threads takes longer than the work.
const ALONE_PRODUCTS_MAX: usize = 64 << 10;

/// `activation(gate * input[row]) * (up * input[row])`, for each row of the input, in the forms that the next matrix
/// reads. `weights` are gate and up, packed side by side.
pub(super) fn gated(
    pool: &mut Pool,
    level: Level,
    input: &Encoded,
    weights: &Packed,
    activation: Activation,
    forms: Forms,
    out: &mut Encoded,
) {
    let (rows, hidden) = (input.rows(), weights.matrices[0].rows);
    assert_eq!(input.width(), weights.columns(), "the input's width");
    input.expect(weights.forms());
    let slots = out.begin(rows, hidden, forms);
    let blocks = |blocks: &mut dyn Iterator<Item = usize>| {
        let mut products = vec![0.0; rows.min(ROWS) * 2 * BLOCK];
        for block in blocks {
            for first in (0..rows).step_by(ROWS) {
                let rows = first..rows.min(first + ROWS);
                let products = &mut products[..rows.len() * 2 * BLOCK];
                let count = gate_and_up(level, input, weights, block, rows.clone(), products);
                level.run(Activate { products, count, activation, slots, first_row: rows.start, block });
            }
        }
    };
    let count = weights.chunks.len() / 2;
    if pool.threads() == 1 || 2 * rows * hidden * weights.columns() <= ALONE_PRODUCTS_MAX {
        return blocks(&mut (0..count));
    }
    pool.for_chunks(count, |_, chunks| blocks(chunks));
}

/// The products of one block of 32 hidden values: 32 of gate, 32 of up for each row. Returns how many there are, fewer in
/// the last block.
fn gate_and_up(
    level: Level,
    input: &Encoded,
    weights: &Packed,
    block: usize,
    rows: std::ops::Range<usize>,
    products: &mut [f32],
) -> usize {
    let out = Disjoint::new(products);
    let mut count = 0;
    for (side, matrix) in weights.matrices.iter().enumerate() {
        let chunk = &weights.chunks[2 * block + side];
        let first = block * BLOCK;
        count = BLOCK.min(matrix.rows - first);
        let bias = matrix.bias.as_ref().map(|bias| &bias[first..]);
        let to = Place { values: &out, stride: 2 * BLOCK, column: side * BLOCK };
        let target = Target { from: None, to, outputs: count, bias };
        multiply(level, matrix, weights.bytes(chunk), input, rows.clone(), target);
    }
    count
}

/// Applies the activation and encodes.
struct Activate<'a> {
    /// A row: 32 of gate, 32 of up.
    products: &'a [f32],
    /// How many of the 32 there are.
    count: usize,
    activation: Activation,
    slots: Slots,
    /// Row of the first of `products`.
    first_row: usize,
    block: usize,
}

impl Kernel for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, products) in self.products.as_chunks::<{ 2 * BLOCK }>().0.iter().enumerate() {
            let vectors = products.as_chunks::<LANES>().0;
            let mut hidden = [simd.splat(0.0); 2];
            for (half, hidden) in hidden.iter_mut().enumerate() {
                let (gate, up) = (simd.load(&vectors[half]), simd.load(&vectors[2 + half]));
                let gate = match self.activation {
                    Activation::Silu => simd.silu(gate),
                    Activation::GeluTanh => simd.gelu_tanh(gate),
                };
                let lanes = self.count.saturating_sub(half * LANES);
                *hidden = simd.first_lanes(lanes, simd.mul(gate, up), simd.splat(0.0));
            }
            #[expect(unsafe_code, reason = "threads share one matrix")]
            // SAFETY: blocks are dealt out to threads, and `gated` waits for all of them.
            unsafe {
                self.slots.write(simd, self.first_row + row, self.block, hidden);
            }
        }
    }
}
