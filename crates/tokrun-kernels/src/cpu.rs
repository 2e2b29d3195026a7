//! The processor: which vector extensions it has, and the operations computed with them.

mod activations;
mod arena;
mod attention;
mod backend;
mod bandwidth;
mod floats;
mod formats;
mod gated;
mod kv;
mod linear;
mod matrix;
mod memory;
mod moe;
mod norm;
mod pool;
mod product;
mod rope;
mod rows;
mod simd;
#[cfg(test)]
mod testing;

pub use activations::Encoded as CpuEncoded;
pub use backend::{Cpu, CpuGated, CpuLinear, CpuOptions};
pub use kv::CpuKv;
pub use rows::CpuRows;
pub use simd::Level;

/// The vector extensions that matter to inference, from narrow to wide, that this processor has.
pub fn simd_extensions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx-vnni", is_x86_feature_detected!("avxvnni")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512-vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512-bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        found.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let found = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
            ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
            ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
            ("sve", std::arch::is_aarch64_feature_detected!("sve")),
        ];
        found.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

/// Threads that the operating system lets this process run at once.
pub fn threads_available() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_runs_at_least_one_thread() {
        assert!(super::threads_available() >= 1);
    }

    /// `/proc/cpuinfo` is the independent witness.
    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn extensions_are_those_the_kernel_reports() {
        let info = std::fs::read_to_string("/proc/cpuinfo").expect("Linux has it");
        let flags: Vec<&str> = info
            .lines()
            .find_map(|line| line.strip_prefix("flags"))
            .expect("x86 reports flags")
            .split_whitespace()
            .collect();
        let found = super::simd_extensions();
        for (ours, theirs) in [("avx2", "avx2"), ("avx512f", "avx512f"), ("avx512-vnni", "avx512_vnni")] {
            assert_eq!(found.contains(&ours), flags.contains(&theirs), "{ours}");
        }
    }
}
