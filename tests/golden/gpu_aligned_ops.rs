//! Single ops of a GPU in the numeric mode "aligned" against the same ops of the reference on the same kind of GPU, from the
//! files that tests/golden/aligned.py has put into the folder `ops` of YN_ALIGNED_MODELS.

use safetensors::{Dtype, SafeTensors};
use std::path::Path;
use std::sync::Arc;
use yinian::base::DType;
use yinian::base::config::NumericMode;
use yinian::hal::ops::{Activation, KvLayer, PagedAttention, RopeWriteKv};
use yinian::hal::registry::{DeviceOptions, open};
use yinian::hal::{Device, HostMatrix, Stream, Tensor};

const BLOCK: usize = 16;
/// Most results of an op that may not be the reference's to the bit, as a share of all.
const UNEQUAL: f64 = 0.005;

struct Bench {
    device: Arc<dyn Device>,
    stream: Box<dyn Stream>,
}

/// A case's file.
struct Case<'a>(SafeTensors<'a>);

impl Case<'_> {
    /// Bytes, rows, columns and dtype of a tensor; a vector is one row.
    fn get(&self, name: &str) -> Option<(&[u8], usize, usize, DType)> {
        let view = self.0.tensor(name).ok()?;
        let dtype = match view.dtype() {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            _ => DType::F32,
        };
        let cols = *view.shape().last()?;
        let rows = view.shape().iter().product::<usize>() / cols;
        Some((view.data(), rows, cols, dtype))
    }
}

impl Bench {
    fn upload(&self, bytes: &[u8], (rows, cols, dtype): (usize, usize, DType)) -> Tensor {
        let tensor = Tensor::new(self.device.alloc(bytes.len()).expect("memory"), 0, rows, cols, dtype);
        let mut buffer = self.device.host_buffer(bytes.len()).expect("memory");
        buffer.bytes_mut().copy_from_slice(bytes);
        self.stream.upload(&tensor, buffer.as_ref()).expect("upload");
        self.stream.record().expect("event").wait().expect("upload");
        tensor
    }

    fn tensor(&self, case: &Case<'_>, name: &str) -> Tensor {
        let (bytes, rows, cols, dtype) = case.get(name).unwrap_or_else(|| panic!("no {name}"));
        self.upload(bytes, (rows, cols, dtype))
    }

    fn zeros(&self, (rows, cols, dtype): (usize, usize, DType)) -> Tensor {
        self.upload(&vec![0; rows * cols * dtype.size()], (rows, cols, dtype))
    }

    fn ints(&self, x: &[i32]) -> Tensor {
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.upload(&bytes, (x.len(), 1, DType::I32))
    }

    /// A vector as F32 with `shift` added.
    fn widened(&self, case: &Case<'_>, name: &str, shift: f32) -> Tensor {
        let (bytes, rows, cols, dtype) = case.get(name).unwrap_or_else(|| panic!("no {name}"));
        let wide = bytes.chunks_exact(2).flat_map(|b| (number(b, dtype) + shift).to_le_bytes()).collect::<Vec<_>>();
        self.upload(&wide, (rows, cols, DType::F32))
    }

    fn linear(&self, case: &Case<'_>) -> Tensor {
        let (data, rows, cols, dtype) = case.get("w").expect("w");
        let matrix = self.device.load_matrix(&[HostMatrix { rows, cols, dtype, data }]).expect("a matrix");
        let x = self.tensor(case, "x");
        let out = self.zeros((x.rows(), rows, dtype));
        let bias = case.get("b").map(|_| self.widened(case, "b", 0.0));
        self.stream.linear(&out, &x, &matrix, bias.as_ref()).expect("linear");
        out
    }

    fn norm(&self, case: &Case<'_>, gemma: bool) -> Tensor {
        let x = self.tensor(case, "x");
        let weight = if gemma { self.widened(case, "w", 1.0) } else { self.tensor(case, "w") };
        let out = self.zeros((x.rows(), x.cols(), x.dtype()));
        self.stream.rms_norm(&out, &x, &weight, 1e-5).expect("rms_norm");
        out
    }

    fn act(&self, case: &Case<'_>, activation: Activation) -> Tensor {
        let x = self.tensor(case, "x");
        let out = self.zeros((x.rows(), x.cols() / 2, x.dtype()));
        self.stream.act_mul(&out, &x, activation).expect("act_mul");
        out
    }

