//! Small cases computed by hand.

use std::f32::consts::FRAC_PI_2;

use super::*;
use crate::WeightType;
use crate::backend::{KvType, RopeStyle, RowSource};

/// A matrix of f32 rows in memory.
struct Plain(Vec<u8>, usize);

impl Plain {
    fn new(values: &[f32], columns: usize) -> Self {
        Self(values.iter().flat_map(|value| value.to_le_bytes()).collect(), columns * size_of::<f32>())
    }

    fn matrix(&self) -> MatrixSource<'_> {
        MatrixSource {
            rows: self.0.len() / self.1,
            columns: self.1 / size_of::<f32>(),
            weight_type: WeightType::F32,
            source: self,
            bias: None,
        }
    }
}

impl RowSource for Plain {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.copy_from_slice(&self.0[rows.start * self.1..rows.end * self.1]);
        Ok(())
    }
}

fn linear(values: &[f32], columns: usize) -> ReferenceLinear {
    Reference::default().pack_linear(&[Plain::new(values, columns).matrix()]).expect("the matrix fits")
}

fn rows_of(values: &[f32], width: usize) -> ReferenceRows {
    let mut rows = ReferenceRows::new(values.len() / width, width).expect("there is memory");
    let count = values.len() / width;
    rows.first_mut(count).copy_from_slice(values);
    rows
}

/// A backend in the middle of a step of so many rows of one sequence.
fn stepping(rows: usize) -> Reference {
    let mut backend = Reference::default();
    backend.begin(&one_span(0, rows));
    backend
}

fn one_span(start: usize, rows: usize) -> Step {
    let blocks = (0..16).collect();
    Step { tokens: vec![0; rows], spans: vec![Span { rows: 0..rows, start, blocks }] }
}

#[track_caller]
fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} is not {expected}");
    }
}

#[test]
fn outputs_of_several_matrices_lie_side_by_side() {
    let (first, second) = (Plain::new(&[1.0, 2.0], 2), Plain::new(&[3.0, 4.0, 5.0, 6.0], 2));
    let bias = [0.5, 0.25];
    let second = MatrixSource { bias: Some(&bias), ..second.matrix() };
    let weights = Reference::default().pack_linear(&[first.matrix(), second]).expect("the matrices fit");

    let mut backend = stepping(2);
    let input = rows_of(&[1.0, 1.0, 10.0, -1.0], 2);
    let mut out = rows_of(&[0.0; 6], 3);
    backend.linear(&input, &weights, Store::Set, &mut out);
    assert_eq!(backend.read(&out), [3.0, 7.5, 11.25, 8.0, 26.5, 44.25]);
    backend.linear(&input, &weights, Store::Add, &mut out);
    assert_eq!(backend.read(&out), [6.0, 15.0, 22.5, 16.0, 53.0, 88.5]);
}

