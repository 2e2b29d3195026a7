//! How fast a small decoder computes, and which operations take the time: the shape of SmolLM2-135M with made-up weights.
//!
//! `cargo run --release -p tokrun-kernels --example decoder -- [WEIGHT TYPE] [THREADS] [ROUNDS]`

#![allow(clippy::print_stdout, reason = "an example")]

use std::ops::Range;
use std::time::Instant;

use tokrun_kernels::{
    Activation, Attention, Backend, Consumer, Cpu, CpuOptions, KernelError, KvShape, KvType, MatrixSource, Norm, Rope,
    RopeStyle, RowSource, Span, Step, Store, WeightType,
};

const LAYERS: usize = 30;
const WIDTH: usize = 576;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const HIDDEN: usize = 1536;
const VOCABULARY: usize = 49_152;
const ROWS_MAX: usize = 512;
/// Blocks of the cache: 16 sequences of 512 tokens.
const BLOCKS: usize = 512;

fn main() -> Result<(), KernelError> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "Q4_1".to_owned());
    let threads = arguments.next().map_or(2, |text| text.parse().expect("a number of threads"));
    let rounds = arguments.next().map_or(3, |text| text.parse().expect("a number of rounds"));
    let weight_type = WeightType::from_name(&name).expect("a weight type");

    let mut cpu = Cpu::new(CpuOptions { threads, profile: true, ..CpuOptions::default() })?;
    let start = Instant::now();
    let mut decoder = Decoder::new(&mut cpu, weight_type)?;
    println!("{name}, {threads} threads, {}: packed in {:.0?}", cpu.level().name(), start.elapsed());

    for _ in 0..rounds {
        let barrier_ns = cpu.barrier_ns();
        println!("barrier {barrier_ns:.0} ns, memory {:.1} GB/s", cpu.read_bandwidth(96 << 20)? / 1e9);
        decoder.report(&mut cpu, "decode", 128, |at| vec![(0, at, 1)]);
        decoder.report(&mut cpu, "decode at 1024", 64, |at| vec![(0, 1024 + at, 1)]);
        decoder.report(&mut cpu, "prompt of 512", 2, |_| vec![(0, 0, 512)]);
        decoder.report(&mut cpu, "4 sequences", 32, |at| (0..4).map(|sequence| (sequence, 100 + at, 1)).collect());
        decoder.report(&mut cpu, "16 sequences", 32, |at| (0..16).map(|sequence| (sequence, 100 + at, 1)).collect());
    }
    Ok(())
}

struct Decoder {
    table: <Cpu as Backend>::Linear,
    layers: Vec<Layer>,
    attention: Attention,
    norm: Norm,
    kv: <Cpu as Backend>::Kv,
    x: <Cpu as Backend>::Rows,
    qkv: <Cpu as Backend>::Rows,
    attended: <Cpu as Backend>::Rows,
    last: <Cpu as Backend>::Rows,
    logits: <Cpu as Backend>::Rows,
    input: <Cpu as Backend>::Encoded,
    hidden: <Cpu as Backend>::Encoded,
}

struct Layer {
    qkv: <Cpu as Backend>::Linear,
    output: <Cpu as Backend>::Linear,
    gated: <Cpu as Backend>::Gated,
    down: <Cpu as Backend>::Linear,
}

/// Sequence, position, and how many tokens.
type Part = (usize, usize, usize);

impl Decoder {
    fn new(cpu: &mut Cpu, weight_type: WeightType) -> Result<Self, KernelError> {
        let narrow = |rows: usize| matrix(weight_type, rows, WIDTH);
        let layer = |cpu: &mut Cpu| -> Result<Layer, KernelError> {
            let kv = narrow(KV_HEADS * HEAD_DIM);
            Ok(Layer {
                qkv: cpu.pack_linear(&[narrow(HEADS * HEAD_DIM), kv, kv])?,
                output: cpu.pack_linear(&[narrow(WIDTH)])?,
                gated: cpu.pack_gated(narrow(HIDDEN), narrow(HIDDEN))?,
                down: cpu.pack_linear(&[matrix(weight_type, WIDTH, HIDDEN)])?,
            })
        };
        let layers = (0..LAYERS).map(|_| layer(cpu)).collect::<Result<_, _>>()?;
        let table = cpu.pack_linear(&[matrix(WeightType::Q8_0, VOCABULARY, WIDTH)])?;

        let frequencies = (0..32).map(|i| 100_000f32.powf(-(i as f32) / 32.0)).collect();
        let rope = cpu.add_rope(Rope { frequencies, magnitude: 1.0, style: RopeStyle::Interleaved });
        let attention = Attention {
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.125,
            softcap: None,
            window_tokens: None,
            rope: Some(rope),
            head_norms: None,
        };
        let shape =
            KvShape { layers: LAYERS, kv_heads: KV_HEADS, head_dim: HEAD_DIM, blocks: BLOCKS, kv_type: KvType::F16 };
        Ok(Self {
            table,
            layers,
            attention,
            norm: Norm { weight: vec![1.0; WIDTH].into(), epsilon: 1e-5 },
            kv: cpu.kv_cache(shape)?,
            x: cpu.rows(ROWS_MAX, WIDTH)?,
            qkv: cpu.rows(ROWS_MAX, (HEADS + 2 * KV_HEADS) * HEAD_DIM)?,
            attended: cpu.rows(ROWS_MAX, HEADS * HEAD_DIM)?,
            last: cpu.rows(16, WIDTH)?,
            logits: cpu.rows(16, VOCABULARY)?,
            input: cpu.encoded(ROWS_MAX, WIDTH)?,
            hidden: cpu.encoded(ROWS_MAX, HIDDEN)?,
        })
    }

