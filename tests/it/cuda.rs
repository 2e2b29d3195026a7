//! `--device cuda` through the built program, on any driver that is there: the one for tests counts (`cargo xtask
//! fake-driver`). Without one the tests say that they were skipped, unless TOKRUN_REQUIRE_CUDA=1 asks them to fail.

use std::process::Output;

use serde_json::Value;

use crate::support::{Home, parse, text, tiny_model};

/// Whether there is a device.
pub(crate) fn device() -> bool {
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

pub(crate) fn is_driver_for_tests() -> bool {
    tokrun_kernels::cuda::probe().is_ok_and(|machine| machine.devices[0].name == "CPU shim")
}

/// Whatever a step of decoding draws, and from however many sequences: it is one graph, captured when the model was loaded,
/// between a copy to the card and one from it. Nothing else is captured, allocated, freed, launched or waited for.
#[test]
fn a_step_of_decoding_is_one_graph_between_two_copies() {
    if !device() || !is_driver_for_tests() {
        return;
    }
    let (home, model) = (Home::new(), tiny_model());
    home.wallet("ada", 10_000);
    let generate = ["generate", "Hello", "--model", &model, "--user", "ada", "--ignore-eos", "--max-tokens", "30"];
    let sampled = ["--no-speculation", "--temperature", "0.7", "--top-k", "9"];
    let bench = ["bench", "--model", &model, "-p", "0", "-n", "6", "-r", "1", "--ledger", "off"];
    // Graphs for 1, 2, 4, 8, 16, 24 ... 64 rows.
    let runs = [
        ([&generate[..], &["--no-speculation"]].concat(), 1),
        ([&generate[..], &sampled].concat(), 1),
        ([&bench[..], &["--concurrency", "1,3,6,17,64"]].concat(), 11),
    ];
    for (arguments, buckets) in runs {
        let calls = traced(&home, &arguments);
        let captures = |calls: &[String]| calls.iter().filter(|call| *call == "cuStreamBeginCapture_v2").count();
        let first = calls.iter().position(|call| call == "cuGraphLaunch").expect("steps are graphs");
        assert_eq!((captures(&calls[..first]), captures(&calls[first..])), (buckets, 0), "{arguments:?}");
        // What comes before the first one belongs to loading and to prompts, what comes after the last one to the end.
        let mut steps: Vec<&[String]> = calls.split(|call| call == "cuGraphLaunch").skip(1).collect();
        steps.pop();
        assert!(steps.len() >= 20, "{} steps: {arguments:?}", steps.len());
        for step in steps {
            let asked: Vec<&str> =
                step.iter().map(String::as_str).filter(|call| *call != "cuEventSynchronize").collect();
            let copies = ["cuMemcpyDtoHAsync_v2", "cuEventRecord", "cuMemcpyHtoDAsync_v2", "cuEventRecord"];
            assert_eq!(asked, copies, "{arguments:?}");
        }
    }
}

/// What the driver for tests was asked to do, a call each; its kernels do nothing.
fn traced(home: &Home, arguments: &[&str]) -> Vec<String> {
    let trace = home.path().join("trace");
    let mut command = home.command(arguments);
    command.args(["--device", "cuda"]).env("FAKECUDA_TRACE", &trace).env("FAKECUDA_NO_KERNELS", "1");
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    std::fs::read_to_string(trace).expect("a trace").lines().map(str::to_owned).collect()
}

/// One binary for machines with and without a driver: it is looked for when it is needed.
#[test]
#[cfg(target_os = "linux")]
fn the_program_is_linked_with_no_cuda_library() {
    let ldd = std::process::Command::new("ldd").arg(env!("CARGO_BIN_EXE_tokrun")).output().expect("libc brings ldd");
    let libraries = text(&ldd.stdout);
    assert!(libraries.contains("libc.so"), "{libraries}");
    for name in ["cuda", "nvidia", "cublas", "nvrtc", "nccl"] {
        assert!(!libraries.contains(name), "{libraries}");
    }
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

/// Each card has its row, in turn.
#[test]
fn all_cards_are_benched() {
    if !device() || !is_driver_for_tests() {
        return;
    }
    let home = Home::new();
    let model = tiny_model();
    let arguments =
        ["bench", "--model", &model, "-p", "4", "-n", "0", "-r", "1", "--ledger", "off", "--output", "json"];
    let mut command = home.command(&arguments);
    command.args(["--device", "cuda:all", "--deterministic"]).env("FAKECUDA_DEVICES", "2");
    let rows = parse(&command.output().expect("the program starts"));
    let devices: Vec<_> = rows.as_array().expect("a list").iter().map(|row| row["device"].clone()).collect();
    assert_eq!(devices, ["cuda:0", "cuda:1"]);
}

/// A driver for tests that is set to fail: what `--device cuda` and `--device auto` make of it.
fn failing(settings: &[(&str, &str)], device: &str, extra: &[&str]) -> (Output, Home) {
    let (home, model) = (Home::new(), tiny_model());
    home.wallet("ada", 10_000);
    let base = ["generate", "Hello there", "--model", &model, "--user", "ada", "--output", "json", "--no-stats"];
    let mut command = home.command(&[&base[..], &["--device", device, "--ignore-eos"], extra].concat());
    for (name, value) in settings {
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    (command.output().expect("the program starts"), home)
}

/// Asked for, the device is an error that names the reason and what to do; not asked for, the processor computes, and one
/// line says why, unless there is no driver at all.
#[test]
fn a_card_that_cannot_be_used_stops_or_gives_way_as_asked() {
    if !device() || !is_driver_for_tests() {
        return;
    }
    let cases = [
        (("LD_LIBRARY_PATH", ""), "no CUDA driver", false),
        (("FAKECUDA_NODEV", "1"), "reports no device", true),
        (("FAKECUDA_CC", "7.5"), "needs 8.0", true),
        (("FAKECUDA_MEMORY_BYTES", "100000"), "does not fit", true),
    ];
    for (setting, reason, is_told) in cases {
        let (output, home) = failing(&[setting], "cuda", &["--max-tokens", "4"]);
        assert_eq!(output.status.code(), Some(1), "{setting:?}: {}", text(&output.stdout));
        let error = &serde_json::from_slice::<Value>(&output.stdout).expect("one object")["error"];
        assert!(error["message"].as_str().is_some_and(|message| message.contains(reason)), "{setting:?}: {error}");
        assert!(error["hint"].is_string(), "{setting:?}: {error}");
        assert_eq!(home.balance("ada"), 10_000, "nothing was generated");

        let (output, _) = failing(&[setting], "auto", &["--max-tokens", "4"]);
        assert_eq!(parse(&output)["device"], "cpu", "{setting:?}");
        let notes = text(&output.stderr);
        assert_eq!(notes.lines().count(), usize::from(is_told), "{setting:?}: {notes}");
        assert_eq!(notes.contains(reason), is_told, "{setting:?}: {notes}");
    }
}

/// What is planned is enough to load and compute with, and less is refused before anything is loaded.
#[test]
fn a_card_needs_the_memory_that_was_planned() {
    if !device() || !is_driver_for_tests() {
        return;
    }
    let (home, model) = (Home::new(), tiny_model());
    let plan = home.json(&["model", "show", &model, "--fit", "--device", "cuda"]);
    let bytes = |name: &str| plan[name].as_u64().unwrap_or_else(|| panic!("{name}: {plan}"));
    assert_eq!(plan["context_tokens"], plan["model_context_tokens"], "{plan}");
    let needed = bytes("weight_bytes") + bytes("workspace_bytes");
    let run = |memory: u64, extra: &[&str]| {
        let memory = memory.to_string();
        failing(&[("FAKECUDA_MEMORY_BYTES", &memory)], "cuda", &[&["--max-tokens", "4"], extra].concat()).0
    };
    let message = |output: Output| {
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        text(&output.stdout).clone()
    };
    assert!(message(run(needed - 1, &[])).contains("of weights"));
    let large = (2 * needed).to_string();
    assert!(message(run(2 * needed, &["--kv-cache-bytes", &large])).contains("--kv-cache-bytes"));
    let enough = run(needed + bytes("kv_cache_bytes") / 8 * 10, &[]);
    assert!(enough.status.success(), "{} {}", text(&enough.stdout), text(&enough.stderr));
}

/// A kernel fails in the middle of an answer: what was delivered until then is paid, nothing else is, and the books balance.
#[test]
fn a_card_that_fails_on_the_way_leaves_the_books_exact() {
    if !device() || !is_driver_for_tests() {
        return;
    }
    let mut delivered = Vec::new();
    for launch in ["1", "150", "400", "900"] {
        let (output, home) = failing(&[("FAKECUDA_FAIL_LAUNCH", launch)], "cuda", &["--max-tokens", "200"]);
        assert_eq!(output.status.code(), Some(1), "launch {launch}: {}", text(&output.stdout));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("one object");
        let message = answer["error"]["message"].as_str().expect("a message").to_owned();
        assert!(message.contains("kernel failed") && answer["error"]["hint"].is_string(), "{answer}");
        let tokens = answer["token_ids"].as_array().map_or(0, Vec::len) as i64;
        let total = answer["usage"]["total_tokens"].as_i64().unwrap_or(0);
        assert_eq!(answer["usage"]["completion_tokens"].as_i64().unwrap_or(0), tokens);
        assert_eq!((home.spent("ada"), 10_000 - home.balance("ada")), (total, total), "launch {launch}: {answer}");
        home.verify();
        delivered.push(tokens);
    }
    assert!(delivered.iter().any(|tokens| (1..200).contains(tokens)), "none failed on the way: {delivered:?}");
}
