//! The thread between engine and ledger, and the handles that callers hold.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokrun_engine::{
    ChatTemplate, Engine, EngineError, EngineOptions, Executor, ExecutorInfo, Grammar, GrammarCompiler, ReasoningTags,
    RequestId, StepMetrics, StepReport, Submission, SubmitError, TenantId, TokenId, Tokenizer,
};
use tokrun_ledger::{Debited, FinishReason, LedgerError, Settled, Settlement};

use crate::active::{self, Active, Begin, Urgency};
use crate::request::refuse_late;
use crate::transcript::Transcript;
use crate::{Event, GenerateRequest, Meter, RuntimeError, Sink};

mod speech;

use speech::{Encoded, reasoning_tags};

/// A loaded model with all it needs to speak.
pub struct TextModel {
    /// Its name in the request log.
    pub name: String,
    /// Computes.
    pub executor: Box<dyn Executor>,
    /// Turns text into tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Turns conversations into text; why it cannot is an error only for those who ask.
    pub template: Result<ChatTemplate, EngineError>,
    /// Tokens that end an answer.
    pub end_tokens: Vec<TokenId>,
}

/// Serves metered requests on one loaded model. Dropping it cancels and settles what is running.
pub struct Runtime {
    model: ModelFacts,
    meter: Arc<dyn Meter>,
    engine: Arc<Engine>,
    metrics: Arc<Mutex<StepMetrics>>,
    messages: Sender<Message>,
    next_id: AtomicU64,
    /// Keyed anew in each process, so that nobody can find out which wallets and teams are told apart by what.
    keys: RandomState,
    thread: Option<JoinHandle<()>>,
}

struct ModelFacts {
    name: String,
    device: String,
    tokenizer: Arc<Tokenizer>,
    template: Result<ChatTemplate, EngineError>,
    grammars: GrammarCompiler,
    end_tokens: Vec<TokenId>,
    reasoning: Option<ReasoningTags>,
}

enum Message {
    Begin(Box<Begin>, Submission, Sender<Result<(), SubmitError>>),
    Step(StepReport),
    Debited(Result<Vec<Debited>, LedgerError>),
    Settled(RequestId, Result<Settled, LedgerError>),
    Cancel(RequestId),
    Shutdown,
}

