use super::super::pool::Pool;
use super::super::rope::RopeTable;
use super::super::rows::CpuRows;
use super::super::testing::{assert_close, noise};
use super::{CpuKv, Inputs, Workspace, attend};
use crate::cpu::Level;
use crate::{
    Attention, Backend, BlockId, KV_BLOCK_TOKENS, KvShape, KvType, Norm, Reference, Rope, RopeStyle, Span, Step,
};

/// Layers of the caches here; the attention under test is the last one's.
const LAYERS: usize = 2;

/// Attention, and sequences to attend over.
struct Case {
    attention: Attention,
    rope: Option<Rope>,
    kv_type: KvType,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
}

impl Case {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, lengths: &[usize]) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = Attention {
            heads,
            kv_heads,
            head_dim,
            scale,
            softcap: None,
            window_tokens: None,
            rope: None,
            head_norms: None,
        };
        let rope = Some(rope(head_dim / 2, RopeStyle::Halves));
        Self { attention, rope, kv_type: KvType::F32, lengths: lengths.to_vec() }
    }

    fn shape(&self) -> KvShape {
        let Attention { kv_heads, head_dim, .. } = self.attention;
        let blocks = (0..self.lengths.len()).map(|sequence| self.blocks(sequence).len()).sum();
        KvShape { layers: LAYERS, kv_heads, head_dim, blocks, kv_type: self.kv_type }
    }

    fn width(&self) -> usize {
        (self.attention.heads + 2 * self.attention.kv_heads) * self.attention.head_dim
    }

    /// The blocks of a sequence: dealt out in turns, the last one first, so that they lie scattered.
    fn blocks(&self, sequence: usize) -> Vec<BlockId> {
        let counts: Vec<usize> = self.lengths.iter().map(|length| length.div_ceil(KV_BLOCK_TOKENS)).collect();
        let total: usize = counts.iter().sum();
        let longest = counts.iter().max().copied().unwrap_or(0);
        let turns = (0..longest).flat_map(|turn| (0..counts.len()).map(move |sequence| (turn, sequence)));
        let dealt = turns.filter(|(turn, sequence)| *turn < counts[*sequence]);
        let mine = dealt.zip((0..total).rev()).filter(|((_, owner), _)| *owner == sequence);
        mine.map(|(_, block)| block as BlockId).collect()
    }

    /// Queries, keys and values of one token.
    fn qkv(&self, sequence: usize, position: usize) -> Vec<f32> {
        noise(self.width(), (sequence * 100_000 + position) as u32 + 1).into_iter().map(|x| 2.0 * x).collect()
    }

    /// The steps in which all tokens are computed if each step takes `chunk` tokens of each sequence that has as many.
    fn steps(&self, chunk: usize) -> Vec<Step> {
        let longest = self.lengths.iter().max().copied().unwrap_or(0);
        let step = |start: usize| {
            let mut step = Step::default();
            for (sequence, length) in self.lengths.iter().enumerate().filter(|(_, length)| start < **length) {
                let rows = step.tokens.len()..step.tokens.len() + chunk.min(length - start);
                // The tests read from a token which sequence and position it is.
                step.tokens.extend((start..).take(rows.len()).map(|position| (sequence * 100_000 + position) as u32));
                step.spans.push(Span { rows, start, blocks: self.blocks(sequence) });
            }
            step
        };
        (0..longest).step_by(chunk).map(step).collect()
    }

    /// Outputs of all tokens of all sequences, computed in the given steps.
    fn run(&self, steps: &[Step], threads: usize, level: Level) -> Vec<Vec<f32>> {
        let mut pool = Pool::new(threads, false).expect("threads start");
        let mut kv = CpuKv::new(self.shape()).expect("little memory");
        let mut workspace = Workspace::default();
        let mut table = self.rope.clone().map(RopeTable::new);
        let mut outputs: Vec<Vec<f32>> = vec![Vec::new(); self.lengths.len()];
        for step in steps {
            let count = step.tokens.len();
            let mut qkv = CpuRows::new(count, self.width()).expect("little memory");
            let mut out = CpuRows::new(count, self.attention.heads * self.attention.head_dim).expect("little memory");
            for (row, token) in step.tokens.iter().enumerate() {
                qkv.row_mut(row).copy_from_slice(&self.qkv(*token as usize / 100_000, *token as usize % 100_000));
            }
            if let Some(table) = &mut table {
                let positions = step.spans.iter().flat_map(|span| (span.start..).take(span.rows.len()));
                table.begin(&mut pool, &positions.collect::<Vec<_>>());
            }
            let inputs = Inputs { attention: &self.attention, rope: table.as_ref(), spans: &step.spans, qkv: &qkv };
            attend(&mut pool, level, &mut workspace, inputs, LAYERS - 1, &mut kv, &mut out);
            for (row, token) in step.tokens.iter().enumerate() {
                outputs[*token as usize / 100_000].extend_from_slice(out.row(row));
            }
        }
        outputs
    }

    /// What the reference computes, in one step.
    fn expected(&self) -> Vec<Vec<f32>> {
        let mut reference = Reference::default();
        let mut attention = self.attention.clone();
        attention.rope = self.rope.clone().map(|rope| reference.add_rope(rope));
        let mut kv = reference.kv_cache(self.shape()).expect("little memory");
        let longest = self.lengths.iter().max().copied().unwrap_or(0);
        let step = self.steps(longest).remove(0);
        let count = step.tokens.len();
        reference.begin(&step);
        let mut qkv = reference.rows(count, self.width()).expect("little memory");
        let mut out = reference.rows(count, attention.heads * attention.head_dim).expect("little memory");
        for (row, token) in step.tokens.iter().enumerate() {
            let width = self.width();
            let values = self.qkv(*token as usize / 100_000, *token as usize % 100_000);
            qkv.first_mut(count)[row * width..][..width].copy_from_slice(&values);
        }
        reference.attention(LAYERS - 1, &attention, &qkv, &mut kv, &mut out);
        let width = attention.heads * attention.head_dim;
        let out = reference.read(&out);
        step.spans.iter().map(|span| out[span.rows.start * width..span.rows.end * width].to_vec()).collect()
    }

    /// Checks against the reference, and that levels, threads and cuts do not matter.
    fn check(&self, tolerance: f32) {
        let whole = self.steps(1000);
        let first = self.run(&whole, 1, Level::best());
        for (got, expected) in first.iter().zip(self.expected()) {
            assert_close(got, &expected, tolerance);
        }
        for level in Level::available() {
            assert!(self.run(&whole, 2, level) == first, "level {}", level.name());
        }
        for (chunk, threads) in [(1, 1), (1, 2), (1, 3), (7, 2), (64, 3), (1000, 3)] {
            assert!(self.run(&self.steps(chunk), threads, Level::best()) == first, "{chunk} tokens, {threads} threads");
        }
    }
}

