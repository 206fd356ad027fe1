//! Who the peer is: by a full handshake and by a resumed one.

use std::time::{SystemTime, UNIX_EPOCH};

use super::*;
use crate::identity::Validity;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Two nodes that meet again and again: their TLS contexts stay.
struct Meeting {
    client: quiche::Config,
    server: quiche::Config,
}

impl Meeting {
    fn new(client: &NodeIdentity, server: &NodeIdentity) -> Self {
        Self::in_epoch(client, server, 1)
    }

    /// The server's tickets are sealed with the key of an epoch.
    fn in_epoch(client: &NodeIdentity, server: &NodeIdentity, epoch: u64) -> Self {
        let config = |role, tls| config::quic(&limits(), role, tls).unwrap();
        let key = server.tickets().unwrap().key(DAY, epoch).unwrap();
        let mut server = config(Role::Server, server.server_context().unwrap());
        server.set_ticket_key(&key[..]).unwrap();
        Meeting {
            client: config(Role::Client, client.client_context().unwrap()),
            server,
        }
    }

    /// Dials `node`, and waits for both sides' verdicts.
    fn dial(&mut self, node: &str, session: Option<&Session>) -> Pair {
        let limits = limits();
        let mut client = Side::client_with(&mut self.client, &limits);
        client.connection.dials(node, session);
        let server = Side::server_with(&mut self.server, &limits);
        let mut pair = Pair::of(client, server);
        pair.settle();
        pair
    }
}

fn mint(name: &str) -> NodeIdentity {
    mint_of(&AUTHORITY, name)
}

fn mint_of(authority: &CookieAuthority, name: &str) -> NodeIdentity {
    NodeIdentity::mint(authority, name).unwrap()
}

/// Whether both sides hold the connection for a resumed one; they are connected.
fn resumed(pair: &Pair) -> bool {
    for side in [&pair.client, &pair.server] {
        assert_eq!(side.ended(), None);
        assert!(side.established);
    }
    let resumed = pair.client.connection.quic.is_resumed();
    assert_eq!(pair.server.connection.quic.is_resumed(), resumed);
    resumed
}

fn names(pair: &Pair) -> [Option<String>; 2] {
    [&pair.client, &pair.server].map(|side| side.connection.peer_name())
}

#[test]
fn a_session_is_resumed_and_both_know_whom_they_meet() {
    let mut meeting = Meeting::new(&mint("a@host"), &mint("b@host"));
    let first = meeting.dial("b@host", None);
    assert!(!resumed(&first));
    let expected = ["b@host", "a@host"].map(|name| Some(name.to_owned()));
    assert_eq!(names(&first), expected);
    let second = meeting.dial("b@host", first.client.session.as_ref());
    assert!(resumed(&second));
    assert_eq!(names(&second), expected);
    // What it gave can be resumed in its turn.
    let mut third = meeting.dial("b@host", second.client.session.as_ref());
    assert!(resumed(&third));
    assert_eq!(names(&third), expected);
    third.client.send_data(&packets(1, &[200_000]));
    third.until("it has arrived", |pair| pair.server.packets.len() == 1);
}

/// What a node started again has is a new key, a new certificate, and the old cookie.
#[test]
fn a_ticket_is_good_for_the_node_when_it_has_been_started_again() {
    let a = mint("a@host");
    let mut before = Meeting::new(&a, &mint("b@host"));
    let first = before.dial("b@host", None);
    let again = mint_of(&CookieAuthority::derive(b"secret").unwrap(), "b@host");
    let mut after = Meeting::new(&a, &again);
    let mut second = after.dial("b@host", first.client.session.as_ref());
    assert!(resumed(&second));
    let expected = ["b@host", "a@host"].map(|name| Some(name.to_owned()));
    assert_eq!(names(&second), expected);
    second.client.send_data(&packets(1, &[200_000]));
    second.until("it has arrived", |pair| pair.server.packets.len() == 1);
}

/// A ticket ends with its epoch: those of the one before and, for a clock that was set back, of the
/// one after are good for nothing, also when they came of a resumed handshake.
#[test]
fn a_ticket_of_another_epoch_makes_a_full_handshake() {
    let (a, b) = (mint("a@host"), mint("b@host"));
    let mut meeting = Meeting::in_epoch(&a, &b, 7);
    let first = meeting.dial("b@host", None);
    let second = meeting.dial("b@host", first.client.session.as_ref());
    assert!(resumed(&second));
    for epoch in [6, 8] {
        let mut other = Meeting::in_epoch(&a, &b, epoch);
        let third = other.dial("b@host", second.client.session.as_ref());
        assert!(!resumed(&third));
        assert!(resumed(
            &other.dial("b@host", third.client.session.as_ref())
        ));
    }
}

