//! Steps of one row a sequence: recorded, filled up to a bucket, replayed as graphs. Whatever happens to a step, a row has
//! the bits that it would have alone.

use tokrun_kernels::{
    Activation, Attention, Backend, Consumer, Cuda, KV_BLOCK_TOKENS, KvShape, KvType, Norm, Rope, RopeId, RopeStyle,
    Span, Step, Store, WeightType,
};

use crate::support::{Matrix, Random, device, reference, same_bits, table};

const WIDTH: usize = 64;
const HIDDEN: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const QKV: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
const TOKENS: usize = 50;
const BLOCKS_A_SEQUENCE: usize = 12;
const SEQUENCES: usize = 17;

/// One decoder layer and a head.
struct Model {
    embedding: Vec<f32>,
    norm: Norm,
    qkv: Matrix,
    output: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    head: Matrix,
    kv_type: KvType,
}

impl Model {
    fn random(seed: u64, kinds: [WeightType; 3], kv_type: KvType) -> Self {
        let random = &mut Random::new(seed);
        let [a, b, c] = kinds;
        Self {
            embedding: random.values(TOKENS * WIDTH, 1.0),
            norm: Norm { weight: random.values(WIDTH, 1.0).into(), epsilon: 1e-5 },
            qkv: Matrix::random(random, a, QKV, WIDTH).with_bias(random),
            output: Matrix::random(random, b, WIDTH, HEADS * HEAD_DIM),
            gate: Matrix::random(random, a, HIDDEN, WIDTH),
            up: Matrix::random(random, b, HIDDEN, WIDTH),
            down: Matrix::random(random, c, WIDTH, HIDDEN),
            head: Matrix::random(random, c, TOKENS, WIDTH),
            kv_type,
        }
    }
}

/// The model on a backend.
struct Running<'a, B: Backend> {
    backend: B,
    model: &'a Model,
    rope: RopeId,
    embedding: B::Linear,
    qkv: B::Linear,
    output: B::Linear,
    gated: B::Gated,
    down: B::Linear,
    head: B::Linear,
    stream: B::Rows,
    wide: B::Rows,
    attended: B::Rows,
    last: B::Rows,
    logits: B::Rows,
    input: B::Encoded,
    attended_input: B::Encoded,
    hidden: B::Encoded,
    kv: B::Kv,
}

impl<'a, B: Backend> Running<'a, B> {
    fn new(mut backend: B, model: &'a Model) -> Self {
        let frequencies = (0..HEAD_DIM / 2).map(|i| 0.7f32.powi(i as i32)).collect();
        let rope = backend.add_rope(Rope { frequencies, magnitude: 1.0, style: RopeStyle::Halves });
        let shape = KvShape {
            layers: 1,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            blocks: SEQUENCES * BLOCKS_A_SEQUENCE,
            kv_type: model.kv_type,
        };
        let pack = |backend: &mut B, matrix: &Matrix| backend.pack_linear(&[matrix.source()]).expect("it fits");
        let rows = |backend: &mut B, width| backend.rows(64, width).expect("there is memory");
        let encoded = |backend: &mut B, width| backend.encoded(64, width).expect("there is memory");
        Self {
            rope,
            embedding: table(&mut backend, &model.embedding, WIDTH),
            qkv: pack(&mut backend, &model.qkv),
            output: pack(&mut backend, &model.output),
            gated: backend.pack_gated(model.gate.source(), model.up.source()).expect("it fits"),
            down: pack(&mut backend, &model.down),
            head: pack(&mut backend, &model.head),
            stream: rows(&mut backend, WIDTH),
            wide: rows(&mut backend, QKV),
            attended: rows(&mut backend, HEADS * HEAD_DIM),
            last: rows(&mut backend, WIDTH),
            logits: rows(&mut backend, TOKENS),
            input: encoded(&mut backend, WIDTH),
            attended_input: encoded(&mut backend, HEADS * HEAD_DIM),
            hidden: encoded(&mut backend, HIDDEN),
            kv: backend.kv_cache(shape).expect("there is memory"),
            backend,
            model,
        }
    }

    /// The logits of the chosen rows of a step.
    fn step(&mut self, step: &Step, chosen: &[usize]) -> Vec<f32> {
        let Self { backend, model, stream, wide, attended, last, logits, input, attended_input, hidden, kv, .. } = self;
        let attention = Attention {
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.3,
            softcap: None,
            window_tokens: Some(70),
            rope: Some(self.rope),
            head_norms: None,
        };
        backend.begin(step);
        backend.embed(&self.embedding, 1.0, stream);
        backend.encode(stream, Some(&model.norm), Consumer::Linear(&self.qkv), input);
        backend.linear(input, &self.qkv, Store::Set, wide);
        backend.attention(0, &attention, wide, kv, attended);
        backend.encode(attended, None, Consumer::Linear(&self.output), attended_input);
        backend.linear(attended_input, &self.output, Store::Add, stream);
        backend.encode(stream, Some(&model.norm), Consumer::Gated(&self.gated), input);
        backend.gated(input, &self.gated, Activation::Silu, &self.down, hidden);
        backend.linear(hidden, &self.down, Store::Add, stream);
        backend.select(stream, chosen, last);
        backend.encode(last, Some(&model.norm), Consumer::Linear(&self.head), input);
        backend.linear(input, &self.head, Store::Set, logits);
        let logits = backend.read(logits).to_vec();
        assert!(backend.failure().is_none_or(|failure| panic!("{failure}")));
        logits
    }
}