    /// Runs `steps` steps and prints tokens a second and what each operation took of a step.
    fn report(&mut self, cpu: &mut Cpu, what: &str, steps: usize, parts: impl Fn(usize) -> Vec<Part>) {
        self.step(cpu, &parts(0));
        cpu.take_profile();
        let mut took: Vec<f64> = Vec::new();
        let mut tokens = 0;
        for at in 0..steps {
            let parts = parts(at);
            tokens = parts.iter().map(|(_, _, count)| count).sum();
            let start = Instant::now();
            self.step(cpu, &parts);
            took.push(start.elapsed().as_secs_f64());
        }
        took.sort_by(f64::total_cmp);
        let median = took[steps / 2];
        print!(
            "{what}: {:.0} tok/s, a step {:.0} us (best {:.0})",
            tokens as f64 / median,
            median * 1e6,
            took[0] * 1e6
        );
        for time in cpu.take_profile() {
            print!(", {} {:.0}", time.op, time.total_ns as f64 / 1e3 / steps as f64);
        }
        println!();
    }

    fn step(&mut self, cpu: &mut Cpu, parts: &[Part]) {
        cpu.begin(&step(parts));
        cpu.embed(&self.table, 1.0, &mut self.x);
        for (index, layer) in self.layers.iter().enumerate() {
            cpu.encode(&self.x, Some(&self.norm), Consumer::Linear(&layer.qkv), &mut self.input);
            cpu.linear(&self.input, &layer.qkv, Store::Set, &mut self.qkv);
            cpu.attention(index, &self.attention, &self.qkv, &mut self.kv, &mut self.attended);
            cpu.encode(&self.attended, None, Consumer::Linear(&layer.output), &mut self.input);
            cpu.linear(&self.input, &layer.output, Store::Add, &mut self.x);
            cpu.encode(&self.x, Some(&self.norm), Consumer::Gated(&layer.gated), &mut self.input);
            cpu.gated(&self.input, &layer.gated, Activation::Silu, &layer.down, &mut self.hidden);
            cpu.linear(&self.hidden, &layer.down, Store::Add, &mut self.x);
        }
        let ends = parts.iter().scan(0, |row, (_, _, count)| {
            *row += count;
            Some(*row - 1)
        });
        cpu.select(&self.x, &ends.collect::<Vec<_>>(), &mut self.last);
        cpu.encode(&self.last, Some(&self.norm), Consumer::Linear(&self.table), &mut self.input);
        cpu.linear(&self.input, &self.table, Store::Set, &mut self.logits);
    }
}

/// The step that computes these tokens.
fn step(parts: &[Part]) -> Step {
    let mut step = Step::default();
    for &(sequence, start, count) in parts {
        let first = step.tokens.len();
        step.tokens.extend((start..start + count).map(|at| (at * 7 % VOCABULARY) as u32));
        // The blocks of sequences take turns, but for a sequence alone that is longer than its share.
        let stride = if parts.len() == 1 { 1 } else { 16 };
        let blocks = (0..(start + count).div_ceil(16)).map(|block| (block * stride + sequence) as u32).collect();
        step.spans.push(Span { rows: first..first + count, start, blocks });
    }
    step
}

/// Weights all bytes of which are the same: a small number in every type.
struct MadeUp;

impl RowSource for MadeUp {
    fn read(&self, _: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.fill(0x2b);
        Ok(())
    }
}

fn matrix(weight_type: WeightType, rows: usize, columns: usize) -> MatrixSource<'static> {
    MatrixSource { rows, columns, weight_type, source: &MadeUp, bias: None }
}
