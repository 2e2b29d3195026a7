//! `--device cuda` through the built program, on any driver that is there: the one for tests counts (`cargo xtask
//! fake-driver`). Without one the tests say that they were skipped, unless TOKRUN_REQUIRE_CUDA=1 asks them to fail.

use serde_json::Value;

use crate::support::{Home, parse, text, tiny_model};

/// Whether there is a device.
fn device() -> bool {
    match tokrun_kernels::cuda::probe() {
        Ok(_) => true,
        Err(reason) => {
            assert!(std::env::var_os("TOKRUN_REQUIRE_CUDA").is_none(), "TOKRUN_REQUIRE_CUDA is set, but {reason}");
            eprintln!("skipped: {reason}");
            false
        }
    }
}

fn generate(home: &Home, device: &str, extra: &[&str]) -> Value {
    let model = tiny_model();
    let base = ["generate", "Hello there", "--model", &model, "--user", "ada", "--output", "json", "--device", device];
    let answer = parse(&home.run(&[&base[..], extra].concat()));
    let usage = &answer["usage"];
    let (total, completion) = (usage["total_tokens"].as_i64(), usage["completion_tokens"].as_i64().expect("a count"));
    assert_eq!(answer["token_ids"].as_array().expect("a list").len() as i64, completion);
    assert_eq!(answer["allowance"]["debited"].as_i64(), total, "{answer}");
    assert_eq!(answer["allowance"]["balance"].as_i64(), Some(home.balance("ada")));
    answer
}

/// Delivered = debited = reported, and the tokens of the processor.
#[test]
fn a_cuda_device_is_as_exact_as_the_processor() {
    if !device() {
        return;
    }
    let home = Home::new();
    home.wallet("ada", 10_000);
    let greedy = ["--temperature", "0", "--max-tokens", "24", "--ignore-eos"];
    let (cuda, cpu) = (generate(&home, "cuda", &greedy), generate(&home, "cpu", &greedy));
    assert_eq!((&cuda["device"], &cpu["device"]), (&"cuda:0".into(), &"cpu".into()));
    assert_eq!(cuda["token_ids"], cpu["token_ids"]);
    assert_eq!(generate(&home, "auto", &greedy)["device"], "cuda:0");
    let spent: i64 = 3 * cuda["usage"]["total_tokens"].as_i64().expect("a count");
    assert_eq!((home.spent("ada"), home.usage_tokens("ada")), (spent, spent));
    home.verify();
}

/// The allowance ends in the middle: what was generated until then is paid, and nothing else.
#[test]
fn an_allowance_ends_at_its_last_token_on_a_cuda_device() {
    if !device() {
        return;
    }
    let home = Home::new();
    home.wallet("ada", 20);
    let answer = generate(&home, "cuda:0", &["--seed", "3", "--max-tokens", "50", "--ignore-eos"]);
    assert_eq!(answer["finish_reason"], "allowance");
    assert_eq!((home.balance("ada"), home.spent("ada")), (0, 20));
    home.verify();
}

/// The NVML for tests counts 300 W: no request can take more than that, and `usage` sums up what they took. A card without a
/// counter tells its power, which is as good.
#[test]
fn the_energy_of_a_cuda_card_is_split_over_its_requests() {
    if !device() {
        return;
    }
    let (home, model) = (Home::new(), tiny_model());
    home.wallet("ada", 10_000);
    let mut sum = 0.0;
    for no_counter in [false, true] {
        let arguments = ["generate", "Hello there", "--model", &model, "--user", "ada", "--output", "json"];
        let mut command = home.command(&arguments);
        command.args(["--device", "cuda", "--max-tokens", "100", "--ignore-eos"]);
        if no_counter {
            command.env("FAKENVML_NO_COUNTER", "1");
        }
        let answer = parse(&command.output().expect("the program starts"));
        let joules = answer["energy_joules"].as_f64().unwrap_or_else(|| panic!("a card tells: {answer}"));
        let seconds = answer["timing"]["total_ms"].as_f64().expect("it took a while") / 1e3;
        assert!(joules > 0.0 && joules < 450.0 * seconds + 10.0, "{joules} J in {seconds} s");
        if is_driver_for_tests() {
            assert!(joules > 150.0 * seconds - 10.0, "{joules} J in {seconds} s at 300 W");
        }
        sum += joules;
    }
    let usage = home.json(&["usage"]);
    let joules = usage[0]["energy_joules"].as_f64().expect("a sum");
    assert!((joules - sum).abs() < 1e-3, "{joules} of {sum} J");
}

fn is_driver_for_tests() -> bool {
    tokrun_kernels::cuda::probe().is_ok_and(|machine| machine.devices[0].name == "CPU shim")
}

/// A device that is not there is an error with a hint, with and without a driver.
#[test]
fn a_device_that_is_not_there_is_refused() {
    let home = Home::new();
    let model = tiny_model();
    let output = home.run(&["generate", "x", "--model", &model, "--device", "cuda:99"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("hint: use --device cpu"), "{error}");
}