    /// The rotated queries are compared on the way.
    fn attention(&self, case: &Case<'_>, numbers: &dyn Fn(&str) -> f32, name: &str) -> Tensor {
        let (qkv, rope) = (self.tensor(case, "x"), self.tensor(case, "table"));
        let (tokens, dim, dtype) = (qkv.rows(), rope.cols(), qkv.dtype());
        let (heads, kv_heads) = (numbers("heads") as usize, numbers("kv_heads") as usize);
        let blocks = tokens.div_ceil(BLOCK);
        let pool = self.zeros((blocks, BLOCK * 2 * kv_heads * dim * dtype.size(), DType::U8));
        let kv = KvLayer { pool: &pool, layer: 0, layers: 1, kv_heads, head_dim: dim, block_size: BLOCK, dtype };
        let places = self.ints(&(0..tokens as i32).collect::<Vec<_>>());
        let args = RopeWriteKv { qkv: &qkv, positions: &places, slots: &places, rope: &rope, heads, norms: None, kv };
        self.stream.rope_write_kv(&args).expect("rope_write_kv");
        let turned = self.download(&qkv);
        let rows = turned.chunks_exact(qkv.row_bytes());
        let queries: Vec<u8> = rows.flat_map(|row| &row[..heads * dim * dtype.size()]).copied().collect();
        tell(&format!("{name}, rotated queries"), &queries, case.get("q").expect("q").0, dtype);
        let table: Vec<u8> = (0..blocks as i32).flat_map(i32::to_le_bytes).collect();
        let out = self.zeros((tokens, heads * dim, dtype));
        let args = PagedAttention {
            out: &out,
            qkv: &qkv,
            starts: &self.ints(&[0, tokens as i32]),
            context_lens: &self.ints(&[tokens as i32]),
            tables: &self.upload(&table, (1, blocks, DType::I32)),
            scale: numbers("scale"),
            soft_cap: Some(numbers("cap")).filter(|cap| *cap > 0.0),
            window: None,
            heads,
            singles: 0,
            kv,
        };
        self.stream.paged_attention(&args).expect("paged_attention");
        out
    }

    fn download(&self, tensor: &Tensor) -> Vec<u8> {
        let mut buffer = self.device.host_buffer(tensor.bytes()).expect("memory");
        self.stream.download(buffer.as_mut(), tensor).expect("download");
        self.stream.record().expect("event").wait().expect("the op");
        buffer.bytes().to_vec()
    }
}

fn number(b: &[u8], dtype: DType) -> f32 {
    let bits = u16::from_le_bytes([b[0], b[1]]);
    if dtype == DType::F16 { half::f16::from_bits(bits).to_f32() } else { half::bf16::from_bits(bits).to_f32() }
}

/// Prints how many numbers are not equal, and returns their share.
fn tell(name: &str, found: &[u8], expected: &[u8], dtype: DType) -> f64 {
    assert_eq!(found.len(), expected.len(), "{name}");
    let (mut unequal, mut worst, mut largest) = (0, 0.0_f32, 0.0_f32);
    for (f, e) in found.chunks_exact(2).zip(expected.chunks_exact(2)) {
        let (f, e) = (number(f, dtype), number(e, dtype));
        unequal += usize::from(f != e);
        worst = if f.is_nan() { f32::NAN } else { worst.max((f - e).abs()) };
        largest = largest.max(e.abs());
    }
    println!(
        "{name}: {unequal} of {} unequal, at most {worst:.2e} where the largest is {largest:.2e}",
        found.len() / 2
    );
    if worst.is_finite() { unequal as f64 / (found.len() / 2) as f64 } else { 1.0 }
}

#[test]
fn aligned_ops_give_the_numbers_of_the_reference() {
    let Some(models) = std::env::var_os("YN_ALIGNED_MODELS") else {
        return println!("left out: YN_ALIGNED_MODELS names no folder made by tests/golden/aligned.py");
    };
    let device = match open("cuda", &DeviceOptions { numeric_mode: NumericMode::Aligned, ..DeviceOptions::default() }) {
        Ok(device) => device,
        Err(e) => return println!("left out: {e}"),
    };
    let bench = Bench { stream: device.stream().expect("a stream"), device };
    let entries = std::fs::read_dir(Path::new(&models).join("ops")).expect("the folder of ops");
    let mut files: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    files.sort();
    let mut far = Vec::new();
    for path in files {
        let bytes = std::fs::read(&path).expect("a case");
        let case = Case(SafeTensors::deserialize(&bytes).expect("a case"));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a case");
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let numbers = |key: &str| metadata.get(key).and_then(|v| v.parse().ok()).unwrap_or(0.0_f32);
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let out = match name.split('-').next() {
            Some("linear") => bench.linear(&case),
            Some("norm") => bench.norm(&case, name.contains("gemma")),
            Some("act") if name.contains("silu") => bench.act(&case, Activation::Silu),
            Some("act") => bench.act(&case, Activation::GeluTanh),
            _ => bench.attention(&case, &numbers, &name),
        };
        let share = tell(&name, &bench.download(&out), case.get("y").expect("y").0, out.dtype());
        if share > UNEQUAL {
            far.push(format!("{name}: {:.2} %", 100.0 * share));
        }
    }
    assert!(far.is_empty(), "too many numbers are not the reference's: {far:#?}");
}
