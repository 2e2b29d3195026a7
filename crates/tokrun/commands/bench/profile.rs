//! `--profile`: what share of the time each operation takes, in prefill and in decoding, without an engine around it.

use serde_json::{Value, json};
use tokrun_engine::TokenId;
use tokrun_model::{Executor, OpTime};

use super::bare::Sequence;
use super::test::{Test, tokens};
use super::{Conditions, Found};
use crate::args::{BenchArgs, Device, Format};
use crate::failure::{Failure, Status};
use crate::load;

pub(super) fn run(args: &BenchArgs, device: Device, found: &Found, format: Format) -> Result<Status, Failure> {
    let tests = Test::all(args);
    let mut rows = Vec::new();
    for threads in super::threads(args) {
        for &n_batch in &args.n_batch {
            let conditions = Conditions { found, device, threads, n_batch, fsync_us: None };
            rows.extend(profile_all(args, &conditions, &tests)?);
        }
    }
    print(&rows, format);
    Ok(Status::Done)
}

/// The operations of one test.
struct Profile {
    test: String,
    threads: Option<u16>,
    n_batch: usize,
    operations: Vec<OpTime>,
}

fn profile_all(args: &BenchArgs, conditions: &Conditions<'_>, tests: &[Test]) -> Result<Vec<Profile>, Failure> {
    let mut options = args.engine.load_options(conditions.device, conditions.threads, 1);
    options.context_tokens = options.context_tokens.or(tests.iter().map(Test::context_tokens).max());
    options.profile = true;
    let (mut model, info) = load::open(conditions.found, &options)?;
    for test in tests {
        test.check(model.executor.info())?;
    }
    let mut profiles = Vec::new();
    for test in tests {
        let operations = profile(&mut *model.executor, test, conditions.n_batch, info.vocab_size, args.repetitions)?;
        if operations.is_empty() {
            let what = format!("{} does not measure its operations", model.executor.info().backend);
            return Err(Failure::new(Status::Usage, "usage", what).hint("use a model that the native engine knows"));
        }
        let (threads, n_batch) = (conditions.threads, conditions.n_batch);
        profiles.push(Profile { test: test.name(), threads, n_batch, operations });
    }
    Ok(profiles)
}

/// Runs a test once to warm up and then as often as asked, and adds up its operations.
fn profile(
    executor: &mut dyn Executor,
    test: &Test,
    n_batch: usize,
    vocab_size: usize,
    repetitions: u16,
) -> Result<Vec<OpTime>, Failure> {
    let before = tokens(test.depth, vocab_size, 0);
    let timed = tokens(test.prompt + test.gen_tokens, vocab_size, 1);
    let (prompt, decoded) = timed.split_at(test.prompt);
    let mut total: Vec<OpTime> = Vec::new();
    for repetition in 0..=repetitions {
        run_once(executor, &before, prompt, decoded, n_batch, |operations| {
            if repetition > 0 {
                add(&mut total, &operations);
            }
        })?;
    }
    Ok(total)
}

fn run_once(
    executor: &mut dyn Executor,
    before: &[TokenId],
    prompt: &[TokenId],
    decoded: &[TokenId],
    n_batch: usize,
    see: impl FnOnce(Vec<OpTime>),
) -> Result<(), Failure> {
    let mut sequence = Sequence::begin(executor, before.len() + prompt.len() + decoded.len())?;
    sequence.skip(before, n_batch)?;
    sequence.take_profile();
    sequence.answer(prompt, n_batch)?;
    for token in decoded.chunks(1) {
        sequence.answer(token, 1)?;
    }
    see(sequence.take_profile());
    Ok(())
}

fn add(total: &mut Vec<OpTime>, operations: &[OpTime]) {
    for operation in operations {
        match total.iter_mut().find(|known| known.op == operation.op) {
            Some(known) => {
                known.calls += operation.calls;
                known.total_ns += operation.total_ns;
            }
            None => total.push(*operation),
        }
    }
}

impl Profile {
    fn total_ns(&self) -> u64 {
        self.operations.iter().map(|operation| operation.total_ns).sum()
    }

    fn share(&self, operation: &OpTime) -> f64 {
        operation.total_ns as f64 / self.total_ns().max(1) as f64
    }

    fn threads(&self) -> usize {
        self.threads.map_or_else(tokrun_kernels::cpu::threads_available, usize::from)
    }

    /// One object an operation.
    fn json(&self) -> Vec<Value> {
        let object = |operation: &OpTime| {
            json!({
                "test": self.test,
                "n_threads": self.threads(),
                "n_batch": self.n_batch,
                "op": operation.op,
                "calls": operation.calls,
                "total_ns": operation.total_ns,
                "share": self.share(operation),
            })
        };
        self.operations.iter().map(object).collect()
    }
}

fn print(profiles: &[Profile], format: Format) {
    let rows: Vec<Value> = profiles.iter().flat_map(Profile::json).collect();
    match format {
        Format::Json => out!("{}", Value::from(rows)),
        Format::Jsonl => rows.iter().for_each(|row| out!("{row}")),
        Format::Csv => {
            out!("test,n_threads,n_batch,op,calls,total_ns,share");
            for row in &rows {
                let values: Vec<String> =
                    row.as_object().into_iter().flatten().map(|(_, value)| super::report::csv_field(value)).collect();
                out!("{}", values.join(","));
            }
        }
        Format::Text | Format::Md | Format::Html => print_md(profiles),
    }
}

fn print_md(profiles: &[Profile]) {
    out!("| threads | n_batch | test | operation | calls | µs a call | share |");
    out!("| ---: | ---: | --- | --- | ---: | ---: | ---: |");
    for profile in profiles {
        let mut operations = profile.operations.clone();
        operations.sort_by_key(|operation| std::cmp::Reverse(operation.total_ns));
        for operation in &operations {
            out!(
                "| {} | {} | {} | {} | {} | {:.1} | {:.1}% |",
                profile.threads(),
                profile.n_batch,
                profile.test,
                operation.op,
                operation.calls,
                operation.total_ns as f64 / 1e3 / operation.calls.max(1) as f64,
                profile.share(operation) * 100.0
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_one_operation_are_added() {
        let time = |op, calls, total_ns| OpTime { op, calls, total_ns };
        let mut total = Vec::new();
        add(&mut total, &[time("linear", 2, 30), time("norm", 1, 5)]);
        add(&mut total, &[time("norm", 1, 5), time("linear", 2, 20)]);
        assert_eq!(total, [time("linear", 4, 50), time("norm", 2, 10)]);
        let profile = Profile { test: "pp8".to_owned(), threads: Some(1), n_batch: 8, operations: total };
        assert!((profile.share(&time("linear", 4, 50)) - 50.0 / 60.0).abs() < 1e-12);
    }
}
