//! The backend: which operation is computed where.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Instant;

use super::activations::{Encoded, Forms};
use super::attention::{self, Inputs};
use super::gated::gated;
use super::kv::CpuKv;
use super::linear::{embed, linear};
use super::matrix::{Packed, Packer};
use super::moe;
use super::norm;
use super::pool::Pool;
use super::rope::RopeTable;
use super::rows::CpuRows;
use super::simd::Level;
use super::{bandwidth, threads_available};
use crate::sampling::{BadLogit, Draw, Drawn};
use crate::{
    Activation, Attention, Backend, Consumer, Expert, KernelError, KvShape, MatrixSource, Norm, OpTime, Rope, RopeId,
    Routing, Span, Step, Store,
};

/// How the processor is used.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Threads that compute, the calling one among them.
    pub threads: usize,
    /// Whether each thread stays on one CPU of those that the process may use, the calling one too.
    pub pin: bool,
    /// The instruction set; the best one of the machine where none is given.
    pub level: Option<Level>,
    /// Whether the time of operations is measured for [`Backend::take_profile`].
    pub profile: bool,
}

impl Default for CpuOptions {
    /// As many threads as the system lets run at once, not pinned, not measured.
    fn default() -> Self {
        Self { threads: threads_available(), pin: false, level: None, profile: false }
    }
}

/// The processor as a backend: vectors of the widest instruction set, on a pool of threads that is its own.
///
/// Quantised weights multiply with rows rounded to int8 in blocks of 32, f32 weights with f32. Where the processor
/// multiplies pairs of bf16, 16-bit weights multiply with rows rounded to bf16, and f16 weights are rounded to bf16 when
/// they are packed; elsewhere they are exact.
pub struct Cpu {
    level: Level,
    pool: Pool,
    packer: Packer,
    /// Whether weights were packed since the last step.
    packed: bool,
    ropes: Vec<RopeTable>,
    tokens: Vec<u32>,
    drawn: Drawn,
    spans: Vec<Span>,
    /// Of each row.
    positions: Vec<usize>,
    /// Rows that operations work on: those of the step, or those that were selected since.
    rows: usize,
    attention: attention::Workspace,
    moe: moe::Workspace,
    /// Where the time went; none where it is not asked for.
    profile: Option<Vec<OpTime>>,
}

/// Packed matrices that are multiplied with one input.
#[derive(Debug)]
pub struct CpuLinear(pub(super) Packed);

/// Packed gate and up matrices.
#[derive(Debug)]
pub struct CpuGated(pub(super) Packed);

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu").field("level", &self.level).field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system refuses them.
    pub fn new(options: CpuOptions) -> Result<Self, KernelError> {
        let pool = Pool::new(options.threads, options.pin)?;
        let level = options.level.unwrap_or_else(Level::best);
        Ok(Self {
            level,
            packer: Packer::new(level, pool.threads()),
            pool,
            packed: false,
            ropes: Vec::new(),
            tokens: Vec::new(),
            drawn: Drawn::default(),
            spans: Vec::new(),
            positions: Vec::new(),
            rows: 0,
            attention: attention::Workspace::default(),
            moe: moe::Workspace::default(),
            profile: options.profile.then(Vec::new),
        })
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Threads that compute, the calling one among them.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Bytes a second that all threads together read from `bytes` bytes of memory, each its part, again and again: what
    /// decoding could reach at most with weights of that size.
    ///
    /// # Errors
    /// When memory is short.
    pub fn read_bandwidth(&mut self, bytes: usize) -> Result<f64, KernelError> {
        bandwidth::measure(&mut self.pool, self.level, bytes)
    }

    /// Nanoseconds of one barrier between all threads just now, the median of many.
    pub fn barrier_ns(&mut self) -> f64 {
        self.pool.barrier_ns()
    }

    /// Does `work`, and counts its time for `op` where that is asked for.
    fn timed(&mut self, op: &'static str, work: impl FnOnce(&mut Self)) {
        if self.profile.is_none() {
            return work(self);
        }
        let start = Instant::now();
        work(self);
        let took_ns = start.elapsed().as_nanos() as u64;
        let Some(profile) = &mut self.profile else { return };
        match profile.iter_mut().find(|time| time.op == op) {
            Some(time) => {
                time.calls += 1;
                time.total_ns += took_ns;
            }
            None => profile.push(OpTime { op, calls: 1, total_ns: took_ns }),
        }
    }
}

impl Backend for Cpu {
    type Linear = CpuLinear;
    type Gated = CpuGated;
    type Rows = CpuRows;
    type Encoded = Encoded;
    type Kv = CpuKv;

