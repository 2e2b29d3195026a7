//! The codes of stored blocks, as every backend takes them apart: eight groups of four columns, a byte each of a `u32`.

/// Groups of four columns a block of 32.
pub(crate) const GROUPS: usize = 8;

/// The four bytes at `at` of a file.
#[inline(always)]
pub(crate) fn word(file: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&file[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// The low four bits of 16 bytes, then the high four: how most types store 32 codes.
#[inline(always)]
pub(crate) fn nibbles(file: &[u8]) -> [u32; GROUPS] {
    let mut codes = [0; GROUPS];
    for i in 0..4 {
        let word = word(file, 4 * i);
        codes[i] = word & 0x0f0f_0f0f;
        codes[4 + i] = (word >> 4) & 0x0f0f_0f0f;
    }
    codes
}

/// Bits `bit..` of 32 bytes, under `mask`.
#[inline(always)]
pub(crate) fn bits(file: &[u8], bit: usize, mask: u32) -> [u32; GROUPS] {
    let mut codes = [0; GROUPS];
    for (i, codes) in codes.iter_mut().enumerate() {
        *codes = (word(file, 4 * i) >> bit) & mask;
    }
    codes
}

/// `low | high << SHIFT`.
#[inline(always)]
pub(crate) fn join<const SHIFT: u32>(low: [u32; GROUPS], high: [u32; GROUPS]) -> [u32; GROUPS] {
    let mut codes = low;
    for (codes, high) in codes.iter_mut().zip(high) {
        *codes |= high << SHIFT;
    }
    codes
}

/// Of a word with a bit for each column: bit `4 g + i` becomes bit 0 of byte `i` of group `g`.
#[inline(always)]
pub(crate) fn fifth_bits(bits: u32) -> [u32; GROUPS] {
    let mut codes = [0; GROUPS];
    for (group, codes) in codes.iter_mut().enumerate() {
        let four = (bits >> (4 * group)) & 15;
        // Four copies, each moved so that another bit comes to lie at the bottom of its byte.
        *codes = (four | four << 7 | four << 14 | four << 21) & 0x0101_0101;
    }
    codes
}

/// Of a superblock of 2-bit codes, each 32 bytes of which hold 128 columns: those of block `block`.
#[inline(always)]
pub(crate) fn pairs_of_block(file: &[u8], block: usize) -> [u32; GROUPS] {
    bits(&file[block / 4 * 32..], block % 4 * 2, 0x0303_0303)
}

/// Of a superblock of nibbles, each 32 bytes of which hold 64 columns: those of block `block`.
#[inline(always)]
pub(crate) fn nibbles_of_block(file: &[u8], block: usize) -> [u32; GROUPS] {
    bits(&file[block / 2 * 32..], block % 2 * 4, 0x0f0f_0f0f)
}
