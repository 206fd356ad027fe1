//! Packets that have come on the data streams: small ones as they lie in what was read of a stream,
//! large ones each in memory of its own, of the kind that the receiver of events wants. So those are
//! copied once, from QUIC's packets to where they stay.

use std::any::Any;
use std::fmt;
use std::ops::RangeInclusive;

use crate::frame::{Frames, Prefix};

/// Packets of these lengths are large: the VM cuts messages into fragments of 64 KiB, to which a header
/// comes. Room is made for a whole packet when it begins, and so for no longer ones: what a peer
/// announces takes no more memory than this on each of its streams.
const LARGE: RangeInclusive<usize> = (16 << 10)..=(128 << 10);

/// Memory for one packet.
pub trait Memory: Any + Send {
    /// All of it, for reading.
    fn bytes(&self) -> &[u8];
    /// All of it, to be filled.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// For whoever knows what it is.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// Makes memory of a length.
pub type Allocate = fn(usize) -> Box<dyn Memory>;

impl Memory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Memory of the engine's own.
pub fn on_heap(length: usize) -> Box<dyn Memory> {
    Box::new(vec![0; length])
}

/// Packets, in the order of their streams.
#[derive(Debug, Default)]
pub struct Packets {
    /// What they lie in.
    pub parts: Vec<Part>,
    length: usize,
}

/// One or more packets.
pub enum Part {
    /// As they lie in what was read.
    Small(Frames),
    /// One packet.
    Large(Box<dyn Memory>),
}

impl fmt::Debug for Part {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Part::Small(frames) => frames.fmt(out),
            Part::Large(memory) => write!(out, "Large({} bytes)", memory.bytes().len()),
        }
    }
}

impl Packets {
    /// Their bytes, prefixes included.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Puts packets behind these.
    pub fn put(&mut self, frames: Frames) {
        if !frames.ranges.is_empty() {
            self.length += frames.bytes.len();
            self.parts.push(Part::Small(frames));
        }
    }

    /// Puts a packet behind these.
    pub fn put_large(&mut self, memory: Box<dyn Memory>) {
        self.length += Prefix::Data.size() + memory.bytes().len();
        self.parts.push(Part::Large(memory));
    }

    /// Puts others behind these.
    pub fn append(&mut self, other: Packets) {
        self.length += other.length;
        self.parts.extend(other.parts);
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flat_map(|part| {
            let (small, large) = match part {
                Part::Small(frames) => (Some(frames.iter()), None),
                Part::Large(memory) => (None, Some(memory.bytes())),
            };
            small.into_iter().flatten().chain(large)
        })
    }
}

/// A large packet of which a part has come.
pub(crate) struct Arriving {
    memory: Box<dyn Memory>,
    filled: usize,
}

impl Arriving {
    /// Of the packet that these bytes begin with, prefix included, if it is a large one and they do not
    /// have all of it.
    pub fn begun(bytes: &[u8], limit: usize, allocate: Allocate) -> Option<Self> {
        let length = Prefix::Data.get(bytes)?;
        let begun = &bytes[Prefix::Data.size()..];
        // A fence's length has its top bit set, so it is not among them.
        if !LARGE.contains(&length) || length > limit || begun.len() >= length {
            return None;
        }
        let mut memory = allocate(length);
        memory
            .bytes_mut()
            .get_mut(..begun.len())?
            .copy_from_slice(begun);
        Some(Arriving {
            memory,
            filled: begun.len(),
        })
    }

    /// Where its next bytes go; not empty.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[self.filled..]
    }

    /// So many have come. The packet, if that is all of it.
    pub fn came(mut self, bytes: usize) -> Result<Box<dyn Memory>, Self> {
        self.filled += bytes;
        if self.filled < self.memory.bytes().len() {
            Err(self)
        } else {
            Ok(self.memory)
        }
    }
}
