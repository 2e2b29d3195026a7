//! What an answer says: thoughts, words and calls of tools, told apart as they come.

use tokrun_runtime::{Outcome, ToolPiece, ToolReader, ToolStyle};

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Thoughts before the answer.
    Reasoning(String),
    /// Words to the user.
    Text(String),
    /// A call begins, of this name and id.
    Call { id: String, name: String },
    /// More of the arguments of the call that began last.
    Arguments(String),
}

/// How to listen to the answers of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hearing {
    tools: Option<(ToolStyle, Vec<String>)>,
}

/// Listens to one answer.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    reader: Option<ToolReader>,
}

/// A whole answer.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) reasoning: String,
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
}

/// A call, with its arguments as JSON text.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

impl Hearing {
    pub(crate) fn of_tools(style: ToolStyle, names: Vec<String>) -> Self {
        Self { tools: Some((style, names)) }
    }

    pub(crate) fn listener(&self) -> Listener {
        Listener { reader: self.tools.as_ref().map(|(style, names)| ToolReader::new(*style, names.clone())) }
    }

    /// What a whole answer says.
    pub(crate) fn said(&self, outcome: &Outcome) -> Said {
        let mut listener = self.listener();
        let mut pieces = listener.hear(outcome.reasoning.clone(), outcome.text.clone());
        pieces.extend(listener.end());
        let mut said = Said::default();
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => said.reasoning.push_str(&text),
                Piece::Text(text) => said.text.push_str(&text),
                Piece::Call { id, name } => said.calls.push(Call { id, name, arguments: String::new() }),
                Piece::Arguments(text) => {
                    said.calls.iter_mut().last().into_iter().for_each(|call| call.arguments += &text)
                }
            }
        }
        said
    }
}

impl Listener {
    /// More of the answer.
    pub(crate) fn hear(&mut self, reasoning: String, text: String) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        if !reasoning.is_empty() {
            pieces.push(Piece::Reasoning(reasoning));
        }
        match &mut self.reader {
            Some(reader) => pieces.extend(reader.push(&text).into_iter().map(Piece::from)),
            None if text.is_empty() => {}
            None => pieces.push(Piece::Text(text)),
        }
        pieces
    }

    /// The answer has ended.
    pub(crate) fn end(&mut self) -> Vec<Piece> {
        self.reader.iter_mut().flat_map(ToolReader::finish).map(Piece::from).collect()
    }

    /// Whether there was a call.
    pub(crate) fn has_called(&self) -> bool {
        self.reader.as_ref().is_some_and(ToolReader::has_called)
    }
}

impl From<ToolPiece> for Piece {
    fn from(piece: ToolPiece) -> Self {
        match piece {
            ToolPiece::Text(text) => Self::Text(text),
            ToolPiece::Call(name) => {
                Self::Call { id: uuid::Uuid::new_v4().simple().to_string()[..24].to_owned(), name }
            }
            ToolPiece::Arguments(text) => Self::Arguments(text),
        }
    }
}
