//! TLS sessions: what is kept of a peer that was met, and for how long.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quic_dist_engine::Limits;

use super::support::{Conn, Node, PATIENCE, SECRET, identity, limits, ping, until};

const NAME: &str = "node@127.0.0.1";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn node(session_lifetime: Duration) -> Node {
    if session_lifetime == DAY && left_of_epoch(DAY) < Duration::from_secs(30) {
        until_an_epoch_begins(DAY);
    }
    let limits = Limits {
        session_lifetime,
        ..limits()
    };
    Node::open("127.0.0.1:0", &SECRET, limits)
}

fn is_resumed(conn: &Conn) -> bool {
    let info = conn.handle.info().unwrap().recv_timeout(PATIENCE).unwrap();
    assert_eq!(info.peer_name.as_deref(), Some(NAME));
    info.resumed
}

/// One connection, used and closed again: whether it was resumed, as both sides see it.
#[track_caller]
fn meet(a: &Node, b: &Node) -> bool {
    let mut ours = a.dial_node(b.endpoint.local(), Some(NAME));
    ours.connected();
    let mut theirs = b.accept();
    // The session has come when data comes that was sent after it.
    ping(&mut ours, &mut theirs, 1);
    let resumed = is_resumed(&ours);
    assert_eq!(is_resumed(&theirs), resumed);
    ours.handle.close("done");
    ours.end();
    theirs.end();
    until("it is put away", || {
        let count = |n: &Node| {
            n.endpoint
                .counters()
                .connections
                .load(std::sync::atomic::Ordering::Relaxed)
        };
        count(a) == 0 && count(b) == 0
    });
    resumed
}

#[test]
fn who_was_met_is_met_again_by_its_session() {
    let (a, b) = (node(DAY), node(DAY));
    let met: Vec<bool> = (0..4).map(|_| meet(&a, &b)).collect();
    assert_eq!(met, [false, true, true, true]);
    // The other way round it is the first time.
    assert!(!meet(&b, &a));
    assert!(meet(&b, &a));
}

#[test]
fn without_a_name_nothing_is_kept() {
    let (a, b) = (node(DAY), node(DAY));
    for _ in 0..2 {
        let (ours, theirs) = a.connect(&b);
        assert!(!is_resumed(&ours) && !is_resumed(&theirs));
    }
}

/// Either side can end it, by its own clock.
#[test]
fn a_session_ends_after_its_lifetime() {
    // Long enough for a second meeting on any machine.
    let short = Duration::from_secs(4);
    for (ours, theirs) in [(DAY, short), (short, DAY)] {
        let (a, b) = (node(ours), node(theirs));
        meet_twice(&a, &b, short);
        std::thread::sleep(short + Duration::from_millis(200));
        // The full handshake begins a new one.
        meet_twice(&a, &b, short);
    }
}

/// By a full handshake, and then by the session that it began; again, where the machine stood still until
/// that was over.
#[track_caller]
fn meet_twice(a: &Node, b: &Node, lifetime: Duration) {
    for _ in 0..5 {
        until_an_epoch_begins(lifetime);
        let start = Instant::now();
        let left = left_of_epoch(lifetime);
        assert!(!meet(a, b));
        let resumed = meet(a, b);
        if start.elapsed() < left {
            return assert!(resumed);
        }
        std::thread::sleep(lifetime + Duration::from_millis(200));
    }
    panic!("the machine stands still again and again");
}

fn until_an_epoch_begins(length: Duration) {
    std::thread::sleep(left_of_epoch(length));
}

/// Keys of tickets change where the wall clock is a multiple of the lifetime.
fn left_of_epoch(length: Duration) -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let into = since.as_nanos() % length.as_nanos();
    Duration::from_nanos(u64::try_from(length.as_nanos() - into).unwrap())
}

#[test]
fn either_side_can_do_without() {
    for (ours, theirs) in [(DAY, Duration::ZERO), (Duration::ZERO, DAY)] {
        let (a, b) = (node(ours), node(theirs));
        assert!(!meet(&a, &b));
        assert!(!meet(&a, &b), "{ours:?}, {theirs:?}");
    }
}

/// The dialling side forgets its sessions with its identity. The other's tickets are bound to the
/// cookie and the name, not to the certificate of the hour.
#[test]
fn a_new_identity_begins_anew() {
    let (a, b) = (node(DAY), node(DAY));
    assert!(!meet(&a, &b));
    assert!(meet(&a, &b));
    b.endpoint.set_identity(identity(b"secret"));
    assert!(meet(&a, &b), "the server is who it was");
    a.endpoint.set_identity(identity(b"secret"));
    assert!(!meet(&a, &b), "the client has another certificate");
    assert!(meet(&a, &b));
    for node in [&a, &b] {
        node.endpoint.set_identity(identity(b"another secret"));
    }
    assert!(!meet(&a, &b), "another cookie");
    for node in [&a, &b] {
        node.endpoint.set_identity(identity(b"secret"));
    }
    assert!(!meet(&a, &b), "what was forgotten does not come back");
    assert!(meet(&a, &b));
}

/// A node that was killed and started again at the same address reads its tickets; what it held of
/// others' is gone.
#[test]
fn a_node_that_starts_again_is_met_by_its_session() {
    let a = node(DAY);
    let b = node(DAY);
    assert!(!meet(&a, &b));
    assert!(!meet(&b, &a));
    let (at, limits) = (
        b.endpoint.local(),
        Limits {
            session_lifetime: DAY,
            ..limits()
        },
    );
    b.endpoint.start_close(Duration::ZERO);
    assert!(b.endpoint.wait_closed(PATIENCE));
    let again = Node::open(&at.to_string(), &identity(b"secret"), limits);
    assert!(meet(&a, &again));
    assert!(!meet(&again, &a));
    assert!(meet(&again, &a));
}
