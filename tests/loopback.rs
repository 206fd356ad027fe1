//! Two endpoints, with their threads and sockets, over the loopback interface.

mod support;

#[path = "loopback/addresses.rs"]
mod addresses;
#[path = "loopback/cookies.rs"]
mod cookies;
#[path = "loopback/guests.rs"]
mod guests;
#[path = "loopback/hostile.rs"]
mod hostile;
#[path = "loopback/lifecycle.rs"]
mod lifecycle;
#[path = "loopback/limits.rs"]
mod limits;
#[path = "loopback/sessions.rs"]
mod sessions;

use std::net::UdpSocket;

use quic_dist_engine::{CloseReason, Limits};
use support::{Node, OTHER, SECRET, limits, packet, ping};

#[test]
fn messages_go_both_ways() {
    let (a, b) = (Node::new(), Node::new());
    let (mut ours, mut theirs) = a.connect(&b);
    assert_eq!(theirs.peer, a.endpoint.local());
    ours.handle.send_control(b"name").unwrap();
    assert_eq!(theirs.control(), b"name");
    theirs.handle.send_control(b"status").unwrap();
    assert_eq!(ours.control(), b"status");
    for number in 0..200 {
        ping(&mut ours, &mut theirs, number);
    }
    for length in [0, 1, 70_000, 5_000_000, 16 << 20] {
        let sent = packet(length as u64, length);
        theirs.send(&sent);
        assert!(ours.packet() == sent, "{length} bytes");
    }
    let info = ours
        .handle
        .info()
        .unwrap()
        .recv_timeout(support::PATIENCE)
        .unwrap();
    assert_eq!(
        (info.peer, info.local),
        (b.endpoint.local(), a.endpoint.local())
    );
    assert_eq!(info.peer_name.as_deref(), Some("node@127.0.0.1"));
}

#[test]
fn sixty_four_mebibytes_arrive_as_they_were_sent() {
    const COUNT: u64 = 64;
    let (a, b) = (Node::new(), Node::new());
    let (mut ours, mut theirs) = a.connect(&b);
    let sender = std::thread::spawn(move || {
        for number in 0..COUNT {
            ours.send(&packet(number, 1 << 20));
        }
        ours
    });
    for number in 0..COUNT {
        assert!(
            theirs.packet() == packet(number, 1 << 20),
            "packet {number}"
        );
    }
    let mut ours = sender.join().unwrap();
    ping(&mut ours, &mut theirs, 1);
}

#[test]
fn fifty_connections_at_once() {
    // Nobody has to prove an address, which would be another test.
    let open = || {
        let limits = Limits {
            retry_threshold: 64,
            ..limits()
        };
        Node::open("127.0.0.1:0", &SECRET, limits)
    };
    let (a, b) = (open(), open());
    // Both dial, so that the two sockets carry connections of both roles.
    let dialled: Vec<_> = (0..25)
        .flat_map(|_| [a.dial(b.endpoint.local()), b.dial(a.endpoint.local())])
        .collect();
    let mut pairs = Vec::new();
    for (number, mut ours) in dialled.into_iter().enumerate() {
        ours.connected();
        // Which incoming connection is whose is learnt from what it says.
        ours.handle.send_control(&[number as u8]).unwrap();
        pairs.push((ours, None));
    }
    for node in [&a, &b] {
        for _ in 0..25 {
            let mut theirs = node.accept();
            let number = usize::from(theirs.control()[0]);
            assert!(pairs[number].1.replace(theirs).is_none());
        }
    }
    for round in 0..3 {
        for (number, (ours, theirs)) in pairs.iter_mut().enumerate() {
            ping(
                ours,
                theirs.as_mut().unwrap(),
                (round * 1000 + number) as u64,
            );
        }
    }
    for node in [&a, &b] {
        let connections = &node.endpoint.counters().connections;
        assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 50);
    }
}

#[test]
fn every_kind_of_address() {
    for (bound, dialled) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.1"),
        // Answers must leave from the address that was asked.
        ("0.0.0.0:0", "127.0.0.2"),
        ("[::1]:0", "::1"),
        ("[::]:0", "::1"),
    ] {
        if UdpSocket::bind(bound).is_err() {
            eprintln!("skipped: this machine has no {bound}");
            continue;
        }
        let a = Node::open(bound, &SECRET, limits());
        let b = Node::open(bound, &SECRET, limits());
        let to = (
            dialled.parse::<std::net::IpAddr>().unwrap(),
            b.endpoint.local().port(),
        );
        let mut ours = a.dial(to.into());
        ours.connected();
        let mut theirs = b.accept();
        ping(&mut ours, &mut theirs, 1);
        let info = ours
            .handle
            .info()
            .unwrap()
            .recv_timeout(support::PATIENCE)
            .unwrap();
        assert_eq!(info.peer, to.into());
        assert!(!info.local.ip().is_unspecified());
    }
}

#[test]
fn another_cookie_is_refused_on_both_sides() {
    let (a, x) = (Node::new(), Node::open("127.0.0.1:0", &OTHER, limits()));
    for (dialler, dialled) in [(&a, &x), (&x, &a)] {
        let mut conn = dialler.dial(dialled.endpoint.local());
        let alert = 48;
        assert_eq!(conn.end(), CloseReason::Tls { by_us: true, alert });
        assert_eq!(
            dialled.refusal(),
            CloseReason::Tls {
                by_us: false,
                alert
            }
        );
        assert!(dialled.incoming.is_empty());
    }
}

#[test]
fn a_new_identity_is_for_new_connections() {
    let (a, b) = (Node::new(), Node::new());
    let (mut ours, mut theirs) = a.connect(&b);
    let x = Node::open("127.0.0.1:0", &OTHER, limits());
    assert!(matches!(
        x.dial(b.endpoint.local()).end(),
        CloseReason::Tls { .. }
    ));
    b.endpoint.set_identity(OTHER.clone());
    // Both ways, as dialler and as dialled.
    let (mut from_x, mut in_b) = x.connect(&b);
    ping(&mut from_x, &mut in_b, 1);
    let (mut from_b, mut in_x) = b.connect(&x);
    ping(&mut from_b, &mut in_x, 2);
    assert!(matches!(
        a.dial(b.endpoint.local()).end(),
        CloseReason::Tls { .. }
    ));
    ping(&mut ours, &mut theirs, 3);
}
