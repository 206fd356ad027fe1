//! A level with a high and a low mark, shared by two threads: how both directions' back-pressure
//! decides when to stop and when to go on.
//!
//! For what is sent, the level is the bytes queued and the waiting side is the controller process;
//! for what is received, the level is the bytes delivered but not yet consumed, and the waiting
//! side is the engine, which stops reading its streams.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// See the module's documentation.
#[derive(Debug)]
pub struct Gate {
    level: AtomicUsize,
    waiting: AtomicBool,
    high: usize,
    low: usize,
}

impl Gate {
    /// A gate that is full above `high` bytes, and lets a waiting side go on at `low` or less.
    pub fn new(high: usize, low: usize) -> Self {
        Gate {
            level: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
            high,
            low: low.min(high),
        }
    }

    /// The level, in bytes.
    pub fn level(&self) -> usize {
        self.level.load(SeqCst)
    }

    /// Raises the level.
    pub fn add(&self, bytes: usize) {
        self.level.fetch_add(bytes, SeqCst);
    }

    /// Lowers the level. True, once, when a side that waits must be told to go on.
    ///
    /// More than there is counts as all there is: the bytes come from outside (`consumed/2`).
    #[must_use]
    pub fn sub(&self, bytes: usize) -> bool {
        let before = self
            .level
            .fetch_update(SeqCst, SeqCst, |level| Some(level.saturating_sub(bytes)))
            .unwrap_or_else(|level| level);
        before.saturating_sub(bytes) <= self.low && self.waiting.swap(false, SeqCst)
    }

    /// Whether the caller must wait until the other side's [`Gate::sub`] says to go on.
    ///
    /// No wake-up can be lost: `waiting` is raised before the level is read again, and `sub` lowers
    /// the level before it reads `waiting`; in the total order of these four operations at least
    /// one side sees the other's first, and the swap lets only one of them act on it.
    #[must_use]
    pub fn must_wait(&self) -> bool {
        if self.level() <= self.high {
            return false;
        }
        self.waiting.store(true, SeqCst);
        !(self.level() <= self.low && self.waiting.swap(false, SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn waits_above_high_and_goes_on_at_low() {
        let gate = Gate::new(10, 4);
        gate.add(10);
        assert!(!gate.must_wait());
        gate.add(1);
        assert!(gate.must_wait());
        assert!(!gate.sub(6), "5 is above the low mark");
        assert!(gate.sub(1), "4 is not");
        assert!(!gate.sub(1), "said once only");
    }

    #[test]
    fn the_level_never_wraps() {
        let gate = Gate::new(10, 4);
        gate.add(3);
        assert!(!gate.sub(1000));
        assert_eq!(gate.level(), 0);
    }

    /// One thread fills and waits, the other drains: with a lost wake-up the test would not end.
    #[test]
    fn no_wake_up_is_lost() {
        let gate = Arc::new(Gate::new(100, 50));
        let (tx, rx) = crossbeam_channel::unbounded::<usize>();
        let (wake_tx, wake_rx) = crossbeam_channel::unbounded::<()>();
        let drainer = {
            let gate = gate.clone();
            std::thread::spawn(move || {
                for bytes in rx {
                    if gate.sub(bytes) {
                        wake_tx.send(()).unwrap();
                    }
                }
            })
        };
        for _ in 0..10_000 {
            gate.add(7);
            tx.send(7).unwrap();
            if gate.must_wait() {
                wake_rx
                    .recv_timeout(std::time::Duration::from_secs(10))
                    .expect("a wake-up was lost");
            }
        }
        drop(tx);
        drainer.join().unwrap();
        assert_eq!(gate.level(), 0);
    }
}