    fn pack_linear(&mut self, matrices: &[MatrixSource<'_>]) -> Result<CpuLinear, KernelError> {
        self.packed = true;
        Ok(CpuLinear(self.packer.pack_in_turn(&mut self.pool, matrices)?))
    }

    fn pack_gated(&mut self, gate: MatrixSource<'_>, up: MatrixSource<'_>) -> Result<CpuGated, KernelError> {
        self.packed = true;
        Ok(CpuGated(self.packer.pack_side_by_side(&mut self.pool, &[gate, up])?))
    }

    fn add_rope(&mut self, rope: Rope) -> RopeId {
        self.ropes.push(RopeTable::new(rope));
        RopeId(self.ropes.len() - 1)
    }

    fn rows(&mut self, rows: usize, width: usize) -> Result<CpuRows, KernelError> {
        CpuRows::new(rows, width)
    }

    fn encoded(&mut self, rows: usize, width: usize) -> Result<Encoded, KernelError> {
        Encoded::new(self.level, rows, width)
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<CpuKv, KernelError> {
        CpuKv::new(shape)
    }

    fn begin(&mut self, step: &Step) {
        if std::mem::take(&mut self.packed) {
            self.packer.finish();
        }
        self.tokens.clone_from(&step.tokens);
        self.spans.clone_from(&step.spans);
        self.rows = step.tokens.len();
        let positions = step.spans.iter().flat_map(|span| (span.start..).take(span.rows.len()));
        self.positions.clear();
        self.positions.extend(positions);
        for rope in &mut self.ropes {
            rope.begin(&mut self.pool, &self.positions);
        }
    }

    fn embed(&mut self, table: &CpuLinear, scale: f32, out: &mut CpuRows) {
        self.timed("embed", |cpu| {
            embed(&mut cpu.pool, cpu.level, &table.0, &cpu.tokens, scale, out.first_mut(cpu.tokens.len()));
        });
    }

    fn encode(&mut self, x: &CpuRows, norm: Option<&Norm>, consumer: Consumer<'_, Self>, out: &mut Encoded) {
        let forms = forms(consumer);
        self.timed("encode", |cpu| {
            out.encode(&mut cpu.pool, cpu.level, x.first(cpu.rows), cpu.rows, norm, forms);
        });
    }

    fn linear(&mut self, input: &Encoded, weights: &CpuLinear, store: Store, out: &mut CpuRows) {
        self.timed("linear", |cpu| {
            linear(&mut cpu.pool, cpu.level, input, &weights.0, store, out.first_mut(cpu.rows));
        });
    }

    fn gated(
        &mut self,
        input: &Encoded,
        weights: &CpuGated,
        activation: Activation,
        consumer: &CpuLinear,
        out: &mut Encoded,
    ) {
        self.timed("gated", |cpu| {
            gated(&mut cpu.pool, cpu.level, input, &weights.0, activation, consumer.0.forms(), out);
        });
    }

    fn attention(&mut self, layer: usize, attention: &Attention, qkv: &CpuRows, kv: &mut CpuKv, out: &mut CpuRows) {
        self.timed("attention", |cpu| {
            let rope = attention.rope.map(|rope| &cpu.ropes[rope.0]);
            let inputs = Inputs { attention, rope, spans: &cpu.spans, qkv };
            attention::attend(&mut cpu.pool, cpu.level, &mut cpu.attention, inputs, layer, kv, out);
        });
    }

    fn norm(&mut self, x: &mut CpuRows, columns: Range<usize>, norm: &Norm) {
        self.timed("norm", |cpu| norm::norm(&mut cpu.pool, cpu.level, cpu.rows, x, columns, norm));
    }

    fn add_norm(&mut self, x: &mut CpuRows, y: &CpuRows, norm: &Norm) {
        self.timed("norm", |cpu| norm::add_norm(&mut cpu.pool, cpu.level, cpu.rows, x, y, norm));
    }

    fn moe(
        &mut self,
        input: &Encoded,
        router: &CpuRows,
        routing: Routing,
        activation: Activation,
        experts: &[Expert<Self>],
        x: &mut CpuRows,
    ) {
        self.timed("moe", |cpu| {
            let router = router.first(cpu.rows);
            let x = x.first_mut(cpu.rows);
            moe::mix(&mut cpu.pool, cpu.level, &mut cpu.moe, input, router, routing, activation, experts, x);
        });
    }

    fn select(&mut self, x: &CpuRows, rows: &[usize], out: &mut CpuRows) {
        for (to, &from) in rows.iter().enumerate() {
            assert!(from < self.rows, "row {from} of {}", self.rows);
            out.row_mut(to).copy_from_slice(x.row(from));
        }
        self.rows = rows.len();
    }

    fn softcap(&mut self, x: &mut CpuRows, cap: f32) {
        self.timed("softcap", |cpu| norm::softcap(&mut cpu.pool, cpu.level, cpu.rows, x, cap));
    }

    fn feed(&mut self, drawn: &[(usize, usize)]) {
        self.drawn.feed(drawn, &mut self.tokens);
    }

    fn sample(&mut self, logits: &CpuRows, first: usize, draws: &[Draw]) {
        if draws.is_empty() {
            return;
        }
        self.timed("sample", |cpu| {
            let drawn: Vec<OnceLock<_>> = draws.iter().map(|_| OnceLock::new()).collect();
            let rows = logits.first(cpu.rows).chunks(logits.width()).skip(first);
            let work: Vec<_> = draws.iter().zip(rows).zip(&drawn).collect();
            cpu.pool.run(|worker| {
                for ((draw, row), drawn) in &work[worker.share(work.len())] {
                    drawn.get_or_init(|| draw.choose(row));
                }
            });
            cpu.drawn.push(drawn.into_iter().filter_map(OnceLock::into_inner).collect(), draws.len());
        });
    }

    fn sampled(&mut self) -> Vec<Result<u32, BadLogit>> {
        self.drawn.take()
    }

    fn read_from<'a>(&mut self, x: &'a CpuRows, first: usize) -> &'a [f32] {
        &x.first(self.rows)[first * x.width()..]
    }

    fn take_profile(&mut self) -> Vec<OpTime> {
        self.profile.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

/// The forms that weights multiply with.
fn forms(consumer: Consumer<'_, Cpu>) -> Forms {
    match consumer {
        Consumer::Linear(linear) => linear.0.forms(),
        Consumer::Gated(gated) => gated.0.forms(),
        Consumer::Expert(expert) => expert.gated.0.forms(),
    }
}
