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
    use crate::base::ErrorKind;
    use crate::hal::registry::{DeviceOptions, open_host};
    use crate::hal::{Allocation, Caps, HostBuffer, HostMatrix, Matrix, Stream};
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn a_share_counts_what_others_use_and_a_cap_makes_a_small_card() {
        let card = MemoryInfo { total_bytes: 1000, free_bytes: 700 };
        assert_eq!((allowed(card, None, 0.9), allowed(card, None, 0.2)), (600, 0));
        assert_eq!((allowed(card, Some(400), 0.5), allowed(card, Some(400), 1.0)), (200, 400));
        assert_eq!((allowed(card, Some(900), 1.0), allowed(card, Some(5000), 0.5)), (700, 500));
    }

    const MB: usize = 1 << 20;
    const BLOCK: usize = 2 * MB;
    const TOTAL: usize = 10_000 * MB;

    /// A device with memory of its own that comes late, of which others use a part.
    #[derive(Debug)]
    struct Card {
        host: Arc<dyn Device>,
        caps: Caps,
        others: usize,
        /// What no allocation shows.
        hidden: usize,
        allocated: Arc<AtomicUsize>,
    }

    /// Addresses; what has memory is counted, nothing is ever read.
    #[derive(Debug)]
    struct Late(usize, AtomicUsize, Arc<AtomicUsize>);

    impl Allocation for Late {
        fn addr(&self) -> u64 {
            0
        }
        fn bytes(&self) -> usize {
            self.0
        }
        fn commit(&self, bytes: usize) -> Result<()> {
            let more = bytes - self.1.swap(bytes, Relaxed);
            self.2.fetch_add(more, Relaxed);
            Ok(())
        }
    }

    impl Device for Card {
        fn caps(&self) -> &Caps {
            &self.caps
        }
        fn memory(&self) -> Result<MemoryInfo> {
            let used = self.others + self.hidden + self.allocated();
            Ok(MemoryInfo { total_bytes: TOTAL, free_bytes: TOTAL - used })
        }
        fn alloc(&self, bytes: usize) -> Result<Arc<dyn Allocation>> {
            self.host.alloc(bytes)
        }
        fn reserve(&self, bytes: usize) -> Result<Option<Arc<dyn Allocation>>> {
            Ok(Some(Arc::new(Late(bytes, AtomicUsize::new(0), Arc::clone(&self.allocated)))))
        }
        fn allocated(&self) -> usize {
            self.allocated.load(Relaxed)
        }
        fn host_buffer(&self, bytes: usize) -> Result<Box<dyn HostBuffer>> {
            self.host.host_buffer(bytes)
        }
        fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
            self.host.load_matrix(parts)
        }
        fn stream(&self) -> Result<Box<dyn Stream>> {
            self.host.stream()
        }
    }

    fn card(others: usize, hidden: usize) -> Card {
        let host = open_host(&DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
        let caps = Caps { own_memory: true, graphs: true, ..host.caps().clone() };
        Card { host, caps, others, hidden, allocated: Arc::default() }
    }

    /// Bytes of blocks as planned, as found and as taken, on cards that others and the driver use so much of. Weights and
    /// buffers are 1000 MB and the driver is thought to take 100.
    fn sized(config: &str, cards: &[(usize, usize)]) -> Result<(usize, usize)> {
        let config = EngineConfig::from_json(format!("{{\"model\": \"m\"{config}}}").as_bytes()).unwrap();
        let demand = Demand {
            block_bytes: BLOCK,
            rank_block_bytes: BLOCK,
            fixed_bytes: 1102 * MB,
            driver_bytes: 100 * MB,
            most: 5000,
            kv_bytes: config.kv_cache_bytes,
        };
        let cards: Vec<_> = cards.iter().map(|&(others, hidden)| Arc::new(card(others * MB, hidden * MB))).collect();
        // The driver has not taken anything before the warm-up.
        let fresh = Card { hidden: 0, ..card(cards[0].others, 0) };
        let num_blocks = num_blocks(&config, &fresh, &demand)?;
        let options = RunnerOptions {
            max_num_seqs: 1,
            max_num_batched_tokens: 1,
            max_model_len: 1,
            block_size: 16,
            num_blocks,
            depth: 1,
        };
        cards.iter().for_each(|card| _ = card.allocated.fetch_add(1000 * MB, Relaxed));
        let devices: Vec<Arc<dyn Device>> = cards.iter().map(|card| Arc::<Card>::clone(card) as _).collect();
        let rooms = rooms(&devices, &options, &demand)?;
        let blocks = settle(&config, &devices, (&demand, num_blocks), &rooms)?;
        for (card, room) in cards.iter().zip(&rooms) {
            assert_eq!(card.allocated(), 1000 * MB + room.bytes(blocks), "every card has all blocks and the padding");
        }
        Ok((num_blocks as usize * BLOCK / MB, blocks as usize * BLOCK / MB))
    }

    #[test]
    fn blocks_are_what_is_left_when_all_else_is_there() {
        // 9000 MB by share, less weights, padding and the driver's part; as planned where that is as thought.
        assert_eq!(sized("", &[(0, 100)]).unwrap(), (7898, 7898));
        assert_eq!(sized("", &[(0, 300)]).unwrap(), (7898, 7698));
        assert_eq!(sized("", &[(500, 50)]).unwrap(), (7398, 7448));
        // The fewest of all cards.
        assert_eq!(sized("", &[(0, 100), (0, 400), (0, 0)]).unwrap(), (7898, 7598));
        // A cap counts what the engine allocates, whatever others use.
        let cap = format!(", \"device_memory_bytes\": {}", 4000 * MB);
        assert_eq!(sized(&cap, &[(0, 100)]).unwrap(), (2498, 2498));
        assert_eq!(sized(&cap, &[(3000, 400)]).unwrap(), (2498, 2498));
        // A little is left whatever the share.
        assert_eq!(sized(", \"gpu_memory_utilization\": 1", &[(0, 100)]).unwrap(), (8898, 8834));
    }

    #[test]
    fn a_size_in_the_config_is_kept_or_refused() {
        let size = |mb: usize| format!(", \"kv_cache_bytes\": {}", mb * MB);
        assert_eq!(sized(&size(64), &[(0, 900)]).unwrap(), (64, 64));
        let e = sized(&size(8000), &[(0, 2000)]).unwrap_err();
        assert!(e.kind == ErrorKind::NoMemory && e.message.contains("kv_cache_bytes 8388608000"), "{e}");
        let e = sized("", &[(0, 8500)]).unwrap_err();
        assert!(e.kind == ErrorKind::NoMemory && e.message.contains("one block"), "{e}");
    }
}
