//! What the operating system says about a peer (ICMP) is believed only when the peer's silence
//! agrees.

use super::*;

const REFUSED: CloseReason = CloseReason::Io(nix::libc::ECONNREFUSED);
/// Over the time that a suspected peer has to answer.
const ENOUGH: Duration = Duration::from_secs(2);

/// A pair for which no time passes by itself.
fn connected() -> Pair {
    let mut pair = Pair::connected(&limits());
    pair.freeze();
    pair
}

fn accuse(pair: &mut Pair) {
    let now = pair.now();
    pair.client.connection.unreachable(now);
}

#[test]
fn a_peer_that_answers_is_kept() {
    let mut pair = connected();
    for _ in 0..3 {
        accuse(&mut pair);
        let before = pair.client.handle.stat().unwrap().received;
        // It is asked: without a packet of ours it would have nothing to say.
        pair.until("it answers", |pair| {
            pair.client.handle.stat().unwrap().received > before
        });
        accuse(&mut pair);
        accuse(&mut pair);
        pair.ahead += ENOUGH;
        pair.settle_briefly();
        assert_eq!(pair.client.ended(), None);
    }
    pair.client.send_data(&packets(1, &[1000]));
    pair.until("it still works", |pair| pair.server.packets.len() == 1);
}

#[test]
fn a_silent_peer_is_given_up_when_it_is_accused_again() {
    let mut pair = connected();
    pair.net.cut = true;
    accuse(&mut pair);
    let asked = pair.client.handle.stat().unwrap().sent;
    pair.settle_briefly();
    assert!(
        pair.client.handle.stat().unwrap().sent > asked,
        "it is asked"
    );
    accuse(&mut pair);
    pair.settle_briefly();
    assert_eq!(pair.client.ended(), None, "it has time to answer");
    let deadline = pair.client.connection.deadline().unwrap();
    assert!(
        deadline <= pair.now() + ENOUGH,
        "the driver is told when to look again"
    );
    pair.ahead = ENOUGH;
    pair.step();
    assert_eq!(pair.client.closed, Some(REFUSED));
    pair.until("it is forgotten", |pair| pair.client.connection.is_over());
}

#[test]
fn one_message_is_no_proof() {
    let mut pair = connected();
    pair.net.cut = true;
    accuse(&mut pair);
    pair.ahead = ENOUGH;
    pair.settle_briefly();
    assert_eq!(pair.client.ended(), None);
    // The next one starts a new question; it does not confirm the old one.
    accuse(&mut pair);
    pair.ahead += ENOUGH;
    pair.settle_briefly();
    assert_eq!(pair.client.ended(), None);
    pair.net.cut = false;
    pair.client.send_data(&packets(1, &[1000]));
    pair.until("it works again", |pair| pair.server.packets.len() == 1);
}

#[test]
fn dialling_where_nobody_listens_fails_at_once() {
    let mut pair = Pair::new(&limits());
    pair.net.cut = true;
    pair.step();
    accuse(&mut pair);
    pair.step();
    assert_eq!(pair.client.closed, Some(REFUSED));
    assert!(pair.client.connection.is_over());
}

/// Once the other side has been heard, it takes more to end a handshake than one forged message.
#[test]
fn a_handshake_that_is_answered_is_not_ended_by_one_message() {
    let mut pair = Pair::new(&limits());
    while pair.client.connection.quic.stats().recv == 0 {
        pair.step();
    }
    pair.client.connection.unreachable(Instant::now());
    pair.until("both are connected", |pair| {
        pair.client.established && pair.server.established
    });
    assert_eq!(pair.client.ended(), None);
}

#[test]
fn the_end_is_told_once() {
    let mut pair = Pair::connected(&limits());
    pair.net.cut = true;
    pair.client.handle.close("enough");
    pair.step();
    for _ in 0..4 {
        accuse(&mut pair);
        pair.ahead += ENOUGH;
        // The side itself checks that nothing comes after the end.
        pair.step();
    }
    assert!(matches!(
        pair.client.closed,
        Some(CloseReason::LocalClosed { .. })
    ));
}
