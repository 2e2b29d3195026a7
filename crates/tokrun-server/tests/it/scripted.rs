//! A model that says what a test wants said, if nothing forbids it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tokrun_engine::{Executor, ExecutorInfo, TokenId, Tokenizer};
use tokrun_model::{Extend, Logits, ModelError, SequenceHandle};

/// What tokenizers of models that think have besides.
const TAGS: [&str; 2] = ["<think>", "</think>"];

/// Says each of its tokens in turn after any prompt, and then the one that ends the answer.
pub(crate) struct Scripted {
    info: ExecutorInfo,
    says: Vec<TokenId>,
    /// Tokens that each sequence has said.
    said: HashMap<SequenceHandle, usize>,
    next: u64,
}

impl Scripted {
    pub(crate) fn new(tokenizer: &Tokenizer, text: &str, end: TokenId, context_tokens: usize) -> Self {
        let info = ExecutorInfo {
            backend: "script",
            device: "cpu".to_owned(),
            vocab_size: tokenizer.vocab_size(),
            context_tokens,
            sequences_max: 8,
            paging: None,
        };
        let mut says = tokenizer.encode(text, false).expect("it can be encoded");
        says.push(end);
        Self { info, says, said: HashMap::new(), next: 0 }
    }
}

impl Executor for Scripted {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn create(&mut self) -> Result<SequenceHandle, ModelError> {
        self.next += 1;
        let handle = SequenceHandle::new(self.next);
        self.said.insert(handle, 0);
        Ok(handle)
    }

    fn extend(&mut self, batch: &[Extend<'_>]) -> Result<Logits<'_>, ModelError> {
        let vocab_size = self.info.vocab_size;
        let mut values = vec![0.0; batch.len() * vocab_size];
        for (row, extend) in values.chunks_mut(vocab_size).zip(batch) {
            let said = self.said.get_mut(&extend.sequence).expect("the engine knows its sequences");
            row[self.says[(*said).min(self.says.len() - 1)] as usize] = 10.0;
            *said += 1;
        }
        Ok(Logits::new(values, vocab_size))
    }

    fn drop_sequence(&mut self, sequence: SequenceHandle) {
        self.said.remove(&sequence);
    }
}

/// Gives a copy of a model the tags of thinking, and a template that knows tools and may begin the thinking.
pub(crate) fn teach(model: &Path) {
    let file = model.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).expect("it is there")).expect("it is JSON");
    for (index, tag) in TAGS.iter().enumerate() {
        let id = 384 + index;
        tokenizer["model"]["vocab"][tag] = id.into();
        let token = json!({ "id": id, "content": tag, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false });
        tokenizer["added_tokens"].as_array_mut().expect("it is a list").push(token);
    }
    fs::write(&file, tokenizer.to_string()).expect("it can be written");
    let file = model.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).expect("it is there")).expect("it is JSON");
    config["chat_template"] = TEMPLATE.into();
    fs::write(&file, config.to_string()).expect("it can be written");
}

const TEMPLATE: &str = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}{% for m in messages %}\
    {{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}\
    {{ '<|im_end|>\n' }}{% endfor %}<|im_start|>assistant\n\
    {% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}";
