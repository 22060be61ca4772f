//! Safetensors files, single or sharded through model.safetensors.index.json.

use super::mmap::MappedFile;
use super::{WeightData, WeightSource};
use crate::base::{DType, Error, Result};
use crate::model::fields::Fields;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Far above any real header, far below what a parser should be handed.
const MAX_HEADER_BYTES: u64 = 32 << 20;
const MAX_SHARDS: usize = 4096;

#[derive(Debug)]
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The mapped weight files of a model directory.
#[derive(Debug)]
pub struct SafetensorsWeights {
    files: Vec<(String, MappedFile)>,
    tensors: BTreeMap<String, Place>,
}

impl SafetensorsWeights {
    /// Maps and checks the files. Errors name the file that is missing, truncated or inconsistent.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut weights = Self { files: Vec::new(), tensors: BTreeMap::new() };
        let index = dir.join(INDEX);
        if dir.join(SINGLE).exists() {
            weights.add(dir, SINGLE)?;
        } else if index.exists() {
            weights.add_sharded(dir, &index)?;
        } else {
            return Err(Error::invalid(format!(
                "{} has neither {SINGLE} nor {INDEX}; expected weights in the safetensors format",
                dir.display()
            )));
        }
        Ok(weights)
    }

    fn add_sharded(&mut self, dir: &Path, index: &Path) -> Result<()> {
        let fields = Fields::read(index, MAX_INDEX_BYTES)?;
        let expected = "an object from tensor names to file names";
        let map = fields.object("weight_map")?.ok_or_else(|| fields.missing("weight_map", expected))?;
        let mut shards = BTreeSet::new();
        for tensor in map.keys() {
            let file = map.text(tensor)?.unwrap_or_default();
            // A shard lies beside its index: no path may lead out of the model directory.
            if file.is_empty() || file.contains(['/', '\\']) || file.starts_with('.') {
                return Err(map.wrong(tensor, "the plain name of a file beside the index"));
            }
            shards.insert(file);
        }
        if shards.len() > MAX_SHARDS {
            return Err(Error::invalid(format!("{} names more than {MAX_SHARDS} files", index.display())));
        }
        for shard in shards {
            self.add(dir, shard)?;
        }
        for tensor in map.keys() {
            let found = self.tensors.get(tensor).map(|p| self.files[p.file].0.as_str());
            if found != map.text(tensor)? {
                return Err(map.wrong(tensor, &format!("the file that holds it, which is {found:?}")));
            }
        }
        Ok(())
    }

    fn add(&mut self, dir: &Path, name: &str) -> Result<()> {
        let path = dir.join(name);
        let file = MappedFile::open(&path)?;
        let bytes = file.bytes();
        let refuse = |why: String| Error::invalid(format!("{} is not a whole safetensors file: {why}", path.display()));
        let length = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
        match length {
            None => return Err(refuse(format!("it has {} bytes", bytes.len()))),
            Some(n) if n > MAX_HEADER_BYTES => {
                return Err(refuse(format!("its header claims {n} bytes; at most {MAX_HEADER_BYTES} are read")));
            }
            Some(_) => {}
        }
        let parsed = SafeTensors::deserialize(bytes).map_err(|e| refuse(e.to_string()))?;
        for (tensor, view) in parsed.iter() {
            let from = view.data().as_ptr().addr() - bytes.as_ptr().addr();
            let place = Place {
                file: self.files.len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: from..from + view.data().len(),
            };
            if self.tensors.insert(tensor.to_owned(), place).is_some() {
                return Err(Error::invalid(format!("{}: tensor {tensor:?} is in another file too", path.display())));
            }
        }
        self.files.push((name.to_owned(), file));
        Ok(())
    }
}

impl WeightSource for SafetensorsWeights {
    fn names(&self) -> Option<Vec<String>> {
        Some(self.tensors.keys().cloned().collect())
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<WeightData<'_>> {
        let Some(place) = self.tensors.get(name) else {
            let files: Vec<_> = self.files.iter().map(|f| f.0.as_str()).take(3).collect();
            return Err(Error::invalid(format!(
                "weight tensor {name:?} of shape {shape:?} is missing; looked in {}",
                files.join(", ")
            )));
        };
        let (file, map) = &self.files[place.file];
        if place.shape != shape {
            return Err(Error::invalid(format!(
                "{file}: tensor {name:?} has shape {:?}; config.json asks for {shape:?}",
                place.shape
            )));
        }
        let dtype = match place.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            other => {
                return Err(Error::unsupported(format!(
                    "{file}: tensor {name:?} is {other:?}; this build reads F32, F16 and BF16"
                )));
            }
        };
        Ok(WeightData {
            dtype,
            bytes: Cow::Borrowed(&map.bytes()[place.bytes.clone()]),
            file: Some(map.part(place.bytes.start)),
        })
    }

    fn release(&self, name: &str) {
        if let Some(place) = self.tensors.get(name) {
            self.files[place.file].1.forget(place.bytes.clone());
        }
    }
}
