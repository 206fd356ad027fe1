//! What becomes of connections when this host's addresses or routes change, or the peer's address.

use std::net::SocketAddr;
use std::time::Instant;

use super::Driver;
use crate::connection::Path;
use crate::event::Events;

impl<E: Events> Driver<E> {
    /// The system says that something has changed: each connection is looked after.
    pub(super) fn addresses_changed(&mut self) {
        if let Some(addresses) = &self.addresses {
            addresses.drain();
        }
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(Some(path)) = self.with(key, |connection| connection.path()) {
                self.reroute(key, path);
            }
        }
    }

    /// Has a connection look for its peer at another address.
    pub(super) fn look_at(&mut self, key: usize, peer: SocketAddr, now: Instant) {
        // Without a route there is nothing to look at; discovery is asked again.
        if let Ok(local) = self.socket.local_for(peer) {
            self.with(key, |connection| {
                connection.look_at(Path { local, peer }, now)
            });
            self.list(key);
        }
    }

    /// Moves a connection to another address of this host, if its own is of no use any more.
    pub(super) fn reroute(&mut self, key: usize, path: Path) {
        if self.socket.is_usable(path.local, path.peer) {
            // Perhaps again: what was lost meanwhile need not wait for its timer.
            self.with(key, |connection| connection.path_is_back());
            self.list(key);
            return;
        }
        // Without a route there is nothing to do until the system has one, and says so.
        if let Ok(local) = self.socket.local_for(path.peer)
            && local.ip() != path.local.ip()
        {
            self.socket.renew();
            self.with(key, |connection| connection.move_to(local, Instant::now()));
            self.list(key);
        }
    }
}
