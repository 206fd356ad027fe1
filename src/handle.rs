//! What the other threads hold of a connection: its gates and counters, the connection itself while
//! nobody works on it, and a way to send commands to the event thread.
//!
//! A connection is worked on by who takes the endpoint's turn (the event thread, or a guest:
//! [`crate::lead`]), or for a moment by a thread that has something to send: waking the event thread for
//! every small message would cost more than the sending. Nobody but who takes the turn waits for the lock,
//! and it holds the turn's lock and no other one meanwhile; who sends holds none. So nothing here can
//! deadlock.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use crate::batch::Batch;
use crate::config::Limits;
use crate::connection::{Connection, Network, Sent, Train};
use crate::driver::patience;
use crate::frame::Prefix;
use crate::gate::Gate;
use crate::identity::{PeerCertificate, Verified};
use crate::layout::Role;
use crate::lead::{Asked, Guest};
use crate::streams::Streams;

/// Up to this much is sent by the thread that has it, if nobody works on the connection; above it,
/// the event thread does it, while the caller goes on with the next. Encrypting this much takes
/// some 30 µs.
const AT_ONCE: usize = 64 << 10;

/// What is shared between a connection on the event thread and its handles.
pub(crate) struct Shared {
    /// Bytes queued for sending.
    pub send: Gate,
    /// Bytes delivered and not consumed.
    pub receive: Gate,
    /// Authenticated QUIC packets received.
    pub packets_received: AtomicU64,
    /// QUIC packets sent.
    pub packets_sent: AtomicU64,
    /// The connection has ended; commands to it do nothing.
    pub closed: AtomicBool,
    /// Commands on their way to the event thread: nothing may overtake them.
    pub commands: AtomicUsize,
    /// What the peer has shown; nothing before the handshake is complete.
    pub certificate: OnceLock<PeerCertificate>,
    /// The application's own streams.
    pub streams: Streams,
    /// The connection; none before it was dialled and after its end.
    pub connection: Mutex<Option<Connection>>,
    /// Whoever asks for itself what has come. Tried only: nobody waits for it.
    pub guest: Mutex<Guest>,
    /// How long it asks.
    pub patience: Duration,
}

impl Shared {
    pub fn new(role: Role, limits: &Limits) -> Arc<Self> {
        Arc::new(Shared {
            send: Gate::new(limits.send_queue_high, limits.send_queue_low),
            receive: Gate::new(limits.receive_budget, limits.receive_budget / 2),
            packets_received: AtomicU64::new(0),
            packets_sent: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            commands: AtomicUsize::new(0),
            certificate: OnceLock::new(),
            streams: Streams::new(role, limits),
            connection: Mutex::new(None),
            guest: Mutex::new(Guest::default()),
            patience: patience(limits.busy_wait),
        })
    }

    /// The connection, if nobody works on it and nothing is on its way to it.
    fn at_once(&self) -> Option<MappedMutexGuard<'_, Connection>> {
        // What the calling thread sent before, it sees here; the order of other threads' commands
        // is nobody's business.
        if self.commands.load(Ordering::Acquire) > 0 {
            return None;
        }
        MutexGuard::try_map(self.connection.try_lock()?, Option::as_mut).ok()
    }
}

/// What can be asked of one connection.
#[derive(Debug)]
pub(crate) enum ConnectionCommand {
    ReadControl,
    ReadData,
    Resume,
    Control(Vec<u8>),
    Data(Batch),
    Tick,
    Seek(SocketAddr),
    Info(Sender<ConnectionInfo>),
    Close(Closing),
    Panic(String),
}

/// Who ends a connection, and how.
#[derive(Debug)]
pub(crate) enum Closing {
    /// The owner asks for it; the text is for the log line.
    Asked(String),
    /// The owner died.
    OwnerDown,
}

