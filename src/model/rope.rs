//! The table of rotary cosines and sines, in f32 as the reference implementation computes it.

use crate::base::Result;
use crate::hal::{Stream, Tensor};
use crate::model::spec::{RopeScaling, RopeSpec};
use std::f32::consts::TAU;

/// Angle per position of each of the `dim / 2` pairs.
pub fn frequencies(spec: &RopeSpec, dim: usize) -> Vec<f32> {
    let plain = (0..dim / 2).map(|i| 1.0 / spec.theta.powf((2 * i) as f32 / dim as f32));
    plain.map(|f| scale(f, spec.scaling)).collect()
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

/// A row for each position: cosines of all pairs at it, then their sines; or all angles twice, for [`turned`].
pub fn fill(frequencies: &[f32], positions: usize, angles: bool, put: &mut dyn FnMut(f32)) {
    let functions = if angles { [|angle| angle, |angle| angle] } else { [f32::cos, f32::sin] };
    for position in 0..positions {
        for function in functions {
            frequencies.iter().for_each(|f| put(function(position as f32 * f)));
        }
    }
}

/// The table of these angles by the device's own functions, as the reference has it: they are a bit off here and there.
pub fn turned(stream: &dyn Stream, angles: Tensor) -> Result<Tensor> {
    stream.turn(&angles)?;
    stream.record()?.wait()?;
    Ok(angles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192.0,
        };
        assert_eq!((scale(1.0, scaling), scale(1e-6, scaling)), (1.0, 1e-6 / 8.0));
        // A wave that turns twice in the original length lies a third of the way between the two.
        let middle = TAU / 4096.0;
        let expected = middle * (2.0 / 3.0 / 8.0 + 1.0 / 3.0);
        assert!((scale(middle, scaling) - expected).abs() < 1e-8);
        assert_eq!(scale(0.5, RopeScaling::Linear { factor: 4.0 }), 0.125);
    }

    #[test]
    fn a_row_is_cosines_then_sines() {
        let (mut rows, mut angles) = (vec![], vec![]);
        fill(&[1.0, 0.25], 3, false, &mut |x| rows.push(x));
        fill(&[1.0, 0.25], 3, true, &mut |x| angles.push(x));
        assert_eq!(rows[8..], [2_f32.cos(), 0.5_f32.cos(), 2_f32.sin(), 0.5_f32.sin()]);
        assert_eq!((rows.len(), &angles[4..]), (12, &[1.0, 0.25, 1.0, 0.25, 2.0, 0.5, 2.0, 0.5][..]));
    }
}
