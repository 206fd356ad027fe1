//! An endpoint from outside: it opens the socket, starts the event thread, passes commands to it
//! and ends it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use crate::config::Limits;
use crate::connection::{Network, Transmit};
use crate::driver::Driver;
use crate::event::Events;
use crate::handle::{Command, Commands, ConnectionCommand, Handle, Id, SendError, Shared};
use crate::identity::{IdentityError, NodeIdentity, OtherCookie};
use crate::layout::Role;
use crate::lead::{Asked, Lead, Taken};
use crate::socket::Socket;

/// Why an endpoint could not be opened, or take a new identity.
#[derive(Debug)]
pub enum OpenError {
    /// The socket or the thread.
    Io(io::Error),
    /// The identity.
    Identity(IdentityError),
    /// QUIC refused its configuration.
    Quic(quiche::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Io(error) => write!(f, "{error}"),
            OpenError::Identity(error) => write!(f, "{error}"),
            OpenError::Quic(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        OpenError::Io(error)
    }
}

impl From<IdentityError> for OpenError {
    fn from(error: IdentityError) -> Self {
        OpenError::Identity(error)
    }
}

impl From<quiche::Error> for OpenError {
    fn from(error: quiche::Error) -> Self {
        OpenError::Quic(error)
    }
}

/// Figures of an endpoint.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections, half-open and ending ones included.
    pub connections: AtomicU64,
    /// Incoming connections whose handshake is not complete.
    pub half_open: AtomicU64,
    /// Times that the event thread fell asleep, and so woke up.
    pub wake_ups: AtomicU64,
    /// System calls that ask what there is to do (`epoll_wait`), whether they wait or not, or say what to tell
    /// (`epoll_ctl`).
    pub poll_calls: AtomicU64,
    /// Times that the event thread, or a guest, let others run while it waited (`sched_yield`).
    pub yields: AtomicU64,
    /// Turns that a thread took which would else have waited for the event thread.
    pub guest_turns: AtomicU64,
    /// Receiving system calls, those that gave nothing included.
    pub receive_calls: AtomicU64,
    /// Sending system calls, of whichever thread.
    pub send_calls: AtomicU64,
    /// System calls that wake the event thread, of whichever thread.
    pub wake_calls: AtomicU64,
    /// Datagrams received.
    pub datagrams_received: AtomicU64,
    /// Datagrams that were for nobody: malformed, too small, for an unknown connection.
    pub dropped_strays: AtomicU64,
    /// Initials that came while a limit on connections was reached, and handshakes that gave way to others.
    pub dropped_limit: AtomicU64,
    /// Initials that were answered with Retry.
    pub retries: AtomicU64,
    /// Trains that the system did not take, for another reason than a full buffer.
    pub send_errors: AtomicU64,
}

/// What is asked of the endpoint itself.
pub(crate) enum EndpointCommand<E: Events> {
    Connect {
        handle: Handle,
        id: Id,
        shared: Arc<Shared>,
        to: SocketAddr,
        node: Option<String>,
        /// Another than the endpoint's.
        identity: Option<Arc<NodeIdentity>>,
        peer: E::Peer,
    },
    SetIdentity(Arc<NodeIdentity>),
    /// The cookies for others, and the last question that this answers.
    SetOthers(Vec<OtherCookie>, u64),
    /// End every connection, for at most this long, and then the thread.
    Close(Duration),
}

/// The sending half of the command channel. Many commands in a row cost one wake-up.
pub(crate) struct CommandSender<E: Events> {
    commands: Sender<Command<EndpointCommand<E>>>,
    waker: mio::Waker,
    /// Something was sent since the event thread has begun to drain the channel.
    notified: AtomicBool,
    /// The event thread waits, or is about to.
    asleep: AtomicBool,
    /// The event thread is about to go: nobody dials any more. Locked while somebody does, so that what
    /// was sent before is in the channel when the thread drains it for the last time.
    ending: Mutex<bool>,
    /// The socket is the event thread's: it closes when that ends, whoever still holds a handle.
    socket: Weak<Socket>,
    pub counters: Arc<Counters>,
    /// Who takes the turns.
    pub lead: Lead,
    /// Held by who takes one; none after the event thread's last. The event thread waits for it, and nobody
    /// else does. Who has it waits for the lock of a connection, whose holders wait for nothing.
    pub turn: Mutex<Option<Box<Driver<E>>>>,
}

