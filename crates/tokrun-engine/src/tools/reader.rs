//! Calls in an answer, recognised as its text comes.

use serde_json::Value;

use super::{Form, ToolStyle};

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolPiece {
    /// Words to the user.
    Text(String),
    /// A call of this tool begins.
    Call(String),
    /// More of the arguments, JSON text, of the call that began last.
    Arguments(String),
}

/// Tells the calls in an answer from its words. What does not turn out to be a call is words, as it stands; white space
/// around calls belongs to neither.
#[derive(Debug)]
pub struct ToolReader {
    form: Form,
    tools: Vec<String>,
    place: Place,
    /// Not decided yet.
    held: String,
    has_said: bool,
    has_called: bool,
}

#[derive(Debug)]
enum Place {
    Words,
    /// Past what opens calls, which stands here should there be none.
    Calls {
        raw: String,
        called: bool,
    },
    Call {
        raw: String,
        called: bool,
        call: Box<Call>,
    },
}

impl ToolReader {
    /// Of a model that was told of these tools.
    pub fn new(style: ToolStyle, tools: impl IntoIterator<Item = String>) -> Self {
        let tools = tools.into_iter().collect();
        Self { form: style.form, tools, place: Place::Words, held: String::new(), has_said: false, has_called: false }
    }

    /// Whether there was a call.
    pub fn has_called(&self) -> bool {
        self.has_called
    }

    /// Takes more of the answer.
    pub fn push(&mut self, text: &str) -> Vec<ToolPiece> {
        let mut pieces = Vec::new();
        self.held.push_str(text);
        while self.step(&mut pieces) {}
        pieces
    }

    /// The answer has ended.
    pub fn finish(&mut self) -> Vec<ToolPiece> {
        let mut pieces = Vec::new();
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.place, Place::Words) {
            Place::Words if self.has_called && held.trim().is_empty() => {}
            Place::Words => self.say(held, &mut pieces),
            Place::Calls { raw, called: false } => self.say(raw + &held, &mut pieces),
            Place::Call { raw, called: false, call } if !call.is_told => self.say(raw + &call.raw, &mut pieces),
            Place::Calls { .. } | Place::Call { .. } => {}
        }
        pieces
    }

    /// One step through what is held; whether there may be another.
    fn step(&mut self, pieces: &mut Vec<ToolPiece>) -> bool {
        match std::mem::replace(&mut self.place, Place::Words) {
            Place::Words => self.read_words(pieces),
            Place::Calls { raw, called } => self.read_between(raw, called, pieces),
            Place::Call { raw, called, call } => self.read_call(raw, called, call, pieces),
        }
    }

    fn read_words(&mut self, pieces: &mut Vec<ToolPiece>) -> bool {
        let words = self.held.trim_start();
        if self.form == Form::Bare && !self.has_said && words.starts_with('{') {
            self.held = words.to_owned();
            self.place = Place::Calls { raw: String::new(), called: false };
            return true;
        }
        let found = self.form.opens().iter().filter_map(|open| Some((self.held.find(open)?, *open))).min();
        if let Some((at, open)) = found {
            let rest = self.held.split_off(at + open.len());
            self.held.truncate(at);
            let words = std::mem::replace(&mut self.held, rest);
            self.say(words.trim_end().to_owned(), pieces);
            self.place = Place::Calls { raw: open.to_owned(), called: false };
            return true;
        }
        let safe_bytes = self.safe_bytes();
        let rest = self.held.split_off(safe_bytes);
        let words = std::mem::replace(&mut self.held, rest);
        self.say(words, pieces);
        false
    }

    /// How much of what is held is words, whatever comes: a beginning of what opens calls is not, nor is the white space
    /// that may turn out to stand before it.
    fn safe_bytes(&self) -> usize {
        let begins = |tail: &str| self.form.opens().iter().any(|open| open.starts_with(tail));
        let tails = self.held.char_indices().map(|(at, _)| at);
        let open = tails.clone().find(|at| begins(&self.held[*at..])).unwrap_or(self.held.len());
        self.held[..open].trim_end().len()
    }

    fn say(&mut self, mut words: String, pieces: &mut Vec<ToolPiece>) {
        if self.has_called && !self.has_said {
            words = words.trim_start().to_owned();
        }
        if !words.is_empty() {
            self.has_said = true;
            pieces.push(ToolPiece::Text(words));
        }
    }

    fn read_between(&mut self, mut raw: String, called: bool, pieces: &mut Vec<ToolPiece>) -> bool {
        let Some(next) = self.held.chars().next() else {
            self.place = Place::Calls { raw, called };
            return false;
        };
        if next == '{' {
            self.place = Place::Call { raw, called, call: Box::default() };
            return true;
        }
        if let Some(close) = self.form.close() {
            if let Some(rest) = self.held.strip_prefix(close) {
                self.held = rest.to_owned();
                if !called {
                    self.say(raw + close, pieces);
                }
                return true;
            }
            if close.starts_with(self.held.as_str()) {
                self.place = Place::Calls { raw, called };
                return false;
            }
        }
        // Another one may open where the last has not been closed.
        let reopened = self.form.opens().iter().find_map(|open| self.held.strip_prefix(open));
        if let (true, Some(rest)) = (called, reopened) {
            self.held = rest.to_owned();
        } else if next.is_whitespace() || "[],;".contains(next) || called {
            // What stands between calls; of what else a model says there, nothing can be made.
            self.held.remove(0);
            raw.push(next);
        } else {
            self.say(raw, pieces);
            return true;
        }
        self.place = Place::Calls { raw, called };
        true
    }

    fn read_call(&mut self, raw: String, called: bool, mut call: Box<Call>, pieces: &mut Vec<ToolPiece>) -> bool {
        let held = std::mem::take(&mut self.held);
        let mut characters = held.chars();
        while !call.is_complete() {
            let Some(character) = characters.next() else { break };
            call.push(character);
        }
        let is_complete = call.is_complete();
        self.held = characters.as_str().to_owned();
        // A whole answer that is an object may well be meant for the user.
        let may_be = |name: &str| self.form != Form::Bare || self.tools.iter().any(|tool| tool == name);
        let told = call.tell(may_be, pieces);
        self.has_called |= told;
        self.place = match (is_complete, told) {
            (false, _) => Place::Call { raw, called, call },
            (true, true) => Place::Calls { raw, called: true },
            (true, false) => {
                self.say(raw + &call.raw, pieces);
                Place::Words
            }
        };
        is_complete
    }
}

