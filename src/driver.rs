//! The event thread: it waits, takes what came (commands, datagrams, deadlines), lets the
//! connections concerned work, and carries what they have to say to the socket and to [`Events`].
//! It decides nothing about a connection.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::{Interest, Poll, Token, Waker};
use slab::Slab;

use crate::close::CloseReason;
use crate::config::{self, Limits};
use crate::connection::{Connection, Happening, Train, Transmit};
use crate::endpoint::{CommandSender, Counters, EndpointCommand, OpenError};
use crate::event::{Event, Events};
use crate::handle::{Command, ConnectionCommand, Handle, Id, Shared};
use crate::identity::NodeIdentity;
use crate::ingress::{Arrival, classify};
use crate::layout::Role;
use crate::socket::{Batch, Refusal, Socket};
use crate::table::{Table, random_id};
use crate::timers::Timers;

const SOCKET: Token = Token(0);
const WAKER: Token = Token(1);

/// Receiving calls before the connections get their turn, so that a flood of datagrams does not
/// hold back what is to be sent.
const RECEIVES_PER_TURN: usize = 16;
/// Trains that one connection may send in its turn, so that it does not hold back the others.
const TRAINS_PER_TURN: usize = 32;
/// Entries of the socket's error queue per turn.
const ERRORS_PER_TURN: usize = 64;

struct Entry<E: Events> {
    id: Id,
    handle: Handle,
    connection: Connection,
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

/// A train that the kernel had no room for.
struct Unsent {
    bytes: Vec<u8>,
    transmit: Transmit,
}

/// See the module's documentation.
pub(crate) struct Driver<E: Events> {
    poll: Poll,
    socket: Socket,
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
    unsent: Option<Unsent>,
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
        mut socket: Socket,
        identity: &NodeIdentity,
        limits: Limits,
        ids: Arc<AtomicU64>,
        counters: Arc<Counters>,
        events: E,
    ) -> Result<(Self, Arc<CommandSender<E>>), OpenError> {
        let (client, server) = configurations(&limits, identity)?;
        let poll = Poll::new()?;
        poll.registry().register(
            socket.source(),
            SOCKET,
            Interest::READABLE | Interest::WRITABLE,
        )?;
        let (sender, commands) = CommandSender::new(Waker::new(poll.registry(), WAKER)?);
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
            unsent: None,
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
                    self.readable |= event.is_readable();
                    if event.is_error() {
                        self.read_errors();
                    }
                    if event.is_writable() {
                        self.retry_unsent();
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
        }
    }

