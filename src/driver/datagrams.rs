//! Datagrams in: from the socket to the connections they are for, or to a new one, and what the
//! system says of addresses at which nobody listens.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::{ConnectionId, Driver, bump};
use crate::admission::Verdict;
use crate::connection::{Network, Transmit};
use crate::event::Events;
use crate::ingress::{Arrival, classify};
use crate::socket::{Batch, Refusal};
use crate::table::random_id;

/// Receiving calls before the connections get their turn, so that a flood of datagrams does not
/// hold back what is to be sent.
const RECEIVES_PER_TURN: usize = 1;
/// Entries of the socket's error queue per turn.
const ERRORS_PER_TURN: usize = 64;

/// A datagram that waits for the event thread.
pub(super) struct Left {
    datagram: Vec<u8>,
    from: SocketAddr,
    to: SocketAddr,
}

impl<E: Events> Driver<E> {
    pub(super) fn receive(&mut self) {
        // The datagrams lie in it while the driver works on them.
        let mut batch = std::mem::take(&mut self.batch);
        self.receive_into(&mut batch);
        self.batch = batch;
    }

    fn receive_into(&mut self, batch: &mut Batch) {
        for _ in 0..RECEIVES_PER_TURN {
            bump(&self.counters.receive_calls, 1);
            let count = match self.socket.receive(batch) {
                Ok(count) => count,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.readable = false;
                        return;
                    }
                    // A pending report about an earlier packet, which recvmsg gives first.
                    _ => {
                        self.read_errors();
                        continue;
                    }
                },
            };
            for (datagram, from, to) in batch.datagrams(count) {
                bump(&self.counters.datagrams_received, 1);
                self.received = self.received.wrapping_add(datagram.len());
                self.arrived(datagram, from, to);
            }
            // The system had no more; what comes from now on wakes us again.
            if count < batch.capacity() {
                self.readable = false;
                return;
            }
        }
    }

    fn arrived(&mut self, datagram: &mut [u8], from: SocketAddr, to: Option<IpAddr>) {
        let local = self.socket.local();
        let to = SocketAddr::new(to.unwrap_or(local.ip()), local.port());
        let key = match classify(datagram, &self.table) {
            Arrival::Known(key) if self.guest && !self.entries[key].up => {
                return self.leave(datagram, from, to);
            }
            Arrival::Known(key) => key,
            Arrival::Initial { .. } if self.guest => return self.leave(datagram, from, to),
            Arrival::Initial { scid, dcid, token } => {
                let now = Instant::now();
                let original = match self.admission.decide(from, &dcid, &token, now) {
                    Verdict::Accept(original) => original,
                    Verdict::Displace(original, other) => {
                        self.displace(other);
                        Some(original)
                    }
                    Verdict::Retry => return self.retry(&scid, &dcid, from, to, now),
                    Verdict::Full => return bump(&self.counters.dropped_limit, 1),
                    Verdict::BadToken => return bump(&self.counters.dropped_strays, 1),
                };
                match self.accept(dcid, original, from, to) {
                    Some(key) => key,
                    None => return,
                }
            }
            Arrival::UnknownVersion { scid, dcid } => {
                self.negotiate_version(&scid, &dcid, from, to);
                return;
            }
            Arrival::Drop(_) => {
                bump(&self.counters.dropped_strays, 1);
                return;
            }
        };
        self.with(key, |connection| connection.receive(datagram, from, to));
        self.list(key);
    }

    /// What may cost a signature is left to the event thread.
    fn leave(&mut self, datagram: &[u8], from: SocketAddr, to: SocketAddr) {
        self.left.push(Left {
            datagram: datagram.to_vec(),
            from,
            to,
        });
    }

    /// What guests have left.
    pub(super) fn receive_left(&mut self) {
        for mut left in std::mem::take(&mut self.left) {
            self.arrived(&mut left.datagram, left.from, Some(left.to.ip()));
        }
    }

    fn negotiate_version(
        &mut self,
        scid: &ConnectionId,
        dcid: &ConnectionId,
        to: SocketAddr,
        from: SocketAddr,
    ) {
        let mut packet = [0; 256];
        if let Ok(length) = quiche::negotiate_version(scid, dcid, &mut packet) {
            self.answer(&packet[..length], from, to);
        }
    }

    /// Has whoever sent an Initial prove that it gets what is sent to its address.
    fn retry(
        &mut self,
        scid: &ConnectionId,
        dcid: &ConnectionId,
        to: SocketAddr,
        from: SocketAddr,
        now: Instant,
    ) {
        let Ok(id) = random_id() else { return };
        let Ok(token) = self.admission.token(to, dcid, &id, now) else {
            return;
        };
        let mut packet = [0; 256];
        let version = quiche::PROTOCOL_VERSION;
        if let Ok(length) = quiche::retry(scid, dcid, &id, &token, version, &mut packet) {
            bump(&self.counters.retries, 1);
            self.answer(&packet[..length], from, to);
        }
    }

    /// Sends what is no connection's, and shorter than what it answers.
    fn answer(&self, packet: &[u8], from: SocketAddr, to: SocketAddr) {
        let transmit = Transmit {
            to,
            from,
            length: packet.len(),
            segment: packet.len(),
        };
        // Lost or not: the sender tries again.
        let _ = self.sender.send(packet, &transmit);
    }

    pub(super) fn read_errors(&mut self) {
        for _ in 0..ERRORS_PER_TURN {
            bump(&self.counters.receive_calls, 1);
            match self.socket.refused() {
                None => return,
                Some(Refusal::Other) => {}
                Some(Refusal::At(address)) => {
                    let now = Instant::now();
                    let keys: Vec<usize> = self
                        .entries
                        .iter()
                        .filter(|(_, entry)| entry.from == address)
                        .map(|(key, _)| key)
                        .collect();
                    for key in keys {
                        self.with(key, |connection| connection.unreachable(now));
                        self.list(key);
                    }
                }
            }
        }
    }
}
