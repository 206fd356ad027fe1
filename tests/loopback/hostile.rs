//! What a stranger, or a peer gone bad, can send: it costs him his connection at most.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;

use boring::ssl::{SslContext, SslMethod};
use quic_dist_engine::CloseReason;

use crate::support::raw::{Raw, careless};
use crate::support::{Conn, Node, OTHER, PATIENCE, SECRET, packet, ping, until};

/// Two nodes with a connection that must not notice anything.
struct Scene {
    a: Node,
    ours: Conn,
    theirs: Conn,
    number: u64,
    _b: Node,
}

impl Scene {
    fn new() -> Self {
        let (a, b) = (Node::new(), Node::new());
        let (theirs, ours) = b.connect(&a);
        Scene {
            a,
            ours,
            theirs,
            number: 0,
            _b: b,
        }
    }

    fn target(&self) -> SocketAddr {
        self.a.endpoint.local()
    }

    #[track_caller]
    fn goes_on(&mut self) {
        for _ in 0..10 {
            self.number += 1;
            ping(&mut self.ours, &mut self.theirs, self.number);
        }
    }

    /// Everything but the one connection is gone again.
    #[track_caller]
    fn nothing_is_left(&mut self) {
        let counters = self.a.endpoint.counters();
        until("nothing is left of it", || {
            counters.connections.load(Relaxed) == 1 && counters.half_open.load(Relaxed) == 0
        });
        self.goes_on();
    }
}

fn stranger() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A long header, and whatever comes behind it.
fn long_header(first: u8, version: u32, dcid: &[u8], scid: &[u8], length: usize) -> Vec<u8> {
    let mut datagram = vec![first];
    datagram.extend_from_slice(&version.to_be_bytes());
    datagram.push(dcid.len() as u8);
    datagram.extend_from_slice(dcid);
    datagram.push(scid.len() as u8);
    datagram.extend_from_slice(scid);
    let rest = length.saturating_sub(datagram.len());
    datagram.extend_from_slice(&packet(length as u64, rest));
    datagram
}

#[test]
fn garbage_of_every_length() {
    let mut scene = Scene::new();
    let socket = stranger();
    let strays = |scene: &Scene| scene.a.endpoint.counters().dropped_strays.load(Relaxed);
    let before = strays(&scene);
    for (number, length) in (0..40)
        .flat_map(|n| [n, n * 37, 1200 + n, 65_507 - n])
        .enumerate()
    {
        socket
            .send_to(&packet(number as u64, length), scene.target())
            .unwrap();
        if number % 20 == 0 {
            scene.goes_on();
        }
    }
    scene.goes_on();
    until("it is counted", || strays(&scene) > before);
    assert!(scene.a.refused.is_empty(), "nobody was there to be refused");
    scene.nothing_is_left();
}

/// Headers of every type with nothing good behind them, Initials among them.
#[test]
fn headers_without_packets() {
    let mut scene = Scene::new();
    let socket = stranger();
    for number in 0..64u8 {
        let dcid = packet(number.into(), 8);
        let (version, length) = match number % 4 {
            0 => (1, 1200),
            1 => (1, 65_507),
            2 => (0, 1200),
            _ => (1, 40),
        };
        let datagram = long_header(0xc0 | number, version, &dcid, &dcid, length);
        socket.send_to(&datagram, scene.target()).unwrap();
        let short = [&[0x40 | number][..], &packet(number.into(), 100)].concat();
        socket.send_to(&short, scene.target()).unwrap();
    }
    scene.goes_on();
    scene.nothing_is_left();
    assert!(scene.a.refused.is_empty(), "nobody was there to be refused");
}