fn rope(pairs: usize, style: RopeStyle) -> Rope {
    let frequencies = (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect();
    Rope { frequencies, magnitude: 1.0, style }
}

#[test]
fn one_short_sequence() {
    Case::new(3, 1, 16, &[5]).check(1e-5);
}

#[test]
fn several_sequences_over_several_segments() {
    Case::new(9, 3, 64, &[300, 17, 1, 530]).check(1e-5);
}

#[test]
fn every_group_size_and_odd_head_sizes() {
    for (group, head_dim) in [(1, 20), (2, 32), (4, 40), (5, 80), (6, 96), (7, 128), (8, 256), (17, 24), (32, 16)] {
        Case::new(2 * group, 2, head_dim, &[40, 3]).check(1e-5);
    }
}

#[test]
fn both_styles_of_rope_all_or_part_of_a_head_and_none() {
    for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
        for pairs in [1, 5, 16, 24, 32] {
            let mut case = Case::new(2, 1, 64, &[70]);
            case.rope = Some(Rope { magnitude: 1.25, ..rope(pairs, style) });
            case.check(2e-5);
        }
    }
    let mut case = Case::new(2, 1, 64, &[70]);
    case.rope = None;
    case.check(1e-5);
}

#[test]
fn windows_of_every_kind() {
    for window in [1, 2, 15, 16, 17, 100, 255, 256, 257, 300] {
        let mut case = Case::new(4, 2, 32, &[600, 33]);
        case.attention.window_tokens = Some(window);
        case.check(1e-5);
    }
}

