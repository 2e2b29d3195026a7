//! How fast operations are on the first CUDA device, each by itself: one JSON object a line.
//!
//! `cargo run --release -p tokrun-kernels --example cards [-- --tiny]`. Shapes are those of Llama-3.1-8B. A step goes through so
//! many matrices, or layers of a cache, that they come from memory; its time includes one readback, as a decode step's does.

#![expect(clippy::print_stdout, reason = "its output")]

use std::ops::Range;
use std::time::Instant;

use tokrun_kernels::cuda::Device;
use tokrun_kernels::{
    Attention, Backend, Consumer, Cuda, CudaOptions, KernelError, KvShape, KvType, MatrixSource, RowSource, Span, Step,
    Store, WeightType,
};

/// What is measured, and how long.
struct Scale {
    matrices: &'static [(&'static str, usize, usize)],
    batches: &'static [usize],
    depths: &'static [(usize, usize)],
    /// Rows of a prompt, and tokens before them.
    prompts: &'static [(usize, usize)],
    /// Bytes of weights that no cache holds.
    weight_bytes: usize,
    layers: usize,
    heads: (usize, usize, usize),
    rounds: usize,
}

const CARD: Scale = Scale {
    matrices: &[("qkv", 6144, 4096), ("gate and up", 28_672, 4096), ("down", 4096, 14_336), ("head", 128_256, 4096)],
    batches: &[1, 4, 16, 64, 512],
    depths: &[(1, 1024), (1, 16_384), (16, 4096), (64, 1024)],
    prompts: &[(512, 0), (512, 3584), (512, 15_872), (4096, 0)],
    weight_bytes: 1 << 30,
    layers: 8,
    heads: (32, 8, 128),
    rounds: 15,
};

/// For an emulated card.
const TINY: Scale = Scale {
    matrices: &[("tiny", 96, 256)],
    batches: &[1, 4],
    depths: &[(1, 40)],
    prompts: &[(20, 30)],
    weight_bytes: 1 << 16,
    layers: 2,
    heads: (4, 2, 32),
    rounds: 1,
};

/// Rounds that are not counted: from the third on a step is replayed as a graph.
const WARM_UP: usize = 4;

fn main() -> Result<(), KernelError> {
    let scale = if std::env::args().any(|argument| argument == "--tiny") { &TINY } else { &CARD };
    let device = Device::open(0)?;
    let ceiling = device.bandwidth()?;
    println!(
        r#"{{"op":"ceiling","card":"{}","read_gb_per_s":{:.1},"copy_gb_per_s":{:.1}}}"#,
        device.facts().name,
        ceiling.read_bytes_per_second / 1e9,
        ceiling.copy_bytes_per_second / 1e9
    );
    let types =
        [WeightType::BF16, WeightType::FP8, WeightType::Q8_0, WeightType::Q4_K, WeightType::Q4_0, WeightType::Q6_K];
    for weight_type in types {
        for &(name, rows, columns) in scale.matrices {
            linear(scale, weight_type, name, rows, columns, ceiling.read_bytes_per_second)?;
        }
    }
    for &(batch, depth) in scale.depths {
        attention(scale, batch, 1, depth, ceiling.read_bytes_per_second)?;
    }
    for &(rows, depth) in scale.prompts {
        attention(scale, 1, rows, depth, ceiling.read_bytes_per_second)?;
    }
    Ok(())
}

