//! `tokrun chat`: a conversation. Its history lives in memory; `/save` alone writes it down.

use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::sync::Arc;

use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use tokrun_engine::{ChatMessage, Grammar};
use tokrun_ledger::Ledger;
use tokrun_model::catalogue::Catalogue;
use tokrun_runtime::{LedgerMeter, Meter, Payer, Prompt};

use super::answer;
use crate::args::{ChatArgs, Format};
use crate::failure::{Failure, Status};
use crate::load::{self, Found, Loaded};
use crate::{home, interrupt, output};

const HELP: &str = "\
/help            this list
/system TEXT     begin anew with this system message
/reset           begin anew
/retry           answer the last message again
/balance         what the wallet has left
/save FILE       write the conversation to a file, as JSON
/quit            leave (Ctrl-D does too)
Ctrl-C ends an answer; \"\"\" begins and ends a message of several lines.";

pub(crate) fn run(args: ChatArgs, format: Format) -> Result<Status, Failure> {
    if format == Format::Json {
        return Err(Failure::new(Status::Usage, "usage", "a chat prints text")
            .hint("use `tokrun generate --output json` for programs"));
    }
    answer::check(&args.answer)?;
    load::prepare_threads(&args.answer.compute.engine, args.answer.compute.threads)?;
    interrupt::install(format)?;
    let grammar = answer::grammar(&args.answer.form)?;
    let home = home::directory()?;
    let catalogue = Catalogue::load(&home)?;
    let payer = answer::payer(&args.answer.payer, &catalogue)?;
    let ledger = answer::ledger()?;
    let found = load::find(&home, catalogue, args.answer.model.as_deref())?;
    let compute = &args.answer.compute;
    let meter: Arc<dyn Meter> = Arc::new(LedgerMeter(ledger.clone()));
    let loaded = load::start(&found, || Ok(meter), &compute.load_options(), compute.engine_options())?;
    if let Some(grammar) = &grammar {
        loaded.runtime.check_grammar(grammar)?;
    }
    let messages = args.answer.system.iter().map(|system| answer::message("system", system)).collect();
    Chat { args, payer, ledger, found, loaded, grammar, messages }.run()
}

struct Chat {
    args: ChatArgs,
    payer: Payer,
    ledger: Ledger,
    found: Found,
    loaded: Loaded,
    /// The form of every answer.
    grammar: Option<Grammar>,
    messages: Vec<ChatMessage>,
}

/// How a turn ended.
struct Turned {
    status: Status,
    reader_left: bool,
}

/// What a line asks for.
enum Turn {
    Answer,
    Nothing,
    Quit,
}

impl Chat {
    fn run(mut self) -> Result<Status, Failure> {
        let mut input = Input::new()?;
        if input.is_terminal() {
            say!("{} · /help lists the commands", self.found.name);
        }
        let mut status = Status::Done;
        while let Some(line) = input.next_message()? {
            let turn_begins = self.messages.clone();
            match self.take(&line) {
                Turn::Quit => break,
                Turn::Nothing => {}
                Turn::Answer => {
                    let answered = self.answer(turn_begins)?;
                    status = answered.status;
                    if answered.reader_left || status == Status::Allowance && !input.is_terminal() {
                        break;
                    }
                }
            }
        }
        Ok(status)
    }

