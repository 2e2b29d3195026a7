//! tokrun as a library: one metered answer.
//!
//! `cargo run --release --example metered -- MODEL "Why is the sky blue?"` with a GGUF file or a directory of safetensors.
//! It keeps its books in a file of its own, and shows what was paid.
#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use tokrun_engine::{ChatMessage, ChatTemplate, EngineOptions, SamplingParams, Tokenizer};
use tokrun_ledger::{GrantRequest, Ledger, Price};
use tokrun_model::{LoadOptions, ModelFile};
use tokrun_runtime::{Event, GenerateRequest, LedgerMeter, Payer, Prompt, Runtime, TextModel};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(question)) = (arguments.next(), arguments.next()) else {
        return Err("usage: metered MODEL QUESTION".into());
    };

    // A wallet with 200 credits: at the default price a credit is a token.
    let ledger = Ledger::open(Path::new("metered-example.db"))?;
    if ledger.wallet("ada").is_err() {
        ledger.create_wallet("ada", None)?;
        ledger.grant(GrantRequest::new("ada", "200".parse()?))?;
    }

    let file = ModelFile::open(Path::new(&path))?;
    let model = TextModel {
        name: path,
        executor: file.load(&LoadOptions::default())?,
        tokenizer: Arc::new(Tokenizer::from_assets(file.assets())?),
        template: ChatTemplate::compile(file.assets()),
        end_tokens: file.assets().end_token_ids.clone(),
    };
    let runtime = Runtime::start(model, Arc::new(LedgerMeter(ledger.clone())), EngineOptions::default())?;

    let mut generation = runtime.generate(GenerateRequest {
        request_id: None,
        prompt: Prompt::Chat(vec![ChatMessage::new("user", question)].into()),
        max_tokens: Some(100),
        sampling: SamplingParams::greedy(),
        stop: Vec::new(),
        grammar: None,
        ignore_eos: false,
        splits_reasoning: false,
        logprobs: None,
        priority: 0,
        deadline: None,
        payer: Payer { wallet: "ada".to_owned(), tags: BTreeMap::new(), ..Payer::default() },
        price: Price::default(),
    })?;
    while let Some(event) = generation.next_event() {
        match event {
            // What arrives here is paid, durably.
            Event::Delta(delta) => {
                print!("{}", delta.text);
                std::io::stdout().flush()?;
            }
            Event::Finished(outcome) => {
                println!("\n[{} tokens, ended by {}]", outcome.usage.completion_tokens, outcome.finish_reason);
            }
        }
    }
    let wallet = ledger.wallet("ada")?;
    println!("ada has {} credits left", wallet.balance);
    Ok(())
}
