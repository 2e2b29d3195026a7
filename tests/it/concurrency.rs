//! Many processes, one wallet.

use std::process::{Child, Stdio};

use serde_json::Value;

use crate::support::{Home, parse, text, tiny_model};

const PROCESSES: usize = 16;
const TOKENS: i64 = 60;

#[test]
fn sixteen_processes_share_a_wallet_that_can_pay_for_half_of_them() {
    let home = Home::new();
    let model = tiny_model();
    let max_tokens = TOKENS.to_string();
    let arguments = [
        "generate",
        "Count to a hundred",
        "--model",
        &model,
        "--user",
        "team",
        "--ignore-eos",
        "--max-tokens",
        &max_tokens,
        "--output",
        "json",
    ];
    // One alone tells what each of them needs.
    home.wallet("team", 1_000);
    let needed = home.json(&arguments[..arguments.len() - 2])["usage"].clone();
    let prompt = needed["prompt_tokens"].as_i64().expect("a count");
    let each = needed["total_tokens"].as_i64().expect("a count");

    let home = Home::new();
    let credits = PROCESSES as i64 / 2 * each;
    home.wallet("team", u64::try_from(credits).expect("positive"));
    let children: Vec<Child> = (0..PROCESSES)
        .map(|_| {
            home.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
        })
        .collect();

    let mut debited = 0;
    let mut refused = 0;
    for child in children {
        let output = child.wait_with_output().expect("it ends");
        let said = text(&output.stderr);
        assert!(!said.contains("locked") && !said.contains("busy"), "{said}");
        let answer = parse(&output);
        match output.status.code() {
            Some(0) => assert_eq!(answer["usage"]["completion_tokens"], TOKENS),
            Some(3) if answer["error"]["code"] == "allowance_exhausted" && answer.get("usage").is_none() => {
                refused += 1;
                continue;
            }
            Some(3) => assert_eq!(answer["finish_reason"], "allowance"),
            status => panic!("{status:?}: {answer} {said}"),
        }
        let total = answer["usage"]["total_tokens"].as_i64().expect("a count");
        assert_eq!(answer["allowance"]["debited"], total);
        debited += total;
        // A queue that is not fair shows in seconds, sixteen processes on two busy cores in tens of milliseconds.
        assert_waited_at_most(&answer, 3_000.0);
    }

    let left = home.balance("team");
    assert!(left >= 0, "overdrawn: {left}");
    assert_eq!(credits, debited + left, "granted = delivered + left");
    assert_eq!(home.spent("team"), debited);
    // Only those were refused that could not pay their prompt and one token.
    assert!(refused == 0 || left < prompt + 1, "{refused} refused, and {left} left over");
    assert!(left == 0 || refused > 0 || left < prompt + 1, "something affordable was not served: {left} left");
    home.verify();
}

fn assert_waited_at_most(answer: &Value, limit_ms: f64) {
    let worst_ms = answer["timing"]["commit_wait_max_ms"].as_f64().expect("ms");
    assert!(worst_ms < limit_ms, "a commit was waited for {worst_ms} ms");
}
