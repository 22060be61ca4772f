//! Changes of safetensors files: the header as a document, with places that fit its shapes or with those it says.

use serde_json::{Value, json};
use yinian::base::rng::SplitMix64;

/// Most bytes of tensors in one file.
const MAX_DATA: u64 = 32 << 10;

/// The header of a file that has one.
pub(crate) fn header(file: &[u8]) -> Option<&[u8]> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// A file with that header.
pub(crate) fn file(rng: &mut SplitMix64, mut header: Value) -> Vec<u8> {
    let end = match rng.below(4) {
        0 => end_of(&header),
        _ => lay_out(&mut header),
    };
    let text = header.to_string();
    let claimed = match rng.below(16) {
        0 => 1 << rng.below(64),
        1 => (text.len() as u64).wrapping_add(rng.below(17)).wrapping_sub(8),
        _ => text.len() as u64,
    };
    let mut file = claimed.to_le_bytes().to_vec();
    file.extend(text.bytes());
    let data = match rng.below(16) {
        0 => rng.below(end + 9),
        _ => end,
    };
    let length = file.len() + data.min(MAX_DATA) as usize;
    file.resize(length, rng.next_u64() as u8);
    file
}

/// Where the last tensor ends, as the header says.
fn end_of(header: &Value) -> u64 {
    let ends = header.as_object().into_iter().flat_map(|h| h.values()).filter_map(|t| t["data_offsets"][1].as_u64());
    ends.max().unwrap_or(0)
}

/// Gives every tensor a place behind the one before it; where they end.
fn lay_out(header: &mut Value) -> u64 {
    let mut end = 0_u64;
    for (name, tensor) in header.as_object_mut().into_iter().flatten() {
        let size = match tensor["dtype"].as_str() {
            Some("F64" | "I64" | "U64") => 8,
            Some("F32" | "I32" | "U32") => 4,
            Some("F16" | "BF16" | "I16" | "U16") => 2,
            _ => 1,
        };
        let Some(shape) = tensor["shape"].as_array().filter(|_| name != "__metadata__") else { continue };
        let elements = shape.iter().try_fold(1_u64, |n, d| n.checked_mul(d.as_u64()?));
        let Some(next) = elements.and_then(|n| end.checked_add(n.checked_mul(size)?)) else { continue };
        tensor["data_offsets"] = json!([end, next]);
        end = next;
    }
    end
}
