//! Addresses that change under a connection. Datagrams are delivered by their addresses: one that is
//! sent to, or from, where nobody is (any more) is lost, and the system says so of the latter.

use std::cell::RefCell;

use super::*;
use crate::connection::RouteWanted;
use crate::connection::paths::MAX_PATHS;

const PACKETS: usize = 40;

/// A pair whose ends, and the NAT before the client, have addresses of their own.
pub(super) struct Roaming {
    pub pair: Pair,
    client: SocketAddr,
    server: SocketAddr,
    /// What a NAT makes of the client's address.
    pub seen_as: Option<SocketAddr>,
    /// Larger datagrams vanish.
    pub mtu: usize,
    /// The client hears nothing.
    deaf: bool,
    /// Where the client may be spoken to from: where it has sent to. None: from anywhere.
    opened: Option<HashSet<SocketAddr>>,
    flying: Vec<(Path, Vec<u8>)>,
    /// Data either way carries numbers from here on.
    sent: u64,
    /// Milliseconds that were waited for something to move. A machine that stands still waits for
    /// nothing.
    waited: u32,
}

pub(super) fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], port))
}

impl Roaming {
    pub fn new(limits: &Limits) -> Self {
        Roaming {
            pair: Pair::connected(limits),
            client: CLIENT,
            server: SERVER,
            seen_as: None,
            mtu: usize::MAX,
            deaf: false,
            opened: None,
            flying: Vec::new(),
            sent: 0,
            waited: 0,
        }
    }

    pub fn side(&mut self, role: Role) -> &mut Side {
        match role {
            Role::Client => &mut self.pair.client,
            Role::Server => &mut self.pair.server,
        }
    }

    pub fn step(&mut self) -> bool {
        let now = self.pair.now();
        let mut flying = std::mem::take(&mut self.flying);
        for role in [Role::Client, Role::Server] {
            let own = match role {
                Role::Client => self.client,
                Role::Server => self.server,
            };
            let seen_as = self.seen_as;
            let mtu = self.mtu;
            let side = self.side(role);
            side.work(now);
            for (datagram, path) in side.datagrams_out() {
                if path.local != own {
                    let error = std::io::ErrorKind::InvalidInput.into();
                    side.connection.refused(&error, path.peer, now);
                    continue;
                }
                if datagram.len() > mtu {
                    continue;
                }
                let local = match (role, seen_as) {
                    (Role::Client, Some(outside)) => outside,
                    _ => own,
                };
                flying.push((Path { local, ..path }, datagram));
            }
            // What the event thread does.
            for wanted in side.connection.routes_wanted(now) {
                match wanted {
                    RouteWanted::Instead(path) if path.local != own => {
                        side.connection.move_to(own, now);
                    }
                    RouteWanted::To(peer) => {
                        side.connection.look_at(Path { local: own, peer }, now);
                    }
                    _ => {}
                }
            }
        }
        let moved = !flying.is_empty();
        for (path, mut datagram) in flying {
            if let Some(opened) = &mut self.opened {
                if path.local == self.client {
                    opened.insert(path.peer);
                } else if !opened.contains(&path.local) {
                    continue;
                }
            }
            if path.peer == self.server {
                let server = &mut self.pair.server.connection;
                server.receive(&mut datagram, path.local, path.peer);
            } else if path.peer == self.seen_as.unwrap_or(self.client) && !self.deaf {
                let to = self.client;
                let client = &mut self.pair.client.connection;
                client.receive(&mut datagram, path.local, to);
            }
        }
        moved
    }

