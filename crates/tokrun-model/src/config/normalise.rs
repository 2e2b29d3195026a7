//! From the spellings of many versions to one.

use serde_json::{Map, Value};

/// Names for the same size; the first is the one that stays.
const SIZES: &[&[&str]] = &[
    &["hidden_size", "n_embd", "d_model", "n_embed"],
    &["num_hidden_layers", "n_layer", "n_layers", "num_layers"],
    &["num_attention_heads", "n_head", "n_heads"],
    &["num_key_value_heads", "num_kv_heads", "n_head_kv"],
    &["max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length"],
];

/// Replaces the numbers that Python writes and JSON does not know (`Infinity`, `NaN`) by null.
pub(super) fn without_infinities(text: &str) -> String {
    let mut in_string = false;
    let mut output = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].iter().find(|word| !in_string && rest.starts_with(**word));
        if let Some(word) = word {
            output.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        // An escaped character never ends a string.
        let taken = if in_string && character == '\\' {
            rest.chars().take(2).map(char::len_utf8).sum()
        } else {
            character.len_utf8()
        };
        in_string ^= character == '"';
        output.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    output
}

/// Replaces the same numbers as transformers 5 writes them (`{"__float__": "Infinity"}`) by null.
pub(super) fn without_float_objects(value: &mut Value) {
    match value {
        Value::Object(object) if object.contains_key("__float__") => *value = Value::Null,
        Value::Object(object) => object.values_mut().for_each(without_float_objects),
        Value::Array(values) => values.iter_mut().for_each(without_float_objects),
        _ => {}
    }
}

/// The text part of a model of several kinds of input, and whether it was one.
pub(super) fn lift_text_config(mut outer: Map<String, Value>) -> (Map<String, Value>, bool) {
    let Some(Value::Object(mut text)) = outer.remove("text_config") else { return (outer, false) };
    // The outer level may hold what concerns the text as a whole.
    for name in ["model_type", "architectures", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(value) = outer.remove(name) {
            text.entry(name).or_insert(value);
        }
    }
    (text, true)
}

/// Keeps one name for each size.
pub(super) fn sizes(settings: &mut Map<String, Value>) {
    for names in SIZES {
        let (kept, others) = names.split_first().expect("each list has a name");
        for other in others {
            if let Some(value) = settings.shift_remove(*other) {
                settings.entry(*kept).or_insert(value);
            }
        }
    }
}

/// Replaces `rope_parameters` by the settings of transformers 4, and drops a scaling that scales nothing.
pub(super) fn rope(settings: &mut Map<String, Value>) -> Result<(), String> {
    match settings.shift_remove("rope_parameters") {
        None | Some(Value::Null) => {}
        Some(Value::Object(parameters)) if parameters.values().all(Value::is_object) && !parameters.is_empty() => {
            rope_by_layer_type(settings, parameters)?;
        }
        Some(Value::Object(parameters)) => one_rope(settings, parameters),
        Some(other) => return Err(format!("rope_parameters = {other} is no object")),
    }
    let Some(scaling) = settings.shift_remove("rope_scaling") else { return Ok(()) };
    match scaling {
        Value::Null => Ok(()),
        Value::Object(mut scaling) => {
            if let Some(kind) = scaling.shift_remove("type") {
                scaling.entry("rope_type").or_insert(kind);
            }
            match scaling.get("rope_type") {
                Some(Value::String(kind)) if kind == "default" => Ok(()),
                Some(Value::String(_)) => {
                    settings.insert("rope_scaling".to_owned(), Value::Object(scaling));
                    Ok(())
                }
                _ => Err("rope_scaling does not say its type".to_owned()),
            }
        }
        other => Err(format!("rope_scaling = {other} is no object")),
    }
}

/// One set of parameters for all layers.
fn one_rope(settings: &mut Map<String, Value>, mut parameters: Map<String, Value>) {
    for name in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) = parameters.shift_remove(name) {
            settings.insert(name.to_owned(), value);
        }
    }
    // Where the original length stands beside the scaling, families look for it there.
    if let Some(original) = parameters.get("original_max_position_embeddings") {
        settings.entry("original_max_position_embeddings").or_insert(original.clone());
    }
    if !parameters.is_empty() {
        settings.insert("rope_scaling".to_owned(), Value::Object(parameters));
    }
}

/// A set for layers that see everything and one for layers that slide.
fn rope_by_layer_type(settings: &mut Map<String, Value>, mut parameters: Map<String, Value>) -> Result<(), String> {
    if let Some(Value::Object(mut sliding)) = parameters.shift_remove("sliding_attention") {
        if sliding.get("rope_type").is_some_and(|kind| kind != "default") {
            return Err("rope_parameters scale the sliding layers".to_owned());
        }
        if let Some(theta) = sliding.shift_remove("rope_theta") {
            settings.insert("rope_local_base_freq".to_owned(), theta);
        }
    }
    if let Some(Value::Object(full)) = parameters.shift_remove("full_attention") {
        one_rope(settings, full);
    }
    match parameters.keys().next() {
        Some(kind) => Err(format!("rope_parameters for layers of type {kind} are not known")),
        None => Ok(()),
    }
}

/// The number of experts under both of its names.
pub(super) fn experts(settings: &mut Map<String, Value>) {
    for (name, other) in [("num_experts", "num_local_experts"), ("num_local_experts", "num_experts")] {
        if let Some(value) = settings.get(name).cloned() {
            settings.entry(other).or_insert(value);
        }
    }
}
