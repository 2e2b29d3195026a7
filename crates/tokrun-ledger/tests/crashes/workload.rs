//! What a ledger is asked for, what must come of it, and whether it has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::mpsc;

use fastrand::Rng;
use tempfile::TempDir;
use tokrun_ledger::{
    Admission, Approval, Credits, Debit, Delegate, FinishReason, GrantRequest, Ledger, NewAsk, Price, PromptDebit,
    Result, Settlement, UsageBy, UsageQuery,
};

use crate::disk::{Crash, Disk, Faults};
use crate::vfs;

const WALLETS: [&str; 3] = ["ada", "bob", "eve"];
const STEPS: usize = 30;
const PROMPT_TOKENS: u64 = 5;
/// More than all requests of a run need: what ends when is the business of other tests.
const GRANT: u64 = 1_000_000;

/// What must be in the books, in credits; a credit is a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    wallets: BTreeMap<String, Wallet>,
    /// Those that are not settled, and whether their prompt is debited.
    open: BTreeMap<String, (String, bool)>,
    /// Delegated wallets, and by whom.
    givers: BTreeMap<String, String>,
    revoked: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wallet {
    granted: u64,
    spent: u64,
}

#[derive(Debug, Clone)]
enum Op {
    Create(String),
    Grant(String),
    /// It asks, and is given.
    Approve(String),
    Delegate {
        from: String,
        name: String,
    },
    Revoke(String),
    Admit {
        id: String,
        wallet: String,
    },
    Debit(Vec<(String, u32)>),
    Settle(String),
}

impl State {
    /// Anything that makes sense now.
    fn choose(&self, rng: &mut Rng, step: usize) -> Op {
        let missing = WALLETS.iter().find(|name| !self.wallets.contains_key(**name));
        if let Some(name) = missing.filter(|_| self.wallets.is_empty() || rng.u32(..8) == 0) {
            return Op::Create((*name).to_owned());
        }
        let usable: Vec<&String> = self.wallets.keys().filter(|name| !self.revoked.contains(*name)).collect();
        let wallet = (*rng.choice(&usable).unwrap()).clone();
        let is_agent = self.givers.contains_key(&wallet);
        match rng.u32(..20) {
            0 if is_agent => return Op::Revoke(wallet),
            1 if !is_agent && self.wallets[&wallet].granted > GRANT => {
                return Op::Delegate { from: wallet, name: format!("agent-{step}") };
            }
            2 if !is_agent => return Op::Approve(wallet),
            3 | 4 if !is_agent => return Op::Grant(wallet),
            _ if self.wallets[&wallet].granted == 0 => return Op::Grant(wallet),
            _ => {}
        }
        if self.open.is_empty() || (self.open.len() < 5 && rng.u32(..4) == 0) {
            return Op::Admit { id: format!("request-{step}"), wallet };
        }
        if rng.u32(..5) == 0 {
            return Op::Settle(rng.choice(self.open.keys()).unwrap().clone());
        }
        let runs = |id: &&String| !self.revoked.contains(&self.open[*id].0);
        let chosen: BTreeSet<&String> = (0..3).filter_map(|_| rng.choice(self.open.keys()).filter(runs)).collect();
        Op::Debit(chosen.into_iter().map(|id| (id.clone(), rng.u32(1..20))).collect())
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(name) => drop(self.wallets.insert(name.clone(), Wallet::default())),
            Op::Grant(wallet) => self.wallets.get_mut(wallet).unwrap().granted += GRANT,
            Op::Approve(wallet) => self.wallets.get_mut(wallet).unwrap().granted += GRANT,
            Op::Delegate { from, name } => {
                self.wallets.get_mut(from).unwrap().granted -= GRANT / 10;
                self.wallets.insert(name.clone(), Wallet { granted: GRANT / 10, spent: 0 });
                self.givers.insert(name.clone(), from.clone());
            }
            // What its open requests hold follows when they are settled.
            Op::Revoke(name) => {
                let agent = self.wallets.get_mut(name).unwrap();
                let rest = agent.granted - agent.spent;
                agent.granted = agent.spent;
                self.wallets.get_mut(&self.givers[name]).unwrap().granted += rest;
                self.revoked.insert(name.clone());
            }
            Op::Admit { id, wallet } => drop(self.open.insert(id.clone(), (wallet.clone(), false))),
            Op::Debit(debits) => {
                for (id, tokens) in debits {
                    let (wallet, runs) = self.open.get_mut(id).unwrap();
                    let prompt_tokens = if std::mem::replace(runs, true) { 0 } else { PROMPT_TOKENS };
                    self.wallets.get_mut(wallet).unwrap().spent += prompt_tokens + u64::from(*tokens);
                }
            }
            Op::Settle(id) => drop(self.open.remove(id)),
        }
    }

    fn ask(&self, ledger: &Ledger, op: &Op) -> Result<()> {
        match op {
            Op::Create(name) => ledger.create_wallet(name, None).map(drop),
            Op::Grant(wallet) => ledger.grant(GrantRequest::new(wallet, credits(GRANT))).map(drop),
            Op::Approve(wallet) => {
                let (wallet, amount) = (wallet.clone(), credits(GRANT));
                let asked = ledger.ask(NewAsk { wallet, amount, reason: None, idempotency_key: None })?;
                ledger.approve(Approval::new(asked.id)).map(drop)
            }
            Op::Delegate { from, name } => ledger.delegate(Delegate::new(from, name, credits(GRANT / 10))).map(drop),
            Op::Revoke(name) => ledger.revoke(name, None).map(drop),
            Op::Admit { id, wallet } => ledger.admit(admission(id, wallet)).map(drop),
            Op::Debit(debits) => self.ask_debit(ledger, debits),
            Op::Settle(id) => ledger.settle(Settlement::new(id, FinishReason::Stop)).map(drop),
        }
    }

    fn ask_debit(&self, ledger: &Ledger, debits: &[(String, u32)]) -> Result<()> {
        let debit = |(id, output_tokens): &(String, u32)| Debit {
            request_id: id.clone(),
            prompt: (!self.open[id].1).then_some(PromptDebit { cached_tokens: 0 }),
            output_tokens: *output_tokens,
            reasoning_tokens: 0,
        };
        let (reply, answer) = mpsc::channel();
        ledger.debit(debits.iter().map(debit).collect(), move |debited| drop(reply.send(debited)));
        for (debited, (id, tokens)) in answer.recv().unwrap()?.into_iter().zip(debits) {
            assert_eq!((debited.granted, &debited.request_id), (*tokens, id), "there is plenty: {debited:?}");
        }
        Ok(())
    }

    /// Whether the ledger said the same, once nothing is in flight any more.
    fn is(&self, told: &Told) -> bool {
        let is_told = |(name, wallet): (&String, &Wallet)| {
            told.balances.get(name) == Some(&credits(wallet.granted - wallet.spent))
                && told.used.get(name).copied().unwrap_or(0) == wallet.spent
        };
        told.balances.len() == self.wallets.len() && self.wallets.iter().all(is_told)
    }
}

