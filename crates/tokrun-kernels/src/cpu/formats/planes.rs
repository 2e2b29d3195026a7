//! Planes: where the bits of the codes of a block of 16 rows x 32 columns lie.
//!
//! Codes come and go as eight groups of four columns, a `u32` or a lane each.

use super::{Codes, GROUPS, plain};
use crate::cpu::simd::{LANES, Simd};

/// 64 bytes: four of each row.
pub(super) type Plane = [u8; 4 * LANES];

/// Four bits a code: group `i` in the low nibbles of plane `i`, group `4 + i` in its high nibbles.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct Nibbles([Plane; 4]);

/// Two bits a code: group `4 p + i` in bits `2 i` and `2 i + 1` of plane `p`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct Pairs([Plane; 2]);

/// One bit a code: group `i` in bit `i`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct Bits(Plane);

/// Eight bits a code.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct Whole(pub(super) [Plane; GROUPS]);

plain!(Nibbles Pairs Bits Whole);

#[inline(always)]
fn put(plane: &mut Plane, row: usize, codes: u32) {
    plane[4 * row..][..4].copy_from_slice(&codes.to_le_bytes());
}

impl Codes for Nibbles {
    #[inline(always)]
    fn get<S: Simd>(&self, simd: S, _: usize, group: usize) -> S::Bytes {
        let plane = simd.load_bytes(&self.0[group % 4]);
        if group < 4 { simd.and(plane, simd.splat_byte(15)) } else { simd.shift_right::<4>(plane) }
    }
}

impl Nibbles {
    /// The low four bits of `codes`.
    #[inline(always)]
    pub(super) fn put(&mut self, row: usize, codes: &[u32; GROUPS]) {
        for (i, plane) in self.0.iter_mut().enumerate() {
            put(plane, row, (codes[i] & 0x0f0f_0f0f) | ((codes[4 + i] & 0x0f0f_0f0f) << 4));
        }
    }
}

impl Codes for Pairs {
    #[inline(always)]
    fn get<S: Simd>(&self, simd: S, _: usize, group: usize) -> S::Bytes {
        let plane = simd.load_bytes(&self.0[group / 4]);
        let moved = match group % 4 {
            0 => plane,
            1 => simd.shift_right::<2>(plane),
            2 => simd.shift_right::<4>(plane),
            _ => return simd.shift_right::<6>(plane),
        };
        simd.and(moved, simd.splat_byte(3))
    }
}

impl Pairs {
    /// The low two bits of `codes`.
    #[inline(always)]
    pub(super) fn put(&mut self, row: usize, codes: &[u32; GROUPS]) {
        for (plane, codes) in self.0.iter_mut().zip(codes.as_chunks::<4>().0) {
            let pair = |i: usize| (codes[i] & 0x0303_0303) << (2 * i);
            put(plane, row, pair(0) | pair(1) | pair(2) | pair(3));
        }
    }
}

impl Bits {
    /// The bit of each code, moved to bit 4 (`AT` = 4) or bit 2 (`AT` = 2).
    #[inline(always)]
    pub(super) fn get<S: Simd, const AT: usize>(&self, simd: S, group: usize) -> S::Bytes {
        let plane = simd.load_bytes(&self.0);
        let moved = match (group as isize) - (AT as isize) {
            -4 => simd.shift_left::<4>(plane),
            -3 => simd.shift_left::<3>(plane),
            -2 => simd.shift_left::<2>(plane),
            -1 => simd.shift_left::<1>(plane),
            0 => plane,
            1 => simd.shift_right::<1>(plane),
            2 => simd.shift_right::<2>(plane),
            3 => simd.shift_right::<3>(plane),
            4 => simd.shift_right::<4>(plane),
            _ => simd.shift_right::<5>(plane),
        };
        simd.and(moved, simd.splat_byte(1 << AT))
    }

    /// Bit `AT` of `codes`.
    #[inline(always)]
    pub(super) fn put<const AT: usize>(&mut self, row: usize, codes: &[u32; GROUPS]) {
        let mut bits = 0;
        for (i, codes) in codes.iter().enumerate() {
            bits |= ((codes >> AT) & 0x0101_0101) << i;
        }
        put(&mut self.0, row, bits);
    }
}

impl Codes for Whole {
    #[inline(always)]
    fn get<S: Simd>(&self, simd: S, _: usize, group: usize) -> S::Bytes {
        simd.load_bytes(&self.0[group])
    }
}

impl Whole {
    #[inline(always)]
    pub(super) fn put(&mut self, row: usize, codes: &[u32; GROUPS]) {
        for (plane, codes) in self.0.iter_mut().zip(codes) {
            put(plane, row, *codes);
        }
    }
}
