//! Codes that name values of a table: IQ4_NL, IQ4_XS, MXFP4.

use super::planes::Nibbles;
use super::{Codes, FileFormat, Format, Halfs, Scales, Spread, plain};
use crate::codes::nibbles;
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

/// Codes that name values of [`IQ4_BYTES`].
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct Iq4Codes(Nibbles);

/// Codes that name values of [`MXFP4_BYTES`].
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct Mxfp4Codes(Nibbles);

/// Scales that are powers of two.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::cpu) struct Exponents([u8; LANES]);

plain!(SignedScales Iq4Codes Mxfp4Codes Exponents);

impl Codes for Iq4Codes {
    #[inline(always)]
    fn get<S: Simd>(&self, simd: S, _: usize, group: usize) -> S::Bytes {
        simd.look_up(&IQ4_BYTES, self.0.get(simd, 0, group))
    }
}

impl Codes for Mxfp4Codes {
    #[inline(always)]
    fn get<S: Simd>(&self, simd: S, _: usize, group: usize) -> S::Bytes {
        simd.look_up(&MXFP4_BYTES, self.0.get(simd, 0, group))
    }
}

impl Scales for SignedScales {
    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, block: usize) -> [S::F32; 2] {
        [simd.mul(self.scale.get(simd), simd.load_i8(&self.scales[block])); 2]
    }
}

impl Scales for Exponents {
    /// `2^(exponent - 128)`, in two factors, since neither 2^-128 nor 2^127 can be made in one step.
    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, _: usize) -> [S::F32; 2] {
        let exponent = simd.load_u8(&self.0);
        let half = simd.round(simd.fma(exponent, simd.splat(0.5), simd.splat(-0.25)));
        let offset = simd.splat(64.0);
        let first = simd.scale_by_power(simd.splat(1.0), simd.sub(half, offset));
        [simd.scale_by_power(first, simd.sub(simd.sub(exponent, half), offset)); 2]
    }
}

impl Format for Iq4Nl {
    type Codes = Iq4Codes;
    type Scales = Halfs;
    const ZERO_BITS: Option<u32> = Some(7);
}

impl FileFormat for Iq4Nl {
    type Spread = Spread<1, false, false, 7>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Iq4Codes, scales: &mut Halfs) {
        scales.put(row, file, 0);
        codes.0.put(row, &nibbles(&file[2..]));
    }
}

impl Format for Iq4Xs {
    type Codes = [Iq4Codes; 8];
    type Scales = SignedScales;
    const ZERO_BITS: Option<u32> = Some(7);
}

impl FileFormat for Iq4Xs {
    type Spread = Spread<1, false, false, 7>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Self::Codes, scales: &mut SignedScales) {
        scales.scale.put(row, file, 0);
        for (to, from) in scales.scales.iter_mut().zip(iq4_xs_scales(&file[2..8])) {
            to[row] = from;
        }
        for (codes, file) in codes.iter_mut().zip(file[8..].chunks_exact(16)) {
            codes.0.put(row, &nibbles(file));
        }
    }
}

impl Format for Mxfp4 {
    type Codes = Mxfp4Codes;
    type Scales = Exponents;
    const ZERO_BITS: Option<u32> = Some(4);
}

impl FileFormat for Mxfp4 {
    type Spread = Spread<1, false, false, 4>;

    #[inline(always)]
    fn pack(file: &[u8], row: usize, codes: &mut Mxfp4Codes, scales: &mut Exponents) {
        scales.0[row] = file[0];
        codes.0.put(row, &nibbles(&file[1..]));
    }
}
