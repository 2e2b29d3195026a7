//! Activations in the forms that weights multiply with: int8 in blocks of 32 with a scale, bf16, f32.
//!
//! Rows lie in *groups* of 8 (of 4 or 1 at the end), the rows that a kernel works on at once: a block of 32 columns of all
//! rows of a group is together. A group may have room for more rows than there are; what lies there is never stored
//! anywhere. Which group a row is in changes nothing about its values.

use super::formats::BLOCK;
use super::memory::{Buffer, Pages, Plain};
use super::norm::{inverse_rms, load_part};
use super::pool::{Pool, share};
use super::rows::PIECES_A_THREAD;
use super::simd::{Kernel, LANES, Level, Simd};
use crate::{KernelError, Norm};

#[cfg(test)]
mod tests;

/// The largest group of rows.
pub(super) const GROUP_ROWS_MAX: usize = 8;
/// Blocks so small (below it times the block's scale of 127) are zero: their scale has no inverse.
const VANISHING: f32 = 1e-30;
/// Values below which waking the other threads takes longer than the work.
const ALONE_VALUES_MAX: usize = 16 << 10;

/// Which forms a consumer reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Forms {
    /// int8 with scale and sums.
    pub(super) int8: bool,
    /// Sums of 16 columns too.
    pub(super) halves: bool,
    /// bf16.
    pub(super) bf16: bool,
    /// f32.
    pub(super) f32: bool,
}

impl Forms {
    /// What either reads.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            int8: self.int8 | other.int8,
            halves: self.halves | other.halves,
            bf16: self.bf16 | other.bf16,
            f32: self.f32 | other.f32,
        }
    }

    fn has(self, other: Self) -> bool {
        self.and(other) == self
    }
}

/// Encoded rows.
#[derive(Debug)]
pub struct Encoded {
    width: usize,
    capacity: usize,
    rows: usize,
    /// Rows of the largest group.
    group: usize,
    forms: Forms,
    planes: Planes,
}

/// The arrays, one element a row and block of 32 columns, all in the order of [`slot`].
#[derive(Debug)]
struct Planes {
    /// `[slot][32]`.
    codes: Array<[[i8; 4]; 8]>,
    /// What codes are multiplied with.
    scales: Array<f32>,
    /// Minus the sum of the codes.
    totals: Array<i32>,
    /// Sum of the codes, times the scale.
    sums: Array<f32>,
    /// As totals, of the first and of the last 16 columns; `[block of the group][2][row]`.
    half_totals: Array<i32>,
    /// As sums.
    half_sums: Array<f32>,
    bf16: Array<[u16; BLOCK]>,
    f32: Array<[f32; BLOCK]>,
}

/// A buffer that prints its size only.
struct Array<T>(Buffer<T>);

impl<T> std::fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Array")
    }
}

impl Encoded {
    /// Room for `rows` rows of `width` values; memory is taken when it is used.
    pub(super) fn new(level: Level, rows: usize, width: usize) -> Result<Self, KernelError> {
        let blocks = width.div_ceil(BLOCK);
        let slots = rows.checked_next_multiple_of(GROUP_ROWS_MAX).and_then(|rows| rows.checked_mul(blocks));
        let slots = slots.ok_or(KernelError::OutOfMemory { bytes: usize::MAX })?;
        let planes = Planes {
            codes: array(slots)?,
            scales: array(slots)?,
            totals: array(slots)?,
            sums: array(slots)?,
            half_totals: array(2 * slots)?,
            half_sums: array(2 * slots)?,
            bf16: array(slots)?,
            f32: array(slots)?,
        };
        let group = level.group_rows().min(GROUP_ROWS_MAX);
        assert!(group.is_power_of_two(), "groups of {group} rows");
        Ok(Self { width, capacity: rows, rows: 0, group, forms: Forms::default(), planes })
    }

