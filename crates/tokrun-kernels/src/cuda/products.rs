//! Operations with weights: embeddings, encoding for them, linear maps, gated blocks.

use super::backend::{Cuda, CudaGated, CudaLinear, Halves, THREADS};
use super::device::Kernel;
use super::matrix::{Matrix, TILE_ROWS};
use super::memory::Buffer;
use super::rows::{CudaEncoded, CudaRows, Forms, checked_len};
use super::tiles::{Cut, Grouped};
use crate::{Activation, Consumer, KernelError, Norm, Store};

/// What products keep between calls.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// `[rows, 2 * hidden]`: gate and up where they have different types.
    pub(super) products: Option<Buffer<f32>>,
}

impl CudaLinear {
    /// Inputs.
    pub(super) fn columns(&self) -> usize {
        self.parts[0].columns
    }

    /// Outputs.
    pub(super) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    pub(super) fn forms(&self) -> Forms {
        self.parts.iter().fold(Forms::default(), |forms, part| forms.and(part.form))
    }
}

impl CudaGated {
    fn columns(&self) -> usize {
        self.halves().0.columns
    }

    /// Hidden values.
    pub(super) fn hidden(&self) -> usize {
        match &self.halves {
            Halves::Joined(both) => both.rows / 2,
            Halves::Apart(halves) => halves[0].rows,
        }
    }

    pub(super) fn forms(&self) -> Forms {
        let (gate, up) = self.halves();
        Forms::default().and(gate.form).and(up.form)
    }

    fn halves(&self) -> (&Matrix, &Matrix) {
        match &self.halves {
            Halves::Joined(both) => (both, both),
            Halves::Apart(halves) => (&halves[0], &halves[1]),
        }
    }
}

