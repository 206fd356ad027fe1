//! Endpoints whose events go into channels, and a QUIC client that does as the test likes.

pub mod raw;

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use quic_dist_engine::frame::Prefix;
use quic_dist_engine::identity::{CookieAuthority, NodeIdentity};
use quic_dist_engine::{
    CloseReason, Endpoint, Event, Events, Handle, Limits, SendError, SendStatus,
};

/// How long a test waits for what must happen; nothing takes as long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn identity(cookie: &[u8]) -> Arc<NodeIdentity> {
    let authority = CookieAuthority::derive(cookie).unwrap();
    Arc::new(NodeIdentity::mint(&authority, "node@127.0.0.1").unwrap())
}

pub static SECRET: LazyLock<Arc<NodeIdentity>> = LazyLock::new(|| identity(b"secret"));
pub static OTHER: LazyLock<Arc<NodeIdentity>> = LazyLock::new(|| identity(b"other"));

/// Limits for tests on a busy machine: no deadline is met by accident.
pub fn limits() -> Limits {
    Limits {
        handshake_timeout: PATIENCE,
        linger: PATIENCE / 2,
        ..Limits::default()
    }
}

/// The end of a handshake whose place another one has.
pub fn displaced() -> CloseReason {
    CloseReason::LocalClosed {
        text: "too many handshakes, and most from there".into(),
    }
}

/// Waits for a condition that nobody reports.
#[track_caller]
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The thread that calls this, as `/proc` knows it.
pub fn this_thread() -> String {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    format!("/proc/{}", link.display())
}

/// An event, and the thread that has told it.
pub type Told = (ThreadId, Event);

pub struct Channels {
    pub incoming: Sender<Conn>,
    pub refused: Sender<(SocketAddr, CloseReason)>,
    pub ended: Sender<Option<String>>,
    /// None: they are not answered.
    pub questions: Option<Sender<u64>>,
}

impl Events for Channels {
    type Peer = Sender<Told>;

    fn incoming(&mut self, handle: &Handle, from: SocketAddr) -> Sender<Told> {
        let (sender, events) = unbounded();
        let conn = Conn::new(handle.clone(), events, from, this_thread());
        // In this trait's calls nobody may be listening any more: the test is over.
        let _ = self.incoming.send(conn);
        sender
    }

    fn refused(&mut self, from: SocketAddr, reason: &CloseReason) {
        let _ = self.refused.send((from, reason.clone()));
    }

    fn unknown_cookie(&mut self, question: u64) -> bool {
        let questions = self.questions.as_ref();
        questions.is_some_and(|questions| questions.send(question).is_ok())
    }

    fn ended(&mut self, error: Option<String>) {
        let _ = self.ended.send(error);
    }

    fn event(&mut self, peer: &mut Sender<Told>, event: Event) {
        let _ = peer.send((std::thread::current().id(), event));
    }
}

/// An endpoint, and what it reports.
pub struct Node {
    pub endpoint: Endpoint<Channels>,
    pub incoming: Receiver<Conn>,
    pub refused: Receiver<(SocketAddr, CloseReason)>,
    pub ended: Receiver<Option<String>>,
}

impl Node {
    pub fn open(address: &str, identity: &Arc<NodeIdentity>, limits: Limits) -> Self {
        Node::open_with(address, identity, limits, None)
    }

    /// One that looks for cookies that it does not know.
    pub fn open_with(
        address: &str,
        identity: &Arc<NodeIdentity>,
        limits: Limits,
        questions: Option<Sender<u64>>,
    ) -> Self {
        let (incoming_tx, incoming) = unbounded();
        let (refused_tx, refused) = unbounded();
        let (ended_tx, ended) = unbounded();
        let channels = Channels {
            incoming: incoming_tx,
            refused: refused_tx,
            ended: ended_tx,
            questions,
        };
        let address = address.parse().unwrap();
        let endpoint = Endpoint::open(address, identity.clone(), limits, channels).unwrap();
        Node {
            endpoint,
            incoming,
            refused,
            ended,
        }
    }

    /// An ordinary one.
    pub fn new() -> Self {
        Node::open("127.0.0.1:0", &SECRET, limits())
    }

    /// Dials, and does not wait.
    pub fn dial(&self, to: SocketAddr) -> Conn {
        self.dial_node(to, None)
    }

    pub fn dial_node(&self, to: SocketAddr, node: Option<&str>) -> Conn {
        let (sender, events) = unbounded();
        let handle = self.endpoint.connect(to, node, |_| sender).unwrap();
        Conn::new(handle, events, to, String::new())
    }

