//! The paged cache: `[block][keys, values][layer][token][kv_head][dim]`. To operators it is one array of pages of a layer's keys
//! or values; a block's number times the pages of a block is its page of the first layer, and a layer shifts the array's start.
//! What they want of a step besides (slots and tables in pages, cosines) is made once for all layers.

use super::super::context::Context;
use super::super::host::int_bytes;
use super::super::operands::{View, code};
use super::super::region::Region;
use super::super::stream::AscendStream;
use crate::base::{DType, Error, Result};
use crate::hal::Tensor;
use crate::hal::ops::{KvLayer, PagedAttention};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Tables and slots of a step; cosines and sines.
const TABLE_BYTES: usize = 4 << 20;
const SLOT_BYTES: usize = 1 << 20;
const ROPE_BYTES: usize = 1 << 20;
pub(crate) const BYTES: usize = TABLE_BYTES + SLOT_BYTES + ROPE_BYTES;
/// Rows of a table are so many entries or a multiple, so that each begins where operators want it to.
const ROW: usize = 8;

/// One layer's part of the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pages {
    pool: u64,
    pub(crate) blocks: usize,
    layer: usize,
    layers: usize,
    pub(crate) block_size: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) dtype: DType,
}

impl Pages {
    pub(crate) fn of(kv: &KvLayer<'_>) -> Self {
        let block_bytes = kv.block_size * 2 * kv.layers * kv.kv_heads * kv.head_dim * kv.dtype.size();
        assert_eq!((kv.pool.cols(), kv.pool.dtype()), (block_bytes, DType::U8), "bytes of a KV block");
        assert!(kv.layer < kv.layers && kv.block_size > 0, "layer {} of {}", kv.layer, kv.layers);
        Self {
            pool: kv.pool.addr(),
            blocks: kv.pool.rows(),
            layer: kv.layer,
            layers: kv.layers,
            block_size: kv.block_size,
            kv_heads: kv.kv_heads,
            head_dim: kv.head_dim,
            dtype: kv.dtype,
        }
    }

    /// Pages of a block.
    fn each(&self) -> usize {
        2 * self.layers
    }

    /// Bytes of one token's keys or values.
    pub(crate) fn token_bytes(&self) -> usize {
        self.kv_heads * self.head_dim * self.dtype.size()
    }

    fn page_bytes(&self) -> usize {
        self.block_size * self.token_bytes()
    }

    /// Address of a block's keys (`which` 0) or values (1).
    pub(crate) fn addr(&self, block: usize, which: usize) -> u64 {
        let page = block * self.each() + which * self.layers + self.layer;
        self.pool + (page * self.page_bytes()) as u64
    }

    /// The layer's keys or values as `[pages, block_size, ...]`, of which every [`Self::each`]-th is the layer's. As many pages
    /// for both.
    pub(crate) fn view<'a>(&self, s: &'a AscendStream, which: usize, rest: &[usize]) -> Result<View<'a>> {
        let pages = self.blocks * self.each() - self.layers - self.layer;
        let dims: Vec<usize> = [pages, self.block_size].iter().chain(rest).copied().collect();
        View::new(s, self.addr(0, which), code(self.dtype), &dims)
    }

    fn block(&self, block: i32) -> Result<usize> {
        usize::try_from(block)
            .ok()
            .filter(|block| *block < self.blocks)
            .ok_or_else(|| Error::internal(format!("KV block {block} of a step; the cache has {}", self.blocks)))
    }
}

/// Where the tokens of a step go.
#[derive(Debug)]
pub(crate) struct Slots {
    /// Of the device, I32: pages times tokens of a page, plus the token.
    pub(crate) addr: u64,
    pub(crate) count: usize,
    /// Tokens that are written, where some are not; on the device too.
    pub(crate) kept: Option<u64>,
}

/// Sequences of a step as the host knows them.
#[derive(Debug)]
pub(crate) struct Tables {
    /// I32 `[sequences, width]` of the device: pages.
    pub(crate) addr: u64,
    pub(crate) width: usize,
    /// Where each sequence's tokens start, and the end of the last.
    pub(crate) starts: Vec<usize>,
    pub(crate) contexts: Vec<usize>,
    /// Blocks of each sequence, by number.
    pub(crate) blocks: Vec<Vec<usize>>,
}

/// What was made of: the state of the mirror, addresses and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    version: u64,
    addrs: [u64; 3],
    shape: [usize; 4],
}

/// Something made of a step's integers, and what of.
type Made<T> = RefCell<Option<(Key, Arc<T>)>>;

/// Rope tables by first address and number of their allocations.
type Ropes = HashMap<(u64, u64), Arc<Vec<f32>>>;

/// What a stream has made for the step it is at.
#[derive(Debug)]
pub(crate) struct Paged {
    slots: Made<Slots>,
    slot_region: Region,
    tables: Made<Tables>,
    table_region: Region,
    turns: Made<[u64; 2]>,
    turn_region: Region,
    ropes: RefCell<Ropes>,
}

fn remembered<T>(made: &Made<T>, key: Key, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
    if let Some((known, found)) = made.borrow().as_ref()
        && *known == key
    {
        return Ok(Arc::clone(found));
    }
    let fresh = Arc::new(make()?);
    *made.borrow_mut() = Some((key, Arc::clone(&fresh)));
    Ok(fresh)
}

