//! Mixtures of experts: the rows of each expert are gathered and computed together, one expert after the other.

use std::slice::ChunksExact;

use super::activations::Encoded;
use super::backend::Cpu;
use super::gated::gated;
use super::linear::linear;
use super::norm::{load_part, store_part};
use super::pool::Pool;
use super::rows::by_rows;
use super::simd::{Kernel, LANES, Level, Simd};
use crate::{Activation, Expert, Routing, Store};

#[cfg(test)]
mod tests;

/// What a mixture keeps between calls.
#[derive(Default)]
pub(super) struct Workspace {
    /// `[rows, experts per token]`, best first.
    choices: Vec<Choice>,
    /// The rows of all experts, those of the first expert first.
    rows: Vec<usize>,
    /// Where the rows of each expert begin; and where the last one's end.
    starts: Vec<usize>,
    input: Room,
    hidden: Room,
    /// What experts gave, in the order of `rows`.
    outputs: Vec<f32>,
}

/// One of the experts of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    expert: usize,
    /// What its output is multiplied with.
    share: f32,
    /// The row of its output.
    output: usize,
}

/// `x[row] += share * expert(input[row])` for the best experts of each row, in the order of rank. `router` is
/// `[rows, experts]`, `x` is `[rows, width]`.
#[expect(clippy::too_many_arguments, reason = "an operation of the backend, and where it is computed")]
pub(super) fn mix(
    pool: &mut Pool,
    level: Level,
    workspace: &mut Workspace,
    input: &Encoded,
    router: &[f32],
    routing: Routing,
    activation: Activation,
    experts: &[Expert<Cpu>],
    x: &mut [f32],
) {
    let (rows, ranks) = (input.rows(), routing.experts_per_token);
    if rows == 0 {
        return;
    }
    assert_eq!(router.len(), rows * experts.len(), "a logit for each row and expert");
    assert!((1..=experts.len()).contains(&ranks), "{ranks} of {} experts", experts.len());
    let width = x.len() / rows;
    workspace.choose(router, routing, experts.len());
    workspace.compute(pool, level, input, activation, experts, width);

    let Workspace { choices, outputs, .. } = workspace;
    by_rows(pool, x, width, |rows, x| {
        let choices = choices[rows.start * ranks..rows.end * ranks].chunks_exact(ranks);
        level.run(AddShares { x, width, choices, outputs });
    });
}

impl Workspace {
    /// Chooses the experts of each row, and sorts the rows by expert.
    fn choose(&mut self, router: &[f32], routing: Routing, experts: usize) {
        self.choices.clear();
        for logits in router.chunks_exact(experts) {
            route(logits, routing, &mut self.choices);
        }
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        for choice in &self.choices {
            self.starts[choice.expert + 1] += 1;
        }
        for expert in 0..experts {
            self.starts[expert + 1] += self.starts[expert];
        }
        let mut next = self.starts.clone();
        self.rows.resize(self.choices.len(), 0);
        for (index, choice) in self.choices.iter_mut().enumerate() {
            choice.output = next[choice.expert];
            next[choice.expert] += 1;
            self.rows[choice.output] = index / routing.experts_per_token;
        }
    }

    /// What each expert makes of its rows, to `outputs`.
    fn compute(
        &mut self,
        pool: &mut Pool,
        level: Level,
        input: &Encoded,
        activation: Activation,
        experts: &[Expert<Cpu>],
        width: usize,
    ) {
        let largest = self.starts.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0);
        let gathered = self.input.get(level, largest, input.width());
        let hidden = self.hidden.get(level, largest, experts[0].down.0.columns());
        if self.outputs.len() < self.rows.len() * width {
            self.outputs.resize(self.rows.len() * width, 0.0);
        }
        for (expert, ends) in experts.iter().zip(self.starts.windows(2)).filter(|(_, ends)| ends[0] < ends[1]) {
            let down = &expert.down.0;
            gathered.gather(input, &self.rows[ends[0]..ends[1]]);
            gated(pool, level, gathered, &expert.gated.0, activation, down.forms(), hidden);
            let outputs = &mut self.outputs[ends[0] * width..ends[1] * width];
            linear(pool, level, hidden, down, Store::Set, outputs);
        }
    }
}

/// Encoded rows that are made larger when that is needed.
#[derive(Default)]
struct Room(Option<(usize, Encoded)>);

impl Room {
    fn get(&mut self, level: Level, rows: usize, width: usize) -> &mut Encoded {
        if self.0.as_ref().is_none_or(|(capacity, encoded)| *capacity < rows || encoded.width() != width) {
            let capacity = rows.next_power_of_two();
            let encoded = Encoded::new(level, capacity, width).expect("address space for the rows of one expert");
            self.0 = Some((capacity, encoded));
        }
        let (_, encoded) = self.0.as_mut().expect("made above");
        encoded
    }
}

/// Appends the chosen experts of a row, best first, of equal ones the first. A row's shares depend on its logits alone.
fn route(logits: &[f32], routing: Routing, choices: &mut Vec<Choice>) {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |expert: usize| f64::from(logits[expert] - top).exp();
    let better = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    if routing.experts_per_token < ranked.len() {
        ranked.select_nth_unstable_by(routing.experts_per_token, better);
        ranked.truncate(routing.experts_per_token);
    }
    ranked.sort_unstable_by(better);

    let total: f64 = match routing.normalise {
        true => ranked.iter().map(|&expert| weight(expert)).sum(),
        false => (0..logits.len()).map(weight).sum(),
    };
    choices.extend(ranked.into_iter().map(|expert| {
        let share = (weight(expert) / total) as f32;
        Choice { expert, share, output: 0 }
    }));
}

/// Adds to each row what its experts gave.
struct AddShares<'a> {
    x: &'a mut [f32],
    width: usize,
    /// Of each row.
    choices: ChunksExact<'a, Choice>,
    outputs: &'a [f32],
}

impl Kernel for AddShares<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (x, choices) in self.x.chunks_exact_mut(self.width).zip(self.choices) {
            for choice in choices {
                let share = simd.splat(choice.share);
                let output = &self.outputs[choice.output * self.width..][..self.width];
                for (x, output) in x.chunks_mut(LANES).zip(output.chunks(LANES)) {
                    let sum = simd.fma(share, load_part(simd, output), load_part(simd, x));
                    store_part(simd, sum, x);
                }
            }
        }
    }
}
