//! Mixtures of experts. Which ones a row gets is known to the device alone: all pairs of row and rank are computed in one
//! launch, each with the matrix that a table of the experts names.

use super::backend::{Cuda, CudaLinear, Halves, THREADS};
use super::device::Kernel;
use super::matrix::Matrix;
use super::memory::Buffer;
use super::products::activation_number;
use super::rows::{CudaEncoded, CudaRows, checked_len};
use super::tiles::{Cut, Grouped};
use crate::{Activation, Expert, KernelError, Routing};

/// Experts that the routing kernel can rank.
const EXPERTS_MAX: usize = 1024;

/// What mixtures keep between calls.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// `[rows, ranks]`: expert and share.
    choices: Option<Buffer<u64>>,
    /// `[rows * ranks, width]`
    outputs: Option<Buffer<f32>>,
    /// `[rows * ranks]` rows of hidden values.
    hidden: Option<CudaEncoded>,
    tables: Vec<Table>,
    /// `[rows * ranks]`: pairs by expert.
    order: Option<Buffer<u32>>,
    /// `[rows * ranks + experts]` tiles of three numbers.
    tiles: Option<Buffer<u32>>,
}

/// Matrices, one an expert, where kernels find them.
#[derive(Debug)]
struct Table {
    ids: Vec<u64>,
    matrices: Buffer<u64>,
}

/// What the launches of one mixture have in common.
struct Pairs {
    choices: u64,
    count: usize,
    ranks: usize,
    /// How they are grouped by expert, where they go through tensor cores.
    grouped: Option<(Cut, Grouped)>,
}

impl Cuda {
    pub(super) fn launch_mixture(
        &mut self,
        input: &CudaEncoded,
        router: &CudaRows,
        routing: Routing,
        activation: Activation,
        experts: &[Expert<Self>],
        x: &mut CudaRows,
    ) -> Result<(), KernelError> {
        let (rows, ranks, width) = (self.rows, routing.experts_per_token, x.width());
        assert_eq!(router.width(), experts.len(), "a logit for each expert");
        assert_eq!(input.rows(), rows, "encoded rows");
        assert!((1..=experts.len()).contains(&ranks), "{ranks} of {} experts", experts.len());
        if experts.len() > EXPERTS_MAX {
            let reason = format!("{} experts: the CUDA kernels have {EXPERTS_MAX} at most", experts.len());
            return Err(KernelError::Shape { reason });
        }
        let count = rows * ranks;
        // For the largest step, so that graphs of small ones stay right when larger ones come.
        let count_max = checked_len(self.stage.rows(), ranks)?;
        let choices = self.room(|cuda| &mut cuda.mixture.choices, count_max)?;
        let outputs = self.room(|cuda| &mut cuda.mixture.outputs, checked_len(count_max, width)?)?;

        let arguments = self.launches.add(self.kernels.route, [rows, 1, 1], 32).param().address(router.address(rows));
        let arguments = arguments.param().int(experts.len()).param().int(ranks);
        arguments.param().int(usize::from(routing.normalise)).param().address(choices);

        let grouped = self.on_tensor_cores(rows).then(|| self.group(choices, count, count_max, experts.len()));
        let pairs = Pairs { choices, count, ranks, grouped: grouped.transpose()? };
        let hidden = self.expert_hidden(input, activation, experts, &pairs)?;
        let downs: Vec<&Matrix> = experts.iter().map(|expert| only(&expert.down)).collect();
        assert_eq!(downs[0].rows, width, "the experts' outputs");
        let down_pairs = Pairs { ranks: 1, ..pairs };
        let done = self.expert_linear(&hidden, &downs, &down_pairs, outputs, width);
        self.mixture.hidden = Some(hidden);
        done?;

        let grid = [width.div_ceil(THREADS), rows, 1];
        let arguments = self.launches.add(self.kernels.mix_experts, grid, THREADS).param().address(choices);
        let arguments = arguments.param().address(outputs).param().int(ranks).param().int(width);
        arguments.param().address(x.address_mut(rows));
        Ok(())
    }

    /// Puts pairs with one expert together.
    fn group(
        &mut self,
        choices: u64,
        count: usize,
        count_max: usize,
        experts: usize,
    ) -> Result<(Cut, Grouped), KernelError> {
        let order = self.room(|cuda| &mut cuda.mixture.order, count_max)?;
        let tiles = self.room(|cuda| &mut cuda.mixture.tiles, checked_len(3, count_max + experts)?)?;
        let cut = Cut::of_pairs(count, experts);
        let arguments = self.launches.add(self.kernels.group_experts, [1, 1, 1], THREADS).param().address(choices);
        let arguments = arguments.param().int(count).param().int(experts).param().int(cut.rows());
        arguments.param().int(cut.tiles).param().address(order).param().address(tiles);
        Ok((cut, Grouped { experts: 0, tiles, order, ranks: 1 }))
    }