impl Paged {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        Ok(Self {
            slots: RefCell::default(),
            slot_region: Region::new(context, SLOT_BYTES, "slots of a step")?,
            tables: RefCell::default(),
            table_region: Region::new(context, TABLE_BYTES, "block tables of a step")?,
            turns: RefCell::default(),
            turn_region: Region::new(context, ROPE_BYTES, "cosines of a step")?,
            ropes: RefCell::default(),
        })
    }

    /// `slots` in pages, without those below 0 and those that a later token overwrites.
    pub(crate) fn slots(&self, s: &AscendStream, slots: &Tensor, pages: &Pages) -> Result<Arc<Slots>> {
        let (version, size) = (s.version(), pages.block_size);
        let shape = [slots.rows(), size, pages.each(), pages.blocks];
        remembered(&self.slots, Key { version, addrs: [slots.addr(), 0, 0], shape }, || {
            let known = s.ints(slots)?;
            let kept = kept(&known);
            let in_pages = |i: &usize| -> Result<i32> {
                let slot = known[*i] as usize;
                let block = pages.block((slot / size) as i32)?;
                i32::try_from(block * pages.each() * size + slot % size).map_err(|_| {
                    Error::unsupported(format!("{} KV blocks are beyond 32-bit slots on Ascend", pages.blocks))
                })
            };
            let numbers = kept.iter().map(in_pages).collect::<Result<Vec<_>>>()?;
            let room = super::piece(4 * known.len());
            let addr = self.slot_region.at_least(s, 2 * room)?;
            s.put_at(addr, &int_bytes(&numbers))?;
            let index = addr + room as u64;
            let some = kept.len() < known.len();
            if some {
                s.put_at(index, &int_bytes(&kept.iter().map(|i| *i as i32).collect::<Vec<_>>()))?;
            }
            Ok(Slots { addr, count: kept.len(), kept: some.then_some(index) })
        })
    }

    /// Sequences and their tables, on the host and in pages.
    pub(crate) fn tables(&self, s: &AscendStream, args: &PagedAttention<'_>, pages: &Pages) -> Result<Arc<Tables>> {
        let addrs = [args.starts.addr(), args.context_lens.addr(), args.tables.addr()];
        let shape = [args.tables.rows(), args.tables.cols(), pages.each(), pages.block_size];
        remembered(&self.tables, Key { version: s.version(), addrs, shape }, || {
            let sizes = |ints: Vec<i32>| ints.into_iter().map(|n| usize::try_from(n).unwrap_or(0)).collect::<Vec<_>>();
            let (starts, contexts) = (sizes(s.ints(args.starts)?), sizes(s.ints(args.context_lens)?));
            assert!(starts.windows(2).all(|w| w[0] <= w[1]), "starts of sequences: {starts:?}");
            let (known, width) = (s.ints(args.tables)?, args.tables.cols());
            let row = |(i, context): (usize, &usize)| -> Result<Vec<usize>> {
                let used = &known[i * width..][..context.div_ceil(pages.block_size)];
                used.iter().map(|block| pages.block(*block)).collect()
            };
            let blocks = contexts.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
            let width = blocks.iter().map(Vec::len).max().unwrap_or(0).next_multiple_of(ROW).max(ROW);
            let mut numbers = vec![0; blocks.len() * width];
            for (row, blocks) in numbers.chunks_exact_mut(width).zip(&blocks) {
                row.iter_mut().zip(blocks).for_each(|(to, block)| *to = (block * pages.each()) as i32);
            }
            let addr = self.table_region.at_least(s, 4 * numbers.len())?;
            s.put_at(addr, &int_bytes(&numbers))?;
            Ok(Tables { addr, width, starts, contexts, blocks })
        })
    }

    /// F32 `[tokens, dim]` each of the device: cosines and sines of every token's position, for both halves of a head.
    pub(crate) fn turns(&self, s: &AscendStream, positions: &Tensor, rope: &Tensor) -> Result<Arc<[u64; 2]>> {
        let (addrs, shape) = ([positions.addr(), rope.addr(), 0], [positions.rows(), rope.rows(), rope.cols(), 0]);
        remembered(&self.turns, Key { version: s.version(), addrs, shape }, || {
            let (table, positions) = (self.rope(s, rope)?, s.ints(positions)?);
            let (dim, half) = (rope.cols(), rope.cols() / 2);
            let room = super::piece(4 * dim * positions.len());
            let addr = self.turn_region.at_least(s, 2 * room)?;
            let both = [addr, addr + room as u64];
            for (to, from) in both.iter().zip([0, half]) {
                let part = |position: &i32| &table[*position as usize * dim + from..][..half];
                let numbers = positions.iter().flat_map(|p| part(p).iter().chain(part(p)));
                s.put_at(*to, &numbers.flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>())?;
            }
            Ok(both)
        })
    }

    /// A rope table on the host.
    pub(crate) fn rope(&self, s: &AscendStream, rope: &Tensor) -> Result<Arc<Vec<f32>>> {
        let place = s.context().heap.find(rope.addr(), rope.bytes());
        let key = (rope.addr(), place.map_or(0, |place| place.number));
        if let Some(known) = self.ropes.borrow().get(&key) {
            return Ok(Arc::clone(known));
        }
        let table = Arc::new(DType::F32.decode(&s.fetch(rope)?));
        let mut ropes = self.ropes.borrow_mut();
        // Those of memory that was freed.
        ropes.retain(|(addr, number), _| s.context().heap.find(*addr, 1).is_some_and(|place| place.number == *number));
        ropes.insert(key, Arc::clone(&table));
        Ok(table)
    }
}

/// Tokens whose slot is one and is no later token's.
fn kept(slots: &[i32]) -> Vec<usize> {
    let mut last = HashMap::with_capacity(slots.len());
    for (i, slot) in slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
        last.insert(*slot, i);
    }
    let mut kept: Vec<usize> = last.into_values().collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_what_is_overwritten_is_not_kept() {
        assert_eq!(kept(&[5, 6, 7]), [0, 1, 2]);
        assert_eq!(kept(&[5, -1, 7, 5, 8]), [2, 3, 4]);
        assert!(kept(&[-1, -1]).is_empty());
    }
}
