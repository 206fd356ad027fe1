//! Limits on connections: reached with real Initials, and left again.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use quic_dist_engine::{CloseReason, Limits};

use crate::support::raw::Raw;
use crate::support::{Node, SECRET, displaced, limits, ping, until};

#[test]
fn half_open_connections_are_limited_and_forgotten() {
    let narrow = Limits {
        max_half_open: 4,
        handshake_timeout: Duration::from_secs(15),
        ..limits()
    };
    let (a, b) = (Node::open("127.0.0.1:0", &SECRET, narrow), Node::new());
    let counters = a.endpoint.counters();
    let stalled: Vec<Raw> = (0..10)
        .map(|_| {
            let mut raw = Raw::new(a.endpoint.local(), SECRET.client_context().unwrap());
            raw.flush();
            raw
        })
        .collect();
    // The others have to prove where they are, and do not.
    until("the limit is reached", || {
        counters.retries.load(Relaxed) >= 6
    });
    assert_eq!(counters.half_open.load(Relaxed), 4);

    // Dialled peers are not half open: the limit is for those who come.
    let (mut ours, mut theirs) = a.connect(&b);
    ping(&mut ours, &mut theirs, 1);

    // Who comes now and proves it has the place of the oldest of them.
    let (mut ours, mut theirs) = b.connect(&a);
    ping(&mut ours, &mut theirs, 2);
    assert_eq!(a.refusal(), displaced());
    for _ in 0..3 {
        assert_eq!(a.refusal(), CloseReason::HandshakeTimeout);
    }
    until("the stalled ones are forgotten", || {
        counters.half_open.load(Relaxed) == 0 && counters.connections.load(Relaxed) == 2
    });
    drop(stalled);
}

#[test]
fn connections_are_limited() {
    let narrow = Limits {
        max_connections: 2,
        ..limits()
    };
    let a = Node::open("127.0.0.1:0", &SECRET, narrow);
    let b = Node::new();
    let (mut first, mut in_b) = a.connect(&b);
    let (mut second, mut in_a) = b.connect(&a);
    ping(&mut first, &mut in_b, 1);
    ping(&mut second, &mut in_a, 2);

    // Dialling out is refused at once ...
    let reason = a.dial(b.endpoint.local()).end();
    assert!(
        matches!(&reason, CloseReason::LocalClosed { text } if text.contains("max_connections")),
        "{reason}"
    );
    // ... and who comes is not answered until there is room.
    let mut third = b.dial(a.endpoint.local());
    let counters = a.endpoint.counters();
    until("it is dropped", || counters.dropped_limit.load(Relaxed) > 0);
    assert!(a.incoming.is_empty());
    ping(&mut first, &mut in_b, 3);
    first.handle.close("room");
    third.connected();
    let mut in_a_too = a.accept();
    ping(&mut third, &mut in_a_too, 4);
    ping(&mut second, &mut in_a, 5);
}

/// Whoever is let in and never spoken to is let go.
#[test]
fn incoming_connections_that_nobody_takes_are_let_go() {
    let hasty = Limits {
        handshake_timeout: Duration::from_secs(4),
        ..limits()
    };
    let (a, b) = (Node::open("127.0.0.1:0", &SECRET, hasty), Node::new());
    let mut ours = b.dial(a.endpoint.local());
    ours.connected();
    assert_eq!(
        ours.end(),
        CloseReason::PeerClosed {
            code: 2,
            text: "nobody accepted the connection".into()
        }
    );
    let mut unclaimed = a.incoming.recv_timeout(crate::support::PATIENCE).unwrap();
    assert_eq!(unclaimed.end(), CloseReason::HandshakeTimeout);
}
