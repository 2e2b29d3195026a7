//! Answers of a given form: JSON that a schema describes, text that a regular expression or a grammar describes.
//!
//! The `llguidance` library says which tokens may come next, from the bytes of every token; the sampler chooses among
//! them with the model's own probabilities. So every answer that comes to its end has the form asked for, whatever the
//! model; one that ends before, by its length or a stop string, is the beginning of such an answer. When nothing but the
//! end may follow, the end token does: it is generated, and paid, like any other.
//!
//! What is allowed depends on the request's own tokens alone, never on what else runs.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, StopReason};
use llguidance::earley::CGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, TokenParser};
use tokrun_model::TokenId;

use crate::error::EngineError;
use crate::panics::catching;
use crate::sampler::Constraint;
use crate::tokenizer::{TextStart, Tokenizer};

mod after;
mod source;
#[cfg(test)]
mod tests;

pub use after::{AfterReasoning, ReasoningTags};
pub use source::Grammar;
use source::in_short;
pub(crate) use source::with_bounded_whitespace;

/// The stack on which grammars are compiled: the library recurses into them.
const COMPILER_STACK_BYTES: usize = 64 << 20;

/// Longer tokens are left out: the library counts a token's bytes in ten bits.
const TOKEN_BYTES_MAX: usize = 512;

const NOTHING: &str = "nothing that this model can write fits it";

/// What one grammar may cost, whoever wrote it.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    // Some 20 ms of work when it is compiled, and 15 ms at each token.
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    // Up to 2 kB each.
    max_lexer_states: 50_000,
    max_grammar_size: 500_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

/// Holds the answers of one model to grammars.
pub struct GrammarCompiler {
    tokenizer: Arc<Tokenizer>,
    end_tokens: Vec<TokenId>,
    /// Made when it is first needed: that takes a moment, and most requests are free.
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// For the model of this tokenizer, whose answers end with one of `end_tokens`.
    pub fn new(tokenizer: Arc<Tokenizer>, end_tokens: Vec<TokenId>) -> Self {
        Self { tokenizer, end_tokens, factory: OnceLock::new() }
    }

    /// What holds one answer to `grammar`. With `continues`, the answer goes on in the middle of a text, as
    /// [`Tokenizer::continuing_stream`] decodes it; else it is a text of its own, as of [`Tokenizer::stream`].
    ///
    /// # Errors
    /// When the grammar cannot be understood, asks for something unsupported, contradicts itself or costs too much; or
    /// when this model cannot be held to any.
    pub fn compile(&self, grammar: &Grammar, continues: bool) -> Result<Box<dyn Constraint>, EngineError> {
        let factory = self.factory.get_or_init(|| factory(&self.tokenizer, &self.end_tokens));
        let factory = factory.as_ref().map_err(|reason| EngineError::NoGrammars { reason: reason.clone() })?;
        let invalid = |reason: String| EngineError::InvalidGrammar { kind: grammar.kind(), reason: in_short(&reason) };
        let parser = on_a_large_stack(|| parser(factory, grammar)).map_err(invalid)?;
        let start = if continues { TextStart::Plain } else { self.tokenizer.text_start() };
        let mut answer = Grammatical { parser, tokenizer: Arc::clone(&self.tokenizer), start, known: None };
        // A grammar that allows nothing at all, or too much to look at, is found out before anything is charged.
        answer.known = Some(answer.allowed().map_err(invalid)?);
        Ok(Box::new(answer))
    }
}

/// What all parsers of one model share: its tokens as a tree of bytes, and which of them are ordinary text in JSON.
fn factory(tokenizer: &Tokenizer, end_tokens: &[TokenId]) -> Result<ParserFactory, String> {
    let vocab_size = tokenizer.vocab_size();
    let end_tokens: Vec<TokenId> = end_tokens.iter().copied().filter(|token| (*token as usize) < vocab_size).collect();
    let Some(first_end) = end_tokens.first() else { return Err("it names no token that ends an answer".to_owned()) };
    if tokenizer.text_start() == TextStart::Joined {
        return Err("its tokenizer puts a space between any two tokens".to_owned());
    }
    let word = |token: TokenId| match tokenizer.token_bytes(token).unwrap_or_default() {
        bytes if bytes.len() > TOKEN_BYTES_MAX => Vec::new(),
        // No text contains it; a grammar may name it.
        bytes if tokenizer.is_special(token) || end_tokens.contains(&token) => {
            [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
        }
        bytes => bytes.to_vec(),
    };
    let words: Vec<Vec<u8>> = (0..vocab_size as TokenId).map(word).collect();
    let build = || {
        let info = TokRxInfo::new(vocab_size as u32, *first_end);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&end_tokens);
        // Text that the grammar leaves no choice about is still the model's to cut into tokens.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(factory)
    };
    catching(build).flatten()
}

