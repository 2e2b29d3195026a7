//! The answers to one HTTP request: one or several metered requests, with their events in one queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokrun_ledger::{FinishReason, LedgerError};
use tokrun_runtime::{Event, GenerateRequest, Outcome, Running, RuntimeError};

use crate::app::App;
use crate::error::ApiError;
use crate::live::Entry;
use crate::metrics::Observed;
use crate::models::Lease;
use crate::pace::Pace;
use crate::routes::RequestTag;
use crate::telemetry::Operation;

/// Answers under way. Dropping them cancels what has not ended; what was paid until then is settled.
pub(crate) struct Answers {
    running: Vec<Option<Running>>,
    /// Tokens of each that were taken from here.
    taken_tokens: Vec<u64>,
    /// Whether some of them are not acknowledged.
    owes_acknowledgement: bool,
    /// Bounded by the engine's window, since nothing is acknowledged before it is taken.
    events: UnboundedReceiver<(usize, Event)>,
    /// Those that are here; and how fast they are taken, if not as fast as they come.
    ready: VecDeque<(usize, Event)>,
    pace: Option<Pace>,
    open: usize,
    entry: Entry,
    /// The model stays in memory.
    _model: Lease,
    _places: OwnedSemaphorePermit,
}

impl Answers {
    /// Has each of the requests admitted, and begins to serve them. May block.
    ///
    /// The first must be admitted. Where the allowance ends before a later one, that one is empty and says why: what was
    /// paid for the others is delivered.
    pub(crate) fn begin(
        app: &Arc<App>,
        model: &Lease,
        places: OwnedSemaphorePermit,
        tag: &RequestTag,
        requests: Vec<GenerateRequest>,
    ) -> Result<Self, ApiError> {
        let (sender, events) = unbounded_channel();
        let open = requests.len();
        let mut running = Vec::with_capacity(open);
        for (choice, request) in requests.into_iter().enumerate() {
            let wallet = request.payer.wallet.clone();
            match begin_one(app, model, request, tag, choice, &sender) {
                Ok(one) => running.push(Some(one)),
                Err(error) if choice == 0 => {
                    return Err(ApiError::from(&error).with_refill(&app.ledger, &wallet, app.options.exhausted_status));
                }
                Err(error) => {
                    let outcome = Event::Finished(Box::new(unserved(error)));
                    // The receiver lives: it is in this function.
                    let _ = sender.send((choice, outcome));
                    running.push(None);
                }
            }
        }
        let entry = app.live.enter(running.iter().flatten().map(Running::canceller).collect());
        let taken_tokens = vec![0; open];
        let _model = model.clone();
        Ok(Self {
            running,
            taken_tokens,
            owes_acknowledgement: false,
            events,
            ready: VecDeque::new(),
            pace: None,
            open,
            entry,
            _model,
            _places: places,
        })
    }

    /// From now on tokens are taken one after another, where several come at once.
    pub(crate) fn paced(mut self) -> Self {
        self.pace = Some(Pace::new(Instant::now()));
        self
    }