/// What travels over an endpoint's command channel. Connections are named by their slot and a
/// number that is never used twice, so that a late command cannot hit the slot's next tenant.
#[derive(Debug)]
pub(crate) enum Command<X> {
    Connection(Id, ConnectionCommand),
    Endpoint(X),
}

/// The name of a connection within its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(pub u64);

/// The sending half of an endpoint's commands, without the type of its own commands, and its socket.
pub(crate) trait Commands: Network + Send + Sync {
    fn connection(&self, id: Id, command: ConnectionCommand);

    /// A turn of the endpoint's on the calling thread, unless others take them.
    fn guest_turn(&self, id: Id, now: Instant) -> Asked;

    /// Lets other threads run.
    fn pause(&self);

    /// The guest takes no more turns.
    fn leave(&self, id: Id);
}

thread_local! {
    /// Trains of whichever connection this thread sends for: connections are many, threads few.
    static TRAIN: RefCell<Option<Train>> = const { RefCell::new(None) };
}

/// A connection, as the other threads see it. Cheap to clone. Dropping every handle does not close
/// the connection.
#[derive(Clone)]
pub struct Handle {
    id: Id,
    role: Role,
    shared: Arc<Shared>,
    commands: Arc<dyn Commands>,
}

/// The connection took what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendStatus {
    /// There is room for more.
    Ready,
    /// The queue is over its high mark: give nothing more until [`crate::Event::Writable`].
    Busy,
}

/// The connection did not take what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The connection has ended.
    Closed,
    /// A packet is too long for its length prefix or the limit.
    TooLong,
}

/// What liveness is judged by (`dist_util`'s `mf_getstat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Authenticated QUIC packets received.
    pub received: u64,
    /// QUIC packets sent.
    pub sent: u64,
    /// Bytes queued for sending.
    pub pending: usize,
}

/// What an operator asks of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The peer's address on the active path.
    pub peer: SocketAddr,
    /// Our address on the active path.
    pub local: SocketAddr,
    /// Whether we dialled.
    pub role: Role,
    /// The TLS version, as BoringSSL names it.
    pub tls_version: String,
    /// The TLS cipher, as BoringSSL names it.
    pub cipher: String,
    /// The name in the peer's certificate, if it has one.
    pub peer_name: Option<String>,
    /// How the peer's certificate was verified.
    pub verified: Verified,
    /// The handshake resumed a TLS session.
    pub resumed: bool,
    /// The size of the largest packets sent now, in bytes.
    pub mtu: usize,
    /// Smoothed round-trip time.
    pub srtt: Duration,
    /// Its variation.
    pub rttvar: Duration,
    /// The smallest round-trip time seen.
    pub min_rtt: Option<Duration>,
    /// The congestion window, in bytes.
    pub cwnd: usize,
    /// QUIC packets sent.
    pub packets_sent: u64,
    /// QUIC packets received.
    pub packets_received: u64,
    /// QUIC packets taken for lost.
    pub packets_lost: u64,
    /// Bytes of QUIC packets sent.
    pub bytes_sent: u64,
    /// Bytes of QUIC packets received.
    pub bytes_received: u64,
    /// Bytes queued for sending.
    pub send_queue: usize,
    /// Bytes delivered and not consumed.
    pub unconsumed: usize,
    /// Known paths.
    pub paths: usize,
    /// Data streams that this side writes.
    pub streams_out: usize,
    /// Data streams that the peer writes, once it has said so.
    pub streams_in: Option<usize>,
    /// The longest datagram of the application's, in bytes.
    pub datagram_size: usize,
    /// Datagrams of the application's: sent, received, taken for lost on the way, and lost because
    /// there were too many for a queue.
    pub datagrams_sent: u64,
    /// See `datagrams_sent`.
    pub datagrams_received: u64,
    /// See `datagrams_sent`.
    pub datagrams_lost: u64,
    /// See `datagrams_sent`.
    pub datagrams_dropped: u64,
}

