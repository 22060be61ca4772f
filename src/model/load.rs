//! Puts a model's weights on a device, one product at a time, giving back the file's pages behind it.

use crate::base::config::{LoadFormat, Placement};
use crate::base::{DType, Error, Result};
use crate::hal::{Device, HostBuffer, HostMatrix, Matrix, MatrixLoader, MatrixPart, Stream, Tensor};
use crate::model::config::{ModelInfo, check_length};
use crate::model::placement;
use crate::model::registry;
use crate::model::rope;
use crate::model::shard::{Part, Shard, cut};
use crate::model::spec::{WeightNames, bias_name};
use crate::model::watch::{Report, Watch};
use crate::model::weights::{DummyWeights, SafetensorsWeights, WeightData, WeightSource};
use half::{bf16, f16};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

/// Smallest buffer that vectors go to the device through, one after the other.
const STAGING_BYTES: usize = 1 << 20;
/// Time between two reports while a device reads what it was handed.
const REPORT: Duration = Duration::from_millis(20);

/// How far loading is, in bytes of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    pub bytes_done: usize,
    pub bytes_total: usize,
}

/// A product and, where it has one, its bias, F32 `[1, rows]`.
#[derive(Debug)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Tensor>,
}

/// Weights of one decoder layer. Norm weights are F32, with the spec's shift added; on a device that is aligned those without a
/// shift are in the model's dtype.
#[derive(Debug)]
pub struct Layer {
    pub input_norm: Tensor,
    /// Query, key and value rows.
    pub qkv: Linear,
    /// For single query heads and key heads.
    pub head_norms: Option<[Tensor; 2]>,
    pub output: Linear,
    /// For the attention output.
    pub attention_norm: Option<Tensor>,
    pub post_norm: Tensor,
    /// Gate rows, then up rows.
    pub gate_up: Linear,
    pub down: Linear,
    /// For the MLP output.
    pub mlp_norm: Option<Tensor>,
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
    /// F32 `[max_len, head_dim]`, one of each of the spec's ropes.
    pub ropes: Vec<Tensor>,
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
    load_shard(info, dir, (format, Shard::WHOLE), device, (max_len, progress))
}

/// What is loaded, from what, and where it goes.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    pub format: LoadFormat,
    pub shard: Shard,
    /// Where the embedding table goes.
    pub embedding: Placement,
}

impl From<(LoadFormat, Shard)> for LoadOptions {
    fn from((format, shard): (LoadFormat, Shard)) -> Self {
        Self { format, shard, embedding: Placement::Device }
    }
}

/// The same for one rank, which reads its rows and columns only; `info` is the whole model's, the result's is the rank's.
/// Embeddings, norms and head are whole on every rank. Ranks that the model cannot be spread over are `Invalid`, as is a tied
/// head whose table is to be in host memory.
pub fn load_shard(
    info: &ModelInfo,
    dir: &Path,
    options: impl Into<LoadOptions>,
    device: &dyn Device,
    (max_len, progress): (usize, &mut dyn FnMut(LoadProgress) -> Result<()>),
) -> Result<Model> {
    let LoadOptions { format, shard, embedding } = options.into();
    let mut watch = Watch::start();
    check_length(max_len)?;
    Shard::check(&info.spec, shard.ranks)?;
    placement::check(info, embedding)?;
    let names = registry::find(&info.architecture)?.names;
    let source: Box<dyn WeightSource> = match format {
        LoadFormat::Dummy => Box::new(DummyWeights { dtype: info.dtype, seed: 0 }),
        LoadFormat::Auto | LoadFormat::Safetensors => Box::new(SafetensorsWeights::open(dir)?),
    };
    check_names(source.as_ref(), info, names)?;
    watch.mark("files opened");
    let (source, local) = (source.as_ref(), shard.info(info));
    // What a source makes up is made on the device.
    let matrices = match format {
        LoadFormat::Dummy => None,
        _ => device.loader(local.weight_bytes, area(source, (info, &local), names.embed, (device, embedding)))?,
    };
    watch.mark("readers started");
    let report = Report::new(progress);
    let (stream, staging) = (None, None);
    let mut loader =
        Loader { info, shard, local, embedding, source, device, stream, matrices, staging, report, watch: &mut watch };
    let model = loader.model(names, max_len)?;
    let times = loader.finish()?;
    drop(loader);
    watch.mark("tidied up");
    log::debug!(target: "yinian::load", "weights: {watch}; {times}");
    Ok(model)
}

