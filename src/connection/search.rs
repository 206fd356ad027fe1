//! Where the peer is, when it is not where it was: an authentic packet comes from an address that it was
//! not known by, or nothing comes any more and whoever dialled asks discovery again.
//!
//! The dialling side alone looks for its peer, at one address at a time, with a PATH_CHALLENGE; what
//! moves it is an answer there and silence where the peer was. The dialled side follows its peer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quiche::RecvInfo;

use super::paths::MIN_PACKET;
use super::{Connection, Path, State};
use crate::event::Event;
use crate::layout::Role;

/// The least time between two addresses that the peer is looked for at.
const SEARCH_EVERY: Duration = Duration::from_millis(250);
/// How long a peer that has not moved has to answer where it was, at least: well over the
/// acknowledgement delay (25 ms).
const MIN_ANSWER_TIME: Duration = Duration::from_millis(100);
/// How long after a probe time-out nothing may come until discovery is asked, at least: a machine that
/// is busy has hiccups.
const MIN_SILENCE: Duration = Duration::from_millis(500);
/// From the first asking to the second; it doubles up to the most.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MOST: Duration = Duration::from_secs(5);

/// Where the peer seems to be.
#[derive(Debug)]
struct Candidate {
    path: Path,
    /// Somebody with its keys has answered there; then it has moved, unless it is heard until this time
    /// where it was before.
    settled: Option<Instant>,
}

/// Nothing is heard, though something was asked.
#[derive(Debug)]
struct Silence {
    ask_at: Instant,
    /// How often discovery has been asked.
    asked: u32,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Paths that nobody answered on, once.
    failed: Vec<Path>,
    /// An authentic packet came from where the peer is not known to be.
    strange: Option<Path>,
    candidate: Option<Candidate>,
    searched_at: Option<Instant>,
    /// Packets that had come on the path in use, and its probe time-outs, when something was last heard.
    heard: u64,
    timeouts: usize,
    silence: Option<Silence>,
    /// The last packet that was sent since where nothing is heard.
    pub last: Vec<u8>,
    /// Discovery says that the peer is here.
    said: Option<SocketAddr>,
}

impl Search {
    /// Whether there is an address at which the peer is looked for.
    pub fn is_under_way(&self) -> bool {
        self.candidate.is_some()
    }

    /// Whether nothing is heard.
    pub fn is_silent(&self) -> bool {
        self.silence.is_some()
    }

    /// Nobody answers there.
    pub fn failed(&mut self, path: Path) {
        self.failed.push(path);
        self.candidate.take_if(|candidate| candidate.path == path);
    }

    /// Packets go another way, which has its own counts.
    pub fn elsewhere(&mut self, heard: u64, timeouts: usize) {
        self.candidate = None;
        self.silence = None;
        self.heard = heard;
        self.timeouts = timeouts;
    }

    /// Takes quiche's counts of packets and of probe time-outs of the path in use.
    pub fn observe(&mut self, heard: u64, timeouts: usize, rtt: Duration, now: Instant) {
        if heard > self.heard {
            self.heard = heard;
            self.timeouts = timeouts;
            self.silence = None;
            self.last = Vec::new();
        } else if timeouts > self.timeouts && self.silence.is_none() {
            self.silence = Some(Silence {
                ask_at: now + MIN_SILENCE.max(2 * rtt),
                asked: 0,
            });
        }
    }

    /// Whether discovery is to be asked, and how often it has been before.
    fn is_to_ask(&mut self, now: Instant) -> Option<u32> {
        let silence = self.silence.as_mut().filter(|s| s.ask_at <= now)?;
        let asked = silence.asked;
        let wait = ASK_AGAIN.saturating_mul(1 << asked.min(8));
        silence.ask_at = now + wait.min(ASK_AGAIN_MOST);
        silence.asked += 1;
        Some(asked)
    }

    pub fn deadline(&self) -> Option<Instant> {
        let settled = self.candidate.as_ref().and_then(|c| c.settled);
        let ask = self.silence.as_ref().map(|silence| silence.ask_at);
        settled.into_iter().chain(ask).min()
    }
}

impl Connection {
    /// Looks where it is time to.
    pub(super) fn go_on_searching(&mut self, now: Instant) {
        if let Some(path) = self.search.strange.take() {
            self.search(path, true, now);
        }
        self.settle_candidate(now);
    }

    /// Tells the owner that nothing is heard, so that it asks discovery; who was dialled cannot.
    pub(super) fn check_silence(&mut self, now: Instant) {
        if let Some(asked) = self.search.is_to_ask(now)
            && self.role == Role::Client
            && matches!(self.state, State::Open)
        {
            self.happen(Event::Silent { asked });
        }
    }

    /// Discovery says that the peer is at this address.
    pub(super) fn said_to_be_at(&mut self, peer: SocketAddr) {
        if self.role == Role::Client && self.path().is_some_and(|path| path.peer != peer) {
            self.search.said = Some(peer);
        }
    }

    /// The address that discovery has said, to which there must be a way before it is looked at.
    pub(super) fn said_address(&mut self) -> Option<SocketAddr> {
        self.search.said.take()
    }

