//! What the fuzz targets share.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

#[path = "../../tests/erofs/compare.rs"]
pub mod compare;
#[path = "../../bfc/tests/forge/mod.rs"]
pub mod forge;
pub mod mutate;

/// Longest allocation that anything read from an image or a layer may lead to, bytes: every
/// allocation that depends on a file's word names its bound, and no bound is above this.
pub const MAX_ALLOCATION: usize = 64 << 20;

/// The system's allocator, which fails above [`MAX_ALLOCATION`]. The program then ends, and the
/// fuzzer reports a crash.
pub struct Bounded;

// SAFETY: every call is passed to the system's allocator with the same arguments, or fails with a
// null pointer as the trait asks.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MAX_ALLOCATION {
            return ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MAX_ALLOCATION {
            return ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > MAX_ALLOCATION {
            return ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