/// One call as it comes.
#[derive(Debug, Default)]
struct Call {
    raw: String,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// Where the string begins that is read, or was read last.
    string_from: usize,
    /// What the value belongs to that is read now.
    key: Option<String>,
    name: Option<String>,
    arguments_from: Option<usize>,
    arguments_end: Option<usize>,
    /// Arguments that were told already, up to there.
    told_to: usize,
    is_told: bool,
}

impl Call {
    fn is_complete(&self) -> bool {
        self.depth == 0 && !self.raw.is_empty()
    }

    fn push(&mut self, character: char) {
        let at = self.raw.len();
        self.raw.push(character);
        if self.in_string {
            match character {
                _ if self.is_escaped => self.is_escaped = false,
                '\\' => self.is_escaped = true,
                '"' => {
                    self.in_string = false;
                    self.end_string();
                }
                _ => {}
            }
            return;
        }
        match character {
            '"' => (self.in_string, self.string_from) = (true, at),
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                self.end_value(if self.depth == 0 { at } else { at + 1 });
            }
            ':' if self.depth == 1 && self.is_arguments() => {
                self.arguments_from.get_or_insert(at + 1);
            }
            ',' if self.depth == 1 => {
                self.end_value(at);
                self.key = None;
            }
            _ => {}
        }
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_deref(), Some("arguments" | "parameters"))
    }

    fn end_string(&mut self) {
        if self.depth != 1 {
            return;
        }
        let Ok(text) = serde_json::from_str::<String>(&self.raw[self.string_from..]) else { return };
        match self.key.as_deref() {
            None => self.key = Some(text),
            Some("name" | "function") => self.name = Some(text),
            Some(_) => {}
        }
    }

    /// A value may end here; whether it is that of the arguments is seen by the depth.
    fn end_value(&mut self, at: usize) {
        if self.depth <= 1 && self.arguments_from.is_some() && self.is_arguments() {
            self.arguments_end.get_or_insert(at);
        }
    }

    /// Tells what is known and was not told; whether it is a call at all.
    fn tell(&mut self, may_be: impl Fn(&str) -> bool, pieces: &mut Vec<ToolPiece>) -> bool {
        let is_valid = || serde_json::from_str::<Value>(&self.raw).is_ok();
        if !self.is_told {
            let Some(name) = self.name.as_deref().filter(|name| may_be(name)) else { return false };
            if self.arguments_from.is_none() && !(self.is_complete() && is_valid()) {
                return false;
            }
            pieces.push(ToolPiece::Call(name.to_owned()));
            self.is_told = true;
        }
        let arguments = match self.arguments_from {
            Some(from) => self.raw[from..self.arguments_end.unwrap_or(self.raw.len())].trim_start(),
            None => "",
        };
        let from = self.raw.len().min(self.told_to);
        if arguments.starts_with('{') {
            let end = self.arguments_end.unwrap_or(self.raw.len());
            let start = from.max(end - arguments.len());
            if end > start {
                pieces.push(ToolPiece::Arguments(self.raw[start..end].to_owned()));
                self.told_to = end;
            }
        } else if self.is_complete() {
            pieces.push(ToolPiece::Arguments(unquoted(arguments)));
        }
        true
    }
}

/// Arguments that are no object: some models write the object as a string, or leave it out.
fn unquoted(arguments: &str) -> String {
    match serde_json::from_str(arguments.trim_end()) {
        Ok(Value::String(text)) if !text.trim().is_empty() => text,
        _ => "{}".to_owned(),
    }
}