/// A step with the next token of each of those sequences, each of which has its own blocks.
fn next_tokens(sequences: &[usize], position: usize) -> Step {
    let span = |(row, &sequence): (usize, &usize)| Span {
        rows: row..row + 1,
        start: position,
        blocks: blocks(sequence, position + 1),
    };
    Step {
        tokens: sequences.iter().map(|&sequence| token(sequence, position)).collect(),
        spans: sequences.iter().enumerate().map(span).collect(),
    }
}

fn token(sequence: usize, position: usize) -> u32 {
    ((sequence * 31 + position * 7 + position * position) % TOKENS) as u32
}

/// Scattered over the cache.
fn blocks(sequence: usize, tokens: usize) -> Vec<u32> {
    (0..tokens.div_ceil(KV_BLOCK_TOKENS))
        .map(|block| (block * SEQUENCES + (sequence * 5 + block) % SEQUENCES) as u32)
        .collect()
}

fn running(model: &Model) -> Option<Running<'_, Cuda>> {
    Some(Running::new(device()?, model))
}

/// Each sequence alone, one token after the other, as far as `positions`; the logits of each token.
fn alone(model: &Model, sequence: usize, positions: usize) -> Option<Vec<Vec<f32>>> {
    let mut running = running(model)?;
    Some((0..positions).map(|position| running.step(&next_tokens(&[sequence], position), &[0])).collect())
}

const KINDS: [[WeightType; 3]; 3] = [
    [WeightType::Q8_0, WeightType::Q8_0, WeightType::Q4_0],
    [WeightType::BF16, WeightType::BF16, WeightType::BF16],
    [WeightType::Q4_1, WeightType::F16, WeightType::F32],
];

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    for (seed, kinds) in KINDS.into_iter().enumerate() {
        let model = Model::random(seed as u64, kinds, [KvType::F16, KvType::BF16, KvType::Q8_0][seed]);
        let Some(expected) =
            [0, 3, 16].map(|sequence| alone(&model, sequence, 6)).into_iter().collect::<Option<Vec<_>>>()
        else {
            return;
        };
        for batch in [2, 3, 5, 8, 11, SEQUENCES] {
            let mut running = running(&model).expect("it was there before");
            // The sequences of interest are the first ones.
            let mut sequences = vec![0, 3, 16];
            sequences.extend((0..SEQUENCES).filter(|sequence| ![0, 3, 16].contains(sequence)));
            sequences.truncate(batch);
            let chosen: Vec<usize> = (0..batch).collect();
            for position in 0..6 {
                let logits = running.step(&next_tokens(&sequences, position), &chosen);
                for (expected, logits) in expected.iter().zip(logits.chunks_exact(TOKENS)) {
                    let who = format!("{kinds:?}, batch {batch}, position {position}");
                    same_bits(logits, &expected[position], &who);
                }
            }
        }
    }
}

/// Prompts in one step and in pieces, tokens one by one: the same bits, and close to the reference.
#[test]
fn prompts_and_single_tokens_are_the_same_sequence() {
    let model = Model::random(9, [WeightType::F32; 3], KvType::F32);
    let positions = 150;
    let Some(mut cuda) = running(&model) else { return };
    let singly: Vec<f32> = (0..positions).flat_map(|position| cuda.step(&next_tokens(&[2], position), &[0])).collect();
    let whole = Step {
        tokens: (0..positions).map(|position| token(2, position)).collect(),
        spans: vec![Span { rows: 0..positions, start: 0, blocks: blocks(2, positions) }],
    };
    let mut reference = Running::new(reference(), &model);
    let expected = {
        let part = |rows: std::ops::Range<usize>| Step {
            tokens: rows.clone().map(|position| token(2, position)).collect(),
            spans: vec![Span { rows: 0..rows.len(), start: rows.start, blocks: blocks(2, rows.end) }],
        };
        [0..64, 64..128, 128..positions]
            .into_iter()
            .flat_map(|rows| {
                let count = rows.len();
                reference.step(&part(rows), &(0..count).collect::<Vec<_>>())
            })
            .collect::<Vec<_>>()
    };
    let parts = [0..64, 64..128, 128..positions].map(|rows| Step {
        tokens: whole.tokens[rows.clone()].to_vec(),
        spans: vec![Span { rows: 0..rows.len(), start: rows.start, blocks: blocks(2, rows.end) }],
    });
    let mut cuda = running(&model).expect("it was there before");
    let together: Vec<f32> =
        parts.iter().flat_map(|part| cuda.step(part, &(0..part.tokens.len()).collect::<Vec<_>>())).collect();
    same_bits(&together, &singly, "prompts against single tokens");
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    for (found, expected) in together.iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-4 * largest, "{found} is not {expected}");
    }
}

