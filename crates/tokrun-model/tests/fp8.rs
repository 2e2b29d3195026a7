//! Safetensors with weights of 8-bit floats: on a processor, which widens them, their logits are those of the same weights in
//! f32, bit for bit, however their scales lie. And weights of wider floats that become such.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use support::{change_settings, copy_of, distance, logits};
use tokrun_kernels::dequantise;
use tokrun_model::{BackendChoice, Executor, KvType, LoadOptions, ModelError, ModelFile, Processor, WeightType};

mod support;

const WIDTH: usize = 128;
const HIDDEN: usize = 256;

#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Tensor>;

/// Numbers around zero that depend on `seed` alone.
fn noise(count: usize, seed: u32) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    (0..count).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn floats(shape: &[usize], values: impl Iterator<Item = f32>) -> Tensor {
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes: values.flat_map(f32::to_le_bytes).collect() }
}

/// Where scales of a matrix lie.
#[derive(Clone, Copy)]
enum Scales {
    One,
    Rows,
    Blocks,
}

/// Adds a matrix as 8-bit floats to `small`, and what it means to `plain`.
fn add_matrix(small: &mut Tensors, plain: &mut Tensors, name: &str, rows: usize, columns: usize, scales: Scales) {
    let seed = small.len() as u32 + 3;
    let codes: Vec<u8> = noise(rows * columns, seed).map(|x| (x * 128.0) as i8 as u8 & 0xbf).collect();
    let (shape, group) = match scales {
        Scales::One => (vec![], (rows, columns)),
        Scales::Rows => (vec![rows, 1], (1, columns)),
        Scales::Blocks => (vec![rows.div_ceil(128), columns / 128], (128, 128)),
    };
    let count: usize = shape.iter().product();
    let values: Vec<f32> = noise(count, seed + 100).map(|x| 0.1 + 0.05 * x).collect();
    let mut wide = Vec::new();
    for (at, codes) in codes.chunks_exact(128).enumerate() {
        let (row, column) = (at * 128 / columns, at * 128 % columns);
        let scale = values[row / group.0 * (columns / group.1) + column / group.1];
        dequantise(WeightType::FP8, &[&scale.to_le_bytes()[..], codes].concat(), &mut wide);
    }
    let end = if matches!(scales, Scales::Blocks) { "_scale_inv" } else { "_scale" };
    small.insert(format!("{name}{end}"), floats(&shape, values.into_iter()));
    small.insert(name.to_owned(), Tensor { dtype: Dtype::F8_E4M3, shape: vec![rows, columns], bytes: codes });
    plain.insert(name.to_owned(), floats(&[rows, columns], wide.into_iter()));
}

/// A llama of two layers, in both forms.
fn models() -> (Tensors, Tensors) {
    let (mut small, mut plain) = (Tensors::new(), Tensors::new());
    let mut both = |name: &str, tensor: Tensor| {
        small.insert(name.to_owned(), tensor.clone());
        plain.insert(name.to_owned(), tensor);
    };
    both("model.embed_tokens.weight", floats(&[384, WIDTH], noise(384 * WIDTH, 1)));
    both("model.norm.weight", floats(&[WIDTH], std::iter::repeat_n(1.0, WIDTH)));
    for layer in 0..2 {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            both(&format!("model.layers.{layer}.{norm}.weight"), floats(&[WIDTH], std::iter::repeat_n(1.0, WIDTH)));
        }
    }
    for layer in 0..2 {
        for (name, rows, columns, scales) in [
            ("self_attn.q_proj", WIDTH, WIDTH, Scales::One),
            ("self_attn.k_proj", 32, WIDTH, Scales::Rows),
            ("self_attn.v_proj", 32, WIDTH, Scales::Blocks),
            ("self_attn.o_proj", WIDTH, WIDTH, Scales::Rows),
            ("mlp.gate_proj", HIDDEN, WIDTH, Scales::Blocks),
            ("mlp.up_proj", HIDDEN, WIDTH, Scales::One),
            ("mlp.down_proj", WIDTH, HIDDEN, Scales::Blocks),
        ] {
            let name = format!("model.layers.{layer}.{name}.weight");
            add_matrix(&mut small, &mut plain, &name, rows, columns, scales);
        }
    }
    (small, plain)
}

