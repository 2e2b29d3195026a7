//! Every storage type, against what the `gguf` Python package makes of the same bytes (crates/xtask/fixtures/dequantise.py).

use tokrun_kernels::{WeightType, dequantise};

const VALUES: usize = 512;

#[test]
fn blocks_of_every_type_mean_what_gguf_says() {
    let mut fixture: &[u8] = include_bytes!("../fixtures/dequantise.bin");
    for weight_type in WeightType::ALL {
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