    /// Values a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Rows it holds now.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Prepares for writing `rows` rows of `width` values in these forms; what was there is gone.
    pub(super) fn begin(&mut self, rows: usize, width: usize, forms: Forms) -> Slots {
        assert!(rows <= self.capacity && width == self.width, "{rows} rows of {width} values do not fit");
        (self.rows, self.forms) = (rows, forms);
        let planes = &mut self.planes;
        Slots {
            blocks: width.div_ceil(BLOCK),
            rows,
            group: self.group,
            forms,
            codes: planes.codes.0.as_mut_ptr(),
            scales: planes.scales.0.as_mut_ptr(),
            totals: planes.totals.0.as_mut_ptr(),
            sums: planes.sums.0.as_mut_ptr(),
            half_totals: planes.half_totals.0.as_mut_ptr(),
            half_sums: planes.half_sums.0.as_mut_ptr(),
            bf16: planes.bf16.0.as_mut_ptr(),
            f32: planes.f32.0.as_mut_ptr(),
        }
    }

    /// Normalises `rows` rows of `x` (if asked to) and encodes them.
    pub(super) fn encode(
        &mut self,
        pool: &mut Pool,
        level: Level,
        x: &[f32],
        rows: usize,
        norm: Option<&Norm>,
        forms: Forms,
    ) {
        let width = self.width;
        assert_eq!(x.len(), rows * width, "rows to encode");
        assert!(norm.is_none_or(|norm| norm.weight.len() == width), "the norm's width");
        let slots = self.begin(rows, width, forms);
        if x.len() <= ALONE_VALUES_MAX || rows < 2 || pool.threads() == 1 {
            return level.run(EncodeRows { x, first: 0, norm, width, slots });
        }
        let pieces = rows.min(PIECES_A_THREAD * pool.threads());
        pool.for_chunks(pieces, |_, chunks| {
            for piece in chunks {
                let rows = share(rows, piece, pieces);
                let x = &x[rows.start * width..rows.end * width];
                level.run(EncodeRows { x, first: rows.start, norm, width, slots });
            }
        });
    }

    /// Copies rows of `from`, which must hold them in the forms it was given.
    pub(super) fn gather(&mut self, from: &Self, rows: &[usize]) {
        assert!(rows.iter().all(|row| *row < from.rows), "a row that is not there");
        let slots = self.begin(rows.len(), from.width, from.forms);
        let (blocks, forms) = (slots.blocks, from.forms);
        for (row, &source) in rows.iter().enumerate() {
            for block in 0..blocks {
                let (to, at) = (slots.slot(row, block), slot(from.rows, from.group, blocks, source, block));
                let (to_half, at_half) =
                    (slots.half_slots(row, block), half_slots(from.rows, from.group, blocks, source, block));
                let (planes, source) = (&mut self.planes, &from.planes);
                if forms.int8 {
                    planes.codes.0[to] = source.codes.0[at];
                    planes.scales.0[to] = source.scales.0[at];
                    planes.totals.0[to] = source.totals.0[at];
                    planes.sums.0[to] = source.sums.0[at];
                }
                if forms.halves {
                    for half in 0..2 {
                        planes.half_totals.0[to_half[half]] = source.half_totals.0[at_half[half]];
                        planes.half_sums.0[to_half[half]] = source.half_sums.0[at_half[half]];
                    }
                }
                if forms.bf16 {
                    planes.bf16.0[to] = source.bf16.0[at];
                }
                if forms.f32 {
                    planes.f32.0[to] = source.f32.0[at];
                }
            }
        }
    }

    /// The groups of rows, in order.
    pub(super) fn groups(&self) -> impl Iterator<Item = GroupAt> + use<> {
        let (rows, largest, blocks) = (self.rows, self.group, self.width.div_ceil(BLOCK));
        let mut row = 0;
        std::iter::from_fn(move || {
            let size = (row < rows).then(|| group_size(rows - row, largest))?;
            let at = GroupAt { row, size, slot: row * blocks };
            row += size;
            Some(at)
        })
    }

    /// Panics when rows were not encoded in these forms.
    pub(super) fn expect(&self, forms: Forms) {
        assert!(self.forms.has(forms), "rows were encoded as {:?}, not as {forms:?}", self.forms);
    }