    #[track_caller]
    pub fn accept(&self) -> Conn {
        let conn = self.incoming.recv_timeout(PATIENCE).expect("nobody came");
        conn.claim();
        conn
    }

    /// A connection from here to there: both ends of it, in use.
    #[track_caller]
    pub fn connect(&self, to: &Node) -> (Conn, Conn) {
        let mut ours = self.dial(to.endpoint.local());
        ours.connected();
        (ours, to.accept())
    }

    #[track_caller]
    pub fn refusal(&self) -> CloseReason {
        self.refused
            .recv_timeout(PATIENCE)
            .expect("nobody was refused")
            .1
    }
}

/// One end of a connection.
pub struct Conn {
    pub handle: Handle,
    pub peer: SocketAddr,
    /// Where `/proc` shows the event thread.
    pub thread: String,
    /// Who has told the last event.
    pub teller: Option<ThreadId>,
    events: Receiver<Told>,
    packets: std::collections::VecDeque<Vec<u8>>,
    control: std::collections::VecDeque<Vec<u8>>,
    pub closed: Option<CloseReason>,
    writable: bool,
}

impl Conn {
    fn new(handle: Handle, events: Receiver<Told>, peer: SocketAddr, thread: String) -> Self {
        Conn {
            handle,
            peer,
            thread,
            teller: None,
            events,
            packets: Default::default(),
            control: Default::default(),
            closed: None,
            writable: true,
        }
    }

    pub fn claim(&self) {
        // A connection that has ended meanwhile says so by its events.
        let _ = self.handle.read_control();
        let _ = self.handle.read_data();
    }

    /// Waits for the end of the dialling.
    #[track_caller]
    pub fn connected(&mut self) {
        match self.events.recv_timeout(PATIENCE) {
            Ok((_, Event::Connected)) => self.claim(),
            other => panic!("not connected: {other:?}"),
        }
    }

    #[track_caller]
    fn event(&mut self) {
        let (teller, event) = self.events.recv_timeout(PATIENCE).expect("no event");
        self.teller = Some(teller);
        assert!(self.closed.is_none(), "after the end: {event:?}");
        match event {
            Event::Connected => panic!("connected again"),
            Event::Control(frames) => self.control.extend(frames.iter().map(<[u8]>::to_vec)),
            Event::Data(packets) => {
                self.packets.extend(packets.iter().map(<[u8]>::to_vec));
                self.handle.consumed(packets.len());
            }
            Event::Writable => self.writable = true,
            Event::Closed(reason) => self.closed = Some(reason),
            // There are none here: no streams of the application, nobody who waits.
            Event::Stream(..) | Event::Datagrams(_) | Event::Low(_) => {}
            Event::Moved { .. } | Event::Silent { .. } => {}
        }
    }

    /// The next data packet.
    #[track_caller]
    pub fn packet(&mut self) -> Vec<u8> {
        loop {
            if let Some(packet) = self.packets.pop_front() {
                return packet;
            }
            assert_eq!(self.closed, None, "no more packets");
            self.event();
        }
    }

    /// Whether an event is there that has not been looked at.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next control packet.
    #[track_caller]
    pub fn control(&mut self) -> Vec<u8> {
        loop {
            if let Some(packet) = self.control.pop_front() {
                return packet;
            }
            assert_eq!(self.closed, None, "no more control packets");
            self.event();
        }
    }

    /// Waits for the end, whatever comes before it.
    #[track_caller]
    pub fn end(&mut self) -> CloseReason {
        while self.closed.is_none() {
            self.event();
        }
        assert!(self.handle.is_closed());
        self.closed.clone().unwrap()
    }

    /// Sends a data packet, when the connection has room for it.
    #[track_caller]
    pub fn send(&mut self, packet: &[u8]) {
        while !self.writable {
            assert_eq!(self.closed, None);
            self.event();
        }
        let mut framed = Vec::with_capacity(4 + packet.len());
        assert!(Prefix::Data.put(packet.len(), &mut framed));
        framed.extend_from_slice(packet);
        self.writable = self.handle.send_data(framed.into()).unwrap() == SendStatus::Ready;
    }

    /// Is it there? (`false` once it has ended.)
    pub fn tick(&self) -> bool {
        self.handle.tick() != Err(SendError::Closed)
    }
}

/// A round trip over both streams of the connection.
#[track_caller]
pub fn ping(a: &mut Conn, b: &mut Conn, number: u64) {
    let (there, back) = (packet(number, 1000), packet(!number, 100));
    a.send(&there);
    assert!(b.packet() == there);
    b.send(&back);
    assert!(a.packet() == back);
}

/// A packet of `length` bytes that no other `number` gives (xorshift64*).
pub fn packet(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
