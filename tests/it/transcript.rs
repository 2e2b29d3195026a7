//! How many tokens a piece of answer text stands for.

use std::path::Path;

use serde_json::Value;
use tokrun_engine::Tokenizer;
use tokrun_model::ModelFile;

/// Where in the text of an undisturbed run each of its tokens shows.
pub(crate) struct Transcript {
    pub(crate) text: String,
    pub(crate) prompt_tokens: i64,
    /// Bytes shown when so many tokens, index + 1, are delivered.
    shown: Vec<usize>,
}

impl Transcript {
    /// Of an answer that `generate --output json` printed.
    pub(crate) fn new(model: &str, answer: &Value) -> Self {
        let file = ModelFile::open(Path::new(model)).expect("the model opens");
        let tokenizer = Tokenizer::from_assets(file.assets()).expect("its tokenizer works");
        let mut stream = tokenizer.stream();
        let mut bytes = 0;
        let mut shown = Vec::new();
        for token in answer["token_ids"].as_array().expect("a list") {
            let token = u32::try_from(token.as_u64().expect("an id")).expect("a small id");
            bytes += stream.push(token).expect("a token of the vocabulary").len();
            shown.push(bytes);
        }
        Self {
            text: answer["text"].as_str().expect("text").to_owned(),
            prompt_tokens: answer["usage"]["prompt_tokens"].as_i64().expect("a count"),
            shown,
        }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.shown.len()
    }

    /// The fewest tokens that show this many bytes, and the most that show no more.
    pub(crate) fn tokens_for(&self, bytes: usize) -> (i64, i64) {
        let fewest = if bytes == 0 { 0 } else { self.shown.partition_point(|shown| *shown < bytes) + 1 };
        let most = self.shown.partition_point(|shown| *shown <= bytes);
        (fewest.min(self.shown.len()) as i64, most as i64)
    }
}
