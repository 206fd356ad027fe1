//! One connection: quiche's state machine, and around it what makes it a carrier: the life of the
//! connection from handshake to end (`end`), what is read from its streams (`inbound`) and written
//! to them (`outbound`), and its packets (`transmit`).
//!
//! It takes datagrams, commands and instants, and gives back events and datagrams. It has no
//! socket, no thread and no clock (quiche reads the clock for its own timers; ours take `now`).

mod departing;
mod early;
mod end;
mod flight;
pub(crate) mod hello;
mod in_the_way;
mod inbound;
mod mtu;
pub(crate) mod notice;
mod outbound;
mod paths;
mod peer;
mod refusals;
mod search;
#[cfg(test)]
mod tests;
mod transmit;
mod turn;
mod unproved;
mod user_streams;

pub(crate) use paths::MAX_PATHS;
pub use paths::Path;
pub(crate) use transmit::Network;
pub use transmit::{Sent, Train, Transmit};
pub(crate) use turn::RouteWanted;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quiche::{ConnectionId, RecvInfo};

use crate::close::{CloseReason, code};
use crate::config::Limits;
use crate::event::Event;
use crate::handle::{ConnectionCommand, ConnectionInfo, Shared};
use crate::layout::Role;
use crate::packets::Allocate;
use crate::sessions::Session;
use crate::table::random_id;
use end::Suspicion;
pub(crate) use flight::Held;
use flight::{Flight, Pieces};
use inbound::Inbound;
use outbound::Outbound;
use paths::Paths;
use peer::Peer;
use refusals::Refusals;
use search::Search;
use unproved::Unproved;
use user_streams::UserStreams;

/// Where a connection stands in its life.
#[derive(Debug)]
enum State {
    /// The TLS handshake goes on, until the deadline.
    Handshaking(Instant),
    /// Dialled by the peer, complete, and waiting for an owner until the deadline.
    Unclaimed(Instant),
    /// In use.
    Open,
    /// Our side is done: what is queued is still sent, until the deadline.
    Lingering(Instant),
    /// The reason was reported; quiche may still have packets to send.
    Ended,
}

/// quiche's connection, with send buffers that are not copied.
pub(crate) type Quic = quiche::Connection<Pieces>;

/// What a handshake may take in, in bytes: some flights of long certificate chains, some of them lost.
/// Handshake data that arrives out of order is kept, and each byte of it may come as a frame of its
/// own, which costs 25 times what it took to send. Packets with a short header are not the handshake's
/// (RFC 9000, section 17.3), and nothing of them is kept before it is complete: a peer may send all
/// that its congestion window allows right behind the handshake's last packet.
const HANDSHAKE_BYTES: usize = 64 << 10;

/// How long an ended connection is kept at most.
const FORGET_AFTER: Duration = Duration::from_secs(3);

/// Something that happened to a connection, for its driver.
#[derive(Debug)]
pub enum Happening {
    /// A dialled connection has completed its handshake ([`crate::Events::incoming`]).
    Incoming,
    /// A dialled connection failed before that ([`crate::Events::refused`]).
    Refused(CloseReason),
    /// What was taken for a connection was none: nothing of it could be authenticated.
    Stray,
    /// The peer may be met again with this TLS session, for as long as its certificate is valid.
    Session(Session, Duration),
    /// For the connection's owner.
    Event(Event),
}

