//! The main job on the real default model, against a float32 reference.

use serde_json::Value;

use crate::support::{Home, default_model, fixture};

/// Mean distance from the reference's log-probabilities; the model's activations are rounded to 8 bits.
const MEAN_DISTANCE: f64 = 0.11;
/// Where the reference prefers its choice by more than this, ours is the same.
const MARGIN: f64 = 0.5;

#[test]
fn log_probabilities_and_choices_are_those_of_the_reference() {
    let Some(model) = default_model() else { return };
    let reference: Value = serde_json::from_str(
        &std::fs::read_to_string(fixture("smollm2-135m/reference.json")).expect("the reference is there"),
    )
    .expect("JSON");
    let home = Home::new();
    let mut distances = Vec::new();
    let prompts = reference["prompts"].as_array().expect("a list");
    assert!(prompts.len() >= 10);
    for prompt in prompts {
        compare(&home, &model, prompt, &mut distances);
    }
    let mean = distances.iter().sum::<f64>() / distances.len() as f64;
    let worst = distances.iter().fold(0.0, |worst: f64, distance| worst.max(*distance));
    eprintln!("{} log-probabilities: mean distance {mean:.4}, worst {worst:.4}", distances.len());
    assert!(distances.len() >= 500, "only {} log-probabilities were compared", distances.len());
    assert!(mean <= MEAN_DISTANCE, "mean distance {mean}");
}

/// Follows the reference for as long as the choices agree.
fn compare(home: &Home, model: &str, prompt: &Value, distances: &mut Vec<f64>) {
    let list = |field: &str| prompt[field].as_array().expect("a list").clone();
    let (chosen, margins, tops) = (list("token_ids"), list("margins"), list("top"));
    let messages = list("messages");
    let content = |index: usize| messages[index]["content"].as_str().expect("text");
    // A conversation of several turns is more than `generate` takes: its rendered text goes in as it stands.
    let asked = match messages.len() {
        1 => vec![content(0)],
        2 if messages[0]["role"] == "system" => vec![content(1), "--system", content(0)],
        _ => vec![prompt["text"].as_str().expect("text"), "--raw"],
    };
    let tokens = chosen.len().to_string();
    let flags = ["--model", model, "--temperature", "0", "--ignore-eos", "--max-tokens", &tokens, "--logprobs", "20"];
    let answer = home.json(&[&["generate"][..], &asked, &flags].concat());
    assert_eq!(answer["prompt_token_ids"], prompt["prompt_ids"], "template or tokenizer differ");
    let ours = answer["logprobs"].as_array().expect("a list");
    assert_eq!(ours.len(), chosen.len());
    for (step, ours) in ours.iter().enumerate() {
        for theirs in tops[step].as_array().expect("a list").iter().take(5) {
            let found = ours["top"].as_array().expect("a list").iter().find(|top| top[0] == theirs[0]);
            let found = found.unwrap_or_else(|| panic!("{} is not among our 20 likeliest", theirs[0]));
            distances.push((found[1].as_f64().expect("a number") - theirs[1].as_f64().expect("a number")).abs());
        }
        if ours["id"] != chosen[step] {
            let margin = margins[step].as_f64().expect("a number");
            assert!(margin <= MARGIN, "we chose {} over {} at a margin of {margin}", ours["id"], chosen[step]);
            return;
        }
    }
}
