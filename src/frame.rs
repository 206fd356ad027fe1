//! Framing: a length in front of each packet, 2 bytes on the control stream and 4 on data streams,
//! big endian. Bytes in, whole packets out; no stream, no socket.
//!
//! The top bit of a length on a data stream makes the packet a fence ([`crate::router`]): a reader
//! stops behind it until it is told to go on.

use std::ops::Range;

use bytes::BufMut;

/// The top bit of a data stream's length prefix.
const FENCE: usize = 1 << 31;

/// The caller has seen to it that it fits.
fn put_u32(length: usize, out: &mut impl BufMut) {
    out.put_u32(length as u32);
}

/// How long the length prefix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// 2 bytes: the control stream, as `{packet, 2}` of the distribution handshake.
    Control,
    /// 4 bytes: data streams, as `{packet, 4}` of a distribution connection.
    Data,
}

impl Prefix {
    /// The prefix's own size in bytes.
    pub const fn size(self) -> usize {
        match self {
            Prefix::Control => 2,
            Prefix::Data => 4,
        }
    }

    /// Puts the prefix of a packet of `len` bytes at the end of `out`; false when it does not fit.
    #[must_use]
    pub fn put(self, len: usize, out: &mut impl BufMut) -> bool {
        match self {
            Prefix::Control => match u16::try_from(len) {
                Ok(len) => out.put_u16(len),
                Err(_) => return false,
            },
            Prefix::Data if len < FENCE => put_u32(len, out),
            Prefix::Data => return false,
        }
        true
    }

    /// Puts the prefix of a fence at the end of `out`; its packet, which may be empty, is to follow.
    #[must_use]
    pub fn put_fence(len: usize, out: &mut Vec<u8>) -> bool {
        let fits = len < FENCE;
        if fits {
            put_u32(len | FENCE, out);
        }
        fits
    }

    /// The prefix of the packet that `bytes` begin with.
    pub fn get(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Prefix::Control => {
                let prefix: [u8; 2] = bytes.get(..2)?.try_into().ok()?;
                Some(u16::from_be_bytes(prefix).into())
            }
            Prefix::Data => {
                let prefix: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
                usize::try_from(u32::from_be_bytes(prefix)).ok()
            }
        }
    }
}

/// A length prefix was over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// What the prefix said.
    pub length: usize,
    /// The limit.
    pub limit: usize,
}

/// Whole packets of one stream: the bytes as they came, and where each packet lies in them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Bytes of the stream, prefixes included.
    pub bytes: Vec<u8>,
    /// The packets, prefixes excluded, in the order of the stream.
    pub ranges: Vec<Range<usize>>,
}

impl Frames {
    /// The packets.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.ranges.iter().map(|range| &self.bytes[range.clone()])
    }
}

/// What the bytes of a stream were cut into.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The packets before the fence, or all of them.
    pub frames: Frames,
    /// The fence behind which the reader stands now, and the packet it carries.
    pub fence: Option<Vec<u8>>,
}

/// Cuts one stream into packets.
///
/// Memory: at most one incomplete packet (`limit` plus its prefix) and what one read adds.
#[derive(Debug)]
pub struct FrameReader {
    prefix: Prefix,
    limit: usize,
    tail: Vec<u8>,
}

impl FrameReader {
    /// A reader of packets of at most `limit` bytes.
    pub fn new(prefix: Prefix, limit: usize) -> Self {
        FrameReader {
            prefix,
            limit,
            tail: Vec::new(),
        }
    }