/// A folder with that model, of a known family's settings.
fn folder(tensors: &Tensors, settings: &str) -> tempfile::TempDir {
    let copy = copy_of("llama");
    change_settings(
        copy.path(),
        r#""hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 1, "head_dim": 32"#,
    );
    if !settings.is_empty() {
        change_settings(copy.path(), settings);
    }
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("shapes are right");
        (name.clone(), view)
    });
    let bytes = safetensors::serialize(views, None).expect("it can be written");
    std::fs::write(copy.path().join("model.safetensors"), bytes).expect("there is room");
    copy
}

fn load(folder: &Path) -> Result<Box<dyn Executor>, ModelError> {
    let options = LoadOptions {
        backend: BackendChoice::Native,
        sequences_max: Some(2),
        kv_type: Some(KvType::F32),
        ..LoadOptions::default()
    };
    ModelFile::open(folder)?.load(&options)
}

const SETTINGS: [&str; 3] = [
    r#""quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}"#,
    r#""quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}"#,
    "",
];

#[test]
fn eight_bit_floats_are_what_their_scales_make_of_them() {
    let (small, plain) = models();
    let tokens = [5, 300, 17, 17, 2];
    let expected = logits(load(folder(&plain, "").path()).expect("the model loads").as_mut(), &tokens, &[]);
    assert!(expected.iter().any(|logit| logit.abs() > 0.1), "{:?}", &expected[..8]);
    for settings in SETTINGS {
        let folder = folder(&small, settings);
        let found = logits(load(folder.path()).expect("the model loads").as_mut(), &tokens, &[]);
        assert_eq!(found, expected, "{settings}");
    }
}

/// Weights of wider floats that are rounded as they are loaded.
fn rounded(processor: Processor) -> LoadOptions {
    LoadOptions {
        processor,
        backend: BackendChoice::Native,
        kv_type: Some(KvType::F32),
        fp8: true,
        ..LoadOptions::default()
    }
}

/// Weights are off by a 40th of themselves, root mean square, and their errors do not add up: the logits of these two layers
/// stay within a tenth of the largest one.
#[test]
fn floats_are_rounded_as_they_are_loaded() {
    let folder = folder(&models().1, "");
    let file = ModelFile::open(folder.path()).expect("the model is sound");
    let options = rounded(Processor::Cpu);
    let tokens: Vec<u32> = (0..40).map(|at| at * 37 % 384).collect();
    let exact = logits(load(folder.path()).expect("the model loads").as_mut(), &tokens, &[]);
    let found = logits(file.load(&options).expect("the model loads").as_mut(), &tokens, &[]);
    let spread = exact.iter().fold(0f32, |most, logit| most.max(logit.abs()));
    let far = distance(&found, &exact) / spread;
    assert!((1e-4..0.1).contains(&far), "{far} of {spread} off the wider weights");
    let (wide, small) = (file.info(), file.info_as_loaded(&options).expect("it is computed"));
    assert_eq!((&*wide.dtype, &*small.dtype), ("F32", "FP8"));
    // The embedding stays as it is.
    let kept = 4 * 384 * WIDTH as u64;
    assert!(small.weight_bytes > kept && small.weight_bytes < kept + wide.weight_bytes / 3, "{}", small.weight_bytes);
}

