//! When each connection wants to be looked at again. It takes instants and gives back keys; the
//! clock is the driver's.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// One deadline per key.
#[derive(Debug, Default)]
pub struct Timers {
    by_time: BTreeSet<(Instant, usize)>,
    by_key: HashMap<usize, Instant>,
}

impl Timers {
    /// Sets, moves or (with `None`) cancels the deadline of `key`.
    pub fn set(&mut self, key: usize, deadline: Option<Instant>) {
        let before = match deadline {
            Some(at) => self.by_key.insert(key, at),
            None => self.by_key.remove(&key),
        };
        if before == deadline {
            return;
        }
        if let Some(at) = before {
            self.by_time.remove(&(at, key));
        }
        if let Some(at) = deadline {
            self.by_time.insert((at, key));
        }
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|&(at, _)| at)
    }

    /// Takes one key whose deadline is not after `now`.
    pub fn pop(&mut self, now: Instant) -> Option<usize> {
        let &(at, key) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.by_time.pop_first();
        self.by_key.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn pops_in_the_order_of_time_and_not_before() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.set(1, Some(at(30)));
        timers.set(2, Some(at(10)));
        timers.set(3, Some(at(20)));
        timers.set(3, None);
        timers.set(1, Some(at(5)));
        timers.set(4, Some(at(10)));
        assert_eq!(timers.next(), Some(at(5)));
        assert_eq!(timers.pop(at(4)), None);
        assert_eq!(timers.pop(at(10)), Some(1));
        assert_eq!(timers.pop(at(10)), Some(2));
        assert_eq!(timers.pop(at(10)), Some(4));
        assert_eq!(timers.pop(at(1000)), None);
        assert_eq!(timers.next(), None);
    }
}
