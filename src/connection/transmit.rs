//! A connection's packets, as trains for one system call: UDP segmentation offload takes packets of
//! one size, the last of which may be shorter, to one address.

use std::net::SocketAddr;
use std::time::Instant;

use super::Connection;

/// No UDP datagram, and so no train, is longer.
pub const MAX_TRAIN: usize = 65_535;
/// What the IP and UDP headers take of it at most (IPv6).
const HEADERS: usize = 48;
/// The largest packet that quiche makes. The buffer always has room for one more of them: given
/// less, quiche would make a path MTU probe shorter than it believes.
const MAX_PACKET: usize = 16_383;

/// Where a train goes and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The peer's address.
    pub to: SocketAddr,
    /// Our address.
    pub from: SocketAddr,
    /// The bytes in the buffer.
    pub length: usize,
    /// The size of each packet but the last.
    pub segment: usize,
    /// When the train was made.
    pub at: Instant,
}

/// The buffer that trains are made in.
pub struct Train {
    buffer: Vec<u8>,
    max_segments: usize,
}

impl Train {
    /// A buffer for trains of at most `max_segments` packets.
    pub fn new(max_segments: usize) -> Self {
        Train {
            buffer: vec![0; MAX_TRAIN + MAX_PACKET],
            max_segments: max_segments.max(1),
        }
    }

    /// No buffer at all, to stand in for one that is taken out.
    pub(crate) fn empty() -> Self {
        Train {
            buffer: Vec::new(),
            max_segments: 0,
        }
    }

    /// The bytes of the train that was made last.
    pub fn bytes(&self, transmit: &Transmit) -> &[u8] {
        &self.buffer[..transmit.length]
    }
}

impl Connection {
    /// Makes the next train, if there is anything to send.
    pub fn transmit(&mut self, train: &mut Train, now: Instant) -> Option<Transmit> {
        let room = MAX_TRAIN - HEADERS;
        let (segment, info) = match self.held.take() {
            Some((packet, info)) => {
                train.buffer[..packet.len()].copy_from_slice(&packet);
                (packet.len(), info)
            }
            None => self.packet(&mut train.buffer)?,
        };
        let mut length = segment;
        let mut segments = 1;
        while segments < train.max_segments && length + segment <= room {
            let Some((size, next)) = self.packet(&mut train.buffer[length..]) else {
                break;
            };
            if size > segment || next.to != info.to || next.from != info.from {
                self.held = Some((train.buffer[length..length + size].to_vec(), next));
                break;
            }
            length += size;
            segments += 1;
            if size < segment {
                break;
            }
        }
        Some(Transmit {
            to: info.to,
            from: info.from,
            length,
            segment,
            at: now,
        })
    }

    fn packet(&mut self, out: &mut [u8]) -> Option<(usize, quiche::SendInfo)> {
        // Done: nothing to send now. Any other error has ended the connection inside quiche, where
        // the next `work` finds it.
        self.quic.send(out).ok()
    }
}