/// A card multiplies the very numbers that a processor does.
#[test]
fn a_cuda_device_rounds_floats_as_a_processor_does() {
    if !support::has_cuda_device() {
        return;
    }
    let folder = folder(&models().1, "");
    let file = ModelFile::open(folder.path()).expect("the model is sound");
    let tokens: Vec<u32> = (0..40).map(|at| at * 37 % 384).collect();
    let [cuda, cpu] = [Processor::Cuda(0), Processor::Cpu].map(|processor| {
        let mut executor = file.load(&rounded(processor)).expect("the model loads");
        logits(executor.as_mut(), &tokens, &[])
    });
    let spread = cpu.iter().fold(0f32, |most, logit| most.max(logit.abs()));
    let far = distance(&cuda, &cpu) / spread;
    assert!(far <= 0.03, "{far} of {spread} off the processor");
}

/// What is of few bits already is not rounded again, and candle does not round: no weights are loaded.
#[test]
fn what_cannot_be_rounded_is_refused() {
    let folder = folder(&models().0, SETTINGS[0]);
    let small = ModelFile::open(folder.path()).expect("the model is sound");
    let refused = |options: &LoadOptions| small.load(options).err().expect("it is refused").to_string();
    assert!(refused(&rounded(Processor::Cpu)).contains("--dtype"));
    let candle = LoadOptions { backend: BackendChoice::Candle, ..rounded(Processor::Cpu) };
    assert!(refused(&candle).contains("--backend native"));
}

/// On a card inputs are rounded to bf16, and weights where many rows multiply them: the logits are those of a processor up to
/// that, in a prompt as token by token.
#[test]
fn a_cuda_device_multiplies_eight_bit_floats_as_a_processor_does() {
    if !support::has_cuda_device() {
        return;
    }
    let folder = folder(&models().0, SETTINGS[0]);
    let options = LoadOptions { processor: Processor::Cuda(0), ..LoadOptions::default() };
    let mut cuda = ModelFile::open(folder.path()).and_then(|file| file.load(&options)).expect("the model loads");
    let mut cpu = load(folder.path()).expect("the model loads");
    let tokens: Vec<u32> = (0..40).map(|at| at * 37 % 384).collect();
    let expected = logits(cpu.as_mut(), &tokens, &[]);
    let spread = expected.iter().fold(0f32, |most, logit| most.max(logit.abs()));
    let single: Vec<usize> = (1..40).collect();
    for cuts in [&[][..], &single] {
        let far = distance(&logits(cuda.as_mut(), &tokens, cuts), &expected);
        assert!(far <= 0.03 * spread, "{far} of {spread} off the processor");
    }
}

/// What is not computed, or would be computed wrongly, is refused by name.
#[test]
fn what_scales_cannot_be_read_is_refused() {
    let (small, _) = models();
    let name = "model.layers.1.mlp.up_proj.weight";
    let change = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = small.clone();
        change(&mut tensors);
        // With its causes.
        format!("{:?}", load(folder(&tensors, SETTINGS[1]).path()).err().expect("it is refused"))
    };
    let missing = change(&|tensors| drop(tensors.remove(&format!("{name}_scale"))));
    assert!(missing.contains(name) && missing.contains("F8_E4M3"), "{missing}");
    let misshapen = change(&|tensors| drop(tensors.insert(format!("{name}_scale"), floats(&[7], noise(7, 1)))));
    assert!(misshapen.contains(name) && misshapen.contains("[7]"), "{misshapen}");
    let infinite =
        change(&|tensors| drop(tensors.insert(format!("{name}_scale"), floats(&[1], [f32::INFINITY].into_iter()))));
    assert!(infinite.contains(name) && infinite.contains("no numbers"), "{infinite}");
    let not_a_number = change(&|tensors| tensors.get_mut(name).expect("it is there").bytes[1000] = 0x7f);
    assert!(not_a_number.contains("not a number"), "{not_a_number}");
    let ignored = change(&|tensors| {
        drop(tensors.insert("model.layers.0.self_attn.k_scale".to_owned(), floats(&[1], noise(1, 1))));
    });
    assert!(ignored.contains("k_scale"), "{ignored}");
}