    /// The next event, and which of the answers it is of. Asking for it acknowledges what was taken before. `None` after the
    /// last one has finished, or when the runtime died.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        self.entry.asked_for_more();
        if std::mem::take(&mut self.owes_acknowledgement) {
            for (running, &tokens) in self.running.iter().zip(&self.taken_tokens) {
                if let Some(running) = running.as_ref().filter(|_| tokens > 0) {
                    running.acknowledge(tokens);
                }
            }
        }
        if self.open == 0 {
            return None;
        }
        loop {
            let due = match self.take_due() {
                Ok(event) => return Some(event),
                Err(due) => due,
            };
            let event = match due {
                Some(due) => tokio::time::timeout_at(due.into(), self.events.recv()).await,
                None => Ok(self.events.recv().await),
            };
            match event {
                Ok(Some(event)) => self.ready.push_back(event),
                Ok(None) if self.ready.is_empty() => return None,
                // Nothing comes any more: what is here is all there is.
                Ok(None) => return self.take_ready(),
                Err(_) => {}
            }
        }
    }

    /// Another event that is here already, and is to be told now.
    pub(crate) fn next_ready(&mut self) -> Option<(usize, Event)> {
        self.take_due().ok()
    }

    /// The first of those that are here, or when it is to be told; `None` if there is none.
    fn take_due(&mut self) -> Result<(usize, Event), Option<Instant>> {
        while let Ok(event) = self.events.try_recv() {
            self.ready.push_back(event);
        }
        let (now, waiting) = (Instant::now(), self.ready.len());
        let due = match (self.ready.back(), &mut self.pace) {
            (Some((_, Event::Delta(newest))), Some(pace)) => pace.due(newest.paid, waiting),
            // Nobody waits for an end that is known.
            _ => now,
        };
        if Pace::is_due(due, now) { self.take_ready().ok_or(None) } else { Err(Some(due)) }
    }

    fn take_ready(&mut self) -> Option<(usize, Event)> {
        let event = self.ready.pop_front()?;
        self.pace.iter_mut().for_each(|pace| pace.sent(Instant::now()));
        Some(self.take(event))
    }

    fn take(&mut self, (choice, event): (usize, Event)) -> (usize, Event) {
        match &event {
            Event::Delta(delta) => {
                self.taken_tokens[choice] += u64::from(delta.tokens);
                self.owes_acknowledgement = true;
            }
            Event::Finished(_) => self.open -= 1,
        }
        self.entry.handed_over();
        (choice, event)
    }

    /// Whether all have finished, as opposed to the runtime having died.
    pub(crate) fn all_finished(&self) -> bool {
        self.open == 0
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.running.len()
    }

    /// Tokens of the first prompt.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.running.first().and_then(Option::as_ref).map_or(0, Running::prompt_tokens)
    }

    /// Waits for all of them; in the order in which they end.
    pub(crate) async fn collect(mut self) -> Result<Vec<(usize, Outcome)>, ApiError> {
        let mut outcomes = Vec::with_capacity(self.count());
        let mut next = self.next().await;
        while let Some((choice, event)) = next {
            if let Event::Finished(outcome) = event {
                if let Some(error) = &outcome.error {
                    return Err(error.into());
                }
                outcomes.push((choice, *outcome));
            }
            next = match self.next_ready() {
                // What is here is acknowledged together.
                Some(ready) => Some(ready),
                None => self.next().await,
            };
        }
        if outcomes.iter().all(|(_, outcome)| came_to_nothing(outcome)) && !outcomes.is_empty() {
            return Err(ApiError::too_late());
        }
        if self.all_finished() { Ok(outcomes) } else { Err(ApiError::from(&RuntimeError::Stopped)) }
    }
}

fn begin_one(
    app: &Arc<App>,
    model: &Lease,
    request: GenerateRequest,
    tag: &RequestTag,
    choice: usize,
    sender: &UnboundedSender<(usize, Event)>,
) -> Result<Running, RuntimeError> {
    let sender = sender.clone();
    let observed = Observed::new(app, tag, Operation::of(&request.prompt), model.name(), &request.payer);
    let (engine, mark) = model.idlest();
    let sink = move |event: Event| {
        // It goes with the request.
        let _ = &mark;
        // Counted here, where every event comes by, whether or not a client is there to see it.
        observed.see(&event);
        sender.send((choice, event)).is_ok()
    };
    engine.generate_to(request, Box::new(sink))
}

/// Whether the deadline passed before there was anything to answer with.
pub(crate) fn came_to_nothing(outcome: &Outcome) -> bool {
    outcome.finish_reason == FinishReason::Deadline && outcome.usage.completion_tokens == 0
}

/// The end of an answer that never began.
fn unserved(error: RuntimeError) -> Outcome {
    let (finish_reason, limited) = match &error {
        RuntimeError::Ledger(LedgerError::Limited { reached }) => (FinishReason::Limit, Some((**reached).clone())),
        RuntimeError::Ledger(LedgerError::Exhausted { .. }) => (FinishReason::Allowance, None),
        RuntimeError::TooLate => (FinishReason::Deadline, None),
        _ => (FinishReason::Error, None),
    };
    Outcome {
        finish_reason,
        error: (finish_reason == FinishReason::Error).then_some(error),
        limited,
        ..Outcome::nothing(String::new())
    }
}