fn linear(
    scale: &Scale,
    weight_type: WeightType,
    name: &str,
    rows: usize,
    columns: usize,
    ceiling: f64,
) -> Result<(), KernelError> {
    let mut cuda = Cuda::new(0, CudaOptions::default())?;
    let row_bytes = weight_type.row_bytes(columns).expect("columns are whole blocks");
    let count = (scale.weight_bytes / (row_bytes * rows)).clamp(1, 32);
    let matrix = MatrixSource { rows, columns, weight_type, source: &MadeUp, bias: None };
    let matrices = (0..count).map(|_| cuda.pack_linear(&[matrix])).collect::<Result<Vec<_>, _>>()?;
    for &batch in scale.batches {
        let (x, mut out) = (cuda.rows(batch, columns)?, cuda.rows(batch, rows)?);
        let mut input = cuda.encoded(batch, columns)?;
        let seconds = median(scale.rounds, || {
            cuda.begin(&Step { tokens: vec![0; batch], spans: Vec::new() });
            cuda.encode(&x, None, Consumer::Linear(&matrices[0]), &mut input);
            for matrix in &matrices {
                cuda.linear(&input, matrix, Store::Set, &mut out);
            }
            cuda.read(&out);
        });
        if let Some(failure) = cuda.failure() {
            return Err(failure);
        }
        let (bytes, work) = ((row_bytes * rows * count) as f64, (2 * rows * columns * batch * count) as f64);
        println!(
            r#"{{"op":"linear","matrix":"{name}","type":"{}","rows":{rows},"columns":{columns},"batch":{batch},"us":{:.2},"gb_per_s":{:.1},"share":{:.3},"tflop_per_s":{:.2}}}"#,
            weight_type.name(),
            seconds * 1e6 / count as f64,
            bytes / seconds / 1e9,
            bytes / seconds / ceiling,
            work / seconds / 1e12
        );
    }
    Ok(())
}

/// Of `rows` rows of each of `batch` sequences, after `depth` tokens.
fn attention(scale: &Scale, batch: usize, rows: usize, depth: usize, ceiling: f64) -> Result<(), KernelError> {
    let mut cuda = Cuda::new(0, CudaOptions::default())?;
    let (layers, (heads, kv_heads, head_dim)) = (scale.layers, scale.heads);
    let (blocks, all) = ((depth + rows).div_ceil(16), batch * rows);
    let shape = KvShape { layers, kv_heads, head_dim, blocks: blocks * batch, kv_type: KvType::F16 };
    let mut kv = cuda.kv_cache(shape)?;
    let attention = Attention {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        window_tokens: None,
        rope: None,
        head_norms: None,
    };
    let (qkv, mut out) = (cuda.rows(all, (heads + 2 * kv_heads) * head_dim)?, cuda.rows(all, heads * head_dim)?);
    let span = |index: usize| {
        let blocks = (index * blocks..(index + 1) * blocks).map(|block| block as u32).collect();
        Span { rows: index * rows..(index + 1) * rows, start: depth, blocks }
    };
    let step = Step { tokens: vec![0; all], spans: (0..batch).map(span).collect() };
    let seconds = median(scale.rounds, || {
        cuda.begin(&step);
        for layer in 0..layers {
            cuda.attention(layer, &attention, &qkv, &mut kv, &mut out);
        }
        cuda.read(&out);
    });
    if let Some(failure) = cuda.failure() {
        return Err(failure);
    }
    let bytes = (2 * kv_heads * head_dim * 2 * (depth + rows) * batch * layers) as f64;
    // What rows see, themselves included.
    let seen = rows * depth + rows * (rows + 1) / 2;
    let work = (4 * heads * head_dim * seen * batch * layers) as f64;
    println!(
        r#"{{"op":"attention","matrix":"rows {rows}","type":"f16","batch":{batch},"depth":{depth},"us":{:.2},"gb_per_s":{:.1},"share":{:.3},"tflop_per_s":{:.2}}}"#,
        seconds * 1e6 / layers as f64,
        bytes / seconds / 1e9,
        bytes / seconds / ceiling,
        work / seconds / 1e12
    );
    Ok(())
}

/// Seconds that it takes, half of the times.
fn median(rounds: usize, mut work: impl FnMut()) -> f64 {
    (0..WARM_UP).for_each(|_| work());
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let mut seconds: Vec<f64> = (0..rounds).map(time).collect();
    seconds.sort_by(f64::total_cmp);
    seconds[rounds / 2]
}

/// Weights whose values do not matter, but differ: a card draws less power where no wire changes.
struct MadeUp;

impl RowSource for MadeUp {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut state = rows.start as u32 | 1;
        for byte in bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Scales of 16 bits stay small and finite.
            *byte = (state >> 24) as u8 & 0x3b;
        }
        Ok(())
    }
}
