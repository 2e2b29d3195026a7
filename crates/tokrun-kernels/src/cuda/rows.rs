//! Matrices of activations on the device.

use std::cell::{Cell, OnceCell};
use std::ops::Range;

use super::device::Device;
use super::formats::{BLOCK, Form};
use super::launches::Arguments;
use super::memory::{Buffer, Pinned, Plain};
use crate::KernelError;

/// Rows that steps are filled up to: the batch of a graph.
pub(super) const fn bucket(rows: usize) -> usize {
    match rows {
        0..=8 => rows.next_power_of_two(),
        9..=64 => rows.next_multiple_of(8),
        _ => rows.next_multiple_of(32),
    }
}

/// `[rows, width]` f32 on the device, and what was read of them.
pub struct CudaRows {
    width: usize,
    capacity: usize,
    pub(super) values: Buffer<f32>,
    /// The values in the host's memory, once somebody asked for them and until they are written again.
    mirror: OnceCell<Box<Mirror>>,
    /// Memory of an earlier mirror.
    spare: Cell<Option<Box<Mirror>>>,
}

impl std::fmt::Debug for CudaRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaRows").field("width", &self.width).field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// Some of the rows, in memory that the device copies to.
#[derive(Debug)]
struct Mirror {
    values: Pinned<f32>,
    /// Which values they are.
    range: Range<usize>,
    /// A mirror of rows that are not all among these, where they were asked for later.
    other: OnceCell<Box<Mirror>>,
}

impl CudaRows {
    pub(super) fn new(device: &Device, rows: usize, width: usize) -> Result<Self, KernelError> {
        let capacity = bucket(rows);
        let len = checked_len(capacity, width)?;
        let values = device.buffer(len)?;
        Ok(Self { width, capacity, values, mirror: OnceCell::new(), spare: Cell::new(None) })
    }

    /// Values a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Where the values lie, to read `rows` of them.
    pub(super) fn address(&self, rows: usize) -> u64 {
        assert!(rows <= self.capacity, "{rows} rows of {}", self.capacity);
        self.values.address()
    }

    /// Where the values lie, to write them: what was read before is no longer theirs.
    pub(super) fn address_mut(&mut self, rows: usize) -> u64 {
        if let Some(mirror) = self.mirror.take() {
            self.spare.set(Some(mirror));
        }
        self.address(rows)
    }

    /// Some rows in the host's memory. `copy` brings their values there and waits.
    pub(super) fn read(
        &self,
        device: &Device,
        rows: Range<usize>,
        copy: impl FnOnce(&Buffer<f32>, Range<usize>, &mut Pinned<f32>) -> Result<(), KernelError>,
    ) -> Result<&[f32], KernelError> {
        let range = rows.start * self.width..rows.end * self.width;
        let mut place = &self.mirror;
        while let Some(mirror) = place.get() {
            if mirror.range.start <= range.start && range.end <= mirror.range.end {
                return Ok(&mirror.values[range.start - mirror.range.start..][..range.len()]);
            }
            place = &mirror.other;
        }
        let mut mirror = match self.spare.take().filter(|spare| spare.values.len() >= range.len()) {
            Some(spare) => spare,
            None => {
                let values = device.pinned(range.len())?;
                Box::new(Mirror { values, range: 0..0, other: OnceCell::new() })
            }
        };
        let len = range.len();
        mirror.other = OnceCell::new();
        copy(&self.values, range.clone(), &mut mirror.values)?;
        mirror.range = range;
        Ok(&place.get_or_init(|| mirror).values[..len])
    }
}

/// Encoded rows; memory for a form is taken when rows are first encoded in it.
#[derive(Debug)]
pub struct CudaEncoded {
    width: usize,
    capacity: usize,
    /// Rows it holds now, and the forms they are in.
    rows: usize,
    forms: Forms,
    /// `[rows, 2, blocks, 16]`
    codes: Option<Buffer<u8>>,
    /// `[rows, blocks]`: scale, sums of both halves.
    meta: Option<Buffer<u64>>,
    /// `[rows, blocks, 32]`
    bf16: Option<Buffer<u16>>,
    /// `[rows, blocks, 32]`
    f32: Option<Buffer<f32>>,
}

/// Which forms a consumer reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Forms {
    int8: bool,
    bf16: bool,
    f32: bool,
}

impl Forms {
    /// These and that one.
    pub(super) fn and(mut self, form: Form) -> Self {
        match form {
            Form::Int8 => self.int8 = true,
            Form::BF16 => self.bf16 = true,
            Form::F32 => self.f32 = true,
        }
        self
    }

    fn has(self, form: Form) -> bool {
        self.and(form) == self
    }
}

impl CudaEncoded {
    pub(super) fn new(rows: usize, width: usize) -> Self {
        let capacity = bucket(rows);
        let forms = Forms::default();
        Self { width, capacity, rows: 0, forms, codes: None, meta: None, bf16: None, f32: None }
    }

    /// Values a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Rows it holds.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Rows there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    fn blocks(&self) -> usize {
        self.width.div_ceil(BLOCK)
    }

    /// Prepares for writing `rows` rows in these forms; what was there is gone.
    pub(super) fn begin(&mut self, device: &Device, rows: usize, forms: Forms) -> Result<(), KernelError> {
        assert!(rows <= self.capacity, "{rows} rows of {}", self.capacity);
        let blocks = checked_len(self.capacity, self.blocks())?;
        let values = checked_len(blocks, BLOCK)?;
        if forms.int8 && self.codes.is_none() {
            (self.codes, self.meta) = (Some(device.buffer(values)?), Some(device.buffer(blocks)?));
        }
        if forms.bf16 && self.bf16.is_none() {
            self.bf16 = Some(device.buffer(values)?);
        }
        if forms.f32 && self.f32.is_none() {
            self.f32 = Some(device.buffer(values)?);
        }
        (self.rows, self.forms) = (rows, forms);
        Ok(())
    }

    /// The kernels' `Encoded`: where rows go in the forms that `begin` was told.
    pub(super) fn output<'a>(&self, arguments: Arguments<'a>) -> Arguments<'a> {
        let Forms { int8, bf16, f32 } = self.forms;
        arguments
            .param()
            .address(address_if(int8, self.codes.as_ref()))
            .address(address_if(int8, self.meta.as_ref()))
            .address(address_if(bf16, self.bf16.as_ref()))
            .address(address_if(f32, self.f32.as_ref()))
            .int(self.blocks())
    }

    /// The kernels' `Input`, in one form.
    pub(super) fn input<'a>(&self, form: Form, arguments: Arguments<'a>) -> Arguments<'a> {
        assert!(self.forms.has(form), "rows were encoded as {:?}, not as {form:?}", self.forms);
        let values = match form {
            Form::Int8 => address_if(true, self.codes.as_ref()),
            Form::BF16 => address_if(true, self.bf16.as_ref()),
            Form::F32 => address_if(true, self.f32.as_ref()),
        };
        let meta = address_if(form == Form::Int8, self.meta.as_ref());
        arguments.param().address(values).address(meta).int(self.blocks()).int(self.rows)
    }
}

fn address_if<T: Plain>(wanted: bool, buffer: Option<&Buffer<T>>) -> u64 {
    buffer.filter(|_| wanted).map_or(0, Buffer::address)
}

/// `rows * width`, or the error of memory that nobody has.
pub(super) fn checked_len(rows: usize, width: usize) -> Result<usize, KernelError> {
    rows.checked_mul(width).ok_or(KernelError::OutOfMemory { bytes: usize::MAX })
}
