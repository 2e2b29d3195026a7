//! An answer as it comes: server-sent events with pieces of text, then the usage.

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// A request that came to its end. Times are since the load began.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answered {
    pub(super) begun: Duration,
    /// When each piece of text was received.
    pub(super) pieces: Vec<Duration>,
    /// When the last piece was, or what said that it was the last.
    pub(super) ended: Duration,
    pub(super) input_tokens: u64,
    pub(super) cached_tokens: u64,
    /// What the server says it generated; `None` if it says nothing.
    pub(super) reported_tokens: Option<u64>,
}

impl Answered {
    pub(super) fn ttft(&self) -> Option<Duration> {
        self.pieces.first().map(|first| *first - self.begun)
    }

    pub(super) fn latency(&self) -> Duration {
        self.ended - self.begun
    }

    /// As the server counts them; else its pieces, most of which are a token.
    pub(super) fn output_tokens(&self) -> u64 {
        self.reported_tokens.unwrap_or(self.pieces.len() as u64)
    }

    /// Between a piece and the next.
    pub(super) fn gaps(&self) -> impl Iterator<Item = Duration> + '_ {
        self.pieces.windows(2).map(|pair| pair[1] - pair[0])
    }
}

/// The data of server-sent events, out of bytes that are cut anywhere.
#[derive(Default)]
struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
}

impl Events {
    /// Calls `event` with each that is complete.
    fn take<E>(&mut self, mut bytes: &[u8], mut event: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
            if let Some(data) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            } else if line.is_empty() && !self.data.is_empty() {
                event(&self.data)?;
                self.data.clear();
            }
            self.line.clear();
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    /// What the model thinks, by the two names that it goes by.
    #[serde(borrow)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning: Option<Cow<'a, str>>,
    tool_calls: Option<Vec<Value>>,
}

impl Choice<'_> {
    /// Whether it brings anything of the answer: the role that begins a chat does not.
    fn is_piece(&self) -> bool {
        let delta = self.delta.as_ref();
        let texts = delta.map(|delta| [&delta.content, &delta.reasoning_content, &delta.reasoning]);
        let mut texts = texts.into_iter().flatten().chain([&self.text]).flatten();
        texts.any(|text| !text.is_empty())
            || delta.and_then(|delta| delta.tool_calls.as_ref()).is_some_and(|calls| !calls.is_empty())
    }
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

/// What was read of an answer so far.
pub(super) struct Reading {
    events: Events,
    answer: Answered,
    is_whole: bool,
}

impl Reading {
    pub(super) fn new(begun: Duration) -> Self {
        let answer = Answered {
            begun,
            pieces: Vec::new(),
            ended: begun,
            input_tokens: 0,
            cached_tokens: 0,
            reported_tokens: None,
        };
        Self { events: Events::default(), answer, is_whole: false }
    }

    /// Bytes that were received at that time.
    pub(super) fn take(&mut self, bytes: &[u8], at: Duration) -> Result<(), String> {
        let (answer, is_whole) = (&mut self.answer, &mut self.is_whole);
        self.events.take(bytes, |data| {
            if data == b"[DONE]" {
                *is_whole = true;
                return Ok(());
            }
            let chunk: Chunk<'_> =
                serde_json::from_slice(data).map_err(|error| format!("an event cannot be read: {error}"))?;
            if let Some(error) = chunk.error {
                return Err(said(&error));
            }
            for choice in chunk.choices.iter().flatten() {
                if choice.is_piece() {
                    answer.pieces.push(at);
                }
                *is_whole |= choice.finish_reason.is_some();
                answer.ended = at;
            }
            if let Some(usage) = chunk.usage {
                answer.input_tokens = usage.prompt_tokens;
                answer.cached_tokens =
                    usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
                answer.reported_tokens = usage.completion_tokens;
            }
            Ok(())
        })
    }

    /// Nothing more comes.
    pub(super) fn end(self) -> Result<Answered, String> {
        if self.is_whole { Ok(self.answer) } else { Err("the answer broke off".to_owned()) }
    }
}

/// What a server says went wrong: `{"error": {"message": ...}}` as OpenAI has it, or something near.
pub(super) fn said(error: &Value) -> String {
    let message = [&error["message"], &error["error"]["message"], &error["error"], &error["detail"], error];
    let message = message.into_iter().find_map(Value::as_str);
    message.map_or_else(|| error.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stream: &str, cut_bytes: usize) -> Result<Answered, String> {
        let mut reading = Reading::new(Duration::from_millis(1));
        for (index, bytes) in stream.as_bytes().chunks(cut_bytes).enumerate() {
            reading.take(bytes, Duration::from_millis(10 + index as u64))?;
        }
        reading.end()
    }

    const CHAT: &str = concat!(
        ": hello\n\n",
        "data: {\"choices\": [{\"index\": 0, \"delta\": {\"role\": \"assistant\", \"content\": \"\"}}]}\n\n",
        "event: message\ndata: {\"choices\": [{\"delta\": {\"content\": \"Gr\\u00fc\\\"n\"}, \"finish_reason\": null}]}\r\n\r\n",
        "data:{\"choices\": [{\"delta\": {\"reasoning_content\": \"hm\"}}], \"usage\": null}\n\n",
        "data: {\"choices\": [{\"delta\":\ndata:  {}, \"finish_reason\": \"stop\"}]}\n\n",
        "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 9, \"completion_tokens\": 4, ",
        "\"prompt_tokens_details\": {\"cached_tokens\": 8}}}\n\ndata: [DONE]\n\n",
    );

    #[test]
    fn streams_are_read_wherever_they_are_cut() {
        for cut_bytes in [1, 2, 7, 64, 10_000] {
            let answer = read(CHAT, cut_bytes).expect("it is whole");
            assert_eq!(answer.pieces.len(), 2, "neither the role nor the end is a piece");
            assert_eq!((answer.input_tokens, answer.cached_tokens, answer.output_tokens()), (9, 8, 4));
            assert!(answer.pieces.is_sorted() && answer.ended >= answer.pieces[1]);
        }
        let answer = read(CHAT, 1).expect("it is whole");
        assert!(answer.ttft().expect("there is a piece") > Duration::from_millis(9), "the role is no first token");
        assert!(answer.ended > answer.pieces[1], "what says that it ended came later");
        assert_eq!(answer.gaps().count(), 1);
    }

    #[test]
    fn without_usage_pieces_are_counted() {
        let stream = "data: {\"choices\": [{\"text\": \"a\", \"finish_reason\": null}]}\n\n".repeat(3)
            + "data: {\"choices\": [{\"text\": \"\", \"finish_reason\": \"length\"}]}\n\n";
        let answer = read(&stream, 50).expect("it is whole");
        assert_eq!((answer.reported_tokens, answer.output_tokens(), answer.input_tokens), (None, 3, 0));
    }

    #[test]
    fn what_breaks_off_or_fails_is_no_answer() {
        assert_eq!(read("data: {\"choices\": [{\"text\": \"a\"}]}\n\n", 5), Err("the answer broke off".to_owned()));
        assert_eq!(read("", 1), Err("the answer broke off".to_owned()));
        let failed = "data: {\"error\": {\"message\": \"no card\", \"code\": 500}}\n\n";
        assert_eq!(read(failed, 9), Err("no card".to_owned()));
        assert!(read("data: {\"choices\"\n\n", 9).is_err_and(|error| error.starts_with("an event cannot be read")));
    }
}