impl Handle {
    pub(crate) fn new(
        id: Id,
        role: Role,
        shared: Arc<Shared>,
        commands: Arc<dyn Commands>,
    ) -> Self {
        Handle {
            id,
            role,
            shared,
            commands,
        }
    }

    /// Whether we dialled.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The connection has ended.
    pub(crate) fn end(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }

    fn command(&self, command: ConnectionCommand) -> Result<(), SendError> {
        if self.is_closed() {
            return Err(SendError::Closed);
        }
        self.order(command);
        Ok(())
    }

    fn order(&self, command: ConnectionCommand) {
        self.shared.commands.fetch_add(1, Ordering::AcqRel);
        self.commands.connection(self.id, command);
    }

    /// What the peer's certificate says; `None` before the handshake is complete, and of a peer that
    /// is not verified.
    pub fn certificate(&self) -> Option<&PeerCertificate> {
        self.shared.certificate.get()
    }

    /// Starts the reading of the control stream: until now nobody was there to receive it.
    pub fn read_control(&self) -> Result<(), SendError> {
        self.command(ConnectionCommand::ReadControl)
    }

    /// Starts the reading of the data streams.
    pub fn read_data(&self) -> Result<(), SendError> {
        self.command(ConnectionCommand::ReadData)
    }

    /// Sends one packet on the control stream.
    pub fn send_control(&self, packet: &[u8]) -> Result<(), SendError> {
        let mut framed = Vec::with_capacity(Prefix::Control.size() + packet.len());
        if !Prefix::Control.put(packet.len(), &mut framed) {
            return Err(SendError::TooLong);
        }
        framed.extend_from_slice(packet);
        if self.is_closed() {
            return Err(SendError::Closed);
        }
        match self.quiet() {
            Some(mut connection) => {
                connection.send_control(framed);
                self.flush(connection);
            }
            None => self.order(ConnectionCommand::Control(framed)),
        }
        Ok(())
    }

    /// Sends packets on the data streams: the caller frames them while it takes them out of the
    /// BEAM, so that they are copied once at most.
    pub fn send_data(&self, batch: Batch) -> Result<SendStatus, SendError> {
        if self.is_closed() {
            return Err(SendError::Closed);
        }
        let length = batch.len();
        self.shared.send.add(length);
        let quiet = (length <= AT_ONCE).then(|| self.quiet()).flatten();
        match quiet {
            Some(connection) => self.send_at_once(connection, batch),
            None => self.command(ConnectionCommand::Data(batch))?,
        }
        Ok(if self.shared.send.must_wait() {
            SendStatus::Busy
        } else {
            SendStatus::Ready
        })
    }

