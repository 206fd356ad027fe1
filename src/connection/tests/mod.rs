//! Connections stepped by hand: no socket, no thread, and a network that loses, doubles, holds back
//! and reorders datagrams as a seeded generator says.
//!
//! quiche reads the clock for its own timers, so a test that needs them (loss, idle time-out) lets
//! real time pass; our own deadlines take the time that the test gives them ([`Pair::ahead`]).

mod data;
mod early;
mod ends;
mod floods;
mod forger;
mod handshake;
mod in_the_way;
mod intruder;
mod large;
mod paths;
mod peers;
mod pressure;
mod silences;
mod stream_ends;
mod streams;
mod suspicion;
mod trains;
mod violations;

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::LazyLock;

use parking_lot::Mutex;

use super::*;
use crate::config;
use crate::frame::Prefix;
use crate::handle::{Commands, ConnectionCommand, Handle, Id};
use crate::identity::{CookieAuthority, NodeIdentity};
use crate::lead::Asked;
use crate::term::Process;

pub(super) const CLIENT: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 1001));
pub(super) const SERVER: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 1002));

/// How long a test waits for what must happen. No test takes as long as this when all is well.
const PATIENCE: Duration = Duration::from_secs(30);
/// Steps of a millisecond in which nothing moves, after which nothing will: longer than the
/// acknowledgement delay (25 ms) and a probe timeout after it.
const QUIET_STEPS: usize = 80;

static AUTHORITY: LazyLock<CookieAuthority> =
    LazyLock::new(|| CookieAuthority::derive(b"secret").unwrap());
static IDENTITY: LazyLock<NodeIdentity> =
    LazyLock::new(|| NodeIdentity::mint(&AUTHORITY, "node@192.0.2.1").unwrap());

/// Limits with which nothing is slow: full-size packets from the start. One data stream: what the
/// router makes of several is tested in `fences`, and where it is ([`crate::router`]).
pub(super) fn limits() -> Limits {
    Limits {
        path_mtu_discovery: false,
        data_streams: 1,
        max_frame: 16 << 20,
        // Streams of the application's are tested where they are wanted.
        user_streams: 0,
        // Longer than any test waits: where they are to pass, a test says so (`Pair::ahead`).
        handshake_timeout: 2 * PATIENCE,
        linger: 2 * PATIENCE,
        ..Limits::default()
    }
}

pub(super) fn quic_config(limits: &Limits, role: Role) -> quiche::Config {
    let mut config = config::quic(limits, role, IDENTITY.client_context().unwrap()).unwrap();
    // Lost handshake packets are repeated after 60 ms, not after a second.
    config.set_initial_rtt(Duration::from_millis(20));
    config
}

/// xorshift64*: the same numbers in every run.
pub(super) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the network does to datagrams, in percent of them.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    pub loss: u64,
    pub doubled: u64,
    /// Held back by one to six steps, so that later ones overtake.
    pub held: u64,
}

pub(super) struct Net {
    rng: Rng,
    pub faults: Faults,
    /// Nothing gets through.
    pub cut: bool,
    step: u64,
    count: u64,
    flying: BTreeMap<(u64, u64), (Role, Vec<u8>)>,
}

impl Net {
    fn new(seed: u64) -> Self {
        Net {
            rng: Rng::new(seed),
            faults: Faults::default(),
            cut: false,
            step: 0,
            count: 0,
            flying: BTreeMap::new(),
        }
    }

    fn send(&mut self, to: Role, datagram: &[u8]) {
        if self.cut || self.rng.percent(self.faults.loss) {
            return;
        }
        let copies = 1 + u64::from(self.rng.percent(self.faults.doubled));
        for _ in 0..copies {
            let delay = if self.rng.percent(self.faults.held) {
                1 + self.rng.below(6)
            } else {
                0
            };
            self.count += 1;
            let due = (self.step + delay, self.count);
            self.flying.insert(due, (to, datagram.to_vec()));
        }
    }

    fn due(&mut self) -> Vec<(Role, Vec<u8>)> {
        let later = self.flying.split_off(&(self.step + 1, 0));
        self.step += 1;
        let due = std::mem::replace(&mut self.flying, later);
        due.into_values().collect()
    }
}

