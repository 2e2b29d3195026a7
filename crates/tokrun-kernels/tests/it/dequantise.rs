//! Every storage type, against what the `gguf` Python package makes of the same bytes (crates/xtask/fixtures/dequantise.py).

use tokrun_kernels::{WeightType, dequantise};

const VALUES: usize = 512;

#[test]
fn blocks_of_every_type_mean_what_gguf_says() {
    let mut fixture: &[u8] = include_bytes!("../fixtures/dequantise.bin");
    // GGUF has no 8-bit floats.
    for weight_type in WeightType::ALL.into_iter().filter(|weight_type| *weight_type != WeightType::FP8) {
        let (blocks, rest) = fixture.split_at(weight_type.row_bytes(VALUES).expect("512 values are whole blocks"));
        let (expected, rest) = rest.split_at(VALUES * size_of::<f32>());
        fixture = rest;

        let expected: Vec<f32> = expected.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let mut values = Vec::new();
        dequantise(weight_type, blocks, &mut values);
        assert_eq!(values, expected, "{}", weight_type.name());
    }
    assert!(fixture.is_empty());
}

/// The numbers of the OCP's specification of 8-bit floats: of 1 and 1.5, the largest, the smallest and the smallest that is
/// normal, zeros and NaNs of both signs.
#[test]
fn eight_bit_floats_mean_what_their_specification_says() {
    let codes = [0x38, 0x3c, 0x7e, 0x01, 0x08, 0x00, 0x80, 0xb8, 0x7f, 0xff];
    let mut block = 0.5f32.to_le_bytes().to_vec();
    block.extend(codes);
    block.resize(132, 0);
    let mut values = Vec::new();
    dequantise(WeightType::FP8, &block, &mut values);
    assert_eq!(values.len(), 128);
    let (smallest, normal) = (2f32.powi(-9), 2f32.powi(-6));
    let expected = [1.0, 1.5, 448.0, smallest, normal, 0.0, -0.0, -1.0].map(|value| 0.5 * value);
    assert_eq!(values[..8].iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected.map(f32::to_bits));
    assert!(values[8].is_nan() && values[9].is_nan());
}

#[test]
fn values_are_appended() {
    let mut values = vec![7.0];
    dequantise(WeightType::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut values);
    assert_eq!(values, [7.0, 1.0, -2.0]);
}

#[test]
#[should_panic(expected = "19 bytes are not whole blocks of 18")]
fn part_of_a_block_is_refused() {
    dequantise(WeightType::Q4_0, &[0; 19], &mut Vec::new());
}