    /// How long nothing is to be done.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let stuck = self.unsent.is_some();
        if self.readable || (!self.to_serve.is_empty() && !stuck) {
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
                        self.connection_command(key, command);
                        self.list(key);
                    }
                }
                Command::Endpoint(command) => self.endpoint_command(command),
            }
        }
    }

    fn connection_command(&mut self, key: usize, command: ConnectionCommand) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let connection = &mut entry.connection;
        match command {
            ConnectionCommand::ReadControl => connection.read_control(),
            ConnectionCommand::ReadData => connection.read_data(),
            // Being served is all that it takes.
            ConnectionCommand::Resume => {}
            ConnectionCommand::Control(framed) => connection.send_control(framed),
            ConnectionCommand::Data(framed) => connection.send_data(framed),
            ConnectionCommand::Tick => connection.tick(),
            ConnectionCommand::Info(reply) => {
                if let Some(info) = connection.info() {
                    // Whoever asked may have stopped waiting.
                    let _ = reply.try_send(info);
                }
            }
            ConnectionCommand::Close(closing) => connection.close(closing, Instant::now()),
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
                    self.entries[key].connection.go_away(linger, now);
                    self.list(key);
                }
            }
        }
    }

    // Connections

    fn dial(
        &mut self,
        to: SocketAddr,
    ) -> Result<(quiche::Connection, quiche::ConnectionId<'static>), CloseReason> {
        if self.closing.is_some() {
            return Err(CloseReason::EndpointClosed);
        }
        if self.entries.len() >= self.limits.max_connections {
            return Err(CloseReason::LocalClosed {
                text: "max_connections is reached".into(),
            });
        }
        let local = self
            .socket
            .local_for(to)
            .map_err(|error| CloseReason::Io(error.kind()))?;
        let failed = |error: &dyn std::fmt::Display| CloseReason::LocalClosed {
            text: error.to_string(),
        };
        let scid = random_id().map_err(|error| failed(&error))?;
        let quic = quiche::connect(None, &scid, local, to, &mut self.client)
            .map_err(|error| failed(&error))?;
        Ok((quic, scid))
    }

    fn accept(
        &mut self,
        dcid: quiche::ConnectionId<'static>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<usize> {
        if self.closing.is_some() {
            return None;
        }
        if self.entries.len() >= self.limits.max_connections
            || self.half_open >= self.limits.max_half_open
        {
            bump(&self.counters.dropped_limit, 1);
            return None;
        }
        let scid = random_id().ok()?;
        let quic = match quiche::accept(&scid, None, to, from, &mut self.server) {
            Ok(quic) => quic,
            Err(error) => {
                log::error!("a connection from {from} cannot be accepted: {error}");
                return None;
            }
        };
        let shared = Shared::new(&self.limits);
        let id = Id(self.ids.fetch_add(1, Relaxed));
        let handle = Handle::new(id, Role::Server, shared.clone(), self.sender.clone());
        let connection = Connection::new(quic, Role::Server, &self.limits, shared, Instant::now());
        // The client's own choice of id stays in use until it has learnt ours.
        Some(self.insert(id, handle, connection, None, from, vec![scid, dcid]))
    }

    fn insert(
        &mut self,
        id: Id,
        handle: Handle,
        connection: Connection,
        peer: Option<E::Peer>,
        from: SocketAddr,
        ids: Vec<quiche::ConnectionId<'static>>,
    ) -> usize {
        let half_open = peer.is_none();
        let key = self.entries.insert(Entry {
            id,
            handle,
            connection,
            peer,
            from,
            ids: Vec::new(),
            listed: false,
            half_open,
        });
        self.by_id.insert(id, key);
        for id in ids {
            self.register(key, id);
        }
        self.half_open += usize::from(half_open);
        self.count_connections();
        self.list(key);
        key
    }

    fn register(&mut self, key: usize, id: quiche::ConnectionId<'static>) {
        if self.table.insert(id.clone(), key) {
            self.entries[key].ids.push(id);
        }
    }

    fn remove(&mut self, key: usize) {
        let entry = self.entries.remove(key);
        for id in &entry.ids {
            self.table.remove(id);
        }
        self.by_id.remove(&entry.id);
        self.timers.set(key, None);
        self.half_open -= usize::from(entry.half_open);
        self.count_connections();
    }

    fn count_connections(&self) {
        self.counters
            .connections
            .store(self.entries.len() as u64, Relaxed);
        self.counters
            .half_open
            .store(self.half_open as u64, Relaxed);
    }

    // The socket

    fn receive(&mut self, batch: &mut Batch) {
        for _ in 0..RECEIVES_PER_TURN {
            let count = match self.socket.receive(batch) {
                Ok(count) => count,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.readable = false;
                        return;
                    }
                    // A pending report about an earlier packet, which recvmsg gives first.
                    _ => {
                        self.read_errors();
                        continue;
                    }
                },
            };
            bump(&self.counters.receive_calls, 1);
            for (datagram, from, to) in batch.datagrams(count) {
                bump(&self.counters.datagrams_received, 1);
                self.arrived(datagram, from, to);
            }
        }
    }

    fn arrived(&mut self, datagram: &mut [u8], from: SocketAddr, to: Option<std::net::IpAddr>) {
        let local = self.socket.local();
        let to = SocketAddr::new(to.unwrap_or(local.ip()), local.port());
        let key = match classify(datagram, &self.table) {
            Arrival::Known(key) => key,
            Arrival::Initial { dcid } => match self.accept(dcid, from, to) {
                Some(key) => key,
                None => return,
            },
            Arrival::UnknownVersion { scid, dcid } => {
                self.negotiate_version(&scid, &dcid, from, to);
                return;
            }
            Arrival::Drop(_) => {
                bump(&self.counters.dropped_strays, 1);
                return;
            }
        };
        self.entries[key].connection.receive(datagram, from, to);
        self.list(key);
    }

    fn negotiate_version(
        &mut self,
        scid: &quiche::ConnectionId<'static>,
        dcid: &quiche::ConnectionId<'static>,
        to: SocketAddr,
        from: SocketAddr,
    ) {
        let mut packet = [0; 256];
        if let Ok(length) = quiche::negotiate_version(scid, dcid, &mut packet) {
            let transmit = Transmit {
                to,
                from,
                length,
                segment: length,
                at: Instant::now(),
            };
            // Lost or not: the sender tries again.
            let _ = self.socket.send(&packet[..length], &transmit);
        }
    }

    fn read_errors(&mut self) {
        for _ in 0..ERRORS_PER_TURN {
            match self.socket.refused() {
                None => return,
                Some(Refusal::Other) => {}
                Some(Refusal::At(address)) => {
                    let now = Instant::now();
                    let keys: Vec<usize> = self
                        .entries
                        .iter()
                        .filter(|(_, entry)| entry.from == address)
                        .map(|(key, _)| key)
                        .collect();
                    for key in keys {
                        self.entries[key].connection.unreachable(now);
                        self.list(key);
                    }
                }
            }
        }
    }

    /// Sends a train; false when the kernel has no room for it.
    fn send(&mut self, bytes: &[u8], transmit: &Transmit) -> bool {
        for _ in 0..2 {
            bump(&self.counters.send_calls, 1);
            match self.socket.send(bytes, transmit) {
                Ok(()) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    // It may be about an earlier packet, which sendmsg reports first; then the
                    // second try succeeds. Otherwise the train is lost, for QUIC to repair.
                    bump(&self.counters.send_errors, 1);
                    log::debug!("sending to {} failed: {error}", transmit.to);
                    self.read_errors();
                }
            }
        }
        true
    }

    fn retry_unsent(&mut self) {
        if let Some(unsent) = self.unsent.take()
            && !self.send(&unsent.bytes, &unsent.transmit)
        {
            self.unsent = Some(unsent);
        }
    }

    // Serving connections

    fn serve(&mut self) {
        // Those that are listed meanwhile wait for the next turn.
        for _ in 0..self.to_serve.len() {
            let Some(key) = self.to_serve.pop_front() else {
                return;
            };
            if let Some(entry) = self.entries.get_mut(key) {
                entry.listed = false;
                self.serve_one(key);
            }
        }
    }

    fn serve_one(&mut self, key: usize) {
        let now = Instant::now();
        self.entries[key].connection.work(now);
        self.tell(key);
        self.exchange_ids(key);
        let sent_all = self.transmit(key, now);
        let entry = &mut self.entries[key];
        // Sending can end a connection too (quiche finds errors there), and it frees room in the
        // streams; the next turn sees to both.
        if entry.connection.is_over() {
            self.remove(key);
            return;
        }
        let deadline = entry.connection.deadline();
        self.timers.set(key, deadline);
        if !sent_all {
            self.list(key);
        }
    }

    fn tell(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        while let Some(happening) = entry.connection.happening() {
            match happening {
                Happening::Incoming => {
                    entry.peer = Some(self.events.incoming(&entry.handle, entry.from));
                }
                Happening::Stray => bump(&self.counters.dropped_strays, 1),
                Happening::Refused(reason) => self.events.refused(entry.from, &reason),
                Happening::Event(event) => {
                    let ended = matches!(event, Event::Closed(_));
                    if let Some(peer) = &mut entry.peer {
                        self.events.event(peer, event);
                    }
                    if ended {
                        entry.peer = None;
                    }
                }
            }
        }
        if entry.half_open && !entry.connection.is_half_open() {
            entry.half_open = false;
            self.half_open -= 1;
            self.count_connections();
        }
    }

    fn exchange_ids(&mut self, key: usize) {
        while let Some(id) = self.entries[key].connection.retired_id() {
            self.table.remove(&id);
            self.entries[key].ids.retain(|known| known != &id);
        }
        for id in self.entries[key].connection.new_ids() {
            self.register(key, id);
        }
    }

    /// Sends what the connection has to send; false when there may be more.
    fn transmit(&mut self, key: usize, now: Instant) -> bool {
        for _ in 0..TRAINS_PER_TURN {
            if self.unsent.is_some() {
                return false;
            }
            let connection = &mut self.entries[key].connection;
            let Some(transmit) = connection.transmit(&mut self.train, now) else {
                return true;
            };
            // The train is taken out for the call: `send` needs the rest of `self`.
            let train = std::mem::replace(&mut self.train, Train::empty());
            let sent = self.send(train.bytes(&transmit), &transmit);
            if !sent {
                self.unsent = Some(Unsent {
                    bytes: train.bytes(&transmit).to_vec(),
                    transmit,
                });
            }
            self.train = train;
        }
        false
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