    #[track_caller]
    fn until(&mut self, what: &str, condition: impl Fn(&Pair) -> bool) {
        let start = Instant::now();
        while !condition(&self.pair) {
            assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
            for side in [&self.pair.client, &self.pair.server] {
                assert_eq!(side.ended(), None, "while waiting: {what}");
            }
            if !self.step() {
                self.waited += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Packets of both ends that are on their way when the addresses change, so that they are lost.
    fn say_much(&mut self) {
        for role in [Role::Client, Role::Server] {
            let numbers = self.sent..self.sent + PACKETS as u64;
            let packets: Vec<_> = numbers.map(|n| packet(n, 1_000)).collect();
            self.side(role).send_data(&packets);
            let now = self.pair.now();
            let side = self.side(role);
            side.work(now);
            side.datagrams_out();
        }
        self.sent += PACKETS as u64;
    }

    /// The same, and nothing of it is lost by itself.
    fn say_more(&mut self) {
        let numbers = self.sent..self.sent + PACKETS as u64;
        let packets: Vec<_> = numbers.map(|n| packet(n, 1_000)).collect();
        self.pair.client.send_data(&packets);
        self.pair.server.send_data(&packets);
        self.sent += PACKETS as u64;
    }

    #[track_caller]
    fn all_arrives(&mut self, what: &str) {
        let sent = self.sent as usize;
        self.until(what, |pair| {
            pair.client.packets.len() >= sent && pair.server.packets.len() >= sent
        });
        let expected: Vec<_> = (0..self.sent).map(|n| packet(n, 1_000)).collect();
        assert_same(&self.pair.client.packets, &expected);
        assert_same(&self.pair.server.packets, &expected);
    }

    /// Lets the ends find out what they can from what is still on its way.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < QUIET_STEPS {
            quiet = if self.step() { 0 } else { quiet + 1 };
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[track_caller]
fn moved(side: &Side, local: SocketAddr, peer: SocketAddr) {
    let last = side.moves.last().map(|&(_, to)| to);
    assert_eq!(last, Some(Path { local, peer }));
    for pair in side.moves.windows(2) {
        assert_eq!(
            pair[0].1, pair[1].0,
            "each move begins where the last ended"
        );
    }
}

#[test]
fn a_nat_rebinds() {
    let mut roaming = Roaming::new(&limits());
    for port in 0..5 {
        let outside = address(9, 5000 + port);
        roaming.seen_as = Some(outside);
        roaming.say_much();
        roaming.all_arrives("what was sent while the NAT rebound");
        roaming.pair.ahead += Duration::from_secs(2);
        roaming.settle();
        moved(&roaming.pair.server, SERVER, outside);
        assert_eq!(roaming.pair.client.moves, [], "the client cannot know");
    }
}

#[test]
fn the_dialling_host_gets_another_address() {
    let mut roaming = Roaming::new(&limits());
    for host in 10..15 {
        let new = address(host, CLIENT.port());
        roaming.client = new;
        roaming.say_much();
        roaming.all_arrives("what was sent while the client moved");
        roaming.pair.ahead += Duration::from_secs(2);
        roaming.settle();
        moved(&roaming.pair.client, new, SERVER);
        moved(&roaming.pair.server, SERVER, new);
    }
}

#[test]
fn the_dialled_host_gets_another_address() {
    let mut roaming = Roaming::new(&limits());
    for host in 10..15 {
        let new = address(host, SERVER.port());
        roaming.server = new;
        roaming.say_much();
        roaming.all_arrives("what was sent while the server moved");
        roaming.pair.ahead += Duration::from_secs(2);
        roaming.settle();
        moved(&roaming.pair.client, CLIENT, new);
        moved(&roaming.pair.server, new, CLIENT);
    }
}

/// A firewall before the client keeps what comes from there away, until the client has sent there: which it
/// does when discovery says so, once it has asked for it.
#[test]
fn the_dialled_host_moves_without_a_word() {
    let mut roaming = Roaming::new(&limits());
    roaming.opened = Some(HashSet::new());
    roaming.say_more();
    roaming.all_arrives("what was sent before");
    let new = address(10, SERVER.port());
    roaming.server = new;
    roaming.say_more();
    roaming.until("the client asks", |pair| pair.client.silent.len() == 2);
    assert_eq!(roaming.pair.client.silent, [0, 1]);
    assert_eq!(roaming.pair.server.silent, []);
    // Where it is not, and where it is: neither harms.
    for said in [address(11, SERVER.port()), SERVER] {
        roaming.pair.client.handle.seek(said).unwrap();
        for _ in 0..30 {
            roaming.step();
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    roaming.pair.client.handle.seek(new).unwrap();
    roaming.waited = 0;
    roaming.all_arrives("what was sent while the server moved");
    // The window is full of what was lost, and the probe time-out has doubled to some seconds. (A
    // sleep of a millisecond takes a little more than that.)
    assert!(roaming.waited < 900, "{} ms", roaming.waited);
    roaming.pair.ahead += Duration::from_secs(2);
    roaming.settle();
    moved(&roaming.pair.client, CLIENT, new);
    // Nothing is asked while the peer answers.
    let asked = roaming.pair.client.silent.len();
    roaming.pair.ahead += Duration::from_secs(10);
    roaming.say_more();
    roaming.all_arrives("more");
    assert_eq!(roaming.pair.client.silent.len(), asked);
}

/// What discovery says moves nothing while the peer answers where it was.
#[test]
fn discovery_alone_moves_nothing() {
    let mut roaming = Roaming::new(&limits());
    roaming.settle();
    let elsewhere = address(11, SERVER.port());
    roaming.pair.client.handle.seek(elsewhere).unwrap();
    roaming.say_more();
    roaming.all_arrives("what was sent");
    roaming.pair.ahead += Duration::from_secs(2);
    roaming.settle();
    assert_eq!(roaming.pair.client.moves, []);
}

/// The system has refused to send, and discovery says where the peer is: the one is not forgotten over the
/// other, which may come to nothing.
#[test]
fn two_ways_are_wanted_at_once() {
    let mut pair = Pair::connected(&limits());
    let elsewhere = address(11, SERVER.port());
    let now = pair.now();
    let client = &mut pair.client.connection;
    let error = std::io::ErrorKind::NetworkUnreachable.into();
    client.refused(&error, SERVER, now);
    client.command(ConnectionCommand::Seek(elsewhere), now);
    let later = now + Duration::from_secs(1);
    let wanted: Vec<_> = client.routes_wanted(later).collect();
    let (local, peer) = (CLIENT, SERVER);
    let instead = RouteWanted::Instead(Path { local, peer });
    assert_eq!(wanted, [instead, RouteWanted::To(elsewhere)]);
    assert_eq!(client.routes_wanted(later).count(), 0);
}

/// And comes back to the one it had.
#[test]
fn an_address_comes_back() {
    let mut roaming = Roaming::new(&limits());
    for host in [10, 1, 10, 1] {
        roaming.client = address(host, CLIENT.port());
        roaming.say_much();
        roaming.all_arrives("what was sent while the client moved");
        roaming.pair.ahead += Duration::from_secs(2);
        roaming.settle();
    }
    moved(&roaming.pair.client, CLIENT, SERVER);
    moved(&roaming.pair.server, SERVER, CLIENT);
    assert_eq!(roaming.pair.client.connection.info().unwrap().paths, 2);
}

/// quiche keeps every path, so there is an end to it, which the log says; until then nothing is missing.
#[test]
fn as_many_paths_as_are_promised() {
    let lines = log_lines();
    let mut roaming = Roaming::new(&limits());
    for port in 1..MAX_PATHS as u16 {
        assert_eq!(lines(), [""; 0], "before path {}", port + 1);
        roaming.seen_as = Some(address(9, 5000 + port));
        roaming.say_much();
        roaming.all_arrives("what was sent while the NAT rebound");
        roaming.settle();
    }
    let said = "with node@192.0.2.1 has had all the paths that there can be (32)";
    let warnings = lines();
    assert!(
        matches!(&warnings[..], [line] if line.contains(said)),
        "{warnings:?}"
    );
}

/// What this thread logs from now on as a warning, or worse.
fn log_lines() -> impl Fn() -> Vec<String> {
    struct Lines;

    thread_local! {
        static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    impl log::Log for Lines {
        fn enabled(&self, metadata: &log::Metadata) -> bool {
            metadata.target().starts_with("quic_dist")
        }

        fn log(&self, record: &log::Record) {
            if self.enabled(record.metadata()) {
                LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
            }
        }

        fn flush(&self) {}
    }

    // An error means that a test before this one has set it.
    let _ = log::set_logger(&Lines);
    log::set_max_level(log::LevelFilter::Warn);
    LINES.take();
    || LINES.with_borrow(Clone::clone)
}

/// Somebody who copies the peer's packets and sends them from elsewhere, ahead of the peer, is asked,
/// and even answers; the peer is not taken to have moved, for it is still heard where it was.
#[test]
fn a_copy_from_elsewhere_moves_nothing() {
    let mut roaming = Roaming::new(&limits());
    let elsewhere = address(66, 6666);
    let now = roaming.pair.now();
    for number in 0..10 {
        roaming.pair.server.send_data(&[packet(number, 1_000)]);
        roaming.pair.server.work(now);
        for (mut datagram, _) in roaming.pair.server.datagrams_out() {
            let copy = &mut datagram.clone();
            let client = &mut roaming.pair.client.connection;
            client.receive(copy, elsewhere, CLIENT);
            client.receive(&mut datagram, SERVER, CLIENT);
        }
        roaming.pair.client.work(now);
        for (mut datagram, path) in roaming.pair.client.datagrams_out() {
            // A relay there brings the peer's answers.
            let (from, to) = (path.local, SERVER);
            roaming
                .pair
                .server
                .connection
                .receive(&mut datagram, from, to);
            roaming.pair.server.work(now);
            for (mut answer, _) in roaming.pair.server.datagrams_out() {
                let client = &mut roaming.pair.client.connection;
                client.receive(&mut answer, path.peer, CLIENT);
            }
        }
    }
    roaming.settle();
    assert_eq!(roaming.pair.client.packets.len(), 10);
    assert_eq!(roaming.pair.client.moves, []);
    let path = roaming.pair.client.connection.path().unwrap();
    assert_eq!(path.peer, SERVER);
}

/// What nobody can decrypt says nothing of where the peer is.
#[test]
fn garbage_from_elsewhere_is_not_answered() {
    let mut roaming = Roaming::new(&limits());
    roaming.pair.server.send_data(&[packet(1, 1_000)]);
    let now = roaming.pair.now();
    roaming.pair.server.work(now);
    for (mut datagram, _) in roaming.pair.server.datagrams_out() {
        if let Some(last) = datagram.last_mut() {
            *last ^= 1;
        }
        let client = &mut roaming.pair.client.connection;
        client.receive(&mut datagram, address(66, 6666), CLIENT);
    }
    roaming.pair.client.work(now);
    assert_eq!(roaming.pair.client.datagrams_out(), []);
    let info = roaming.pair.client.connection.info().unwrap();
    assert_eq!(info.paths, 1);
}

/// quiche looks for the MTU of a connection's first path only.
#[test]
fn packets_on_a_new_path_are_small() {
    let limits = Limits {
        path_mtu_discovery: true,
        user_streams: 1,
        ..limits()
    };
    let mut roaming = Roaming::new(&limits);
    roaming.say_much();
    roaming.all_arrives("the data");
    roaming.settle();
    assert!(roaming.pair.client.connection.info().unwrap().mtu > 9_000);
    assert!(roaming.pair.client.handle.datagram_size().unwrap() > 9_000);
    roaming.client = address(10, CLIENT.port());
    roaming.say_much();
    roaming.all_arrives("what was sent while the client moved");
    roaming.settle();
    for side in [&mut roaming.pair.client, &mut roaming.pair.server] {
        assert_eq!(side.connection.info().unwrap().mtu, 1200);
        let room = side.handle.datagram_size().unwrap();
        assert!((1_100..1_200).contains(&room), "{room}");
        side.handle.send_datagram(vec![7; room]).unwrap();
    }
    roaming.until("datagrams of that size arrive", |pair| {
        [&pair.client, &pair.server]
            .iter()
            .all(|side| side.user.datagrams.len() == 1)
    });
}

/// quiche finds the MTU once; when it shrinks afterwards, it takes more than quiche to go on.
#[test]
fn the_mtu_shrinks() {
    let limits = Limits {
        path_mtu_discovery: true,
        ..limits()
    };
    let mut roaming = Roaming::new(&limits);
    for mtu in [16_000, 9_000, 1_500, 1_200] {
        roaming.mtu = mtu;
        for _ in 0..20 {
            roaming.say_more();
            roaming.all_arrives("the data");
        }
        roaming.settle();
        // A search that was under way when the MTU shrank may find what was; the next data shows it.
        let start = Instant::now();
        while [&roaming.pair.client, &roaming.pair.server]
            .iter()
            .any(|side| side.connection.quic.pmtu().unwrap_or(1_200) > mtu)
        {
            assert!(start.elapsed() < PATIENCE, "a wrong MTU is kept");
            roaming.say_more();
            roaming.all_arrives("the data");
            roaming.settle();
        }
    }
}

/// A path that stops and comes back has the MTU that it had.
#[test]
fn the_mtu_is_found_again_after_a_silence() {
    let limits = Limits {
        path_mtu_discovery: true,
        ..limits()
    };
    let mut roaming = Roaming::new(&limits);
    roaming.say_more();
    roaming.all_arrives("the data");
    roaming.settle();
    let before = roaming.pair.client.connection.quic.pmtu();
    assert!(before > Some(9_000), "{before:?}");
    roaming.mtu = 0;
    roaming.say_more();
    roaming.until("the path is taken for a narrower one", |pair| {
        pair.client.connection.paths.max_packet() == 1_200
    });
    roaming.mtu = usize::MAX;
    roaming.all_arrives("what was sent meanwhile");
    roaming.say_more();
    roaming.all_arrives("more");
    roaming.settle();
    assert_eq!(roaming.pair.client.connection.quic.pmtu(), before);
}

/// The client's new address answers too late. quiche gives the path up, and would give the connection
/// up when it hears from there again.
#[test]
fn a_path_that_failed_is_tried_again() {
    let mut roaming = Roaming::new(&limits());
    let outside = address(9, 5000);
    let (local, peer) = (SERVER, outside);
    roaming.seen_as = Some(outside);
    roaming.deaf = true;
    let start = Instant::now();
    while !roaming
        .pair
        .server
        .connection
        .has_failed(Path { local, peer })
    {
        assert!(start.elapsed() < PATIENCE, "the path never fails");
        roaming.say_more();
        roaming.step();
        std::thread::sleep(Duration::from_millis(5));
    }
    roaming.deaf = false;
    roaming.all_arrives("what was sent meanwhile");
    roaming.until("the new path is valid", |pair| {
        !pair.server.moves.is_empty()
    });
    moved(&roaming.pair.server, SERVER, outside);
    roaming.say_more();
    roaming.all_arrives("more");
}

/// What is said on behalf of a path that was left is said anew on the path after the next, and does
/// not wait for probe time-outs that have grown meanwhile. The client has nothing to say but ticks, so
/// all that it hears it hears late.
#[test]
fn a_path_is_gone_before_the_one_before_it_is_mended() {
    let mut roaming = Roaming::new(&limits());
    let packets = packets(0, &[1_000; 2 * PACKETS]);
    roaming.deaf = true;
    roaming.pair.server.send_data(&packets);
    roaming.settle();
    let second = address(9, 5000);
    roaming.seen_as = Some(second);
    roaming.deaf = false;
    roaming.pair.client.connection.tick();
    roaming.until("the second path is valid", |pair| {
        let quic = &pair.server.connection.quic;
        quic.is_path_validated(SERVER, second) == Ok(true)
    });
    roaming.deaf = true;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        if !roaming.step() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    roaming.deaf = false;
    roaming.seen_as = Some(address(9, 5001));
    roaming.pair.client.connection.tick();
    roaming.waited = 0;
    roaming.until("what was under way on the first path", |pair| {
        pair.client.packets.len() == packets.len()
    });
    let waited = roaming.waited;
    assert!(waited < 500, "{waited} ms");
}