/// The session is bound to the node's name and to what it demands of others.
#[test]
fn a_ticket_of_another_identity_makes_a_full_handshake() {
    let a = mint("a@host");
    let first = Meeting::new(&a, &mint("b@host")).dial("b@host", None);
    let session = first.client.session.as_ref();
    // By its name, which the client would go by.
    let namesake = Meeting::new(&a, &mint("c@host")).dial("b@host", session);
    let text = "the peer's certificate is that of c@host, not of b@host".to_owned();
    let reason = CloseReason::Certificate { alert: 42, text };
    assert_eq!(namesake.client.closed, Some(reason));
    // A node that let everybody in, and now demands a certificate: what it gave to anybody is void.
    let careless = mint("b@host").that_trusts_everybody();
    let first = Meeting::new(&a, &careless).dial("b@host", None);
    let mut careful = Meeting::new(&a, &mint("b@host"));
    assert!(!resumed(
        &careful.dial("b@host", first.client.session.as_ref())
    ));
}

/// Even who has a copy of the ticket's key: the session names the context that made it.
#[test]
fn a_copy_of_the_key_is_not_enough() {
    let (a, b) = (mint("a@host"), mint("b@host"));
    let first = Meeting::new(&a, &b.that_trusts_everybody()).dial("b@host", None);
    let key = mint("b@host").that_trusts_everybody();
    let key = key.tickets().unwrap().key(DAY, 1).unwrap();
    let mut careful = Meeting::new(&a, &mint("b@host"));
    careful.server.set_ticket_key(&key[..]).unwrap();
    assert!(!resumed(
        &careful.dial("b@host", first.client.session.as_ref())
    ));
}

/// Another cookie: neither the session nor the certificate helps.
#[test]
fn a_session_does_not_lead_past_another_cookie() {
    let (a, b) = (mint("a@host"), mint("b@host"));
    let first = Meeting::new(&a, &b).dial("b@host", None);
    let other = CookieAuthority::derive(b"other").unwrap();
    let x = NodeIdentity::mint(&other, "b@host").unwrap();
    let pair = Meeting::new(&a, &x).dial("b@host", first.client.session.as_ref());
    let (by_us, alert) = (true, 48);
    assert_eq!(pair.client.closed, Some(CloseReason::Tls { by_us, alert }));
    assert!(!pair.server.established);
}

#[test]
fn the_certificate_has_to_be_that_of_the_node_dialled() {
    let mut meeting = Meeting::new(&mint("a@host"), &mint("b@host"));
    let first = meeting.dial("b@host", None);
    for session in [None, first.client.session.as_ref()] {
        // On the same host, too.
        let pair = meeting.dial("c@host", session);
        let text = "the peer's certificate is that of b@host, not of c@host".to_owned();
        let reason = CloseReason::Certificate { alert: 42, text };
        assert_eq!(pair.client.closed, Some(reason));
        assert!(!pair.client.established);
        let (by_us, alert) = (false, 42);
        let told = CloseReason::Tls { by_us, alert };
        assert_eq!(pair.server.ended(), Some(&told));
    }
}

/// A certificate ends, and what was resumed with it ends with it.
#[test]
fn a_session_does_not_outlive_the_certificate() {
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(since.as_secs()).unwrap()
    };
    // Again where the machine stood still until the certificate had expired.
    let (soon, mut meeting, first) = loop {
        let soon = Validity {
            not_before: now() - 60,
            not_after: now() + 5,
        };
        let a = NodeIdentity::mint_for(&AUTHORITY, "a@host", soon).unwrap();
        let mut meeting = Meeting::new(&a, &mint("b@host"));
        let first = meeting.dial("b@host", None);
        let in_time = meeting.dial("b@host", first.client.session.as_ref());
        if now() < soon.not_after {
            assert!(!resumed(&first));
            assert!(resumed(&in_time));
            break (soon, meeting, first);
        }
    };
    while now() <= soon.not_after + 1 {
        std::thread::sleep(Duration::from_millis(100));
    }
    let late = meeting.dial("b@host", first.client.session.as_ref());
    assert!(late.server.connection.quic.is_resumed());
    let Some(CloseReason::Certificate { alert: 45, text }) = &late.server.refused else {
        panic!("{:?}", late.server.ended());
    };
    assert!(
        text.starts_with("the peer's certificate (a@host) has expired on ")
            && text.ends_with("GMT"),
        "{text}"
    );
    let (by_us, alert) = (false, 45);
    assert_eq!(late.client.closed, Some(CloseReason::Tls { by_us, alert }));
    // A full handshake says the same of it.
    let full = meeting.dial("b@host", None);
    assert_eq!(full.server.refused, late.server.refused);
}
