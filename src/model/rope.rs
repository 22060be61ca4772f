//! The table of rotary cosines and sines, in f32 as the reference implementation computes it.

use crate::model::spec::{DecoderSpec, RopeScaling};
use std::f32::consts::TAU;

/// Angle per position of each of the `head_dim / 2` pairs.
pub fn frequencies(spec: &DecoderSpec) -> Vec<f32> {
    let dim = spec.head_dim;
    let plain = (0..dim / 2).map(|i| 1.0 / spec.rope_theta.powf((2 * i) as f32 / dim as f32));
    plain.map(|f| scale(f, spec.rope_scaling)).collect()
}

fn scale(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
            let wavelength = TAU / frequency;
            if wavelength < original_max_position / high_freq_factor {
                frequency
            } else if wavelength > original_max_position / low_freq_factor {
                frequency / factor
            } else {
                let turns = original_max_position / wavelength;
                let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - keep) * frequency / factor + keep * frequency
            }
        }
    }
}

/// Row `p` of the table: cosines of all pairs at position `p`, then their sines.
pub fn fill_row(frequencies: &[f32], position: usize, mut put: impl FnMut(f32)) {
    let angle = |f: &f32| position as f32 * f;
    frequencies.iter().for_each(|f| put(angle(f).cos()));
    frequencies.iter().for_each(|f| put(angle(f).sin()));
}
