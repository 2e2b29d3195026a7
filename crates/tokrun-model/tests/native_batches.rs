//! What a row of logits depends on: its own sequence up to it, and nothing else. Bit for bit.

use support::{Sequence, fixtures};
use tokrun_model::sampling::Draw;
use tokrun_model::{
    BackendChoice, BlockId, Drawing, Executor, Extend, KvType, LoadOptions, ModelError, ModelFile, Place, Processor,
    SequenceHandle, Wanted,
};

mod support;

/// Families with windows, experts, soft caps and norms of all kinds, and weights of all kinds of products.
const MODELS: &[&str] = &[
    "llama",
    "gemma2",
    "gemma3",
    "mistral",
    "olmo2",
    "qwen3-moe",
    "gguf-types/f16.gguf",
    "gguf-types/bf16.gguf",
    "gguf-types/q8_0.gguf",
    "gguf-types/q4_1.gguf",
    "gguf-types/q3_k.gguf",
    "gguf-types/q6_k.gguf",
    "gguf-types/mxfp4.gguf",
];

fn load(model: &str, options: &LoadOptions) -> Box<dyn Executor> {
    let options = LoadOptions { backend: BackendChoice::Native, sequences_max: Some(6), ..options.clone() };
    ModelFile::open(&fixtures().join(model)).and_then(|file| file.load(&options)).expect("the model loads")
}

/// Six prompts of different lengths, the longest as long as the context.
fn prompts(executor: &dyn Executor) -> Vec<Vec<u32>> {
    let (longest, vocabulary) = (executor.info().context_tokens as u32, executor.info().vocab_size as u32);
    let lengths = [1, 5, 16, 33, 100, longest];
    let prompt = |(index, length): (usize, u32)| (0..length).map(move |at| (at * 7 + index as u32 * 13) % vocabulary);
    lengths.into_iter().enumerate().map(|of| prompt(of).collect()).collect()
}

/// The logits after each token of each prompt, each prompt computed alone.
fn alone(executor: &mut dyn Executor, prompts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let rows = |prompt: &Vec<u32>| {
        let sequence = Sequence::create(executor, 0).expect("a sequence is free");
        let logits = executor.extend(&[sequence.part(prompt, Wanted::All)]).expect("the model computes");
        let rows = (0..logits.rows()).flat_map(|row| logits.row(row).to_vec()).collect();
        sequence.drop(executor);
        rows
    };
    prompts.iter().map(rows).collect()
}

/// All prompts at once, in steps of `chunk` tokens each: a step is longer than the executor's own where chunks are long.
fn together(executor: &mut dyn Executor, prompts: &[Vec<u32>], chunk: usize) -> Vec<Vec<f32>> {
    let mut sequences: Vec<_> =
        (0..prompts.len()).map(|index| Sequence::create(executor, index).expect("a sequence is free")).collect();
    let mut rows = vec![Vec::new(); prompts.len()];
    for from in (0..).step_by(chunk) {
        let ahead: Vec<usize> = (0..prompts.len()).filter(|&index| prompts[index].len() > from).collect();
        if ahead.is_empty() {
            break;
        }
        let piece = |index: usize| &prompts[index][from..prompts[index].len().min(from + chunk)];
        let batch: Vec<_> = ahead.iter().map(|&index| sequences[index].part(piece(index), Wanted::All)).collect();
        let logits = executor.extend(&batch).expect("the model computes");
        let mut row = 0;
        for &index in &ahead {
            for _ in piece(index) {
                rows[index].extend_from_slice(logits.row(row));
                row += 1;
            }
        }
        assert_eq!(row, logits.rows());
        ahead.iter().for_each(|&index| sequences[index].grow(piece(index).len()));
    }
    sequences.into_iter().for_each(|sequence| sequence.drop(executor));
    rows
}