#[test]
fn truncated_replayed_and_altered_datagrams() {
    let mut scene = Scene::new();
    let mut raw = Raw::new(scene.target(), SECRET.client_context().unwrap());
    raw.handshake();
    let mut victim = scene.a.accept();
    raw.quic
        .stream_send(0, b"\0\x02\x01\x04\0\x04name", false)
        .unwrap();
    raw.until("its name is taken", |quic| quic.stats().acked_bytes > 0);
    assert_eq!(victim.control(), b"name");
    let datagrams = raw.sent.clone();
    let socket = stranger();
    for (number, datagram) in datagrams.iter().enumerate() {
        for cut in [1, 7, 20, datagram.len() / 2, datagram.len() - 1] {
            let cut = cut.min(datagram.len());
            socket.send_to(&datagram[..cut], scene.target()).unwrap();
        }
        let mut altered = datagram.clone();
        let at = (number * 31) % altered.len();
        altered[at] ^= 0x10;
        let long = [&datagram[..], &[0; 30_000]].concat();
        for bytes in [&altered, &long, datagram] {
            // From a stranger, and from the peer's own address.
            socket.send_to(bytes, scene.target()).unwrap();
            raw.socket.send_to(bytes, scene.target()).unwrap();
        }
        scene.goes_on();
    }
    // The connection whose datagrams they were goes on as well.
    raw.quic.stream_send(0, b"\0\x05still", false).unwrap();
    raw.flush();
    assert_eq!(victim.control(), b"still");
    victim.handle.close("enough");
    raw.until("it is over", |quic| {
        for stream in [0, 1] {
            let _ = quic.stream_recv(stream, &mut [0; 100]);
        }
        let _ = quic.stream_send(0, &[], true);
        let _ = quic.stream_send(4, &[], true);
        quic.peer_error().is_some()
    });
    scene.nothing_is_left();
}

#[test]
fn an_unknown_version_is_answered_with_ours() {
    let mut scene = Scene::new();
    let socket = stranger();
    let (dcid, small, full) = ([7; 8], [8; 5], [9; 5]);
    let version = 0x1a2a_3a4a;
    // Too small to be answered; what comes back is for the second.
    socket
        .send_to(
            &long_header(0xc0, version, &dcid, &small, 1199),
            scene.target(),
        )
        .unwrap();
    socket
        .send_to(
            &long_header(0xc0, version, &dcid, &full, 1200),
            scene.target(),
        )
        .unwrap();
    let mut buffer = [0; 2000];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from, scene.target());
    let header = quiche::Header::from_slice(&mut buffer[..length], 16).unwrap();
    assert_eq!(header.ty, quiche::Type::VersionNegotiation);
    assert_eq!((&*header.dcid, &*header.scid), (&full[..], &dcid[..]));
    assert_eq!(header.versions, Some(vec![quiche::PROTOCOL_VERSION]));
    scene.nothing_is_left();
}

#[test]
fn a_client_without_our_cookie_is_refused() {
    let mut scene = Scene::new();
    let nobody = careless(SslContext::builder(SslMethod::tls()).unwrap());
    let other = careless(OTHER.client_context().unwrap());
    for (tls, alert) in [(nobody, 116), (other, 48)] {
        let mut raw = Raw::new(scene.target(), tls);
        assert_eq!(raw.told(), (false, 0x100 + u64::from(alert), String::new()));
        assert_eq!(scene.a.refusal(), CloseReason::Tls { by_us: true, alert });
    }
    assert!(scene.a.incoming.is_empty());
    scene.nothing_is_left();
}

#[test]
fn another_application_protocol_is_refused() {
    let mut scene = Scene::new();
    let mut raw = Raw::with_alpn(scene.target(), SECRET.client_context().unwrap(), b"h3");
    assert_eq!(raw.told(), (false, 0x178, String::new()));
    let reason = CloseReason::Tls {
        by_us: true,
        alert: 120,
    };
    assert_eq!(scene.a.refusal(), reason);
    scene.nothing_is_left();
}

#[test]
fn a_peer_gone_bad_ends_alone() {
    let mut scene = Scene::new();
    for (stream, bytes, fin, text) in [
        (
            4,
            &[0xff; 4][..],
            false,
            "a packet of 2147483647 bytes on stream 4, 1073741824 is the limit",
        ),
        (
            4,
            &[0, 0, 0, 2, 7][..],
            true,
            "stream 4 ended inside a packet",
        ),
        (
            0,
            &[0][..],
            true,
            "the control stream ended inside a packet",
        ),
    ] {
        let mut raw = Raw::new(scene.target(), SECRET.client_context().unwrap());
        raw.handshake();
        let mut conn = scene.a.accept();
        raw.quic.stream_send(0, b"\0\x02\x01\x04", false).unwrap();
        raw.quic.stream_send(stream, bytes, fin).unwrap();
        assert_eq!(raw.told(), (true, 1, text.to_owned()));
        assert_eq!(conn.end(), CloseReason::Protocol { text: text.into() });
        scene.goes_on();
    }
    scene.nothing_is_left();
}
