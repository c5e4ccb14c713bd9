//! What threads share: the standard library's, or with `--cfg shuttle` that of shuttle, which runs
//! a test under many schedules of its threads. Only tests are built so.

#[cfg(not(shuttle))]
pub(crate) use std::{
    sync::{Mutex, OnceLock, mpsc},
    thread,
};

#[cfg(shuttle)]
pub use self::model::{OnceLock, check, mpsc, once, thread};
#[cfg(shuttle)]
pub use shuttle::sync::Mutex;

#[cfg(shuttle)]
mod model {
    use std::sync::PoisonError;
    use std::sync::atomic::Ordering;

    use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
    use shuttle::sync::Mutex;
    use shuttle::sync::atomic::AtomicBool;

    /// `std::thread`.
    pub mod thread {
        use std::num::NonZero;

        pub use shuttle::thread::*;

        /// The same on every machine.
        pub fn available_parallelism() -> std::io::Result<NonZero<usize>> {
            NonZero::new(3).ok_or_else(|| std::io::ErrorKind::Unsupported.into())
        }
    }

    /// `std::sync::mpsc`.
    pub mod mpsc {
        pub use shuttle::sync::mpsc::{
            RecvError, SendError, Sender, SyncSender, TryRecvError, TrySendError,
        };

        /// As `std::sync::mpsc::channel`.
        pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
            let (sender, receiver) = shuttle::sync::mpsc::channel();
            (sender, Receiver(receiver))
        }

        /// As `std::sync::mpsc::sync_channel`.
        pub fn sync_channel<T>(bound: usize) -> (SyncSender<T>, Receiver<T>) {
            let (sender, receiver) = shuttle::sync::mpsc::sync_channel(bound);
            (sender, Receiver(receiver))
        }

        /// As `std::sync::mpsc::Receiver`: when it is dropped, what was not received is dropped
        /// too. Shuttle's keeps that as long as there is a sender.
        #[derive(Debug)]
        pub struct Receiver<T>(shuttle::sync::mpsc::Receiver<T>);

        impl<T> Receiver<T> {
            /// As in the standard library.
            pub fn recv(&self) -> Result<T, RecvError> {
                self.0.recv()
            }

            /// As in the standard library.
            pub fn try_recv(&self) -> Result<T, TryRecvError> {
                self.0.try_recv()
            }
        }

        impl<'a, T> IntoIterator for &'a Receiver<T> {
            type Item = T;
            type IntoIter = shuttle::sync::mpsc::Iter<'a, T>;

            fn into_iter(self) -> Self::IntoIter {
                self.0.iter()
            }
        }

        impl<T> Drop for Receiver<T> {
            fn drop(&mut self) {
                // No other thread runs between the last attempt and the end of this.
                while !std::thread::panicking() && self.0.try_recv().is_ok() {}
            }
        }
    }

    /// `std::sync::OnceLock`, which shuttle lacks.
    #[derive(Debug)]
    pub struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        /// Held while the value is made.
        making: Mutex<()>,
        /// Other threads may run where this is loaded.
        state: AtomicBool,
    }

    impl<T> OnceLock<T> {
        /// An empty one.
        pub fn new() -> Self {
            Self {
                value: std::sync::OnceLock::new(),
                making: Mutex::new(()),
                state: AtomicBool::new(false),
            }
        }

        /// The value, if it is there.
        pub fn get(&self) -> Option<&T> {
            self.state.load(Ordering::Acquire);
            self.value.get()
        }

        /// The value, which the first caller makes while the others wait.
        pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            if let Some(value) = self.get() {
                return value;
            }
            let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            self.value.get_or_init(make)
        }
    }

    impl<T> Default for OnceLock<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    /// The most changes of priority in a schedule of the second kind: few of them suffice for most
    /// faults (Burckhardt et al., A randomized scheduler with probabilistic guarantees of finding
    /// bugs, ASPLOS 2010).
    const DEPTH: usize = 3;
    /// Compression needs more than shuttle's default, bytes.
    const STACK: usize = 1 << 20;

    /// Runs a test under `schedules` random schedules, and as many that rarely interrupt a thread.
    /// Fails on a panic and on a deadlock, and prints the schedule for `shuttle::replay`.
    pub fn check(schedules: usize, test: fn()) {
        run(RandomScheduler::new(schedules), test);
        run(PctScheduler::new(DEPTH, schedules), test);
    }

    /// Runs what the tests need and what starts threads, under one schedule.
    pub fn once(prepare: fn()) {
        run(RandomScheduler::new(1), prepare);
    }

    fn run(scheduler: impl Scheduler + 'static, test: fn()) {
        let mut config = shuttle::Config::new();
        config.stack_size = STACK;
        config.silence_warnings = true;
        shuttle::Runner::new(scheduler, config).run(test);
    }
}
