//! Which way a connection's packets go, when an address changes: this host's, the peer's, or what a
//! NAT makes of either (RFC 9000, section 9). `docs/protocol.md`, "Change of address", has the
//! whole of it.
//!
//! quiche validates paths (PATH_CHALLENGE) and keeps what belongs to each: ids, congestion window,
//! round-trip time. What is decided here is when to use which, and what quiche does not do: a
//! dialled node tells its new address by sending from it, its peer believes that when the packet
//! is authentic, and packets that were under way on a path that is left are found lost at once.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use quiche::PathEvent;

use super::mtu::BlackHole;
use super::transmit::MAX_PACKET;
use super::{Connection, Quic, State};
use crate::config::Limits;
use crate::event::Event;
use crate::layout::Role;

/// Paths that a connection can have over its life; quiche forgets none of them. A change of address
/// after that is not followed: the connection ends by `net_ticktime`, and the next one begins anew.
pub(crate) const MAX_PATHS: u64 = 32;
/// Ids that the peer has in hand, besides those that it uses: each new path takes one.
const SPARE_IDS: usize = 3;
/// What any path carries (RFC 9000, section 14). quiche looks for more on a connection's first path
/// only.
pub(super) const MIN_PACKET: usize = 1200;
/// What a PATH_CHALLENGE alone takes at most. quiche sends one whatever was sent before; who has not
/// answered gets no more than three times what came from there (RFC 9000, section 8.1).
const CHALLENGE: u64 = 64;
/// The least time between two challenges on the path in use, and two lines of the log.
const CHALLENGE_EVERY: Duration = Duration::from_millis(200);
const TELL_EVERY: Duration = Duration::from_secs(1);
/// When packets go out on behalf of a path that was left, after it was: see [`Left`].
const FAREWELLS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
];

/// Both ends of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Our address.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
}

impl Path {
    pub(super) fn of(stats: &quiche::PathStats) -> Self {
        Path {
            local: stats.local_addr,
            peer: stats.peer_addr,
        }
    }
}

/// A path that is not used any more. quiche finds its packets lost when later packets of the same
/// path are acknowledged, which never happens; of what was under way it would repeat the same two
/// packets for ever. So some more of its packets go out, on the new path; and anew on each path after
/// that one, for it may be gone before they have arrived, and quiche waits for minutes by then.
#[derive(Debug)]
struct Left {
    path: Path,
    /// When it was left, or the path after it.
    since: Instant,
    /// The last of its packets, where it may not have arrived.
    last: Vec<u8>,
    /// That one is to go out once more.
    repeats: bool,
    /// Of [`FAREWELLS`], how many are behind us.
    said: usize,
    /// One is to go out now.
    due: bool,
    /// Probe time-outs that quiche has counted: while it counts, there is something left.
    timeouts: Option<usize>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Paths {
    first: Path,
    pub active: Path,
    /// The peer has answered there.
    proved: bool,
    /// How many quiche knows.
    count: usize,
    /// That there can be no more has been logged.
    exhausted: bool,
    /// How large packets are now, and whether quiche looks for more (on the first path).
    mtu: usize,
    discovers_mtu: bool,
    hole: BlackHole,
    /// Large packets are known not to get through.
    shrunk: bool,
    /// What the owner knows, and when it was told.
    told: Path,
    told_at: Option<Instant>,
    /// When it is to be told more.
    tell_at: Option<Instant>,
    /// When the path in use, which is not valid yet, is challenged again.
    challenge_at: Option<Instant>,
    /// This address is gone, and packets leave from that one instead: of a dialled node, which may not
    /// use another path before its peer does.
    stand_in: Option<(IpAddr, IpAddr)>,
    /// Our new address, on which there is no path yet.
    wanted: Option<SocketAddr>,
    left: Vec<Left>,
}

impl Paths {
    /// Of a new connection, which has one path.
    pub fn new(quic: &Quic, limits: &Limits) -> Self {
        let nowhere = SocketAddr::from(([0; 4], 0));
        let path = quic.path_stats().next().map_or(
            Path {
                local: nowhere,
                peer: nowhere,
            },
            |stats| Path::of(&stats),
        );
        Paths {
            first: path,
            active: path,
            proved: false,
            count: 1,
            exhausted: false,
            mtu: MIN_PACKET,
            discovers_mtu: limits.path_mtu_discovery,
            hole: BlackHole::default(),
            shrunk: false,
            told: path,
            told_at: None,
            tell_at: None,
            challenge_at: None,
            stand_in: None,
            wanted: None,
            left: Vec::new(),
        }
    }

    /// How many connection ids the peer should have.
    pub fn ids(&self) -> usize {
        self.count + SPARE_IDS
    }

    /// How large a packet may be, as far as quiche does not know better.
    pub fn max_packet(&self) -> usize {
        if self.discovers_mtu && (self.active != self.first || self.hole.is_suspected()) {
            MIN_PACKET
        } else {
            MAX_PACKET
        }
    }