impl<E: Events> CommandSender<E> {
    pub fn new(
        waker: mio::Waker,
        socket: Weak<Socket>,
        counters: Arc<Counters>,
    ) -> (Arc<Self>, Receiver<Command<EndpointCommand<E>>>) {
        // Unbounded, because a scheduler thread must never wait here; what is in it is bounded by
        // what sends: data by the send gates, everything else by being one of a kind per caller.
        let (commands, receiver) = unbounded();
        let sender = CommandSender {
            commands,
            waker,
            notified: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            ending: Mutex::new(false),
            socket,
            counters,
            lead: Lead::new(Instant::now()),
            turn: Mutex::new(None),
        };
        (Arc::new(sender), receiver)
    }

    fn command(&self, command: Command<EndpointCommand<E>>) {
        if self.commands.send(command).is_err() {
            // The thread is gone, and has told every connection.
            return;
        }
        // The event thread lowers the flag before it drains the channel, so a command is either
        // seen by that draining or raises the flag again. And it says that it falls asleep before it
        // looks at the flag for the last time: either it sees the flag, or who raised it sees that.
        if !self.notified.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Wakes the event thread, if it waits.
    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            self.counters.wake_calls.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = self.waker.wake() {
                log::error!("the event thread cannot be woken: {error}");
            }
        }
    }

    /// Has the event thread dial, unless it is about to go, and could tell nobody what becomes of it.
    fn dial(&self, connect: EndpointCommand<E>) -> Result<(), SendError> {
        let ending = self.ending.lock();
        if *ending {
            return Err(SendError::Closed);
        }
        self.command(Command::Endpoint(connect));
        Ok(())
    }

    /// The event thread is about to drain the channel for the last time.
    pub fn ending(&self) {
        *self.ending.lock() = true;
    }

    /// Whether something was sent since the last draining.
    pub fn is_notified(&self) -> bool {
        self.notified.load(Ordering::SeqCst)
    }

    /// The event thread is about to wait, and is to be woken from now on, or does so no more.
    pub fn sleeps(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::SeqCst);
    }

    /// Somebody is about to drain the channel.
    pub fn draining(&self) {
        self.notified.store(false, Ordering::SeqCst);
    }

    /// There is more, for the event thread, which a guest's leaving wakes.
    pub fn still_notified(&self) {
        self.notified.store(true, Ordering::SeqCst);
    }
}

impl<E: Events> Commands for CommandSender<E> {
    fn connection(&self, id: Id, command: ConnectionCommand) {
        self.command(Command::Connection(id, command));
    }

    fn guest_turn(&self, id: Id, now: Instant) -> Asked {
        match self.lead.take(id, now) {
            Taken::No => return Asked::Leave,
            Taken::Still => {}
            // As with a command: either it sees that the lead is taken before it falls asleep, or it is
            // woken now. Then it rests where deadlines that the guest's turns set are not slept through.
            Taken::Now => self.wake(),
        }
        let Some(mut turn) = self.turn.try_lock() else {
            // The event thread takes one meanwhile.
            return Asked::Bytes(0);
        };
        match turn.as_mut() {
            // Again, now that nobody else has the lock: it may have taken longer than a lease to get here.
            // The event thread ends the lead before it finds out, with the lock, how long it can sleep.
            Some(driver) if self.lead.is_led_by(id) => driver.guest_turn(),
            _ => Asked::Leave,
        }
    }

    fn pause(&self) {
        self.counters.yields.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
    }

    fn leave(&self, id: Id) {
        self.lead.leave(id);
    }
}

impl<E: Events> Network for CommandSender<E> {
    fn max_segments(&self) -> usize {
        self.socket.upgrade().map_or(1, |s| s.max_segments())
    }

    fn send(&self, bytes: &[u8], transmit: &Transmit) -> io::Result<()> {
        let mut result = Ok(());
        let Some(socket) = self.socket.upgrade() else {
            return result;
        };
        for _ in 0..2 {
            self.counters.send_calls.fetch_add(1, Ordering::Relaxed);
            result = socket.send(bytes, transmit);
            match &result {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It may be about an earlier packet, which sendmsg reports first; then the second
                // try succeeds. Otherwise the train is lost, for QUIC to repair. The event thread
                // reads the error queue.
                Err(error) => {
                    self.counters.send_errors.fetch_add(1, Ordering::Relaxed);
                    log::debug!("sending to {} failed: {error}", transmit.to);
                }
            }
        }
        result
    }
}