/// See the module's documentation.
pub struct Connection {
    quic: Quic,
    role: Role,
    state: State,
    inbound: Inbound,
    outbound: Outbound,
    user: UserStreams,
    paths: Paths,
    flight: Flight,
    search: Search,
    refusals: Refusals,
    shared: Arc<Shared>,
    happenings: VecDeque<Happening>,
    peer: Peer,
    suspicion: Option<Suspicion>,
    /// A packet that quiche made and that fits no GSO train with those before it.
    held: Option<(Vec<u8>, quiche::SendInfo)>,
    /// A train that the operating system had no room for.
    unsent: Option<(Vec<u8>, Transmit)>,
    /// What is to be sent does not wait ([`Connection::can_wait`]): somebody asked for it, a timer
    /// was due, or the last turn's share was not all.
    urgent: bool,
    /// Datagrams that came since anything was sent, and until when they may go unanswered; none
    /// of what may wait ([`Connection::can_wait`]).
    unanswered: usize,
    /// Bytes that came in the handshake.
    handshake_bytes: usize,
    /// The peer has dialled, and may not be where it says; none once that is proved.
    unproved: Option<Unproved>,
    answer_at: Option<Instant>,
    /// When streams that may be in the way of others are put behind them.
    clear_at: Option<Instant>,
    /// Something was sent or received since the event thread made its plan.
    active: bool,
    /// There is more to read than one turn's share.
    again: bool,
    /// When the event thread comes by at the latest.
    planned: Option<Instant>,
    handshake_timeout: Duration,
    linger: Duration,
    /// When an ended connection is forgotten though quiche has not closed it.
    forget: Option<Instant>,
    forgotten: bool,
}

impl Connection {
    /// A connection around a new quiche connection, which must not have sent or received anything.
    pub(crate) fn new(
        quic: Quic,
        role: Role,
        limits: &Limits,
        shared: Arc<Shared>,
        now: Instant,
    ) -> Self {
        Connection {
            role,
            state: State::Handshaking(now + limits.handshake_timeout),
            inbound: Inbound::new(role, limits),
            outbound: Outbound::new(role, limits),
            user: UserStreams::new(limits),
            paths: Paths::new(&quic, limits),
            search: Search::default(),
            refusals: Refusals::new(now),
            flight: Flight::default(),
            quic,
            shared,
            happenings: VecDeque::new(),
            peer: Peer::new(),
            suspicion: None,
            held: None,
            unsent: None,
            urgent: false,
            unanswered: 0,
            handshake_bytes: 0,
            unproved: (role == Role::Server).then(Unproved::default),
            answer_at: None,
            clear_at: None,
            active: false,
            again: false,
            planned: None,
            handshake_timeout: limits.handshake_timeout,
            linger: limits.linger,
            forget: None,
            forgotten: false,
        }
    }

    /// The peer is where it says: it has answered a Retry packet, or what was sent to it there.
    pub(crate) fn address_is_proved(&mut self) {
        self.unproved = None;
    }

    /// Large packets are to lie in memory of this kind.
    pub(crate) fn allocate_with(&mut self, allocate: Allocate) {
        self.inbound.allocate = allocate;
    }

    /// Takes a datagram from the network. Whatever it holds, what goes wrong is this connection's
    /// end and nobody else's.
    pub fn receive(&mut self, datagram: &mut [u8], from: SocketAddr, to: SocketAddr) {
        if self.is_too_early() {
            return;
        }
        self.active = true;
        self.unanswered += usize::from(datagram.len() > transmit::BARE_ACK);
        let long_header = datagram.first().is_some_and(|first| first & 0x80 != 0);
        if long_header && matches!(self.state, State::Handshaking(_)) {
            self.handshake_bytes += datagram.len();
            if self.handshake_bytes > HANDSHAKE_BYTES {
                return self.break_off(code::LIMIT, "too much in the handshake");
            }
        }
        let info = RecvInfo { from, to };
        // An error has ended the connection inside quiche; `work` finds it there, with its code.
        if self.unproved.is_some() && self.is_active(from, to) {
            self.receive_unproved(datagram, info);
        } else if self.is_usual(from, to) {
            let _ = self.quic.recv(datagram, info);
        } else if self.is_active(from, to) {
            self.receive_in_place(datagram, info);
        } else {
            self.receive_astray(datagram, info);
        }
    }

