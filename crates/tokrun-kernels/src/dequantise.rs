//! What the bytes of model files mean: every storage type as plain numbers, written for reading. The packed forms of the
//! fast backends are checked against this.
//!
//! All numbers are little-endian. A block starts with its scales where nothing else is said, and two 4-bit codes share a
//! byte: the low nibbles of a run of bytes are one run of values, the high nibbles the run after it.

use half::{bf16, f16};

use crate::WeightType;

/// The values of IQ4_NL and IQ4_XS codes.
pub(crate) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of MXFP4 codes: a sign, two bits of exponent, one of mantissa.
pub(crate) const MXFP4_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Appends the values that `bytes` stand for, `bytes.len() / block_bytes * block_size` of them, to `out`.
///
/// # Panics
/// When `bytes` are not whole blocks.
pub fn dequantise(weight_type: WeightType, bytes: &[u8], out: &mut Vec<f32>) {
    out.reserve(bytes.len() / weight_type.block_bytes() * weight_type.block_size());
    match weight_type {
        WeightType::F32 => each_block(bytes, |block| out.push(f32::from_le_bytes(*block))),
        WeightType::F16 => each_block(bytes, |block| out.push(f16::from_le_bytes(*block).to_f32())),
        WeightType::BF16 => each_block(bytes, |block| out.push(bf16::from_le_bytes(*block).to_f32())),
        WeightType::Q4_0 => each_block(bytes, |block| q4_0(block, out)),
        WeightType::Q4_1 => each_block(bytes, |block| q4_1(block, out)),
        WeightType::Q5_0 => each_block(bytes, |block| q5_0(block, out)),
        WeightType::Q5_1 => each_block(bytes, |block| q5_1(block, out)),
        WeightType::Q8_0 => each_block(bytes, |block| q8_0(block, out)),
        WeightType::Q2_K => each_block(bytes, |block| q2_k(block, out)),
        WeightType::Q3_K => each_block(bytes, |block| q3_k(block, out)),
        WeightType::Q4_K => each_block(bytes, |block| q4_k(block, out)),
        WeightType::Q5_K => each_block(bytes, |block| q5_k(block, out)),
        WeightType::Q6_K => each_block(bytes, |block| q6_k(block, out)),
        WeightType::IQ4_NL => each_block(bytes, |block| iq4_nl(block, out)),
        WeightType::IQ4_XS => each_block(bytes, |block| iq4_xs(block, out)),
        WeightType::MXFP4 => each_block(bytes, |block| mxfp4(block, out)),
        WeightType::FP8 => each_block(bytes, |block| fp8(block, out)),
    }
}

fn each_block<const BYTES: usize>(bytes: &[u8], mut block: impl FnMut(&[u8; BYTES])) {
    let (blocks, rest) = bytes.as_chunks::<BYTES>();
    assert!(rest.is_empty(), "{} bytes are not whole blocks of {BYTES}", bytes.len());
    blocks.iter().for_each(&mut block);
}

/// Scale (f32), 128 bytes of 8-bit floats: `scale * value`.
fn fp8(block: &[u8; 132], out: &mut Vec<f32>) {
    let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    out.extend(block[4..].iter().map(|&code| scale * e4m3(code)));
}

/// A sign, four bits of exponent (7 is that of 1), three of mantissa; no infinities, and one NaN of each sign.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// Scale, 16 bytes of nibbles: `scale * (code - 8)`.
fn q4_0(block: &[u8; 18], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(nibbles(&block[2..]).map(|code| scale * (f32::from(code) - 8.0)));
}

/// Scale, minimum, 16 bytes of nibbles: `scale * code + minimum`.
fn q4_1(block: &[u8; 20], out: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    out.extend(nibbles(&block[4..]).map(|code| scale * f32::from(code) + minimum));
}

/// Scale, 32 fifth bits (bit i of value i), 16 bytes of nibbles: `scale * (code - 16)`.
fn q5_0(block: &[u8; 22], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(with_fifth_bits(&block[2..6], &block[6..]).map(|code| scale * (f32::from(code) - 16.0)));
}

/// Scale, minimum, 32 fifth bits, 16 bytes of nibbles: `scale * code + minimum`.
fn q5_1(block: &[u8; 24], out: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    out.extend(with_fifth_bits(&block[4..8], &block[8..]).map(|code| scale * f32::from(code) + minimum));
}

/// Scale, 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(block[2..].iter().map(|&code| scale * f32::from(code.cast_signed())));
}

/// 16 bytes of (scale, minimum) nibbles, one for each 16 values; 64 bytes of 2-bit codes; then the scale of the scales
/// and the scale of the minimums.
fn q2_k(block: &[u8; 84], out: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
    for (i, code) in two_bits(&block[16..80]).enumerate() {
        let packed = block[i / 16];
        out.push(scale * f32::from(packed & 15) * f32::from(code) - minimum * f32::from(packed >> 4));
    }
}

/// 32 bytes of third bits (bit k of byte j is value `32 k + j`), 64 bytes of 2-bit codes, 16 six-bit scales in 12 bytes,
/// then the scale of the scales: `scale * (scales[i / 16] - 32) * (code - 4)`.
fn q3_k(block: &[u8; 110], out: &mut Vec<f32>) {
    let scale = half_at(block, 108);
    let scales = q3_k_scales(&block[96..108]);
    for (i, low) in two_bits(&block[32..96]).enumerate() {
        let high = (block[i % 32] >> (i / 32)) & 1;
        out.push(scale * f32::from(scales[i / 16]) * (f32::from(low | (high << 2)) - 4.0));
    }
}

