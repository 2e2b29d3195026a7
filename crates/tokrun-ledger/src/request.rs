//! One request's money: admitted with a hold, debited as it runs, settled once.

use rusqlite::{Connection, OptionalExtension};

use crate::chain::{self, Draft};
use crate::funds::Funds;
use crate::limits::{self, Load};
use crate::open_request::{OpenRequest, Saver};
use crate::writer::Tx;
use crate::{
    Admission, Admitted, Credits, Debit, Debited, FinishReason, LatencyHistogram, LedgerError, LimitReached, Price,
    Result, Settled, Settlement, admin, closing, keys, prices, tree,
};

/// More than any project name or set of tags needs, so that a log row stays a row.
const METADATA_BYTES_MAX: usize = 16 * 1024;

/// How a request ended; no times if nobody measured them.
pub(crate) struct Ending {
    id: String,
    finish_reason: FinishReason,
    reasoning_tokens: u64,
    times: Option<Times>,
    itl: LatencyHistogram,
    energy_uj: Option<u64>,
}

struct Times {
    queue_us: u64,
    ttft_us: Option<u64>,
    decode_us: u64,
    total_us: u64,
}

impl Ending {
    /// Of a request whose process died.
    pub(crate) fn unmeasured(id: String, finish_reason: FinishReason) -> Ending {
        Ending { id, finish_reason, reasoning_tokens: 0, times: None, itl: LatencyHistogram::new(), energy_uj: None }
    }
}

impl From<Settlement> for Ending {
    fn from(it: Settlement) -> Ending {
        let times =
            Times { queue_us: it.queue_us, ttft_us: it.ttft_us, decode_us: it.decode_us, total_us: it.total_us };
        Ending {
            id: it.request_id,
            finish_reason: it.finish_reason,
            reasoning_tokens: it.reasoning_tokens,
            times: Some(times),
            itl: it.itl,
            energy_uj: it.energy_uj,
        }
    }
}

/// Holds the prompt at its full price and one output token.
pub(crate) fn admit(tx: &mut Tx<'_>, admission: &Admission) -> Result<Admitted> {
    tx.check_good()?;
    let tags = check_admission(admission)?;
    let terms = prices::in_force(tx.conn, &admission.model, admission.price, tx.now_us)?;
    let needed = needed(admission, &terms.price)?;
    if is_known(tx.conn, &admission.request_id)? {
        return Err(LedgerError::DuplicateRequest { id: admission.request_id.clone() });
    }
    let (wallet, wallet_created) = admin::wallet_for(tx, admission)?;
    let admission = &*keys::admit(tx, admission)?;
    let path = tree::path(tx.conn, wallet.seq)?;
    tree::require_spendable(&path)?;
    let mut funds = tx.take_funds(wallet.seq, &admission.model.as_str().into())?;
    let Some(parts) = funds.pay(needed, tx.now_us) else {
        let balance = Credits::from_micro(funds.available(tx.now_us));
        let needed = Credits::from_micro(needed);
        return Err(LedgerError::Exhausted { name: admission.wallet.clone(), needed, balance });
    };
    let balance = Credits::from_micro(funds.own().balance(tx.now_us));
    tx.save_funds(funds)?;

    let request = OpenRequest::create(tx, admission, wallet.seq, &tags, &terms, &parts)?;
    count_hold(tx, &request)?;
    tx.cache.requests.insert(admission.request_id.clone(), request);
    let team_id = tree::team(&path).id.clone();
    let held = Credits::from_micro(needed);
    Ok(Admitted { wallet_id: wallet.id, team_id, wallet_created, price: terms.price, held, balance })
}

/// Counts what a new request holds, where limits hold for it.
fn count_hold(tx: &mut Tx<'_>, request: &OpenRequest) -> Result<()> {
    if request.limits.is_empty() {
        return Ok(());
    }
    let limited = |reached: LimitReached| Err(LedgerError::Limited { reached: Box::new(reached) });
    let mut guards = tx.take_guards(&request.limits)?;
    if let Some(reached) = limits::exceeded_at_once(tx, &guards)? {
        return limited(reached);
    }
    if let Err(reached) = guards.admit(Load { requests: 1, ..request.hold() }, tx.now_us) {
        return limited(reached);
    }
    tx.keep_guards(guards);
    tx.save_limits()
}

/// Debits a step of every running sequence. What one of them is refused does not touch the others.
pub(crate) fn debit(tx: &mut Tx<'_>, debits: &[Debit]) -> Result<Vec<Debited>> {
    tx.check_good()?;
    let mut debited = Vec::with_capacity(debits.len());
    let mut wallets = Vec::new();
    for debit in debits {
        debited.push(debit_one(tx, debit, &mut wallets)?);
    }
    let mut saver = Saver::new(tx.conn)?;
    for debit in debits {
        if let Some(request) = tx.cache.requests.get_mut(&debit.request_id) {
            saver.save(request)?;
        }
    }
    drop(saver);
    // Written once per wallet, however many of its requests are in this step.
    for wallet in wallets {
        if let Some(purse) = tx.cache.purses.get_mut(&wallet) {
            purse.save(tx.conn, wallet, tx.now_us)?;
        }
    }
    tx.save_limits()?;
    Ok(debited)
}

