//! The ledger's own prices, and reasoning tokens at a price of theirs.

use tokrun_ledger::{
    Credits, Debit, FinishReason, Ledger, LedgerError, LimitScope, LimitSpan, NewLimit, NewPrice, Price, PromptDebit,
    Quota, Settlement,
};

use crate::common::{
    Home, admission, at, balance, credits, debit, debit_all, first_debit, fund, next_debit, settle, verify,
};

fn micro(prompt: i64, cached: i64, output: i64, reasoning: i64) -> Price {
    let [prompt, cached_prompt, output, reasoning] = [prompt, cached, output, reasoning].map(Credits::from_micro);
    Price { prompt, cached_prompt, output, reasoning }
}

fn thinking(id: &str, begins: bool, reasoning_tokens: u32, output_tokens: u32) -> Debit {
    let prompt = begins.then_some(PromptDebit { cached_tokens: 0 });
    Debit { request_id: id.into(), prompt, output_tokens, reasoning_tokens }
}

fn cost(ledger: &Ledger, id: &str) -> Credits {
    ledger.admit(admission(id, "ada", 10)).unwrap();
    debit(ledger, first_debit(id, 4, 5));
    settle(ledger, id, FinishReason::Stop).unwrap().debited
}

#[test]
fn the_ledgers_price_goes_before_the_one_that_a_request_brings() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 1000);
    assert_eq!(cost(&ledger, "r1"), credits(15));
    let day_us = 86_400_000_000;
    let set = ledger.set_price(NewPrice::new("model", micro(2, 1, 3, 3))).unwrap();
    let (from, until) = (Some(at(home.now_us() + day_us)), Some(at(home.now_us() + 2 * day_us)));
    let free = ledger.set_price(NewPrice { from, until, ..NewPrice::new("model", Price::FREE) }).unwrap();
    ledger.set_price(NewPrice::new("another", Price::FREE)).unwrap();

    ledger.admit(admission("early", "ada", 10)).unwrap();
    assert_eq!(cost(&ledger, "r2"), Credits::from_micro(6 * 2 + 4 + 5 * 3));
    home.pass(86_400);
    assert_eq!(cost(&ledger, "r3"), Credits::ZERO);
    // Free is counted all the same.
    assert_eq!(ledger.usage(&tokrun_ledger::UsageQuery::new(tokrun_ledger::UsageBy::User)).unwrap()[0].requests, 3);
    debit(&ledger, first_debit("early", 0, 1));
    let early = settle(&ledger, "early", FinishReason::Stop).unwrap();
    assert_eq!(early.debited, Credits::from_micro(23), "the price of its admission is frozen");

    let ids =
        |time: i64| -> Vec<String> { ledger.prices(Some(at(time))).unwrap().into_iter().map(|view| view.id).collect() };
    assert!(ids(home.now_us()).contains(&free.id) && !ids(home.now_us()).contains(&set.id));
    assert!(ids(home.now_us() + day_us).contains(&set.id), "what began before holds again");
    assert_eq!(ledger.prices(None).unwrap().len(), 3);
    assert!(ledger.prices(Some(at(0))).unwrap().is_empty());

    let key = || Some("removal".to_owned());
    ledger.remove_price(&free.id, key()).unwrap();
    ledger.remove_price(&free.id, key()).unwrap();
    assert!(matches!(ledger.remove_price(&set.id, key()), Err(LedgerError::IdempotencyConflict { .. })));
    assert!(matches!(ledger.remove_price(&free.id, None), Err(LedgerError::UnknownPrice { .. })));
    assert_eq!(cost(&ledger, "r4"), Credits::from_micro(31));
    ledger.remove_price(&set.id, None).unwrap();
    assert_eq!(cost(&ledger, "r5"), credits(15));
    verify(&ledger);
}

