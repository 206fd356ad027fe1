//! Counts what this library's Rust code allocates, for `endpoint_info/1`.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A thread tells of so many at once: counters that all threads write at each allocation would cost more than
/// what they count.
const TOLD_AT_ONCE: u64 = 64;

static TOLD: AtomicU64 = AtomicU64::new(0);

thread_local! {
    // Without a destructor and made at compile time: to get at it allocates nothing, at whatever time.
    static UNTOLD: Cell<u64> = const { Cell::new(0) };
}

/// How often memory was asked for, of all threads; what each of them has not told yet is missing.
pub fn count() -> u64 {
    TOLD.load(Relaxed)
}

fn counted() {
    UNTOLD.with(|untold| {
        let now = untold.get() + 1;
        if now == TOLD_AT_ONCE {
            TOLD.fetch_add(now, Relaxed);
            untold.set(0);
        } else {
            untold.set(now);
        }
    });
}

/// An allocator that counts.
pub struct Counted<A>(pub A);

// SAFETY: every call is passed on to `A` as it is.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counted<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        counted();
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        counted();
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        counted();
        unsafe { self.0.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { self.0.dealloc(pointer, layout) }
    }
}