/// What the rank's matrices take together; nothing where files have another dtype than the config says.
fn area(
    source: &dyn WeightSource,
    (info, local): (&ModelInfo, &ModelInfo),
    embed: &str,
    (device, embedding): (&dyn Device, Placement),
) -> usize {
    let found = source.tensor(embed, &[info.spec.vocab_size, info.spec.hidden_size]);
    match found {
        Ok(table) if table.dtype == info.dtype => device.area(&placement::device_matrices(local, embedding)),
        _ => 0,
    }
}

/// Every tensor of the files must be one the model has, or one of the known leftovers.
fn check_names(source: &dyn WeightSource, info: &ModelInfo, names: &WeightNames) -> Result<()> {
    let Some(found) = source.names() else { return Ok(()) };
    let mut known = BTreeSet::from([names.embed, names.final_norm, names.head].map(str::to_owned));
    let parts = names.layer_parts(&info.spec);
    for i in 0..info.spec.layers.len() {
        known.extend(parts.iter().map(|part| names.in_layer(i, part)));
    }
    let unknown = |name: &String| !known.contains(name) && !names.ignored.iter().any(|end| name.ends_with(end));
    match found.into_iter().find(unknown) {
        None => Ok(()),
        Some(name) => Err(Error::invalid(format!(
            "weight tensor {name:?} has no place in a {} of {} layers as config.json describes it",
            info.architecture,
            info.spec.layers.len()
        ))),
    }
}

/// What happens to the rows of a matrix on its way to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    AsTheyAre,
    OfLengthOne,
}

/// Columns of a matrix, and which of them a rank has.
#[derive(Debug, Clone)]
struct Cols {
    all: usize,
    take: Range<usize>,
}

impl Cols {
    fn whole(all: usize) -> Self {
        Self { all, take: 0..all }
    }
}

/// Hands all values of a tensor, in order, to the function it is given.
type Fill<'a> = &'a mut dyn FnMut(&mut dyn FnMut(f32));

struct Loader<'a> {
    /// The whole model.
    info: &'a ModelInfo,
    shard: Shard,
    /// The rank's share of it.
    local: ModelInfo,
    embedding: Placement,
    source: &'a dyn WeightSource,
    device: &'a dyn Device,
    /// For vectors. Opened once a matrix is under way: that takes its time, in which the device can copy.
    stream: Option<Box<dyn Stream>>,
    /// Where the device loads matrices side by side.
    matrices: Option<Box<dyn MatrixLoader>>,
    /// What vectors were uploaded from last.
    staging: Option<Box<dyn HostBuffer>>,
    report: Report<'a>,
    watch: &'a mut Watch,
}

