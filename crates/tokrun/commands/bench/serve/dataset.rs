//! The prompts of a load: words that chance puts together, or a file's.

use std::collections::VecDeque;
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::args::{Dataset, LoadArgs, RandomPrompts};
use crate::failure::{Failure, Status};

/// What one request asks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    /// What every prompt begins with.
    pub(super) prefix: Option<String>,
    pub(super) prompt: String,
    pub(super) output_tokens: usize,
}

/// Common words: with the space before it, each is a token of almost every tokenizer.
const WORDS: [&str; 64] = [
    "time", "people", "water", "house", "river", "music", "garden", "engine", "letter", "window", "market", "doctor",
    "school", "winter", "summer", "bridge", "forest", "island", "planet", "silver", "paper", "table", "road", "city",
    "field", "king", "story", "train", "ocean", "valley", "castle", "morning", "evening", "world", "night", "light",
    "stone", "green", "black", "white", "small", "large", "young", "early", "north", "south", "power", "money",
    "state", "group", "party", "church", "family", "mother", "father", "friend", "number", "street", "office",
    "member", "moment", "reason", "village", "country",
];

/// What a file says of a prompt without a length.
const OUTPUT_TOKENS_USUAL: usize = 128;

/// An endless row of prompts.
pub(super) enum Prompts {
    Random { shape: RandomPrompts, prefix: Option<String>, random: Box<StdRng> },
    File(VecDeque<Asked>),
}

impl Prompts {
    pub(super) fn open(args: &LoadArgs) -> Result<Self, Failure> {
        let random = StdRng::seed_from_u64(args.seed);
        match &args.dataset {
            Dataset::Random(shape) => Ok(Self::random(*shape, random)),
            Dataset::File(path) => read(path, random).map(Self::File),
        }
    }

    fn random(shape: RandomPrompts, mut random: StdRng) -> Self {
        let prefix = (shape.prefix_words > 0).then(|| words(&mut random, shape.prefix_words));
        Self::Random { shape, prefix, random: Box::new(random) }
    }

    pub(super) fn next(&mut self) -> Asked {
        match self {
            Self::Random { shape, prefix, random } => {
                let length = spread(random, shape.input_words, shape.range);
                let output_tokens = spread(random, shape.output_tokens, shape.range);
                Asked { prefix: prefix.clone(), prompt: words(random, length), output_tokens }
            }
            Self::File(prompts) => {
                prompts.rotate_left(1);
                prompts.back().expect("a file without prompts is refused").clone()
            }
        }
    }
}

fn spread(random: &mut StdRng, mean: usize, range: f64) -> usize {
    let (least, most) = (mean as f64 * (1.0 - range), mean as f64 * (1.0 + range));
    random.random_range(least.round() as usize..=most.round() as usize).max(1)
}

fn words(random: &mut StdRng, count: usize) -> String {
    let words: Vec<&str> = (0..count).map(|_| *WORDS.choose(random).expect("there are some")).collect();
    words.join(" ")
}

fn read(path: &Path, mut random: StdRng) -> Result<VecDeque<Asked>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::io(&format!("cannot read {}", path.display()), &error))?;
    let wrong = |what: String| {
        Failure::new(Status::Usage, "bad_dataset", format!("{}: {what}", path.display())).hint(
            "a dataset is a JSON list of ShareGPT's form, or a line {\"prompt\": TEXT, \"output_tokens\": N} for each prompt",
        )
    };
    let is_list = text.trim_start().starts_with('[');
    let mut prompts = if is_list { share_gpt(&text) } else { lines(&text) }.map_err(wrong)?;
    if prompts.is_empty() {
        return Err(wrong("it has no prompts".to_owned()));
    }
    // Its order is as good as none, and a seed is to choose others of its hundred thousand.
    if is_list {
        prompts.shuffle(&mut random);
    }
    Ok(prompts.into())
}

