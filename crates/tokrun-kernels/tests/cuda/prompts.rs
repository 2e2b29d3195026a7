//! Attention of prompts, on tensor cores: every kernel, at every place where a tile ends.
//!
//! How far outputs may be from the reference is what `attention::Case::estimates` derives: queries and weights are rounded
//! once, to 11 bits (8 beside a cache of bf16), and all sums are f32.

use tokrun_kernels::KvType;

use crate::attention::{Case, Heads, check};

const TYPES: [KvType; 3] = [KvType::F16, KvType::BF16, KvType::Q8_0];

/// Heads of every family's width, filled and not, that share keys in groups of every size; tiles of lines that end within a
/// row, and tiles of tokens that end within a block.
#[test]
fn heads_of_every_width_agree() {
    let groups = [(64, 4), (80, 1), (96, 3), (112, 2), (128, 5), (192, 1), (256, 2), (20, 7)];
    for (i, (head_dim, group)) in groups.into_iter().enumerate() {
        let heads = Heads { kv_heads: 1 + i % 2, group, head_dim };
        check(&Case::random(i as u64, heads, vec![49 + 3 * i], TYPES[i % 3]), i as u64);
    }
}

/// Tiles of lines and of tokens that are whole, short of it by one and past it by one; beside rows that are attended alone.
#[test]
fn tiles_of_every_end_agree() {
    for (i, length) in [16, 47, 48, 49, 63, 64, 65, 127, 128, 129, 193].into_iter().enumerate() {
        let heads = Heads { kv_heads: 1, group: 1 + i % 2, head_dim: [16, 96][i % 2] };
        check(&Case::random(i as u64, heads, vec![3, length, 1, 17], TYPES[i % 3]), i as u64);
    }
}

/// Windows that begin in every place of a tile, and hide whole tiles from some warps.
#[test]
fn windows_of_every_beginning_agree() {
    for (i, window) in [1, 2, 16, 47, 48, 64, 65, 130].into_iter().enumerate() {
        let heads = Heads { kv_heads: 1, group: 2, head_dim: 24 };
        let mut case = Case::random(i as u64, heads, vec![180], TYPES[i % 3]);
        case.attention.window_tokens = Some(window);
        check(&case, i as u64);
    }
}

/// One query that is no number spoils its own output and no other's.
#[test]
fn what_is_no_number_stays_in_its_row() {
    let Some(mut cuda) = crate::support::tensor_device() else { return };
    let heads = Heads { kv_heads: 1, group: 2, head_dim: 32 };
    let mut case = Case::random(5, heads, vec![70], KvType::F16);
    (case.attention.head_norms, case.rope) = (None, None);
    let clean = case.run(&mut cuda, &case.at_once());
    // A query of row 40's second head.
    let (width, bad) = (4 * 32, 40 * 4 * 32 + 32 + 3);
    assert_eq!(case.qkv.len(), 70 * width);
    case.qkv[bad] = f32::NAN;
    let found = case.run(&mut cuda, &case.at_once());
    for (i, (found, clean)) in found.chunks_exact(32).zip(clean.chunks_exact(32)).enumerate() {
        if i == 2 * 40 + 1 {
            assert!(found.iter().all(|x| x.is_nan()), "head {i}: {found:?}");
        } else {
            assert_eq!(found, clean, "head {i}");
        }
    }
}
