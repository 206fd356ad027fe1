//! Packets on their way to the data streams, each behind its length prefix: their bytes one behind the
//! other, but for large parts, which stay where they are and are only referred to.
//!
//! What the router and the atom cache look at, the beginning of a packet, is always among the bytes.
//! So a message of a megabyte reaches QUIC's packets without a copy, and a hundred small ones are one
//! piece of memory.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::frame::Prefix;
use crate::term::Process;

/// A stream has little to send of something when it has so much: enough for the time that it takes to
/// wake who waits for that.
pub const LOW: usize = 512 << 10;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Batch {
    inline: BytesMut,
    /// In order.
    parts: VecDeque<Part>,
    /// How many of the inline bytes have been taken, since there were parts.
    taken: usize,
    waiting: Vec<Process>,
}

#[derive(Debug)]
struct Part {
    /// How many inline bytes come before it, those that were taken included.
    at: usize,
    bytes: Bytes,
}

/// Where a packet lies in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The inline bytes before its first part, from the prefix's end on.
    pub head: (usize, usize),
    /// The inline bytes up to its end.
    pub end: usize,
    /// How long it is, without its prefix.
    pub length: usize,
}

impl Batch {
    /// Begins a packet of this length, so much of it inline; false when it is too long for a prefix.
    /// What is added is to have this length.
    #[must_use]
    pub fn begin(&mut self, length: usize, inline: usize) -> bool {
        let fits = Prefix::Data.put(length, &mut self.inline);
        if fits {
            // At once, and not with each piece that is added.
            self.inline.reserve(inline);
        }
        fits
    }

    /// Adds bytes to the packet that was begun.
    pub fn add(&mut self, bytes: &[u8]) {
        self.inline.extend_from_slice(bytes);
    }

    /// Adds a part to the packet that was begun, without copying it.
    pub fn add_part(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            let at = self.taken + self.inline.len();
            self.parts.push_back(Part { at, bytes });
        }
    }

    /// This process is to be named ([`crate::Event::Low`]) when the stream that it was given has no more
    /// than [`LOW`] to send of this batch and of what is before it: it waits for that. Of several batches
    /// that say so of it while it waits, the last one counts.
    pub fn tell_when_low(&mut self, process: Process) {
        self.waiting.push(process);
    }

    /// Who waits.
    pub fn take_waiting(&mut self) -> Vec<Process> {
        std::mem::take(&mut self.waiting)
    }

    /// All bytes, those of the parts included.
    pub fn len(&self) -> usize {
        self.inline.len()
            + self
                .parts
                .iter()
                .map(|part| part.bytes.len())
                .sum::<usize>()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.inline.is_empty()
    }

    /// The packet behind this many inline bytes.
    pub fn packet(&self, start: usize) -> Option<Place> {
        let length = Prefix::Data.get(&self.inline[start..])?;
        let head = start + Prefix::Data.size();
        let mut end = head;
        let mut head_end = None;
        let mut left = length;
        let first = self
            .parts
            .partition_point(|part| part.at - self.taken <= start);
        for part in self.parts.iter().skip(first) {
            let inline = part.at - self.taken - end;
            // The next packet's.
            if left <= inline {
                break;
            }
            end += inline;
            head_end.get_or_insert(end);
            left = left.saturating_sub(inline + part.bytes.len());
        }
        // What is there, should the prefix have said more.
        end = (end + left).min(self.inline.len());
        Some(Place {
            head: (head, head_end.unwrap_or(end)),
            end,
            length,
        })
    }

    /// The beginning of a packet.
    pub fn head(&mut self, place: &Place) -> &mut [u8] {
        &mut self.inline[place.head.0..place.head.1]
    }

    /// Takes the first so many inline bytes, or all, with the parts among them and directly behind,
    /// piece by piece.
    pub fn take(&mut self, inline: usize, mut put: impl FnMut(Bytes)) {
        let end = self.taken + inline.min(self.inline.len());
        while let Some(part) = self.parts.front()
            && part.at <= end
            && inline > 0
        {
            let before = part.at - self.taken;
            if before > 0 {
                put(self.inline.split_to(before).freeze());
                self.taken = part.at;
            }
            if let Some(part) = self.parts.pop_front() {
                put(part.bytes);
            }
        }
        let rest = end - self.taken;
        if rest == self.inline.len() && rest > 0 {
            // To split off all that there is would have it shared with nobody.
            put(std::mem::take(&mut self.inline).freeze());
            self.taken = end;
        } else if rest > 0 {
            put(self.inline.split_to(rest).freeze());
            self.taken = end;
        }
    }
}

/// Whole packets, each behind its prefix.
impl From<Vec<u8>> for Batch {
    fn from(framed: Vec<u8>) -> Self {
        Batch {
            // Without a copy, as nobody else has these bytes.
            inline: BytesMut::from(Bytes::from(framed)),
            ..Batch::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet in pieces: whether each is a part, and its length. The first is none.
    fn pieces() -> impl Strategy<Value = Vec<(bool, usize)>> {
        prop::collection::vec((any::<bool>(), 0usize..20), 0..5).prop_map(|mut pieces| {
            pieces.insert(0, (false, 3));
            pieces
        })
    }

    proptest! {
        /// Packets are found where they are, and come out as they were put in, however many are taken
        /// together.
        #[test]
        fn packets_come_out_as_they_went_in(
            packets in prop::collection::vec(pieces(), 1..10),
            together in prop::collection::vec(1usize..4, 10),
        ) {
            let mut batch = Batch::default();
            let mut all = Vec::new();
            let mut bytes = 0u8..;
            let mut expected = Vec::new();
            for packet in &packets {
                let length: usize = packet.iter().map(|(_, length)| length).sum();
                prop_assert!(batch.begin(length, length));
                prop_assert!(Prefix::Data.put(length, &mut all));
                let start = all.len();
                for &(part, length) in packet {
                    let piece: Vec<u8> = (0..length).map(|_| bytes.next().unwrap_or(0)).collect();
                    all.extend_from_slice(&piece);
                    if part {
                        batch.add_part(piece.into());
                    } else {
                        batch.add(&piece);
                    }
                }
                expected.push(all[start..].to_vec());
            }
            prop_assert_eq!(batch.len(), all.len());
            let mut out = Vec::new();
            let mut next = expected.iter();
            for count in together {
                let mut run = 0;
                for _ in 0..count {
                    let Some(place) = batch.packet(run) else { break };
                    let packet = next.next().unwrap();
                    prop_assert_eq!(place.length, packet.len());
                    let head = batch.head(&place);
                    prop_assert!(head.len() >= 3);
                    prop_assert_eq!(&*head, &packet[..head.len()]);
                    run = place.end;
                }
                batch.take(run, |piece| out.extend_from_slice(&piece));
            }
            if next.next().is_none() {
                prop_assert!(batch.is_empty());
                prop_assert_eq!(out, all);
            } else {
                prop_assert!(all.starts_with(&out));
            }
        }
    }
}
