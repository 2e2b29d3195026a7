//! The operations written for reading: plain f32 weights, sums in f64, one row after the other. The fast backends are
//! checked against it; it runs any model, slowly.

mod attention;
mod rows;

use std::ops::Range;

use crate::backend::{
    Activation, Attention, Backend, Consumer, Expert, KvShape, MatrixSource, Norm, Rope, RopeId, Routing, Span, Step,
    Store,
};
use crate::sampling::{BadLogit, Draw, Drawn};
use crate::{KernelError, dequantise};

pub use attention::ReferenceKv;
pub use rows::ReferenceRows;

/// The backend that says what the others ought to compute.
#[derive(Debug, Default)]
pub struct Reference {
    ropes: Vec<Rope>,
    tokens: Vec<u32>,
    spans: Vec<Span>,
    /// Rows that operations work on: those of the step, or those that were selected since.
    rows: usize,
    drawn: Drawn,
}

/// Matrices with the same input, one below the other.
#[derive(Debug)]
pub struct ReferenceLinear {
    columns: usize,
    /// `[rows, columns]`.
    weights: Vec<f32>,
    /// `[rows]`, zeros where the file has none.
    bias: Vec<f32>,
}

/// Gate and up matrices.
#[derive(Debug)]
pub struct ReferenceGated {
    gate: ReferenceLinear,
    up: ReferenceLinear,
}

impl Backend for Reference {
    type Linear = ReferenceLinear;
    type Gated = ReferenceGated;
    type Rows = ReferenceRows;
    type Encoded = ReferenceRows;
    type Kv = ReferenceKv;

    fn pack_linear(&mut self, matrices: &[MatrixSource<'_>]) -> Result<ReferenceLinear, KernelError> {
        let Some(first) = matrices.first() else {
            return Err(shape("no matrix was given".into()));
        };
        let mut linear = ReferenceLinear { columns: first.columns, weights: Vec::new(), bias: Vec::new() };
        for matrix in matrices {
            linear.append(matrix)?;
        }
        Ok(linear)
    }

    fn pack_gated(&mut self, gate: MatrixSource<'_>, up: MatrixSource<'_>) -> Result<ReferenceGated, KernelError> {
        if (gate.rows, gate.columns) != (up.rows, up.columns) {
            return Err(shape(format!(
                "the gate is {} x {}, the up projection {} x {}",
                gate.rows, gate.columns, up.rows, up.columns
            )));
        }
        Ok(ReferenceGated { gate: self.pack_linear(&[gate])?, up: self.pack_linear(&[up])? })
    }

    fn add_rope(&mut self, rope: Rope) -> RopeId {
        self.ropes.push(rope);
        RopeId(self.ropes.len() - 1)
    }

    fn rows(&mut self, rows: usize, width: usize) -> Result<ReferenceRows, KernelError> {
        ReferenceRows::new(rows, width)
    }

    fn encoded(&mut self, rows: usize, width: usize) -> Result<ReferenceRows, KernelError> {
        ReferenceRows::new(rows, width)
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<ReferenceKv, KernelError> {
        ReferenceKv::new(shape)
    }

    fn begin(&mut self, step: &Step) {
        self.tokens.clone_from(&step.tokens);
        self.spans.clone_from(&step.spans);
        self.rows = step.tokens.len();
    }

    fn embed(&mut self, table: &ReferenceLinear, scale: f32, out: &mut ReferenceRows) {
        for (row, &token) in self.tokens.iter().enumerate() {
            for (out, weight) in out.row_mut(row).iter_mut().zip(table.row(token as usize)) {
                *out = scale * weight;
            }
        }
    }

    fn encode(
        &mut self,
        x: &ReferenceRows,
        norm: Option<&Norm>,
        _consumer: Consumer<'_, Self>,
        out: &mut ReferenceRows,
    ) {
        for row in 0..self.rows {
            out.row_mut(row).copy_from_slice(x.row(row));
            if let Some(norm) = norm {
                normalise(out.row_mut(row), norm);
            }
        }
    }

    fn linear(&mut self, input: &ReferenceRows, weights: &ReferenceLinear, store: Store, out: &mut ReferenceRows) {
        for row in 0..self.rows {
            let product = weights.apply(input.row(row));
            add_or_set(store, &product, out.row_mut(row));
        }
    }

    fn gated(
        &mut self,
        input: &ReferenceRows,
        weights: &ReferenceGated,
        activation: Activation,
        _consumer: &ReferenceLinear,
        out: &mut ReferenceRows,
    ) {
        for row in 0..self.rows {
            out.row_mut(row).copy_from_slice(&weights.apply(input.row(row), activation));
        }
    }

    fn attention(
        &mut self,
        layer: usize,
        attention: &Attention,
        qkv: &ReferenceRows,
        kv: &mut ReferenceKv,
        out: &mut ReferenceRows,
    ) {
        let rope = attention.rope.map(|id| &self.ropes[id.0]);
        for span in &self.spans {
            for (row, position) in span.rows.clone().zip(span.start..) {
                kv.attend(layer, attention, rope, &span.blocks, position, qkv.row(row), out.row_mut(row));
            }
        }
    }

    fn norm(&mut self, x: &mut ReferenceRows, columns: Range<usize>, norm: &Norm) {
        for row in 0..self.rows {
            normalise(&mut x.row_mut(row)[columns.clone()], norm);
        }
    }

    fn add_norm(&mut self, x: &mut ReferenceRows, y: &ReferenceRows, norm: &Norm) {
        for row in 0..self.rows {
            let mut y = y.row(row).to_vec();
            normalise(&mut y, norm);
            add_or_set(Store::Add, &y, x.row_mut(row));
        }
    }

    fn moe(
        &mut self,
        input: &ReferenceRows,
        router: &ReferenceRows,
        routing: Routing,
        activation: Activation,
        experts: &[Expert<Self>],
        x: &mut ReferenceRows,
    ) {
        for row in 0..self.rows {
            for (expert, share) in route(router.row(row), routing) {
                let hidden = experts[expert].gated.apply(input.row(row), activation);
                let output = experts[expert].down.apply(&hidden);
                for (x, output) in x.row_mut(row).iter_mut().zip(output) {
                    *x = (f64::from(*x) + share * f64::from(output)) as f32;
                }
            }
        }
    }

    fn select(&mut self, x: &ReferenceRows, rows: &[usize], out: &mut ReferenceRows) {
        for (to, &from) in rows.iter().enumerate() {
            assert!(from < self.rows, "row {from} of {}", self.rows);
            out.row_mut(to).copy_from_slice(x.row(from));
        }
        self.rows = rows.len();
    }

    fn softcap(&mut self, x: &mut ReferenceRows, cap: f32) {
        for value in x.first_mut(self.rows) {
            *value = soften(f64::from(*value), cap) as f32;
        }
    }

    fn feed(&mut self, drawn: &[(usize, usize)]) {
        self.drawn.feed(drawn, &mut self.tokens);
    }

    fn sample(&mut self, logits: &ReferenceRows, first: usize, draws: &[Draw]) {
        if draws.is_empty() {
            return;
        }
        let rows = logits.first(self.rows).chunks(logits.width()).skip(first);
        self.drawn.push(draws.iter().zip(rows).map(|(draw, row)| draw.choose(row)).collect(), draws.len());
    }

    fn sampled(&mut self) -> Vec<Result<u32, BadLogit>> {
        self.drawn.take()
    }

    fn read_from<'a>(&mut self, x: &'a ReferenceRows, first: usize) -> &'a [f32] {
        &x.first(self.rows)[first * x.width()..]
    }
}