    /// The way there.
    pub(crate) fn look_at(&mut self, path: Path, now: Instant) {
        if self.path().is_some() {
            self.search(path, false, now);
            self.urgent = true;
        }
    }

    /// Takes a datagram that did not come on the active path.
    pub(super) fn receive_astray(&mut self, datagram: &mut [u8], info: RecvInfo) {
        let RecvInfo { from, to } = info;
        let path = Path {
            local: to,
            peer: from,
        };
        let is_known = self.quic.path_stats().any(|stats| Path::of(&stats) == path);
        if self.role == Role::Server || !self.quic.is_established() {
            if !self.has_failed(path) || self.try_again(path, datagram) {
                let _ = self.quic.recv(datagram, info);
            }
            return;
        }
        // A client's QUIC drops what comes from nowhere that it knows. As if it came the usual way it is
        // decrypted, so that we know whether the peer made it; where it came from is believed after a
        // PATH_CHALLENGE.
        let before = self.received();
        let Path { local, peer } = if is_known { path } else { self.paths.active };
        let usual = RecvInfo {
            from: peer,
            to: local,
        };
        let _ = self.quic.recv(datagram, usual);
        if self.received() > before {
            self.search.strange = Some(path);
        }
    }

    /// quiche tells of a path's first failure only, and does not export the type of a path's state.
    pub(super) fn has_failed(&self, path: Path) -> bool {
        self.search.failed.contains(&path)
            && self.quic.path_stats().any(|stats| {
                Path::of(&stats) == path && format!("{:?}", stats.validation_state) == "Failed"
            })
    }

    /// Sends a PATH_CHALLENGE where one has not been answered, before anything that comes from there is
    /// read: after two packets with none in between, quiche takes the connection for one without a path,
    /// and ends it. False: it cannot be sent, and what has come is better lost.
    fn try_again(&mut self, path: Path, datagram: &[u8]) -> bool {
        let Path { local, peer } = path;
        if self.held.is_some() || self.quic.probe_path(local, peer).is_err() {
            return false;
        }
        // What may be sent there depends on what has come from there (RFC 9000, section 8.1): quiche
        // counts that before it reads it, so it gets to see it unreadable first.
        let mut unreadable = datagram.to_vec();
        if let Some(last) = unreadable.last_mut() {
            *last ^= 1;
        }
        let (from, to) = (peer, local);
        let _ = self.quic.recv(&mut unreadable, RecvInfo { from, to });
        let mut packet = vec![0; MIN_PACKET];
        let sent = self.quic.send_on_path(&mut packet, Some(local), Some(peer));
        let Ok((size, info)) = sent else {
            return false;
        };
        packet.truncate(size);
        self.held = Some((packet, info));
        self.urgent = true;
        true
    }

    /// The same of one that came on the active path while the peer is looked for elsewhere.
    pub(super) fn receive_in_place(&mut self, datagram: &mut [u8], info: RecvInfo) {
        let before = self.received();
        let _ = self.quic.recv(datagram, info);
        if self.received() > before {
            self.search.candidate = None;
        }
    }

    fn received(&self) -> usize {
        self.quic.path_stats().map(|path| path.recv).sum()
    }

    /// The peer may be at an address that it was not known by: it has sent from there (`came`), or
    /// discovery says so.
    fn search(&mut self, path: Path, came: bool, now: Instant) {
        // Of an answer that comes once more quiche says nothing. That there was one long ago says
        // nothing of now: something must have come.
        let answered = came && self.quic.is_path_validated(path.local, path.peer) == Ok(true);
        let known = self.search.candidate.as_ref().filter(|c| c.path == path);
        if answered && known.is_some_and(|c| c.settled.is_none()) {
            return self.validated(path, now);
        }
        let soon = self
            .search
            .searched_at
            .is_some_and(|at| now < at + SEARCH_EVERY);
        // Of a second failure quiche says nothing either.
        if soon || known.is_some() && !self.has_failed(path) {
            return;
        }
        self.search.searched_at = Some(now);
        // Without an id to spare nothing comes of it; the peer's next packet is another chance.
        if self.quic.probe_path(path.local, path.peer).is_err() {
            return;
        }
        self.search.candidate = Some(Candidate {
            path,
            settled: None,
        });
        if answered {
            self.validated(path, now);
        }
        // Where it was, it is asked as well.
        self.ask_peer();
    }

    /// Somebody who has the peer's keys has answered there. It may be somebody between us who sends
    /// our packets on from an address of his own.
    pub(super) fn validated(&mut self, path: Path, now: Instant) {
        let stats = self.quic.path_stats().find(|stats| stats.active);
        let time = stats.map_or(MIN_ANSWER_TIME, |stats| MIN_ANSWER_TIME.max(2 * stats.rtt));
        if let Some(candidate) = &mut self.search.candidate
            && candidate.path == path
        {
            candidate.settled = Some(now + time);
        }
    }

    fn settle_candidate(&mut self, now: Instant) {
        let is_settled = |c: &mut Candidate| c.settled.is_some_and(|at| at <= now);
        if let Some(Candidate { path, .. }) = self.search.candidate.take_if(is_settled) {
            // An error leaves things as they are; the peer goes on sending from there.
            let _ = self.quic.migrate(path.local, path.peer);
            self.urgent = true;
        }
    }
}