#[test]
fn matrices_that_do_not_fit_are_refused() {
    let (wide, narrow) = (Plain::new(&[1.0; 6], 3), Plain::new(&[1.0; 4], 2));
    let mut backend = Reference::default();
    let bias = [0.0; 3];
    let blocks = MatrixSource { weight_type: WeightType::Q4_0, ..wide.matrix() };
    for (matrices, reason) in [
        (vec![wide.matrix(), narrow.matrix()], "2 columns beside 3"),
        (vec![blocks], "3 columns are not whole blocks of 32: Q4_0"),
        (vec![MatrixSource { bias: Some(&bias), ..wide.matrix() }], "3 bias values for 2 rows"),
        (vec![], "no matrix was given"),
    ] {
        let error = backend.pack_linear(&matrices).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
    let error = backend.pack_gated(wide.matrix(), narrow.matrix()).expect_err("other columns").to_string();
    assert!(error.contains("the gate is 2 x 3, the up projection 2 x 2"), "{error}");
}

#[test]
fn embeddings_are_scaled_rows_of_the_table() {
    let table = linear(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2);
    let mut backend = Reference::default();
    let spans = vec![Span { rows: 0..2, start: 0, blocks: vec![0] }];
    backend.begin(&Step { tokens: vec![2, 0], spans });
    let mut out = rows_of(&[0.0; 4], 2);
    backend.embed(&table, 2.0, &mut out);
    assert_eq!(backend.read(&out), [10.0, 12.0, 2.0, 4.0]);
}

#[test]
fn norms_divide_by_the_root_of_the_mean_square() {
    let norm = Norm { weight: [1.0, 2.0].into(), epsilon: 0.5 };
    // Mean square 24.5, root of 24.5 + 0.5 is 5.
    let mut backend = stepping(1);
    let mut x = rows_of(&[7.0, 0.0, 9.0], 3);
    backend.norm(&mut x, 0..2, &norm);
    close(backend.read(&x), &[1.4, 0.0, 9.0]);

    let y = rows_of(&[0.0, 7.0], 2);
    let mut x = rows_of(&[1.0, 1.0], 2);
    backend.add_norm(&mut x, &y, &norm);
    close(backend.read(&x), &[1.0, 3.8]);

    let weights = linear(&[1.0, 0.0], 2);
    let mut encoded = rows_of(&[0.0; 2], 2);
    backend.encode(&y, Some(&norm), Consumer::Linear(&weights), &mut encoded);
    close(backend.read(&encoded), &[0.0, 2.8]);
    backend.encode(&y, None, Consumer::Linear(&weights), &mut encoded);
    assert_eq!(backend.read(&encoded), [0.0, 7.0]);
}

#[test]
fn gates_are_activated_and_multiplied() {
    let weights = ReferenceGated { gate: linear(&[1.0, 2.0], 1), up: linear(&[3.0, -1.0], 1) };
    let down = linear(&[1.0, 1.0], 2);
    let mut backend = stepping(1);
    let mut out = rows_of(&[0.0; 2], 2);
    backend.gated(&rows_of(&[1.0], 1), &weights, Activation::Silu, &down, &mut out);
    // silu(1) = 0.731058..., silu(2) = 1.761594...
    close(backend.read(&out), &[3.0 * 0.731_058_6, -1.761_594_2]);
    backend.gated(&rows_of(&[1.0], 1), &weights, Activation::GeluTanh, &down, &mut out);
    // The values of the published tables: gelu_tanh(1) = 0.841192, gelu_tanh(2) = 1.954598.
    close(backend.read(&out), &[3.0 * 0.841_192, -1.954_597_7]);
}

fn attention(heads: usize, kv_heads: usize, head_dim: usize) -> Attention {
    Attention {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0,
        softcap: None,
        window_tokens: None,
        rope: None,
        head_norms: None,
    }
}

fn kv(kv_heads: usize, head_dim: usize, kv_type: KvType) -> ReferenceKv {
    ReferenceKv::new(KvShape { layers: 1, kv_heads, head_dim, blocks: 16, kv_type }).expect("there is memory")
}

/// Runs the rows of one sequence from position 0; each row is queries, keys and values.
fn attend(backend: &mut Reference, attention: &Attention, qkv: &[f32], kv: &mut ReferenceKv) -> Vec<f32> {
    let width = (attention.heads + 2 * attention.kv_heads) * attention.head_dim;
    let qkv = rows_of(qkv, width);
    let mut out = ReferenceRows::new(backend.rows, attention.heads * attention.head_dim).expect("there is memory");
    backend.attention(0, attention, &qkv, kv, &mut out);
    backend.read(&out).to_vec()
}

#[test]
fn a_token_sees_itself_and_what_came_before() {
    // One head of one value; scores are q * k: row 1 weighs its own value (ln 3 * 1) three to one.
    let ln3 = 3f32.ln();
    let rows = [ln3, 0.0, 8.0, ln3, 1.0, 4.0];
    let out = attend(&mut stepping(2), &attention(1, 1, 1), &rows, &mut kv(1, 1, KvType::F32));
    close(&out, &[8.0, 0.25 * 8.0 + 0.75 * 4.0]);

    // The same in two steps.
    let mut cache = kv(1, 1, KvType::F32);
    let mut backend = stepping(1);
    let first = attend(&mut backend, &attention(1, 1, 1), &rows[..3], &mut cache);
    backend.begin(&one_span(1, 1));
    let second = attend(&mut backend, &attention(1, 1, 1), &rows[3..], &mut cache);
    assert_eq!([first, second].concat(), out);
}

#[test]
fn windows_hide_what_is_too_far_back() {
    let windowed = Attention { window_tokens: Some(2), ..attention(1, 1, 1) };
    // Equal scores: each output is the mean of the values seen.
    let rows = [0.0, 0.0, 2.0, 0.0, 0.0, 4.0, 0.0, 0.0, 10.0];
    close(&attend(&mut stepping(3), &windowed, &rows, &mut kv(1, 1, KvType::F32)), &[2.0, 3.0, 7.0]);
}

#[test]
fn soft_caps_bound_scores_after_the_scale() {
    // Scores before the cap are 0 and 2 * 4 = 8; 2 tanh(8 / 2) = 1.998658...; weights 1 and e^1.998658 = 7.379148.
    let capped = Attention { scale: 2.0, softcap: Some(2.0), ..attention(1, 1, 1) };
    let rows = [0.0, 0.0, 1.0, 4.0, 1.0, 0.0];
    let out = attend(&mut stepping(2), &capped, &rows, &mut kv(1, 1, KvType::F32));
    close(&out, &[1.0, 1.0 / (1.0 + 7.379_148)]);
}

#[test]
fn query_heads_share_key_heads_in_order() {
    // Four query heads, two key heads; a lone token gives back its own value.
    let rows = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 5.0, 9.0];
    let out = attend(&mut stepping(1), &attention(4, 2, 1), &rows, &mut kv(2, 1, KvType::F32));
    assert_eq!(out, [5.0, 5.0, 9.0, 9.0]);
}