    fn receive_unproved(&mut self, datagram: &mut [u8], info: RecvInfo) {
        if let Some(unproved) = &mut self.unproved {
            unproved.received(datagram.len());
        }
        let packets = unproved::until_handshake(datagram);
        let before = self.quic.stats().recv;
        let _ = self.quic.recv(datagram, info);
        if packets.is_some_and(|packets| self.quic.stats().recv >= before + packets) {
            self.address_is_proved();
        }
    }

    /// Moves everything on that can move: to be called after datagrams, commands and deadlines,
    /// and before [`Connection::transmit`].
    pub(crate) fn work(&mut self, now: Instant) {
        if self.quic.timeout_instant().is_some_and(|at| at <= now) {
            self.quic.on_timeout();
            self.urgent = true;
        }
        self.follow_paths(now);
        self.shared.streams.served();
        self.learn_credit();
        self.check_established(now);
        match self.state {
            State::Open => {
                self.look_for_session();
                self.read();
            }
            State::Lingering(_) => self.discard(),
            _ => {}
        }
        if matches!(self.state, State::Open | State::Lingering(_)) {
            self.write(now);
        }
        self.check_suspicion(now);
        self.check_deadline(now);
        self.check_end();
        // Where nothing may be sent any more (RFC 9000, section 8.1), CONNECTION_CLOSE cannot leave,
        // and quiche would wait for that for ever.
        if matches!(self.state, State::Ended) {
            let at = *self.forget.get_or_insert(now + FORGET_AFTER);
            self.forgotten = at <= now;
        }
    }

    fn count_packets(&self, received: u64, sent: u64) {
        let counters = &self.shared;
        counters.packets_received.store(received, Ordering::Relaxed);
        counters.packets_sent.store(sent, Ordering::Relaxed);
    }

    fn check_established(&mut self, now: Instant) {
        if !matches!(self.state, State::Handshaking(_)) || !self.quic.is_established() {
            return;
        }
        if let Err(reason) = self.judge_peer() {
            self.refuse_peer(reason);
            return;
        }
        match self.role {
            Role::Client => {
                self.state = State::Open;
                self.happen(Event::Connected);
            }
            Role::Server => {
                self.address_is_proved();
                self.state = State::Unclaimed(now + self.handshake_timeout);
                self.happenings.push_back(Happening::Incoming);
            }
        }
    }

    /// Carries out what another thread asks for.
    pub(crate) fn command(&mut self, command: ConnectionCommand, now: Instant) {
        self.urgent = true;
        match command {
            ConnectionCommand::ReadControl => self.read_control(),
            ConnectionCommand::ReadData => self.read_data(),
            // Being served is all that it takes.
            ConnectionCommand::Resume => {}
            ConnectionCommand::Control(framed) => self.send_control(framed),
            ConnectionCommand::Data(batch) => self.send_data(batch),
            ConnectionCommand::Tick => self.tick(),
            ConnectionCommand::Seek(peer) => self.said_to_be_at(peer),
            ConnectionCommand::Info(reply) => {
                if let Some(info) = self.info() {
                    // Whoever asked may have stopped waiting.
                    let _ = reply.try_send(info);
                }
            }
            ConnectionCommand::Close(closing) => self.close(closing, now),
            ConnectionCommand::Panic(text) => panic!("{text}"),
        }
    }

    /// Somebody owns the connection: the control stream is read from now on.
    pub(crate) fn read_control(&mut self) {
        self.inbound.reads_control = true;
        if matches!(self.state, State::Unclaimed(_)) {
            self.state = State::Open;
        }
    }

    /// Somebody takes data: the data streams are read from now on.
    pub(crate) fn read_data(&mut self) {
        self.inbound.reads_data = true;
    }