/// What a ledger says of every wallet: what is left, and how many tokens were used.
#[derive(Debug)]
struct Told {
    balances: BTreeMap<String, Credits>,
    used: BTreeMap<String, u64>,
    is_in_flight: bool,
}

impl Told {
    fn by(ledger: &Ledger) -> Result<Told> {
        let (wallets, usage) = (ledger.wallets()?, ledger.usage(&UsageQuery::new(UsageBy::User))?);
        Ok(Told {
            is_in_flight: wallets.iter().any(|wallet| wallet.in_flight != Credits::ZERO),
            balances: wallets.into_iter().map(|wallet| (wallet.name, wallet.balance)).collect(),
            used: usage.into_iter().map(|row| (row.key, row.total_tokens)).collect(),
        })
    }
}

/// A run of requests on a disk, and all the crashes that it might have met; how many they were.
pub(crate) fn run(seed: u64, faults: &Faults) -> u64 {
    let home = scratch();
    let directory = home.path().canonicalize().unwrap();
    let path = directory.join("ledger.db");
    drop(Ledger::open(&path).unwrap());
    let disk = Disk::new(&directory, seed, faults.clone());
    vfs::mount(&disk);
    let mut life = Life {
        path: &path,
        disk: &disk,
        faults,
        ledger: None,
        state: State::default(),
        doubtful: Vec::new(),
        refused: Vec::new(),
    };
    life.live(Rng::with_seed(!seed));
    let possible = life.end();
    faults.end();
    let ledger = Ledger::open(&path).unwrap();
    check(&ledger, &possible, "at the end");
    drop(ledger);
    vfs::unmount(&disk);
    let crashes = disk.take_crashes();
    let count = crashes.len() as u64;
    crashes.into_iter().enumerate().for_each(|(number, crash)| survive(&crash, number));
    count
}

