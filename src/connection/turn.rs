//! What the event thread does with a connection in its turn: it lets it work, takes what has come of
//! that, and plans when to come by again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quiche::ConnectionId;

use super::{Connection, Happening, Path};

/// How soon a connection in use is looked at again, at the latest.
const COME_BY: Duration = Duration::from_millis(20);

/// A way that the driver is to ask the system for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteWanted {
    /// Packets have been refused there.
    Instead(Path),
    /// Discovery says that the peer is there.
    To(SocketAddr),
}

/// What has come of a connection's work, for its driver.
pub(crate) struct Turn {
    /// Oldest first.
    pub happenings: VecDeque<Happening>,
    /// See [`Connection::is_half_open`].
    pub half_open: bool,
    /// Ids that the peer will not use any more.
    pub retired: Vec<ConnectionId<'static>>,
    /// Ids that it may use from now on.
    pub new_ids: Vec<ConnectionId<'static>>,
    /// See [`Connection::has_shrunk`].
    pub has_shrunk: bool,
    /// See [`Connection::routes_wanted`].
    pub routes: Vec<RouteWanted>,
}

impl Connection {
    /// [`Connection::work`], and all that comes of it: the event thread takes it in one go.
    pub(crate) fn turn(&mut self, now: Instant) -> Turn {
        self.work(now);
        Turn {
            half_open: self.is_half_open(),
            retired: std::iter::from_fn(|| self.retired_id()).collect(),
            new_ids: self.new_ids(),
            has_shrunk: self.has_shrunk(),
            routes: self.routes_wanted(now).collect(),
            happenings: std::mem::take(&mut self.happenings),
        }
    }

    /// Gives back, empty, what [`Connection::turn`] gave: its memory serves again.
    pub(crate) fn told(&mut self, happenings: VecDeque<Happening>) {
        if self.happenings.is_empty() && happenings.is_empty() {
            self.happenings = happenings;
        }
    }

    /// The ways that are wanted, each once: what is not asked for now is not asked for again soon.
    pub(crate) fn routes_wanted(
        &mut self,
        now: Instant,
    ) -> impl Iterator<Item = RouteWanted> + use<> {
        let instead = self.lost_path(now).map(RouteWanted::Instead);
        let to = self.said_address().map(RouteWanted::To);
        instead.into_iter().chain(to)
    }

    /// When the event thread is to come by again, and it will.
    ///
    /// A connection that was in use a moment ago is looked at again soon, though nothing is due:
    /// a thread that sends in the meantime sets timers of at least 25 ms (RFC 9002, section 6.2.1)
    /// and so need not wake the event thread to tell it. Once nothing moves, nobody comes by.
    pub(crate) fn plan(&mut self, now: Instant) -> Option<Instant> {
        let soon = std::mem::take(&mut self.active).then(|| now + COME_BY);
        self.planned = [self.deadline(), soon].into_iter().flatten().min();
        self.planned
    }

    /// Whether something is due before the event thread comes by.
    pub(crate) fn is_due_earlier(&self) -> bool {
        match (self.deadline(), self.planned) {
            (Some(due), Some(planned)) => due < planned,
            (due, None) => due.is_some(),
            (None, _) => false,
        }
    }
}