/// The first step of a batch runs piece by piece, the second is captured, further ones are replayed; all by the same bits.
#[test]
fn steps_are_replayed_and_come_out_the_same() {
    let model =
        Model::random(4, [WeightType::Q4_K, WeightType::Q6_K, WeightType::Q4_K].map(|_| WeightType::Q5_1), KvType::F16);
    let Some(mut cuda) = running(&model) else { return };
    let Some(expected) = alone(&model, 1, 100) else { return };
    assert_eq!(cuda.backend.replayed_steps(), 0);
    for (position, expected) in expected.iter().enumerate() {
        let logits = cuda.step(&next_tokens(&[1], position), &[0]);
        same_bits(&logits, expected, &format!("position {position}"));
    }
    assert_eq!(cuda.backend.replayed_steps(), 98);
    // Another batch size has a graph of its own, and leaves the first one as it was.
    for position in 100..104 {
        cuda.step(&next_tokens(&[1, 4, 5], position), &[0, 2]);
    }
    assert_eq!(cuda.backend.replayed_steps(), 100);
    cuda.step(&next_tokens(&[1], 104), &[0]);
    assert_eq!(cuda.backend.replayed_steps(), 101);
}

/// A graph is of certain buffers; where others come, the step is not the one that was captured.
#[test]
fn a_step_with_other_buffers_is_not_replayed() {
    let model = Model::random(5, [WeightType::Q8_0; 3], KvType::F16);
    let Some(expected) = alone(&model, 1, 8) else { return };
    let mut cuda = running(&model).expect("it was there before");
    for (position, expected) in expected.iter().enumerate() {
        if position == 5 {
            cuda.wide = cuda.backend.rows(64, QKV).expect("there is memory");
        }
        let logits = cuda.step(&next_tokens(&[1], position), &[0]);
        same_bits(&logits, expected, &format!("position {position}"));
    }
    assert_eq!(cuda.backend.replayed_steps(), 3 + 1);
}

/// Rows that fill up a bucket store nothing: block 0 stays what it was, though they have no blocks of their own.
#[test]
fn filling_rows_touch_no_block() {
    let model = Model::random(6, [WeightType::F32; 3], KvType::F32);
    let Some(mut cuda) = running(&model) else { return };
    let owner = (0..SEQUENCES).find(|&sequence| blocks(sequence, 1) == [0]).expect("somebody has block 0");
    let others: Vec<usize> = (0..SEQUENCES).filter(|&sequence| sequence != owner).take(3).collect();
    let expected = alone(&model, owner, 3).expect("it was there before");
    for (position, expected) in expected.iter().enumerate() {
        let logits = cuda.step(&next_tokens(&[owner], position), &[0]);
        same_bits(&logits, expected, "the owner of block 0");
        for _ in 0..3 {
            cuda.step(&next_tokens(&others, position), &[0, 1, 2]);
        }
    }
}

/// More rows than the stage had room for, and back.
#[test]
fn steps_may_grow() {
    let model = Model::random(7, [WeightType::Q8_0; 3], KvType::F16);
    let Some(mut cuda) = running(&model) else { return };
    let expected = alone(&model, 0, 2).expect("it was there before");
    same_bits(&cuda.step(&next_tokens(&[0], 0), &[0]), &expected[0], "before");
    let mut wide = Step::default();
    for row in 0..40 {
        wide.tokens.push(row as u32);
    }
    wide.spans.push(Span { rows: 0..40, start: 0, blocks: blocks(3, 40) });
    // A table longer than there was room for.
    wide.spans[0].blocks.resize(5000, 0);
    cuda.step(&wide, &[39]);
    same_bits(&cuda.step(&next_tokens(&[0], 1), &[0]), &expected[1], "after");
}

/// What was read stays what it was, however often it is read and with whatever number of rows.
#[test]
fn reading_gives_what_was_written_last() {
    let Some(mut cuda) = device() else { return };
    let values = Random::new(3).rows(20, 8);
    let values_table = table(&mut cuda, &values, 8);
    let step = |first: usize, rows: usize| crate::support::one_span(first, rows);
    let mut rows = cuda.rows(20, 8).expect("there is memory");
    cuda.begin(&step(0, 2));
    cuda.embed(&values_table, 1.0, &mut rows);
    let first = cuda.read(&rows);
    let again = cuda.read(&rows);
    same_bits(first, &values[..16], "two rows");
    same_bits(again, &values[..16], "two rows, again");
    cuda.begin(&step(5, 6));
    cuda.embed(&values_table, 1.0, &mut rows);
    let few = cuda.read(&rows);
    cuda.begin(&step(0, 3));
    assert_eq!(cuda.read(&rows).len(), 24);
    same_bits(few, &values[40..88], "six rows");
    cuda.begin(&step(0, 20));
    assert_eq!(cuda.read(&rows).len(), 160);
    same_bits(few, &values[40..88], "six rows, after more were read");
}
