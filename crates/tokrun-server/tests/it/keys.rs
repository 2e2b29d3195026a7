//! Access keys, and what may be seen with them.

use serde_json::{Value, json};
use tokrun_ledger::{GrantRequest, NewKey, Role};
use tokrun_server::ServerOptions;

use crate::support::{Choices, MODEL, Reply, Service, chat};

/// Nobody pays for requests without a key. `ada` and `bob` have wallets.
fn service() -> Service {
    let service = Service::with(Choices { options: ServerOptions::default(), ..Choices::default() });
    service.ledger.create_wallet("bob", None).expect("a wallet can be made");
    service.ledger.grant(GrantRequest::new("bob", "1000".parse().expect("an amount"))).expect("it can be filled");
    service
}

fn key(service: &Service, key: NewKey) -> String {
    service.ledger.create_key(key).expect("a key can be made").secret.expect("it is shown once")
}

fn ask(service: &Service, secret: &str) -> Reply {
    service.post_with("/v1/chat/completions", &chat(json!({})), &[("authorization", &format!("Bearer {secret}"))])
}

fn see(service: &Service, path: &str, secret: &str) -> Value {
    service.get_with(path, &[("authorization", &format!("Bearer {secret}"))]).ok()
}

fn code(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_key_spends_its_own_wallet() {
    let service = service();
    let secret = key(&service, NewKey::new("bob", "laptop"));
    let answer = ask(&service, &secret).ok();
    let paid = answer["tokrun"]["debited"].as_i64().expect("a sum");
    let balance = service.ledger.wallet("bob").expect("there is one").balance.micro() / tokrun_ledger::MICRO;
    assert_eq!(1000 - balance, paid);
    assert_eq!(service.balance(), 1_000_000, "nobody else pays");
    let of_anthropic = json!({ "model": MODEL, "max_tokens": 3, "messages": [{ "role": "user", "content": "hi" }] });
    service.post_with("/v1/messages", &of_anthropic, &[("x-api-key", &secret)]).ok();
    let me = see(&service, "/v1/usage/me", &secret);
    assert_eq!((&me["wallet"], &me["key"]), (&json!("bob"), &json!("laptop")));
    assert_eq!(me["this_month"]["requests"], 2);
}

#[test]
fn what_is_no_key_any_more_is_told_like_what_never_was_one() {
    let service = service();
    let revoked = key(&service, NewKey::new("bob", "lost"));
    service.ledger.revoke_key("lost", None).expect("it can be revoked");
    let never = format!("tkr-{}", "a".repeat(60));
    let replies: Vec<Reply> = [revoked.as_str(), &never, "sk-123"].iter().map(|secret| ask(&service, secret)).collect();
    for reply in &replies {
        assert_eq!(code(reply), (401, "invalid_api_key".to_owned()));
        assert_eq!(reply.json()["error"]["message"], replies[0].json()["error"]["message"]);
    }
    let open = Service::new();
    assert_eq!(code(&ask(&open, &never)).0, 401, "a wrong key is not let pass where none is needed");
    ask(&open, "unused").ok();
}

#[test]
fn a_key_reaches_no_farther_than_it_says() {
    let service = service();
    let scoped = NewKey { models: Some("other-*".parse().expect("a scope")), ..NewKey::new("bob", "other models") };
    let scoped = key(&service, scoped);
    assert_eq!(code(&ask(&service, &scoped)), (404, "model_not_found".to_owned()));
    assert_eq!(see(&service, "/v1/models", &scoped)["data"], json!([]));
    let of_project = key(&service, NewKey { project: Some("apollo".to_owned()), ..NewKey::new("bob", "apollo") });
    let with = |project: &str| {
        let headers = [("authorization", &*format!("Bearer {of_project}")), ("openai-project", project)];
        service.post_with("/v1/chat/completions", &chat(json!({})), &headers)
    };
    with("apollo").ok();
    assert_eq!(code(&with("gemini")), (403, "key_scope".to_owned()));
    let auditor = key(&service, NewKey { role: Role::Auditor, ..NewKey::new("bob", "audit") });
    assert_eq!(code(&ask(&service, &auditor)), (403, "insufficient_permissions".to_owned()));
}

#[test]
fn usage_comes_in_pages_and_buckets() {
    let service = service();
    let (ada, bob) = (key(&service, NewKey::new("ada", "a")), key(&service, NewKey::new("bob", "b")));
    let admin = key(&service, NewKey { role: Role::Admin, ..NewKey::new("ada", "admin") });
    let asked = [&ada, &ada, &bob].map(|secret| ask(&service, secret).ok());
    let total = |name: &str| asked.iter().map(|answer| answer["usage"][name].as_u64().expect("a count")).sum::<u64>();
    let start = jiff::Timestamp::now().as_second() - 60;
    let sum = |page: &Value, field: &str| {
        let buckets = page["data"].as_array().expect("a list");
        let results = buckets.iter().flat_map(|bucket| bucket["results"].as_array().expect("a list"));
        results.map(|result| result[field].as_u64().expect("a count")).sum::<u64>()
    };
    let path = format!(
        "/v1/organization/usage/completions?start_time={start}&bucket_width=1m&group_by[]=user_id&group_by[]=model"
    );
    let all = see(&service, &path, &admin);
    assert_eq!(all["object"], "page");
    assert_eq!(sum(&all, "output_tokens"), total("completion_tokens"));
    assert_eq!(sum(&all, "input_tokens"), total("prompt_tokens"));
    assert_eq!(sum(&all, "num_model_requests"), 3);
    let own = see(&service, &path, &bob);
    assert_eq!(sum(&own, "num_model_requests"), 1, "a member sees what is theirs");
    let costs = see(&service, &format!("/v1/organization/costs?start_time={start}"), &admin);
    let results = costs["data"][0]["results"].as_array().expect("a list");
    assert_eq!(results[0]["amount"], json!({ "value": total("total_tokens"), "currency": "credits" }));
    let first = see(&service, &format!("{path}&limit=1&end_time={}", start + 600), &admin);
    assert_eq!((first["data"].as_array().map(Vec::len), &first["has_more"]), (Some(1), &json!(true)));
    let next = first["next_page"].as_str().expect("there is another");
    let second = see(&service, &format!("{path}&limit=1&end_time={}&page={next}", start + 600), &admin);
    assert_eq!(second["data"][0]["start_time"], first["data"][0]["end_time"]);
    let headers = [("authorization", &*format!("Bearer {admin}"))];
    for wrong in [
        "",
        "start_time=x",
        "start_time=1&limit=9999",
        "start_time=1&page=page_x",
        "start_time=5&end_time=5",
        "start_time=1&flavour=2",
    ] {
        assert_eq!(service.get_with(&format!("/v1/organization/costs?{wrong}"), &headers).status, 400, "{wrong}");
    }
}