    /// The connection, if nobody works on it and nothing is under way.
    fn quiet(&self) -> Option<MappedMutexGuard<'_, Connection>> {
        let connection = self.shared.at_once()?;
        connection.is_quiet().then_some(connection)
    }

    fn send_at_once(&self, mut connection: MappedMutexGuard<'_, Connection>, batch: Batch) {
        connection.send_data(batch);
        self.flush(connection);
    }

    /// Sends what the application's streams have, `length` bytes, if nobody works on the connection
    /// and nothing is under way. False: it is left to the event thread.
    pub(crate) fn write_at_once(&self, length: usize) -> bool {
        let quiet = (length <= AT_ONCE).then(|| self.quiet()).flatten();
        match quiet {
            Some(connection) => self.flush(connection),
            None => return false,
        }
        true
    }

    /// The event thread is to serve the connection.
    pub(crate) fn resume(&self) {
        // A closed connection has nothing to do; nobody has to know.
        let _ = self.command(ConnectionCommand::Resume);
    }

    fn flush(&self, mut connection: MappedMutexGuard<'_, Connection>) {
        let now = Instant::now();
        let sent = TRAIN.with_borrow_mut(|train| {
            let train = train.get_or_insert_default();
            connection.flush(train, now, &*self.commands)
        });
        let due = connection.is_due_earlier();
        drop(connection);
        if sent != Sent::All || due {
            // Also if that has just ended the connection: the event thread tells it.
            self.order(ConnectionCommand::Resume);
        }
    }

    /// Sends an empty packet on the control stream, and a PING (RFC 9000, section 19.2), which
    /// no flow control holds back.
    pub fn tick(&self) -> Result<(), SendError> {
        self.command(ConnectionCommand::Tick)
    }

    /// Discovery says that the peer is at this address: it is looked for there, if it is silent where it
    /// is known to be, and we dialled.
    pub fn seek(&self, peer: SocketAddr) -> Result<(), SendError> {
        self.command(ConnectionCommand::Seek(peer))
    }

    /// For a thread that else would only wait for this connection's events: whether it is to call again
    /// as soon as nothing else is to be done on it. Meanwhile it is the thread that calls [`Events`], from
    /// within these calls, whatever connection they concern; but of connections that come or end, of the
    /// application's streams and of its datagrams only the event thread tells. A call takes some microseconds where nothing has
    /// come, and handles at most some 256 KiB; no TLS handshake is in it. `got`: bytes that were received
    /// since the last call: what is large is better left to the event thread.
    ///
    /// For `busy_wait` times three after something has come the answer is yes, but where the thread has turned
    /// out not to call often; who does not call after a yes is not waited for.
    ///
    /// [`Events`]: crate::Events
    pub fn ask(&self, got: usize) -> bool {
        // Two threads for one connection: one of them is enough.
        let Some(mut guest) = self.shared.guest.try_lock() else {
            return false;
        };
        let patience = self.shared.patience;
        let now = Instant::now();
        let may = !patience.is_zero() && !self.is_closed();
        let stays = may && guest.may_ask(got, now) && {
            let asked = self.commands.guest_turn(self.id, now);
            let now = match asked {
                Asked::Bytes(0) => now,
                _ => Instant::now(),
            };
            let stays = guest.asked(asked, patience, now);
            if stays && asked == Asked::Bytes(0) {
                // As the event thread does in between: who is to answer may need this processor.
                self.commands.pause();
            }
            stays
        };
        if !stays {
            self.commands.leave(self.id);
        }
        stays
    }

    /// Gives received bytes back to the receive budget.
    pub fn consumed(&self, bytes: usize) {
        if self.shared.receive.sub(bytes) {
            self.resume();
        }
    }

    /// Liveness counters; a few atomic reads.
    pub fn stat(&self) -> Result<Stat, SendError> {
        if self.is_closed() {
            return Err(SendError::Closed);
        }
        Ok(Stat {
            received: self.shared.packets_received.load(Ordering::Relaxed),
            sent: self.shared.packets_sent.load(Ordering::Relaxed),
            pending: self.shared.send.level(),
        })
    }

    /// Asks the event thread for the connection's figures. The receiver disconnects when the
    /// connection has ended.
    pub fn info(&self) -> Result<Receiver<ConnectionInfo>, SendError> {
        let (tx, rx) = bounded(1);
        self.command(ConnectionCommand::Info(tx))?;
        Ok(rx)
    }

    /// Ends the connection in order: what was given before is sent, and the peer is told after it.
    /// [`crate::Event::Closed`] comes at once.
    pub fn close(&self, text: &str) {
        // Of a connection that has ended nothing more is to be done.
        let _ = self.command(ConnectionCommand::Close(Closing::Asked(text.to_owned())));
    }

    /// Makes the event thread panic while it works on this connection, for tests of what happens
    /// then. Nothing from the network leads here; who can call it can end the whole process.
    pub fn panic(&self, text: &str) -> Result<(), SendError> {
        self.command(ConnectionCommand::Panic(text.to_owned()))
    }

    /// As [`Handle::close`], because the owner is gone.
    pub fn owner_down(&self) {
        // As above.
        let _ = self.command(ConnectionCommand::Close(Closing::OwnerDown));
    }
}
