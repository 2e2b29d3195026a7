//! The backend: which kernels an operation launches.
//!
//! Operations write launches down. In a step that only decodes, one row a sequence, they are carried out all at once when
//! the result is asked for or the next step begins, as one graph (`graph`) where the step was rehearsed or came before; in
//! other steps each is launched as it comes. Nothing waits for the device but reading.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::attention::{self, CudaKv, RopeTable};
use super::device::{Device, Kernel};
use super::graph::{Graphs, Key};
use super::launches::{Arguments, Launches};
use super::matrix::{Matrix, Packer, shape};
use super::memory::{Buffer, Plain};
use super::mixture;
use super::products;
use super::prompts::prompts;
use super::rows::{CudaEncoded, CudaRows, bucket};
use super::sample::Drawn;
use super::stage::Stage;
use crate::sampling::{BadLogit, Draw};
use crate::{
    Activation, Attention, Backend, Consumer, Expert, KernelError, KvShape, MatrixSource, Norm, Rope, RopeId, Routing,
    Step, Store,
};

/// Threads a block of the kernels that go through rows.
pub(super) const THREADS: usize = 256;

/// A CUDA device as a backend.
///
/// Quantised weights multiply with rows rounded to int8 in blocks of 32, 16-bit weights with rows rounded to bf16, f32
/// weights with f32. Steps of many rows run on tensor cores, unless [`CudaOptions`] ask for one order of sums. After a failure of the device all operations do nothing, and [`Backend::failure`] tells of it.
pub struct Cuda {
    pub(super) device: Device,
    pub(super) kernels: Kernels,
    packer: Packer,
    pub(super) ropes: Vec<RopeTable>,
    norms: Vec<KnownNorm>,
    pub(super) stage: Stage,
    pub(super) launches: Launches,
    graphs: Graphs,
    /// The step is written down as a whole, rather than launched piece by piece.
    recording: bool,
    rehearsal: Rehearsal,
    /// Rows that operations compute: those of the step, filled up where it is recorded, or those chosen since.
    pub(super) rows: usize,
    /// Rows that there is room for in the largest matrix: what steps may have.
    rows_max: usize,
    /// Of `rows`, those that were asked for.
    asked: usize,
    /// Blocks that the longest context of the step takes in attention; as many as there can be where it is recorded, since
    /// a graph is for contexts of any length.
    pub(super) segments: usize,
    /// Rows of the step that are attended as prompts.
    pub(super) prompts: Vec<Range<usize>>,
    /// What the step is known by.
    key: Key,
    pub(super) attention: attention::Workspace,
    pub(super) products: products::Workspace,
    pub(super) mixture: mixture::Workspace,
    pub(super) options: CudaOptions,
    pub(super) drawn: Drawn,
    failure: Option<KernelError>,
}

/// What a user may choose about a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// A row has the same bits alone, in any batch and in any cut of a prompt: sums keep one order, whatever a step looks
    /// like. Without it, steps of many rows go through tensor cores, whose order of sums depends on how many rows there are.
    pub deterministic: bool,
}

/// Whether steps are gone through, of which nothing is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rehearsal {
    #[default]
    No,
    Yes,
    /// Memory took the place of smaller memory, which launches that were written down before refer to.
    Spoilt,
}

/// The kernels that do not depend on the type of weights or of the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub(super) activate: Kernel,
    pub(super) add_norm: Kernel,
    pub(super) combine: Kernel,
    pub(super) encode: Kernel,
    pub(super) group_experts: Kernel,
    pub(super) feed: Kernel,
    pub(super) mix_experts: Kernel,
    pub(super) norm: Kernel,
    pub(super) rope_angles: Kernel,
    pub(super) route: Kernel,
    pub(super) sample: Kernel,
    pub(super) select: Kernel,
    pub(super) softcap: Kernel,
}

/// The weights of a norm, and their copy on the device. Holding them keeps their address from being anybody else's.
struct KnownNorm {
    weight: Arc<[f32]>,
    copy: Buffer<f32>,
}

/// Packed matrices that are multiplied with one input: those of one type that follow each other are one.
#[derive(Debug)]
pub struct CudaLinear {
    pub(super) parts: Vec<Matrix>,
}

