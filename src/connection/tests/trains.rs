//! Trains of packets: whatever QUIC makes, each packet reaches its own address whole.

use super::*;
use proptest::prelude::*;

/// What the client does between two turns.
#[derive(Clone, Debug)]
enum Act {
    Data(usize),
    Control(usize),
    Tick,
    Lose,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0usize..120_000).prop_map(Act::Data),
        2 => (1usize..3000).prop_map(Act::Control),
        2 => Just(Act::Tick),
        1 => Just(Act::Lose),
    ]
}

/// The length of each packet of a train is not written anywhere: the receiver cuts by `segment`. So
/// a train is right if every piece of it is a packet that the receiver authenticates.
fn check_trains(client: &mut Side, server: &mut Side, lose: bool) -> Result<(), TestCaseError> {
    let now = Instant::now();
    client.work(now);
    while let Some(transmit) = client.connection.transmit(&mut client.train, 64) {
        let bytes = client.train.bytes(&transmit);
        prop_assert_eq!(transmit.to, SERVER);
        prop_assert!(transmit.segment <= transmit.length && transmit.length <= 65_535 - 48);
        let pieces = bytes.chunks(transmit.segment);
        prop_assert!(pieces.len() <= 64);
        for piece in pieces {
            let before = server.connection.quic.stats().recv;
            if !lose {
                server
                    .connection
                    .receive(&mut piece.to_vec(), CLIENT, SERVER);
                prop_assert!(
                    server.connection.quic.stats().recv > before,
                    "a piece of {} bytes of a train of {} by {} is no packet",
                    piece.len(),
                    transmit.length,
                    transmit.segment
                );
            }
        }
    }
    server.work(now);
    for (mut datagram, _) in server.datagrams() {
        client.connection.receive(&mut datagram, SERVER, CLIENT);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_piece_of_a_train_is_a_packet(
        acts in prop::collection::vec(act(), 1..40),
        mtu in prop_oneof![Just(1200usize), Just(1452), Just(9000), Just(16_000), Just(16_383)],
        discovery in any::<bool>(),
    ) {
        let limits = Limits {
            max_udp_payload: mtu,
            path_mtu_discovery: discovery,
            ..Limits::default()
        };
        let (mut client, mut server) = (Side::client(&limits), Side::server(&limits));
        let start = Instant::now();
        while !(client.established && server.established) {
            prop_assert!(start.elapsed() < PATIENCE);
            check_trains(&mut client, &mut server, false)?;
        }
        let mut number = 0;
        for act in acts {
            number += 1;
            let mut lose = false;
            match act {
                Act::Data(length) => {
                    client.send_data(&[packet(number, length), packet(number, 3)]);
                }
                Act::Control(length) => client.send_control(&vec![1; length]),
                Act::Tick => client.handle.tick().unwrap(),
                Act::Lose => lose = true,
            }
            check_trains(&mut client, &mut server, lose)?;
        }
    }
}

/// While a peer tries another address of its own, packets for both addresses are made in one turn.
#[test]
fn packets_for_two_addresses_do_not_share_a_train() {
    let limits = limits();
    let other: SocketAddr = "192.0.2.1:2002".parse().unwrap();
    let mut config = quic_config(&limits, Role::Client);
    let id = random_id().unwrap();
    let mut peer = quiche::connect(None, &id, CLIENT, SERVER, &mut config).unwrap();
    let mut server = Side::server(&limits);
    let mut seen: BTreeMap<Vec<u8>, SocketAddr> = BTreeMap::new();
    let mut probed = false;
    let mut to_other = 0;
    let mut number = 0;
    let start = Instant::now();
    let mut buffer = vec![0; 16_383];
    while to_other < 1 || server.queued() > 0 {
        assert!(start.elapsed() < PATIENCE, "no path validation was seen");
        while let Ok((length, info)) = peer.send(&mut buffer) {
            server
                .connection
                .receive(&mut buffer[..length], info.from, SERVER);
        }
        let now = Instant::now();
        server.work(now);
        if server.established && number < 40 {
            number += 1;
            server.send_data(&[packet(number, 50_000)]);
        }
        if server.established && number == 10 && !probed {
            let scid = random_id().unwrap();
            peer.new_scid(&scid, 7, true).unwrap();
            probed = peer.probe_path(other, SERVER).is_ok();
            assert!(probed);
        }
        for (mut datagram, to) in server.datagrams() {
            // An id belongs to one path, so a packet under the wrong address shows.
            if datagram[0] & 0x80 == 0 {
                let before = *seen.entry(datagram[1..17].to_vec()).or_insert(to);
                assert_eq!(before, to, "a packet went to another path's address");
                to_other += usize::from(to == other);
            }
            let before = peer.stats().recv;
            peer.recv(&mut datagram, RecvInfo { from: SERVER, to })
                .unwrap();
            assert!(peer.stats().recv > before, "no packet");
        }
        while let Some(stream) = peer.stream_readable_next() {
            while peer.stream_recv(stream, &mut buffer).is_ok() {}
        }
        if peer.timeout_instant().is_some_and(|at| at <= now) {
            peer.on_timeout();
        }
    }
}

/// quiche looks for the path MTU with packets longer than any that it knows to get through. A system that
/// knows its own network's MTU sends no train that has one of them, and whatever else is in it is lost: to
/// QUIC that is a path which is full.
#[test]
fn what_may_be_too_long_for_the_path_goes_alone() {
    const MTU: usize = 1_472;
    let limits = Limits {
        path_mtu_discovery: true,
        ..limits()
    };
    let (mut client, mut server) = (Side::client(&limits), Side::server(&limits));
    let mut too_long = 0;
    let mut sent = 0;
    let start = Instant::now();
    while too_long < 4 {
        assert!(start.elapsed() < PATIENCE, "{too_long} were too long");
        let now = Instant::now();
        client.work(now);
        // So there is always something that could share a train with what is too long.
        if client.established && client.queued() == 0 {
            sent += 1;
            client.send_data(&[packet(sent, 50_000)]);
            client.work(now);
        }
        while let Some(transmit) = client.connection.transmit(&mut client.train, 64) {
            if transmit.segment > MTU {
                too_long += 1;
                assert_eq!(transmit.length, transmit.segment, "this is lost with it");
                continue;
            }
            for piece in client.train.bytes(&transmit).chunks(transmit.segment) {
                let datagram = &mut piece.to_vec();
                server.connection.receive(datagram, CLIENT, SERVER);
            }
        }
        server.work(now);
        for (mut datagram, _) in server.datagrams() {
            if datagram.len() <= MTU {
                client.connection.receive(&mut datagram, SERVER, CLIENT);
            }
        }
    }
}

/// A firewall before the socket.
#[derive(Default)]
struct Firewall {
    open: bool,
    /// What was refused, and what was let through.
    refused: Mutex<Vec<Vec<u8>>>,
    sent: Mutex<Vec<Vec<u8>>>,
}

impl Network for Firewall {
    fn max_segments(&self) -> usize {
        1
    }

    fn send(&self, bytes: &[u8], _: &Transmit) -> std::io::Result<()> {
        if self.open {
            self.sent.lock().push(bytes.to_vec());
            return Ok(());
        }
        self.refused.lock().push(bytes.to_vec());
        Err(std::io::ErrorKind::PermissionDenied.into())
    }
}

/// What is refused last is often an acknowledgement, which nobody would acknowledge: something else goes
/// first when the system is willing again, or everything waits for a probe time-out that has doubled.
#[test]
fn what_is_tried_again_is_answered() {
    let mut pair = Pair::connected(&limits());
    let now = pair.now();
    let mut firewall = Firewall::default();
    let (client, server) = (&mut pair.client, &mut pair.server);
    client.send_data(&packets(1, &[500]));
    client.work(now);
    client.connection.send(&mut client.train, now, &firewall);
    server.send_data(&packets(2, &[2_000]));
    server.work(now);
    for (mut datagram, _) in server.datagrams() {
        client.connection.receive(&mut datagram, SERVER, CLIENT);
    }
    client.work(now);
    client.connection.send(&mut client.train, now, &firewall);
    let refused: Vec<_> = firewall.refused.lock().iter().map(Vec::len).collect();
    assert!(
        matches!(refused[..], [long, short] if long > 500 && short <= 64),
        "{refused:?}"
    );
    firewall.open = true;
    let later = now + Duration::from_secs(1);
    assert_eq!(client.connection.routes_wanted(later).count(), 1);
    client.connection.path_is_back();
    client.connection.send(&mut client.train, later, &firewall);
    let mut first = firewall.sent.lock().first().cloned().unwrap();
    server.connection.receive(&mut first, CLIENT, SERVER);
    server.work(later);
    assert_eq!(server.packets.len(), 1);
}
