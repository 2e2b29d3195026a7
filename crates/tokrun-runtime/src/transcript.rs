//! Tokens into text that may be shown.

use tokrun_engine::{DetokenizeStream, EngineError, ReasoningTags, StopMatcher, TokenId, Tokenizer};

/// What makes text of tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// Strings that end the answer and are not part of it.
    pub(crate) stop: Vec<String>,
    /// The answer goes on in the middle of a text: a space that it begins with belongs to it.
    pub(crate) continues: bool,
    /// Tokens that text leaves out otherwise, and that are spelled out here.
    pub(crate) spelled: Vec<TokenId>,
    /// What the model thinks between.
    pub(crate) reasoning: Option<ReasoningTags>,
    /// The prompt has begun the thinking.
    pub(crate) reasons_at_once: bool,
    /// Thoughts are told apart from the answer; else they are part of its text, tags and all.
    pub(crate) splits_reasoning: bool,
}

/// The text of one answer as its tokens come: whole characters only, and nothing that could still become a stop string.
pub(crate) struct Transcript {
    characters: DetokenizeStream,
    stops: StopMatcher,
    stage: Stage,
    /// Where thoughts are told apart.
    thoughts: Option<Thoughts>,
    /// The answer begins after thoughts, and the white space between them is nobody's.
    skips_space: bool,
}

/// Thinking comes first or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Beginning,
    Thinking,
    Saying,
}

struct Thoughts {
    characters: DetokenizeStream,
    has_begun: bool,
    /// Space that is shown when more follows it.
    space: String,
}

/// What one more token adds.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    /// It was a token of thinking, the tags around it included.
    pub(crate) is_reasoning: bool,
    pub(crate) stopped: bool,
}

impl Transcript {
    pub(crate) fn new(tokenizer: &Tokenizer, rules: &Rules) -> Result<Self, EngineError> {
        let characters = if rules.continues { tokenizer.continuing_stream() } else { tokenizer.stream() };
        let stage = match rules.reasoning {
            None => Stage::Saying,
            Some(_) if rules.reasons_at_once => Stage::Thinking,
            Some(_) => Stage::Beginning,
        };
        let thoughts = (rules.splits_reasoning && stage != Stage::Saying).then(|| Thoughts {
            characters: tokenizer.stream(),
            has_begun: false,
            space: String::new(),
        });
        Ok(Self { characters, stops: StopMatcher::new(rules.stop.clone())?, stage, thoughts, skips_space: false })
    }

    pub(crate) fn push(&mut self, token: TokenId, rules: &Rules) -> Result<Step, EngineError> {
        let is_reasoning = self.is_reasoning(token, rules.reasoning);
        if let Some(thoughts) = self.thoughts.as_mut().filter(|_| is_reasoning) {
            let is_tag = rules.reasoning.is_some_and(|tags| token == tags.open || token == tags.close);
            self.skips_space = true;
            let reasoning = if is_tag { String::new() } else { thoughts.push(token)? };
            return Ok(Step { reasoning, is_reasoning, ..Step::default() });
        }
        let spelled = rules.spelled.contains(&token);
        let mut characters = if spelled { self.characters.spell(token)? } else { self.characters.push(token)? };
        if self.skips_space {
            characters = characters.trim_start().to_owned();
            self.skips_space = characters.is_empty();
        }
        let step = self.stops.push(&characters);
        Ok(Step { text: step.text, stopped: step.stopped, is_reasoning, ..Step::default() })
    }

    /// Whether a token belongs to the thinking. It decides that for good, so each token is asked about once.
    fn is_reasoning(&mut self, token: TokenId, tags: Option<ReasoningTags>) -> bool {
        let Some(tags) = tags else { return false };
        let was = self.stage;
        self.stage = match was {
            Stage::Beginning if token == tags.open => Stage::Thinking,
            Stage::Thinking if token != tags.close => Stage::Thinking,
            _ => Stage::Saying,
        };
        was == Stage::Thinking || self.stage == Stage::Thinking
    }

    /// Whether the next token belongs to the thinking, unless it begins or ends it.
    pub(crate) fn is_thinking(&self) -> bool {
        self.stage == Stage::Thinking
    }

    /// The stop string that ended the answer.
    pub(crate) fn stopped_by(&self) -> Option<&str> {
        self.stops.stopped_by()
    }

    /// The thoughts and the text of an answer that consists of `tokens` and nothing else: what was held back is part of it.
    pub(crate) fn whole(
        tokenizer: &Tokenizer,
        rules: &Rules,
        tokens: &[TokenId],
    ) -> Result<(String, String), EngineError> {
        let mut transcript = Self::new(tokenizer, rules)?;
        let (mut reasoning, mut text) = (String::new(), String::new());
        for &token in tokens {
            let step = transcript.push(token, rules)?;
            reasoning.push_str(&step.reasoning);
            text.push_str(&step.text);
            if step.stopped {
                return Ok((reasoning, text));
            }
        }
        if let Some(thoughts) = transcript.thoughts.filter(|_| transcript.stage == Stage::Thinking) {
            reasoning.push_str(&thoughts.characters.finish());
        }
        let rest = transcript.characters.finish();
        let step = transcript.stops.push(&rest);
        text.push_str(&step.text);
        if !step.stopped {
            text.push_str(&transcript.stops.finish());
        }
        Ok((reasoning, text))
    }
}

impl Thoughts {
    fn push(&mut self, token: TokenId) -> Result<String, EngineError> {
        let text = self.characters.push(token)?;
        let text = if self.has_begun { text.as_str() } else { text.trim_start() };
        let words = text.trim_end();
        if words.is_empty() {
            self.space.push_str(text);
            return Ok(String::new());
        }
        self.has_begun = true;
        let shown = std::mem::replace(&mut self.space, text[words.len()..].to_owned()) + words;
        Ok(shown)
    }
}
