use super::{Encoded, Forms, GroupAt};
use crate::Norm;
use crate::cpu::pool::Pool;
use crate::cpu::simd::Level;
use crate::cpu::testing::{everywhere, noise};

const ALL: Forms = Forms { int8: true, halves: true, bf16: true, f32: true };
const WIDTH: usize = 70;
const BLOCKS: usize = 3;

/// All that is encoded of a row: codes, scale, sums; bf16; f32.
type Row = Vec<(Vec<i8>, f32, [f32; 6], Vec<u16>, Vec<f32>)>;

fn row<const T: usize>(encoded: &Encoded, at: GroupAt, t: usize) -> Row {
    let ints = encoded.int8::<T>(at, BLOCKS);
    let (bf16, f32) = (encoded.bf16::<T>(at, BLOCKS), encoded.f32::<T>(at, BLOCKS));
    (0..BLOCKS)
        .map(|b| {
            let sums = [
                ints.totals[b][t] as f32,
                ints.sums[b][t],
                ints.half_totals[b][0][t] as f32,
                ints.half_totals[b][1][t] as f32,
                ints.half_sums[b][0][t],
                ints.half_sums[b][1][t],
            ];
            (ints.codes[b][t].as_flattened().to_vec(), ints.scales[b][t], sums, bf16[b][t].to_vec(), f32[b][t].to_vec())
        })
        .collect()
}

fn rows(encoded: &Encoded) -> Vec<Row> {
    let mut rows = Vec::new();
    for at in encoded.groups() {
        assert_eq!(at.row, rows.len());
        for t in 0..at.size.min(encoded.rows() - at.row) {
            rows.push(match at.size {
                8 => row::<8>(encoded, at, t),
                4 => row::<4>(encoded, at, t),
                _ => row::<1>(encoded, at, t),
            });
        }
    }
    rows
}

#[test]
fn a_row_is_encoded_the_same_wherever_it_lies() {
    let norm = Norm { weight: noise(WIDTH, 8).into(), epsilon: 1e-5 };
    let x = noise(300 * WIDTH, 1);
    for norm in [None, Some(&norm)] {
        let mut first: Option<Vec<Row>> = None;
        everywhere(|pool, level| {
            for count in [1, 2, 3, 6, 8, 11, 300] {
                let mut encoded = Encoded::new(level, 300, WIDTH).expect("little memory");
                encoded.encode(pool, level, &x[..count * WIDTH], count, norm, ALL);
                let found = rows(&encoded);
                assert_eq!(found.len(), count);
                if let Some(first) = &first {
                    let same = first.len().min(count);
                    assert_eq!(found[..same], first[..same], "{} rows on {}", count, level.name());
                }
                if first.as_ref().is_none_or(|first| first.len() < count) {
                    first = Some(found);
                }
            }
        });
    }
}

#[test]
fn forms_hold_what_they_are_of() {
    let x = noise(5 * WIDTH, 2);
    let mut pool = Pool::new(1, false).expect("no threads");
    let mut encoded = Encoded::new(Level::best(), 5, WIDTH).expect("little memory");
    encoded.encode(&mut pool, Level::best(), &x, 5, None, ALL);
    for (row, x) in rows(&encoded).iter().zip(x.chunks_exact(WIDTH)) {
        for ((codes, scale, sums, bf16, f32), x) in row.iter().zip(x.chunks(32)) {
            assert_eq!(f32[..x.len()], *x);
            assert!(f32[x.len()..].iter().all(|x| x.to_bits() == 0));
            let total = |codes: &[i8]| codes.iter().map(|code| f32::from(*code)).sum::<f32>();
            for (i, part) in [&codes[..], &codes[..16], &codes[16..]].into_iter().enumerate() {
                let at = [0, 2, 3][i];
                assert_eq!(sums[at], -total(part));
                assert_eq!(sums[[1, 4, 5][i]], scale * total(part));
            }
            for (i, x) in x.iter().enumerate() {
                assert!((f32::from(codes[i]) * scale - x).abs() <= scale * 0.501);
                assert_eq!(bf16[i], half::bf16::from_f32(*x).to_bits());
            }
        }
    }
}

/// Nothing that comes out of a row of zeros, or of numbers that vanish, is other than a number.
#[test]
fn blocks_that_vanish_are_zero() {
    let mut pool = Pool::new(1, false).expect("no threads");
    for value in [0.0, -0.0, 1e-40, 1e-31] {
        let mut encoded = Encoded::new(Level::best(), 1, 32).expect("little memory");
        encoded.encode(&mut pool, Level::best(), &[value; 32], 1, None, ALL);
        let at = encoded.groups().next().expect("one row");
        let x = encoded.int8::<1>(at, 1);
        assert_eq!(x.codes[0][0], [[0; 4]; 8]);
        assert!(x.scales[0][0].is_finite());
    }
}

#[test]
fn gathered_rows_are_those_rows() {
    let x = noise(19 * WIDTH, 3);
    everywhere(|pool, level| {
        let mut all = Encoded::new(level, 19, WIDTH).expect("little memory");
        all.encode(pool, level, &x, 19, None, ALL);
        let mut some = Encoded::new(level, 19, WIDTH).expect("little memory");
        for chosen in [&[18][..], &[], &[0, 5, 17], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 18]] {
            some.gather(&all, chosen);
            let (from, to) = (rows(&all), rows(&some));
            assert_eq!(to, chosen.iter().map(|row| from[*row].clone()).collect::<Vec<_>>());
        }
    });
}

#[test]
#[should_panic(expected = "were encoded as")]
fn rows_must_be_encoded_for_who_reads_them() {
    let mut pool = Pool::new(1, false).expect("no threads");
    let mut encoded = Encoded::new(Level::best(), 1, 32).expect("little memory");
    encoded.encode(&mut pool, Level::best(), &[1.0; 32], 1, None, Forms { f32: true, ..Forms::default() });
    encoded.expect(Forms { int8: true, ..Forms::default() });
}
