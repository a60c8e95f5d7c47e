//! An allocator for a process that lives for two milliseconds: memory is taken from one piece, and
//! only what was taken last is given back.
//!
//! The allocator of musl asks the kernel for memory and returns it a hundred times during one ADD,
//! and each page that comes anew must be zeroed. Whoever needs more than the piece gets the rest from
//! the system.

#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the piece. Pages of it that are never used cost nothing.
const BYTES: usize = 4 << 20;

/// The allocator.
#[derive(Debug)]
pub struct Arena {
    memory: UnsafeCell<[u8; BYTES]>,
    used: AtomicUsize,
}

// SAFETY: `used` only ever hands out disjoint parts of `memory`, also to several threads.
unsafe impl Sync for Arena {}

impl Arena {
    /// Returns an allocator that nothing was taken from.
    #[expect(clippy::new_without_default, reason = "there is one, and it is static")]
    pub const fn new() -> Self {
        Self { memory: UnsafeCell::new([0; BYTES]), used: AtomicUsize::new(0) }
    }

    fn start(&self) -> *mut u8 {
        self.memory.get().cast()
    }

    /// Where a block of the piece begins; `None` for a block of the system.
    fn offset(&self, block: *mut u8) -> Option<usize> {
        let offset = (block as usize).wrapping_sub(self.start() as usize);
        (offset < BYTES).then_some(offset)
    }

    fn exchange(&self, from: usize, to: usize) -> bool {
        self.used.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

// SAFETY: a block lies either in the piece, aligned and disjoint from all others because `used` was
// moved from its begin to its end in one step, or comes from the system and goes back there. Nothing
// is inlined, because thousands of places allocate.
unsafe impl GlobalAlloc for Arena {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut used = self.used.load(Ordering::Acquire);
        loop {
            let unaligned = self.start() as usize + used;
            let begin = used + (unaligned.next_multiple_of(layout.align()) - unaligned);
            let Some(end) = begin.checked_add(layout.size()).filter(|end| *end <= BYTES) else {
                // SAFETY: the layout is the caller's.
                return unsafe { System.alloc(layout) };
            };
            match self.used.compare_exchange_weak(used, end, Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: `begin` is inside the piece.
                Ok(_) => return unsafe { self.start().add(begin) },
                Err(now) => used = now,
            }
        }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match self.offset(block) {
            // Only the last block can be given back.
            Some(begin) => drop(self.exchange(begin + layout.size(), begin)),
            // SAFETY: it was the system that allocated it, with this layout.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(begin) = self.offset(block) else {
            // SAFETY: it was the system that allocated it, with this layout.
            return unsafe { System.realloc(block, layout, size) };
        };
        let end = begin.checked_add(size).filter(|end| *end <= BYTES);
        if size <= layout.size() || end.is_some_and(|end| self.exchange(begin + layout.size(), end))
        {
            return block;
        }
        // SAFETY: the size was checked by the caller, the alignment is that of a layout.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: the blocks are disjoint, and both are at least as long as the old one was.
            unsafe { std::ptr::copy_nonoverlapping(block, new, layout.size()) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_disjoint_and_keep_their_content() {
        static ARENA: Arena = Arena::new();
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        // SAFETY: every block is used inside its layout and freed once.
        unsafe {
            let one = ARENA.alloc(layout(3, 1));
            let two = ARENA.alloc(layout(100, 64));
            assert_eq!(two as usize % 64, 0);
            assert!(two as usize >= one as usize + 3);
            one.write_bytes(1, 3);
            two.write_bytes(2, 100);
            assert_eq!(ARENA.realloc(two, layout(100, 64), 200), two, "the last grows in place");
            let moved = ARENA.realloc(one, layout(3, 1), 9);
            assert_ne!(moved, one);
            assert_eq!(std::slice::from_raw_parts(moved, 3), [1; 3]);
            assert_eq!(std::slice::from_raw_parts(two, 100), [2; 100]);
            ARENA.dealloc(moved, layout(9, 1));
            assert_eq!(ARENA.alloc(layout(9, 1)), moved, "the last is given back");

            let huge = ARENA.alloc(layout(BYTES, 8));
            assert_eq!(ARENA.offset(huge), None, "the system has the rest");
            let huge = ARENA.realloc(huge, layout(BYTES, 8), BYTES + 1);
            ARENA.dealloc(huge, layout(BYTES + 1, 8));
        }
    }

    #[test]
    fn threads_get_different_blocks() {
        static ARENA: Arena = Arena::new();
        let layout = Layout::new::<u64>();
        let allocate = || {
            // SAFETY: the blocks are not used.
            let blocks = (0..1000).map(|_| unsafe { ARENA.alloc(layout) } as usize);
            blocks.collect::<Vec<_>>()
        };
        let mut blocks: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(allocate)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        blocks.sort_unstable();
        blocks.dedup();
        assert_eq!(blocks.len(), 4000);
    }
}
