//! How much of a device's memory becomes KV blocks.

use crate::base::config::EngineConfig;
use crate::base::{Error, Result};
use crate::hal::{Device, MemoryInfo};

/// Share of a device's memory that an engine takes when the device has memory of its own.
const UTILIZATION: f64 = 0.9;
/// Of the free memory that is shared with everybody else on the machine, what an engine takes for KV.
const SHARED_PART: usize = 4;
/// Block numbers stay below this.
const MAX_BLOCKS: u32 = u32::MAX / 512;

/// Blocks of `block_bytes` on a device that also holds `fixed_bytes` of weights and buffers; `most` are ever useful.
pub fn num_blocks(
    config: &EngineConfig,
    device: &dyn Device,
    (block_bytes, fixed_bytes, most): (usize, usize, usize),
) -> Result<u32> {
    let memory = capped(device.memory()?, config.device_memory_bytes);
    let free = memory.free_bytes;
    let useful = most.saturating_mul(block_bytes);
    let utilization = config.gpu_memory_utilization.or(device.caps().own_memory.then_some(UTILIZATION));
    let bytes = match (config.kv_cache_bytes, utilization) {
        (Some(bytes), _) if bytes.saturating_add(fixed_bytes) > free => {
            return Err(Error::no_memory(format!(
                "kv_cache_bytes {bytes} and {fixed_bytes} bytes of weights and buffers do not fit the {free} free bytes \
                 of the device"
            )));
        }
        (Some(bytes), _) => bytes,
        (None, Some(share)) => share_of(memory, share).saturating_sub(fixed_bytes).min(useful),
        (None, None) => (free.saturating_sub(fixed_bytes) / SHARED_PART).min(useful),
    };
    let blocks = bytes / block_bytes;
    if blocks == 0 {
        return Err(Error::no_memory(format!(
            "{bytes} bytes of KV cache do not hold one block of {block_bytes} bytes; raise kv_cache_bytes, or free memory \
             ({free} bytes are free, {fixed_bytes} go to weights and buffers)"
        )));
    }
    Ok(u32::try_from(blocks).unwrap_or(MAX_BLOCKS).min(MAX_BLOCKS))
}

/// The same device with at most `cap` bytes.
fn capped(memory: MemoryInfo, cap: Option<usize>) -> MemoryInfo {
    let cap = cap.unwrap_or(usize::MAX);
    MemoryInfo { total_bytes: memory.total_bytes.min(cap), free_bytes: memory.free_bytes.min(cap) }
}

/// What is left of `share` of all memory once what others use is taken off.
fn share_of(memory: MemoryInfo, share: f64) -> usize {
    let used = memory.total_bytes.saturating_sub(memory.free_bytes);
    ((memory.total_bytes as f64 * share) as usize).saturating_sub(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_counts_what_others_use_and_a_cap_makes_a_small_card() {
        let card = MemoryInfo { total_bytes: 1000, free_bytes: 700 };
        assert_eq!((share_of(card, 0.9), share_of(card, 0.2)), (600, 0));
        let small = capped(card, Some(400));
        assert_eq!((small.total_bytes, small.free_bytes, share_of(small, 0.5)), (400, 400, 200));
    }
}