impl Runtime {
    /// Starts the engine and the thread that meters it.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(model: TextModel, meter: Arc<dyn Meter>, options: EngineOptions) -> Result<Self, RuntimeError> {
        let (messages, inbox) = channel();
        let report = messages.clone();
        let metrics = Arc::new(Mutex::new(StepMetrics::default()));
        let latest = Arc::clone(&metrics);
        let vocab_size = model.tokenizer.vocab_size();
        let device = model.executor.info().device.clone();
        let engine = Arc::new(Engine::spawn(model.executor, vocab_size, options, move |step| {
            *latest.lock().unwrap_or_else(PoisonError::into_inner) = step.metrics;
            // After a shutdown nobody listens; the engine is about to be joined.
            let _ = report.send(Message::Step(step));
        })?);
        let metering = Metering {
            engine: Arc::clone(&engine),
            meter: Arc::clone(&meter),
            tokenizer: Arc::clone(&model.tokenizer),
            messages: messages.clone(),
            active: HashMap::new(),
            debiting: Vec::new(),
            debit_sent: Instant::now(),
            stopping: false,
        };
        let thread = std::thread::Builder::new()
            .name("tokrun-meter".to_owned())
            .spawn(move || metering.run(&inbox))
            .map_err(|_| RuntimeError::Stopped)?;
        Ok(Self {
            model: ModelFacts {
                reasoning: reasoning_tags(&model.tokenizer),
                name: model.name,
                device,
                grammars: GrammarCompiler::new(Arc::clone(&model.tokenizer), model.end_tokens.clone()),
                tokenizer: model.tokenizer,
                template: model.template,
                end_tokens: model.end_tokens,
            },
            meter,
            engine,
            metrics,
            messages,
            next_id: AtomicU64::new(1),
            keys: RandomState::new(),
            thread: Some(thread),
        })
    }

    /// What computes, and what it honours.
    pub fn info(&self) -> &ExecutorInfo {
        self.engine.info()
    }

    /// The model's name in the request log.
    pub fn model(&self) -> &str {
        &self.model.name
    }

    /// What makes tokens of text, and text of tokens.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.model.tokenizer
    }

    /// How busy the engine was after its last step.
    pub fn metrics(&self) -> StepMetrics {
        *self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether answers can be held to this grammar. The answer to the first such question takes a moment longer.
    ///
    /// # Errors
    /// When the grammar cannot be used, or this model cannot be held to any.
    pub fn check_grammar(&self, grammar: &Grammar) -> Result<(), RuntimeError> {
        self.model.grammars.compile(grammar, false).map(drop).map_err(Into::into)
    }

    /// Admits a request and begins to serve it. The returned handle yields its events.
    ///
    /// # Errors
    /// When it asks for something impossible (then the ledger is untouched), when the ledger refuses to pay, or when the
    /// engine cannot take it (then what was held is released).
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, RuntimeError> {
        let (events, inbox) = channel();
        let running = self.generate_to(request, Box::new(move |event| events.send(event).is_ok()))?;
        Ok(Generation { running, events: inbox, handed_over_tokens: 0, finished: false })
    }

    /// As [`generate`](Self::generate), for callers that cannot wait on a channel: the events go to `sink`, and the caller
    /// acknowledges what it has dealt with.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_to(&self, request: GenerateRequest, sink: Sink) -> Result<Running, RuntimeError> {
        let begun = Instant::now();
        let Encoded { tokens: prompt, tail } = self.encoded(&request.prompt)?;
        let rules = self.rules(&request, tail.as_deref());
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let mut submission = Submission {
            request_id: id,
            prompt: prompt.clone(),
            max_new_tokens: request.max_tokens.unwrap_or(usize::MAX),
            end_tokens: if request.ignore_eos { Vec::new() } else { self.model.end_tokens.clone() },
            sampling: request.sampling,
            logprobs: request.logprobs,
            tenant: TenantId::default(),
            priority: request.priority,
            cache_salt: 0,
            grammar: None,
        };
        // Everything that can be refused is refused before money is touched.
        let transcript = Transcript::new(&self.model.tokenizer, &rules)?;
        self.engine.check(&submission)?;
        let vocab_size = self.model.tokenizer.vocab_size();
        if let Some(&token) = submission.sampling.logit_bias.keys().find(|token| **token as usize >= vocab_size) {
            return Err(EngineError::UnknownToken { token, vocab_size }.into());
        }
        if let Some(grammar) = &request.grammar {
            submission.grammar = Some(self.constraint(grammar, &submission, &rules)?);
        }

        refuse_late(request.deadline)?;
        let ModelFacts { name, device, .. } = &self.model;
        let admission = request.payer.admission(request.request_id, name, device, request.price, prompt.len());
        let request_id = admission.request_id.clone();
        let admitted = self.meter.admit(admission)?;
        // Wallets share the machine evenly; a team shares the prefixes of its prompts, and nobody else learns from timing
        // what it asked.
        submission.tenant = TenantId(self.keys.hash_one(&admitted.wallet_id));
        submission.cache_salt = self.keys.hash_one(&admitted.team_id);
        let prompt_tokens = prompt.len();
        let begin = Begin {
            id,
            request_id: request_id.clone(),
            prompt,
            rules,
            transcript,
            wants_logprobs: request.logprobs.is_some(),
            deadline: request.deadline,
            begun,
            admitted: Instant::now(),
            sink,
        };
        let (answer, accepted) = channel();
        self.messages.send(Message::Begin(Box::new(begin), submission, answer)).map_err(|_| RuntimeError::Stopped)?;
        accepted.recv().map_err(|_| RuntimeError::Stopped)??;
        let messages = self.messages.clone();
        // A runtime that is gone has cancelled everything already.
        let canceller = Canceller::new(move || drop(messages.send(Message::Cancel(id))));
        Ok(Running { id, request_id, prompt_tokens, engine: Arc::clone(&self.engine), canceller })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Shutdown);
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by its own message.
            let _ = thread.join();
        }
    }
}

