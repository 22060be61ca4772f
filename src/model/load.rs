//! Puts a model's weights on a device, one product at a time, giving back the file's pages behind it.

use crate::base::config::LoadFormat;
use crate::base::{DType, Error, Result};
use crate::hal::{Device, HostMatrix, Matrix, Stream, Tensor};
use crate::model::config::{ModelInfo, check_length};
use crate::model::registry;
use crate::model::rope;
use crate::model::spec::WeightNames;
use crate::model::weights::{DummyWeights, SafetensorsWeights, WeightData, WeightSource};
use half::{bf16, f16};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

/// How far loading is, in bytes of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    pub bytes_done: usize,
    pub bytes_total: usize,
}

/// Weights of one decoder layer.
#[derive(Debug)]
pub struct Layer {
    pub input_norm: Tensor,
    /// Query, key and value rows.
    pub qkv: Matrix,
    pub output: Matrix,
    pub post_norm: Tensor,
    /// Gate rows, then up rows.
    pub gate_up: Matrix,
    pub down: Matrix,
}

/// A model on a device.
#[derive(Debug)]
pub struct Model {
    pub info: ModelInfo,
    pub embed: Matrix,
    pub layers: Vec<Layer>,
    pub final_norm: Tensor,
    /// The embedding table itself when the two are tied.
    pub head: Matrix,
    /// F32 `[max_len, head_dim]`.
    pub rope: Tensor,
}

/// Loads what `info` describes from `dir` for sequences of at most `max_len` tokens. `progress` is called after every
/// product; its error ends the loading and is returned. A tensor that is missing, unknown, of another shape or of an
/// unknown dtype is an error that names it.
pub fn load(
    info: &ModelInfo,
    dir: &Path,
    format: LoadFormat,
    device: &dyn Device,
    (max_len, progress): (usize, &mut dyn FnMut(LoadProgress) -> Result<()>),
) -> Result<Model> {
    check_length(max_len)?;
    let names = registry::find(&info.architecture)?.names;
    let source: Box<dyn WeightSource> = match format {
        LoadFormat::Dummy => Box::new(DummyWeights { dtype: info.dtype, seed: 0 }),
        LoadFormat::Auto | LoadFormat::Safetensors => Box::new(SafetensorsWeights::open(dir)?),
    };
    check_names(source.as_ref(), info, names)?;
    let stream = device.stream()?;
    let mut loader = Loader { info, source: source.as_ref(), device, stream: stream.as_ref(), progress, bytes_done: 0 };
    loader.model(names, max_len)
}

/// Every tensor of the files must be one the model has, or one of the known leftovers.
fn check_names(source: &dyn WeightSource, info: &ModelInfo, names: &WeightNames) -> Result<()> {
    let Some(found) = source.names() else { return Ok(()) };
    let mut known = BTreeSet::from([names.embed, names.final_norm, names.head].map(str::to_owned));
    let (norms, matrices) = ([names.input_norm, names.post_norm], [names.query, names.key, names.value, names.output]);
    for i in 0..info.spec.num_layers {
        let parts = norms.iter().chain(&matrices).chain([&names.gate, &names.up, &names.down]);
        known.extend(parts.map(|part| names.in_layer(i, part)));
    }
    let unknown = |name: &String| !known.contains(name) && !names.ignored.iter().any(|end| name.ends_with(end));
    match found.into_iter().find(unknown) {
        None => Ok(()),
        Some(name) => Err(Error::invalid(format!(
            "weight tensor {name:?} has no place in a {} of {} layers as config.json describes it",
            info.architecture, info.spec.num_layers
        ))),
    }
}

/// Hands all values of a tensor, in order, to the function it is given.
type Fill<'a> = &'a mut dyn FnMut(&mut dyn FnMut(f32));

struct Loader<'a> {
    info: &'a ModelInfo,
    source: &'a dyn WeightSource,
    device: &'a dyn Device,
    stream: &'a dyn Stream,
    progress: &'a mut dyn FnMut(LoadProgress) -> Result<()>,
    bytes_done: usize,
}