/// Equal to the last bit.
fn assert_same(model: &str, what: &str, left: &[Vec<f32>], right: &[Vec<f32>]) {
    for (index, (left, right)) in left.iter().zip(right).enumerate() {
        let differs = left.iter().zip(right).position(|(left, right)| left.to_bits() != right.to_bits());
        assert!(left.len() == right.len() && differs.is_none(), "{model}: {what}: prompt {index} at {differs:?}");
    }
}

#[test]
fn batches_and_chunks_change_no_bit() {
    for model in MODELS {
        let mut executor = load(model, &LoadOptions::default());
        let prompts = prompts(executor.as_ref());
        let expected = alone(executor.as_mut(), &prompts);
        for chunk in [1, 7, 32, 300] {
            let computed = together(executor.as_mut(), &prompts, chunk);
            assert_same(model, &format!("chunks of {chunk}"), &computed, &expected);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for model in MODELS {
        for kv_type in [KvType::F32, KvType::F16, KvType::BF16] {
            let [one, two, three] = [1, 2, 3].map(|threads| {
                let options = LoadOptions { threads: Some(threads), kv_type: Some(kv_type), ..LoadOptions::default() };
                let mut executor = load(model, &options);
                let prompts = prompts(executor.as_ref());
                together(executor.as_mut(), &prompts, 50)
            });
            assert_same(model, "2 threads", &two, &one);
            assert_same(model, "3 threads", &three, &one);
        }
    }
}

/// The last logits of a part are those that it has when all are wanted, and parts without any leave no gap.
#[test]
fn wanted_rows_come_in_the_order_of_the_batch() {
    let mut executor = load("llama", &LoadOptions::default());
    let prompts = prompts(executor.as_ref());
    let expected = alone(executor.as_mut(), &prompts);
    let sequences: Vec<_> =
        (0..3).map(|index| Sequence::create(executor.as_mut(), index).expect("a sequence is free")).collect();
    let wanted = [Wanted::Last, Wanted::Nothing, Wanted::All];
    let parts: Vec<_> = (0..3).map(|index| sequences[index].part(&prompts[index + 2], wanted[index])).collect();
    let width = executor.info().vocab_size;
    let logits = executor.extend(&parts).expect("the model computes");
    assert_eq!(logits.rows(), 1 + prompts[4].len());
    assert_eq!(logits.row(0), &expected[2][expected[2].len() - width..]);
    for row in 0..prompts[4].len() {
        assert_eq!(logits.row(1 + row), &expected[4][row * width..(row + 1) * width], "row {row}");
    }
}

/// A step draws for some and gives others their logits: the same tokens and rows as when all are given.
#[test]
fn tokens_are_drawn_beside_logits_that_are_given() {
    let mut executor = load("llama", &LoadOptions::default());
    let prompts = prompts(executor.as_ref());
    draw_beside_given(executor.as_mut(), &prompts[..4]);
    // These are more rows than one step has.
    let long: Vec<Vec<u32>> = (0..6).map(|prompt| (0..128).map(|at| (at * 11 + prompt * 17) % 384).collect()).collect();
    draw_beside_given(executor.as_mut(), &long);
}

#[test]
fn tokens_are_drawn_beside_logits_that_a_cuda_device_gives() {
    if !support::has_cuda_device() {
        return;
    }
    let options = LoadOptions { processor: Processor::Cuda(0), deterministic: true, ..LoadOptions::default() };
    let mut executor = load("gguf-types/q8_0.gguf", &options);
    let prompts = prompts(executor.as_ref());
    draw_beside_given(executor.as_mut(), &prompts[..4]);
}

/// Of so many prompts some are drawn from, some given, some neither.
fn draw_beside_given(executor: &mut dyn Executor, prompts: &[Vec<u32>]) {
    let expected = alone(executor, prompts);
    let count = prompts.len();
    let width = executor.info().vocab_size;
    let row = |prompt: usize, row: usize| &expected[prompt][row * width..(row + 1) * width];
    let draw = |number: u64| Draw {
        vocab_size: width,
        temperature: 1.5,
        top_k: 0,
        top_p: 0.9,
        min_p: 0.0,
        number: number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
    };
    let sequences: Vec<_> =
        (0..count).map(|index| Sequence::create(executor, index).expect("a sequence is free")).collect();
    let wanted = [Wanted::Last, Wanted::All, Wanted::Last, Wanted::All, Wanted::Nothing, Wanted::All];
    for drawn_from in [[true; 6], [false; 6], [true, false, false, true, true, true]] {
        let parts: Vec<_> = (0..count).map(|index| sequences[index].part(&prompts[index], wanted[index])).collect();
        let draws = |index: usize| -> Vec<Draw> {
            let rows = if drawn_from[index] { parts[index].rows() } else { 0 };
            (0..rows).map(|row| draw((index * 1000 + row) as u64)).collect()
        };
        let draws: Vec<_> = (0..count).map(draws).collect();
        let drawing = |index: usize| Drawing { extend: parts[index], follows: None, draws: &draws[index] };
        executor.submit(&(0..count).map(drawing).collect::<Vec<_>>()).expect("the model computes");
        let outcome = executor.collect().expect("it was submitted");
        let (mut drawn, mut given) = (outcome.drawn.iter(), 0);
        for index in 0..count {
            let first = if wanted[index] == Wanted::All { 0 } else { prompts[index].len() - 1 };
            for at in (first..prompts[index].len()).take(parts[index].rows()) {
                if drawn_from[index] {
                    let expected = draws[index][at - first].choose(row(index, at));
                    assert_eq!(drawn.next(), Some(&expected), "prompt {index}, row {at}");
                } else {
                    assert_eq!(outcome.logits.row(given), row(index, at), "prompt {index}, row {at}");
                    given += 1;
                }
            }
        }
        assert_eq!((drawn.next(), outcome.logits.rows()), (None, given));
    }
    sequences.into_iter().for_each(|sequence| sequence.drop(executor));
}

/// Blocks of a common beginning are shared, and a sequence goes on from any of its earlier lengths.
#[test]
fn beginnings_are_shared_and_ends_taken_back() {
    let mut executor = load("gemma3", &LoadOptions::default());
    let tokens: Vec<u32> = (0..60).map(|at| at * 5 % 380).collect();
    let other: Vec<u32> = tokens[..32].iter().copied().chain((0..20).map(|at| at * 11 % 380)).collect();
    let expected = alone(executor.as_mut(), &[tokens.clone(), other.clone()]);
    let (width, handle) = (executor.info().vocab_size, executor.create().expect("a sequence is free"));
    let extend = |executor: &mut dyn Executor, tokens: &[u32], start: usize, blocks: &[BlockId]| {
        let place = Place { start, blocks };
        let part = Extend { sequence: handle, tokens: &tokens[start..], place, wanted: Wanted::Last };
        executor.extend(&[part]).expect("the model computes").row(0).to_vec()
    };
    let last = |row: usize| expected[row][expected[row].len() - width..].to_vec();
    assert_eq!(extend(executor.as_mut(), &tokens, 0, &[7, 3, 5, 1]), last(0));
    assert_eq!(extend(executor.as_mut(), &other, 32, &[7, 3, 9, 10]), last(1), "the first two blocks are shared");
    assert_eq!(extend(executor.as_mut(), &tokens, 59, &[7, 3, 5, 1]), last(0), "the last token again");
    assert_eq!(extend(executor.as_mut(), &tokens, 40, &[7, 3, 5, 1]), last(0), "twenty tokens again");
}

/// What cannot be computed is refused before anything is.
#[test]
fn batches_are_checked() {
    let options = LoadOptions { kv_cache_bytes: Some(1 << 20), ..LoadOptions::default() };
    let mut executor = load("mistral", &options);
    let paging = executor.info().paging.expect("it is paged");
    assert_eq!((paging.block_tokens, paging.blocks), (16, (1 << 20) / paging.block_bytes));
    let handle = SequenceHandle::new(0);
    let blocks: Vec<BlockId> = (0..9).collect();
    let outside = [paging.blocks as BlockId];
    let part = |tokens: &'static [u32], start: usize, blocks: &'static [BlockId]| Extend {
        sequence: handle,
        tokens,
        place: Place { start, blocks },
        wanted: Wanted::Last,
    };
    let long: &'static [u32] = vec![5; 129].leak();
    let blocks: &'static [BlockId] = blocks.leak();
    let outside: &'static [BlockId] = outside.to_vec().leak();
    let cases = [
        (vec![part(&[], 0, blocks)], "no tokens"),
        (vec![part(&[384], 0, blocks)], "token 384 is outside"),
        (vec![part(&[1], 16, &blocks[..1])], "which need 2"),
        (vec![part(&[1], 0, outside)], "there is no block"),
        (vec![part(&[1], 0, &[2]), part(&[1], 3, &[2])], "block 2 would be written to twice"),
        (vec![part(&[1], 16, &[2, 3]), part(&[1], 0, &[2])], "read and written to at once"),
        (vec![part(long, 0, blocks)], "a sequence of 129 tokens does not fit the context of 128"),
        (vec![part(&[1], usize::MAX, blocks)], "does not fit the context"),
    ];
    for (batch, expected) in cases {
        let error = executor.extend(&batch).expect_err("it is refused").to_string();
        assert!(error.contains(expected), "{error} should say {expected}");
    }
    executor.extend(&[part(&[1], 0, &[2]), part(&[1, 2], 3, &[4])]).expect("what is sound is computed");

    let handles: Vec<_> = (0..6).map(|_| executor.create().expect("there is room")).collect();
    assert!(matches!(executor.create(), Err(ModelError::SequencesFull { sequences_max: 6 })));
    executor.drop_sequence(handles[2]);
    executor.create().expect("one was dropped");
}

/// A cache that holds less than the context cuts it and says so; one that holds nothing is refused.
#[test]
fn the_cache_bounds_the_context() {
    let file = ModelFile::open(&fixtures().join("llama")).expect("it opens");
    let options = |bytes| LoadOptions {
        backend: BackendChoice::Native,
        kv_cache_bytes: Some(bytes),
        kv_type: Some(KvType::F16),
        ..LoadOptions::default()
    };
    // 3 layers of 2 heads of 8 values, padded to 16, twice 2 bytes, 16 tokens.
    let block_bytes = 3 * 2 * 16 * 2 * 2 * 16;
    let executor = file.load(&options(2 * block_bytes + 1)).expect("two blocks fit");
    assert_eq!(executor.info().context_tokens, 32);
    assert!(executor.notes()[0].contains("cut to 32 of 128 tokens"), "{:?}", executor.notes());
    let executor = file.load(&options(100 * block_bytes)).expect("all of it fits");
    assert_eq!((executor.info().context_tokens, executor.notes().len()), (128, 0));
    assert_eq!(executor.info().paging.expect("it is paged").blocks, 100);
    let error = file.load(&options(block_bytes - 1)).err().expect("it is refused").to_string();
    assert!(error.contains("--kv-cache-bytes"), "{error}");
}

#[test]
fn profiles_count_every_operation() {
    let mut executor = load("gemma2", &LoadOptions { profile: true, ..LoadOptions::default() });
    let mut sequence = Sequence::create(executor.as_mut(), 0).expect("a sequence is free");
    sequence.extend(executor.as_mut(), &[1, 2, 3]).expect("the model computes");
    let profile = executor.take_profile();
    let calls = |op: &str| profile.iter().find(|time| time.op == op).map_or(0, |time| time.calls);
    assert_eq!((calls("embed"), calls("attention"), calls("gated"), calls("linear")), (1, 2, 2, 2 * 3 + 1));
    assert_eq!(executor.take_profile(), []);
}