#[test]
fn caps_and_head_norms() {
    let mut case = Case::new(4, 2, 48, &[290, 9]);
    case.attention.softcap = Some(1.5);
    case.check(2e-5);
    let norm = |seed| Norm { weight: noise(48, seed).into(), epsilon: 1e-6 };
    case.attention.head_norms = Some((norm(1), norm(2)));
    case.check(2e-5);
}

/// The reference rounds keys that were computed in f64; where that falls to the other side, one of them is off by a
/// last place of its type.
#[test]
fn caches_of_fewer_bits() {
    for (kv_type, tolerance) in [(KvType::F16, 1e-3), (KvType::BF16, 8e-3), (KvType::Q8_0, 2e-2)] {
        for head_dim in [64, 80] {
            let mut case = Case::new(6, 2, head_dim, &[270, 20]);
            case.kv_type = kv_type;
            case.check(tolerance);
        }
    }
}

#[test]
fn what_is_not_finite_stays_with_its_sequence() {
    for kv_type in [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0] {
        let mut case = Case::new(2, 1, 16, &[20]);
        case.kv_type = kv_type;
        let clean = case.run(&case.steps(1), 1, Level::best());

        // The same blocks after a sequence that filled them with what breaks sums.
        let mut kv = CpuKv::new(case.shape()).expect("little memory");
        let mut pool = Pool::new(1, false).expect("no thread");
        let mut workspace = Workspace::default();
        let mut table = RopeTable::new(case.rope.clone().expect("it has one"));
        let mut run = |values: &dyn Fn(usize) -> Vec<f32>, kv: &mut CpuKv| -> Vec<f32> {
            let mut all = Vec::new();
            for (position, step) in case.steps(1).iter().enumerate() {
                let mut qkv = CpuRows::new(1, case.width()).expect("little memory");
                let mut out = CpuRows::new(1, 32).expect("little memory");
                qkv.row_mut(0).copy_from_slice(&values(position));
                table.begin(&mut pool, &[position]);
                let inputs = Inputs { attention: &case.attention, rope: Some(&table), spans: &step.spans, qkv: &qkv };
                attend(&mut pool, Level::best(), &mut workspace, inputs, 1, kv, &mut out);
                all.extend_from_slice(out.row(0));
            }
            all
        };
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX];
        run(&|position| vec![bad[position % 4]; case.width()], &mut kv);
        assert_eq!(run(&|position| case.qkv(0, position), &mut kv), clean[0]);
    }
}

#[test]
#[should_panic(expected = "made for other heads")]
fn a_cache_of_other_heads_is_a_bug_of_the_caller() {
    let case = Case::new(2, 1, 16, &[3]);
    let mut kv = CpuKv::new(KvShape { kv_heads: 2, ..case.shape() }).expect("little memory");
    let (qkv, mut out) = (CpuRows::new(3, 64).expect("little"), CpuRows::new(3, 32).expect("little"));
    let inputs = Inputs { attention: &case.attention, rope: None, spans: &[], qkv: &qkv };
    let mut pool = Pool::new(1, false).expect("no thread");
    attend(&mut pool, Level::best(), &mut Workspace::default(), inputs, 0, &mut kv, &mut out);
}
