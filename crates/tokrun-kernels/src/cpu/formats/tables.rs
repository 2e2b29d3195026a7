//! Codes that name values of a table: IQ4_NL, IQ4_XS, MXFP4.

use super::planes::{Nibbles, file_nibbles};
use super::{Format, Halfs, Pack, plain};
use crate::cpu::simd::{LANES, Simd};
use crate::dequantise::{IQ4_VALUES, MXFP4_DOUBLED, iq4_xs_scales};

/// `scale * table[code]`.
pub(in crate::cpu) struct Iq4Nl;
/// `scale * table[code]`, superblocks of 256 columns with a scale for each 32.
pub(in crate::cpu) struct Iq4Xs;
/// `2^exponent * table[code]`.
pub(in crate::cpu) struct Mxfp4;

const IQ4_BYTES: [u8; 16] = add_zero(IQ4_VALUES, 128);
const MXFP4_BYTES: [u8; 16] = add_zero(MXFP4_DOUBLED, 16);

const fn add_zero(values: [i8; 16], zero: i16) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = (values[i] as i16 + zero) as u8;
        i += 1;
    }
    bytes
}

/// Scales of each 32 columns of a superblock.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct SignedScales {
    scale: Halfs,
    scales: [[i8; LANES]; 8],
}

plain!(SignedScales);

impl Format for Iq4Nl {
    type Codes = Nibbles;
    type Scales = Halfs;
    const BLOCKS: usize = 1;
    const HALVES: bool = false;
    const MINS: bool = false;
    const ZERO_BITS: Option<u32> = Some(7);

    #[inline(always)]
    fn codes<S: Simd>(simd: S, codes: &Nibbles, _: usize, group: usize) -> S::Bytes {
        simd.look_up(&IQ4_BYTES, codes.get(simd, group))
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, scales: &Halfs, _: usize) -> [S::F32; 2] {
        [scales.get(simd); 2]
    }
}

impl Pack for Iq4Nl {
    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Nibbles, scales: &mut Halfs) {
        scales.put(row, file, 0);
        codes.put(row, &file_nibbles(&file[2..]));
    }
}

impl Format for Iq4Xs {
    type Codes = [Nibbles; 8];
    type Scales = SignedScales;
    const BLOCKS: usize = 8;
    const HALVES: bool = false;
    const MINS: bool = false;
    const ZERO_BITS: Option<u32> = Some(7);

    #[inline(always)]
    fn codes<S: Simd>(simd: S, codes: &Self::Codes, block: usize, group: usize) -> S::Bytes {
        simd.look_up(&IQ4_BYTES, codes[block].get(simd, group))
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, scales: &SignedScales, block: usize) -> [S::F32; 2] {
        [simd.mul(scales.scale.get(simd), simd.load_i8(&scales.scales[block])); 2]
    }
}

impl Pack for Iq4Xs {
    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Self::Codes, scales: &mut SignedScales) {
        scales.scale.put(row, file, 0);
        for (to, from) in scales.scales.iter_mut().zip(iq4_xs_scales(&file[2..8])) {
            to[row] = from;
        }
        for (codes, file) in codes.iter_mut().zip(file[8..].chunks_exact(16)) {
            codes.put(row, &file_nibbles(file));
        }
    }
}

impl Format for Mxfp4 {
    type Codes = Nibbles;
    type Scales = [u8; LANES];
    const BLOCKS: usize = 1;
    const HALVES: bool = false;
    const MINS: bool = false;
    const ZERO_BITS: Option<u32> = Some(4);

    #[inline(always)]
    fn codes<S: Simd>(simd: S, codes: &Nibbles, _: usize, group: usize) -> S::Bytes {
        simd.look_up(&MXFP4_BYTES, codes.get(simd, group))
    }

    /// `2^(exponent - 128)`, in two factors, since neither 2^-128 nor 2^127 can be made in one step.
    #[inline(always)]
    fn scales<S: Simd>(simd: S, scales: &[u8; LANES], _: usize) -> [S::F32; 2] {
        let exponent = simd.load_u8(scales);
        let half = simd.round(simd.fma(exponent, simd.splat(0.5), simd.splat(-0.25)));
        let offset = simd.splat(64.0);
        let first = simd.scale_by_power(simd.splat(1.0), simd.sub(half, offset));
        [simd.scale_by_power(first, simd.sub(simd.sub(exponent, half), offset)); 2]
    }
}

impl Pack for Mxfp4 {
    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Nibbles, scales: &mut [u8; LANES]) {
        scales[row] = file[0];
        codes.put(row, &file_nibbles(&file[1..]));
    }
}
