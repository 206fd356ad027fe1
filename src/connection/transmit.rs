//! A connection's packets, as trains for one system call: UDP segmentation offload takes packets of
//! one size, the last of which may be shorter, to one address. And when they leave.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Connection, Path, State};

/// No UDP datagram, and so no train, is longer.
pub const MAX_TRAIN: usize = 65_535;
/// What the IP and UDP headers take of it at most (IPv6).
const HEADERS: usize = 48;
/// The largest packet that quiche makes. The buffer always has room for one more of them: given
/// less, quiche would make a path MTU probe shorter than it believes.
pub(super) const MAX_PACKET: usize = 16_383;

/// Trains that one connection may send in its turn, so that it does not hold back the others.
const TRAINS_PER_TURN: usize = 4;
/// The same beside short messages, which come in between.
const TRAINS_BESIDE_SHORT: usize = 1;
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

/// The buffer that trains are made in.
pub struct Train {
    buffer: Vec<u8>,
    /// There was nothing more to send behind the train that was made last.
    is_last: bool,
}

impl Default for Train {
    fn default() -> Self {
        Train {
            buffer: vec![0; MAX_TRAIN + MAX_PACKET],
            is_last: false,
        }
    }
}

impl Train {
    /// The bytes of the train that was made last.
    pub fn bytes(&self, transmit: &Transmit) -> &[u8] {
        &self.buffer[..transmit.length]
    }
}

/// Where trains go.
pub(crate) trait Network {
    /// The packets that one train may have, as far as the system has said.
    fn max_segments(&self) -> usize;
    /// Sends a train. `WouldBlock`: the system has no room for it; any other error: it is lost.
    fn send(&self, bytes: &[u8], transmit: &Transmit) -> io::Result<()>;
}

impl Connection {
    /// Sends what there is to send, as far as one turn goes.
    pub(crate) fn send(&mut self, train: &mut Train, now: Instant, network: &dyn Network) -> Sent {
        let most = if self.flight.is_beside_short(now) {
            TRAINS_BESIDE_SHORT
        } else {
            TRAINS_PER_TURN
        };
        self.send_trains(most, train, now, network)
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
    pub(crate) fn flush(&mut self, train: &mut Train, now: Instant, network: &dyn Network) -> Sent {
        if !matches!(self.state, State::Open) {
            return Sent::More;
        }
        // A timer that is due is the event thread's to see to.
        if self.deadline().is_some_and(|at| at <= now) {
            return Sent::More;
        }
        self.write(now);
        let sent = self.send_trains(TRAINS_AT_ONCE, train, now, network);
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
        now: Instant,
        network: &dyn Network,
    ) -> Sent {
        self.try_refused(now, network);
        if let Some((bytes, transmit)) = self.unsent.take()
            && self.is_blocked(network.send(&bytes, &transmit), &bytes, &transmit, now)
        {
            self.unsent = Some((bytes, transmit));
            return Sent::Blocked;
        }
        for _ in 0..most {
            let Some(transmit) = self.transmit(train, network.max_segments()) else {
                return Sent::All;
            };
            let sent = network.send(train.bytes(&transmit), &transmit);
            if self.is_blocked(sent, train.bytes(&transmit), &transmit, now) {
                self.unsent = Some((train.bytes(&transmit).to_vec(), transmit));
                return Sent::Blocked;
            }
            // quiche has just said so, and each time that it is asked it copies its transport parameters;
            // but it may have found an error, which the peer is to hear of.
            if train.is_last && self.quic.local_error().is_none() {
                return Sent::All;
            }
        }
        self.urgent = true;
        Sent::More
    }

    fn is_blocked(
        &mut self,
        sent: io::Result<()>,
        bytes: &[u8],
        transmit: &Transmit,
        now: Instant,
    ) -> bool {
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => {
                self.refused_train(&error, bytes, transmit, now);
                false
            }
            Ok(()) => false,
        }
    }

    /// Whether sending can wait: for what holds the handshake, or a little, where all there is to say
    /// is that one datagram came.
    pub(crate) fn can_wait(&mut self, now: Instant) -> bool {
        if self.is_held() {
            return true;
        }
        let single = self.unanswered == 1
            && !self.urgent
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

    /// Makes the next train, of at most `max_segments` packets, if there is anything to send.
    pub fn transmit(&mut self, train: &mut Train, max_segments: usize) -> Option<Transmit> {
        self.urgent = false;
        self.unanswered = 0;
        self.answer_at = None;
        train.is_last = false;
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
        // What is longer than any that is known to get through looks for the path MTU. The system takes no
        // train that has it, if it knows better, and nothing else is to be lost with it.
        let max_segments = match segment > self.max_packet() {
            true => 1,
            false => max_segments,
        };
        while segments < max_segments && length + segment <= room {
            let Some((size, next)) = self.packet(&mut train.buffer[length..]) else {
                train.is_last = true;
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
        let path = self.paths.real(info.from, info.to);
        Some(Transmit {
            to: path.peer,
            from: path.local,
            length,
            segment,
        })
    }

    fn packet(&mut self, out: &mut [u8]) -> Option<(usize, quiche::SendInfo)> {
        // Done: nothing to send now. Any other error has ended the connection inside quiche, where
        // the next `work` finds it.
        let packet = self.farewell(out).or_else(|| {
            let room = out.len().min(self.paths.max_packet());
            let room = match &self.unproved {
                Some(unproved) => room.min(unproved.room(matches!(self.state, State::Ended))),
                None => room,
            };
            self.next_packet(&mut out[..room])
        })?;
        self.active = true;
        let (size, info) = &packet;
        if let Some(unproved) = &mut self.unproved {
            unproved.sent(*size);
        }
        if self.search.is_silent() && self.is_active(info.to, info.from) {
            self.search.last = out[..*size].to_vec();
        }
        Some(packet)
    }

    /// A packet of a path that was left. Each that is due has one try, so this ends.
    fn farewell(&mut self, out: &mut [u8]) -> Option<(usize, quiche::SendInfo)> {
        // While too much is under way on one of them, there is none for it, until quiche's timer has its say.
        while let Some((path, instead, last)) = self.paths.farewell() {
            if let Some(packet) = self.farewell_of(path, instead, &last, out) {
                return Some(packet);
            }
        }
        None
    }

    fn farewell_of(
        &mut self,
        path: Path,
        instead: Path,
        last: &[u8],
        out: &mut [u8],
    ) -> Option<(usize, quiche::SendInfo)> {
        let Path { local, peer } = path;
        let (from, to) = (instead.local, instead.peer);
        // The window of that path may have no room for another.
        if !last.is_empty() && last.len() <= out.len() {
            out[..last.len()].copy_from_slice(last);
            let at = Instant::now();
            return Some((last.len(), quiche::SendInfo { from, to, at }));
        }
        self.quic.send_ack_eliciting_on_path(local, peer).ok()?;
        let room = out.len().min(self.paths.max_packet());
        let packet = &mut out[..room];
        let sent = self.quic.send_on_path(packet, Some(local), Some(peer));
        let (size, info) = sent.ok()?;
        self.paths.said_farewell(path, &out[..size]);
        Some((size, quiche::SendInfo { from, to, ..info }))
    }
}