/// The parser for one answer.
fn parser(factory: &ParserFactory, grammar: &Grammar) -> Result<TokenParser, String> {
    let mut parser = factory.create_parser(grammar.parse()?).map_err(|error| error.to_string())?;
    if sets_temperature(parser.parser.grammar()) {
        return Err("it sets a temperature, which is the request's to set".to_owned());
    }
    parser.start_without_prompt();
    Ok(parser)
}

/// Whether any rule would have its own temperature, which nobody here would heed.
fn sets_temperature(grammar: &CGrammar) -> bool {
    let (mut pending, mut seen) = (vec![grammar.start()], HashSet::new());
    while let Some(symbol) = pending.pop() {
        if !seen.insert(symbol) {
            continue;
        }
        if grammar.sym_data(symbol).props.temperature != 0.0 {
            return true;
        }
        pending.extend(grammar.rules_of(symbol).iter().flat_map(|rule| grammar.rule_rhs(*rule).0));
    }
    false
}

/// Runs `work` where it may recurse deeply; a panic becomes what it said.
fn on_a_large_stack<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("tokrun-grammar".to_owned()).stack_size(COMPILER_STACK_BYTES);
        let thread = thread.spawn_scoped(scope, || catching(work).flatten()).map_err(|error| error.to_string())?;
        thread.join().unwrap_or_else(|_| Err("its compiler died".to_owned()))
    })
}

/// Holds one answer to its grammar.
struct Grammatical {
    parser: TokenParser,
    tokenizer: Arc<Tokenizer>,
    /// How the answer's text begins; `Plain` once it has begun.
    start: TextStart,
    /// What may come next, where that is known already.
    known: Option<SimpleVob>,
}

impl fmt::Debug for Grammatical {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Grammatical").finish_non_exhaustive()
    }
}

impl Constraint for Grammatical {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        let allowed = match self.known.take() {
            Some(allowed) => allowed,
            None => self.allowed().map_err(stuck)?,
        };
        forbid_all_but(&allowed, logits);
        // A model may compute fewer logits than its tokenizer has tokens, or rule some out itself.
        if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) { Err(stuck(NOTHING.to_owned())) } else { Ok(()) }
    }

    fn advance(&mut self, token: TokenId) -> Result<(), EngineError> {
        if self.end_tokens().contains(&token) {
            // The answer ends here; the parser may have said so before.
            return Ok(());
        }
        if !self.tokenizer.is_special(token) {
            self.start = TextStart::Plain;
        }
        let parser = &mut self.parser;
        let advanced = catching(|| parser.consume_token(token).and_then(|_| parser.check_stop()));
        advanced.and_then(|advanced| advanced.map(drop).map_err(|error| error.to_string())).map_err(stuck)
    }
}

impl Grammatical {
    /// What may come next: at least one token.
    fn allowed(&mut self) -> Result<SimpleVob, String> {
        let ended = self.parser.stop_reason() != StopReason::NotStopped;
        if ended && self.parser.stop_reason().is_ok() {
            return Ok(self.parser.token_env.tok_trie().eos_token_set());
        }
        let parser = &mut self.parser;
        let computed = catching(|| parser.compute_mask().map_err(|error| error.to_string())).flatten();
        let mut allowed = match computed {
            Err(_) if self.parser.stop_reason() == StopReason::NoExtensionBias => return Err(NOTHING.to_owned()),
            computed => computed?,
        };
        self.keep_the_first_space(&mut allowed);
        if allowed.is_zero() { Err(NOTHING.to_owned()) } else { Ok(allowed) }
    }

    /// Some tokenizers leave out a space that a text begins with. The parser has seen it, whoever reads the answer would
    /// not: so the first token is one that reads the same there as anywhere.
    fn keep_the_first_space(&self, allowed: &mut SimpleVob) {
        let altered: fn(&[u8]) -> bool = match self.start {
            TextStart::WithoutOneSpace => |bytes| bytes.first() == Some(&b' '),
            TextStart::WithoutSpaces => |bytes| bytes.contains(&b' '),
            TextStart::Plain | TextStart::Joined => return,
        };
        for token in 0..self.tokenizer.vocab_size() as TokenId {
            let text = !self.tokenizer.is_special(token) && !self.end_tokens().contains(&token);
            if text && self.tokenizer.token_bytes(token).is_ok_and(altered) {
                allowed.disallow_token(token);
            }
        }
    }

    fn end_tokens(&self) -> &[TokenId] {
        self.parser.token_env.tok_trie().eos_tokens()
    }
}

fn stuck(reason: String) -> EngineError {
    EngineError::GrammarStuck { reason: in_short(&reason) }
}

/// Sets the logits of all other tokens to negative infinity.
fn forbid_all_but(allowed: &SimpleVob, logits: &mut [f32]) {
    let words = allowed.as_slice().iter().copied().chain(std::iter::repeat(0));
    for (word, logits) in words.zip(logits.chunks_mut(32)) {
        match word {
            0 => logits.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}
