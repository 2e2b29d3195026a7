//! What the tests of this backend share.

use super::pool::Pool;
use super::rows::CpuRows;
use super::simd::Level;

/// Numbers between -1 and 1 that look random.
pub(super) fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn rows(rows: usize, width: usize, seed: u32) -> CpuRows {
    let mut out = CpuRows::new(rows, width).expect("little memory");
    out.first_mut(rows).copy_from_slice(&noise(rows * width, seed));
    out
}

/// Calls `check` with every level and several numbers of threads.
pub(super) fn everywhere(mut check: impl FnMut(&mut Pool, Level)) {
    for level in Level::available() {
        for threads in 1..4 {
            check(&mut Pool::new(threads, false).expect("threads start"), level);
        }
    }
}

/// Within `tolerance` of the larger of 1 and what is expected.
pub(super) fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance * expected.abs().max(1.0), "value {at}: {got}, not {expected}");
    }
}
