//! Operations on rows of activations alone.

use std::ops::Range;

use proptest::prelude::*;
use tokrun_kernels::{Backend, Norm};

use crate::support::{
    Agreement, Estimate, Processor, Random, cuts, one_span, processors, reference, same_bits, table, upload, whole,
    within,
};

/// A norm of some columns, a norm added, a soft cap, a choice of rows.
struct Case {
    rows: usize,
    width: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    columns: Range<usize>,
    column_norm: Norm,
    row_norm: Norm,
    cap: f32,
}

impl Case {
    fn random(seed: u64, rows: usize, width: usize) -> Self {
        let random = &mut Random::new(seed);
        let start = random.below(width);
        let columns = start..start + 1 + random.below(width - start);
        let norm = |random: &mut Random, width| Norm { weight: random.values(width, 2.0).into(), epsilon: 1e-5 };
        Self {
            rows,
            width,
            x: random.rows(rows, width),
            y: random.rows(rows, width),
            column_norm: norm(random, columns.len()),
            columns,
            row_norm: norm(random, width),
            cap: 5.0 + random.unit(),
        }
    }

    fn run<B: Backend>(&self, backend: &mut B, parts: &[Range<usize>]) -> Vec<f32> {
        let (x_table, y_table) = (table(backend, &self.x, self.width), table(backend, &self.y, self.width));
        let mut outputs = Vec::new();
        for part in parts {
            backend.begin(&one_span(part.start, part.len()));
            let mut x = upload(backend, part.len(), &x_table, self.width);
            let y = upload(backend, part.len(), &y_table, self.width);
            backend.norm(&mut x, self.columns.clone(), &self.column_norm);
            backend.add_norm(&mut x, &y, &self.row_norm);
            backend.softcap(&mut x, self.cap);
            outputs.extend_from_slice(backend.read(&x));
        }
        outputs
    }

    fn estimates(&self) -> Vec<Estimate> {
        let rows = self.x.chunks_exact(self.width).zip(self.y.chunks_exact(self.width));
        rows.flat_map(|(x, y)| {
            let mut x: Vec<f64> = x.iter().copied().map(f64::from).collect();
            normalise(&mut x[self.columns.clone()], &self.column_norm);
            let mut y: Vec<f64> = y.iter().copied().map(f64::from).collect();
            normalise(&mut y, &self.row_norm);
            let cap = f64::from(self.cap);
            let capped = move |(x, y): (f64, f64)| Estimate {
                value: cap * ((x + y) / cap).tanh(),
                // The cap is nowhere steeper than 1, and its own error does not depend on what it is given.
                error: 4e-6 * (x.abs() + y.abs()) + 1e-6 * cap,
            };
            x.into_iter().zip(y).map(capped)
        })
        .collect()
    }
}

fn normalise(x: &mut [f64], norm: &Norm) {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let factor = (mean + f64::from(norm.epsilon)).sqrt().recip();
    x.iter_mut().zip(norm.weight.iter()).for_each(|(x, &weight)| *x *= factor * f64::from(weight));
}

fn check(case: &Case, seed: u64) {
    let all = whole(case.rows);
    let expected = case.run(&mut reference(), &all);
    let estimates = case.estimates();
    let mut agreement = Agreement::default();
    for mut processor in processors() {
        let who = &processor.who;
        let found = case.run(&mut processor.cpu, &all);
        within(&found, &expected, &estimates, who);
        let pieces = case.run(&mut processor.cpu, &cuts(&mut Random::new(seed), case.rows));
        same_bits(&pieces, &found, &format!("{who}, in other steps"));
        agreement.check(&processor, &[], found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn norms_and_caps_agree_on_any_shape(seed: u64, rows in 1..=70usize, width in 1..600usize) {
        check(&Case::random(seed, rows, width), seed);
    }
}

/// Large enough that the threads share it.
#[test]
fn norms_and_caps_agree_where_threads_share_the_rows() {
    check(&Case::random(1, 129, 1031), 1);
}

#[test]
fn selected_rows_are_what_the_next_operations_see() {
    let random = &mut Random::new(9);
    let (rows, width) = (40, 33);
    let values = random.rows(rows, width);
    for Processor { who, mut cpu, .. } in processors() {
        let values_table = table(&mut cpu, &values, width);
        cpu.begin(&one_span(0, rows));
        let x = upload(&mut cpu, rows, &values_table, width);
        let mut out = cpu.rows(rows, width).expect("there is memory");
        let chosen = [39, 0, 7, 8, 7];
        cpu.select(&x, &chosen, &mut out);
        let expected: Vec<f32> =
            chosen.iter().flat_map(|&row| &values[row * width..(row + 1) * width]).copied().collect();
        same_bits(cpu.read(&out), &expected, &who);

        cpu.begin(&one_span(0, 2));
        assert_eq!(cpu.read(&x).len(), 2 * width, "{who}");
    }
}
