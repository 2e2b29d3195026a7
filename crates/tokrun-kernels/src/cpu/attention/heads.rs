//! Heads on their way into attention and out of it.

use super::super::norm::{inverse_rms, scale_by_weight, store_part};
use super::super::rope::RopeTable;
use super::super::simd::{Kernel, LANES, Simd};
use super::segment::Softmax;
use crate::Norm;

/// Copies heads of a row: normalised, turned and scaled, with zeros after their values up to whole vectors.
pub(super) struct TakeHeads<'a> {
    /// Side by side, of `head_dim` values.
    pub(super) heads: &'a [f32],
    pub(super) head_dim: usize,
    pub(super) norm: Option<&'a Norm>,
    pub(super) rope: Option<&'a RopeTable>,
    /// The row of the step they are of.
    pub(super) row: usize,
    pub(super) scale: f32,
    /// `[heads, dim]`
    pub(super) to: &'a mut [f32],
    pub(super) dim: usize,
}

impl Kernel for TakeHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (head, to) in self.heads.chunks_exact(self.head_dim).zip(self.to.chunks_exact_mut(self.dim)) {
            let (to, rest) = to.split_at_mut(self.head_dim);
            to.copy_from_slice(head);
            rest.fill(0.0);
            if let Some(norm) = self.norm {
                let factor = inverse_rms(simd, head, norm.epsilon);
                scale_by_weight(simd, to, factor, &norm.weight);
            }
            if let Some(rope) = self.rope {
                rope.rotate(simd, self.row, to);
            }
            for x in to {
                *x *= self.scale;
            }
        }
    }
}

/// Divides what queries got by its weight.
pub(super) struct Divide<'a> {
    /// `[queries, dim]`
    pub(super) values: &'a [f32],
    pub(super) dim: usize,
    pub(super) sums: &'a [Softmax],
    /// `[queries, head_dim]`
    pub(super) out: &'a mut [f32],
    pub(super) head_dim: usize,
}

impl Kernel for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.values.chunks_exact(self.dim).zip(self.out.chunks_exact_mut(self.head_dim));
        for ((values, out), sums) in rows.zip(self.sums) {
            let factor = simd.splat(1.0 / sums.total);
            for (x, out) in values.as_chunks::<LANES>().0.iter().zip(out.chunks_mut(LANES)) {
                store_part(simd, simd.mul(simd.load(x), factor), out);
            }
        }
    }
}