/// The commands of one connection's handle, as the event thread would take them.
#[derive(Default)]
pub(super) struct Queue(Mutex<Vec<ConnectionCommand>>);

impl Commands for Queue {
    fn connection(&self, _: Id, command: ConnectionCommand) {
        self.0.lock().push(command);
    }

    fn guest_turn(&self, _: Id, _: Instant) -> Asked {
        Asked::Leave
    }

    fn pause(&self) {}

    fn leave(&self, _: Id) {}
}

impl Network for Queue {
    fn max_segments(&self) -> usize {
        64
    }

    /// Not reached: the connection is not where another thread could find it.
    fn send(&self, _: &[u8], _: &Transmit) -> std::io::Result<()> {
        Err(std::io::ErrorKind::WouldBlock.into())
    }
}

/// A connection, and what a driver and an owner would know of it.
pub(super) struct Side {
    pub connection: Connection,
    pub handle: Handle,
    queue: Arc<Queue>,
    pub train: Train,
    /// The ids that the peer may use.
    pub ids: HashSet<Vec<u8>>,
    pub retired: usize,
    /// Incoming or dialled connections are taken as soon as they are established.
    pub claims: bool,
    /// Data is consumed as soon as it is delivered.
    pub consumes: bool,
    pub established: bool,
    pub control: Vec<Vec<u8>>,
    pub packets: Vec<Vec<u8>>,
    pub unconsumed: usize,
    pub writable: usize,
    pub low: Vec<Process>,
    pub user: streams::User,
    pub moves: Vec<(Path, Path)>,
    /// How often discovery was asked before, each time.
    pub silent: Vec<u32>,
    pub closed: Option<CloseReason>,
    pub refused: Option<CloseReason>,
    pub stray: bool,
    pub session: Option<Session>,
}

impl Side {
    pub fn client(limits: &Limits) -> Self {
        Side::client_with(&mut quic_config(limits, Role::Client), limits)
    }

    pub fn client_with(config: &mut quiche::Config, limits: &Limits) -> Self {
        let id = random_id().unwrap();
        let quic = quiche::connect_with_buffer_factory(None, &id, CLIENT, SERVER, config).unwrap();
        Side::new(quic, Role::Client, limits, &id)
    }

    pub fn server(limits: &Limits) -> Self {
        Side::server_with(&mut quic_config(limits, Role::Server), limits)
    }

    pub fn server_with(config: &mut quiche::Config, limits: &Limits) -> Self {
        let id = random_id().unwrap();
        let quic = quiche::accept_with_buf_factory(&id, None, SERVER, CLIENT, config).unwrap();
        Side::new(quic, Role::Server, limits, &id)
    }

    fn new(quic: Quic, role: Role, limits: &Limits, id: &ConnectionId) -> Self {
        let shared = Shared::new(role, limits);
        let queue = Arc::new(Queue::default());
        Side {
            connection: Connection::new(quic, role, limits, shared.clone(), Instant::now()),
            handle: Handle::new(Id(1), role, shared, queue.clone()),
            queue,
            train: Train::default(),
            ids: HashSet::from([id.to_vec()]),
            retired: 0,
            claims: true,
            consumes: true,
            established: false,
            control: Vec::new(),
            packets: Vec::new(),
            unconsumed: 0,
            writable: 0,
            low: Vec::new(),
            user: streams::User::default(),
            moves: Vec::new(),
            silent: Vec::new(),
            closed: None,
            refused: None,
            stray: false,
            session: None,
        }
    }

    pub fn address(&self) -> SocketAddr {
        match self.handle.role() {
            Role::Client => CLIENT,
            Role::Server => SERVER,
        }
    }

    /// What the event thread does in a connection's turn, but for the sending.
    pub fn work(&mut self, now: Instant) {
        self.take_commands(now);
        self.connection.work(now);
        while let Some(happening) = self.connection.happening() {
            self.happened(happening);
        }
        while let Some(id) = self.connection.retired_id() {
            assert!(self.ids.remove(&*id), "an unknown id was retired");
            self.retired += 1;
        }
        for id in self.connection.new_ids() {
            assert!(self.ids.insert(id.to_vec()), "an id was given twice");
        }
    }

    fn take_commands(&mut self, now: Instant) {
        let commands = std::mem::take(&mut *self.queue.0.lock());
        for command in commands {
            self.connection.command(command, now);
        }
    }

