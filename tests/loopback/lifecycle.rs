//! Beginnings and ends of endpoints and connections.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use nix::libc;
use quic_dist_engine::{CloseReason, Endpoint, Event, Events, Handle, SendError};

use crate::support::raw::Raw;
use crate::support::{Node, PATIENCE, SECRET, limits, packet, ping, until};

#[test]
fn dialling_a_closed_port_fails_fast() {
    let a = Node::new();
    for bound in ["127.0.0.1:0", "127.0.0.2:0"] {
        let closed = UdpSocket::bind(bound).unwrap().local_addr().unwrap();
        let start = Instant::now();
        let reason = a.dial(closed).end();
        assert_eq!(reason, CloseReason::Io(libc::ECONNREFUSED));
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn dialling_what_cannot_be_reached_fails() {
    // An IPv4 socket has no way to an IPv6 address.
    let a = Node::open("0.0.0.0:0", &SECRET, crate::support::limits());
    assert!(matches!(
        a.dial("[::1]:9".parse().unwrap()).end(),
        CloseReason::Io(_)
    ));
}

#[test]
fn a_taken_port_is_an_error() {
    let a = Node::new();
    let (incoming, _) = crossbeam_channel::unbounded();
    let (refused, _) = crossbeam_channel::unbounded();
    let (ended, _) = crossbeam_channel::unbounded();
    let channels = crate::support::Channels {
        incoming,
        refused,
        ended,
        questions: None,
    };
    let limits = crate::support::limits();
    let second =
        quic_dist_engine::Endpoint::open(a.endpoint.local(), SECRET.clone(), limits, channels);
    match second {
        Err(quic_dist_engine::OpenError::Io(error)) => {
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
        }
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("two endpoints have one port"),
    }
}

#[test]
fn closing_a_connection_delivers_what_was_sent() {
    let (a, b) = (Node::new(), Node::new());
    let (mut ours, mut theirs) = a.connect(&b);
    for number in 0..3 {
        ours.send(&packet(number, 1 << 20));
    }
    ours.handle.close("enough");
    assert_eq!(
        ours.end(),
        CloseReason::LocalClosed {
            text: "enough".into()
        }
    );
    assert_eq!(ours.handle.tick(), Err(SendError::Closed));
    for number in 0..3 {
        assert!(theirs.packet() == packet(number, 1 << 20));
    }
    assert!(matches!(
        theirs.end(),
        CloseReason::PeerClosed { code: 0, .. }
    ));
    let connections = |node: &Node| {
        let counters = node.endpoint.counters();
        counters
            .connections
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    until("both have forgotten it", || {
        connections(&a) == 0 && connections(&b) == 0
    });
}

#[test]
fn a_closed_endpoint_tells_its_peers_and_ends_its_thread() {
    let (a, b, c) = (Node::new(), Node::new(), Node::new());
    let (mut in_a, mut in_b) = a.connect(&b);
    let (mut in_c, mut from_c) = c.connect(&a);
    ping(&mut in_a, &mut in_b, 1);
    in_a.send(&packet(2, 1 << 20));
    let thread = from_c.thread.clone();
    let name = std::fs::read_to_string(format!("{thread}/comm")).unwrap();
    assert_eq!(name.trim(), "quic_dist");

    let start = Instant::now();
    a.endpoint.start_close(PATIENCE);
    assert!(a.endpoint.wait_closed(PATIENCE));
    assert!(
        start.elapsed() < PATIENCE / 2,
        "peers that answer are not waited for so long"
    );
    assert!(a.endpoint.is_closed());
    assert_eq!(a.ended.recv_timeout(PATIENCE), Ok(None));
    until("the thread is gone", || !Path::new(&thread).exists());

    assert_eq!(in_a.end(), CloseReason::EndpointClosed);
    assert_eq!(from_c.end(), CloseReason::EndpointClosed);
    assert!(
        in_b.packet() == packet(2, 1 << 20),
        "what was sent is delivered"
    );
    assert!(matches!(in_b.end(), CloseReason::PeerClosed { .. }));
    assert!(matches!(in_c.end(), CloseReason::PeerClosed { .. }));

    let (sender, _events) = crossbeam_channel::unbounded();
    let again = a.endpoint.connect(b.endpoint.local(), None, |_| sender);
    assert_eq!(again.err(), Some(SendError::Closed));
}

#[test]
fn a_dropped_endpoint_ends_its_thread_and_tells_its_peers() {
    let (a, b) = (Node::new(), Node::new());
    let (mut ours, theirs) = a.connect(&b);
    let (thread, ended) = (theirs.thread.clone(), b.ended.clone());
    assert!(Path::new(&thread).exists());
    drop((theirs, b));
    assert_eq!(ended.recv_timeout(PATIENCE), Ok(None));
    until("the thread is gone", || !Path::new(&thread).exists());
    assert!(matches!(ours.end(), CloseReason::PeerClosed { .. }));
}

/// As `init:stop/0` and a second start do.
#[test]
fn endpoints_come_and_go() {
    let a = Node::new();
    for number in 0..20 {
        let b = Node::new();
        let (mut ours, mut theirs) = a.connect(&b);
        ping(&mut ours, &mut theirs, number);
        drop((b, theirs));
        assert!(matches!(ours.end(), CloseReason::PeerClosed { .. }));
    }
}

/// A process that is killed sends no goodbye; its kernel says that the port is closed.
#[test]
fn a_peer_that_vanished_is_found_by_icmp() {
    let a = Node::new();
    let mut raw = Raw::new(a.endpoint.local(), SECRET.client_context().unwrap());
    raw.handshake();
    let mut conn = a.accept();
    raw.say_name();
    assert_eq!(conn.control(), b"name");
    drop(raw);
    let start = Instant::now();
    while conn.tick() {
        assert!(start.elapsed() < PATIENCE, "the peer's end goes unnoticed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(conn.end(), CloseReason::Io(libc::ECONNREFUSED));
}

/// A panic while one connection is worked on: nobody waits for what does not come, on either side.
#[test]
fn a_panic_ends_the_endpoint_with_a_report_and_the_connections_with_a_reason() {
    quic_dist_engine::panics::install();
    let (a, b, c) = (Node::new(), Node::new(), Node::new());
    let (mut to_b, mut in_b) = a.connect(&b);
    let (mut from_c, mut in_a) = c.connect(&a);
    // One that has not got far.
    let mut raw = Raw::new(a.endpoint.local(), SECRET.client_context().unwrap());
    raw.flush();
    ping(&mut to_b, &mut in_b, 1);
    ping(&mut from_c, &mut in_a, 2);
    to_b.handle.panic("a wrong assumption").unwrap();
    assert_eq!(to_b.end(), CloseReason::Internal);
    assert_eq!(in_a.end(), CloseReason::Internal);
    for (conn, who) in [(&mut in_b, "b"), (&mut from_c, "c")] {
        let told = CloseReason::PeerClosed {
            code: 5,
            text: "the endpoint has failed".into(),
        };
        assert_eq!(conn.end(), told, "{who}");
    }
    let report = a.ended.recv_timeout(PATIENCE).unwrap().unwrap();
    assert!(report.contains("a wrong assumption at "), "{report}");
    assert!(report.contains("take_commands"), "{report}");
    assert!(a.endpoint.wait_closed(PATIENCE));
    // The port is free, and those who were told come back.
    let again = Node::open(
        &a.endpoint.local().to_string(),
        &SECRET,
        crate::support::limits(),
    );
    let (mut ours, mut theirs) = b.connect(&again);
    ping(&mut ours, &mut theirs, 3);
    let mut late = a
        .endpoint
        .connect(b.endpoint.local(), None, |_| unreachable!());
    assert_eq!(late.as_mut().err(), Some(&mut SendError::Closed));
}

/// Who dials while the event thread ends is told at once: nobody would tell him later.
#[test]
fn who_dials_at_the_very_end_is_refused() {
    struct Dialler {
        endpoint: Arc<OnceLock<Endpoint<Dialler>>>,
        dialled: Sender<(&'static str, Option<SendError>)>,
    }

    impl Dialler {
        fn dial(&self, when: &'static str) {
            let endpoint = self.endpoint.get().unwrap();
            let result = endpoint.connect(endpoint.local(), None, |_| ());
            self.dialled.send((when, result.err())).unwrap();
        }
    }

    impl Events for Dialler {
        type Peer = ();

        fn incoming(&mut self, _: &Handle, _: SocketAddr) {}

        fn refused(&mut self, _: SocketAddr, _: &CloseReason) {}

        fn event(&mut self, _: &mut (), event: Event) {
            if let Event::Closed(CloseReason::Internal) = event {
                self.dial("when a connection was told");
            }
        }

        fn ended(&mut self, _: Option<String>) {
            self.dial("when the endpoint was told");
        }
    }

    let (dialled, results) = unbounded();
    let endpoint = Arc::new(OnceLock::new());
    let events = Dialler {
        endpoint: endpoint.clone(),
        dialled,
    };
    let address = "127.0.0.1:0".parse().unwrap();
    let opened = Endpoint::open(address, SECRET.clone(), limits(), events).unwrap();
    let endpoint = endpoint.get_or_init(|| opened);
    // It never gets an answer.
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let handle = endpoint.connect(nobody.local_addr().unwrap(), None, |_| ());
    handle.unwrap().panic("a wrong assumption").unwrap();
    for when in ["when a connection was told", "when the endpoint was told"] {
        let result = results.recv_timeout(PATIENCE).unwrap();
        assert_eq!(result, (when, Some(SendError::Closed)));
    }
    assert!(endpoint.wait_closed(PATIENCE));
}