/// A UDP socket, its event thread and its connections.
pub struct Endpoint<E: Events> {
    commands: Arc<CommandSender<E>>,
    ids: Arc<AtomicU64>,
    counters: Arc<Counters>,
    limits: Limits,
    local: SocketAddr,
    done: Receiver<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<E: Events> Endpoint<E> {
    /// Binds `address` (port 0: any) and starts the event thread.
    pub fn open(
        address: SocketAddr,
        identity: Arc<NodeIdentity>,
        limits: Limits,
        events: E,
    ) -> Result<Self, OpenError> {
        let socket = Socket::open(address)?;
        let local = socket.local();
        let ids = Arc::new(AtomicU64::new(0));
        let counters = Arc::new(Counters::default());
        let (commands, poll) = Driver::install(
            socket,
            identity,
            limits.clone(),
            ids.clone(),
            counters.clone(),
            events,
        )?;
        // Nothing is ever sent: the thread's end drops the sender, and that is the news.
        let (alive, done) = crossbeam_channel::bounded::<()>(0);
        let (sender, busy_wait) = (commands.clone(), limits.busy_wait);
        let spawned = std::thread::Builder::new()
            .name("quic_dist".into())
            .spawn(move || {
                Driver::run(&sender, poll, busy_wait);
                drop(alive);
            });
        let thread = spawned.inspect_err(|_| {
            // It refers to what is shared, which refers to it.
            commands.turn.lock().take();
        })?;
        commands.lead.set_event_thread(thread.thread().clone());
        Ok(Endpoint {
            commands,
            ids,
            counters,
            limits,
            local,
            done,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The address that the socket is bound to.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The endpoint's figures.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Dials. With a name, the peer's certificate has to be that node's, and TLS sessions with it are
    /// kept and resumed. `peer` makes what the receiver of events knows the connection by.
    pub fn connect(
        &self,
        to: SocketAddr,
        node: Option<&str>,
        peer: impl FnOnce(&Handle) -> E::Peer,
    ) -> Result<Handle, SendError> {
        self.connect_as(None, to, node, peer)
    }

    /// The same with an identity for this connection alone, which keeps no sessions: that of a cluster
    /// that this node does not belong to.
    pub fn connect_as(
        &self,
        identity: Option<Arc<NodeIdentity>>,
        to: SocketAddr,
        node: Option<&str>,
        peer: impl FnOnce(&Handle) -> E::Peer,
    ) -> Result<Handle, SendError> {
        if self.is_closed() {
            return Err(SendError::Closed);
        }
        let id = Id(self.ids.fetch_add(1, Ordering::Relaxed));
        let shared = Shared::new(Role::Client, &self.limits);
        let handle = Handle::new(id, Role::Client, shared.clone(), self.commands.clone());
        let peer = peer(&handle);
        self.commands.dial(EndpointCommand::Connect {
            handle: handle.clone(),
            id,
            shared,
            to,
            node: node.map(str::to_owned),
            identity,
            peer,
        })?;
        Ok(handle)
    }

    /// New connections, both ways, use this identity from now on.
    pub fn set_identity(&self, identity: Arc<NodeIdentity>) {
        self.endpoint(EndpointCommand::SetIdentity(identity));
    }

    /// All nodes for which there is another cookie than this node's own: they may dial by that, and by
    /// no other. `answered`: the last question ([`Events::unknown_cookie`]) that was asked before these
    /// were looked up, or 0; who has waited for it is refused if his is not among them.
    pub fn set_others(&self, others: Vec<OtherCookie>, answered: u64) {
        self.endpoint(EndpointCommand::SetOthers(others, answered));
    }

    /// Ends every connection in order, within `linger`, and does not wait for it.
    pub fn start_close(&self, linger: Duration) {
        self.endpoint(EndpointCommand::Close(linger));
    }

    /// Waits for the event thread to end, after [`Endpoint::start_close`]. False if it takes longer
    /// than `limit`.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        let ended = matches!(
            self.done.recv_timeout(limit),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected)
        );
        if ended && let Some(thread) = self.thread.lock().take() {
            // An error means that the thread panicked, which it has logged itself.
            let _ = thread.join();
        }
        ended
    }

    /// Whether the event thread has ended.
    pub fn is_closed(&self) -> bool {
        matches!(
            self.done.try_recv(),
            Err(crossbeam_channel::TryRecvError::Disconnected)
        )
    }

    fn endpoint(&self, command: EndpointCommand<E>) {
        self.commands.command(Command::Endpoint(command));
    }
}

impl<E: Events> Drop for Endpoint<E> {
    /// The thread ends by itself soon after; it is not waited for, because destructors of a NIF run
    /// on scheduler threads.
    fn drop(&mut self) {
        self.start_close(Duration::ZERO);
    }
}
