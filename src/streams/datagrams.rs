//! Datagrams that wait to be sent. When there are too many, the oldest is the one to lose: what is
//! sent this way would rather be lost than late.

use std::collections::VecDeque;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Datagrams {
    queue: VecDeque<Vec<u8>>,
    limit: usize,
    pub lost: u64,
}

impl Datagrams {
    pub fn new(limit: usize) -> Self {
        Datagrams {
            queue: VecDeque::new(),
            limit,
            lost: 0,
        }
    }

    pub fn push(&mut self, datagram: Vec<u8>) {
        if self.queue.len() >= self.limit {
            self.queue.pop_front();
            self.lost += 1;
        }
        self.queue.push_back(datagram);
    }

    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.queue.pop_front()
    }

    pub fn clear(&mut self) {
        self.queue = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_lost() {
        let mut datagrams = Datagrams::new(2);
        for byte in 0..5 {
            datagrams.push(vec![byte]);
        }
        assert_eq!(datagrams.lost, 3);
        assert_eq!(datagrams.pop(), Some(vec![3]));
        assert_eq!(datagrams.pop(), Some(vec![4]));
        assert_eq!(datagrams.pop(), None);
    }
}
