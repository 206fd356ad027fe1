//! Whom we believe to be where: Retry, and how much is sent to an address that nobody has confirmed
//! (RFC 9000, section 8).

use std::net::UdpSocket;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use quic_dist_engine::{CloseReason, Limits};

use crate::support::raw::Raw;
use crate::support::{Node, PATIENCE, SECRET, displaced, limits, ping, until};

fn node(retry_threshold: usize, max_half_open_per_address: usize, patience: u64) -> Node {
    let limits = Limits {
        retry_threshold,
        max_half_open_per_address,
        handshake_timeout: Duration::from_secs(patience),
        ..limits()
    };
    Node::open("127.0.0.1:0", &SECRET, limits)
}

/// A client that has sent its first datagram and does not go on.
fn stalled(node: &Node) -> Raw {
    let mut raw = Raw::new(node.endpoint.local(), SECRET.client_context().unwrap());
    raw.flush();
    raw
}

/// ... but answers the Retry packet, and then says no more.
fn stalled_with_token(node: &Node) -> Raw {
    let mut raw = stalled(node);
    let has_token = |datagram: &Vec<u8>| {
        let header = quiche::Header::from_slice(&mut datagram.clone(), 16);
        header.is_ok_and(|header| header.token.is_some_and(|token| !token.is_empty()))
    };
    let start = Instant::now();
    while !raw.sent.last().is_some_and(has_token) {
        assert!(start.elapsed() < PATIENCE, "nobody asks it for one");
        raw.read();
        raw.flush();
    }
    raw
}

/// All that comes within this time, in bytes; and for longer, until there are as many as must come.
fn received(socket: &UdpSocket, time: Duration, least: usize) -> usize {
    let start = Instant::now();
    let mut buffer = vec![0; 65_535];
    let mut bytes = 0;
    while start.elapsed() < time || bytes < least && start.elapsed() < PATIENCE {
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        bytes += socket.recv(&mut buffer).unwrap_or(0);
    }
    bytes
}

#[test]
fn where_many_are_half_open_the_next_has_to_prove_its_address() {
    // They are still half open when the last of all has come.
    let (a, b) = (node(2, 64, 10), Node::new());
    let counters = a.endpoint.counters();
    let places = [stalled(&a), stalled(&a)];
    until("two are half open", || {
        counters.half_open.load(Relaxed) == 2
    });
    assert_eq!(counters.retries.load(Relaxed), 0);
    let (mut ours, mut theirs) = b.connect(&a);
    ping(&mut ours, &mut theirs, 1);
    assert!(counters.retries.load(Relaxed) > 0);
    // Those that do not prove it take no place, however many there are.
    let many: Vec<Raw> = (0..100).map(|_| stalled(&a)).collect();
    until("all are answered", || counters.retries.load(Relaxed) > 100);
    assert_eq!(counters.half_open.load(Relaxed), 2);
    assert_eq!(counters.connections.load(Relaxed), 3);
    // They have their ports until then: one that is closed would say so.
    for _ in 0..2 {
        assert_eq!(a.refusal(), CloseReason::HandshakeTimeout);
    }
    drop((places, many));
}

#[test]
fn an_address_that_is_proved_has_its_limit_and_takes_nothing_from_others() {
    let a = node(0, 2, 10);
    let counters = a.endpoint.counters();
    let greedy: Vec<Raw> = (0..4).map(|_| stalled_with_token(&a)).collect();
    until("their limit is reached", || {
        counters.dropped_limit.load(Relaxed) >= 2
    });
    assert_eq!(counters.half_open.load(Relaxed), 2);
    let elsewhere = Node::open("127.0.0.2:0", &SECRET, limits());
    let (mut ours, mut theirs) = elsewhere.connect(&a);
    ping(&mut ours, &mut theirs, 1);
    drop(greedy);
}