/// Turns what is in flight into one entry and one row of the log. Again, for a settled request: what was recorded.
pub(crate) fn settle(tx: &mut Tx<'_>, ending: &Ending) -> Result<Settled> {
    tx.check_good()?;
    let Some(mut request) = OpenRequest::take(tx, &ending.id)? else { return recorded(tx, &ending.id) };
    let mut funds = tx.take_funds(request.wallet, &request.model)?;
    if !request.running && !request.limits.is_empty() {
        let mut guards = tx.take_guards(&request.limits)?;
        guards.charge(Load::default(), request.hold(), request.started_us);
        tx.keep_guards(guards);
        tx.save_limits()?;
    }
    give_hold_back(tx, &ending.id, &mut request, &mut funds)?;
    request.debits().for_each(|part| funds.settle(part));
    let wallets: Vec<i64> = funds.levels.iter().map(|&(wallet, _)| wallet).collect();
    tx.save_funds(funds)?;

    let debited = request.debited();
    let settled = Settled {
        debited: Credits::from_micro(debited),
        balance: Credits::ZERO,
        prompt_tokens: if request.running { request.prompt_tokens } else { 0 },
        cached_tokens: request.cached_tokens,
        output_tokens: request.output_tokens,
        finish_reason: ending.finish_reason,
    };
    // Free tokens move no money, and are told by the chain all the same.
    let counts = debited > 0 || settled.prompt_tokens > 0 || settled.output_tokens > 0;
    let entry = if counts { Some(chain::head(tx.conn)?.entry + 1) } else { None };
    let logged = insert_log(tx, ending, &request, &settled, entry)?;
    if counts {
        write_settlement(tx, &ending.id, &request, debited, chain::log_digest(tx.conn, logged)?)?;
    }
    request.delete(tx.conn)?;
    wallets.into_iter().try_for_each(|wallet| closing::settle_up(tx, wallet))?;
    // Of a wallet that is closed, what came back has gone on by now.
    Ok(Settled { balance: balance(tx, request.wallet)?, ..settled })
}

/// Refuses what is no request. Returns its tags as JSON.
fn check_admission(admission: &Admission) -> Result<String> {
    let invalid = |reason| LedgerError::InvalidRequest { id: admission.request_id.clone(), reason };
    if admission.request_id.is_empty() {
        return Err(invalid("its id is empty"));
    }
    if !admission.price.is_sound() {
        return Err(invalid("a price is negative, or a cached prompt token dearer than another"));
    }
    let tags = serde_json::to_string(&admission.tags).map_err(|_| invalid("its tags are no JSON"))?;
    let texts = [&admission.request_id, &admission.model, &admission.device, &tags];
    let names = [&admission.key, &admission.project].into_iter().flatten().map(String::len).sum::<usize>();
    if texts.iter().map(|text| text.len()).sum::<usize>() + names > METADATA_BYTES_MAX {
        return Err(invalid("its id, model, key, project and tags are longer than 16 KiB"));
    }
    Ok(tags)
}

/// What an admission needs held.
fn needed(admission: &Admission, price: &Price) -> Result<i64> {
    let counted = i64::try_from(admission.prompt_tokens).is_ok();
    let reason = "its prompt costs more than can be counted";
    let invalid = || LedgerError::InvalidRequest { id: admission.request_id.clone(), reason };
    price.to_begin(admission.prompt_tokens).filter(|_| counted).map(Credits::micro).ok_or_else(invalid)
}

fn debit_one(tx: &mut Tx<'_>, debit: &Debit, wallets: &mut Vec<i64>) -> Result<Debited> {
    let refusal = |refused| Debited {
        request_id: debit.request_id.clone(),
        granted: 0,
        exhausted: false,
        limited: None,
        refused: Some(refused),
    };
    let Some(mut request) = OpenRequest::take(tx, &debit.request_id)? else {
        return Ok(refusal(LedgerError::UnknownRequest { id: debit.request_id.clone() }));
    };
    if let Err(reason) = request.check(debit) {
        tx.cache.requests.insert(debit.request_id.clone(), request);
        let id = debit.request_id.clone();
        return Ok(refusal(LedgerError::InvalidRequest { id, reason }));
    }
    let mut funds = tx.take_funds(request.wallet, &request.model)?;
    let mut guards = tx.take_guards(&request.limits)?;
    if let Some(prompt) = debit.prompt {
        request.start(prompt.cached_tokens)?;
    }
    let (granted, limited) = request.draw_output(&mut funds, &mut guards, debit, tx.now_us);
    if debit.prompt.is_some() {
        give_hold_back(tx, &debit.request_id, &mut request, &mut funds)?;
    }
    tx.keep_guards(guards);
    for &(wallet, _) in &funds.levels {
        if !wallets.contains(&wallet) {
            wallets.push(wallet);
        }
    }
    tx.keep_funds(funds);
    tx.cache.requests.insert(debit.request_id.clone(), request);
    Ok(Debited {
        request_id: debit.request_id.clone(),
        granted,
        exhausted: granted < debit.output_tokens,
        limited,
        refused: None,
    })
}