    /// The first `blocks` blocks of columns of a group of `T` rows, as int8.
    #[inline(always)]
    pub(super) fn int8<const T: usize>(&self, at: GroupAt, blocks: usize) -> Int8Blocks<'_, T> {
        let range = at.slot..at.slot + blocks * T;
        let halves = 2 * range.start..2 * range.end;
        let planes = &self.planes;
        Int8Blocks {
            codes: planes.codes.0[range.clone()].as_chunks().0,
            scales: planes.scales.0[range.clone()].as_chunks().0,
            totals: planes.totals.0[range.clone()].as_chunks().0,
            sums: planes.sums.0[range].as_chunks().0,
            half_totals: planes.half_totals.0[halves.clone()].as_chunks().0.as_chunks().0,
            half_sums: planes.half_sums.0[halves].as_chunks().0.as_chunks().0,
        }
    }

    /// As [`int8`](Self::int8), as bf16.
    #[inline(always)]
    pub(super) fn bf16<const T: usize>(&self, at: GroupAt, blocks: usize) -> &[[[u16; BLOCK]; T]] {
        self.planes.bf16.0[at.slot..at.slot + blocks * T].as_chunks().0
    }

    /// As [`int8`](Self::int8), as f32.
    #[inline(always)]
    pub(super) fn f32<const T: usize>(&self, at: GroupAt, blocks: usize) -> &[[[f32; BLOCK]; T]] {
        self.planes.f32.0[at.slot..at.slot + blocks * T].as_chunks().0
    }
}

fn array<T: Plain>(len: usize) -> Result<Array<T>, KernelError> {
    Buffer::new(len, Pages::Normal).map(Array)
}

/// A group of rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupAt {
    /// Its first row.
    pub(super) row: usize,
    /// Rows it has room for.
    pub(super) size: usize,
    /// The slot of its first row's first block.
    slot: usize,
}

impl GroupAt {
    /// Whether no group comes before it: the one that brings weights into the cache.
    #[inline(always)]
    pub(super) fn is_first(self) -> bool {
        self.row == 0
    }
}

/// Blocks of `T` rows, as [`Planes`] has them.
#[derive(Clone, Copy)]
pub(super) struct Int8Blocks<'a, const T: usize> {
    pub(super) codes: &'a [[[[i8; 4]; 8]; T]],
    pub(super) scales: &'a [[f32; T]],
    pub(super) totals: &'a [[i32; T]],
    pub(super) sums: &'a [[f32; T]],
    pub(super) half_totals: &'a [[[i32; T]; 2]],
    pub(super) half_sums: &'a [[[f32; T]; 2]],
}

/// Rows of the next group, of `left` rows that are left: 1, 4 or 8, the last ones of which may not be there.
fn group_size(left: usize, largest: usize) -> usize {
    match left {
        1 => 1,
        2..=4 => largest.min(4),
        _ => largest,
    }
}

/// First row and size of the group of `row`.
fn group_of(rows: usize, largest: usize, row: usize) -> (usize, usize) {
    // A power of two: this is found for every block, and dividing would take longer than encoding it.
    let start = row & !(largest - 1);
    (start, group_size(rows - start, largest))
}

/// Where block `block` of `row` lies.
fn slot(rows: usize, largest: usize, blocks: usize, row: usize, block: usize) -> usize {
    let (start, size) = group_of(rows, largest, row);
    start * blocks + block * size + (row - start)
}

/// Where what belongs to its two halves lies.
fn half_slots(rows: usize, largest: usize, blocks: usize, row: usize, block: usize) -> [usize; 2] {
    let (start, size) = group_of(rows, largest, row);
    let first = 2 * (start * blocks + block * size) + (row - start);
    [first, first + size]
}

/// Where several threads write encoded rows.
#[derive(Clone, Copy)]
pub(super) struct Slots {
    blocks: usize,
    rows: usize,
    group: usize,
    forms: Forms,
    codes: *mut [[i8; 4]; 8],
    scales: *mut f32,
    totals: *mut i32,
    sums: *mut f32,
    half_totals: *mut i32,
    half_sums: *mut f32,
    bf16: *mut [u16; BLOCK],
    f32: *mut [f32; BLOCK],
}

// SAFETY: `write` asks its callers not to write one slot from two threads.
#[expect(unsafe_code, reason = "threads share one matrix")]
unsafe impl Send for Slots {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "threads share one matrix")]
unsafe impl Sync for Slots {}

impl Slots {
    fn slot(&self, row: usize, block: usize) -> usize {
        assert!(row < self.rows && block < self.blocks, "a block outside");
        slot(self.rows, self.group, self.blocks, row, block)
    }