/// Packed gate and up matrices.
#[derive(Debug)]
pub struct CudaGated {
    pub(super) halves: Halves,
}

#[derive(Debug)]
pub(super) enum Halves {
    /// Of one type: one pass over both.
    Joined(Box<Matrix>),
    /// Of two types.
    Apart(Box<[Matrix; 2]>),
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Cuda {
    /// Opens the device with that number.
    ///
    /// # Errors
    /// When there is no driver or no such device, or it refuses to work.
    pub fn new(ordinal: usize, options: CudaOptions) -> Result<Self, KernelError> {
        Self::on(Device::open(ordinal)?, options)
    }

    fn on(device: Device, options: CudaOptions) -> Result<Self, KernelError> {
        let kernel = |module: &str, function: &str| device.kernel(module, function);
        let kernels = Kernels {
            activate: kernel("activate", "activate_gated")?,
            add_norm: kernel("add_norm", "add_norm")?,
            combine: kernel("attention_combine", "attention_combine")?,
            encode: kernel("encode", "encode_rows")?,
            group_experts: kernel("group_experts", "group_experts")?,
            feed: kernel("sample", "feed_drawn")?,
            mix_experts: kernel("mix_experts", "mix_experts")?,
            norm: kernel("norm", "norm_columns")?,
            rope_angles: kernel("rope_angles", "rope_angles")?,
            route: kernel("route", "route")?,
            sample: kernel("sample", "sample")?,
            select: kernel("select_rows", "select_rows")?,
            softcap: kernel("softcap", "softcap")?,
        };
        Ok(Self {
            stage: Stage::new(&device)?,
            device,
            kernels,
            packer: Packer::new(!options.deterministic),
            ropes: Vec::new(),
            norms: Vec::new(),
            launches: Launches::default(),
            graphs: Graphs::default(),
            recording: false,
            rehearsal: Rehearsal::No,
            rows: 0,
            rows_max: 0,
            asked: 0,
            segments: attention::SEGMENTS,
            prompts: Vec::new(),
            key: Key::default(),
            attention: attention::Workspace::default(),
            products: products::Workspace::default(),
            mixture: mixture::Workspace::default(),
            options,
            drawn: Drawn::default(),
            failure: None,
        })
    }

    /// What it was opened with.
    pub fn options(&self) -> CudaOptions {
        self.options
    }

    /// How many steps were replayed as graphs so far.
    pub fn replayed_steps(&self) -> u64 {
        self.graphs.replayed()
    }

    /// Bytes of the device's memory that nobody uses now.
    ///
    /// # Errors
    /// When the driver refuses to say.
    pub fn memory_free_bytes(&self) -> Result<usize, KernelError> {
        Ok(self.device.memory_free_bytes()?)
    }

    /// Does what may fail, unless something has failed already.
    pub(super) fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<(), KernelError>) {
        if self.failure.is_none()
            && let Err(error) = work(self)
        {
            self.failure = Some(error);
            self.launches.clear();
        }
    }

    /// An operation: writes down its launches, and carries them out where the step is not recorded.
    fn operate(&mut self, work: impl FnOnce(&mut Self) -> Result<(), KernelError>) {
        if self.rows == 0 {
            return;
        }
        self.attempt(|cuda| {
            work(cuda)?;
            if !cuda.recording {
                cuda.launches.launch(&cuda.device)?;
                cuda.launches.clear();
            }
            Ok(())
        });
    }

    /// Whether the step is written down as a whole.
    pub(super) fn is_recording(&self) -> bool {
        self.recording
    }

    /// Carries out what is written down.
    fn finish(&mut self) {
        if !std::mem::take(&mut self.recording) {
            return;
        }
        self.attempt(|cuda| {
            if cuda.launches.is_empty() {
                return Ok(());
            }
            match cuda.rehearsal {
                Rehearsal::No => {
                    cuda.stage.upload(&cuda.device)?;
                    cuda.graphs.run(&cuda.device, cuda.key, &mut cuda.launches)
                }
                Rehearsal::Yes => cuda.graphs.rehearse(&cuda.device, cuda.key, &mut cuda.launches),
                Rehearsal::Spoilt => {
                    cuda.launches.clear();
                    Ok(())
                }
            }
        });
    }

