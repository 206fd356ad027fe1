//! Where this library's Rust code gets its memory, and how often: that is counted for `endpoint_info/1`.

#[cfg(not(feature = "system_allocator"))]
use std::alloc::System;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[cfg(not(feature = "system_allocator"))]
use mimalloc::MiMalloc;

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

/// What is no larger comes from the system's allocator. It is the largest size of which that keeps some
/// for each thread, which take no lock.
#[cfg(not(feature = "system_allocator"))]
const SMALL: usize = 1024;

/// Small things come from the system's allocator, which puts them side by side whatever their sizes, and
/// large ones from mimalloc, which has pages for each size and each thread: they cost more than what is
/// in them as long as there are few connections. glibc gives memory back to the kernel as soon as a
/// large buffer is freed on another thread than it was made on, and takes it anew, page by page, for the
/// next: a third of the processor time of a bulk transfer went there.
#[cfg(not(feature = "system_allocator"))]
pub struct BySize;

// SAFETY: what was allocated with a layout is given back with that layout, so it goes to the allocator
// that it came from.
#[cfg(not(feature = "system_allocator"))]
unsafe impl GlobalAlloc for BySize {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() <= SMALL {
            unsafe { System.alloc(layout) }
        } else {
            unsafe { MiMalloc.alloc(layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() <= SMALL {
            unsafe { System.alloc_zeroed(layout) }
        } else {
            unsafe { MiMalloc.alloc_zeroed(layout) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match (layout.size() <= SMALL, size <= SMALL) {
            (true, true) => unsafe { System.realloc(pointer, layout, size) },
            (false, false) => unsafe { MiMalloc.realloc(pointer, layout, size) },
            _ => unsafe { self.moved(pointer, layout, size) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if layout.size() <= SMALL {
            unsafe { System.dealloc(pointer, layout) }
        } else {
            unsafe { MiMalloc.dealloc(pointer, layout) }
        }
    }
}

#[cfg(not(feature = "system_allocator"))]
impl BySize {
    /// From one allocator to the other.
    ///
    /// # Safety
    /// As for [`GlobalAlloc::realloc`].
    unsafe fn moved(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that this size is valid for the alignment, and that the pointer has
        // this layout; the new block is another one.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(pointer, new, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            new
        }
    }
}