    /// The hidden values of all pairs, encoded for the experts' second matrices.
    fn expert_hidden(
        &mut self,
        input: &CudaEncoded,
        activation: Activation,
        experts: &[Expert<Self>],
        pairs: &Pairs,
    ) -> Result<CudaEncoded, KernelError> {
        let width = experts[0].gated.hidden();
        let before = self.mixture.hidden.take();
        let mut hidden = match before {
            Some(hidden) if hidden.capacity() >= pairs.count && hidden.width() == width => hidden,
            before => {
                if before.is_some() {
                    self.settle()?;
                }
                drop(before);
                CudaEncoded::new(self.stage.rows() * pairs.ranks, width)
            }
        };
        hidden.begin(&self.device, pairs.count, experts[0].down.forms())?;
        match &experts[0].gated.halves {
            Halves::Joined(_) => {
                let both: Vec<&Matrix> = experts.iter().map(|expert| half(&expert.gated.halves, 0)).collect();
                let both_kernels = both[0].kernels.tiles;
                if let (Some((cut, grouped)), Some(kernels)) = (pairs.grouped, both_kernels) {
                    let grouped = Grouped { experts: self.experts(&both, input)?, ranks: pairs.ranks, ..grouped };
                    let activation = activation_number(activation);
                    self.gate_tiles(kernels, both[0], (cut, grouped), input, activation, &hidden);
                    return Ok(hidden);
                }
                let grid = [width.div_ceil(32), pairs.count, 1];
                let kernel = both[0].kernels.expert_gated;
                self.launch_experts(kernel, grid, &both, input, pairs)?;
                hidden.output(self.launches.latest().param().int(activation_number(activation)));
            }
            Halves::Apart(_) => {
                let products = self.room(
                    |cuda| &mut cuda.products.products,
                    checked_len(self.stage.rows() * pairs.ranks, 2 * width)?,
                )?;
                for side in 0..2 {
                    let matrices: Vec<&Matrix> =
                        experts.iter().map(|expert| half(&expert.gated.halves, side)).collect();
                    let to = products + (4 * side * width) as u64;
                    self.expert_linear(input, &matrices, pairs, to, 2 * width)?;
                }
                self.activate(pairs.count, products, width, activation, &hidden);
            }
        }
        Ok(hidden)
    }

    /// The product of each pair's row with its expert's matrix.
    fn expert_linear(
        &mut self,
        input: &CudaEncoded,
        matrices: &[&Matrix],
        pairs: &Pairs,
        to: u64,
        stride: usize,
    ) -> Result<(), KernelError> {
        let first = matrices[0];
        if let (Some((cut, grouped)), Some(kernels)) = (pairs.grouped, first.kernels.tiles) {
            let grouped = Grouped { experts: self.experts(matrices, input)?, ranks: pairs.ranks, ..grouped };
            self.multiply_tiles(kernels, first, (cut, grouped), input, false, to, stride);
            return Ok(());
        }
        let grid = [first.linear_blocks(), pairs.count, 1];
        self.launch_experts(first.kernels.expert_linear, grid, matrices, input, pairs)?;
        let arguments = self.launches.latest().param().address(to).param().int(stride);
        arguments.param().int(first.warps_a_row);
        Ok(())
    }

    /// The launch and the arguments that all kernels of experts begin with.
    fn launch_experts(
        &mut self,
        kernel: Kernel,
        grid: [usize; 3],
        matrices: &[&Matrix],
        input: &CudaEncoded,
        pairs: &Pairs,
    ) -> Result<(), KernelError> {
        let first = matrices[0];
        let table = self.experts(matrices, input)?;
        let arguments = self.launches.add(kernel, grid, THREADS).param().address(table);
        let arguments = input.input(first.form, arguments.param().address(pairs.choices));
        arguments.param().int(pairs.ranks);
        Ok(())
    }

    /// Where matrices that this input fits are listed.
    fn experts(&mut self, matrices: &[&Matrix], input: &CudaEncoded) -> Result<u64, KernelError> {
        let first = matrices[0];
        let shape = |matrix: &Matrix| (matrix.rows, matrix.columns, matrix.weight_type);
        assert!(matrices.iter().all(|matrix| shape(matrix) == shape(first)), "experts of one type and shape");
        assert_eq!(input.width(), first.columns, "the input's width");
        self.table(matrices)
    }

    /// Where the matrices are listed.
    fn table(&mut self, matrices: &[&Matrix]) -> Result<u64, KernelError> {
        let ids = || matrices.iter().map(|matrix| matrix.id);
        if let Some(table) = self.mixture.tables.iter().find(|table| table.ids.iter().copied().eq(ids())) {
            return Ok(table.matrices.address());
        }
        let words: Vec<u64> = matrices.iter().flat_map(|matrix| matrix.words()).collect();
        let table = Table { ids: ids().collect(), matrices: self.device.buffer_of(&words)? };
        let address = table.matrices.address();
        self.mixture.tables.push(table);
        Ok(address)
    }
}

fn only(linear: &CudaLinear) -> &Matrix {
    let [matrix] = &linear.parts[..] else { panic!("an expert's second matrix is one") };
    matrix
}

fn half(halves: &Halves, side: usize) -> &Matrix {
    match halves {
        Halves::Joined(both) => both,
        Halves::Apart(halves) => &halves[side],
    }
}
