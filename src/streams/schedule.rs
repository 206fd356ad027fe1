//! Which stream is served next: the lowest priority number first, and streams of one number in turn.

use std::collections::{BTreeMap, VecDeque};

/// Each stream is in it at most once, which is the caller's affair.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    turns: BTreeMap<u8, VecDeque<u64>>,
}

impl Schedule {
    pub fn push(&mut self, priority: u8, id: u64) {
        self.turns.entry(priority).or_default().push_back(id);
    }

    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    pub fn pop(&mut self) -> Option<u64> {
        let mut first = self.turns.first_entry()?;
        let id = first.get_mut().pop_front();
        if first.get().is_empty() {
            first.remove();
        }
        id
    }

    /// A stream that is in it under this priority.
    pub fn remove(&mut self, priority: u8, id: u64) {
        if let Some(turns) = self.turns.get_mut(&priority) {
            turns.retain(|&other| other != id);
            if turns.is_empty() {
                self.turns.remove(&priority);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_numbers_first_and_equals_in_turn() {
        let mut schedule = Schedule::default();
        for (priority, id) in [(200, 1), (16, 2), (128, 3), (16, 4)] {
            schedule.push(priority, id);
        }
        assert_eq!(schedule.pop(), Some(2));
        schedule.push(16, 2);
        schedule.push(200, 7);
        schedule.remove(200, 7);
        let rest: Vec<u64> = std::iter::from_fn(|| schedule.pop()).collect();
        assert_eq!(rest, [4, 2, 3, 1]);
    }
}