impl Loader<'_> {
    fn model(&mut self, names: &WeightNames, max_len: usize) -> Result<Model> {
        let spec = &self.info.spec;
        let table = |name: &str| [Part::whole(name.to_owned(), spec.vocab_size)];
        let cols = Cols::whole(spec.hidden_size);
        let embed = self.placed(&table(names.embed), &cols, (Rows::AsTheyAre, self.embedding))?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for i in 0..spec.layers.len() {
            layers.push(self.layer(names, i)?);
        }
        let final_norm = self.norm(names.final_norm.to_owned(), spec.hidden_size)?;
        let head = match (spec.tied, spec.unit_head) {
            (true, _) => Matrix::clone(&embed),
            (false, true) => self.matrix(&table(names.head), &cols, Rows::OfLengthOne)?,
            (false, false) => self.matrix(&table(names.head), &cols, Rows::AsTheyAre)?,
        };
        let mut ropes = Vec::with_capacity(spec.ropes.len());
        for rope in &spec.ropes {
            let (frequencies, angles) = (rope::frequencies(rope, spec.head_dim), self.device.caps().aligned);
            let fill: Fill<'_> = &mut |put| rope::fill(&frequencies, max_len, angles, put);
            let table = self.numbers((max_len, spec.head_dim, DType::F32), fill);
            let table = table.and_then(|t| if angles { rope::turned(self.stream()?, t) } else { Ok(t) });
            ropes.push(table.map_err(|e| e.within(format!("the rope table of {max_len} positions")))?);
        }
        Ok(Model { info: self.local.clone(), embed, layers, final_norm, head, ropes })
    }

    fn layer(&mut self, names: &WeightNames, i: usize) -> Result<Layer> {
        let spec = &self.info.spec;
        let (hidden, inner, biases) = (spec.hidden_size, spec.intermediate_size, spec.biases);
        let name = |part: &str| names.in_layer(i, part);
        let (shard, whole) = (self.shard, Cols::whole(hidden));
        let qkv = shard.qkv(spec, names.qkv, name);
        let gate_up = [names.gate, names.up]
            .map(|part| Part { take: vec![shard.share(inner)], ..Part::whole(name(part), inner) });
        let heads = shard.share(spec.heads);
        let attended =
            Cols { all: spec.attention_size(), take: heads.start * spec.head_dim..heads.end * spec.head_dim };
        let inner = Cols { all: inner, take: shard.share(inner) };
        let [query_norm, key_norm] = names.head_norms.map(name);
        Ok(Layer {
            input_norm: self.norm(name(names.input_norm), hidden)?,
            qkv: self.linear(&qkv, &whole, biases.qkv)?,
            head_norms: match spec.head_norms {
                true => Some([self.norm(query_norm, spec.head_dim)?, self.norm(key_norm, spec.head_dim)?]),
                false => None,
            },
            output: self.linear(&[Part::whole(name(names.output), hidden)], &attended, biases.output)?,
            attention_norm: self.branch_norm(name(names.attention_norm))?,
            post_norm: self.norm(name(names.post_norm), hidden)?,
            gate_up: self.linear(&gate_up, &whole, biases.mlp)?,
            down: self.linear(&[Part::whole(name(names.down), hidden)], &inner, biases.mlp)?,
            mlp_norm: self.branch_norm(name(names.mlp_norm))?,
        })
    }

    fn linear(&mut self, parts: &[Part], cols: &Cols, has_bias: bool) -> Result<Linear> {
        let weight = self.matrix(parts, cols, Rows::AsTheyAre)?;
        if !has_bias {
            return Ok(Linear { weight, bias: None });
        }
        if cols.take.start > 0 {
            // The ranks' products are added up; the first brings the bias.
            return Ok(Linear { weight, bias: None });
        }
        let biases: Vec<_> = parts.iter().map(|part| Part { name: bias_name(&part.name), ..part.clone() }).collect();
        Ok(Linear { weight, bias: Some(self.vector(&biases, (0.0, DType::F32))?) })
    }

    /// One product of parts below each other.
    fn matrix(&mut self, parts: &[Part], cols: &Cols, rows: Rows) -> Result<Matrix> {
        self.placed(parts, cols, (rows, Placement::Device))
    }

    fn placed(&mut self, parts: &[Part], cols: &Cols, (rows, placement): (Rows, Placement)) -> Result<Matrix> {
        if let Some(matrix) = self.random(parts, cols, (rows, placement))? {
            return Ok(matrix);
        }
        let source = self.source;
        let mut data = Vec::with_capacity(parts.len());
        for part in parts {
            data.extend(taken(source.tensor(&part.name, &[part.rows, cols.all])?, part, cols)?);
        }
        let accepted = &self.device.caps().weight_dtypes;
        if data.iter().any(|d| d.dtype != data[0].dtype || !accepted.contains(&d.dtype)) {
            data = data.iter().map(widened).collect();
        }
        let width = cols.take.len();
        if rows == Rows::OfLengthOne {
            data = data.iter().map(|d| with_unit_rows(d, width)).collect::<Result<_>>()?;
        }
        let matrix = self.handed_over(&data, width, placement).map_err(|e| e.within(&parts[0].name))?;
        parts.iter().for_each(|part| source.release(&part.name));
        self.advance(matrix.rows() * width * self.info.dtype.size())?;
        Ok(matrix)
    }

    /// To the device, or to what loads for it.
    fn handed_over(&mut self, data: &[WeightData<'_>], cols: usize, placement: Placement) -> Result<Matrix> {
        let parts = data.iter().map(|WeightData { dtype, bytes, file }| {
            let rows = bytes.len() / (cols * dtype.size());
            MatrixPart { matrix: HostMatrix { rows, cols, dtype: *dtype, data: bytes }, file: file.clone() }
        });
        let parts: Vec<_> = parts.collect();
        if let Some(matrices) = &mut self.matrices {
            return matrices.load(&parts, placement);
        }
        let parts: Vec<_> = parts.iter().map(|part| part.matrix).collect();
        match placement {
            Placement::Device => self.device.load_matrix(&parts),
            Placement::Host => self.device.load_host_matrix(&parts),
        }
    }

    /// What a rank takes of a matrix that the source makes up, made on the device.
    fn random(&mut self, parts: &[Part], cols: &Cols, (rows, placement): (Rows, Placement)) -> Result<Option<Matrix>> {
        if rows != Rows::AsTheyAre {
            return Ok(None);
        }
        let recipe = |p: &Part| self.source.random(&p.name, [p.rows, cols.all]);
        let Some(recipes) = parts.iter().map(recipe).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let (width, dtype) = (cols.take.len(), recipes[0].1);
        let taken = parts.iter().zip(&recipes).flat_map(|(part, (all, _))| {
            part.take.iter().flat_map(|rows| all.slice(rows.start, rows.len(), cols.all).columns(&cols.take, cols.all))
        });
        let taken: Vec<_> = taken.collect();
        let made = match placement {
            Placement::Device => self.device.random_matrix(&taken, width, dtype),
            Placement::Host => self.device.random_host_matrix(&taken, width, dtype),
        };
        let matrix = made.map_err(|e| e.within(&parts[0].name))?;
        self.advance(matrix.rows() * width * self.info.dtype.size())?;
        Ok(Some(matrix))
    }

    fn norm(&mut self, name: String, size: usize) -> Result<Tensor> {
        let shift = self.info.spec.norm_shift;
        // The reference multiplies in the model's dtype, but by shifted weights in F32.
        let in_model = self.device.caps().aligned && shift == 0.0;
        let dtype = if in_model { self.info.dtype } else { DType::F32 };
        self.vector(&[Part::whole(name, size)], (shift, dtype))
    }

    /// The norm of a branch's output, where the model has such norms.
    fn branch_norm(&mut self, name: String) -> Result<Option<Tensor>> {
        let spec = &self.info.spec;
        if spec.branch_norms { self.norm(name, spec.hidden_size).map(Some) } else { Ok(None) }
    }

    /// Parts behind each other plus `shift`, in `dtype` whatever the file holds.
    fn vector(&mut self, parts: &[Part], (shift, dtype): (f32, DType)) -> Result<Tensor> {
        let mut bytes = Vec::new();
        for part in parts {
            for data in taken(self.source.tensor(&part.name, &[part.rows])?, part, &Cols::whole(1))? {
                bytes.extend_from_slice(&widened(&data).bytes);
            }
        }
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]) + shift);
        let tensor = self
            .numbers((1, values.len(), dtype), &mut |put| values.clone().for_each(&mut *put))
            .map_err(|e| e.within(&parts[0].name))?;
        parts.iter().for_each(|part| self.source.release(&part.name));
        self.advance(bytes.len())?;
        Ok(tensor)
    }

    /// A tensor of rows, columns and a float dtype on the device with the values that `fill` puts, in order.
    fn numbers(&mut self, (rows, cols, dtype): (usize, usize, DType), fill: Fill<'_>) -> Result<Tensor> {
        let bytes = rows * cols * dtype.size();
        let mut host = match self.staging.take() {
            Some(host) if host.bytes().len() >= bytes => host,
            _ => self.device.host_buffer(bytes.max(STAGING_BYTES))?,
        };
        let mut places = host.bytes_mut()[..bytes].chunks_exact_mut(dtype.size());
        fill(&mut |x| {
            let Some(place) = places.next() else { return };
            match dtype {
                DType::F16 => place.copy_from_slice(&f16::from_f32(x).to_ne_bytes()),
                DType::Bf16 => place.copy_from_slice(&bf16::from_f32(x).to_ne_bytes()),
                _ => place.copy_from_slice(&x.to_ne_bytes()),
            }
        });
        let tensor = Tensor::new(self.device.alloc(bytes)?, 0, rows, cols, dtype);
        let stream = self.stream()?;
        stream.upload(&tensor, host.as_ref())?;
        stream.record()?.wait()?;
        self.staging = Some(host);
        Ok(tensor)
    }

    fn stream(&mut self) -> Result<&dyn Stream> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                self.watch.mark("first matrix handed over");
                let stream = self.device.stream().map_err(|e| e.within("the stream that loads weights"))?;
                self.watch.mark("stream opened");
                stream
            }
        };
        Ok(&**self.stream.insert(stream))
    }

    fn advance(&mut self, bytes: usize) -> Result<()> {
        self.report.bytes_done += bytes;
        let pending_bytes = self.matrices.as_ref().map_or(0, |m| m.pending_bytes());
        self.report.tell(pending_bytes, self.local.weight_bytes)
    }

    /// Waits for what the device still loads, and tells where its time went.
    fn finish(&mut self) -> Result<String> {
        self.watch.mark("all handed over");
        let Some(mut matrices) = self.matrices.take() else { return Ok(String::new()) };
        while !matrices.finish(REPORT)? {
            self.report.tell(matrices.pending_bytes(), self.local.weight_bytes)?;
        }
        self.watch.mark("all landed");
        self.report.tell(0, self.local.weight_bytes)?;
        Ok(matrices.times())
    }
}