/// The kernels' number for it.
pub(super) const fn activation_number(activation: Activation) -> usize {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

/// The kernel for so many rows of input, and how many tiles they are cut into.
fn for_rows(kernels: [Kernel; 3], rows: usize) -> (Kernel, usize) {
    let tile = TILE_ROWS.iter().position(|tile| rows <= *tile).unwrap_or(TILE_ROWS.len() - 1);
    (kernels[tile], rows.div_ceil(TILE_ROWS[tile]))
}

impl Cuda {
    pub(super) fn launch_embed(
        &mut self,
        table: &CudaLinear,
        scale: f32,
        out: &mut CudaRows,
    ) -> Result<(), KernelError> {
        let [matrix] = &table.parts[..] else { panic!("embeddings are one matrix") };
        assert_eq!(matrix.columns, out.width(), "the embeddings' width");
        let (tokens, to) = (self.stage.tokens(), out.address_mut(self.rows));
        let arguments = matrix.argument(self.launch_rows(matrix.kernels.embed));
        let arguments = arguments.param().address(tokens).param().float(scale);
        arguments.param().address(to).param().int(matrix.columns);
        Ok(())
    }

    pub(super) fn launch_encode(
        &mut self,
        x: &CudaRows,
        norm: Option<&Norm>,
        consumer: Consumer<'_, Self>,
        out: &mut CudaEncoded,
    ) -> Result<(), KernelError> {
        let width = x.width();
        assert_eq!(out.width(), width, "the encoded rows' width");
        assert!(norm.is_none_or(|norm| norm.weight.len() == width), "the norm's width");
        let forms = match consumer {
            Consumer::Linear(linear) => linear.forms(),
            Consumer::Gated(gated) => gated.forms(),
            Consumer::Expert(expert) => expert.gated.forms(),
        };
        let weight = norm.map(|norm| self.norm_weight(norm)).transpose()?.unwrap_or(0);
        out.begin(&self.device, self.rows, forms)?;
        let from = x.address(self.rows);
        let arguments = self.launch_rows(self.kernels.encode).param().address(from).param().address(weight);
        let arguments = arguments.param().float(norm.map_or(0.0, |norm| norm.epsilon)).param().int(width);
        out.output(arguments);
        Ok(())
    }

    pub(super) fn launch_linear(
        &mut self,
        input: &CudaEncoded,
        weights: &CudaLinear,
        store: Store,
        out: &mut CudaRows,
    ) -> Result<(), KernelError> {
        assert_eq!(input.width(), weights.columns(), "the input's width");
        assert_eq!(input.rows(), self.rows, "encoded rows");
        assert_eq!(out.width(), weights.rows(), "the output's width");
        let (mut to, stride) = (out.address_mut(self.rows), out.width());
        for part in &weights.parts {
            self.multiply(input, part, store, to, stride);
            to += 4 * part.rows as u64;
        }
        Ok(())
    }

    /// Products of one matrix, to `to`, which has `stride` values a row.
    fn multiply(&mut self, input: &CudaEncoded, matrix: &Matrix, store: Store, to: u64, stride: usize) {
        let rows = input.rows();
        if let Some(kernels) = matrix.kernels.tiles.filter(|_| self.on_tensor_cores(rows)) {
            let cut = (Cut::of_rows(rows, &kernels), Grouped::default());
            return self.multiply_tiles(kernels, matrix, cut, input, store == Store::Add, to, stride);
        }
        let (kernel, tiles) = for_rows(matrix.kernels.linear, rows);
        let arguments = self.launches.add(kernel, [matrix.linear_blocks() * tiles, 1, 1], THREADS);
        let arguments = input.input(matrix.form, matrix.argument(arguments)).param().address(to).param().int(stride);
        arguments.param().int(usize::from(store == Store::Add)).param().int(matrix.warps_a_row);
    }

    pub(super) fn launch_gated(
        &mut self,
        input: &CudaEncoded,
        weights: &CudaGated,
        activation: Activation,
        consumer: &CudaLinear,
        out: &mut CudaEncoded,
    ) -> Result<(), KernelError> {
        let (rows, hidden) = (self.rows, weights.hidden());
        assert_eq!(input.width(), weights.columns(), "the input's width");
        assert_eq!(input.rows(), rows, "encoded rows");
        assert_eq!(out.width(), hidden, "the encoded rows' width");
        out.begin(&self.device, rows, consumer.forms())?;
        match &weights.halves {
            Halves::Joined(both) => {
                if let Some(kernels) = both.kernels.tiles.filter(|_| self.on_tensor_cores(rows)) {
                    let cut = (Cut::of_rows(rows, &kernels), Grouped::default());
                    self.gate_tiles(kernels, both, cut, input, activation_number(activation), out);
                    return Ok(());
                }
                let (kernel, tiles) = for_rows(both.kernels.gated, rows);
                let arguments = self.launches.add(kernel, [hidden.div_ceil(32) * tiles, 1, 1], THREADS);
                let arguments = input.input(both.form, both.argument(arguments));
                out.output(arguments.param().int(activation_number(activation)));
            }
            Halves::Apart(halves) => {
                let [gate, up] = &**halves;
                let products =
                    self.room(|cuda| &mut cuda.products.products, checked_len(self.stage.rows(), 2 * hidden)?)?;
                self.multiply(input, gate, Store::Set, products, 2 * hidden);
                self.multiply(input, up, Store::Set, products + 4 * hidden as u64, 2 * hidden);
                self.activate(rows, products, hidden, activation, out);
            }
        }
        Ok(())
    }

    /// Encodes `activation(gate) * up` of `[rows, 2 * hidden]` products.
    pub(super) fn activate(
        &mut self,
        rows: usize,
        products: u64,
        hidden: usize,
        activation: Activation,
        out: &CudaEncoded,
    ) {
        let arguments = self.launches.add(self.kernels.activate, [rows, 1, 1], THREADS).param().address(products);
        out.output(arguments.param().int(hidden).param().int(activation_number(activation)));
    }
}
