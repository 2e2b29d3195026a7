use super::super::pool::Pool;
use super::super::rows::CpuRows;
use super::super::testing::{assert_close, everywhere, noise, rows};
use super::{Level, add_norm, norm, softcap};
use crate::reference::ReferenceRows;
use crate::{Backend, Norm, Reference, Step};

/// What the reference makes of the same rows.
fn expected(
    x: &CpuRows,
    y: &CpuRows,
    count: usize,
    change: impl Fn(&mut Reference, &mut ReferenceRows, &ReferenceRows),
) -> Vec<f32> {
    let mut reference = Reference::default();
    let step = Step { tokens: vec![0; count], spans: Vec::new() };
    reference.begin(&step);
    let mut copy = |from: &CpuRows| {
        let mut rows = reference.rows(count, from.width()).expect("little memory");
        rows.first_mut(count).copy_from_slice(from.first(count));
        rows
    };
    let (mut x, y) = (copy(x), copy(y));
    change(&mut reference, &mut x, &y);
    reference.read(&x).to_vec()
}

/// Widths with and without a rest, one row and more than this thread does alone.
const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 16), (2, 37), (5, 64), (40, 576), (300, 100)];

#[test]
fn norms_agree_with_the_reference_and_bit_for_bit_among_themselves() {
    for (count, width) in SHAPES {
        let x = rows(count, width, 1);
        let columns = width / 3..width;
        let weights = Norm { weight: noise(columns.len(), 2).into(), epsilon: 1e-5 };
        let expected = expected(&x, &x, count, |reference, x, _| reference.norm(x, columns.clone(), &weights));
        let mut first: Option<Vec<f32>> = None;
        everywhere(|pool, level| {
            let mut got = rows(count, width, 1);
            norm(pool, level, count, &mut got, columns.clone(), &weights);
            assert_close(got.first(count), &expected, 2e-6);
            assert_eq!(first.get_or_insert_with(|| got.first(count).to_vec()), got.first(count));
        });
    }
}

#[test]
fn normed_sums_agree_with_the_reference_and_bit_for_bit_among_themselves() {
    for (count, width) in SHAPES {
        let (x, y) = (rows(count, width, 1), rows(count, width, 2));
        let weights = Norm { weight: noise(width, 3).into(), epsilon: 1e-6 };
        let expected = expected(&x, &y, count, |reference, x, y| reference.add_norm(x, y, &weights));
        let mut first: Option<Vec<f32>> = None;
        everywhere(|pool, level| {
            let mut got = rows(count, width, 1);
            add_norm(pool, level, count, &mut got, &y, &weights);
            assert_close(got.first(count), &expected, 2e-6);
            assert_eq!(first.get_or_insert_with(|| got.first(count).to_vec()), got.first(count));
        });
    }
}

#[test]
fn a_cap_agrees_with_the_reference_and_bit_for_bit_among_themselves() {
    for (count, width) in SHAPES {
        let x = rows(count, width, 4);
        let expected = expected(&x, &x, count, |reference, x, _| reference.softcap(x, 0.3));
        let mut first: Option<Vec<f32>> = None;
        everywhere(|pool, level| {
            let mut got = rows(count, width, 4);
            softcap(pool, level, count, &mut got, 0.3);
            assert_close(got.first(count), &expected, 2e-6);
            assert_eq!(first.get_or_insert_with(|| got.first(count).to_vec()), got.first(count));
        });
    }
}

#[test]
fn rows_past_those_of_the_step_stay_as_they_are() {
    let mut pool = Pool::new(1, false).expect("no thread");
    let mut x = rows(3, 20, 5);
    let before = x.row(2).to_vec();
    softcap(&mut pool, Level::best(), 2, &mut x, 0.1);
    assert_eq!(x.row(2), before);
}