#[test]
fn pairs_of_values_turn_as_their_style_says() {
    // A quarter turn takes (a, b) to (-b, a); the second pair does not turn, the last two values are outside.
    let frequencies = vec![FRAC_PI_2, 0.0];
    for (style, turned) in [
        (RopeStyle::Interleaved, [-2.0, 1.0, 3.0, 4.0, 5.0, 6.0]),
        (RopeStyle::Halves, [-3.0, 2.0, 1.0, 4.0, 5.0, 6.0]),
    ] {
        let rope = Rope { frequencies: frequencies.clone(), magnitude: 1.0, style };
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        super::attention::rotate(&mut head, &rope, 1);
        close(&head.map(|x| x as f32), &turned);
    }
    let rope = Rope { frequencies: vec![FRAC_PI_2], magnitude: 0.5, style: RopeStyle::Halves };
    let mut head = [2.0, 4.0, 8.0];
    super::attention::rotate(&mut head, &rope, 2);
    close(&head.map(|x| x as f32), &[-1.0, -2.0, 8.0]);
}

#[test]
fn queries_and_keys_are_normalised_then_turned() {
    let mut backend = stepping(2);
    let rope = backend.add_rope(Rope { frequencies: vec![FRAC_PI_2], magnitude: 1.0, style: RopeStyle::Halves });
    let norm = |weight: [f32; 2]| Norm { weight: weight.into(), epsilon: 0.0 };
    let attention =
        Attention { rope: Some(rope), head_norms: Some((norm([1.0, 1.0]), norm([1.0, 2.0]))), ..attention(1, 1, 2) };
    // Keys (3, 3) and (5, 5) become (1, 2); the second turns to (-2, 1). The query of row 1, (4, 4), becomes (1, 1) and
    // turns to (-1, 1). Scores 1 and 3.
    let rows = [4.0, 4.0, 3.0, 3.0, 1.0, 0.0, 4.0, 4.0, 5.0, 5.0, 0.0, 1.0];
    let out = attend(&mut backend, &attention, &rows, &mut kv(1, 2, KvType::F32));
    let second = 2f32.exp() / (1.0 + 2f32.exp());
    close(&out, &[1.0, 0.0, 1.0 - second, second]);
}