/// A ledger in use.
struct Life<'a> {
    path: &'a Path,
    disk: &'a Disk,
    faults: &'a Faults,
    ledger: Option<Ledger>,
    /// What was acknowledged.
    state: State,
    /// What was refused by a disk that refused all that followed as well: it may be found by who opens the file next.
    doubtful: Vec<State>,
    /// What was refused since the last that was acknowledged. It may be in a log that is removed, and come back with it
    /// as long as there is no other.
    refused: Vec<State>,
}

impl Life<'_> {
    /// Asks for one thing after the other, and opens the ledger anew now and then.
    fn live(&mut self, mut rng: Rng) {
        for step in 0..STEPS {
            if self.ledger.is_none() || rng.u32(..12) == 0 {
                self.close();
                self.open();
            }
            let Some(ledger) = &self.ledger else { continue };
            let op = self.state.choose(&mut rng, step);
            let mut next = self.state.clone();
            next.apply(&op);
            self.disk.know(|known| known.doubtful.push(next.clone()));
            match self.state.ask(ledger, &op) {
                Ok(()) => self.learn(next),
                Err(error) => {
                    let failures = self.faults.happened();
                    assert!(failures > 0, "step {step}, {op:?}: {error}");
                    self.close();
                    next.open.clear();
                    self.doubtful.extend((self.faults.happened() > failures).then(|| next.clone()));
                    self.refused.push(next);
                }
            }
        }
    }

    /// Whoever closes the ledger, or opens it next, settles what was left.
    fn close(&mut self) {
        self.ledger = None;
        self.state.open.clear();
        self.faults.close();
    }

    fn open(&mut self) {
        match Ledger::open(self.path).and_then(|ledger| Ok((self.found_in(&ledger)?, ledger))) {
            Ok((state, ledger)) => {
                let found_refused = state != self.state;
                let refused = std::mem::take(&mut self.refused);
                self.learn(state);
                self.doubtful.clear();
                if !found_refused {
                    self.disk.know(|known| known.doubtful.clone_from(&refused));
                    self.refused = refused;
                }
                // What was found is relied on from now on, as it is by whoever repeats a request under its key.
                self.disk.crash();
                self.ledger = Some(ledger);
            }
            Err(error) => assert!(self.faults.happened() > 0, "a sound disk: {error}"),
        }
    }

    /// Which of the possible states it is.
    fn found_in(&self, ledger: &Ledger) -> Result<State> {
        let told = Told::by(ledger)?;
        match std::iter::once(&self.state).chain(&self.doubtful).find(|state| state.is(&told)) {
            Some(state) => Ok(state.clone()),
            None => panic!("the ledger says {told:?}, possible are {:?} and {:?}", self.state, self.doubtful),
        }
    }

    fn learn(&mut self, state: State) {
        self.state = state;
        self.refused.clear();
        self.disk.know(|known| (known.sure, known.doubtful) = (self.state.clone(), Vec::new()));
    }

    /// Closes it; what may be found afterwards.
    fn end(mut self) -> Vec<State> {
        self.close();
        std::iter::once(self.state).chain(self.doubtful).collect()
    }
}

/// On a disk of memory, where there is one: what is lost is decided above it, and its own syncs would take a third of the time.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Opens what a crash left.
fn survive(crash: &Crash, number: usize) {
    let home = scratch();
    for (name, bytes) in &crash.files {
        fs::write(home.path().join(name), bytes).unwrap();
    }
    let ledger = Ledger::open(&home.path().join("ledger.db")).unwrap_or_else(|error| panic!("crash {number}: {error}"));
    let mut possible = vec![crash.known.sure.clone()];
    possible.extend(crash.known.doubtful.iter().cloned());
    check(&ledger, &possible, &format!("after crash {number}"));
}

fn check(ledger: &Ledger, possible: &[State], when: &str) {
    let report = ledger.verify().unwrap();
    assert!(report.passed(), "{when}: {report:?}");
    let told = Told::by(ledger).unwrap();
    let is_possible = possible.iter().any(|state| state.is(&told));
    assert!(is_possible, "{when}: the ledger says {told:?}, possible are {possible:#?}");
    assert!(!told.is_in_flight, "{when}: something is in flight");
}

fn admission(id: &str, wallet: &str) -> Admission {
    Admission {
        request_id: id.to_owned(),
        wallet: wallet.to_owned(),
        starter: None,
        model: "model".to_owned(),
        device: "cpu".to_owned(),
        price: Price::default(),
        prompt_tokens: PROMPT_TOKENS,
        key: None,
        project: None,
        tags: BTreeMap::new(),
    }
}

fn credits(credits: u64) -> Credits {
    Credits::from_credits(credits.cast_signed()).unwrap()
}