/// A request under way. Dropping it cancels the request; what was paid until then is settled.
pub struct Generation {
    running: Running,
    events: Receiver<Event>,
    handed_over_tokens: u64,
    finished: bool,
}

impl Generation {
    /// The request's name, also in the ledger.
    pub fn request_id(&self) -> &str {
        self.running.request_id()
    }

    /// Waits for the next event. Asking for it says that the one before was dealt with: the engine computes no more than
    /// its window past that. `None` after `Finished`, or when the runtime died.
    pub fn next_event(&mut self) -> Option<Event> {
        if self.finished {
            return None;
        }
        if self.handed_over_tokens > 0 {
            self.running.acknowledge(self.handed_over_tokens);
        }
        let event = self.events.recv().ok();
        match &event {
            Some(Event::Delta(delta)) => self.handed_over_tokens += u64::from(delta.tokens),
            Some(Event::Finished(_)) | None => self.finished = true,
        }
        event
    }

    /// Something that can cancel this request from another thread.
    pub fn canceller(&self) -> Canceller {
        self.running.canceller()
    }
}

/// The reins of a request whose events go to a [`Sink`]. Dropping it cancels the request, if that has not ended; what was
/// paid until then is settled.
pub struct Running {
    id: RequestId,
    request_id: String,
    prompt_tokens: usize,
    engine: Arc<Engine>,
    canceller: Canceller,
}

impl Running {
    /// The request's name, also in the ledger.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Tokens of its prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The reader has dealt with the first `total_tokens` of the answer: the engine computes no more than its window past
    /// them.
    pub fn acknowledge(&self, total_tokens: u64) {
        self.engine.acknowledge(self.id, total_tokens);
    }

    /// Something that can cancel this request from another thread.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It does nothing to a request that has ended.
        self.canceller.cancel();
    }
}

/// Cancels one request, from any thread, any number of times.
#[derive(Clone)]
pub struct Canceller(Arc<dyn Fn() + Send + Sync>);

impl Canceller {
    pub(crate) fn new(cancel: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(cancel))
    }

    /// Ends the request: what is being paid for is still delivered, the rest is discarded.
    pub fn cancel(&self) {
        (self.0)();
    }
}

/// Between two debits, for each request that runs: what a commit costs the processor then stays a small share of what the
/// tokens in it cost, and a reader sees no difference: a screen shows some sixty pictures a second.
const PACE: Duration = Duration::from_millis(3);
const PACE_MIN: Duration = Duration::from_millis(16);
const PACE_MAX: Duration = Duration::from_millis(50);

/// The thread's state. One debit, over all requests, is under way at a time: what arrives meanwhile goes into the next.
struct Metering {
    engine: Arc<Engine>,
    meter: Arc<dyn Meter>,
    tokenizer: Arc<Tokenizer>,
    messages: Sender<Message>,
    active: HashMap<RequestId, Active>,
    /// The requests in the debit under way, in its order.
    debiting: Vec<RequestId>,
    debit_sent: Instant,
    stopping: bool,
}

impl Metering {
    fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            let due = [self.debits_due(), self.next_deadline()].into_iter().flatten().min();
            let message = match due {
                Some(due) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => inbox.recv().map_err(RecvTimeoutError::from),
            };
            match message {
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(message) = inbox.try_recv() {
                self.handle(message);
            }
            self.end_the_late();
            if self.debits_due().is_some_and(|due| due <= Instant::now()) {
                self.send_debits();
            }
            self.send_settlements();
            if self.stopping && self.active.is_empty() {
                return;
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Begin(begin, submission, answer) => self.begin(*begin, submission, &answer),
            Message::Step(report) => {
                for step in report.sequences {
                    let id = step.request_id;
                    self.update(id, |active| active.on_step(step));
                }
            }
            Message::Debited(result) => self.debited(result),
            Message::Settled(id, result) => {
                if let Some(active) = self.active.remove(&id) {
                    active.finish(result);
                }
            }
            Message::Cancel(id) => self.update(id, Active::cancel),
            Message::Shutdown => {
                self.stopping = true;
                let ids: Vec<RequestId> = self.active.keys().copied().collect();
                for id in ids {
                    self.update(id, Active::cancel);
                }
            }
        }
    }