    /// A launch with a block of [`THREADS`] for each row.
    pub(super) fn launch_rows(&mut self, kernel: Kernel) -> Arguments<'_> {
        self.launches.add(kernel, [self.rows, 1, 1], THREADS)
    }

    /// Where the weights of a norm lie on the device.
    pub(super) fn norm_weight(&mut self, norm: &Norm) -> Result<u64, KernelError> {
        let known = self.norms.iter().find(|known| Arc::ptr_eq(&known.weight, &norm.weight));
        if let Some(known) = known {
            return Ok(known.copy.address());
        }
        let copy = self.device.buffer_of(&norm.weight)?;
        let address = copy.address();
        self.norms.push(KnownNorm { weight: Arc::clone(&norm.weight), copy });
        Ok(address)
    }

    fn pack(&mut self, sources: &[MatrixSource<'_>]) -> Result<Matrix, KernelError> {
        self.packer.pack(&self.device, sources)
    }
}

impl Backend for Cuda {
    type Linear = CudaLinear;
    type Gated = CudaGated;
    type Rows = CudaRows;
    type Encoded = CudaEncoded;
    type Kv = CudaKv;
    const SAMPLES_AHEAD: bool = true;

    fn pack_linear(&mut self, matrices: &[MatrixSource<'_>]) -> Result<CudaLinear, KernelError> {
        let Some(first) = matrices.first() else {
            return Err(shape("no matrix was given".into()));
        };
        if let Some(other) = matrices.iter().find(|matrix| matrix.columns != first.columns) {
            return Err(shape(format!("{} columns beside {}", other.columns, first.columns)));
        }
        let runs = matrices.chunk_by(|a, b| a.weight_type == b.weight_type);
        Ok(CudaLinear { parts: runs.map(|run| self.pack(run)).collect::<Result<_, _>>()? })
    }

    fn pack_gated(&mut self, gate: MatrixSource<'_>, up: MatrixSource<'_>) -> Result<CudaGated, KernelError> {
        if (gate.rows, gate.columns) != (up.rows, up.columns) {
            return Err(shape(format!(
                "the gate is {} x {}, the up projection {} x {}",
                gate.rows, gate.columns, up.rows, up.columns
            )));
        }
        let halves = if gate.weight_type == up.weight_type {
            Halves::Joined(Box::new(self.pack(&[gate, up])?))
        } else {
            Halves::Apart(Box::new([self.pack(&[gate])?, self.pack(&[up])?]))
        };
        Ok(CudaGated { halves })
    }

    fn add_rope(&mut self, rope: Rope) -> RopeId {
        self.ropes.push(RopeTable::new(rope));
        RopeId(self.ropes.len() - 1)
    }

    fn rows(&mut self, rows: usize, width: usize) -> Result<CudaRows, KernelError> {
        self.rows_max = self.rows_max.max(rows);
        CudaRows::new(&self.device, rows, width)
    }

    fn encoded(&mut self, rows: usize, width: usize) -> Result<CudaEncoded, KernelError> {
        Ok(CudaEncoded::new(rows, width))
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<CudaKv, KernelError> {
        CudaKv::new(&self.device, shape, !self.options.deterministic)
    }

    fn rehearse(&mut self, sequences_max: usize, blocks_max: usize, mut step: impl FnMut(&mut Self, usize)) {
        self.finish();
        self.attempt(|cuda| {
            cuda.stage.reserve(&cuda.device, cuda.rows_max.max(sequences_max), blocks_max)?;
            cuda.drawn.reserve(&cuda.device, cuda.stage.rows())
        });
        // The largest first, which makes room for the others.
        for rows in (1..=sequences_max).map(bucket).collect::<BTreeSet<_>>().into_iter().rev() {
            // Once more where a layer wanted more room than those before.
            for _ in 0..2 {
                self.rehearsal = Rehearsal::Yes;
                step(self, rows);
                self.finish();
                if self.rehearsal != Rehearsal::Spoilt {
                    break;
                }
            }
        }
        self.rehearsal = Rehearsal::No;
    }

    fn begin(&mut self, step: &Step) {
        self.finish();
        self.packer.finish();
        self.recording = step.spans.iter().all(|span| span.rows.len() == 1);
        self.asked = step.tokens.len();
        self.rows = if self.recording { bucket(self.asked) } else { self.asked };
        self.key = Key { rows: self.rows, ..Key::default() };
        let longest = step.spans.iter().map(|span| span.start + span.rows.len()).max().unwrap_or(0);
        self.segments = if self.recording { attention::SEGMENTS } else { attention::segments(longest) };
        self.prompts.clear();
        self.prompts.extend(prompts(step));
        for rope in &mut self.ropes {
            rope.forget();
        }
        self.attempt(|cuda| {
            cuda.stage.begin(&cuda.device, step, cuda.rows, cuda.rows_max)?;
            if cuda.recording { Ok(()) } else { cuda.stage.upload(&cuda.device) }
        });
    }

    fn embed(&mut self, table: &CudaLinear, scale: f32, out: &mut CudaRows) {
        self.operate(|cuda| cuda.launch_embed(table, scale, out));
    }

    fn encode(&mut self, x: &CudaRows, norm: Option<&Norm>, consumer: Consumer<'_, Self>, out: &mut CudaEncoded) {
        self.operate(|cuda| cuda.launch_encode(x, norm, consumer, out));
    }

    fn linear(&mut self, input: &CudaEncoded, weights: &CudaLinear, store: Store, out: &mut CudaRows) {
        self.operate(|cuda| cuda.launch_linear(input, weights, store, out));
    }

    fn gated(
        &mut self,
        input: &CudaEncoded,
        weights: &CudaGated,
        activation: Activation,
        consumer: &CudaLinear,
        out: &mut CudaEncoded,
    ) {
        self.operate(|cuda| cuda.launch_gated(input, weights, activation, consumer, out));
    }

    fn attention(&mut self, layer: usize, attention: &Attention, qkv: &CudaRows, kv: &mut CudaKv, out: &mut CudaRows) {
        self.operate(|cuda| cuda.launch_attention(layer, attention, qkv, kv, out));
    }

    fn norm(&mut self, x: &mut CudaRows, columns: Range<usize>, norm: &Norm) {
        assert_eq!(columns.len(), norm.weight.len(), "the norm's width");
        assert!(columns.end <= x.width(), "columns {columns:?} of {}", x.width());
        self.operate(|cuda| {
            let weight = cuda.norm_weight(norm)?;
            let (address, width) = (x.address_mut(cuda.rows), x.width());
            let arguments = cuda.launch_rows(cuda.kernels.norm).param().address(address).param().int(width);
            let arguments = arguments.param().int(columns.start).param().int(columns.len());
            arguments.param().address(weight).param().float(norm.epsilon);
            Ok(())
        });
    }

    fn add_norm(&mut self, x: &mut CudaRows, y: &CudaRows, norm: &Norm) {
        assert_eq!((x.width(), y.width()), (norm.weight.len(), norm.weight.len()), "the norm's width");
        self.operate(|cuda| {
            let weight = cuda.norm_weight(norm)?;
            let (x, y, width) = (x.address_mut(cuda.rows), y.address(cuda.rows), norm.weight.len());
            let arguments = cuda.launch_rows(cuda.kernels.add_norm).param().address(x).param().address(y);
            arguments.param().int(width).param().address(weight).param().float(norm.epsilon);
            Ok(())
        });
    }

    fn moe(
        &mut self,
        input: &CudaEncoded,
        router: &CudaRows,
        routing: Routing,
        activation: Activation,
        experts: &[Expert<Self>],
        x: &mut CudaRows,
    ) {
        self.operate(|cuda| cuda.launch_mixture(input, router, routing, activation, experts, x));
    }

    fn select(&mut self, x: &CudaRows, rows: &[usize], out: &mut CudaRows) {
        if let Some(row) = rows.iter().find(|row| **row >= self.asked) {
            panic!("row {row} of {}", self.asked);
        }
        assert_eq!(x.width(), out.width(), "the rows' width");
        self.asked = rows.len();
        let count = if self.recording { bucket(rows.len()) } else { rows.len() };
        if count == 0 {
            self.rows = 0;
            return;
        }
        self.operate(|cuda| {
            let first = match cuda.stage.choose(rows, count) {
                Some(first) => first,
                None => {
                    cuda.settle()?;
                    cuda.stage.forget_chosen();
                    cuda.stage.choose(rows, count).expect("a choice is no longer than the step")
                }
            };
            if !cuda.recording {
                cuda.stage.upload_chosen(&cuda.device, first, count)?;
            }
            let (from, width) = (x.address(cuda.rows), x.width());
            (cuda.rows, cuda.key.chosen) = (count, count);
            let (chosen, to) = (cuda.stage.chosen(first), out.address_mut(count));
            let grid = [width.div_ceil(THREADS), count, 1];
            let arguments = cuda.launches.add(cuda.kernels.select, grid, THREADS).param().address(from);
            arguments.param().address(chosen).param().int(width).param().address(to);
            Ok(())
        });
        self.rows = count;
    }

    fn softcap(&mut self, x: &mut CudaRows, cap: f32) {
        self.operate(|cuda| {
            let (address, width) = (x.address_mut(cuda.rows), x.width());
            let grid = [width.div_ceil(THREADS), cuda.rows, 1];
            let arguments = cuda.launches.add(cuda.kernels.softcap, grid, THREADS).param().address(address);
            arguments.param().int(width).param().float(cap);
            Ok(())
        });
    }

    fn feed(&mut self, drawn: &[(usize, usize)]) {
        // A step that is recorded is the same whether it feeds or not.
        if self.recording || !drawn.is_empty() {
            self.operate(|cuda| cuda.launch_feed(drawn));
        }
    }

    fn sample(&mut self, logits: &CudaRows, first: usize, draws: &[Draw]) {
        assert!(first + draws.len() <= self.asked, "{} draws from row {first} of {}", draws.len(), self.asked);
        // Likewise, whether it draws or not: from rows without a draw, nothing is.
        if self.recording || !draws.is_empty() {
            self.key.drawn_from = Some(first);
            self.operate(|cuda| cuda.launch_sample(logits, first, draws));
        }
        self.finish();
        if !draws.is_empty() {
            self.send_drawn(draws.len());
        }
    }

    fn sampled(&mut self) -> Vec<Result<u32, BadLogit>> {
        self.take_drawn()
    }

    fn read_from<'a>(&mut self, x: &'a CudaRows, first: usize) -> &'a [f32] {
        self.finish();
        let mut values: &[f32] = &[];
        let rows = first..self.asked;
        self.attempt(|cuda| {
            values = x.read(&cuda.device, rows, |from, range, to| Ok(cuda.device.download(from, range, to)?))?;
            Ok(())
        });
        values
    }

