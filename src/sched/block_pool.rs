//! Who holds which KV block: reference counts over a flat array and an intrusive list of free blocks in order of last
//! use. Every operation is O(1).

use crate::base::BlockId;

const NIL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Block {
    refs: u32,
    /// Holders among `refs` that leave as soon as no step in flight mentions them.
    leaving: u32,
    prev: u32,
    next: u32,
}

/// Where a block without holders joins the free list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// It can be hit: reuse it last.
    Cached,
    /// Nobody can find it: reuse it first.
    Garbage,
}

/// The blocks of one device.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// The free block to reuse first.
    head: u32,
    tail: u32,
    free: u32,
    returning: u32,
}

impl BlockPool {
    pub fn new(num_blocks: u32) -> Self {
        let blocks = vec![Block { refs: 0, leaving: 0, prev: NIL, next: NIL }; num_blocks as usize];
        let mut pool = Self { blocks, head: NIL, tail: NIL, free: 0, returning: 0 };
        for i in 0..num_blocks {
            pool.push_back(i);
        }
        pool
    }

    pub fn num_blocks(&self) -> u32 {
        self.blocks.len() as u32
    }
    pub fn num_free(&self) -> u32 {
        self.free
    }
    /// Held blocks whose every holder is leaving: they come back without another victim.
    pub fn num_returning(&self) -> u32 {
        self.returning
    }
    pub fn refs(&self, block: BlockId) -> u32 {
        self.blocks[block.0 as usize].refs
    }

    /// Takes the free block that was used longest ago. The caller forgets its cached content.
    pub fn alloc(&mut self) -> Option<BlockId> {
        if self.head == NIL {
            return None;
        }
        let i = self.head;
        self.unlink(i);
        self.blocks[i as usize].refs = 1;
        Some(BlockId(i))
    }

    /// Free blocks in the order in which they will be taken.
    pub(super) fn next_free(&self) -> impl Iterator<Item = BlockId> + '_ {
        let listed = |i: u32| (i != NIL).then_some(i);
        std::iter::successors(listed(self.head), move |&i| listed(self.blocks[i as usize].next)).map(BlockId)
    }

    /// One more holder of a block, free (a cache hit) or held.
    pub fn acquire(&mut self, block: BlockId) {
        let b = self.blocks[block.0 as usize];
        if b.refs == 0 {
            self.unlink(block.0);
        } else if b.leaving == b.refs {
            self.returning -= 1;
        }
        self.blocks[block.0 as usize].refs += 1;
    }

    /// One of its holders will [`BlockPool::release`] it soon.
    pub fn mark_leaving(&mut self, block: BlockId) {
        let b = &mut self.blocks[block.0 as usize];
        b.leaving += 1;
        if b.leaving == b.refs {
            self.returning += 1;
        }
    }

    /// A holder that was marked leaving lets go.
    pub fn release(&mut self, block: BlockId, content: Content) {
        let b = &mut self.blocks[block.0 as usize];
        debug_assert!(b.refs > 0 && b.leaving > 0, "{block:?} released by nobody");
        b.refs -= 1;
        b.leaving -= 1;
        if b.refs > 0 {
            return;
        }
        self.returning -= 1;
        match content {
            Content::Cached => self.push_back(block.0),
            Content::Garbage => self.push_front(block.0),
        }
    }

    fn push_back(&mut self, i: u32) {
        let tail = self.tail;
        self.blocks[i as usize].prev = tail;
        self.blocks[i as usize].next = NIL;
        match tail {
            NIL => self.head = i,
            t => self.blocks[t as usize].next = i,
        }
        self.tail = i;
        self.free += 1;
    }

    fn push_front(&mut self, i: u32) {
        let head = self.head;
        self.blocks[i as usize].prev = NIL;
        self.blocks[i as usize].next = head;
        match head {
            NIL => self.tail = i,
            h => self.blocks[h as usize].prev = i,
        }
        self.head = i;
        self.free += 1;
    }

    fn unlink(&mut self, i: u32) {
        let Block { prev, next, .. } = self.blocks[i as usize];
        match prev {
            NIL => self.head = next,
            p => self.blocks[p as usize].next = next,
        }
        match next {
            NIL => self.tail = prev,
            n => self.blocks[n as usize].prev = prev,
        }
        self.free -= 1;
    }

    /// Free blocks in order of reuse; stops at a cycle. For checks.
    pub(super) fn free_list(&self) -> Vec<BlockId> {
        let (mut list, mut i) = (Vec::new(), self.head);
        while i != NIL && list.len() <= self.blocks.len() {
            list.push(BlockId(i));
            i = self.blocks[i as usize].next;
        }
        list
    }

    /// Blocks all of whose holders leave, counted anew. For checks.
    pub(super) fn count_returning(&self) -> u32 {
        self.blocks.iter().filter(|b| b.refs > 0 && b.leaving == b.refs).count() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(pool: &BlockPool) -> Vec<u32> {
        pool.free_list().iter().map(|b| b.0).collect()
    }

    fn free(pool: &mut BlockPool, block: BlockId, content: Content) {
        pool.mark_leaving(block);
        pool.release(block, content);
    }

    #[test]
    fn blocks_are_reused_in_order_of_last_use_and_garbage_first() {
        let mut pool = BlockPool::new(3);
        let [a, b, c] = [(); 3].map(|()| pool.alloc().unwrap());
        assert_eq!(pool.alloc(), None);
        free(&mut pool, b, Content::Cached);
        free(&mut pool, a, Content::Cached);
        free(&mut pool, c, Content::Garbage);
        assert_eq!(ids(&pool), [2, 1, 0]);
        assert_eq!(pool.num_free(), 3);
    }

    #[test]
    fn a_hit_takes_a_block_out_of_the_middle() {
        let mut pool = BlockPool::new(3);
        pool.acquire(BlockId(1));
        assert_eq!(ids(&pool), [0, 2]);
        pool.acquire(BlockId(1));
        free(&mut pool, BlockId(1), Content::Cached);
        assert_eq!((pool.refs(BlockId(1)), pool.num_free()), (1, 2));
        free(&mut pool, BlockId(1), Content::Cached);
        assert_eq!(ids(&pool), [0, 2, 1]);
    }

    #[test]
    fn returning_counts_a_block_only_when_every_holder_leaves() {
        let mut pool = BlockPool::new(2);
        let a = pool.alloc().unwrap();
        pool.acquire(a);
        pool.mark_leaving(a);
        assert_eq!(pool.num_returning(), 0);
        pool.mark_leaving(a);
        assert_eq!(pool.num_returning(), 1);
        pool.acquire(a);
        assert_eq!(pool.num_returning(), 0);
        pool.release(a, Content::Cached);
        pool.release(a, Content::Cached);
        assert_eq!((pool.num_returning(), pool.refs(a), pool.num_free()), (0, 1, 1));
        free(&mut pool, a, Content::Cached);
        assert_eq!((pool.num_returning(), pool.count_returning(), pool.num_free()), (0, 0, 2));
    }
}
