//! How connections end, in order and otherwise.

use super::*;
use crate::close::code;

fn peer_closed(code: u64, text: &str) -> Option<CloseReason> {
    Some(CloseReason::PeerClosed {
        code,
        text: text.into(),
    })
}

fn local_closed(text: &str) -> Option<CloseReason> {
    Some(CloseReason::LocalClosed { text: text.into() })
}

/// With this a test that waits for the linger time-out fails.
fn patient() -> Limits {
    Limits {
        linger: Duration::from_secs(3600),
        ..limits()
    }
}

fn over(pair: &Pair) -> bool {
    pair.client.connection.is_over() && pair.server.connection.is_over()
}

#[test]
fn an_orderly_end_delivers_everything_before_it() {
    for closes in [Role::Client, Role::Server] {
        let mut pair = Pair::connected(&patient());
        pair.client.send_control(b"hello");
        pair.settle();
        let sent = packets(1, &[1_000_000, 0, 2_000_000, 17]);
        let (from, to) = match closes {
            Role::Client => (&mut pair.client, &mut pair.server),
            Role::Server => (&mut pair.server, &mut pair.client),
        };
        to.packets.clear();
        from.send_data(&sent);
        from.send_control(b"last words");
        from.handle.close("enough");
        from.work(Instant::now());
        assert_eq!(from.closed, local_closed("enough"), "told at once");
        assert_eq!(to.closed, None);
        pair.until("both are over", over);
        let to = match closes {
            Role::Client => &pair.server,
            Role::Server => &pair.client,
        };
        assert_same(&to.packets, &sent);
        assert_eq!(to.control.last().unwrap(), b"last words");
        assert_eq!(to.closed, peer_closed(code::NO_ERROR, ""));
        assert!(to.handle.is_closed());
    }
}

#[test]
fn an_orderly_end_delivers_everything_on_a_bad_network() {
    for seed in 41..44 {
        let faults = Faults {
            loss: 10,
            doubled: 10,
            held: 30,
        };
        let mut pair = Pair::faulty(&patient(), seed, faults);
        let sent = packets(1, &[100_000, 0, 50_000, 17]);
        pair.client.send_control(b"hello");
        pair.client.send_data(&sent);
        pair.client.handle.close("enough");
        pair.until("the peer knows", |pair| pair.server.closed.is_some());
        assert_same(&pair.server.packets, &sent);
        assert_eq!(pair.server.control, [b"hello"]);
        assert_eq!(pair.server.closed, peer_closed(code::NO_ERROR, ""));
    }
}

#[test]
fn an_orderly_end_waits_for_a_receiver_that_is_behind() {
    let limits = Limits {
        receive_budget: 300_000,
        ..patient()
    };
    let mut pair = Pair::connected(&limits);
    pair.server.consumes = false;
    let sent = packets(1, &[100_000; 40]);
    pair.client.send_data(&sent);
    pair.client.handle.close("enough");
    pair.settle();
    assert_eq!(pair.server.closed, None, "there is more to read");
    assert!(pair.server.packets.len() < 40);
    while pair.server.closed.is_none() {
        assert!(pair.server.packets.len() <= 40);
        pair.server.consume_all();
        pair.settle_briefly();
    }
    assert_same(&pair.server.packets, &sent);
    assert_eq!(pair.server.closed, peer_closed(code::NO_ERROR, ""));
    pair.until("both are over", over);
}

#[test]
fn an_orderly_end_through_tiny_windows() {
    let limits = Limits {
        stream_window: 1024,
        connection_window: 1500,
        ..patient()
    };
    let mut pair = Pair::connected(&limits);
    let sent = packets(1, &[10_000, 1020, 1]);
    pair.client.send_data(&sent);
    pair.client.send_control(&[9; 2000]);
    pair.client.handle.close("enough");
    pair.until("both are over", over);
    assert_same(&pair.server.packets, &sent);
    assert_eq!(pair.server.control, [vec![9; 2000]]);
    assert_eq!(pair.server.closed, peer_closed(code::NO_ERROR, ""));
}

/// The usual end of an Erlang owner: it closes, and exits. The second command must not cut off
/// what the first one promised to send.
#[test]
fn an_owner_that_closes_and_dies_still_delivers() {
    let mut pair = Pair::connected(&patient());
    let sent = packets(1, &[3_000_000]);
    pair.client.send_control(b"last words");
    pair.client.send_data(&sent);
    pair.client.handle.close("enough");
    pair.client.handle.owner_down();
    pair.until("both are over", over);
    assert_eq!(pair.client.closed, local_closed("enough"));
    assert_same(&pair.server.packets, &sent);
    assert_eq!(pair.server.control, [b"last words"]);
}