/// Returns what is still held; what belongs to a grant that has expired meanwhile expires with it.
fn give_hold_back(tx: &Tx<'_>, id: &str, request: &mut OpenRequest, funds: &mut Funds) -> Result<()> {
    for part in request.release_hold() {
        if let Some((level, event)) = funds.give_back(part, request.started_us, tx.now_us)? {
            let (wallet, purse) = &funds.levels[level];
            tx.write_event(*wallet, purse, &event, Some(id))?;
        }
    }
    Ok(())
}

/// The entry of a request: from each grant it used to `spent`, and the digest of its row in the log.
fn write_settlement(tx: &Tx<'_>, id: &str, request: &OpenRequest, debited: i64, logged: chain::Hash) -> Result<()> {
    let mut postings = Vec::new();
    for (grant, amount) in request.debits() {
        postings.push((admin::wallet_of_grant(tx.conn, grant)?, Some(grant), -amount));
    }
    if debited > 0 {
        postings.push((chain::SPENT, None, debited));
    }
    let draft = Draft {
        kind: "settle",
        idempotency_key: &format!("settle:{id}"),
        created_us: tx.now_us,
        effective_us: tx.now_us,
        request_id: Some(id),
        memo_digest: None,
        subject_digest: Some(logged),
        postings: &postings,
    };
    chain::append(tx.conn, &draft)?;
    Ok(())
}

/// Returns the row's number. Its entry is written next, with a digest of this row.
fn insert_log(
    tx: &Tx<'_>,
    ending: &Ending,
    request: &OpenRequest,
    settled: &Settled,
    entry: Option<i64>,
) -> Result<i64> {
    let times = ending.times.as_ref();
    let sql = "INSERT INTO request_log (id, entry, wallet, project, tags, model, device, prompt_micro, cached_micro, \
         output_micro, prompt_tokens, cached_tokens, output_tokens, reasoning_tokens, debited, queue_us, ttft_us, \
         decode_us, total_us, itl, energy_uj, finish_reason, started_us, ended_us, access_key, reasoning_micro, value_nano, \
         currency) \
         SELECT id, ?2, wallet, project, tags, model, device, prompt_micro, cached_micro, output_micro, \
         ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, started_us, ?15, access_key, \
         reasoning_micro, value_nano, currency FROM open_request WHERE seq = ?1";
    let logged = tx.conn.prepare_cached(sql)?.insert(rusqlite::params![
        request.seq,
        entry,
        saturate(settled.prompt_tokens),
        saturate(settled.cached_tokens),
        saturate(settled.output_tokens),
        saturate(request.reasoning_tokens(ending.reasoning_tokens)),
        settled.debited.micro(),
        times.map(|times| saturate(times.queue_us)),
        times.and_then(|times| times.ttft_us).map(saturate),
        times.map(|times| saturate(times.decode_us)),
        times.map(|times| saturate(times.total_us)),
        ending.itl.to_bytes(),
        ending.energy_uj.map(saturate),
        ending.finish_reason.as_str(),
        tx.now_us,
    ])?;
    Ok(logged)
}

/// The outcome of a request that was settled before.
fn recorded(tx: &mut Tx<'_>, id: &str) -> Result<Settled> {
    let found = tx
        .conn
        .prepare_cached(
            "SELECT wallet, debited, prompt_tokens, cached_tokens, output_tokens, finish_reason \
             FROM request_log WHERE id = ?1",
        )?
        .query_row([id], |row| {
            let settled = Settled {
                debited: Credits::from_micro(row.get(1)?),
                balance: Credits::ZERO,
                prompt_tokens: row.get(2)?,
                cached_tokens: row.get(3)?,
                output_tokens: row.get(4)?,
                finish_reason: FinishReason::from_log(row.get_ref(5)?.as_str()?),
            };
            Ok((row.get::<_, i64>(0)?, settled))
        })
        .optional()?;
    let (wallet, settled) = found.ok_or_else(|| LedgerError::UnknownRequest { id: id.to_owned() })?;
    Ok(Settled { balance: balance(tx, wallet)?, ..settled })
}

/// What a wallet has now.
fn balance(tx: &mut Tx<'_>, wallet: i64) -> Result<Credits> {
    let purse = tx.take_purse(wallet)?;
    let balance = Credits::from_micro(purse.balance(tx.now_us));
    tx.save_purse(wallet, purse)?;
    Ok(balance)
}

/// Whether a request of this id is open or was settled.
fn is_known(conn: &Connection, id: &str) -> Result<bool> {
    let sql =
        "SELECT EXISTS (SELECT 1 FROM open_request WHERE id = ?1) OR EXISTS (SELECT 1 FROM request_log WHERE id = ?1)";
    Ok(conn.prepare_cached(sql)?.query_row([id], |row| row.get(0))?)
}

/// For the log: what exceeds SQLite's integers is shown as the largest of them.
fn saturate(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
