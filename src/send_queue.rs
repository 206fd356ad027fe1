//! What is to be sent on one stream and has not been taken by QUIC yet, in order.
//!
//! It has no limit of its own: data is bounded by the connection's send gate (`gate`, the
//! controller stops at its high mark), the control stream by [`crate::connection`], which ends a
//! connection whose peer lets the control stream grow.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces up to this size are put together: QUIC keeps a list of what it was given, and many tiny
/// entries cost it more than a copy does. So it is with what waits here: a byte that is kept for itself
/// takes a hundred.
const SMALL: usize = 2048;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct SendQueue {
    chunks: VecDeque<Bytes>,
    /// What comes after them: small chunks that were put together, while more may be.
    tail: BytesMut,
    bytes: usize,
}

impl SendQueue {
    /// Puts a chunk at the end.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.bytes += chunk.len();
        let last = match self.chunks.back() {
            Some(last) if self.tail.is_empty() => last.len(),
            _ => self.tail.len(),
        };
        if last == 0 || last + chunk.len() > SMALL {
            self.finish_tail();
            self.chunks.push_back(chunk);
            return;
        }
        if self.tail.is_empty()
            && let Some(last) = self.chunks.pop_back()
        {
            self.tail.extend_from_slice(&last);
        }
        self.tail.extend_from_slice(&chunk);
    }

    fn finish_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks
                .push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// Takes a piece of at most `room` bytes from the front; none when nothing is queued or there is
    /// no room.
    pub fn take(&mut self, room: usize) -> Option<Bytes> {
        if room == 0 {
            return None;
        }
        if self.chunks.is_empty() {
            self.finish_tail();
        }
        let next = self.chunks.get(1).map_or(SMALL, Bytes::len);
        let first = self.chunks.front_mut()?;
        let piece = if first.len() > room {
            first.split_to(room)
        } else if first.len() + next > room.min(SMALL) {
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

    proptest! {
        /// However small the chunks are, there are not many more than the bytes need.
        #[test]
        fn small_chunks_are_few(
            lengths in prop::collection::vec(prop_oneof![4 => 1usize..20, 1 => 1usize..5000], 1..500),
            rooms in prop::collection::vec(0usize..100, 1..10),
        ) {
            let mut queue = SendQueue::default();
            for (length, room) in lengths.iter().zip(rooms.iter().cycle()) {
                queue.push(vec![0; *length].into());
                queue.take(*room);
                let chunks = queue.chunks.len() + usize::from(!queue.tail.is_empty());
                prop_assert!(chunks <= 2 + 2 * queue.len() / SMALL, "{} of {}", chunks, queue.len());
            }
        }
    }

    /// What is large is kept, not copied.
    #[test]
    fn large_chunks_are_the_same_bytes() {
        let large = Bytes::from(vec![0; 3 * SMALL]);
        let mut queue = SendQueue::default();
        queue.push(Bytes::from_static(b"small"));
        queue.push(large.clone());
        queue.push(Bytes::from_static(b"small"));
        queue.push(Bytes::from_static(b"small"));
        assert_eq!(&queue.take(5).unwrap()[..], b"small");
        assert_eq!(queue.take(10_000).unwrap().as_ptr(), large.as_ptr());
        assert_eq!(&queue.take(10_000).unwrap()[..], b"smallsmall");
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