    fn failure(&mut self) -> Option<KernelError> {
        self.failure.take()
    }
}

impl Cuda {
    /// Carries out everything up to now and waits for it, so that memory it uses can go. The rest of the step is not
    /// recorded. In a rehearsal, it is forgotten.
    pub(super) fn settle(&mut self) -> Result<(), KernelError> {
        if self.rehearsal != Rehearsal::No {
            self.rehearsal = Rehearsal::Spoilt;
            self.launches.clear();
            return Ok(self.device.synchronise()?);
        }
        if std::mem::take(&mut self.recording) {
            self.stage.upload(&self.device)?;
        }
        self.launches.launch(&self.device)?;
        self.launches.clear();
        Ok(self.device.synchronise()?)
    }

    /// A buffer of the workspace with room for `len` values; a larger one takes its place.
    pub(super) fn room<T: Plain>(
        &mut self,
        which: impl Fn(&mut Self) -> &mut Option<Buffer<T>>,
        len: usize,
    ) -> Result<u64, KernelError> {
        if which(self).as_ref().is_none_or(|buffer| buffer.len() < len) {
            if which(self).is_some() {
                // Launches that were written down know the smaller one.
                self.settle()?;
                *which(self) = None;
            }
            let larger = self.device.buffer(len.next_power_of_two())?;
            *which(self) = Some(larger);
        }
        Ok(which(self).as_ref().expect("made above").address())
    }
}