/// The low four bits of scales 0..8 and 8..16 are the nibbles of the first eight bytes; the high two bits of scale i are
/// two bits of byte `8 + i % 4`.
pub(crate) fn q3_k_scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|i| {
        let low = (packed[i % 8] >> (4 * (i / 8))) & 15;
        let high = (packed[8 + i % 4] >> (2 * (i / 4))) & 3;
        (low | (high << 4)).cast_signed() - 32
    })
}

/// Scale, scale of the minimums, 8 six-bit scales and 8 minimums in 12 bytes, 128 bytes of nibbles (each 32 bytes hold 64
/// values): `scale * scales[i / 32] * code - minimum * minimums[i / 32]`.
fn q4_k(block: &[u8; 144], out: &mut Vec<f32>) {
    let codes = block[16..].chunks_exact(32).flat_map(nibbles);
    k_blocks(&block[..16], codes, out);
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit k of byte j belongs to value `32 k + j`.
fn q5_k(block: &[u8; 176], out: &mut Vec<f32>) {
    let low = block[48..].chunks_exact(32).flat_map(nibbles);
    let codes = low.enumerate().map(|(i, low)| low | (((block[16 + i % 32] >> (i / 32)) & 1) << 4));
    k_blocks(&block[..16], codes, out);
}

fn k_blocks(header: &[u8], codes: impl Iterator<Item = u8>, out: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(header, 0), half_at(header, 2));
    let (scales, minimums) = k_scales(&header[4..16]);
    for (i, code) in codes.enumerate() {
        out.push(scale * f32::from(scales[i / 32]) * f32::from(code) - minimum * f32::from(minimums[i / 32]));
    }
}

/// Scales 0..4 and minimums 0..4 are the low six bits of the first eight bytes. Of those from 4 on, the low four bits are
/// the nibbles of the last four bytes (scale, minimum), the high two the top of the byte that holds number `i - 4`.
pub(crate) fn k_scales(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let scale = |i: usize| match i {
        0..4 => packed[i] & 63,
        _ => (packed[i + 4] & 15) | ((packed[i - 4] >> 6) << 4),
    };
    let minimum = |i: usize| match i {
        0..4 => packed[i + 4] & 63,
        _ => (packed[i + 4] >> 4) | ((packed[i] >> 6) << 4),
    };
    (std::array::from_fn(scale), std::array::from_fn(minimum))
}

/// 128 bytes of low nibbles (each 64 bytes hold 128 values), 64 bytes of two high bits (each 32 bytes hold 128 values), 16
/// signed scales, then their scale: `scale * scales[i / 16] * (code - 32)`.
fn q6_k(block: &[u8; 210], out: &mut Vec<f32>) {
    let scale = half_at(block, 208);
    let low = block[..128].chunks_exact(64).flat_map(nibbles);
    for (i, (low, high)) in low.zip(two_bits(&block[128..192])).enumerate() {
        let sub_scale = f32::from(block[192 + i / 16].cast_signed());
        out.push(scale * sub_scale * (f32::from(low | (high << 4)) - 32.0));
    }
}

/// Scale, 16 bytes of nibbles that name values of a table.
fn iq4_nl(block: &[u8; 18], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(nibbles(&block[2..]).map(|code| scale * f32::from(IQ4_VALUES[usize::from(code)])));
}

/// Scale, 16 bits and 4 bytes of six-bit scales (two high bits and low nibbles), 128 bytes of nibbles (each 16 bytes hold
/// 32 values) that name values of a table: `scale * (scales[i / 32] - 32) * value`.
fn iq4_xs(block: &[u8; 136], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    let scales = iq4_xs_scales(&block[2..8]);
    for (codes, sub_scale) in block[8..].chunks_exact(16).zip(scales) {
        let scale = scale * f32::from(sub_scale);
        out.extend(nibbles(codes).map(|code| scale * f32::from(IQ4_VALUES[usize::from(code)])));
    }
}

/// Two bytes of high bits, two a scale, then the low nibbles.
pub(crate) fn iq4_xs_scales(packed: &[u8]) -> [i8; 8] {
    let high_bits = u16::from_le_bytes([packed[0], packed[1]]);
    std::array::from_fn(|i| {
        let low = (packed[2 + i / 2] >> (4 * (i % 2))) & 15;
        let high = ((high_bits >> (2 * i)) & 3) as u8;
        (low | (high << 4)).cast_signed() - 32
    })
}

/// A power of two, 16 bytes of nibbles that name values of a table.
fn mxfp4(block: &[u8; 17], out: &mut Vec<f32>) {
    let scale = mxfp4_half_scale(block[0]);
    out.extend(nibbles(&block[1..]).map(|code| scale * f32::from(MXFP4_DOUBLED[usize::from(code)])));
}

/// Half of `2^(exponent - 127)`: the table holds doubled values.
pub(crate) fn mxfp4_half_scale(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits((u32::from(exponent) - 1) << 23),
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// All low nibbles, then all high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

fn with_fifth_bits(bits: &[u8], low: &[u8]) -> impl Iterator<Item = u8> {
    nibbles(low).enumerate().map(|(i, low)| low | (((bits[i / 8] >> (i % 8)) & 1) << 4))
}

/// Each 32 bytes hold 128 values: all lowest pairs of bits, then the pairs above them.
fn two_bits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes
        .chunks_exact(32)
        .flat_map(|run| (0..4).flat_map(move |pair| run.iter().map(move |byte| (byte >> (2 * pair)) & 3)))
}
