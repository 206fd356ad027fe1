//! The event thread: it waits, takes what came (commands, datagrams, deadlines), lets the
//! connections concerned work, and carries what they have to say to the socket and to [`Events`].
//! It decides nothing about a connection.

mod connections;
mod datagrams;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::{Poll, Token, Waker};
use slab::Slab;

use crate::close::CloseReason;
use crate::config::{self, Limits};
use crate::connection::{Connection, Train};
use crate::endpoint::{CommandSender, Counters, EndpointCommand, OpenError};
use crate::event::{Event, Events};
use crate::handle::{Command, Handle, Id};
use crate::identity::NodeIdentity;
use crate::layout::Role;
use crate::socket::{Batch, Socket};
use crate::table::Table;
use crate::timers::Timers;

const SOCKET: Token = Token(0);
const WAKER: Token = Token(1);

struct Entry<E: Events> {
    id: Id,
    handle: Handle,
    /// What the receiver of events knows the connection by; none before an incoming connection has
    /// completed its handshake, and after the end was told.
    peer: Option<E::Peer>,
    from: SocketAddr,
    /// The ids in the table.
    ids: Vec<quiche::ConnectionId<'static>>,
    /// It is in the list of those to serve.
    listed: bool,
    half_open: bool,
}

/// See the module's documentation.
pub(crate) struct Driver<E: Events> {
    poll: Poll,
    socket: Arc<Socket>,
    commands: Receiver<Command<EndpointCommand<E>>>,
    sender: Arc<CommandSender<E>>,
    events: E,
    limits: Limits,
    client: quiche::Config,
    server: quiche::Config,
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
    half_open: usize,
    /// The socket may have more datagrams than were read.
    readable: bool,
    /// The endpoint closes: the thread ends with its last connection, or at this time.
    closing: Option<Instant>,
}

impl<E: Events> Driver<E> {
    pub fn new(
        socket: Socket,
        identity: &NodeIdentity,
        limits: Limits,
        ids: Arc<AtomicU64>,
        counters: Arc<Counters>,
        events: E,
    ) -> Result<(Self, Arc<CommandSender<E>>), OpenError> {
        let (client, server) = configurations(&limits, identity)?;
        let poll = Poll::new()?;
        socket.watch(poll.registry(), SOCKET)?;
        let socket = Arc::new(socket);
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (sender, commands) =
            CommandSender::new(waker, Arc::downgrade(&socket), counters.clone());
        let train = Train::new(socket.max_segments());
        let driver = Driver {
            poll,
            socket,
            commands,
            sender: sender.clone(),
            events,
            limits,
            client,
            server,
            entries: Slab::new(),
            by_id: HashMap::new(),
            table: Table::default(),
            timers: Timers::default(),
            to_serve: VecDeque::new(),
            train,
            blocked: Vec::new(),
            ids,
            counters,
            half_open: 0,
            readable: true,
            closing: None,
        };
        Ok((driver, sender))
    }

    /// Runs until the endpoint is closed. A panic ends it as well, after every connection has been
    /// told: one wrong assumption must not leave processes waiting for events.
    pub fn run(mut self) {
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| self.turns()));
        // Somebody may have dialled since the last turn.
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Endpoint(EndpointCommand::Connect {
                handle, mut peer, ..
            }) = command
            {
                handle.end();
                self.events
                    .event(&mut peer, Event::Closed(CloseReason::EndpointClosed));
            }
        }
        for entry in &mut self.entries {
            entry.1.handle.end();
            entry.1.handle.shared().connection.lock().take();
            if let Some(mut peer) = entry.1.peer.take() {
                let reason = CloseReason::EndpointClosed;
                self.events.event(&mut peer, Event::Closed(reason));
            }
        }
        self.events.ended(match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("waiting for events failed: {error}")),
            Err(panic) => Some(format!("a panic: {}", panic_text(&*panic))),
        });
    }

    fn turns(&mut self) -> io::Result<()> {
        let mut poll_events = mio::Events::with_capacity(8);
        let mut batch = Batch::new();
        loop {
            let now = Instant::now();
            if self
                .closing
                .is_some_and(|at| at <= now || self.entries.is_empty())
            {
                return Ok(());
            }
            match self.poll.poll(&mut poll_events, self.wait(now)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            bump(&self.counters.wake_ups, 1);
            for event in &poll_events {
                if event.token() == SOCKET {
                    self.readable |= event.is_readable() || event.is_error();
                    if event.is_error() {
                        self.read_errors();
                    }
                    if event.is_writable() {
                        self.socket
                            .watch_room(self.poll.registry(), SOCKET, false)?;
                        for key in std::mem::take(&mut self.blocked) {
                            self.list(key);
                        }
                    }
                }
            }
            self.take_commands();
            if self.readable {
                self.receive(&mut batch);
            }
            let now = Instant::now();
            while let Some(key) = self.timers.pop(now) {
                self.list(key);
            }
            self.serve();
            if !self.blocked.is_empty() {
                self.socket.watch_room(self.poll.registry(), SOCKET, true)?;
            }
        }
    }

    /// How long nothing is to be done.
    fn wait(&self, now: Instant) -> Option<Duration> {
        if self.readable || !self.to_serve.is_empty() {
            return Some(Duration::ZERO);
        }
        [self.timers.next(), self.closing]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_duration_since(now))
    }

    fn list(&mut self, key: usize) {
        if let Some(entry) = self.entries.get_mut(key)
            && !entry.listed
        {
            entry.listed = true;
            self.to_serve.push_back(key);
        }
    }

    // Commands

    fn take_commands(&mut self) {
        self.sender.draining();
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
                mut peer,
            } => match self.dial(to) {
                Ok((quic, scid)) => {
                    let connection =
                        Connection::new(quic, Role::Client, &self.limits, shared, Instant::now());
                    self.insert(id, handle, connection, Some(peer), to, vec![scid]);
                }
                Err(reason) => {
                    handle.end();
                    self.events.event(&mut peer, Event::Closed(reason));
                }
            },
            EndpointCommand::SetIdentity(identity) => {
                match configurations(&self.limits, &identity) {
                    Ok((client, server)) => {
                        self.client = client;
                        self.server = server;
                    }
                    Err(error) => log::error!("the new identity cannot be used: {error}"),
                }
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
) -> Result<(quiche::Config, quiche::Config), OpenError> {
    Ok((
        config::quic(limits, Role::Client, identity.client_context()?)?,
        config::quic(limits, Role::Server, identity.server_context()?)?,
    ))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of unknown cause")
}

/// The event thread is the only writer.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed) + by, Relaxed);
}
