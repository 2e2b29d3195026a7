//! Matrices of activations.

use super::{reserve, shape};
use crate::KernelError;

/// `[rows, width]`, row-major.
#[derive(Debug)]
pub struct ReferenceRows {
    width: usize,
    values: Vec<f32>,
}

impl ReferenceRows {
    pub(super) fn new(rows: usize, width: usize) -> Result<Self, KernelError> {
        let len = rows.checked_mul(width).ok_or_else(|| shape(format!("{rows} rows of {width} values")))?;
        let mut values = Vec::new();
        reserve(&mut values, len)?;
        values.resize(len, 0.0);
        Ok(Self { width, values })
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The values of the first `rows` rows.
    pub(super) fn first(&self, rows: usize) -> &[f32] {
        &self.values[..rows * self.width]
    }

    pub(crate) fn first_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.values[..rows * self.width]
    }
}