#[test]
fn prices_that_cannot_be_are_refused_and_a_key_sets_once() {
    let home = Home::new();
    let ledger = home.open();
    let now_us = home.now_us();
    let good = || NewPrice::new("model", Price::default());
    for bad in [
        NewPrice::new("", Price::default()),
        NewPrice::new("model", micro(1, 2, 1, 1)),
        NewPrice::new("model", micro(1, 1, 1, -1)),
        NewPrice::new("model", micro(1, 1, -1, 1)),
        NewPrice { from: Some(at(now_us - 1)), ..good() },
        NewPrice { until: Some(at(now_us)), ..good() },
        NewPrice { from: Some(at(now_us + 5)), until: Some(at(now_us + 5)), ..good() },
    ] {
        assert!(matches!(ledger.set_price(bad.clone()), Err(LedgerError::InvalidPrice { .. })), "{bad:?}");
    }
    assert!(ledger.prices(None).unwrap().is_empty() && home.entries() == 0);

    let keyed = NewPrice { idempotency_key: Some("june".into()), value: Some("0.002EUR".parse().unwrap()), ..good() };
    let first = ledger.set_price(keyed.clone()).unwrap();
    home.pass(60);
    assert_eq!(ledger.set_price(keyed.clone()).unwrap(), first);
    let other = NewPrice { price: Price::FREE, ..keyed };
    assert!(matches!(ledger.set_price(other), Err(LedgerError::IdempotencyConflict { .. })));
    // The same instant: another price in its place.
    let again = NewPrice { from: Some(at(home.now_us() + 9)), ..good() };
    let later = ledger.set_price(again.clone()).unwrap();
    let replaced = ledger.set_price(NewPrice { price: Price::FREE, ..again }).unwrap();
    assert_eq!((later.id, ledger.prices(None).unwrap().len()), (replaced.id, 2));
    verify(&ledger);
}

/// The exact token where the money ends, in every mix of reasoning and answer, dear and cheap.
#[test]
fn reasoning_is_paid_at_its_own_price_to_the_last_token() {
    for (output, reasoning) in [(3, 7), (7, 3), (0, 5), (5, 0)] {
        for funds in [20_i64, 37, 60, 91] {
            for (thought, said) in [(4, 0), (4, 6), (0, 6), (9, 9)] {
                let home = Home::new();
                let ledger = home.open();
                ledger.create_wallet("ada", None).unwrap();
                ledger.grant(tokrun_ledger::GrantRequest::new("ada", Credits::from_micro(funds))).unwrap();
                ledger.set_price(NewPrice::new("model", micro(1, 1, output, reasoning))).unwrap();
                let admitted = ledger.admit(admission("r", "ada", 5)).unwrap();
                assert_eq!(admitted.held, Credits::from_micro(5 + output.max(reasoning)));
                let debited = debit(&ledger, thinking("r", true, thought, thought + said));
                let mut left = funds - 5;
                let mut paid = 0;
                for price in [reasoning].repeat(thought as usize).into_iter().chain([output].repeat(said as usize)) {
                    if price > left {
                        break;
                    }
                    left -= price;
                    paid += 1;
                }
                let case = (output, reasoning, funds, thought, said);
                assert_eq!((debited.granted, debited.exhausted), (paid, paid < thought + said), "{case:?}");
                verify(&ledger);
                let settled = settle(&ledger, "r", FinishReason::Stop).unwrap();
                assert_eq!((settled.debited.micro(), settled.balance.micro()), (funds - left, left), "{case:?}");
                verify(&ledger);
            }
        }
    }
}

