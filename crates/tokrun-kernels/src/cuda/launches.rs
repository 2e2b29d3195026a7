//! Launches of kernels, written down before they happen: what a step does is a list that can be compared with that of an
//! earlier step, launched, or captured in a graph.

use super::device::{Device, Kernel, Parameters, Shape};
use super::error::CudaError;

/// Kernels with their grids and arguments, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Launches {
    launches: Vec<Launch>,
    /// Where in `words` each parameter begins.
    params: Vec<u32>,
    /// The parameters, each in whole words.
    words: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Launch {
    kernel: Kernel,
    grid: [u32; 3],
    threads: u32,
    /// Dynamic shared memory a block.
    shared_bytes: u32,
    /// Past its last one in `params`.
    params_end: u32,
}

impl Launches {
    pub(super) fn is_empty(&self) -> bool {
        self.launches.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.launches.clear();
        self.params.clear();
        self.words.clear();
    }

    /// Adds a launch without arguments; the answer takes them, in the order of the kernel's parameters.
    pub(super) fn add(&mut self, kernel: Kernel, grid: [usize; 3], threads: usize) -> Arguments<'_> {
        let grid = grid.map(|size| u32::try_from(size).expect("grids are far below 2^32 blocks"));
        let threads = u32::try_from(threads).expect("a block has at most 1024 threads");
        self.launches.push(Launch { kernel, grid, threads, shared_bytes: 0, params_end: self.params.len() as u32 });
        Arguments { list: self, in_word: 0 }
    }

    /// The same, of blocks with dynamic shared memory.
    pub(super) fn add_with_shared(
        &mut self,
        kernel: Kernel,
        grid: [usize; 3],
        threads: usize,
        shared_bytes: usize,
    ) -> Arguments<'_> {
        self.add(kernel, grid, threads);
        let launch = self.launches.last_mut().expect("it was just added");
        launch.shared_bytes = u32::try_from(shared_bytes).expect("shared memory is small");
        self.latest()
    }

    /// More arguments for the latest launch.
    pub(super) fn latest(&mut self) -> Arguments<'_> {
        Arguments { list: self, in_word: 0 }
    }

    /// Puts all of them on the stream. Each kernel may begin before the one ahead has ended: all wait by themselves.
    pub(super) fn launch(&self, device: &Device) -> Result<(), CudaError> {
        let mut first = 0;
        for &Launch { kernel, grid, threads, shared_bytes, params_end } in &self.launches {
            let starts = &self.params[first..params_end as usize];
            first = params_end as usize;
            let shape = Shape { grid, threads, shared_bytes, overlaps: true };
            device.launch(kernel, shape, Parameters { starts, words: &self.words })?;
        }
        Ok(())
    }
}

/// Where the arguments of the latest launch go. A structure is one parameter whose fields follow each other; its size and
/// the place of its fields are those of C.
pub(super) struct Arguments<'a> {
    list: &'a mut Launches,
    /// Bytes of the last word that are taken.
    in_word: u32,
}

impl Arguments<'_> {
    /// Begins a parameter.
    pub(super) fn param(mut self) -> Self {
        self.list.params.push(self.list.words.len() as u32);
        self.in_word = 0;
        let launch = self.list.launches.last_mut().expect("arguments belong to a launch");
        launch.params_end = self.list.params.len() as u32;
        self
    }

    /// A field: a device address, or 0.
    pub(super) fn address(mut self, address: u64) -> Self {
        self.list.words.push(address);
        self.in_word = 0;
        self
    }

    /// A field of four bytes.
    pub(super) fn bits(mut self, bits: u32) -> Self {
        match self.in_word {
            4 => {
                let last = self.list.words.last_mut().expect("half a word is there");
                *last |= u64::from(bits) << 32;
                self.in_word = 0;
            }
            _ => {
                self.list.words.push(u64::from(bits));
                self.in_word = 4;
            }
        }
        self
    }

    /// A field: a size or a number that fits into an `int`.
    pub(super) fn int(self, value: usize) -> Self {
        self.bits(i32::try_from(value).expect("sizes of a step fit into 31 bits").cast_unsigned())
    }

    /// A field.
    pub(super) fn float(self, value: f32) -> Self {
        self.bits(value.to_bits())
    }
}
