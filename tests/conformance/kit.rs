//! One device under test, with the means to feed and read it.

use half::{bf16, f16};
use std::sync::Arc;
use yinian::base::rng::SplitMix64;
use yinian::base::{DType, Result};
use yinian::hal::{Device, HostMatrix, Matrix, Stream, Tensor};

#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) stream: Box<dyn Stream>,
    /// Dtype of activations.
    pub(crate) act: DType,
}

impl Kit {
    pub(crate) fn new(device: Arc<dyn Device>, act: DType) -> Self {
        let stream = device.stream().unwrap();
        Self { device, stream, act }
    }

    /// Dtypes of activations to run with.
    pub(crate) fn acts_of(device: &dyn Device) -> Vec<DType> {
        let mut acts = WEIGHTS.map(|dtype| device.caps().activations.of(dtype)).to_vec();
        acts.dedup();
        acts
    }

    /// Whether ops round inside as the reference implementation does.
    pub(crate) fn aligned(&self) -> bool {
        self.device.caps().aligned && self.act != DType::F32
    }

    /// A number inside of an op: as activations keep it where the device rounds there.
    pub(crate) fn inside(&self, x: f64) -> f64 {
        if self.aligned() { f64::from(rounded(x as f32, self.act)) } else { x }
    }

    /// What a result of activations may be off where one of F32 may be off by `exact`.
    pub(crate) fn tolerance(&self, exact: f64) -> f64 {
        exact
            + match self.act {
                DType::F16 => 1.02 / 2048.0,
                DType::Bf16 => 1.02 / 256.0,
                _ => 0.0,
            }
    }

    /// Waits for what is enqueued; a device that runs behind its caller tells here what it found wrong.
    pub(crate) fn finish(&self) -> Result<()> {
        self.stream.record()?.wait()
    }

    pub(crate) fn upload(&self, bytes: &[u8], rows: usize, cols: usize, dtype: DType) -> Tensor {
        let tensor = Tensor::new(self.device.alloc(bytes.len().max(1)).unwrap(), 0, rows, cols, dtype);
        assert_eq!(tensor.bytes(), bytes.len());
        let mut buffer = self.device.host_buffer(bytes.len()).unwrap();
        buffer.bytes_mut().copy_from_slice(bytes);
        self.stream.upload(&tensor, buffer.as_ref()).unwrap();
        self.stream.record().unwrap().wait().unwrap();
        tensor
    }

    pub(crate) fn floats(&self, x: &[f32], cols: usize) -> Tensor {
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.upload(&bytes, x.len() / cols, cols, DType::F32)
    }

    pub(crate) fn ints(&self, x: &[i32], cols: usize) -> Tensor {
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.upload(&bytes, x.len() / cols, cols, DType::I32)
    }

    /// Activations.
    pub(crate) fn acts(&self, x: &[f32], cols: usize) -> Tensor {
        self.upload(&encode(x, self.act), x.len() / cols, cols, self.act)
    }

    /// Noise that activations can hold.
    pub(crate) fn noise(&self, seed: u64, n: usize) -> Vec<f32> {
        noise(seed, n).iter().map(|x| rounded(*x, self.act)).collect()
    }

    /// An output of activations full of NaN.
    pub(crate) fn poisoned(&self, rows: usize, cols: usize) -> Tensor {
        self.acts(&vec![f32::NAN; rows * cols], cols)
    }

    pub(crate) fn download(&self, tensor: &Tensor) -> Vec<u8> {
        let mut buffer = self.device.host_buffer(tensor.bytes()).unwrap();
        self.stream.download(buffer.as_mut(), tensor).unwrap();
        let event = self.stream.record().unwrap();
        event.wait().unwrap();
        assert!(event.is_done().unwrap());
        buffer.bytes().to_vec()
    }

    pub(crate) fn read(&self, tensor: &Tensor) -> Vec<f32> {
        let bytes = self.download(tensor);
        let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes(b.try_into().unwrap()));
        match tensor.dtype() {
            DType::F16 => pairs().map(|x| f16::from_bits(x).to_f32()).collect(),
            DType::Bf16 => pairs().map(|x| bf16::from_bits(x).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        }
    }

    pub(crate) fn read_ints(&self, tensor: &Tensor) -> Vec<i32> {
        self.download(tensor).chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// A matrix stacked from parts of the given row counts.
    pub(crate) fn matrix(&self, parts: &[usize], cols: usize, values: &[f32], dtype: DType) -> Matrix {
        let bytes = encode(values, dtype);
        let mut rest = bytes.as_slice();
        let mut host = Vec::new();
        for rows in parts {
            let (data, after) = rest.split_at(rows * cols * dtype.size());
            host.push(HostMatrix { rows: *rows, cols, dtype, data });
            rest = after;
        }
        self.device.load_matrix(&host).unwrap()
    }
}

pub(crate) fn encode(x: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => x.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => x.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// `x` as the dtype keeps it.
pub(crate) fn rounded(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => f16::from_f32(x).to_f32(),
        _ => bf16::from_f32(x).to_f32(),
    }
}

/// All of `items`; with `YN_CONFORMANCE` `small` or `smallest` every n-th from the first on, for memory checkers, under which
/// all takes some hundred times longer. Lists are cut so that every kernel still runs.
pub(crate) fn some<T>(items: impl IntoIterator<Item = T>, every: usize) -> impl Iterator<Item = T> {
    cut(items, every, &["small", "smallest"])
}

/// All of `items`; with `YN_CONFORMANCE=smallest` every n-th, for race checkers, which are slower still.
pub(crate) fn few<T>(items: impl IntoIterator<Item = T>, every: usize) -> impl Iterator<Item = T> {
    cut(items, every, &["smallest"])
}

/// Whether lengths are those for race checkers, too: as short as still reaches every path.
pub(crate) fn smallest() -> bool {
    setting() == "smallest"
}

fn cut<T>(items: impl IntoIterator<Item = T>, every: usize, settings: &[&str]) -> impl Iterator<Item = T> {
    items.into_iter().step_by(if settings.contains(&setting().as_str()) { every } else { 1 })
}

fn setting() -> String {
    let setting = std::env::var("YN_CONFORMANCE").unwrap_or_default();
    assert!(["", "small", "smallest"].contains(&setting.as_str()), "YN_CONFORMANCE={setting}: not small, not smallest");
    setting
}

/// Uniform in -1..1.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = SplitMix64(seed);
    (0..n).map(|_| 2.0 * rng.unit() - 1.0).collect()
}

/// Every element within `tolerance` of the model, relative above 1.
pub(crate) fn close(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let off = (f64::from(*g) - e).abs();
        assert!(off <= tolerance * e.abs().max(1.0), "{what}: element {i} is {g}, expected {e}");
    }
}

/// How many results are not the model's to the bit.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    unequal: usize,
    all: usize,
}

impl Tally {
    pub(crate) fn count(&mut self, kit: &Kit, got: &[f32], expected: &[f64]) {
        let same = |(g, e): &(&f32, &f64)| g.to_bits() != rounded(**e as f32, kit.act).to_bits();
        self.unequal += got.iter().zip(expected).filter(same).count();
        self.all += got.len();
    }

    /// Where roundings are the model's, others are left to sums in another order.
    pub(crate) fn assert_few(&self, what: &str) {
        assert!(self.unequal as f64 <= 0.03 * self.all as f64, "{what}: {self:?}");
    }
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

pub(crate) const WEIGHTS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