impl Loader<'_> {
    fn model(&mut self, names: &WeightNames, max_len: usize) -> Result<Model> {
        let spec = &self.info.spec;
        let embed = self.matrix(&[(names.embed.to_owned(), spec.vocab_size)], spec.hidden_size)?;
        let mut layers = Vec::with_capacity(spec.num_layers);
        for i in 0..spec.num_layers {
            layers.push(self.layer(names, i)?);
        }
        let final_norm = self.vector(names.final_norm)?;
        let head = match spec.tied {
            true => Matrix::clone(&embed),
            false => self.matrix(&[(names.head.to_owned(), spec.vocab_size)], spec.hidden_size)?,
        };
        let frequencies = rope::frequencies(spec);
        let rope = self.floats(max_len, spec.head_dim, &mut |put| {
            (0..max_len).for_each(|position| rope::fill_row(&frequencies, position, &mut *put));
        })?;
        Ok(Model { info: self.info.clone(), embed, layers, final_norm, head, rope })
    }

    fn layer(&mut self, names: &WeightNames, i: usize) -> Result<Layer> {
        let spec = &self.info.spec;
        let (hidden, inner, attention) = (spec.hidden_size, spec.intermediate_size, spec.attention_size());
        let kv = spec.kv_heads * spec.head_dim;
        let part = |name: &str, rows: usize| (names.in_layer(i, name), rows);
        Ok(Layer {
            input_norm: self.vector(&names.in_layer(i, names.input_norm))?,
            qkv: self.matrix(&[part(names.query, attention), part(names.key, kv), part(names.value, kv)], hidden)?,
            output: self.matrix(&[part(names.output, hidden)], attention)?,
            post_norm: self.vector(&names.in_layer(i, names.post_norm))?,
            gate_up: self.matrix(&[part(names.gate, inner), part(names.up, inner)], hidden)?,
            down: self.matrix(&[part(names.down, hidden)], inner)?,
        })
    }

    /// One product of parts (name and rows) below each other.
    fn matrix(&mut self, parts: &[(String, usize)], cols: usize) -> Result<Matrix> {
        let source = self.source;
        let mut data = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            data.push(source.tensor(name, &[*rows, cols])?);
        }
        let accepted = &self.device.caps().weight_dtypes;
        if data.iter().any(|d| d.dtype != data[0].dtype || !accepted.contains(&d.dtype)) {
            data = data.iter().map(widened).collect();
        }
        let host: Vec<_> = data
            .iter()
            .zip(parts)
            .map(|(d, (_, rows))| HostMatrix { rows: *rows, cols, dtype: d.dtype, data: &d.bytes })
            .collect();
        let matrix = self.device.load_matrix(&host).map_err(|e| e.within(&parts[0].0))?;
        parts.iter().for_each(|(name, _)| source.release(name));
        self.advance(parts.iter().map(|p| p.1).sum::<usize>() * cols * self.info.dtype.size())?;
        Ok(matrix)
    }

    /// Norm weights, in F32 whatever the file holds.
    fn vector(&mut self, name: &str) -> Result<Tensor> {
        let size = self.info.spec.hidden_size;
        let data = widened(&self.source.tensor(name, &[size])?);
        let values = data.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let tensor = self.floats(1, size, &mut |put| values.clone().for_each(&mut *put))?;
        self.source.release(name);
        self.advance(size * DType::F32.size())?;
        Ok(tensor)
    }

    /// An F32 tensor on the device with the values that `fill` puts, in order.
    fn floats(&self, rows: usize, cols: usize, fill: Fill<'_>) -> Result<Tensor> {
        let bytes = rows * cols * DType::F32.size();
        let mut host = self.device.host_buffer(bytes)?;
        let mut places = host.bytes_mut().chunks_exact_mut(DType::F32.size());
        fill(&mut |x| {
            if let Some(place) = places.next() {
                place.copy_from_slice(&x.to_ne_bytes());
            }
        });
        let tensor = Tensor::new(self.device.alloc(bytes)?, 0, rows, cols, DType::F32);
        self.stream.upload(&tensor, host.as_ref())?;
        self.stream.record()?.wait()?;
        Ok(tensor)
    }

    fn advance(&mut self, bytes: usize) -> Result<()> {
        self.bytes_done += bytes;
        let bytes_total = self.info.weight_bytes;
        (self.progress)(LoadProgress { bytes_done: self.bytes_done.min(bytes_total), bytes_total })
    }
}

/// The same numbers in F32.
fn widened<'a>(data: &WeightData<'a>) -> WeightData<'a> {
    let half = |widen: fn([u8; 2]) -> f32| -> Cow<'a, [u8]> {
        Cow::Owned(data.bytes.chunks_exact(2).flat_map(|b| widen([b[0], b[1]]).to_le_bytes()).collect())
    };
    let bytes = match data.dtype {
        DType::F16 => half(|b| f16::from_le_bytes(b).to_f32()),
        DType::Bf16 => half(|b| bf16::from_le_bytes(b).to_f32()),
        _ => data.bytes.clone(),
    };
    WeightData { dtype: DType::F32, bytes }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
