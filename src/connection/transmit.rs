//! A connection's packets, as trains for one system call: UDP segmentation offload takes packets of
//! one size, the last of which may be shorter, to one address. And when they leave.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Connection, State};

/// No UDP datagram, and so no train, is longer.
pub const MAX_TRAIN: usize = 65_535;
/// What the IP and UDP headers take of it at most (IPv6).
const HEADERS: usize = 48;
/// The largest packet that quiche makes. The buffer always has room for one more of them: given
/// less, quiche would make a path MTU probe shorter than it believes.
const MAX_PACKET: usize = 16_383;

/// Trains that one connection may send in its turn, so that it does not hold back the others.
const TRAINS_PER_TURN: usize = 4;
/// The same for a thread that has just something to send, and other things to do.
const TRAINS_AT_ONCE: usize = 2;
/// How long an acknowledgement waits for a packet to travel in. One that acknowledges a single
/// packet is mostly not needed: the answer is about to leave. RFC 9000, section 13.2.1, allows what
/// `max_ack_delay` says, which is 25 ms.
const ACK_DELAY: Duration = Duration::from_millis(1);

/// A datagram up to this length has room for an acknowledgement, but not for a distribution message;
/// it needs no answer that could wait.
pub(super) const BARE_ACK: usize = 64;

/// What became of a turn's sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// There is nothing more to send now.
    All,
    /// The turn's share was sent; there may be more.
    More,
    /// The operating system has no room; nothing more can be sent until it has.
    Blocked,
}

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
}

/// The buffer that trains are made in. The default is none at all, to stand in for one that is
/// taken out.
#[derive(Default)]
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

    /// Sets what the system takes; it may learn that it takes less.
    pub(crate) fn set_max_segments(&mut self, max_segments: usize) {
        self.max_segments = max_segments.max(1);
    }

    /// The bytes of the train that was made last.
    pub fn bytes(&self, transmit: &Transmit) -> &[u8] {
        &self.buffer[..transmit.length]
    }
}

impl Connection {
    /// Sends what there is to send, as far as one turn goes. `send` is given each train; its
    /// `WouldBlock` means that the train has not left.
    pub(crate) fn send(
        &mut self,
        train: &mut Train,
        send: impl FnMut(&[u8], &Transmit) -> io::Result<()>,
    ) -> Sent {
        self.send_trains(TRAINS_PER_TURN, train, send)
    }

    /// Whether nothing is on its way that the peer has yet to acknowledge: then a small message is
    /// best sent at once. Otherwise there is traffic, and what comes together leaves together, once
    /// the event thread gets to it (as RFC 896 has it, but for the waiting).
    pub(crate) fn is_quiet(&self) -> bool {
        // Its only timer is the one for lost packets: there is no idle time-out by default.
        self.quic.timeout_instant().is_none() && self.outbound.is_empty()
    }

    /// Sends what was just queued, without reading anything: for a thread that is not the event
    /// thread. Happenings, if there are any, are left to that one.
    pub(crate) fn flush(
        &mut self,
        train: &mut Train,
        now: Instant,
        send: impl FnMut(&[u8], &Transmit) -> io::Result<()>,
    ) -> Sent {
        if !matches!(self.state, State::Open) {
            return Sent::More;
        }
        // A timer that is due is the event thread's to see to.
        if self.deadline().is_some_and(|at| at <= now) {
            return Sent::More;
        }
        self.write();
        let sent = self.send_trains(TRAINS_AT_ONCE, train, send);
        if self.happenings.is_empty() && self.quic.local_error().is_none() && !self.quic.is_closed()
        {
            sent
        } else {
            Sent::More
        }
    }

    fn send_trains(
        &mut self,
        most: usize,
        train: &mut Train,
        mut send: impl FnMut(&[u8], &Transmit) -> io::Result<()>,
    ) -> Sent {
        let blocked = |result: io::Result<()>| {
            result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        if let Some((bytes, transmit)) = self.unsent.take()
            && blocked(send(&bytes, &transmit))
        {
            self.unsent = Some((bytes, transmit));
            return Sent::Blocked;
        }
        self.more = false;
        for _ in 0..most {
            let Some(transmit) = self.transmit(train) else {
                return Sent::All;
            };
            if blocked(send(train.bytes(&transmit), &transmit)) {
                self.unsent = Some((train.bytes(&transmit).to_vec(), transmit));
                return Sent::Blocked;
            }
        }
        self.more = true;
        Sent::More
    }

    /// Whether sending can wait a little: all there is to say is that one datagram came.
    pub(crate) fn can_wait(&mut self, now: Instant) -> bool {
        let single = self.unanswered == 1
            && !self.more
            && self.held.is_none()
            && self.unsent.is_none()
            && self.outbound.is_empty()
            && matches!(self.state, State::Open);
        if !single {
            self.answer_at = None;
            return false;
        }
        *self.answer_at.get_or_insert(now + ACK_DELAY) > now
    }

    /// Makes the next train, if there is anything to send.
    pub fn transmit(&mut self, train: &mut Train) -> Option<Transmit> {
        self.unanswered = 0;
        self.answer_at = None;
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
        })
    }

    fn packet(&mut self, out: &mut [u8]) -> Option<(usize, quiche::SendInfo)> {
        // Done: nothing to send now. Any other error has ended the connection inside quiche, where
        // the next `work` finds it.
        let packet = self.quic.send(out).ok()?;
        self.active = true;
        Some(packet)
    }
}
