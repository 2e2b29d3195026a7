//! These tests can fail: with a kernel that leaves its first blocks out, each kind of them does.

use std::process::{Command, Stdio};

/// Kernels by the beginning of their names, and a test that runs them.
const FAULTS: [(&str, &str); 5] = [
    ("linear_", "linear::every_type_is_multiplied_as_the_reference_does"),
    ("attend_", "heads::the_largest_heads_agree"),
    ("prompt_", "prompts::tiles_of_every_end_agree"),
    ("sample", "sampling::the_largest_vocabularies_are_drawn_from_alike"),
    ("select_rows", "rows::selected_rows_are_what_the_next_operations_see"),
];

#[test]
fn a_kernel_that_leaves_work_undone_is_found() {
    let is_for_tests = tokrun_kernels::cuda::probe().is_ok_and(|machine| machine.devices[0].name == "CPU shim");
    if !is_for_tests {
        return;
    }
    let this = std::env::current_exe().expect("it runs");
    for (kernels, test) in FAULTS {
        let mut tests = Command::new(&this);
        tests.args(["--exact", test]).env("FAKECUDA_FAULT", kernels).stdout(Stdio::null()).stderr(Stdio::null());
        let passed = tests.status().expect("it starts").success();
        assert!(!passed, "{test} passes though {kernels}* leave their first blocks out");
    }
}