#[test]
fn an_owner_that_dies_still_delivers() {
    let mut pair = Pair::connected(&patient());
    let sent = packets(1, &[3_000_000]);
    pair.client.send_data(&sent);
    pair.client.handle.owner_down();
    pair.until("both are over", over);
    assert_eq!(pair.client.closed, Some(CloseReason::OwnerDown));
    assert_same(&pair.server.packets, &sent);
}

/// The peer of an orderly end may have nothing to do with data yet.
#[test]
fn an_end_before_any_data() {
    for closes in [Role::Client, Role::Server] {
        for control in [false, true] {
            let mut pair = Pair::connected(&patient());
            if control {
                pair.client.send_control(b"name");
                pair.settle();
            }
            let closing = match closes {
                Role::Client => &pair.client,
                Role::Server => &pair.server,
            };
            closing.handle.close("changed my mind");
            pair.until("both are over", over);
            let (closing, other) = match closes {
                Role::Client => (&pair.client, &pair.server),
                Role::Server => (&pair.server, &pair.client),
            };
            assert_eq!(closing.closed, local_closed("changed my mind"));
            assert_eq!(other.closed, peer_closed(code::NO_ERROR, ""));
        }
    }
}

#[test]
fn both_close_at_once() {
    let mut pair = Pair::connected(&patient());
    pair.client.send_control(b"name");
    pair.settle();
    pair.client.send_data(&packets(1, &[500_000]));
    pair.server.send_data(&packets(2, &[500_000]));
    pair.client.handle.close("one");
    pair.server.handle.close("other");
    pair.until("both are over", over);
    assert_eq!(pair.client.closed, local_closed("one"));
    assert_eq!(pair.server.closed, local_closed("other"));
}

/// A peer that does not read to the end is not waited for longer than the linger time.
#[test]
fn lingering_has_an_end() {
    let mut pair = Pair::connected(&limits());
    pair.server.consumes = false;
    pair.client.send_data(&packets(1, &[1_000_000; 12]));
    pair.client.handle.close("enough");
    pair.settle();
    assert!(!pair.client.connection.is_over());
    pair.ahead = limits().linger + Duration::from_secs(1);
    pair.until("both are over", over);
    assert_eq!(pair.client.closed, local_closed("enough"));
    assert_eq!(pair.server.closed, peer_closed(code::NO_ERROR, ""));
}

#[test]
fn a_silent_network_is_not_waited_for_for_ever() {
    let mut pair = Pair::connected(&limits());
    pair.net.cut = true;
    pair.client.send_data(&packets(1, &[10_000_000]));
    pair.client.handle.close("enough");
    pair.settle_briefly();
    pair.ahead = limits().linger + Duration::from_secs(1);
    pair.until("it is over", |pair| pair.client.connection.is_over());
}

#[test]
fn an_endpoint_that_goes_away_delivers_and_says_so() {
    let mut pair = Pair::connected(&limits());
    let sent = packets(1, &[1_000_000]);
    pair.client.send_data(&sent);
    pair.settle_briefly();
    pair.client
        .connection
        .go_away(Duration::from_secs(60), Instant::now());
    pair.until("both are over", over);
    assert_eq!(pair.client.closed, Some(CloseReason::EndpointClosed));
    assert_same(&pair.server.packets, &sent);
    assert!(matches!(
        pair.server.closed,
        Some(CloseReason::PeerClosed { .. })
    ));
}

/// Nothing that comes after the end does anything.
#[test]
fn a_closed_connection_takes_nothing() {
    let mut pair = Pair::connected(&limits());
    pair.client.handle.close("enough");
    pair.until("both are over", over);
    let handle = &pair.client.handle;
    let closed = crate::SendError::Closed;
    assert_eq!(handle.send_control(b"x"), Err(closed));
    assert_eq!(handle.send_data(frame(&[vec![1]]).into()), Err(closed));
    assert_eq!(handle.tick(), Err(closed));
    assert_eq!(handle.stat(), Err(closed));
    assert!(handle.info().is_err());
    handle.close("again");
    handle.consumed(10);
    pair.settle_briefly();
    assert_eq!(
        pair.client.queued(),
        0,
        "what was refused does not count as queued"
    );
}

#[test]
fn a_handshake_has_its_deadline() {
    let mut pair = Pair::new(&limits());
    pair.freeze();
    pair.net.cut = true;
    pair.settle_briefly();
    assert_eq!(pair.client.ended(), None);
    pair.ahead = limits().handshake_timeout / 2;
    pair.settle_briefly();
    assert_eq!(pair.client.ended(), None);
    pair.ahead = limits().handshake_timeout;
    pair.step();
    assert_eq!(pair.client.closed, Some(CloseReason::HandshakeTimeout));
    pair.until("it is over", |pair| pair.client.connection.is_over());
}

