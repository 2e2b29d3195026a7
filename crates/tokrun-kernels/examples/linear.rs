//! How fast one matrix product is: `cargo run --release -p tokrun-kernels --example linear -- TYPE ROWS COLUMNS BATCH THREADS`.
//!
//! Small batches go through as many matrices as a model would have (96 MB of them), so that weights come from memory; the
//! rate is compared with a plain sweep over as many bytes. Each product is timed by itself: on a machine that others use
//! too, the fastest tenth says what the code can do, the median what it got.

#![expect(clippy::print_stdout, reason = "its output")]

use std::ops::Range;
use std::time::Instant;

use tokrun_kernels::cpu::{Cpu, CpuOptions};
use tokrun_kernels::{Backend, Consumer, MatrixSource, RowSource, Step, Store, WeightType};

/// Bytes of weights that no cache holds.
const WEIGHT_BYTES: usize = 96_000_000;
const PASSES: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: linear TYPE ROWS COLUMNS BATCH THREADS, as in: linear Q4_1 1536 576 1 2";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weight_type, sizes @ ..] = &arguments[..] else { return Err(usage.into()) };
    let weight_type = WeightType::from_name(weight_type).ok_or(usage)?;
    let sizes: Vec<usize> = sizes.iter().map(|size| size.parse()).collect::<Result<_, _>>()?;
    let [rows, columns, batch, threads] = sizes[..] else { return Err(usage.into()) };
    let row_bytes = weight_type.row_bytes(columns).ok_or("columns must be whole blocks of the type")?;

    let mut cpu = Cpu::new(CpuOptions { threads, ..CpuOptions::default() })?;
    let count = if batch > 16 { 1 } else { (WEIGHT_BYTES / (row_bytes * rows)).clamp(1, 1000) };
    let matrix = MatrixSource { rows, columns, weight_type, source: &Codes, bias: None };
    let start = Instant::now();
    let matrices: Vec<_> = (0..count).map(|_| cpu.pack_linear(&[matrix])).collect::<Result<_, _>>()?;
    let bytes = (row_bytes * rows * count) as f64;
    let packed_per_s = bytes / start.elapsed().as_secs_f64();

    let (x, mut out) = (cpu.rows(batch, columns)?, cpu.rows(batch, rows)?);
    let mut input = cpu.encoded(batch, columns)?;
    cpu.begin(&Step { tokens: vec![0; batch], spans: Vec::new() });
    cpu.encode(&x, None, Consumer::Linear(&matrices[0]), &mut input);
    let mut seconds = Vec::new();
    for _ in 0..PASSES {
        for matrix in &matrices {
            let start = Instant::now();
            cpu.linear(&input, matrix, Store::Set, &mut out);
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let (fast, median) = (seconds[seconds.len() / 10], seconds[seconds.len() / 2]);

    let level = cpu.level().name();
    println!("{} {rows} x {columns}, {batch} rows, {threads} threads, {level}", weight_type.name());
    println!("  packed       {:8.2} GB/s", packed_per_s / 1e9);
    let rate = |per_call: f64| (per_call / median / 1e9, per_call / fast / 1e9);
    let (median_rate, fast_rate) = rate(2.0 * (batch * rows * columns) as f64);
    println!("  computed     {median_rate:8.1} GFLOP/s (fastest tenth {fast_rate:.1})");
    let (median_rate, fast_rate) = rate(bytes / count as f64);
    println!("  read         {median_rate:8.2} GB/s (fastest tenth {fast_rate:.2})");
    if batch <= 16 {
        println!("  plain sweep  {:8.2} GB/s", cpu.read_bandwidth(bytes as usize)? / 1e9);
    }
    Ok(())
}

/// Weights whose values do not matter: all bytes are the same, and small as scales.
struct Codes;

impl RowSource for Codes {
    fn read(&self, _: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.fill(0x11);
        Ok(())
    }
}