/// `[{"conversations": [{"from": "human", "value": TEXT}, {"from": "gpt", "value": TEXT}, ...]}, ...]`: each conversation's
/// first question, with an answer about as long as the one it has.
fn share_gpt(text: &str) -> Result<Vec<Asked>, String> {
    let conversations: Vec<Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let asked = conversations.iter().filter_map(|conversation| {
        let turns = conversation["conversations"].as_array()?;
        let (question, answer) = (turns.first()?["value"].as_str()?, turns.get(1)?["value"].as_str()?);
        (!question.is_empty()).then(|| Asked {
            prefix: None,
            prompt: question.to_owned(),
            // A token of a tokenizer that nobody here has is about four letters.
            output_tokens: answer.chars().count().div_ceil(4).max(1),
        })
    });
    Ok(asked.collect())
}

fn lines(text: &str) -> Result<Vec<Asked>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let asked = lines.map(|(index, line)| {
        let wrong = |what: &dyn std::fmt::Display| format!("line {}: {what}", index + 1);
        let object: Value = serde_json::from_str(line).map_err(|error| wrong(&error))?;
        let prompt = object["prompt"].as_str().ok_or_else(|| wrong(&"it has no \"prompt\""))?.to_owned();
        let output_tokens = match &object["output_tokens"] {
            Value::Null => OUTPUT_TOKENS_USUAL,
            number => number
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .filter(|number| *number > 0)
                .ok_or_else(|| wrong(&"\"output_tokens\" is no number from 1 on"))?,
        };
        Ok(Asked { prefix: None, prompt, output_tokens })
    });
    asked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: RandomPrompts, seed: u64) -> Prompts {
        Prompts::random(shape, StdRng::seed_from_u64(seed))
    }

    #[test]
    fn chance_makes_the_lengths_that_are_asked_for_and_a_seed_makes_them_again() {
        let shape = RandomPrompts { input_words: 20, output_tokens: 10, prefix_words: 5, range: 0.5 };
        let (mut prompts, mut again, mut other) = (random(shape, 7), random(shape, 7), random(shape, 8));
        let mut lengths = std::collections::BTreeSet::new();
        let mut prefixes = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let asked = prompts.next();
            assert_eq!(asked, again.next());
            assert_ne!(asked, other.next());
            lengths.insert(asked.prompt.split(' ').count());
            assert!((5..=15).contains(&asked.output_tokens));
            prefixes.insert(asked.prefix.expect("one is asked for"));
        }
        assert_eq!((lengths.first(), lengths.last()), (Some(&10), Some(&30)));
        assert_eq!(prefixes.len(), 1, "it is shared");
        assert_eq!(prefixes.first().expect("there is one").split(' ').count(), 5);
    }

    #[test]
    fn files_are_read_in_both_forms_and_begin_anew() {
        let share = r#"[{"id": "a", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "12345678"}]},
            {"conversations": [{"from": "human", "value": "alone"}]}, {"conversations": []}]"#;
        let asked = |prompt: &str, output_tokens| Asked { prefix: None, prompt: prompt.to_owned(), output_tokens };
        assert_eq!(share_gpt(share), Ok(vec![asked("Why?", 2)]));
        let two = "{\"prompt\": \"a\", \"output_tokens\": 3}\n\n{\"prompt\": \"b\"}\n";
        assert_eq!(lines(two), Ok(vec![asked("a", 3), asked("b", 128)]));
        let mut prompts = Prompts::File(lines(two).expect("it is well formed").into());
        let order: Vec<String> = (0..3).map(|_| prompts.next().prompt).collect();
        assert_eq!(order, ["a", "b", "a"]);
        for (wrong, line) in
            [("{\"prompt\": \"a\"}\n{}", 2), ("{\"prompt\": \"a\", \"output_tokens\": 0}", 1), ("x", 1)]
        {
            assert!(lines(wrong).is_err_and(|error| error.starts_with(&format!("line {line}:"))), "{wrong}");
        }
    }
}
