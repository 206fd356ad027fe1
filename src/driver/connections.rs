//! The connections of an endpoint: how they come and go, and what the event thread does for one in
//! its turn.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use super::{ConnectionId, Driver, Entry, bump};
use crate::close::CloseReason;
use crate::config;
use crate::connection::{Connection, Happening, Quic, RouteWanted, Sent};
use crate::event::{Event, Events};
use crate::handle::{Handle, Id, Shared};
use crate::identity::{NodeIdentity, epoch};
use crate::layout::Role;
use crate::table::random_id;

impl<E: Events> Driver<E> {
    /// Does something with a connection that nobody else works on meanwhile.
    pub(super) fn with<T>(
        &self,
        key: usize,
        action: impl FnOnce(&mut Connection) -> T,
    ) -> Option<T> {
        let entry = self.entries.get(key)?;
        entry.handle.shared().connection.lock().as_mut().map(action)
    }

    pub(super) fn dial(
        &mut self,
        to: SocketAddr,
        identity: Option<&NodeIdentity>,
    ) -> Result<(Quic, ConnectionId), CloseReason> {
        if self.closing.is_some() {
            return Err(CloseReason::EndpointClosed);
        }
        if self.entries.len() >= self.limits.max_connections {
            return Err(CloseReason::LocalClosed {
                text: "max_connections is reached".into(),
            });
        }
        let local = self.socket.local_for(to);
        let local = local.map_err(|error| CloseReason::io(&error))?;
        let failed = |error: &dyn std::fmt::Display| CloseReason::LocalClosed {
            text: error.to_string(),
        };
        let scid = random_id().map_err(|error| failed(&error))?;
        let mut other = match identity {
            Some(identity) => {
                let tls = identity.client_context().map_err(|error| failed(&error))?;
                let config = config::quic(&self.limits, Role::Client, tls);
                Some(config.map_err(|error| failed(&error))?)
            }
            None => None,
        };
        let config = other.as_mut().unwrap_or(&mut self.client);
        let mut quic: Quic = quiche::connect_with_buffer_factory(None, &scid, local, to, config)
            .map_err(|error| failed(&error))?;
        let name = identity.unwrap_or(&self.own).server_name();
        if let Some(name) = name.map_err(|error| failed(&error))? {
            let tls: &mut boring::ssl::SslRef = quic.as_mut();
            tls.set_hostname(&name).map_err(|error| failed(&error))?;
        }
        Ok((quic, scid))
    }

