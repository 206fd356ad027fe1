//! What the event thread does, and in its place a guest ([`crate::lead`]): it takes what came (commands,
//! datagrams, deadlines), lets the connections concerned work, and carries what they have to say to the
//! socket and to [`Events`]. It decides nothing about a connection.

mod connections;
mod datagrams;
mod ending;
mod routes;
mod turns;

pub(crate) use turns::patience;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::{Poll, Registry, Token, Waker};
use slab::Slab;

use crate::addresses::Addresses;
use crate::admission::{Admission, Place};
use crate::config::{self, Limits};
use crate::connection::{Connection, Happening, Train};
use crate::endpoint::{CommandSender, Counters, EndpointCommand, OpenError};
use crate::event::{Event, Events};
use crate::handle::{Command, Handle, Id};
use crate::identity::{Choice, NodeIdentity, Tickets, Verified};
use crate::layout::Role;
use crate::sessions::Sessions;
use crate::socket::{Batch, Socket};
use crate::table::Table;
use crate::timers::Timers;
use datagrams::Left;
use turns::Failure;

const SOCKET: Token = Token(0);
const WAKER: Token = Token(1);
const ADDRESSES: Token = Token(2);

/// How long after a question about cookies ([`Events::unknown_cookie`]) the next may follow: strangers
/// cause them.
const QUESTION_EVERY: Duration = Duration::from_millis(10);

type ConnectionId = quiche::ConnectionId<'static>;

struct Entry<E: Events> {
    id: Id,
    handle: Handle,
    /// What the receiver of events knows the connection by; none before an incoming connection has
    /// completed its handshake, and after the end was told.
    peer: Option<E::Peer>,
    from: SocketAddr,
    /// The ids in the table.
    ids: Vec<ConnectionId>,
    /// It is in the list of those to serve.
    listed: bool,
    /// The TLS handshake is complete.
    up: bool,
    /// What has happened and is the event thread's to tell, and all that came after it.
    kept: VecDeque<Happening>,
    /// The place among those that are half open, while it is.
    half_open: Option<Place>,
    /// The node that was dialled, and with which identity of ours.
    dialled: Option<(String, u64)>,
}

/// See the module's documentation.
pub(crate) struct Driver<E: Events> {
    registry: Registry,
    /// None where the system does not tell of changes.
    addresses: Option<Addresses>,
    socket: Arc<Socket>,
    commands: Receiver<Command<EndpointCommand<E>>>,
    sender: Arc<CommandSender<E>>,
    events: E,
    limits: Limits,
    /// The endpoint's own.
    own: Arc<NodeIdentity>,
    /// By which cookies others may dial.
    choice: Arc<Choice>,
    /// Before that time nothing is asked about them.
    next_question: Instant,
    client: quiche::Config,
    server: quiche::Config,
    sessions: Sessions,
    /// Counts identities: a session belongs to one.
    identity: u64,
    /// How peers are verified that are dialled, and that dial.
    verified: (Verified, Verified),
    tickets: Tickets,
    /// The epoch of the key that the server's tickets are sealed with.
    ticket_epoch: Option<u64>,
    entries: Slab<Entry<E>>,
    by_id: HashMap<Id, usize>,
    table: Table,
    timers: Timers,
    to_serve: VecDeque<usize>,
    train: Train,
    /// Connections that the system had no room for.
    blocked: Vec<usize>,
    ids: Arc<AtomicU64>,
    counters: Arc<Counters>,
    admission: Admission,
    batch: Batch,
    /// The socket may have more datagrams than were read.
    readable: bool,
    /// Bytes of datagrams received.
    received: usize,
    /// This turn is a guest's.
    guest: bool,
    /// Datagrams of handshakes, which a guest has left for the event thread: those of one turn at most.
    left: Vec<Left>,
    /// A command that a guest has left for it; those after it are still in the channel.
    left_command: Option<EndpointCommand<E>>,
    /// What has gone wrong in a guest's turn.
    failed: Option<Failure>,
    /// The endpoint closes: the thread ends with its last connection, or at this time.
    closing: Option<Instant>,
}

impl<E: Events> Driver<E> {
    /// Makes a driver, for whoever takes the turns, and what the event thread waits with.
    pub fn install(
        socket: Socket,
        identity: Arc<NodeIdentity>,
        limits: Limits,
        ids: Arc<AtomicU64>,
        counters: Arc<Counters>,
        events: E,
    ) -> Result<(Arc<CommandSender<E>>, Poll), OpenError> {
        let choice = Arc::new(Choice::default());
        choice.set_own(&identity)?;
        let (client, server) = configurations(&limits, &identity, &choice)?;
        let admission = Admission::new(&limits, Instant::now()).map_err(io::Error::other)?;
        let poll = Poll::new()?;
        socket.watch(poll.registry(), SOCKET)?;
        let addresses = Addresses::watch(poll.registry(), ADDRESSES);
        if let Err(error) = &addresses {
            log::info!("changes of addresses are noticed late: {error}");
        }
        let socket = Arc::new(socket);
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (sender, commands) =
            CommandSender::new(waker, Arc::downgrade(&socket), counters.clone());
        let driver = Driver {
            registry: poll.registry().try_clone()?,
            addresses: addresses.ok(),
            socket,
            commands,
            sender: sender.clone(),
            events,
            limits,
            choice,
            next_question: Instant::now(),
            client,
            server,
            sessions: Sessions::default(),
            identity: 0,
            verified: verified(&identity),
            tickets: identity.tickets()?,
            own: identity,
            // Before the first ticket: BoringSSL's own key would be replaced when it likes.
            ticket_epoch: None,
            entries: Slab::new(),
            by_id: HashMap::new(),
            table: Table::default(),
            timers: Timers::default(),
            to_serve: VecDeque::new(),
            train: Train::default(),
            blocked: Vec::new(),
            ids,
            counters,
            admission,
            batch: Batch::new(),
            readable: true,
            received: 0,
            guest: false,
            left: Vec::new(),
            left_command: None,
            failed: None,
            closing: None,
        };
        *sender.turn.lock() = Some(Box::new(driver));
        Ok((sender, poll))
    }

