//! What the system will not send: a firewall's rule, a queue that is full, no route, no address.
//!
//! To QUIC a train that is refused is a lost one. But its probe time-out doubles each time, and nobody
//! says when a firewall or a queue would take packets again; so, as asking is cheap, the system is asked
//! again soon, with the last packet of some length that it refused: no window has room for another one by then, and when
//! that is acknowledged, QUIC knows what was lost before it. Of addresses and routes the system says itself
//! when they change (`crate::addresses`).

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::libc;

use super::transmit::BARE_ACK;
use super::{Connection, Network, Path, Transmit};

/// The least time between two looks for another way, where an address or a route is gone.
const ROUTE_EVERY: Duration = Duration::from_millis(50);
/// The same where something else is in the way.
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// The least time between two lines of the log.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Refusals {
    /// The system has refused: since the last look for another way, and since it last seemed willing.
    unroutable: bool,
    out_of_reach: bool,
    looked_at: Instant,
    every: Duration,
    /// The last packet that was refused, and whether it is to be tried again now.
    last: Option<(Vec<u8>, Transmit)>,
    again: bool,
    told_at: Option<Instant>,
    /// Trains that were refused and that no line of the log has counted.
    untold: u64,
}

impl Refusals {
    pub fn new(now: Instant) -> Self {
        Refusals {
            unroutable: false,
            out_of_reach: false,
            looked_at: now,
            every: ROUTE_EVERY,
            last: None,
            again: false,
            told_at: None,
            untold: 0,
        }
    }

    /// Takes what a train was refused with. The number of trains that the log is to be told of now.
    fn refused(&mut self, error: &io::Error, now: Instant) -> Option<u64> {
        use io::ErrorKind::*;
        // A packet in search of the path MTU; or about an earlier packet, see `Connection::unreachable`.
        if error.raw_os_error() == Some(libc::EMSGSIZE) || error.kind() == ConnectionRefused {
            return None;
        }
        // EINVAL is what Linux says of a source address that this host does not have.
        let kinds = [
            InvalidInput,
            AddrNotAvailable,
            NetworkUnreachable,
            HostUnreachable,
            NetworkDown,
        ];
        self.every = match kinds.contains(&error.kind()) {
            true => ROUTE_EVERY,
            false => RETRY_EVERY,
        };
        self.unroutable = true;
        self.out_of_reach = true;
        // What becomes of it is told (`Event::Moved`); and a train over the interface's MTU is EINVAL too.
        if error.kind() == InvalidInput {
            return None;
        }
        self.untold += 1;
        if self.told_at.is_some_and(|at| now < at + TELL_EVERY) {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.untold))
    }

    /// When to look for another way.
    pub fn deadline(&self) -> Option<Instant> {
        self.unroutable.then(|| self.looked_at + self.every)
    }
}

impl Connection {
    /// The system refused to send a train, for another reason than a full buffer.
    pub(super) fn refused_train(
        &mut self,
        error: &io::Error,
        bytes: &[u8],
        train: &Transmit,
        now: Instant,
    ) {
        self.refused(error, train.to, now);
        // What is too large for the way stays so.
        if error.raw_os_error() == Some(libc::EMSGSIZE) {
            return;
        }
        let segment = train.segment.max(1);
        let start = bytes.len().saturating_sub(1) / segment * segment;
        let length = bytes.len() - start;
        let last = Transmit { length, ..*train };
        // While the peer is heard, it is answered: but an acknowledgement is not acknowledged.
        let kept = self.refusals.last.as_ref().filter(|(bytes, kept)| {
            (kept.from, kept.to) == (train.from, train.to) && bytes.len() > BARE_ACK
        });
        if length > BARE_ACK || kept.is_none() {
            self.refusals.last = Some((bytes[start..].to_vec(), last));
        }
    }

    /// Tries the last packet that was refused again, if it is time to and it still goes the same way.
    pub(super) fn try_refused(&mut self, now: Instant, network: &dyn Network) {
        if !std::mem::take(&mut self.refusals.again) {
            return;
        }
        let way = self.path();
        let Some((bytes, train)) = self.refusals.last.take() else {
            return;
        };
        if way.is_some_and(|way| way.local == train.from && way.peer == train.to)
            && let Err(error) = network.send(&bytes, &train)
        {
            self.refused_train(&error, &bytes, &train, now);
        }
    }

    pub(super) fn refused(&mut self, error: &io::Error, to: SocketAddr, now: Instant) {
        if let Some(trains) = self.refusals.refused(error, now) {
            let node = self.peer_name();
            let node = node.as_deref().unwrap_or("a node not known yet");
            log::warn!("sending to {node} at {to} fails: {error} ({trains} times since last told)");
        }
    }

    /// Where the connection's packets go, if the system has refused to send there, and it is time to
    /// ask whether there is another way.
    pub(super) fn lost_path(&mut self, now: Instant) -> Option<Path> {
        if self.refusals.deadline().is_none_or(|at| now < at) {
            return None;
        }
        self.refusals.unroutable = false;
        self.refusals.looked_at = now;
        self.path()
    }

    /// The system would, perhaps, send again.
    pub(crate) fn path_is_back(&mut self) {
        if std::mem::take(&mut self.refusals.out_of_reach) {
            self.refusals.again = true;
            self.ask_peer();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn the_log_is_told_now_and_then() {
        let start = Instant::now();
        let mut refusals = Refusals::new(start);
        assert_eq!(refusals.refused(&errno(libc::EPERM), start), Some(1));
        for ms in 1..10_000 {
            let now = start + Duration::from_millis(ms);
            assert_eq!(refusals.refused(&errno(libc::ENOBUFS), now), None);
        }
        let later = start + TELL_EVERY;
        assert_eq!(refusals.refused(&errno(libc::EPERM), later), Some(10_000));
    }

    #[test]
    fn the_system_is_asked_again() {
        let start = Instant::now();
        for (code, every) in [
            (libc::EPERM, RETRY_EVERY),
            (libc::EACCES, RETRY_EVERY),
            (libc::ENOBUFS, RETRY_EVERY),
            (libc::ENETUNREACH, ROUTE_EVERY),
            (libc::EINVAL, ROUTE_EVERY),
        ] {
            let mut refusals = Refusals::new(start);
            assert_eq!(refusals.deadline(), None);
            refusals.refused(&errno(code), start);
            assert_eq!(refusals.deadline(), Some(start + every), "{code}");
        }
        let mut refusals = Refusals::new(start);
        assert_eq!(refusals.refused(&errno(libc::EMSGSIZE), start), None);
        assert_eq!(refusals.deadline(), None);
    }
}
