//! How fast memory can be read.

use std::time::Instant;

use super::memory::{Buffer, Pages};
use super::pool::Pool;
use super::product::prefetch_after;
use super::simd::{Kernel, Level, Simd};
use crate::KernelError;

/// Passes over the memory, of which the median counts.
const PASSES: usize = 9;

/// Bytes a second, all threads together.
pub(super) fn measure(pool: &mut Pool, level: Level, bytes: usize) -> Result<f64, KernelError> {
    let mut memory = Buffer::<u8>::new(bytes.max(1 << 20), Pages::Huge)?;
    // Pages that were never written to are all the same page of zeros.
    memory.fill(1);
    let memory = &*memory;
    let mut rates: Vec<f64> = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            pool.run(|worker| level.run(Sweep { memory: &memory[worker.share(memory.len())] }));
            memory.len() as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    Ok(rates[PASSES / 2])
}

/// Reads all bytes, asking for them as products ask for weights.
struct Sweep<'a> {
    memory: &'a [u8],
}

impl Kernel for Sweep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut seen = [simd.splat_byte(0); 4];
        for block in self.memory.as_chunks::<256>().0 {
            for (seen, line) in seen.iter_mut().zip(block.as_chunks().0) {
                prefetch_after(simd, line.as_ptr());
                *seen = simd.or(*seen, simd.load_bytes(line));
            }
        }
        for seen in seen {
            let mut bytes = [0; 64];
            simd.store_bytes(seen, &mut bytes);
            std::hint::black_box(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::Pool;
    use super::{Level, measure};

    #[test]
    fn memory_is_read_at_some_speed() {
        let mut pool = Pool::new(2, false).expect("threads start");
        let rate = measure(&mut pool, Level::best(), 4 << 20).expect("little memory");
        assert!(rate > 1e6 && rate < 1e14, "{rate} bytes a second");
    }
}
