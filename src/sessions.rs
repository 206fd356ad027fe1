//! The TLS sessions by which peers are met again: a resumed handshake (RFC 8446, section 2.2) spares
//! both sides the certificates and their signatures.
//!
//! A session is kept under the name of the node that was dialled, whose certificate is in it: after
//! a resumption it is looked at again like one that has just been shown. Sessions belong to the
//! identity with which they were made, and end with it: the driver makes a new store then. What they
//! hold are keys, which are overwritten when they go.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

/// Sessions that are kept; of more, the one that ends first goes.
const MAX_SESSIONS: usize = 1024;
/// More than a session with the longest chain of certificates that BoringSSL takes is not kept.
const MAX_SESSION_BYTES: usize = 64 * 1024;

/// A session, as quiche serializes it.
pub struct Session(Zeroizing<Vec<u8>>);

impl Session {
    /// Takes what [`quiche::Connection::session`] gave, without the peer's transport parameters:
    /// they are for 0-RTT, which is not used, and an old promise of the peer's must not count.
    /// `None`: it is not what quiche makes, or too long.
    pub fn new(serialized: &[u8]) -> Option<Self> {
        let length = u64::from_be_bytes(*serialized.first_chunk()?);
        let end = usize::try_from(length).ok()?.checked_add(8)?;
        let tls = serialized.get(..end).filter(|_| end <= MAX_SESSION_BYTES)?;
        let mut bytes = Vec::with_capacity(end + 8);
        bytes.extend_from_slice(tls);
        bytes.extend_from_slice(&0u64.to_be_bytes());
        Some(Session(Zeroizing::new(bytes)))
    }

    /// For [`quiche::Connection::set_session`].
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Sessions {
    by_node: HashMap<String, (Session, Instant)>,
}

impl Sessions {
    /// Keeps a node's session, in place of the one before, for at most `lifetime`.
    pub fn keep(&mut self, node: &str, session: Session, lifetime: Duration, now: Instant) {
        let Some(until) = now.checked_add(lifetime) else {
            return;
        };
        if self.by_node.len() >= MAX_SESSIONS && !self.by_node.contains_key(node) {
            let first = self.by_node.iter().min_by_key(|(_, (_, until))| *until);
            if let Some(name) = first.map(|(name, _)| name.clone()) {
                self.by_node.remove(&name);
            }
        }
        self.by_node.insert(node.to_owned(), (session, until));
    }

    /// The session to meet a node with.
    pub fn of(&mut self, node: &str, now: Instant) -> Option<&Session> {
        if self.by_node.get(node)?.1 <= now {
            self.by_node.remove(node);
        }
        self.by_node.get(node).map(|(session, _)| session)
    }

    /// The session was of no use: the next handshake is a full one.
    pub fn forget(&mut self, node: &str) {
        self.by_node.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(mark: u8) -> Session {
        let mut serialized = 3u64.to_be_bytes().to_vec();
        serialized.extend_from_slice(&[mark; 3]);
        serialized.extend_from_slice(&4u64.to_be_bytes());
        serialized.extend_from_slice(b"old!");
        Session::new(&serialized).unwrap()
    }

    #[test]
    fn transport_parameters_are_left_out() {
        let mut expected = 3u64.to_be_bytes().to_vec();
        expected.extend_from_slice(&[7; 3]);
        expected.extend_from_slice(&[0; 8]);
        assert_eq!(session(7).bytes(), expected);
    }

    #[test]
    fn what_is_no_session_is_not_kept() {
        for bad in [
            &b""[..],
            b"1234567",
            &8u64.to_be_bytes(),
            &u64::MAX.to_be_bytes(),
        ] {
            assert!(Session::new(bad).is_none());
        }
        let mut long = (MAX_SESSION_BYTES as u64).to_be_bytes().to_vec();
        long.resize(MAX_SESSION_BYTES + 8, 0);
        assert!(Session::new(&long).is_none());
    }

    #[test]
    fn a_session_ends() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let second = Duration::from_secs(1);
        sessions.keep("a@h", session(1), second, now);
        assert!(sessions.of("b@h", now).is_none());
        assert_eq!(sessions.of("a@h", now).unwrap().bytes()[8], 1);
        sessions.keep("a@h", session(2), second, now);
        assert_eq!(sessions.of("a@h", now).unwrap().bytes()[8], 2);
        assert!(sessions.of("a@h", now + second).is_none());
        assert!(sessions.by_node.is_empty());
        sessions.keep("a@h", session(3), second, now);
        sessions.forget("a@h");
        assert!(sessions.of("a@h", now).is_none());
    }

    #[test]
    fn there_are_not_too_many() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        for number in 0..MAX_SESSIONS as u64 + 10 {
            let name = format!("{number}@h");
            sessions.keep(&name, session(1), Duration::from_secs(100 + number), now);
        }
        assert_eq!(sessions.by_node.len(), MAX_SESSIONS);
        assert!(sessions.of("9@h", now).is_none());
        assert!(sessions.of("10@h", now).is_some());
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", session(77)).contains("77"));
    }
}