    /// The addresses that a packet really gets, where quiche means these.
    pub fn real(&self, mut local: SocketAddr, peer: SocketAddr) -> Path {
        if let Some((gone, instead)) = self.stand_in
            && local.ip() == gone
        {
            local.set_ip(instead);
        }
        Path { local, peer }
    }

    /// A path that was left has something to send, on the path that is in use: once somebody has
    /// answered there, for quiche does not count it as sent there (RFC 9000, section 8.1).
    pub fn farewell(&mut self) -> Option<(Path, Path, Vec<u8>)> {
        if !self.proved {
            return None;
        }
        let left = self.left.iter_mut().find(|left| left.due)?;
        left.due = false;
        let last = match std::mem::take(&mut left.repeats) {
            true => left.last.clone(),
            false => Vec::new(),
        };
        Some((left.path, self.active, last))
    }

    /// This packet has gone out on behalf of a path that was left.
    pub fn said_farewell(&mut self, path: Path, packet: &[u8]) {
        if let Some(left) = self.left.iter_mut().find(|left| left.path == path) {
            left.last = packet.to_vec();
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        let farewells = self
            .left
            .iter()
            .filter_map(|left| Some(left.since + *FAREWELLS.get(left.said)?));
        farewells.chain(self.tell_at).chain(self.challenge_at).min()
    }

    fn leave(&mut self, path: Path, last: Vec<u8>, now: Instant) {
        self.left.retain(|left| left.path != path);
        for left in &mut self.left {
            left.since = now;
            left.repeats = true;
            left.said = 0;
        }
        self.left.push(Left {
            path,
            since: now,
            last,
            repeats: true,
            said: 0,
            due: false,
            timeouts: None,
        });
    }
}

impl Connection {
    /// Whether a datagram came as all do.
    pub(super) fn is_usual(&self, from: SocketAddr, to: SocketAddr) -> bool {
        !self.search.is_under_way() && self.is_active(from, to)
    }

    pub(super) fn is_active(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let path = Path {
            local: to,
            peer: from,
        };
        self.paths.active == path
    }

    /// Looks where quiche's packets go by now, and counts them.
    pub(super) fn follow_paths(&mut self, now: Instant) {
        while let Some(event) = self.quic.path_event_next() {
            match event {
                PathEvent::Validated(local, peer) => self.validated(Path { local, peer }, now),
                PathEvent::FailedValidation(local, peer) => {
                    self.search.failed(Path { local, peer });
                }
                _ => {}
            }
        }
        if let Some(local) = self.paths.wanted.take() {
            self.move_to(local, now);
        }
        self.go_on_searching(now);
        self.observe(now);
        for left in &mut self.paths.left {
            if FAREWELLS
                .get(left.said)
                .is_some_and(|&after| left.since + after <= now)
            {
                left.said += 1;
                left.due = true;
            }
            self.urgent |= left.due && self.paths.proved;
        }
    }

    fn observe(&mut self, now: Instant) {
        let (mut received, mut sent, mut count) = (0, 0, 0);
        let mut active = None;
        let (mut answered, mut credit) = (false, false);
        for stats in self.quic.path_stats() {
            received += stats.recv as u64;
            sent += stats.sent as u64;
            count += 1;
            let path = Path::of(&stats);
            if stats.active {
                active = Some((path, stats.total_pto_count, stats.recv as u64, stats.rtt));
                answered = stats.min_rtt.is_some();
                credit = 3 * stats.recv_bytes >= stats.sent_bytes + CHALLENGE;
                self.paths.mtu = stats.pmtu;
            } else if let Some(left) = self.paths.left.iter_mut().find(|l| l.path == path) {
                let before = left.timeouts.replace(stats.total_pto_count);
                left.due |= before.is_some_and(|before| before < stats.total_pto_count);
            }
        }
        self.count_packets(received, sent);
        self.paths.count = count;
        self.warn_of_the_last_path();
        let Some((path, timeouts, heard, rtt)) = active else {
            self.paths.tell_at = None;
            self.paths.challenge_at = None;
            return;
        };
        if self.paths.hole.wants_acked(timeouts) {
            // A walk over all streams, but rarely.
            let acked = self.quic.stats().acked_bytes;
            if self.paths.hole.observe(timeouts, acked) {
                self.quic.revalidate_pmtu();
                self.paths.shrunk = true;
            }
        }
        if path != self.paths.active {
            let before = std::mem::replace(&mut self.paths.active, path);
            let last = std::mem::take(&mut self.search.last);
            self.paths.leave(before, last, now);
            self.paths.left.retain(|left| left.path != path);
            self.search.elsewhere(heard, timeouts);
            self.paths.hole.elsewhere(timeouts);
            self.paths.challenge_at = None;
            self.paths
                .stand_in
                .take_if(|(gone, _)| path.local.ip() != *gone);
            // Until it is told (or not), the event thread looks again at once.
            self.urgent = true;
        }
        self.search.observe(heard, timeouts, rtt, now);
        self.check_silence(now);
        self.paths.proved = self.quic.is_path_validated(path.local, path.peer) == Ok(true);
        self.tell_owner(path, answered && credit, now);
    }