    /// The bytes of the stream that are not yet part of a whole packet; the stream's next bytes are
    /// to be put at their end, and the whole given to [`FrameReader::cut`].
    pub fn take_tail(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.tail)
    }

    /// Gives back what [`FrameReader::take_tail`] gave, when nothing came after it.
    pub fn restore(&mut self, tail: Vec<u8>) {
        self.tail = tail;
    }

    /// Whether the stream stands between two packets.
    pub fn at_boundary(&self) -> bool {
        self.tail.is_empty()
    }

    /// The whole packets in `bytes`, which is what [`FrameReader::take_tail`] gave and what came
    /// after it, up to the first fence. The rest is kept.
    pub fn cut(&mut self, mut bytes: Vec<u8>) -> Result<Cut, TooLong> {
        let size = self.prefix.size();
        let mut ranges = Vec::new();
        let mut at = 0;
        let mut next = 0;
        let mut fence = None;
        while let Some(prefix) = self.prefix.get(&bytes[at..]) {
            let is_fence = self.prefix == Prefix::Data && prefix & FENCE != 0;
            let length = if is_fence { prefix & !FENCE } else { prefix };
            if length > self.limit {
                return Err(TooLong {
                    length,
                    limit: self.limit,
                });
            }
            let start = at + size;
            let end = start + length;
            if end > bytes.len() {
                break;
            }
            next = end;
            if is_fence {
                fence = Some(bytes[start..end].to_vec());
                break;
            }
            ranges.push(start..end);
            at = end;
        }
        if next == 0 {
            // Nothing is complete: keep the buffer itself, so that a large packet is not copied
            // once per read.
            self.tail = bytes;
            return Ok(Cut::default());
        }
        self.tail.extend_from_slice(&bytes[next..]);
        bytes.truncate(at);
        Ok(Cut {
            frames: Frames { bytes, ranges },
            fence,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(reader: &mut FrameReader, chunk: &[u8]) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut bytes = reader.take_tail();
        bytes.extend_from_slice(chunk);
        Ok(reader
            .cut(bytes)?
            .frames
            .iter()
            .map(<[u8]>::to_vec)
            .collect())
    }

    fn prefixes() -> impl Strategy<Value = Prefix> {
        prop_oneof![Just(Prefix::Control), Just(Prefix::Data)]
    }

    proptest! {
        /// However the stream is cut into reads, the packets that come out are those that went in.
        #[test]
        fn any_fragmentation_gives_the_same_packets(
            prefix in prefixes(),
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cuts in prop::collection::vec(1usize..500, 1..50),
        ) {
            let mut stream = Vec::new();
            for packet in &packets {
                prop_assert!(prefix.put(packet.len(), &mut stream));
                stream.extend_from_slice(packet);
            }
            let mut reader = FrameReader::new(prefix, 300);
            let mut got = Vec::new();
            let mut rest = &stream[..];
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let n = (*cuts.next().unwrap()).min(rest.len());
                got.extend(feed(&mut reader, &rest[..n]).unwrap());
                rest = &rest[n..];
            }
            prop_assert_eq!(got, packets);
            prop_assert!(reader.at_boundary());
        }

        /// No bytes whatever make it panic or keep more than its limit.
        #[test]
        fn garbage_is_bounded(
            prefix in prefixes(),
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
        ) {
            let mut reader = FrameReader::new(prefix, 100);
            for chunk in &chunks {
                if feed(&mut reader, chunk).is_err() {
                    break;
                }
                prop_assert!(reader.tail.len() <= prefix.size() + 100);
            }
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let mut reader = FrameReader::new(Prefix::Data, 1000);
        assert_eq!(
            feed(&mut reader, &1001u32.to_be_bytes()),
            Err(TooLong {
                length: 1001,
                limit: 1000
            })
        );
    }

    #[test]
    fn a_reader_stops_behind_a_fence() {
        let mut stream = Vec::new();
        assert!(Prefix::Data.put(1, &mut stream));
        stream.push(b'a');
        assert!(Prefix::put_fence(1, &mut stream));
        stream.push(b'b');
        assert!(Prefix::Data.put(1, &mut stream));
        stream.push(b'c');
        let mut reader = FrameReader::new(Prefix::Data, 1000);
        let cut = reader.cut(stream).unwrap();
        assert_eq!(cut.frames.iter().collect::<Vec<_>>(), [b"a"]);
        assert_eq!(cut.fence.as_deref(), Some(&b"b"[..]));
        assert_eq!(feed(&mut reader, b"").unwrap(), [b"c"]);
        assert!(!Prefix::put_fence(FENCE, &mut Vec::new()));
    }

    #[test]
    fn a_packet_that_does_not_fit_the_prefix_is_refused() {
        let mut out = Vec::new();
        assert!(!Prefix::Control.put(65_536, &mut out));
        assert!(out.is_empty());
        assert!(!Prefix::Data.put(FENCE, &mut out), "it would be a fence");
        assert!(out.is_empty());
        assert!(Prefix::Control.put(65_535, &mut out));
    }
}
