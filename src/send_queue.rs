//! What is to be sent on one stream and has not been taken by QUIC yet, in order.
//!
//! It has no limit of its own: data is bounded by the connection's send gate (`gate`, the
//! controller stops at its high mark), the control stream by [`crate::connection`], which ends a
//! connection whose peer lets the control stream grow.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces up to this size are put together: QUIC keeps a list of what it was given, and many tiny
/// entries cost it more than a copy does.
const SMALL: usize = 2048;

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

    /// Takes a piece of at most `room` bytes from the front; none when nothing is queued or there is
    /// no room.
    pub fn take(&mut self, room: usize) -> Option<Bytes> {
        let first = self.chunks.front_mut()?;
        if room == 0 {
            return None;
        }
        let piece = if first.len() > room {
            first.split_to(room)
        } else if first.len() >= SMALL || self.chunks.len() == 1 {
            self.chunks.pop_front()?
        } else {
            self.gather(room.min(SMALL))
        };
        self.bytes -= piece.len();
        Some(piece)
    }

    /// The first chunks as one piece, as far as they fit.
    fn gather(&mut self, room: usize) -> Bytes {
        let mut piece = BytesMut::with_capacity(room);
        while let Some(chunk) = self.chunks.front()
            && piece.len() + chunk.len() <= room
        {
            piece.extend_from_slice(chunk);
            self.chunks.pop_front();
        }
        piece.freeze()
    }

    /// Puts back what [`SendQueue::take`] gave, or the end of it.
    pub fn put_back(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.chunks.push_front(piece);
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
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..20),
            steps in prop::collection::vec((1usize..5000, 0usize..5000), 1..20),
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
                let (room, taken) = *steps.next().unwrap();
                let mut piece = queue.take(room).unwrap();
                prop_assert!(!piece.is_empty() && piece.len() <= room);
                queue.put_back(piece.split_off(taken.clamp(1, piece.len())));
                got.extend_from_slice(&piece);
            }
            prop_assert_eq!(got, all);
            prop_assert!(queue.take(100).is_none());
        }
    }

    #[test]
    fn small_chunks_leave_as_one_piece() {
        let mut queue = SendQueue::default();
        for _ in 0..100 {
            queue.push(Bytes::from_static(b"0123456789"));
        }
        assert_eq!(queue.take(10_000).unwrap().len(), 1000);
        assert!(queue.take(10_000).is_none());
    }
}