    fn half_slots(&self, row: usize, block: usize) -> [usize; 2] {
        half_slots(self.rows, self.group, self.blocks, row, block)
    }

    /// Encodes 32 columns of a row.
    ///
    /// # Safety
    /// The matrix is still there, nobody reads it, and no other thread writes this block of this row.
    #[inline(always)]
    #[expect(unsafe_code, clippy::multiple_unsafe_ops_per_block, reason = "threads share one matrix")]
    pub(super) unsafe fn write<S: Simd>(&self, simd: S, row: usize, block: usize, x: [S::F32; 2]) {
        let slot = self.slot(row, block);
        if self.forms.int8 {
            let q = Quantised::new(simd, x);
            // SAFETY: `slot` is inside each array, and this thread's own.
            unsafe {
                let codes = (*self.codes.add(slot)).as_flattened_mut().as_chunks_mut().0;
                for (codes, from) in codes.iter_mut().zip(q.codes) {
                    simd.store_i8(from, codes);
                }
                let total = simd.sum_i32(simd.add_i32(q.codes[0], q.codes[1]));
                self.scales.add(slot).write(q.scale);
                self.totals.add(slot).write(-total);
                self.sums.add(slot).write(q.scale * total as f32);
            }
            if self.forms.halves {
                for (codes, at) in q.codes.into_iter().zip(self.half_slots(row, block)) {
                    let total = simd.sum_i32(codes);
                    // SAFETY: as above.
                    unsafe {
                        self.half_totals.add(at).write(-total);
                        self.half_sums.add(at).write(q.scale * total as f32);
                    }
                }
            }
        }
        if self.forms.bf16 {
            // SAFETY: as above.
            let to = unsafe { &mut *self.bf16.add(slot) };
            for (to, from) in to.as_chunks_mut().0.iter_mut().zip(x) {
                simd.store_bf16(from, to);
            }
        }
        if self.forms.f32 {
            // SAFETY: as above.
            let to = unsafe { &mut *self.f32.add(slot) };
            for (to, from) in to.as_chunks_mut().0.iter_mut().zip(x) {
                simd.store(from, to);
            }
        }
    }
}

/// 32 values as int8, symmetric.
struct Quantised<S: Simd> {
    codes: [S::I32; 2],
    /// What the codes are multiplied with.
    scale: f32,
}

impl<S: Simd> Quantised<S> {
    #[inline(always)]
    fn new(simd: S, [a, b]: [S::F32; 2]) -> Self {
        let top = simd.largest(simd.max(simd.abs(a), simd.abs(b)));
        let inverse = simd.splat(if top > VANISHING { 127.0 / top } else { 0.0 });
        let codes = [simd.to_i32(simd.mul(a, inverse)), simd.to_i32(simd.mul(b, inverse))];
        Self { codes, scale: top / 127.0 }
    }
}

/// Normalises and encodes rows, from row `first` of the matrix on.
struct EncodeRows<'a> {
    x: &'a [f32],
    first: usize,
    norm: Option<&'a Norm>,
    width: usize,
    slots: Slots,
}

impl Kernel for EncodeRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, x) in self.x.chunks_exact(self.width).enumerate() {
            let factor = self.norm.map(|norm| simd.splat(inverse_rms(simd, x, norm.epsilon)));
            for (block, x) in x.chunks(BLOCK).enumerate() {
                let (low, high) = x.split_at(x.len().min(LANES));
                let mut values = [load_part(simd, low), load_part(simd, high)];
                if let (Some(norm), Some(factor)) = (self.norm, factor) {
                    let weight = &norm.weight[block * BLOCK..][..x.len()];
                    let (low, high) = weight.split_at(low.len());
                    for (value, weight) in values.iter_mut().zip([load_part(simd, low), load_part(simd, high)]) {
                        *value = simd.mul(simd.mul(*value, factor), weight);
                    }
                }
                #[expect(unsafe_code, reason = "threads share one matrix")]
                // SAFETY: rows are dealt out to threads, and `Encoded::encode` waits for all of them.
                unsafe {
                    self.slots.write(simd, self.first + row, block, values);
                }
            }
        }
    }
}
