//! What Erlang holds references to: identities, endpoints, connections.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use quic_dist_engine::identity::NodeIdentity;
use quic_dist_engine::{Endpoint, Handle};
use rustler::{Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::events::NifEvents;
use crate::inbox::Inbox;
use crate::owners::Owners;

/// A node's key and certificate.
pub struct IdentityResource(pub Arc<NodeIdentity>);

#[rustler::resource_impl]
impl Resource for IdentityResource {}

/// A UDP endpoint. The events of its thread hold a reference to it, which goes when the thread
/// ends: by `endpoint_close/1`, or because the owner died.
#[derive(Default)]
pub struct EndpointResource(OnceLock<Arc<Endpoint<NifEvents>>>);

impl EndpointResource {
    /// The endpoint; none while it is being opened, or if that failed.
    pub fn get(&self) -> Option<&Endpoint<NifEvents>> {
        self.0.get().map(Arc::as_ref)
    }

    /// Called once, by the call that made the resource.
    pub fn fill(&self, endpoint: Arc<Endpoint<NifEvents>>) {
        let filled = self.0.set(endpoint);
        debug_assert!(filled.is_ok());
    }

    /// Ends the endpoint without waiting for it.
    pub fn close(&self) {
        if let Some(endpoint) = self.get() {
            endpoint.start_close(std::time::Duration::from_millis(500));
        }
    }
}

#[rustler::resource_impl]
impl Resource for EndpointResource {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        self.close();
    }
}

/// Who gets a connection's messages.
#[derive(Default)]
struct Receivers {
    owner: Option<LocalPid>,
    monitor: Option<Monitor>,
    input: Option<LocalPid>,
}

/// A connection.
pub struct ConnectionResource {
    pub handle: Handle,
    pub owners: Owners,
    pub inbox: Inbox,
    receivers: Mutex<Receivers>,
}

impl ConnectionResource {
    pub fn new(handle: Handle, owner: Option<LocalPid>) -> ResourceArc<Self> {
        ResourceArc::new(ConnectionResource {
            handle,
            owners: Owners::default(),
            inbox: Inbox::default(),
            receivers: Mutex::new(Receivers {
                owner,
                ..Receivers::default()
            }),
        })
    }

    pub fn owner(&self) -> Option<LocalPid> {
        self.receivers.lock().owner
    }

    pub fn input(&self) -> Option<LocalPid> {
        self.receivers.lock().input
    }

    pub fn set_input(&self, input: LocalPid) {
        self.receivers.lock().input = Some(input);
    }
}

/// What needs the reference and not only the thing.
pub trait Watch {
    /// Makes `owner` the owner: it gets the messages, and its death ends the connection.
    fn watch(&self, env: Env, owner: LocalPid);
}

impl Watch for ResourceArc<ConnectionResource> {
    fn watch(&self, env: Env, owner: LocalPid) {
        // The lock is not held around the calls into the VM: `down` takes it too, on whichever
        // scheduler the owner dies.
        let monitor = env.monitor(self, &owner);
        let before = {
            let mut receivers = self.receivers.lock();
            receivers.owner = Some(owner);
            std::mem::replace(&mut receivers.monitor, monitor)
        };
        if let Some(before) = before {
            // False: its process died meanwhile; `down` sees that it is the owner no more.
            let _ = env.demonitor(self, &before);
        }
        if monitor.is_none() {
            // Dead already.
            self.handle.owner_down();
        }
    }
}

#[rustler::resource_impl]
impl Resource for ConnectionResource {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, pid: LocalPid, _monitor: Monitor) {
        if self.owner() == Some(pid) {
            self.handle.owner_down();
        }
        self.owners.down(&self.handle, pid);
    }
}
