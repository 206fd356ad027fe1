//! What is to be sent on one stream and has not been taken by QUIC yet, in order.
//!
//! It has no limit of its own: data is bounded by the connection's send gate (`gate`, the
//! controller stops at its high mark), the control stream by [`crate::connection`], which ends a
//! connection whose peer lets the control stream grow.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct SendQueue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl SendQueue {
    /// Puts a chunk at the end.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// The bytes to send next; empty when there are none.
    pub fn front(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |chunk| chunk)
    }

    /// Takes `n` bytes of what [`SendQueue::front`] gave.
    pub fn advance(&mut self, n: usize) {
        if let Some(chunk) = self.chunks.front_mut() {
            debug_assert!(n <= chunk.len());
            chunk.advance(n);
            self.bytes -= n;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// How many bytes are queued.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Drops all that is queued, and says how many bytes that was.
    pub fn clear(&mut self) -> usize {
        let bytes = self.bytes;
        *self = SendQueue::default();
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20),
            steps in prop::collection::vec(1usize..30, 1..20),
        ) {
            let mut queue = SendQueue::default();
            let all: Vec<u8> = chunks.concat();
            for chunk in chunks {
                queue.push(chunk.into());
            }
            let mut got = Vec::new();
            let mut steps = steps.iter().cycle();
            while !queue.is_empty() {
                prop_assert_eq!(queue.len(), all.len() - got.len());
                let n = queue.front().len().min(*steps.next().unwrap());
                got.extend_from_slice(&queue.front()[..n]);
                queue.advance(n);
            }
            prop_assert_eq!(got, all);
            prop_assert!(queue.front().is_empty());
        }
    }
}