impl ReferenceLinear {
    fn append(&mut self, matrix: &MatrixSource<'_>) -> Result<(), KernelError> {
        let MatrixSource { rows, columns, weight_type, source, bias } = *matrix;
        if columns != self.columns {
            return Err(shape(format!("{columns} columns beside {}", self.columns)));
        }
        let row_bytes = weight_type.row_bytes(columns).ok_or_else(|| {
            shape(format!(
                "{columns} columns are not whole blocks of {}: {}",
                weight_type.block_size(),
                weight_type.name()
            ))
        })?;
        let mut bytes = vec![0; row_bytes];
        for row in 0..rows {
            source.read(row..row + 1, &mut bytes)?;
            reserve(&mut self.weights, columns)?;
            dequantise(weight_type, &bytes, &mut self.weights);
        }
        match bias {
            Some(bias) if bias.len() != rows => {
                return Err(shape(format!("{} bias values for {rows} rows", bias.len())));
            }
            Some(bias) => self.bias.extend_from_slice(bias),
            None => self.bias.resize(self.bias.len() + rows, 0.0),
        }
        Ok(())
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.weights[row * self.columns..][..self.columns]
    }

    fn apply(&self, input: &[f32]) -> Vec<f32> {
        assert_eq!(input.len(), self.columns, "the input's width");
        let rows = self.weights.chunks_exact(self.columns);
        rows.zip(&self.bias).map(|(row, &bias)| (dot(row, input) + f64::from(bias)) as f32).collect()
    }
}

impl ReferenceGated {
    fn apply(&self, input: &[f32], activation: Activation) -> Vec<f32> {
        let (gate, up) = (self.gate.apply(input), self.up.apply(input));
        gate.into_iter().zip(up).map(|(gate, up)| (activate(activation, gate) * f64::from(up)) as f32).collect()
    }
}

/// The chosen experts and their shares, best first.
fn route(logits: &[f32], routing: Routing) -> Vec<(usize, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();

    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    ranked.truncate(routing.experts_per_token);

    let total: f64 = match routing.normalise {
        true => ranked.iter().map(|&expert| exponentials[expert]).sum(),
        false => exponentials.iter().sum(),
    };
    ranked.into_iter().map(|expert| (expert, exponentials[expert] / total)).collect()
}

fn normalise(x: &mut [f32], norm: &Norm) {
    assert_eq!(x.len(), norm.weight.len(), "the norm's width");
    let factor = inverse_rms(x, norm.epsilon);
    for (x, &weight) in x.iter_mut().zip(norm.weight.iter()) {
        *x = (f64::from(*x) * factor * f64::from(weight)) as f32;
    }
}

fn inverse_rms(x: &[f32], epsilon: f32) -> f64 {
    (dot(x, x) / x.len() as f64 + f64::from(epsilon)).sqrt().recip()
}

fn activate(activation: Activation, x: f32) -> f64 {
    let x = f64::from(x);
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

fn soften(x: f64, cap: f32) -> f64 {
    f64::from(cap) * (x / f64::from(cap)).tanh()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn add_or_set(store: Store, values: &[f32], out: &mut [f32]) {
    assert_eq!(values.len(), out.len(), "the output's width");
    match store {
        Store::Set => out.copy_from_slice(values),
        Store::Add => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
    }
}

fn shape(reason: String) -> KernelError {
    KernelError::Shape { reason }
}

/// Room for `len` more values, or the error that says how much was missing.
fn reserve(values: &mut Vec<f32>, len: usize) -> Result<(), KernelError> {
    let bytes = (values.len() + len).saturating_mul(size_of::<f32>());
    values.try_reserve(len).map_err(|_| KernelError::OutOfMemory { bytes })
}

#[cfg(test)]
mod tests;