#[test]
fn an_incoming_connection_that_nobody_takes_has_its_deadline() {
    let mut pair = Pair::new(&limits());
    pair.server.claims = false;
    pair.until("both are connected", |pair| {
        pair.client.established && pair.server.established
    });
    pair.settle();
    assert!(!pair.server.connection.is_half_open());
    assert_eq!(pair.server.ended(), None);
    pair.ahead = limits().handshake_timeout + Duration::from_secs(1);
    pair.until("both are over", over);
    assert_eq!(pair.server.closed, Some(CloseReason::HandshakeTimeout));
    assert_eq!(
        pair.client.closed,
        peer_closed(code::NOT_ACCEPTED, "nobody accepted the connection")
    );
}

#[test]
fn a_dial_can_be_given_up() {
    let mut pair = Pair::new(&limits());
    pair.client.handle.close("changed my mind");
    pair.until("it is over", |pair| pair.client.connection.is_over());
    assert_eq!(pair.client.closed, local_closed("changed my mind"));
}

#[test]
fn an_idle_connection_ends_where_that_is_asked_for() {
    // It is quiche's and runs on the clock, so it is longer than a machine stands still.
    let limits = Limits {
        idle_timeout: Duration::from_secs(2),
        ..limits()
    };
    let mut pair = (0..10)
        .find_map(|_| kept_alive(&limits))
        .expect("the machine stands still again and again");
    assert_eq!((pair.client.ended(), pair.server.ended()), (None, None));
    pair.until("both are over", over);
    assert_eq!(pair.client.closed, Some(CloseReason::IdleTimeout));
    assert_eq!(pair.server.closed, Some(CloseReason::IdleTimeout));
}

/// For two idle time-outs. None: the machine stood still for too long to say anything.
fn kept_alive(limits: &Limits) -> Option<Pair> {
    let mut pair = Pair::connected(limits);
    let start = Instant::now();
    let mut last = start;
    while start.elapsed() < 2 * limits.idle_timeout {
        // That it has ended is for the test to find out.
        let _ = pair.client.handle.tick();
        pair.settle_briefly();
        if last.elapsed() > limits.idle_timeout / 2 {
            return None;
        }
        last = Instant::now();
    }
    Some(pair)
}

/// What the event thread does for a connection whose packets the system has no room for. Says when it would
/// come by again.
fn blocked_turn(side: &mut Side, now: Instant) -> Option<Instant> {
    side.work(now);
    let sent = side.connection.send(&mut side.train, now, &NoRoom);
    assert_eq!(sent, Sent::Blocked);
    side.connection.deadline()
}

/// It is kept for a while after its end, with nothing due that is not done, and then it is over.
#[track_caller]
fn is_put_away(side: &mut Side, now: Instant) {
    for ms in [0, 1_000, 2_000] {
        let now = now + Duration::from_millis(ms);
        let due = blocked_turn(side, now);
        assert!(!side.connection.is_over());
        assert!(due.is_some_and(|due| due > now), "{ms}: {due:?}");
    }
    blocked_turn(side, now + Duration::from_secs(4));
    assert!(side.connection.is_over());
}

struct NoRoom;

impl Network for NoRoom {
    fn max_segments(&self) -> usize {
        64
    }

    fn send(&self, _: &[u8], _: &Transmit) -> std::io::Result<()> {
        Err(std::io::ErrorKind::WouldBlock.into())
    }
}

/// A connection that has ended is put away though its last packet never left; until then nothing is due
/// that is not done.
#[test]
fn an_end_that_cannot_be_sent_ends() {
    let mut pair = Pair::connected(&limits());
    let now = pair.now();
    let client = &mut pair.client;
    client.connection.hang_up(code::NO_ERROR, "enough");
    blocked_turn(client, now);
    // quiche's own timer runs on the clock.
    while !client.connection.quic.is_closed() {
        std::thread::sleep(Duration::from_millis(1));
        blocked_turn(client, Instant::now());
    }
    is_put_away(client, now);
}

/// The same of one that has lost its only path: what was due there is due no more.
#[test]
fn an_end_without_a_path_waits_for_nothing() {
    let mut pair = Pair::connected(&limits());
    pair.net.cut = true;
    pair.client.send_data(&packets(1, &[1_000]));
    pair.until("nothing is heard", |pair| !pair.client.silent.is_empty());
    let quic = &mut pair.client.connection.quic;
    quic.probe_path(CLIENT, SERVER).unwrap();
    pair.until("nobody has answered", |pair| pair.client.ended().is_some());
    assert!(
        pair.client
            .connection
            .quic
            .path_stats()
            .all(|path| !path.active)
    );
    let now = pair.now();
    let client = &mut pair.client;
    let (to, from) = (SERVER, CLIENT);
    let (length, segment) = (1, 1);
    let transmit = Transmit {
        to,
        from,
        length,
        segment,
    };
    client.connection.unsent = Some((vec![0], transmit));
    is_put_away(client, now);
}
