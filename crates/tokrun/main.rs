//! tokrun
fn main() {}