/// All places are taken by one who can answer.
#[test]
fn who_takes_all_places_keeps_nobody_out() {
    let limits = Limits {
        retry_threshold: 0,
        max_half_open: 3,
        handshake_timeout: PATIENCE,
        ..limits()
    };
    let a = Node::open("127.0.0.1:0", &SECRET, limits.clone());
    let counters = a.endpoint.counters();
    let mut greedy: Vec<Raw> = (0..4).map(|_| stalled_with_token(&a)).collect();
    until("there is no place for the last of them", || {
        counters.dropped_limit.load(Relaxed) >= 1
    });
    assert_eq!(counters.half_open.load(Relaxed), 3);
    let elsewhere = Node::open("127.0.0.2:0", &SECRET, limits);
    for number in 0..2 {
        let (mut ours, mut theirs) = elsewhere.connect(&a);
        ping(&mut ours, &mut theirs, 1 + number);
        assert_eq!(a.refusal(), displaced());
        // A place is free again until another one comes.
        greedy.push(stalled_with_token(&a));
        until("it has it", || counters.half_open.load(Relaxed) == 3);
    }
    // Those that are left go on as if nothing had been.
    greedy[3 - 1].handshake();
    drop(greedy);
}

#[test]
fn a_token_of_another_address_opens_nothing() {
    let a = node(0, 64, 2);
    let counters = a.endpoint.counters();
    let raw = stalled_with_token(&a);
    until("it is half open", || counters.half_open.load(Relaxed) == 1);
    let second = raw.sent.last().unwrap().clone();
    assert_eq!(a.refusal(), CloseReason::HandshakeTimeout);
    until("it is gone", || counters.connections.load(Relaxed) == 0);
    let strays = counters.dropped_strays.load(Relaxed);
    let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    elsewhere.send_to(&second, raw.to).unwrap();
    until("it is dropped", || {
        counters.dropped_strays.load(Relaxed) > strays
    });
    assert_eq!(counters.connections.load(Relaxed), 0);
}

/// However long we repeat ourselves, whoever sent one datagram gets three times as much at most: of
/// a handshake, of Retry, of Version Negotiation.
#[test]
fn an_address_that_is_not_proved_gets_three_times_what_it_sent_at_most() {
    for (threshold, answered) in [(16, 1200), (0, 1)] {
        let a = node(threshold, 64, 8);
        let raw = stalled(&a);
        let sent: usize = raw.sent.iter().map(Vec::len).sum();
        // Until the handshake is given up, and a little more: it is repeated after 1, 3 and 7 s.
        let time = if threshold > 0 { 8500 } else { 500 };
        let got = received(&raw.socket, Duration::from_millis(time), answered);
        assert!(got >= answered && got <= 3 * sent, "{got} for {sent}");
        // More credit comes with more datagrams, whatever is in them.
        if threshold > 0 {
            let raw = stalled(&a);
            let again: usize = (0..3)
                .map(|_| raw.socket.send_to(&raw.sent[0], raw.to).unwrap())
                .sum();
            let got = received(&raw.socket, Duration::from_millis(2500), 0);
            assert!(got <= 3 * (sent + again), "{got} for {}", sent + again);
        }
    }
    let a = Node::new();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut probe = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 20];
    probe.extend_from_slice(&[7; 20]);
    probe.push(20);
    probe.resize(1200, 8);
    stranger.send_to(&probe, a.endpoint.local()).unwrap();
    let got = received(&stranger, Duration::from_millis(500), 1);
    assert!(got > 0 && got <= probe.len(), "{got}");
}

/// A connection's own datagrams, sent again from another address: what is sent there to find out
/// who that is has the same limit.
#[test]
fn a_new_address_of_a_connection_gets_three_times_what_it_sent_at_most() {
    let a = Node::new();
    let mut raw = Raw::new(a.endpoint.local(), SECRET.client_context().unwrap());
    raw.handshake();
    let mut conn = a.accept();
    raw.say_name();
    raw.until("its name is taken", |quic| quic.stats().acked_bytes > 0);
    assert_eq!(conn.control(), b"name");
    // It never reaches the node from where it was sent, and so is no copy.
    raw.quic.stream_send(0, b"\0\x05again", false).unwrap();
    let mut datagram = vec![0; 1500];
    let (length, _) = raw.quic.send(&mut datagram).unwrap();
    let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    elsewhere.send_to(&datagram[..length], raw.to).unwrap();
    assert_eq!(conn.control(), b"again");
    // More than may be sent there: it moves on, as far as it is allowed to.
    conn.send(&crate::support::packet(1, 200_000));
    let got = received(&elsewhere, Duration::from_secs(2), 1);
    assert!(got > 0 && got <= 3 * length, "{got} for {length}");
}