#[test]
fn blocks_may_lie_anywhere() {
    let mut backend = Reference::default();
    let span = |rows, start, blocks| Span { rows, start, blocks };
    let first: Vec<f32> = (0..20).flat_map(|i| [0.0, 0.0, i as f32]).collect();
    let mut cache = kv(1, 1, KvType::F32);
    backend.begin(&Step { tokens: vec![0; 20], spans: vec![span(0..17, 0, vec![9, 3]), span(17..20, 0, vec![5])] });
    let out = attend(&mut backend, &attention(1, 1, 1), &first, &mut cache);
    close(&out[16..], &[8.0, 17.0, 17.5, 18.0]);

    // One more token each, the second sequence first.
    backend.begin(&Step { tokens: vec![0; 2], spans: vec![span(0..1, 3, vec![5]), span(1..2, 17, vec![9, 3])] });
    let out = attend(&mut backend, &attention(1, 1, 1), &[0.0, 0.0, 22.0, 0.0, 0.0, 44.0], &mut cache);
    close(&out, &[19.0, 10.0]);
}

#[test]
fn caches_round_to_their_type() {
    for (kv_type, kept) in [
        (KvType::F32, [1.0 + 1.0 / 4096.0, 254.0]),
        (KvType::F16, [1.0, 254.0]),
        (KvType::BF16, [1.0, 254.0]),
        // One scale for the head, 254 / 127: half a step is rounded up.
        (KvType::Q8_0, [2.0, 254.0]),
    ] {
        let rows = [0.0, 0.0, 0.0, 0.0, 1.0 + 1.0 / 4096.0, 254.0];
        assert_eq!(attend(&mut stepping(1), &attention(1, 1, 2), &rows, &mut kv(1, 2, kv_type)), kept, "{kv_type:?}");
    }
}

#[test]
fn caches_hold_finite_numbers_only() {
    for kv_type in [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0] {
        let rows = [0.0, 0.0, 0.0, f32::NAN, f32::INFINITY, f32::NAN, f32::INFINITY, f32::MAX, f32::NEG_INFINITY];
        let mut cache = kv(1, 3, kv_type);
        attend(&mut stepping(1), &attention(1, 1, 3), &rows, &mut cache);
        assert!(cache.keys.iter().chain(&cache.values).all(|x| x.is_finite()), "{kv_type:?}");
    }
}

#[test]
fn tokens_go_to_the_best_experts() {
    // Logits as logarithms, so that the softmax is 0.1, 0.4, 0.4, 0.1: of the equal ones the first comes first.
    let router = [1f32, 4.0, 4.0, 1.0].map(f32::ln);
    let routing = |normalise, experts_per_token| Routing { experts_per_token, normalise };
    for (routing, expected) in [
        (routing(false, 1), vec![(1, 0.4)]),
        (routing(false, 3), vec![(1, 0.4), (2, 0.4), (0, 0.1)]),
        (routing(true, 2), vec![(1, 0.5), (2, 0.5)]),
        (routing(true, 3), vec![(1, 4.0 / 9.0), (2, 4.0 / 9.0), (0, 1.0 / 9.0)]),
    ] {
        let chosen = route(&router, routing);
        assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), expected.iter().map(|e| e.0).collect::<Vec<_>>());
        for ((_, share), (_, expected)) in chosen.iter().zip(expected) {
            assert!((share - expected).abs() < 1e-6, "{share} is not {expected}");
        }
    }

    // Expert i answers silu(1) * (i + 1) * 1.
    let experts: Vec<Expert<Reference>> = (0..4)
        .map(|i| Expert {
            gated: ReferenceGated { gate: linear(&[1.0], 1), up: linear(&[1.0], 1) },
            down: linear(&[(i + 1) as f32], 1),
        })
        .collect();
    let mut backend = stepping(1);
    let mut x = rows_of(&[10.0], 1);
    let routing = routing(true, 2);
    backend.moe(&rows_of(&[1.0], 1), &rows_of(&router, 4), routing, Activation::Silu, &experts, &mut x);
    close(backend.read(&x), &[10.0 + 0.731_058_6 * 2.5]);
}

#[test]
fn operations_after_a_selection_work_on_what_was_selected() {
    let mut backend = stepping(3);
    let x = rows_of(&[1.0, 2.0, 3.0], 1);
    let mut out = rows_of(&[0.0; 3], 1);
    backend.select(&x, &[2, 0], &mut out);
    assert_eq!(backend.read(&out), [3.0, 1.0]);
    backend.softcap(&mut out, 2.0);
    close(backend.read(&out), &[2.0 * 1.5f32.tanh(), 2.0 * 0.5f32.tanh()]);
}
