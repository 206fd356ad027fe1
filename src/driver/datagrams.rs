//! Datagrams in: from the socket to the connections they are for, or to a new one, and what the
//! system says of addresses at which nobody listens.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::{Driver, bump};
use crate::connection::Transmit;
use crate::event::Events;
use crate::handle::Commands;
use crate::ingress::{Arrival, classify};
use crate::socket::{Batch, Refusal};

/// Receiving calls before the connections get their turn, so that a flood of datagrams does not
/// hold back what is to be sent.
const RECEIVES_PER_TURN: usize = 1;
/// Entries of the socket's error queue per turn.
const ERRORS_PER_TURN: usize = 64;

impl<E: Events> Driver<E> {
    pub(super) fn receive(&mut self, batch: &mut Batch) {
        for _ in 0..RECEIVES_PER_TURN {
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
            bump(&self.counters.receive_calls, 1);
            for (datagram, from, to) in batch.datagrams(count) {
                bump(&self.counters.datagrams_received, 1);
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
            Arrival::Known(key) => key,
            Arrival::Initial { dcid } => match self.accept(dcid, from, to) {
                Some(key) => key,
                None => return,
            },
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

    fn negotiate_version(
        &mut self,
        scid: &quiche::ConnectionId<'static>,
        dcid: &quiche::ConnectionId<'static>,
        to: SocketAddr,
        from: SocketAddr,
    ) {
        let mut packet = [0; 256];
        if let Ok(length) = quiche::negotiate_version(scid, dcid, &mut packet) {
            let transmit = Transmit {
                to,
                from,
                length,
                segment: length,
            };
            // Lost or not: the sender tries again.
            let _ = self.sender.send(&packet[..length], &transmit);
        }
    }

    pub(super) fn read_errors(&mut self) {
        for _ in 0..ERRORS_PER_TURN {
            match self.socket.refused() {
                None => return,
                Some(Refusal::Other) => {}
                Some(Refusal::At(address)) => {
                    let now = std::time::Instant::now();
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
