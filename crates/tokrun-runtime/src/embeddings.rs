//! Metered embeddings: texts in, one vector each out, every token of them paid before the vectors leave.
//!
//! A request is encoded, checked and admitted on its caller's thread, and holds what all of its texts cost. A thread of the
//! model's own computes the texts of all requests in small batches (`worker`), so that a request of thousands of texts
//! does not stand in the way of one of a single text; wallets are served alike. A request whose texts are all computed
//! is debited and settled in one commit, and answered after that. One that fails, is cancelled or runs late before costs
//! nothing.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use tokrun_engine::{Embedder, EmbedderInfo, TenantId, TextEncoder, TokenId};
use tokrun_ledger::{Credits, FinishReason, Price, Settlement};

use crate::request::refuse_late;
use crate::{Canceller, Meter, Outcome, Payer, RuntimeError};

mod worker;

use worker::{End, Job, Message, Worker};

/// More bytes a token than any text has that is worth computing: where there are more, it is too long whatever its tokens
/// are, and they need not be found.
const TOKEN_BYTES_MAX: usize = 64;

/// A loaded embedding model with all it needs to read.
pub struct EmbeddingModel {
    /// Its name in the request log.
    pub name: String,
    /// Computes.
    pub embedder: Embedder,
    /// Turns text into tokens.
    pub encoder: TextEncoder,
}

/// One request for vectors.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// Names the request for good, in the ledger too; the same name is never served twice. A fresh one if absent.
    pub request_id: Option<String>,
    /// At least one.
    pub inputs: Vec<EmbedInput>,
    /// When all of them must have been computed; else none is paid.
    pub deadline: Option<Instant>,
    /// Who pays.
    pub payer: Payer,
    /// What a token costs; frozen into the request when it is admitted. Nothing is generated, so that only prompts cost.
    pub price: Price,
}

/// What a vector is wanted of.
#[derive(Clone, Debug)]
pub enum EmbedInput {
    /// Text, with the special tokens that the tokenizer puts around it.
    Text(String),
    /// Tokens as they stand.
    Tokens(Vec<TokenId>),
}

/// What came of a request.
#[derive(Debug)]
pub struct Embedded {
    /// One for each input, in their order; none where the request failed.
    pub vectors: Vec<Vec<f32>>,
    /// How it ended and what it came to. There is no text in it.
    pub outcome: Outcome,
}

/// Called once, with what came of a request, on a thread of the runtime's: it must return at once.
pub type EmbedReply = Box<dyn FnOnce(Embedded) + Send>;

/// Serves metered embeddings of one loaded model. Dropping it ends and settles what is running.
pub struct Embeddings {
    name: String,
    info: EmbedderInfo,
    encoder: TextEncoder,
    meter: Arc<dyn Meter>,
    messages: Sender<Message>,
    /// Keyed anew in each process, so that nobody can find out which wallets are told apart by what.
    keys: RandomState,
    thread: Option<JoinHandle<()>>,
}

impl Embeddings {
    /// Starts the thread that computes.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(model: EmbeddingModel, meter: Arc<dyn Meter>) -> Result<Self, RuntimeError> {
        let (messages, inbox) = channel();
        let info = model.embedder.info().clone();
        let worker = Worker::new(model.embedder, Arc::clone(&meter));
        let thread = std::thread::Builder::new()
            .name("tokrun-embed".to_owned())
            .spawn(move || worker.run(&inbox))
            .map_err(|_| RuntimeError::Stopped)?;
        let (name, encoder, keys) = (model.name, model.encoder, RandomState::new());
        Ok(Self { name, info, encoder, meter, messages, keys, thread: Some(thread) })
    }

    /// What computes, and what it honours.
    pub fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    /// The model's name in the request log.
    pub fn model(&self) -> &str {
        &self.name
    }

    /// The tokens of a text that is not far too long.
    ///
    /// # Errors
    /// When it is, or when the tokenizer has no token for some part of it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, RuntimeError> {
        self.check_bytes(0, text)?;
        Ok(self.encoder.encode(text, add_special)?)
    }

    /// What makes tokens of text.
    pub fn encoder(&self) -> &TextEncoder {
        &self.encoder
    }

    /// Admits a request and begins to serve it; `reply` gets what came of it. Blocks until the admission is durable.
    ///
    /// # Errors
    /// When it asks for something impossible (then the ledger is untouched), or when the ledger refuses to pay.
    pub fn embed(&self, request: EmbedRequest, reply: EmbedReply) -> Result<Canceller, RuntimeError> {
        let begun = Instant::now();
        let texts = request.inputs.iter().enumerate().map(|(index, input)| self.tokens(index, input));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let tokens: usize = texts.iter().map(Vec::len).sum();
        refuse_late(request.deadline)?;
        // No output is held for.
        let price = Price { output: Credits::ZERO, reasoning: Credits::ZERO, ..request.price };
        let admission = request.payer.admission(request.request_id, &self.name, &self.info.device, price, tokens);
        let request_id = admission.request_id.clone();
        let admitted = self.meter.admit(admission)?;
        let tenant = TenantId(self.keys.hash_one(&admitted.wallet_id));
        let cancelled = Arc::new(AtomicBool::new(false));
        let end = End { cancelled: Arc::clone(&cancelled), deadline: request.deadline };
        let job = Job::new(request_id.clone(), tenant, texts, end, begun, reply);
        if self.messages.send(Message::Begin(Box::new(job))).is_err() {
            // Nothing was computed: the settlement releases the hold. Should even that fail, the next start does it.
            self.meter.settle(Settlement::new(request_id, FinishReason::Error), Box::new(drop));
            return Err(RuntimeError::Stopped);
        }
        Ok(Canceller::new(move || cancelled.store(true, Ordering::Relaxed)))
    }

    fn check_bytes(&self, index: usize, text: &str) -> Result<(), RuntimeError> {
        let context_tokens = self.info.context_tokens;
        if text.len() / TOKEN_BYTES_MAX <= context_tokens {
            return Ok(());
        }
        Err(RuntimeError::InputTooLong { index, size: format!("{} bytes", text.len()), context_tokens })
    }

    fn tokens(&self, index: usize, input: &EmbedInput) -> Result<Vec<TokenId>, RuntimeError> {
        let context_tokens = self.info.context_tokens;
        let tokens = match input {
            EmbedInput::Text(text) => {
                self.check_bytes(index, text)?;
                self.encoder.encode(text, true)?
            }
            EmbedInput::Tokens(tokens) => tokens.clone(),
        };
        if tokens.is_empty() {
            return Err(RuntimeError::InvalidInput { index, reason: "it has no tokens".to_owned() });
        }
        let vocab_size = self.info.vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            let reason = format!("its token {token} is outside the model's vocabulary of {vocab_size}");
            return Err(RuntimeError::InvalidInput { index, reason });
        }
        if tokens.len() > context_tokens {
            let size = format!("{} tokens", tokens.len());
            return Err(RuntimeError::InputTooLong { index, size, context_tokens });
        }
        Ok(tokens)
    }
}

impl Drop for Embeddings {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Shutdown);
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by its own message.
            let _ = thread.join();
        }
    }
}