    fn happened(&mut self, happening: Happening) {
        assert_eq!(
            self.ended(),
            None,
            "something came after the end: {happening:?}"
        );
        match happening {
            Happening::Incoming | Happening::Event(Event::Connected) => {
                assert!(!self.established, "established twice");
                self.established = true;
                if self.claims {
                    self.handle.read_control().unwrap();
                    self.handle.read_data().unwrap();
                }
            }
            Happening::Refused(reason) => self.refused = Some(reason),
            Happening::Stray => self.stray = true,
            Happening::Session(session, _) => self.session = Some(session),
            Happening::Event(Event::Control(frames)) => {
                self.control.extend(frames.iter().map(<[u8]>::to_vec));
            }
            Happening::Event(Event::Data(frames)) => {
                self.packets.extend(frames.iter().map(<[u8]>::to_vec));
                if self.consumes {
                    self.handle.consumed(frames.len());
                } else {
                    self.unconsumed += frames.len();
                }
            }
            Happening::Event(Event::Writable) => self.writable += 1,
            Happening::Event(Event::Low(process)) => self.low.push(process),
            Happening::Event(Event::Stream(id, event)) => {
                self.user.happened(&self.handle, id, event);
            }
            Happening::Event(Event::Datagrams(datagrams)) => self.user.datagrams.extend(datagrams),
            Happening::Event(Event::Moved { from, to }) => self.moves.push((from, to)),
            Happening::Event(Event::Silent { asked }) => self.silent.push(asked),
            Happening::Event(Event::Closed(reason)) => self.closed = Some(reason),
        }
    }

    /// The last thing that happened to it, if that has happened.
    pub fn ended(&self) -> Option<&CloseReason> {
        self.closed.as_ref().or(self.refused.as_ref())
    }

    /// The datagrams that leave in this turn, with their destinations.
    pub fn datagrams(&mut self) -> Vec<(Vec<u8>, SocketAddr)> {
        let address = self.address();
        let out = self.datagrams_out().into_iter();
        out.map(|(datagram, path)| {
            assert_eq!(path.local, address);
            (datagram, path.peer)
        })
        .collect()
    }

    /// The same, with both addresses.
    pub fn datagrams_out(&mut self) -> Vec<(Vec<u8>, Path)> {
        let mut out = Vec::new();
        while let Some(transmit) = self.connection.transmit(&mut self.train, 64) {
            let path = Path {
                local: transmit.from,
                peer: transmit.to,
            };
            assert!(
                transmit.length <= 65_535 - 48,
                "no UDP datagram holds this train"
            );
            assert!(transmit.length.div_ceil(transmit.segment) <= 64);
            let bytes = self.train.bytes(&transmit);
            out.extend(bytes.chunks(transmit.segment).map(|d| (d.to_vec(), path)));
        }
        out
    }

    /// Gives everything that was held back to the receive budget.
    pub fn consume_all(&mut self) {
        self.handle.consumed(std::mem::take(&mut self.unconsumed));
    }

    pub fn send_control(&self, packet: &[u8]) {
        self.handle.send_control(packet).unwrap();
    }

    pub fn send_data(&self, packets: &[Vec<u8>]) -> crate::SendStatus {
        self.handle.send_data(frame(packets).into()).unwrap()
    }

    /// Bytes that wait in the send queue.
    pub fn queued(&self) -> usize {
        self.connection.shared.send.level()
    }
}

/// Two connections and the network between them.
pub(super) struct Pair {
    pub client: Side,
    pub server: Side,
    pub net: Net,
    /// How far the time that our deadlines see is ahead of the clock.
    pub ahead: Duration,
    /// Where the clock that our deadlines see stands still.
    frozen: Option<Instant>,
}

impl Pair {
    pub fn new(limits: &Limits) -> Self {
        Pair::of(Side::client(limits), Side::server(limits))
    }

    pub fn of(client: Side, server: Side) -> Self {
        Pair {
            client,
            server,
            net: Net::new(1),
            ahead: Duration::ZERO,
            frozen: None,
        }
    }

