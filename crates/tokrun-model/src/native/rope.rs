//! Frequencies of rotary position embeddings, with the scalings that stretch them over longer contexts.

use std::f64::consts::TAU;

use tokrun_kernels::{Rope, RopeStyle};

/// How the frequencies of a model are stretched.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scaling {
    /// Not at all.
    None,
    /// Positions are divided by it.
    Linear(f64),
    /// Llama 3: low frequencies are divided by `factor`, high ones stay, those between are mixed.
    Llama3 { factor: f64, low: f64, high: f64, original_tokens: f64 },
    /// YaRN: the same idea, by how often a pair turns within the original context.
    Yarn { factor: f64, original_tokens: f64, beta_fast: f64, beta_slow: f64, truncate: bool, magnitude: f64 },
    /// Each frequency is divided by its own factor: LongRoPE, and the `rope_freqs` of Llama 3 in GGUF files.
    Factors { each: Vec<f32>, magnitude: f64 },
}

/// What YaRN multiplies sine and cosine with for a context that is `factor` times the original one, and a `scale` of the
/// model's own.
pub(super) fn yarn_magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

/// What LongRoPE multiplies sine and cosine with, for a context that is `factor` times the original one.
pub(super) fn longrope_magnitude(factor: f64, original_tokens: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_tokens.ln()).sqrt() }
}

/// The table of a layer whose heads turn their first `rotary` values.
pub(super) fn rope(base: f64, rotary: usize, style: RopeStyle, scaling: &Scaling) -> Rope {
    let plain = (0..rotary / 2).map(|pair| base.powf(-2.0 * pair as f64 / rotary as f64));
    let (frequencies, magnitude): (Vec<f64>, f64) = match scaling {
        Scaling::None => (plain.collect(), 1.0),
        Scaling::Linear(factor) => (plain.map(|frequency| frequency / factor).collect(), 1.0),
        Scaling::Llama3 { factor, low, high, original_tokens } => {
            (plain.map(|frequency| llama3(frequency, *factor, *low, *high, *original_tokens)).collect(), 1.0)
        }
        Scaling::Yarn { factor, original_tokens, beta_fast, beta_slow, truncate, magnitude } => {
            // The pair that turns so many times within the original context.
            let pair = |turns: f64| rotary as f64 * (original_tokens / (turns * TAU)).ln() / (2.0 * base.ln());
            let (mut first, mut last) = (pair(*beta_fast), pair(*beta_slow));
            if *truncate {
                (first, last) = (first.floor(), last.ceil());
            }
            let (first, last) = (first.max(0.0), last.min(rotary as f64 - 1.0));
            let width = if first == last { 0.001 } else { last - first };
            let mixed = plain.enumerate().map(|(index, frequency)| {
                let stretched = ((index as f64 - first) / width).clamp(0.0, 1.0);
                frequency / factor * stretched + frequency * (1.0 - stretched)
            });
            (mixed.collect(), *magnitude)
        }
        Scaling::Factors { each, magnitude } => {
            (plain.zip(each).map(|(frequency, factor)| frequency / f64::from(*factor)).collect(), *magnitude)
        }
    };
    Rope {
        frequencies: frequencies.into_iter().map(|frequency| frequency as f32).collect(),
        magnitude: magnitude as f32,
        style,
    }
}

fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original_tokens: f64) -> f64 {
    let turns = original_tokens * frequency / TAU;
    if turns < low {
        frequency / factor
    } else if turns > high {
        frequency
    } else {
        let kept = (turns - low) / (high - low);
        (1.0 - kept) * frequency / factor + kept * frequency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rotary: usize, scaling: &Scaling) -> Rope {
        rope(10_000.0, rotary, RopeStyle::Halves, scaling)
    }

    #[test]
    fn unscaled_frequencies_fall_from_one_to_the_base() {
        let rope = table(4, &Scaling::None);
        assert_eq!(rope.frequencies, [1.0, 0.01]);
        assert_eq!(rope.magnitude, 1.0);
        assert_eq!(table(4, &Scaling::Linear(4.0)).frequencies, [0.25, 0.0025]);
        let factors = Scaling::Factors { each: vec![1.0, 2.0], magnitude: 1.5 };
        assert_eq!(table(4, &factors).frequencies, [1.0, 0.005]);
        assert_eq!(table(4, &factors).magnitude, 1.5);
    }

    /// Fast pairs stay, slow ones are divided by the factor, and between them the frequencies fall without a jump.
    #[test]
    fn llama3_and_yarn_keep_what_turns_fast_and_stretch_what_turns_slowly() {
        let plain = table(64, &Scaling::None).frequencies;
        let llama3 = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_tokens: 1024.0 };
        let yarn = Scaling::Yarn {
            factor: 8.0,
            original_tokens: 1024.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            magnitude: yarn_magnitude(8.0, 1.0),
        };
        for scaling in [llama3, yarn] {
            let scaled = table(64, &scaling);
            assert_eq!(scaled.frequencies[0], plain[0]);
            assert!((scaled.frequencies[31] * 8.0 - plain[31]).abs() < 1e-9, "{scaling:?}");
            assert!(scaled.frequencies.is_sorted_by(|left, right| left > right), "{scaling:?}");
        }
        assert!((yarn_magnitude(8.0, 1.0) - 1.207_944_154).abs() < 1e-6);
    }
}