    /// When [`Connection::work`] wants to be called again.
    pub fn deadline(&self) -> Option<Instant> {
        let quic = self.quic.timeout_instant();
        let own = match self.state {
            State::Handshaking(at) | State::Unclaimed(at) | State::Lingering(at) => Some(at),
            State::Open => None,
            // Nothing else is seen to any more, so what else was due would stay due.
            State::Ended => return self.forget.into_iter().chain(quic).min(),
        };
        [
            own,
            self.suspicion.as_ref().map(Suspicion::deadline),
            self.answer_at,
            self.paths.deadline(),
            self.search.deadline(),
            self.refusals.deadline(),
            self.way_deadline(),
            quic,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Takes what has happened, oldest first.
    pub fn happening(&mut self) -> Option<Happening> {
        self.happenings.pop_front()
    }

    fn happen(&mut self, event: Event) {
        self.happenings.push_back(Happening::Event(event));
    }

    /// Whether the connection counts as half open: its peer has not proved who it is. One that was
    /// refused counts until it is forgotten, or refusals could fill the table.
    pub fn is_half_open(&self) -> bool {
        !self.quic.is_established()
    }

    /// Whether the connection can be forgotten. In the end it is, whatever has not left.
    pub fn is_over(&self) -> bool {
        let all_left = self.held.is_none() && self.unsent.is_none();
        matches!(self.state, State::Ended) && (self.forgotten || self.quic.is_closed() && all_left)
    }

    /// Makes new connection ids for the peer to use, as many as it may need, each paired with nothing
    /// that an observer could link (RFC 9000, section 5.1.1).
    pub fn new_ids(&mut self) -> Vec<ConnectionId<'static>> {
        let mut ids = Vec::new();
        if !matches!(self.state, State::Open) {
            return ids;
        }
        while self.quic.active_scids() < self.paths.ids() && self.quic.scids_left() > 0 {
            let mut token = [0; 16];
            let (Ok(id), Ok(())) = (random_id(), boring::rand::rand_bytes(&mut token)) else {
                break;
            };
            if self
                .quic
                .new_scid(&id, u128::from_be_bytes(token), false)
                .is_err()
            {
                break;
            }
            ids.push(id);
        }
        self.urgent |= !ids.is_empty();
        ids
    }

    /// Takes an id that the peer will not use any more.
    pub fn retired_id(&mut self) -> Option<ConnectionId<'static>> {
        self.quic.retired_scid_next()
    }

    /// The node that the peer's certificate names.
    pub fn peer_name(&self) -> Option<String> {
        let certificate = self.shared.certificate.get()?;
        certificate.node().map(str::to_owned)
    }

    /// The figures that an operator may ask for.
    pub(crate) fn info(&mut self) -> Option<ConnectionInfo> {
        let path = self.quic.path_stats().max_by_key(|path| path.active)?;
        let stats = self.quic.stats();
        let peer_name = self.peer_name();
        let resumed = self.quic.is_resumed();
        let mtu = self.max_packet();
        let ssl: &mut boring::ssl::SslRef = self.quic.as_mut();
        Some(ConnectionInfo {
            peer: path.peer_addr,
            local: path.local_addr,
            role: self.role,
            tls_version: ssl.version_str().to_owned(),
            cipher: ssl
                .current_cipher()
                .map_or_else(String::new, |cipher| cipher.name().to_owned()),
            peer_name,
            resumed,
            verified: self.peer.verified,
            mtu,
            srtt: path.rtt,
            rttvar: path.rttvar,
            min_rtt: path.min_rtt,
            cwnd: path.cwnd,
            packets_sent: stats.sent as u64,
            packets_received: stats.recv as u64,
            packets_lost: stats.lost as u64,
            bytes_sent: stats.sent_bytes,
            bytes_received: stats.recv_bytes,
            send_queue: self.shared.send.level(),
            unconsumed: self.shared.receive.level(),
            paths: stats.paths_count,
            streams_out: self.outbound.streams(),
            streams_in: self.inbound.peer_streams(),
            datagram_size: self.datagram_size(),
            datagrams_sent: stats.dgram_sent as u64,
            datagrams_received: stats.dgram_recv as u64,
            datagrams_lost: path.dgram_lost as u64,
            datagrams_dropped: self.shared.streams.datagrams_lost()
                + self.datagrams_missed(stats.dgram_recv as u64),
        })
    }
}
