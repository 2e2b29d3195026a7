//! Heads and contexts that the kernels have other code for than for the usual ones.

use tokrun_kernels::{Attention, Backend, KvShape, KvType, Span, Step};

use crate::support::{Random, device, reference, table, upload};

/// The attention of the last of `length` tokens over all, on a backend.
fn last_token<B: Backend>(
    backend: &mut B,
    attention: &Attention,
    kv_type: KvType,
    length: usize,
    qkv: &[f32],
) -> Vec<f32> {
    let width = (attention.heads + 2 * attention.kv_heads) * attention.head_dim;
    let values = table(backend, qkv, width);
    let blocks: Vec<u32> = (0..length.div_ceil(16) as u32).rev().collect();
    let shape = KvShape {
        layers: 3,
        kv_heads: attention.kv_heads,
        head_dim: attention.head_dim,
        blocks: blocks.len(),
        kv_type,
    };
    let mut kv = backend.kv_cache(shape).expect("there is memory");
    let mut outputs = Vec::new();
    for (start, end) in [(0, length - 1), (length - 1, length)] {
        let count = end - start;
        backend.begin(&Step {
            tokens: (start as u32..end as u32).collect(),
            spans: vec![Span { rows: 0..count, start, blocks: blocks.clone() }],
        });
        let rows = upload(backend, count, &values, width);
        let mut out = backend.rows(count, attention.heads * attention.head_dim).expect("there is memory");
        // What is stored does not depend on the window, and a short one saves the sums that nobody looks at.
        let window_tokens = if end == length { attention.window_tokens } else { Some(1) };
        backend.attention(2, &Attention { window_tokens, ..attention.clone() }, &rows, &mut kv, &mut out);
        outputs = backend.read(&out).to_vec();
    }
    outputs
}

#[track_caller]
fn check(kv_heads: usize, group: usize, head_dim: usize, length: usize, window: Option<usize>, softcap: Option<f32>) {
    let Some(mut cuda) = device() else { return };
    let attention = Attention {
        heads: kv_heads * group,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap,
        window_tokens: window,
        rope: None,
        head_norms: None,
    };
    let width = (attention.heads + 2 * kv_heads) * head_dim;
    // Numbers that all types of cache hold: scores up to about 10, so that some weights vanish beside others.
    let random = &mut Random::new((length + head_dim) as u64);
    let qkv: Vec<f32> = random.values(length * width, 4.0).iter().map(|x| (x * 16.0).round() / 16.0).collect();
    for kv_type in [KvType::F32, KvType::F16, KvType::BF16] {
        let expected = last_token(&mut reference(), &attention, kv_type, length, &qkv);
        let found = last_token(&mut cuda, &attention, kv_type, length, &qkv);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() <= 2e-4, "{kv_type:?}, number {i}: {found} is not {expected}");
        }
    }
}

#[test]
fn groups_larger_than_a_tile_are_cut() {
    check(1, 12, 24, 70, None, None);
    check(2, 9, 16, 33, Some(20), Some(2.0));
}

#[test]
fn the_largest_heads_agree() {
    check(1, 2, 256, 80, None, None);
    check(1, 1, 250, 20, None, Some(5.0));
    check(2, 5, 130, 35, Some(17), None);
}

/// Beyond 64 tokens for each of 32 segments, segments grow.
#[test]
fn contexts_beyond_all_segments_agree() {
    check(1, 1, 8, 2049, None, None);
    check(1, 2, 8, 4200, Some(3000), None);
}

/// Where a window begins within a block, at its edge, and within the first segment.
#[test]
fn windows_of_every_beginning_agree() {
    for window in [1, 2, 15, 16, 17, 63, 64, 65, 129] {
        check(1, 2, 8, 130, Some(window), None);
    }
}

/// Heads that no kernel has are refused with a hint.
#[test]
fn heads_that_are_too_large_are_refused() {
    let Some(mut cuda) = device() else { return };
    let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 320, blocks: 1, kv_type: KvType::F16 };
    let error = cuda.kv_cache(shape).expect_err("there is no such kernel").to_string();
    assert!(error.contains("320") && error.contains("--device cpu"), "{error}");
}