    /// A pair whose handshake is done, and the machine did not stand still in it: quiche's probe
    /// time-outs would be three times as long as it did, and more.
    pub fn connected(limits: &Limits) -> Self {
        for _ in 0..20 {
            let pair = Pair::connected_somehow(limits);
            let is_quick = [&pair.client, &pair.server].iter().all(|side| {
                let mut paths = side.connection.quic.path_stats();
                paths.all(|path| path.rtt + 4 * path.rttvar < Duration::from_millis(50))
            });
            if is_quick {
                return pair;
            }
        }
        panic!("the machine stands still again and again");
    }

    fn connected_somehow(limits: &Limits) -> Self {
        let mut pair = Pair::new(limits);
        pair.until("both are connected", |pair| {
            pair.client.established && pair.server.established
        });
        pair.settle();
        pair
    }

    /// The same, on a network with these faults from now on.
    pub fn faulty(limits: &Limits, seed: u64, faults: Faults) -> Self {
        let mut pair = Pair::connected(limits);
        pair.net.rng = Rng::new(seed);
        pair.net.faults = faults;
        pair
    }

    pub fn now(&self) -> Instant {
        self.frozen.unwrap_or_else(Instant::now) + self.ahead
    }

    /// From now on our deadlines see no time pass but [`Pair::ahead`]: a machine that stands still
    /// for a while does not make them.
    pub fn freeze(&mut self) {
        self.frozen = Some(Instant::now());
    }

    pub fn thaw(&mut self) {
        self.frozen = None;
    }

    /// Both sides work once, and what is due is delivered. Says whether anything was sent or
    /// delivered.
    pub fn step(&mut self) -> bool {
        let now = self.now();
        let mut moved = false;
        for role in [Role::Client, Role::Server] {
            let side = match role {
                Role::Client => &mut self.client,
                Role::Server => &mut self.server,
            };
            side.work(now);
            for (datagram, _) in side.datagrams() {
                moved = true;
                self.net.send(role.peer(), &datagram);
            }
        }
        for (to, mut datagram) in self.net.due() {
            moved = true;
            match to {
                Role::Client => self
                    .client
                    .connection
                    .receive(&mut datagram, SERVER, CLIENT),
                Role::Server => self
                    .server
                    .connection
                    .receive(&mut datagram, CLIENT, SERVER),
            }
        }
        moved || !self.net.flying.is_empty()
    }

    /// Steps until the condition holds.
    #[track_caller]
    pub fn until(&mut self, what: &str, condition: impl Fn(&Pair) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            if start.elapsed() > PATIENCE {
                panic!(
                    "not in {PATIENCE:?}: {what} (client: {:?} {} packets, {} queued; \
                     server: {:?} {} packets, {} queued)",
                    self.client.ended(),
                    self.client.packets.len(),
                    self.client.queued(),
                    self.server.ended(),
                    self.server.packets.len(),
                    self.server.queued(),
                );
            }
            if !self.step() {
                // quiche's timers run on the clock.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// A few steps.
    pub fn settle_briefly(&mut self) {
        for _ in 0..20 {
            if !self.step() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Steps until nothing moves any more.
    #[track_caller]
    pub fn settle(&mut self) {
        let start = Instant::now();
        let mut quiet = 0;
        while quiet < QUIET_STEPS {
            assert!(start.elapsed() < PATIENCE, "it never settles");
            if self.step() {
                quiet = 0;
            } else {
                quiet += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Packets behind their length prefixes.
pub(super) fn frame(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut framed = Vec::new();
    for packet in packets {
        assert!(Prefix::Data.put(packet.len(), &mut framed));
        framed.extend_from_slice(packet);
    }
    framed
}

/// A packet of `length` bytes that no other `number` gives.
pub(super) fn packet(number: u64, length: usize) -> Vec<u8> {
    let mut rng = Rng::new(number);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Packets of these lengths.
pub(super) fn packets(first: u64, lengths: &[usize]) -> Vec<Vec<u8>> {
    (first..)
        .zip(lengths)
        .map(|(n, &length)| packet(n, length))
        .collect()
}

/// Compares without printing megabytes.
#[track_caller]
pub(super) fn assert_same(got: &[Vec<u8>], sent: &[Vec<u8>]) {
    let lengths = |packets: &[Vec<u8>]| packets.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(got), lengths(sent));
    for (index, (got, sent)) in got.iter().zip(sent).enumerate() {
        assert!(got == sent, "packet {index} arrived with other bytes");
    }
}