    pub(super) fn accept(
        &mut self,
        dcid: ConnectionId,
        original: Option<ConnectionId>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<usize> {
        if self.closing.is_some() {
            return None;
        }
        if self.entries.len() >= self.limits.max_connections {
            bump(&self.counters.dropped_limit, 1);
            return None;
        }
        let scid = random_id().ok()?;
        self.renew_ticket_key(SystemTime::now());
        let config = &mut self.server;
        let accepted = match &original {
            None => quiche::accept_with_buf_factory(&scid, None, to, from, config),
            Some(original) => {
                let ids = quiche::RetryConnectionIds {
                    original_destination_cid: original,
                    retry_source_cid: &dcid,
                };
                quiche::accept_with_retry(&scid, ids, to, from, config)
            }
        };
        let quic = match accepted {
            Ok(quic) => quic,
            Err(error) => {
                log::error!("a connection from {from} cannot be accepted: {error}");
                return None;
            }
        };
        let shared = Shared::new(Role::Server, &self.limits);
        let id = Id(self.ids.fetch_add(1, Relaxed));
        let handle = Handle::new(id, Role::Server, shared.clone(), self.sender.clone());
        let mut connection =
            Connection::new(quic, Role::Server, &self.limits, shared, Instant::now());
        connection.set_verified(self.verified.1);
        if original.is_some() {
            connection.address_is_proved();
        }
        connection.set_choice(self.choice.clone());
        // The client's own choice of id stays in use until it has learnt ours.
        let ids = vec![scid, dcid];
        let key = self.insert(id, handle, connection, None, from, ids);
        let place = self.admission.enter(from, original.is_some(), key);
        self.entries[key].half_open = Some(place);
        self.count_connections();
        Some(key)
    }

    /// Another one gets its place, and so at once; unless what has just come for it makes it half open
    /// no more.
    pub(super) fn displace(&mut self, key: usize) {
        self.serve_one(key);
        let entry = self.entries.get(key);
        if entry.is_none_or(|entry| entry.half_open.is_none()) {
            return;
        }
        bump(&self.counters.dropped_limit, 1);
        self.with(key, Connection::give_way);
        self.serve_one(key);
        if self.entries.contains(key) {
            self.remove(key);
        }
    }

    /// What was sealed with a key is good for nothing once that is gone: so no ticket is accepted
    /// that is older than `session_lifetime`, and what a resumed handshake gives does not reach
    /// further than the first did.
    fn renew_ticket_key(&mut self, now: SystemTime) {
        let lifetime = self.limits.session_lifetime;
        let epoch = epoch(now, lifetime);
        if lifetime.is_zero() || self.ticket_epoch == Some(epoch) {
            return;
        }
        match self.tickets.key(lifetime, epoch) {
            Ok(key) if self.server.set_ticket_key(&key[..]).is_ok() => {
                self.ticket_epoch = Some(epoch);
            }
            _ => log::error!("the key of the TLS session tickets cannot be replaced"),
        }
    }

    pub(super) fn insert(
        &mut self,
        id: Id,
        handle: Handle,
        mut connection: Connection,
        peer: Option<E::Peer>,
        from: SocketAddr,
        ids: Vec<ConnectionId>,
    ) -> usize {
        connection.allocate_with(E::ALLOCATE);
        *handle.shared().connection.lock() = Some(connection);
        let key = self.entries.insert(Entry {
            id,
            handle,
            peer,
            from,
            ids: Vec::new(),
            listed: false,
            up: false,
            kept: VecDeque::new(),
            half_open: None,
            dialled: None,
        });
        self.by_id.insert(id, key);
        for id in ids {
            self.register(key, id);
        }
        self.count_connections();
        self.list(key);
        key
    }

    fn register(&mut self, key: usize, id: ConnectionId) {
        if self.table.insert(id.clone(), key) {
            self.entries[key].ids.push(id);
        }
    }

    fn remove(&mut self, key: usize) {
        let entry = self.entries.remove(key);
        // It refers to what is shared, which refers to it.
        entry.handle.shared().connection.lock().take();
        for id in &entry.ids {
            self.table.remove(id);
        }
        self.by_id.remove(&entry.id);
        self.timers.set(key, None);
        if let Some(place) = entry.half_open {
            self.admission.leave(place);
        }
        self.count_connections();
    }

    fn count_connections(&self) {
        self.counters
            .connections
            .store(self.entries.len() as u64, Relaxed);
        self.counters
            .half_open
            .store(self.admission.half_open() as u64, Relaxed);
    }

    pub(super) fn serve(&mut self) {
        // Those that are listed meanwhile wait for the next turn.
        for _ in 0..self.to_serve.len() {
            let Some(key) = self.to_serve.pop_front() else {
                return;
            };
            if self.guest && !self.is_for_guests(key) {
                self.to_serve.push_back(key);
            } else if let Some(entry) = self.entries.get_mut(key) {
                entry.listed = false;
                self.serve_one(key);
            }
        }
    }

    /// Work, tell, send. What happened is told between two holds of the connection's lock, so that a
    /// thread that was just given something can already send its answer.
    fn serve_one(&mut self, key: usize) {
        let now = Instant::now();
        let Some(mut turn) = self.with(key, |connection| connection.turn(now)) else {
            return;
        };
        let kept = std::mem::take(&mut self.entries[key].kept);
        let happenings = kept.into_iter().chain(turn.happenings.drain(..));
        self.tell(key, happenings, turn.half_open);
        self.exchange_ids(key, &turn.retired, turn.new_ids);
        if turn.has_shrunk {
            // A train of packets over the interface's MTU is EINVAL.
            self.socket.renew();
        }
        for route in turn.routes {
            match route {
                RouteWanted::Instead(path) => self.reroute(key, path),
                RouteWanted::To(peer) => self.look_at(key, peer, now),
            }
        }
        let entry = &self.entries[key];
        if !entry.kept.is_empty() {
            // The event thread goes on with it.
            return self.list(key);
        }
        let served = entry
            .handle
            .shared()
            .connection
            .lock()
            .as_mut()
            .map(|connection| {
                connection.told(turn.happenings);
                let sent = if connection.can_wait(now) {
                    Sent::All
                } else {
                    connection.send(&mut self.train, now, &*self.sender)
                };
                let sent = match sent {
                    Sent::All if connection.wants_turn() => Sent::More,
                    sent => sent,
                };
                // Sending can end a connection too (quiche finds errors there), and it frees room in
                // the streams; the next turn sees to both.
                (sent, connection.is_over(), connection.plan(now))
            });
        let Some((sent, over, planned)) = served else {
            return;
        };
        if over {
            return self.remove(key);
        }
        self.timers.set(key, planned);
        match sent {
            Sent::All => {}
            Sent::More => self.list(key),
            Sent::Blocked if self.blocked.contains(&key) => {}
            Sent::Blocked => self.blocked.push(key),
        }
    }

    pub(super) fn tell(
        &mut self,
        key: usize,
        happenings: impl IntoIterator<Item = Happening>,
        half_open: bool,
    ) {
        let guest = self.guest;
        let entry = &mut self.entries[key];
        for happening in happenings {
            if guest && !(entry.kept.is_empty() && is_for_guests(&happening)) {
                entry.kept.push_back(happening);
                continue;
            }
            match happening {
                Happening::Incoming => {
                    entry.up = true;
                    entry.peer = Some(self.events.incoming(&entry.handle, entry.from));
                }
                Happening::Session(session, left) => {
                    if let Some((node, identity)) = &entry.dialled
                        && *identity == self.identity
                    {
                        let lifetime = left.min(self.limits.session_lifetime);
                        self.sessions.keep(node, session, lifetime, Instant::now());
                    }
                }
                Happening::Stray => bump(&self.counters.dropped_strays, 1),
                Happening::Refused(reason) => self.events.refused(entry.from, &reason),
                Happening::Event(event) => {
                    let ended = matches!(event, Event::Closed(_));
                    // It may be the session that one of us could not bear.
                    if let Event::Closed(CloseReason::Tls { .. } | CloseReason::Certificate { .. }) =
                        event
                        && let Some((node, _)) = &entry.dialled
                    {
                        self.sessions.forget(node);
                    }
                    match &event {
                        Event::Connected => entry.up = true,
                        Event::Moved { to, .. } => entry.from = to.peer,
                        _ => {}
                    }
                    if let Some(peer) = &mut entry.peer {
                        self.events.event(peer, event);
                    }
                    if ended {
                        entry.peer = None;
                    }
                }
            }
        }
        if !half_open && let Some(place) = entry.half_open.take() {
            self.admission.leave(place);
            self.count_connections();
        }
    }

    /// Forgets the ids that the peer will not use any more, and learns those that it may.
    fn exchange_ids(&mut self, key: usize, retired: &[ConnectionId], new: Vec<ConnectionId>) {
        for id in retired {
            self.table.remove(id);
            self.entries[key].ids.retain(|known| known != id);
        }
        for id in new {
            self.register(key, id);
        }
    }
}

/// Whether a guest tells of it. See [`Driver::is_for_guests`].
fn is_for_guests(happening: &Happening) -> bool {
    match happening {
        Happening::Session(..) | Happening::Stray => true,
        Happening::Incoming | Happening::Refused(_) => false,
        Happening::Event(event) => match event {
            Event::Control(_) | Event::Data(_) | Event::Writable | Event::Low(_) => true,
            Event::Moved { .. } | Event::Silent { .. } => true,
            Event::Connected | Event::Closed(_) => false,
            Event::Stream(..) | Event::Datagrams(_) => false,
        },
    }
}