    /// quiche takes no notice of what comes on one path more, so this is when to say it.
    fn warn_of_the_last_path(&mut self) {
        if self.paths.count < MAX_PATHS as usize || self.paths.exhausted {
            return;
        }
        self.paths.exhausted = true;
        let node = self.peer_name();
        log::warn!(
            "the connection with {} has had all the paths that there can be ({MAX_PATHS}): another \
             change of address ends it",
            node.as_deref().unwrap_or("a node not known yet"),
        );
    }

    /// Tells the owner of a path once it is valid.
    fn tell_owner(&mut self, path: Path, may_ask: bool, now: Instant) {
        self.paths.tell_at = None;
        if !self.paths.proved {
            if may_ask {
                self.challenge_again(path, now);
            } else if self.paths.challenge_at.is_some_and(|at| at <= now) {
                // Too little may be sent there: not at once again, but with what comes, or later.
                self.paths.challenge_at = Some(now + CHALLENGE_EVERY);
            }
            return;
        }
        self.paths.challenge_at = None;
        if path == self.paths.told {
            return;
        }
        if let Some(told_at) = self.paths.told_at
            && now < told_at + TELL_EVERY
        {
            self.paths.tell_at = Some(told_at + TELL_EVERY);
            return;
        }
        let from = std::mem::replace(&mut self.paths.told, path);
        self.paths.told_at = Some(now);
        self.happen(Event::Moved { from, to: path });
    }

    /// quiche does not repeat a PATH_CHALLENGE that was lost while other packets were acknowledged, and a
    /// dialled side may send little to who has not answered one. Where nothing was acknowledged yet, its
    /// timer repeats the challenge, which another one would only put off.
    fn challenge_again(&mut self, path: Path, now: Instant) {
        let at = *self.paths.challenge_at.get_or_insert(now + CHALLENGE_EVERY);
        if at <= now {
            self.paths.challenge_at = Some(now + CHALLENGE_EVERY);
            // It fails for a path that has no id, which gets one with the peer's next.
            let _ = self.quic.probe_path(path.local, path.peer);
            self.urgent = true;
        }
    }

    /// The size of the largest packets sent now.
    pub(super) fn max_packet(&self) -> usize {
        // Not quiche's `max_send_udp_payload_size`, which is what it tries.
        self.paths.mtu.min(self.paths.max_packet())
    }

    /// How long a datagram of the application's may be.
    pub(super) fn datagram_size(&self) -> usize {
        let quic = self.quic.max_send_udp_payload_size();
        let beyond = quic.saturating_sub(self.max_packet());
        let most = self.quic.dgram_max_writable_len().unwrap_or(0);
        most.saturating_sub(beyond)
    }

    /// Whether the path MTU has, perhaps, shrunk since this was last asked.
    pub(crate) fn has_shrunk(&mut self) -> bool {
        std::mem::take(&mut self.paths.shrunk)
    }

    /// Where the connection's packets go, if it can be moved.
    pub(crate) fn path(&self) -> Option<Path> {
        let alive = matches!(self.state, State::Open | State::Lingering(_));
        let Path { local, peer } = self.paths.active;
        (alive && self.quic.is_established()).then(|| self.paths.real(local, peer))
    }

    /// Our address is gone, and this is the new one.
    pub(crate) fn move_to(&mut self, local: SocketAddr, now: Instant) {
        let Path { local: old, peer } = self.paths.active;
        if old.ip() == local.ip() {
            // It is back.
            self.paths.stand_in = None;
            return self.ask_peer();
        }
        match self.role {
            Role::Server => {
                self.paths.stand_in = Some((old.ip(), local.ip()));
                self.ask_peer();
            }
            Role::Client => {
                // With a challenge beside the data: quiche goes back if nobody answers.
                let probed = self.quic.probe_path(local, peer);
                match probed.and_then(|_| self.quic.migrate(local, peer)) {
                    Ok(_) => self.observe(now),
                    // The peer's ids are used up until it has given new ones, which takes a moment.
                    Err(quiche::Error::OutOfIdentifiers) => self.paths.wanted = Some(local),
                    Err(error) => {
                        log::warn!("the connection with {peer} cannot be moved to {local}: {error}")
                    }
                }
                self.urgent = true;
            }
        }
    }

    /// Sends something that the peer answers.
    pub(crate) fn ask_peer(&mut self) {
        // It fails only where the connection has no path, that is, at its end.
        let _ = self.quic.send_ack_eliciting();
        self.urgent = true;
    }
}
