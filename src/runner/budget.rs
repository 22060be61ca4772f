//! How much of a device's memory becomes KV blocks: as planned before anything is loaded, and as found once all else is there.

use crate::base::config::EngineConfig;
use crate::base::{Error, Result};
use crate::hal::{Device, MemoryInfo};
use crate::runner::RunnerOptions;
use crate::runner::pool::KvRoom;
use std::sync::Arc;

/// Share of a device's memory that an engine takes when the device has memory of its own.
const UTILIZATION: f64 = 0.9;
/// Of the free memory that is shared with everybody else on the machine, what an engine takes for KV.
const SHARED_PART: usize = 4;
/// Block numbers stay below this.
const MAX_BLOCKS: u32 = u32::MAX / 512;
/// What is left of a device's own memory in any case: the driver takes a little now and then.
const MARGIN: usize = 64 << 20;

/// What one device is to hold.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    pub block_bytes: usize,
    /// What one rank has of a block: less, where several share a device.
    pub rank_block_bytes: usize,
    /// Everything but blocks.
    pub fixed_bytes: usize,
    /// What of that no allocation shows.
    pub driver_bytes: usize,
    /// Blocks that are ever useful.
    pub most: usize,
    /// The config's `kv_cache_bytes`, or the device's part of it.
    pub kv_bytes: Option<usize>,
}

/// Blocks on a device that holds nothing of the engine yet.
pub fn num_blocks(config: &EngineConfig, device: &dyn Device, demand: &Demand) -> Result<u32> {
    let memory = device.memory()?;
    let fixed_bytes = demand.fixed_bytes;
    let free = memory.free_bytes.min(config.device_memory_bytes.unwrap_or(usize::MAX));
    let utilization = config.gpu_memory_utilization.or(device.caps().own_memory.then_some(UTILIZATION));
    let bytes = match (demand.kv_bytes, utilization) {
        (Some(bytes), _) if bytes.saturating_add(fixed_bytes) > free => {
            return Err(Error::no_memory(format!(
                "kv_cache_bytes {bytes} and {fixed_bytes} bytes of weights and buffers do not fit the {free} free bytes \
                 of the device"
            )));
        }
        (Some(bytes), _) => bytes,
        (None, Some(share)) => allowed(memory, config.device_memory_bytes, share).saturating_sub(fixed_bytes),
        (None, None) => free.saturating_sub(fixed_bytes) / SHARED_PART,
    };
    blocks_of(bytes, demand, free)
}

/// Room for the blocks of each device's runner: for all that could ever be of use, where memory may come later.
pub fn rooms(devices: &[Arc<dyn Device>], options: &RunnerOptions, demand: &Demand) -> Result<Vec<KvRoom>> {
    let slots = i32::MAX as usize / options.block_size as usize - 1;
    let room = |device: &Arc<dyn Device>| {
        let whole = device.memory()?.total_bytes / demand.block_bytes;
        let most = if demand.kv_bytes.is_some() { options.num_blocks as usize } else { demand.most.min(whole) };
        let most = most.clamp(1, slots) as u32;
        KvRoom::reserved(device.as_ref(), (options.num_blocks, most), demand.rank_block_bytes)
    };
    devices.iter().map(room).collect()
}

/// Gives warm runners the blocks that are left for them, equally many on every device. `planned` is the answer where memory
/// did not wait.
pub fn settle(
    config: &EngineConfig,
    devices: &[Arc<dyn Device>],
    (demand, planned): (&Demand, u32),
    rooms: &[KvRoom],
) -> Result<u32> {
    let late = || rooms.iter().zip(devices).filter(|(room, _)| room.is_late());
    let mut blocks = planned;
    for (i, (room, device)) in late().enumerate() {
        let left = blocks_left(config, device.as_ref(), demand, room)?.min(room.blocks());
        blocks = if i == 0 { left } else { blocks.min(left) };
    }
    late().try_for_each(|(room, _)| room.commit(blocks))?;
    Ok(blocks)
}

/// Blocks of `room` on a device that holds all the rest of the engine. A size that the config names is kept or refused, never
/// shrunk.
fn blocks_left(config: &EngineConfig, device: &dyn Device, demand: &Demand, room: &KvRoom) -> Result<u32> {
    let now = device.memory()?;
    let share = config.gpu_memory_utilization.unwrap_or(UTILIZATION);
    let taken = device.allocated() + demand.driver_bytes;
    // As if the engine were not there.
    let before = MemoryInfo { free_bytes: (now.free_bytes + taken).min(now.total_bytes), ..now };
    let there = device.rounded(room.bytes(1));
    let rest = (taken + room.bytes(0)).saturating_sub(there);
    let left = allowed(before, config.device_memory_bytes, share).saturating_sub(rest);
    let left = left.min((now.free_bytes + there).saturating_sub(MARGIN + room.bytes(0)));
    let free = now.free_bytes.min(config.device_memory_bytes.map_or(usize::MAX, |cap| cap.saturating_sub(rest)));
    match demand.kv_bytes {
        Some(bytes) if bytes > free + there => Err(Error::no_memory(format!(
            "kv_cache_bytes {bytes} do not fit the {free} bytes that weights and buffers leave free on the device"
        ))),
        Some(bytes) => blocks_of(bytes, demand, free),
        None => blocks_of(left, demand, free),
    }
}

fn blocks_of(bytes: usize, demand: &Demand, free: usize) -> Result<u32> {
    let Demand { block_bytes, fixed_bytes, most, kv_bytes, .. } = demand;
    let blocks = bytes / block_bytes;
    if blocks == 0 {
        return Err(Error::no_memory(format!(
            "{bytes} bytes of KV cache do not hold one block of {block_bytes} bytes; raise kv_cache_bytes, or free memory \
             ({free} bytes are free, {fixed_bytes} go to weights and buffers)"
        )));
    }
    let blocks = if kv_bytes.is_some() { blocks } else { blocks.min(*most) };
    Ok(u32::try_from(blocks).unwrap_or(MAX_BLOCKS).min(MAX_BLOCKS))
}

/// What an engine may take in all. A device that counts as one with `cap` bytes has no other users; else what they use is
/// taken off the share.
fn allowed(memory: MemoryInfo, cap: Option<usize>, share: f64) -> usize {
    let part = |bytes: usize| (bytes as f64 * share) as usize;
    match cap {
        Some(cap) => part(cap.min(memory.total_bytes)).min(memory.free_bytes),
        None => part(memory.total_bytes).saturating_sub(memory.total_bytes.saturating_sub(memory.free_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_counts_what_others_use_and_a_cap_makes_a_small_card() {
        let card = MemoryInfo { total_bytes: 1000, free_bytes: 700 };
        assert_eq!((allowed(card, None, 0.9), allowed(card, None, 0.2)), (600, 0));
        assert_eq!((allowed(card, Some(400), 0.5), allowed(card, Some(400), 1.0)), (200, 400));
        assert_eq!((allowed(card, Some(900), 1.0), allowed(card, Some(5000), 0.5)), (700, 500));
    }
}