    fn begin(&mut self, begin: Begin, submission: Submission, answer: &Sender<Result<(), SubmitError>>) {
        let id = begin.id;
        let request_id = begin.request_id.clone();
        let submitted = if self.stopping { Err(SubmitError::Stopped) } else { self.engine.submit(submission) };
        match submitted {
            Ok(()) => {
                self.active.insert(id, Active::new(begin, &self.tokenizer));
            }
            // Nothing was computed: the settlement releases the hold. Should even that fail, the next start does it.
            Err(_) => self.meter.settle(Settlement::new(request_id, FinishReason::Error), Box::new(drop)),
        }
        // The caller may have been dropped meanwhile; its `Generation` never existed, so its request ends here.
        if answer.send(submitted).is_err() {
            self.update(id, Active::cancel);
        }
    }

    fn update(&mut self, id: RequestId, change: impl FnOnce(&mut Active) -> active::Engine) {
        if let Some(active) = self.active.get_mut(&id)
            && change(active) == active::Engine::MustStop
        {
            self.engine.cancel(id);
        }
    }

    /// When the first of the requests must have ended that have not.
    fn next_deadline(&self) -> Option<Instant> {
        self.active.values().filter_map(Active::deadline).min()
    }

    fn end_the_late(&mut self) {
        let now = Instant::now();
        let is_late = |active: &Active| active.deadline().is_some_and(|deadline| deadline <= now);
        let late: Vec<RequestId> =
            self.active.iter().filter(|(_, active)| is_late(active)).map(|(id, _)| *id).collect();
        for id in late {
            self.update(id, Active::run_late);
        }
    }

    /// When to send what waits to be paid: at once where somebody would notice the difference, else so that the commits
    /// of many requests come less often than those of one. `None` while a debit is under way, or nothing waits.
    fn debits_due(&self) -> Option<Instant> {
        if !self.debiting.is_empty() {
            return None;
        }
        let waiting = self.active.values().filter_map(Active::waits_to_be_paid).max()?;
        let pace = match waiting {
            Urgency::Now => Duration::ZERO,
            Urgency::WithOthers => (PACE * self.active.len() as u32).clamp(PACE_MIN, PACE_MAX),
        };
        Some(self.debit_sent + pace)
    }

    fn send_debits(&mut self) {
        let mut debits = Vec::new();
        for active in self.active.values_mut() {
            if let Some(debit) = active.debit() {
                debits.push(debit);
                self.debiting.push(active.id);
            }
        }
        if !debits.is_empty() {
            self.debit_sent = Instant::now();
            let messages = self.messages.clone();
            self.meter.debit(debits, Box::new(move |result| drop(messages.send(Message::Debited(result)))));
        }
    }

    fn debited(&mut self, result: Result<Vec<Debited>, LedgerError>) {
        let now = Instant::now();
        let ids = std::mem::take(&mut self.debiting);
        match result {
            Ok(debited) => {
                assert_eq!(ids.len(), debited.len(), "an answer for each debit");
                let waited = now - self.debit_sent;
                for (id, debited) in ids.into_iter().zip(&debited) {
                    self.update(id, |active| active.on_debited(debited, now, waited));
                }
            }
            Err(error) => {
                for id in ids {
                    let error = RuntimeError::Unpaid(error.clone());
                    self.update(id, |active| active.on_debit_failed(error));
                }
            }
        }
    }

    fn send_settlements(&mut self) {
        let now = Instant::now();
        for (&id, active) in &mut self.active {
            if let Some(settlement) = active.settlement(now) {
                let messages = self.messages.clone();
                let reply = move |result| drop(messages.send(Message::Settled(id, result)));
                self.meter.settle(settlement, Box::new(reply));
            }
        }
    }
}
