//! Mixtures of experts.

use std::ops::Range;

use proptest::prelude::*;
use tokrun_kernels::{Activation, Backend, Consumer, Expert, Routing, WeightType};

use crate::linear::FeedForward;
use crate::support::{
    Agreement, Estimate, Random, cuts, one_span, processors, reference, table, upload, whole, within,
};

const WIDTH: usize = 256;

struct Case {
    experts: Vec<FeedForward>,
    routing: Routing,
    activation: Activation,
    input: Vec<f32>,
    /// `[rows, experts]`; some rows have equal numbers.
    router: Vec<f32>,
    x: Vec<f32>,
}

impl Case {
    fn random(seed: u64, types: [WeightType; 3], experts: usize, rows: usize) -> Self {
        let random = &mut Random::new(seed);
        let activation = if random.below(2) == 0 { Activation::Silu } else { Activation::GeluTanh };
        let routing = Routing { experts_per_token: 1 + random.below(experts), normalise: random.below(2) == 0 };
        let mut router = random.values(rows * experts, 4.0);
        for logits in router.chunks_exact_mut(experts) {
            if random.below(4) == 0 {
                logits[random.below(experts)] = logits[random.below(experts)];
            }
        }
        Self {
            experts: (0..experts).map(|_| FeedForward::random(random, types, WIDTH, WIDTH, activation)).collect(),
            routing,
            activation,
            input: random.rows(rows, WIDTH).iter().map(|x| x / 4.0).collect(),
            router,
            x: random.values(rows * WIDTH, 3.0),
        }
    }

    fn run<B: Backend>(&self, backend: &mut B, parts: &[Range<usize>]) -> Vec<f32> {
        let experts: Vec<Expert<B>> = self
            .experts
            .iter()
            .map(|expert| Expert {
                gated: backend.pack_gated(expert.gate.source(), expert.up.source()).expect("the matrices fit"),
                down: backend.pack_linear(&[expert.down.source()]).expect("the matrix fits"),
            })
            .collect();
        let inputs = table(backend, &self.input, WIDTH);
        let routers = table(backend, &self.router, experts.len());
        let residuals = table(backend, &self.x, WIDTH);
        let mut outputs = Vec::new();
        for part in parts {
            let rows = part.len();
            backend.begin(&one_span(part.start, rows));
            let input = upload(backend, rows, &inputs, WIDTH);
            let router = upload(backend, rows, &routers, experts.len());
            let mut x = upload(backend, rows, &residuals, WIDTH);
            let mut encoded = backend.encoded(rows, WIDTH).expect("there is memory");
            backend.encode(&input, None, Consumer::Expert(&experts[0]), &mut encoded);
            backend.moe(&encoded, &router, self.routing, self.activation, &experts, &mut x);
            outputs.extend_from_slice(backend.read(&x));
        }
        outputs
    }

    fn estimates(&self) -> Vec<Estimate> {
        let rows = self.input.chunks_exact(WIDTH).zip(self.router.chunks_exact(self.experts.len()));
        rows.zip(self.x.chunks_exact(WIDTH)).flat_map(|((input, logits), x)| self.row(input, logits, x)).collect()
    }

    fn row(&self, input: &[f32], logits: &[f32], x: &[f32]) -> Vec<Estimate> {
        let input: Vec<Estimate> = input.iter().copied().map(Estimate::from).collect();
        let mut ranked: Vec<(usize, f64)> = logits.iter().map(|&logit| f64::from(logit).exp()).enumerate().collect();
        let all: f64 = ranked.iter().map(|(_, weight)| weight).sum();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(self.routing.experts_per_token);
        let chosen: f64 = ranked.iter().map(|(_, weight)| weight).sum();
        let total = if self.routing.normalise { chosen } else { all };

        let mut sums: Vec<Estimate> = x.iter().copied().map(Estimate::from).collect();
        for (expert, weight) in ranked {
            let share = weight / total;
            for (sum, output) in sums.iter_mut().zip(self.experts[expert].estimates(&input)) {
                sum.value += share * output.value;
                sum.error += share * (output.error + 4e-6 * output.value.abs()) + 1e-6 * sum.value.abs();
            }
        }
        sums
    }
}

pub(crate) fn check(types: [WeightType; 3], seed: u64, experts: usize, rows: usize) {
    let case = Case::random(seed, types, experts, rows);
    let all = whole(rows);
    let expected = case.run(&mut reference(), &all);
    let estimates = case.estimates();
    let mut agreement = Agreement::default();
    for mut processor in processors() {
        let who = &processor.who;
        let found = case.run(&mut processor.cpu, &all);
        within(&found, &expected, &estimates, who);
        let pieces = case.run(&mut processor.cpu, &cuts(&mut Random::new(seed), rows));
        processor.in_other_steps(&pieces, &found, &expected, &estimates);
        agreement.check(&processor, &types, found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mixtures_agree(
        weight_type in proptest::sample::select(WeightType::ALL.to_vec()), down in proptest::sample::select(WeightType::ALL.to_vec()),
        seed: u64, experts in 1..=6usize, rows in 1..=24usize,
    ) {
        check([weight_type, weight_type, down], seed, experts, rows);
    }
}
