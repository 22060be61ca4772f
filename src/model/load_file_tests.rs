//! Loading on a device that reads files itself.

use super::*;
use crate::base::config::Placement;
use crate::hal::registry::{DeviceOptions, open};
use crate::hal::{Allocation, Caps, MatrixLoader, MatrixPart, MemoryInfo};
use crate::model;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Rows, columns and placement of what was loaded, and how many of its parts came from memory.
type Loads = Arc<Mutex<Vec<(usize, usize, Placement, usize)>>>;

/// The CPU with a loader that is one matrix behind.
#[derive(Debug)]
struct Reading {
    cpu: Arc<dyn Device>,
    loads: Loads,
    /// Calls of `finish` until all is read.
    late: usize,
    finished: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Behind {
    cpu: Arc<dyn Device>,
    loads: Loads,
    last: usize,
    late: usize,
    finished: Arc<AtomicUsize>,
}

impl MatrixLoader for Behind {
    fn load(&mut self, parts: &[MatrixPart<'_>], placement: Placement) -> Result<Matrix> {
        for MatrixPart { matrix, file } in parts {
            let Some(file) = file else { continue };
            let mut bytes = vec![0; matrix.data.len()];
            file.file.file.read_exact_at(&mut bytes, file.offset).unwrap();
            assert!(bytes == matrix.data, "a part is elsewhere in {}", file.file.path.display());
        }
        let all: Vec<_> = parts.iter().map(|part| part.matrix).collect();
        let matrix = self.cpu.load_matrix(&all)?;
        self.last = all.iter().map(|part| part.data.len()).sum();
        let from_memory = parts.iter().filter(|part| part.file.is_none()).count();
        self.loads.lock().unwrap().push((matrix.rows(), matrix.cols(), placement, from_memory));
        Ok(matrix)
    }
    fn pending_bytes(&self) -> usize {
        self.last
    }
    fn finish(&mut self, _: Duration) -> Result<bool> {
        self.finished.fetch_add(1, Relaxed);
        Ok(self.finished.load(Relaxed) > self.late)
    }
}

impl Device for Reading {
    fn caps(&self) -> &Caps {
        self.cpu.caps()
    }
    fn memory(&self) -> Result<MemoryInfo> {
        self.cpu.memory()
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Allocation>> {
        self.cpu.alloc(bytes)
    }
    fn host_buffer(&self, bytes: usize) -> Result<Box<dyn HostBuffer>> {
        self.cpu.host_buffer(bytes)
    }
    fn load_matrix(&self, _: &[HostMatrix<'_>]) -> Result<Matrix> {
        panic!("the loader is passed by");
    }
    fn loader(&self, _: usize, _: usize) -> Result<Option<Box<dyn MatrixLoader>>> {
        let (cpu, loads, finished) = (Arc::clone(&self.cpu), Arc::clone(&self.loads), Arc::clone(&self.finished));
        Ok(Some(Box::new(Behind { cpu, loads, last: 0, late: self.late, finished })))
    }
    fn stream(&self) -> Result<Box<dyn Stream>> {
        self.cpu.stream()
    }
}

/// One layer whose numbers are all different, in the dtype `kept`.
fn write(dir: &Path, kept: safetensors::Dtype, size: usize) -> ModelInfo {
    let config = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 24,
        "max_position_embeddings": 64, "torch_dtype": "float32", "tie_word_embeddings": false}"#;
    std::fs::write(dir.join("config.json"), config).unwrap();
    let shapes = [
        ("model.embed_tokens", vec![24, 16]),
        ("model.norm", vec![16]),
        ("lm_head", vec![24, 16]),
        ("model.layers.0.input_layernorm", vec![16]),
        ("model.layers.0.self_attn.q_proj", vec![16, 16]),
        ("model.layers.0.self_attn.k_proj", vec![8, 16]),
        ("model.layers.0.self_attn.v_proj", vec![8, 16]),
        ("model.layers.0.self_attn.o_proj", vec![16, 16]),
        ("model.layers.0.post_attention_layernorm", vec![16]),
        ("model.layers.0.mlp.gate_proj", vec![32, 16]),
        ("model.layers.0.mlp.up_proj", vec![32, 16]),
        ("model.layers.0.mlp.down_proj", vec![16, 32]),
    ];
    let numbers: Vec<u8> = (0..8192_u16).flat_map(|i| (0x3c00 + i).to_le_bytes()).collect();
    let mut from = 0;
    let views = shapes.map(|(name, shape)| {
        let bytes = shape.iter().product::<usize>() * size;
        from += 2;
        let view = safetensors::tensor::TensorView::new(kept, shape, &numbers[from..from + bytes]).unwrap();
        (format!("{name}.weight"), view)
    });
    safetensors::tensor::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    model::inspect(dir).unwrap()
}

fn device(late: usize) -> Reading {
    let cpu = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
    Reading { cpu, loads: Loads::default(), late, finished: Arc::default() }
}

/// Progress never goes back, is behind while something is pending, and ends at the total.
#[test]
fn a_loader_gets_the_parts_of_files_and_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let info = write(dir.path(), safetensors::Dtype::F32, 4);
    let all = [(24, 16), (32, 16), (16, 16), (64, 16), (16, 32), (24, 16)];
    let half = [(24, 16), (16, 16), (16, 8), (32, 16), (16, 16), (24, 16)];
    for (rank, ranks, shapes) in [(0, 1, all), (0, 2, half), (1, 2, half)] {
        for embedding in [Placement::Device, Placement::Host] {
            let (device, shard) = (device(3), Shard { rank, ranks });
            let how = LoadOptions { format: LoadFormat::Auto, shard, embedding };
            let mut told = vec![];
            let mut progress = |p: LoadProgress| {
                told.push(p);
                Ok(())
            };
            load_shard(&info, dir.path(), how, &device, (64, &mut progress)).unwrap();
            assert_eq!(device.finished.load(Relaxed), 4);
            assert!(told.is_sorted_by_key(|p| p.bytes_done), "{told:?}");
            let [.., before, last] = &told[..] else { panic!("{told:?}") };
            assert!(before.bytes_done < last.bytes_total && last.bytes_done == last.bytes_total, "{told:?}");
            let loads = device.loads.lock().unwrap();
            assert_eq!(loads.iter().map(|l| (l.0, l.1)).collect::<Vec<_>>(), shapes, "rank {rank} of {ranks}");
            for (i, (_, _, placement, from_memory)) in loads.iter().enumerate() {
                assert_eq!(*placement, if i == 0 { embedding } else { Placement::Device });
                // Columns that are cut out stand nowhere in the file.
                assert_eq!(*from_memory, usize::from(ranks == 2 && (i == 2 || i == 4)), "matrix {i}");
            }
        }
    }
}

/// A matrix whose parts differ in dtype is widened first, which is in no file.
#[test]
fn a_part_that_is_widened_comes_from_memory() {
    let dir = tempfile::tempdir().unwrap();
    let info = write(dir.path(), safetensors::Dtype::BF16, 2);
    let device = device(0);
    load(&info, dir.path(), LoadFormat::Auto, &device, (64, &mut |_| Ok(()))).unwrap();
    assert!(device.loads.lock().unwrap().iter().all(|l| l.3 == 0), "BF16 is a dtype of the device");
    let source = SafetensorsWeights::open(dir.path()).unwrap();
    let data = source.tensor("lm_head.weight", &[24, 16]).unwrap();
    assert!(data.file.is_some() && widened(&data).file.is_none());
}

#[test]
fn a_listener_ends_the_loading_while_the_device_reads() {
    let dir = tempfile::tempdir().unwrap();
    let info = write(dir.path(), safetensors::Dtype::F32, 4);
    let device = device(usize::MAX);
    let finished = Arc::clone(&device.finished);
    let mut progress = |_| {
        if finished.load(Relaxed) > 2 { Err(Error::new(crate::base::ErrorKind::Shutdown, "enough")) } else { Ok(()) }
    };
    let e = load(&info, dir.path(), LoadFormat::Auto, &device, (64, &mut progress)).unwrap_err();
    assert_eq!(e.message, "enough");
}
