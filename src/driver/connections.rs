//! The connections of an endpoint: how they come and go, and what the event thread does for one in
//! its turn.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::{Driver, Entry, bump};
use crate::close::CloseReason;
use crate::connection::{Connection, Happening, Quic, Sent, Transmit};
use crate::event::{Event, Events};
use crate::handle::{Commands, Handle, Id, Shared};
use crate::layout::Role;
use crate::table::random_id;

impl<E: Events> Driver<E> {
    /// Does something with a connection that nobody else works on meanwhile.
    pub(super) fn with<T>(
        &mut self,
        key: usize,
        action: impl FnOnce(&mut Connection) -> T,
    ) -> Option<T> {
        let entry = self.entries.get(key)?;
        entry.handle.shared().connection.lock().as_mut().map(action)
    }

    pub(super) fn dial(
        &mut self,
        to: SocketAddr,
    ) -> Result<(Quic, quiche::ConnectionId<'static>), CloseReason> {
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
        let quic = quiche::connect_with_buffer_factory(None, &scid, local, to, &mut self.client)
            .map_err(|error| failed(&error))?;
        Ok((quic, scid))
    }

    pub(super) fn accept(
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
        let quic = match quiche::accept_with_buf_factory(&scid, None, to, from, &mut self.server) {
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

    pub(super) fn insert(
        &mut self,
        id: Id,
        handle: Handle,
        connection: Connection,
        peer: Option<E::Peer>,
        from: SocketAddr,
        ids: Vec<quiche::ConnectionId<'static>>,
    ) -> usize {
        let half_open = peer.is_none();
        *handle.shared().connection.lock() = Some(connection);
        let key = self.entries.insert(Entry {
            id,
            handle,
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
        // It refers to what is shared, which refers to it.
        entry.handle.shared().connection.lock().take();
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

    pub(super) fn serve(&mut self) {
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

    /// Work, tell, send. What happened is told between two holds of the connection's lock, so that a
    /// thread that was just given something can already send its answer.
    fn serve_one(&mut self, key: usize) {
        let now = Instant::now();
        if self.with(key, |connection| connection.work(now)).is_none() {
            return;
        }
        self.tell(key);
        self.exchange_ids(key);
        let sender = self.sender.clone();
        let mut train = std::mem::take(&mut self.train);
        train.set_max_segments(self.socket.max_segments());
        let served = self.with(key, |connection| {
            let sent = if connection.can_wait(now) {
                Sent::All
            } else {
                let send = |bytes: &[u8], transmit: &Transmit| sender.send(bytes, transmit);
                connection.send(&mut train, send)
            };
            // Sending can end a connection too (quiche finds errors there), and it frees room in
            // the streams; the next turn sees to both.
            (sent, connection.is_over(), connection.plan(now))
        });
        self.train = train;
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

    fn tell(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        let mut happenings = Vec::new();
        let mut half_open = false;
        if let Some(connection) = entry.handle.shared().connection.lock().as_mut() {
            happenings.extend(std::iter::from_fn(|| connection.happening()));
            half_open = connection.is_half_open();
        }
        for happening in happenings {
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
        if entry.half_open && !half_open {
            entry.half_open = false;
            self.half_open -= 1;
            self.count_connections();
        }
    }

    fn exchange_ids(&mut self, key: usize) {
        let ids = self.with(key, |connection| {
            let retired: Vec<_> = std::iter::from_fn(|| connection.retired_id()).collect();
            (retired, connection.new_ids())
        });
        let Some((retired, new)) = ids else { return };
        for id in retired {
            self.table.remove(&id);
            self.entries[key].ids.retain(|known| known != &id);
        }
        for id in new {
            self.register(key, id);
        }
    }
}