/// What a rank takes of a tensor: parts below each other, which stay in their file where they are whole rows of it.
fn taken<'a>(data: WeightData<'a>, part: &Part, cols: &Cols) -> Result<Vec<WeightData<'a>>> {
    let size = data.dtype.size();
    let (whole_rows, row_bytes) = (cols.take.len() == cols.all, cols.all * size);
    if whole_rows && part.taken() == part.rows {
        return Ok(vec![data]);
    }
    if let (true, Cow::Borrowed(bytes)) = (whole_rows, &data.bytes) {
        let rows = part.take.iter().map(|rows| rows.start * row_bytes..rows.end * row_bytes);
        let rows = rows.map(|r| WeightData {
            dtype: data.dtype,
            file: data.file.as_ref().map(|file| file.skip(r.start)),
            bytes: Cow::Borrowed(&bytes[r]),
        });
        return Ok(rows.collect());
    }
    let bytes = cut(&data.bytes, &part.take, (&cols.take, cols.all, size))?;
    Ok(vec![WeightData { dtype: data.dtype, bytes: Cow::Owned(bytes), file: None }])
}

/// The same numbers in F32.
fn widened<'a>(data: &WeightData<'a>) -> WeightData<'a> {
    let half = |widen: fn([u8; 2]) -> f32| -> Cow<'a, [u8]> {
        Cow::Owned(data.bytes.chunks_exact(2).flat_map(|b| widen([b[0], b[1]]).to_le_bytes()).collect())
    };
    let (bytes, file) = match data.dtype {
        DType::F16 => (half(|b| f16::from_le_bytes(b).to_f32()), None),
        DType::Bf16 => (half(|b| bf16::from_le_bytes(b).to_f32()), None),
        _ => (data.bytes.clone(), data.file.clone()),
    };
    WeightData { dtype: DType::F32, bytes, file }
}

/// The same dtype, each row of `cols` divided by its length.
fn with_unit_rows<'a>(data: &WeightData<'_>, cols: usize) -> Result<WeightData<'a>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(data.bytes.len()).map_err(|_| {
        Error::no_memory(format!("cannot allocate {} bytes for the normed output head", data.bytes.len()))
    })?;
    for row in data.bytes.chunks_exact(cols * data.dtype.size()) {
        let wide = widened(&WeightData { dtype: data.dtype, bytes: Cow::Borrowed(row), file: None });
        let values = wide.bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        let length = values.clone().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        for x in values.map(|x| (x / length) as f32) {
            match data.dtype {
                DType::F16 => bytes.extend_from_slice(&f16::from_f32(x).to_le_bytes()),
                DType::Bf16 => bytes.extend_from_slice(&bf16::from_f32(x).to_le_bytes()),
                _ => bytes.extend_from_slice(&x.to_le_bytes()),
            }
        }
    }
    Ok(WeightData { dtype: data.dtype, bytes: Cow::Owned(bytes), file: None })
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "load_file_tests.rs"]
mod file_tests;
