//! What threads share: the standard library's, or the model checker's, as in the crate `bfc`.

#[cfg(shuttle)]
pub(crate) use bfc::sync::{OnceLock, mpsc};
#[cfg(all(test, shuttle))]
pub(crate) use bfc::sync::{check, once, thread};
#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread_local,
};
#[cfg(not(shuttle))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, OnceLock, atomic, mpsc},
    thread_local,
};

/// Precedes what other threads or processes can see, but is not done with these types.
#[inline]
pub(crate) fn switch() {
    #[cfg(shuttle)]
    shuttle::thread::sleep(std::time::Duration::ZERO);
}