    fn list(&mut self, key: usize) {
        if let Some(entry) = self.entries.get_mut(key)
            && !entry.listed
        {
            entry.listed = true;
            self.to_serve.push_back(key);
        }
    }

    /// Asks for the authority that somebody has called.
    fn ask(&mut self, now: Instant) {
        if !self.choice.has_question() || now < self.next_question {
            return;
        }
        self.next_question = now + QUESTION_EVERY;
        let question = self.choice.question();
        if !self.events.unknown_cookie(question) {
            self.choice.give_up(question);
            self.go_on();
        }
    }

    /// Who was held may be known now, or will not be.
    fn go_on(&mut self) {
        let incoming = self.entries.iter().filter(|(_, e)| e.half_open.is_some());
        let keys: Vec<usize> = incoming.map(|(key, _)| key).collect();
        for key in keys {
            self.list(key);
        }
    }

    // Commands

    fn take_commands(&mut self) {
        self.sender.draining();
        if let Some(command) = self.left_command.take() {
            self.endpoint_command(command);
        }
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Connection(id, command) => {
                    if let Some(&key) = self.by_id.get(&id) {
                        let now = Instant::now();
                        self.with(key, |connection| connection.command(command, now));
                        let commands = &self.entries[key].handle.shared().commands;
                        commands.fetch_sub(1, Release);
                        self.list(key);
                    }
                }
                Command::Endpoint(command) if self.guest => {
                    self.left_command = Some(command);
                    return self.sender.still_notified();
                }
                Command::Endpoint(command) => self.endpoint_command(command),
            }
        }
    }

    fn endpoint_command(&mut self, command: EndpointCommand<E>) {
        match command {
            EndpointCommand::Connect {
                handle,
                id,
                shared,
                to,
                node,
                identity,
                mut peer,
            } => match self.dial(to, identity.as_deref()) {
                Ok((quic, scid)) => {
                    let now = Instant::now();
                    let mut connection =
                        Connection::new(quic, Role::Client, &self.limits, shared, now);
                    let of_ours = identity.is_none();
                    connection.set_verified(match &identity {
                        Some(identity) => identity.verifies(Role::Client),
                        None => self.verified.0,
                    });
                    if let Some(node) = &node {
                        let session = of_ours.then(|| self.sessions.of(node, now)).flatten();
                        connection.dials(node, session);
                    }
                    let key = self.insert(id, handle, connection, Some(peer), to, vec![scid]);
                    self.entries[key].dialled =
                        node.filter(|_| of_ours).map(|node| (node, self.identity));
                }
                Err(reason) => {
                    handle.end();
                    self.events.event(&mut peer, Event::Closed(reason));
                }
            },
            EndpointCommand::SetIdentity(identity) => {
                let configurations = configurations(&self.limits, &identity, &self.choice);
                let set = configurations.and_then(|all| {
                    let tickets = identity.tickets()?;
                    self.choice.set_own(&identity)?;
                    Ok((all, tickets))
                });
                match set {
                    Ok(((client, server), tickets)) => {
                        self.client = client;
                        self.server = server;
                        self.tickets = tickets;
                        self.ticket_epoch = None;
                        self.identity += 1;
                        self.verified = verified(&identity);
                        self.sessions = Sessions::default();
                        self.own = identity;
                    }
                    Err(error) => log::error!("the new identity cannot be used: {error}"),
                }
            }
            EndpointCommand::SetOthers(others, answered) => {
                if let Err(error) = self.choice.set_others(others, answered) {
                    log::error!("the cookies for other nodes cannot be used: {error}");
                    self.choice.give_up(answered);
                }
                self.go_on();
            }
            EndpointCommand::Close(linger) => {
                let now = Instant::now();
                let at = now + linger;
                self.closing = Some(self.closing.map_or(at, |before| before.min(at)));
                let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
                for key in keys {
                    self.with(key, |connection| connection.go_away(linger, now));
                    self.list(key);
                }
            }
        }
    }
}

fn configurations(
    limits: &Limits,
    identity: &NodeIdentity,
    choice: &Arc<Choice>,
) -> Result<(quiche::Config, quiche::Config), OpenError> {
    Ok((
        config::quic(limits, Role::Client, identity.client_context()?)?,
        config::quic(limits, Role::Server, identity.server_context_or(choice)?)?,
    ))
}

fn verified(identity: &NodeIdentity) -> (Verified, Verified) {
    (
        identity.verifies(Role::Client),
        identity.verifies(Role::Server),
    )
}

/// Several threads count: the event thread without a lock while it waits, whoever takes a turn, who sends at once.
fn bump(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}
