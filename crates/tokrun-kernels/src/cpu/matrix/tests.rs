use std::ops::Range;

use super::{Matrix, Packer};
use crate::cpu::pool::Pool;
use crate::cpu::simd::Level;
use crate::cpu::testing::Weights;
use crate::{KernelError, MatrixSource, RowSource, WeightType};

#[test]
fn no_type_grows_by_more_than_four_percent() {
    // 8-bit floats are widened.
    for weight_type in WeightType::ALL.into_iter().filter(|weight_type| *weight_type != WeightType::FP8) {
        let weights = Weights::random(weight_type, 16, 4096, 1);
        let matrix = Matrix::new(&weights.source(), Level::best(), 1).expect("it fits");
        let file = 16 * weight_type.row_bytes(4096).expect("whole blocks");
        assert!(matrix.tile_bytes * 100 <= file * 104, "{weight_type:?}: {} for {file}", matrix.tile_bytes);
        assert!(matrix.tile_bytes >= file);
    }
}

#[test]
fn every_tile_lies_somewhere_once() {
    for threads in 1..5 {
        let mut pool = Pool::new(threads, false).expect("threads start");
        let mut packer = Packer::new(Level::best(), threads);
        let weights = [
            Weights::random(WeightType::Q4_1, 1000, 64, 1),
            Weights::random(WeightType::Q6_K, 33, 256, 2),
            Weights::random(WeightType::F32, 1, 64, 3),
        ];
        for weights in &weights {
            let packed = packer.pack_in_turn(&mut pool, &[weights.source()]).expect("it can be read");
            let tiles: Vec<usize> = packed.chunks.iter().flat_map(|chunk| chunk.tiles.clone()).collect();
            assert_eq!(tiles, (0..weights.rows.div_ceil(32) * 2).collect::<Vec<_>>());
            let bytes: usize = packed.chunks.iter().map(|chunk| packed.bytes(chunk).len()).sum();
            assert_eq!(bytes, packed.regions.iter().map(|region| region.len()).sum::<usize>());
            assert!(packed.chunks.iter().all(|chunk| packed.bytes(chunk).as_ptr().align_offset(64) == 0));
        }
    }
}

/// A file that cannot be read.
struct Broken;

impl RowSource for Broken {
    fn read(&self, _: Range<usize>, _: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::Error::other("no disk"))
    }
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let mut pool = Pool::new(2, false).expect("threads start");
    let source = MatrixSource { rows: 100, columns: 32, weight_type: WeightType::F16, source: &Broken, bias: None };
    let Err(KernelError::Read(error)) = Packer::new(Level::best(), 2).pack_in_turn(&mut pool, &[source]) else {
        panic!("packed")
    };
    assert!(error.to_string().contains("no disk"), "{error}");
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut pool = Pool::new(1, false).expect("no threads");
    let bias = [0.0; 3];
    for (rows, columns, weight_type, bias) in [
        (4, 33, WeightType::Q8_0, None),
        (4, 32, WeightType::Q4_K, None),
        (0, 32, WeightType::Q8_0, None),
        (4, 0, WeightType::F32, None),
        (4, 32, WeightType::F32, Some(&bias[..])),
    ] {
        let source = MatrixSource { rows, columns, weight_type, source: &Broken, bias };
        let error = Packer::new(Level::best(), 1).pack_in_turn(&mut pool, &[source]);
        assert!(matches!(error, Err(KernelError::Shape { .. })), "{rows} x {columns} {weight_type:?}");
    }
}
