//! Answers as a stream of server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use serde::Serialize;
use tokrun_runtime::{Delta, Event, Outcome, RuntimeError};

use crate::answers::{Answers, came_to_nothing};
use crate::error::ApiError;

/// So often a stream that has nothing to say shows that it lives, so that nothing between here and the client gives up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Writes answers in one of the forms that clients know.
pub(crate) trait Scribe: Send + 'static {
    /// Before anything else.
    fn open(&mut self, out: &mut Frames);
    /// Paid text.
    fn delta(&mut self, choice: usize, delta: Delta, out: &mut Frames);
    /// The end of one answer.
    fn finished(&mut self, choice: usize, outcome: Outcome, out: &mut Frames);
    /// A failure on the way; nothing comes after it.
    fn failed(&mut self, error: &ApiError, out: &mut Frames);
    /// After the end of the last answer.
    fn close(&mut self, out: &mut Frames);
}

/// What is to be sent next.
#[derive(Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// An event of data alone.
    pub(crate) fn data(&mut self, data: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        // Our own types; and writing to memory does not fail.
        serde_json::to_writer(&mut self.0, data).expect("our own types are always valid JSON");
        self.0.extend_from_slice(b"\n\n");
    }

    /// An event with a name.
    pub(crate) fn event(&mut self, name: &str, data: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.data(data);
    }

    /// As it stands.
    pub(crate) fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }
}

enum Stage<S> {
    Opening(Answers, S),
    Going(Answers, S),
    Done,
}

/// The response that sends answers as they come. What is ready goes out together; nothing more is taken from the engine
/// until the connection asks for it.
pub(crate) fn response(answers: Answers, scribe: impl Scribe) -> Response {
    let body = stream::unfold(Stage::Opening(answers.paced(), scribe), async |stage| {
        let mut frames = Frames::default();
        let next = match stage {
            Stage::Opening(answers, mut scribe) => {
                scribe.open(&mut frames);
                Stage::Going(answers, scribe)
            }
            Stage::Going(answers, scribe) => go_on(answers, scribe, &mut frames).await,
            Stage::Done => return None,
        };
        Some((Ok::<_, Infallible>(Bytes::from(frames.0)), next))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies of the nginx kind would gather the events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn go_on<S: Scribe>(mut answers: Answers, mut scribe: S, frames: &mut Frames) -> Stage<S> {
    let first = match tokio::time::timeout(KEEP_ALIVE, answers.next()).await {
        Ok(first) => first,
        Err(_) => {
            frames.raw(": keep-alive\n\n");
            return Stage::Going(answers, scribe);
        }
    };
    let mut next = first;
    while let Some((choice, event)) = next {
        match event {
            Event::Delta(delta) => scribe.delta(choice, delta, frames),
            Event::Finished(outcome) => {
                if let Some(error) = &outcome.error {
                    scribe.failed(&error.into(), frames);
                    return Stage::Done;
                }
                if answers.count() == 1 && came_to_nothing(&outcome) {
                    scribe.failed(&ApiError::too_late(), frames);
                    return Stage::Done;
                }
                scribe.finished(choice, *outcome, frames);
            }
        }
        if answers.all_finished() {
            scribe.close(frames);
            return Stage::Done;
        }
        next = answers.next_ready();
        if next.is_none() {
            return Stage::Going(answers, scribe);
        }
    }
    scribe.failed(&(&RuntimeError::Stopped).into(), frames);
    Stage::Done
}
