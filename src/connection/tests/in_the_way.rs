//! A stream that quiche has among those with something to send, and that has nothing.

use super::streams::with_streams;
use super::*;

/// A pair whose client's data stream is such a one: it comes before the application's stream, whose
/// number is with it.
fn pair() -> (Pair, u64) {
    let mut pair = Pair::connected(&with_streams(2));
    let id = pair.open(false);
    pair.client.put(id, b"a", false);
    pair.settle();

    pair.client.send_data(&[packet(1, 4_000)]);
    to_server(&mut pair);
    // quiche's second probe time-out repeats two packets (RFC 9002, section 6.2.4). When one has left, all
    // is acknowledged.
    let Pair { client, server, .. } = &mut pair;
    for _ in 0..2 {
        while let Some(left) = client.connection.quic.timeout().filter(|t| !t.is_zero()) {
            std::thread::sleep(left);
        }
        client.work(Instant::now());
        let probe = client.connection.transmit(&mut client.train, 1).unwrap();
        let mut probe = client.train.bytes(&probe).to_vec();
        server.connection.receive(&mut probe, CLIENT, SERVER);
    }
    server.work(Instant::now());
    assert_same(&server.packets, &[packet(1, 4_000)]);
    for (mut datagram, _) in server.datagrams_out() {
        client.connection.receive(&mut datagram, SERVER, CLIENT);
    }
    assert!(client.connection.quic.timeout().is_none());
    pair.client.put(id, b"b", false);
    (pair, id)
}

/// What the client has to say arrives, and no answer does.
fn to_server(pair: &mut Pair) {
    pair.client.work(Instant::now());
    for (mut datagram, _) in pair.client.datagrams_out() {
        let server = &mut pair.server.connection;
        server.receive(&mut datagram, CLIENT, SERVER);
    }
}

fn received(pair: &Pair, id: u64) -> &[u8] {
    &pair.server.user.received[&id].0
}

#[test]
fn what_is_behind_it_is_sent_at_once() {
    let (mut pair, id) = pair();
    // quiche may say PING first.
    for _ in 0..10 {
        pair.step();
    }
    assert_eq!(received(&pair, id), b"ab");
}

#[test]
fn or_soon_where_something_else_goes_on() {
    let (mut pair, id) = pair();
    let start = Instant::now();
    while received(&pair, id) != b"ab" {
        pair.client.connection.tick();
        to_server(&mut pair);
        assert!(pair.client.connection.quic.timeout().is_some());
        pair.server.work(Instant::now());
        pair.server.datagrams_out();
        assert!(start.elapsed() < PATIENCE, "it is still in the way");
        std::thread::sleep(Duration::from_millis(10));
    }
}