#[test]
fn a_limit_of_credits_ends_reasoning_and_answers_where_it_ends() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 1000);
    ledger.set_price(NewPrice::new("model", micro(1_000_000, 0, 2_000_000, 5_000_000))).unwrap();
    let scope = LimitScope { wallet: Some("ada".into()), ..LimitScope::default() };
    ledger.set_limit(NewLimit::new(scope, Quota::Credits(credits(60)), LimitSpan::Day)).unwrap();
    ledger.admit(admission("r", "ada", 10)).unwrap();
    // 10 for the prompt, 4 x 5 for reasoning, and what is left of 60 pays 15 tokens.
    let debited = debit(&ledger, thinking("r", true, 4, 24));
    assert_eq!((debited.granted, debited.limited.is_some()), (19, true));
    assert_eq!(ledger.limits().unwrap()[0].used, Some(Quota::Credits(credits(60))));
    settle(&ledger, "r", FinishReason::Limit).unwrap();
    assert_eq!(balance(&ledger, "ada"), credits(940));
    verify(&ledger);
}

#[test]
fn the_log_counts_as_reasoning_what_was_debited_as_such() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 1000);
    let said = |id: &str| Settlement { reasoning_tokens: 3, ..Settlement::new(id, FinishReason::Stop) };
    let logged = || {
        let mut logged = Vec::new();
        ledger
            .export_requests(None, None, |it| {
                logged.push((it.reasoning_tokens, it.debited, it.value.as_ref().map(ToString::to_string)));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        logged.pop().unwrap()
    };
    // At one price, whoever settles may say it.
    ledger.admit(admission("r1", "ada", 1)).unwrap();
    debit(&ledger, first_debit("r1", 0, 5));
    ledger.settle(said("r1")).unwrap();
    assert_eq!(logged(), (3, credits(6), None));
    // At a price of their own, only debits do.
    let value = Some("0.002EUR".parse().unwrap());
    ledger.set_price(NewPrice { value, ..NewPrice::new("model", micro(0, 0, 1_000_000, 2_000_000)) }).unwrap();
    ledger.admit(admission("r2", "ada", 1)).unwrap();
    debit(&ledger, thinking("r2", true, 2, 5));
    debit(&ledger, next_debit("r2", 1));
    // A process dies between them, and the next one knows.
    drop(ledger.clone());
    ledger.settle(said("r2")).unwrap();
    assert_eq!(logged(), (2, credits(2 * 2 + 4), Some("0.002EUR".into())));
    ledger.admit(admission("r3", "ada", 1)).unwrap();
    let refused = debit_all(&ledger, vec![thinking("r3", true, 3, 2)]).unwrap().remove(0).refused;
    assert!(matches!(refused, Some(LedgerError::InvalidRequest { .. })), "{refused:?}");
    verify(&ledger);
}

#[test]
fn a_forged_price_is_found() {
    let home = Home::new();
    let ledger = home.open();
    let set = ledger.set_price(NewPrice::new("model", micro(2, 1, 3, 3))).unwrap();
    ledger.set_price(NewPrice::new("another", micro(2, 1, 3, 3))).unwrap();
    for forgery in [
        "UPDATE price SET output_micro = 0 WHERE model = 'model'",
        "UPDATE price SET model = 'other' WHERE model = 'model'",
        "UPDATE price SET until_us = from_us + 1 WHERE model = 'model'",
        "DELETE FROM price WHERE model = 'model'",
        "INSERT INTO price SELECT 9, 'gift', entry, 'gift', 0, 0, 0, 0, NULL, NULL, from_us, NULL FROM price LIMIT 1",
    ] {
        let sql = home.sql();
        sql.execute_batch(&format!("BEGIN; {forgery}")).unwrap();
        sql.execute_batch("COMMIT").unwrap();
        assert!(!ledger.verify().unwrap().passed(), "{forgery}");
        // As it was, but for what was deleted, which the record can tell.
        sql.execute_batch(&format!(
            "DELETE FROM price WHERE id = 'gift'; INSERT OR REPLACE INTO price SELECT 1, '{}', 1, 'model', 2, 1, 3, 3, NULL, NULL, \
             {}, NULL",
            set.id,
            set.from.as_microsecond()
        ))
        .unwrap();
        verify(&ledger);
    }
}