    fn take(&mut self, line: &str) -> Turn {
        let Some(command) = line.strip_prefix('/') else {
            self.messages.push(answer::message("user", line));
            return Turn::Answer;
        };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "quit" | "exit" | "bye" => return Turn::Quit,
            "help" | "?" => say!("{HELP}"),
            "reset" | "clear" => self.messages.retain(|message| message.role == "system"),
            "system" => self.messages = vec![answer::message("system", rest)],
            "retry" => return self.retry(),
            "balance" => self.balance(),
            "save" if !rest.is_empty() => self.save(Path::new(rest)),
            "save" => say!("/save needs the name of a file"),
            _ => say!("there is no /{name}; /help lists the commands"),
        }
        Turn::Nothing
    }

    fn retry(&mut self) -> Turn {
        if self.messages.last().is_some_and(|message| message.role == "assistant") {
            self.messages.pop();
        }
        if self.messages.last().is_some_and(|message| message.role == "user") {
            Turn::Answer
        } else {
            say!("there is nothing to answer again");
            Turn::Nothing
        }
    }

    fn balance(&self) {
        match self.ledger.wallet(&self.payer.wallet) {
            Ok(wallet) => say!("{} has {}", wallet.name, output::credits(wallet.balance)),
            Err(error) => Failure::from(error).report(Format::Text),
        }
    }

    fn save(&self, path: &Path) {
        let turns: Vec<_> = self
            .messages
            .iter()
            .map(|message| serde_json::json!({ "role": message.role, "content": message.content }))
            .collect();
        let text = serde_json::to_string_pretty(&turns).expect("strings are always valid JSON");
        match std::fs::write(path, text + "\n") {
            Ok(()) => say!("saved to {}", path.display()),
            Err(error) => say!("cannot save to {}: {error}", path.display()),
        }
    }

    /// One metered answer; what goes wrong with it does not end the conversation.
    fn answer(&mut self, turn_begins: Vec<ChatMessage>) -> Result<Turned, Failure> {
        let prompt = Prompt::Chat(self.messages.clone().into());
        let request = answer::request(prompt, self.grammar.clone(), &self.args.answer, &self.payer, &self.found)?;
        let generation = match self.loaded.runtime.generate(request) {
            Ok(generation) => generation,
            Err(error) => {
                let failure = Failure::from(&error);
                failure.report(Format::Text);
                if failure.status == Status::Usage {
                    say!("/reset begins anew, with room for an answer");
                }
                self.messages = turn_begins;
                return Ok(Turned { status: failure.status, reader_left: false });
            }
        };
        let answered = answer::follow(generation, answer::to_stdout)?;
        let outcome = &answered.outcome;
        // Whether anybody still reads is known already, or shows with the next answer.
        let _ = answer::to_stdout("\n");
        if let Some(error) = &outcome.error {
            Failure::from(error).report(Format::Text);
        } else if let Some(failure) = answer::cut_short(outcome, &self.payer.wallet) {
            failure.report(Format::Text);
        }
        if !self.args.no_stats {
            say!("{}", answer::figures(&self.found.name, &self.loaded.runtime.info().device, outcome));
        }
        let status = answered.status();
        self.messages.push(answer::message("assistant", answered.outcome.text));
        let status = if status == Status::Interrupted { Status::Done } else { status };
        Ok(Turned { status, reader_left: answered.reader_left })
    }
}

/// Lines from a terminal, with editing and history, or from a pipe.
enum Input {
    Terminal(Box<rustyline::Editor<(), MemHistory>>),
    Pipe(io::Lines<io::StdinLock<'static>>),
}

impl Input {
    fn new() -> Result<Self, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe(io::stdin().lock().lines()));
        }
        let editor = rustyline::Editor::with_history(rustyline::Config::default(), MemHistory::new())
            .map_err(|error| Failure::new(Status::Failed, "terminal", error.to_string()))?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next message or command; `None` at the end.
    fn next_message(&mut self) -> Result<Option<String>, Failure> {
        loop {
            let Some(line) = self.line("> ")? else { return Ok(None) };
            let line = line.trim();
            let message = match line.strip_prefix("\"\"\"") {
                Some(first) => self.block(first)?,
                None => line.to_owned(),
            };
            if !message.is_empty() {
                return Ok(Some(message));
            }
        }
    }

    /// Lines up to the closing `"""`.
    fn block(&mut self, first: &str) -> Result<String, Failure> {
        let mut lines = vec![first.to_owned()];
        while !lines.last().is_some_and(|line| line.trim_end().ends_with("\"\"\"")) {
            let Some(line) = self.line("… ")? else { break };
            lines.push(line);
        }
        let text = lines.join("\n");
        let text = text.trim_end();
        Ok(text.strip_suffix("\"\"\"").unwrap_or(text).trim().to_owned())
    }

    fn line(&mut self, prompt: &str) -> Result<Option<String>, Failure> {
        match self {
            Self::Pipe(lines) => {
                lines.next().transpose().map_err(|error| Failure::io("cannot read from stdin", &error))
            }
            Self::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => {
                    // A line that cannot be remembered can still be answered.
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Some(String::new())),
                Err(ReadlineError::Eof) => Ok(None),
                Err(error) => Err(Failure::new(Status::Failed, "terminal", error.to_string())),
            },
        }
    }
}
