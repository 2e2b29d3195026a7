//! A home of its own for each test, and the program run in it.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::SystemTime;

use serde_json::Value;
use tempfile::TempDir;

/// A fresh `$TOKRUN_HOME`, deleted with the test.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory can be made"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The program, with this home and without a network to fall back on.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tokrun"));
        command
            .args(arguments)
            .env("TOKRUN_HOME", self.path())
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("TOKRUN_MODEL")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// Runs with `--output json`, expects success, and reads the answer.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}\n{}", output.status, text(&output.stderr));
        parse(&output)
    }

    /// A wallet with so many credits.
    pub(crate) fn wallet(&self, name: &str, credits: u64) {
        self.json(&["wallet", "create", name]);
        if credits > 0 {
            self.json(&["wallet", "grant", name, &credits.to_string()]);
        }
    }

    pub(crate) fn balance(&self, wallet: &str) -> i64 {
        self.json(&["wallet", "show", wallet])["balance"].as_i64().expect("whole credits")
    }

    /// What `wallet statement` says was spent on settled requests, in credits.
    pub(crate) fn spent(&self, wallet: &str) -> i64 {
        let statement = self.json(&["wallet", "statement", wallet]);
        let lines = statement["lines"].as_array().expect("a statement has lines");
        -lines
            .iter()
            .filter(|line| line["kind"] == "settle")
            .map(|line| line["amount"].as_i64().expect("whole"))
            .sum::<i64>()
    }

    /// What `usage` counts for a user, in tokens; 0 if it names none.
    pub(crate) fn usage_tokens(&self, user: &str) -> i64 {
        let usage = self.json(&["usage"]);
        let rows = usage.as_array().expect("usage is a list");
        rows.iter().find(|row| row["user"] == user).map_or(0, |row| row["total_tokens"].as_i64().expect("a count"))
    }

    /// The books must be sound after whatever a test did.
    pub(crate) fn verify(&self) {
        let output = self.run(&["ledger", "verify"]);
        assert!(output.status.success(), "ledger verify: {}{}", text(&output.stdout), text(&output.stderr));
    }

    /// All that the ledger holds, for comparing before and after.
    pub(crate) fn books(&self) -> Vec<Value> {
        let wallets = self.json(&["wallet", "list"]);
        let names: Vec<String> = wallets
            .as_array()
            .expect("a list")
            .iter()
            .map(|wallet| wallet["wallet"].as_str().expect("a name").to_owned())
            .collect();
        let mut books: Vec<Value> = names.iter().map(|name| self.json(&["wallet", "statement", name])).collect();
        books.push(self.json(&["usage"]));
        books.push(wallets);
        books
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The one JSON value that a run printed.
pub(crate) fn parse(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no JSON ({error}): {}\n{}", text(&output.stdout), text(&output.stderr)))
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A tiny random Llama with a chat template: quick to load, and long-winded with `--ignore-eos`. It is the fixture, with
/// a context that is long enough to be interrupted in.
pub(crate) fn tiny_model() -> String {
    static COPY: LazyLock<TempDir> = LazyLock::new(|| {
        let copy = tempfile::tempdir().expect("a temporary directory can be made");
        copy_directory(&fixture("llama"), copy.path());
        let config = copy.path().join("config.json");
        let text = fs::read_to_string(&config).expect("the fixture has it");
        let mut object: Value = serde_json::from_str(&text).expect("it is JSON");
        object["max_position_embeddings"] = 16_384.into();
        fs::write(&config, object.to_string()).expect("it can be written");
        copy
    });
    COPY.path().display().to_string()
}

pub(crate) fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it can be made");
    for entry in fs::read_dir(from).expect("it can be listed") {
        let path = entry.expect("an entry can be read").path();
        fs::copy(&path, to.join(path.file_name().expect("an entry has a name"))).expect("it can be copied");
    }
}

/// The account name of whoever runs the tests, as the system knows it.
pub(crate) fn account() -> String {
    let output = Command::new("id").arg("-un").output().expect("id runs");
    text(&output.stdout).trim().to_owned()
}

/// The real default model: named by `TOKRUN_TEST_MODEL`, or pulled before into the user's own home. Required where
/// `TOKRUN_REQUIRE_MODEL` is set; elsewhere a test that lacks it says so.
pub(crate) fn default_model() -> Option<String> {
    let named = std::env::var_os("TOKRUN_TEST_MODEL").map(PathBuf::from);
    let home = std::env::var_os("TOKRUN_HOME").map(PathBuf::from).or_else(|| {
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
        data.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")))
            .map(|data| data.join("tokrun"))
    });
    let pulled = home.map(|home| home.join("models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"));
    let found = named.into_iter().chain(pulled).find(|path| path.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("TOKRUN_REQUIRE_MODEL").is_none(),
            "the default model is required: run `tokrun model pull smollm2-135m`"
        );
        eprintln!("SKIPPED: the default model is not here; `tokrun model pull smollm2-135m` fetches it");
    }
    found.map(|path| path.display().to_string())
}

/// Lots need no good randomness; the seed is printed, so that a failure can be tried again with `TOKRUN_TEST_SEED`.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        let named = std::env::var("TOKRUN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = named.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
            now.as_nanos() as u64
        });
        eprintln!("TOKRUN_TEST_SEED={seed}");
        Self(seed | 1)
    }

    /// One of its own for somebody who draws beside this one.
    pub(crate) fn fork(&mut self) -> Self {
        self.unit();
        Self(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// In [0, 1): xorshift64*.
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A whole number of that range.
    pub(crate) fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + (self.unit() * (range.end() - range.start() + 1) as f64) as u64
    }
}
