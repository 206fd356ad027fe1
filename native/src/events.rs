//! The engine's events as messages to Erlang processes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quic_dist_engine::packets::Allocate;
use quic_dist_engine::{CloseReason, Event, Events, Handle};
use rustler::{Encoder, Env, LocalPid, ResourceArc, Term};

use crate::exit;
use crate::input;
use crate::mail::Mail;
use crate::resources::{ConnectionResource, EndpointResource};
use crate::terms::{self, atoms};

/// Refusals that are told per second; above it only their number is, so that nobody fills the log
/// from outside.
const REFUSALS_PER_SECOND: u32 = 10;

/// What the events know a connection by: a reference, kept while the connection lives.
pub struct Peer(Option<ResourceArc<ConnectionResource>>);

impl From<ResourceArc<ConnectionResource>> for Peer {
    fn from(connection: ResourceArc<ConnectionResource>) -> Self {
        Peer(Some(connection))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // While the VM exits nothing of it is touched any more, not even a reference count.
        if exit::exiting() {
            std::mem::forget(self.0.take());
        }
    }
}

/// See the module's documentation.
pub struct NifEvents {
    endpoint: ResourceArc<EndpointResource>,
    owner: LocalPid,
    env: Mail,
    second: Instant,
    told: u32,
    untold: u32,
}

impl NifEvents {
    pub fn new(endpoint: ResourceArc<EndpointResource>, owner: LocalPid) -> Self {
        NifEvents {
            endpoint,
            owner,
            env: Mail::new(),
            second: Instant::now(),
            told: 0,
            untold: 0,
        }
    }

    fn send<'a>(&mut self, to: LocalPid, message: impl FnOnce(Env<'a>) -> Term<'a>) {
        // An error means that the process is dead: then its monitor ends what it owned.
        let _ = self.env.send(&to, message);
    }

    /// Whether another refusal is told within this second.
    fn may_tell(&mut self) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            if self.untold > 0 {
                log::warn!("{} more incoming connections were refused", self.untold);
            }
            self.second = Instant::now();
            self.told = 0;
            self.untold = 0;
        }
        if self.told < REFUSALS_PER_SECOND {
            self.told += 1;
            true
        } else {
            self.untold += 1;
            false
        }
    }
}

impl Events for NifEvents {
    type Peer = Peer;

    const ALLOCATE: Allocate = input::allocate;

    fn incoming(&mut self, handle: &Handle, from: SocketAddr) -> Peer {
        let connection = ConnectionResource::new(handle.clone(), None);
        if !exit::exiting() {
            let endpoint = self.endpoint.clone();
            let reference = connection.clone();
            self.send(self.owner, move |env| {
                (
                    atoms::quic_dist_incoming(),
                    endpoint,
                    reference,
                    terms::address(env, from),
                )
                    .encode(env)
            });
        }
        connection.into()
    }

    fn refused(&mut self, from: SocketAddr, reason: &CloseReason) {
        if exit::exiting() || !self.may_tell() {
            return;
        }
        let endpoint = self.endpoint.clone();
        self.send(self.owner, move |env| {
            (
                atoms::quic_dist_refused(),
                endpoint,
                terms::address(env, from),
                terms::close_reason(env, reason),
            )
                .encode(env)
        });
    }

    fn unknown_cookie(&mut self, question: u64) -> bool {
        if exit::exiting() {
            return false;
        }
        let endpoint = self.endpoint.clone();
        self.send(self.owner, move |env| {
            (atoms::quic_dist_unknown_cookie(), endpoint, question).encode(env)
        });
        true
    }

    fn ended(&mut self, error: Option<String>) {
        let Some(error) = error else { return };
        if exit::exiting() {
            return;
        }
        let endpoint = self.endpoint.clone();
        self.send(self.owner, move |env| {
            (
                atoms::quic_dist_endpoint_down(),
                endpoint,
                terms::text(env, &error),
            )
                .encode(env)
        });
    }

    fn event(&mut self, peer: &mut Peer, event: Event) {
        let Some(connection) = &peer.0 else { return };
        if exit::exiting() {
            return;
        }
        let connection = connection.clone();
        match event {
            Event::Connected => self.tell(connection, |env| atoms::connected().encode(env)),
            Event::Writable => self.tell(connection, |env| atoms::writable().encode(env)),
            Event::Moved { from, to } => self.tell(connection, |env| {
                (atoms::moved(), terms::path(env, from), terms::path(env, to)).encode(env)
            }),
            Event::Low(process) => self.tell(connection, |env| {
                (atoms::low(), (process.id, process.serial)).encode(env)
            }),
            Event::Silent { asked } => {
                self.tell(connection, |env| (atoms::silent(), asked).encode(env))
            }
            Event::Control(frames) => self.tell(connection, |env| {
                (atoms::control(), terms::binaries(env, &frames)).encode(env)
            }),
            Event::Data(packets) => {
                if let Some(packets) = connection.inbox.put(packets)
                    && let Some(input) = connection.input()
                {
                    self.send(input, move |env| {
                        let binaries = input::binaries(env, vec![packets]);
                        (atoms::quic_dist_packets(), binaries).encode(env)
                    });
                }
            }
            Event::Stream(id, event) => {
                let owners = &connection.owners;
                owners.event(&mut self.env, &connection.handle, id, event);
            }
            Event::Datagrams(datagrams) => connection.owners.datagrams(&mut self.env, datagrams),
            Event::Closed(reason) => {
                connection.owners.ended(&mut self.env, &reason);
                if let Some(owner) = connection.owner() {
                    self.send(owner, |env| closed(env, connection, &reason));
                }
            }
        }
    }
}

impl NifEvents {
    /// A message to the connection's owner.
    fn tell<'a>(
        &mut self,
        connection: ResourceArc<ConnectionResource>,
        what: impl FnOnce(Env<'a>) -> Term<'a>,
    ) {
        if let Some(owner) = connection.owner() {
            self.send(owner, move |env| {
                (atoms::quic_dist(), connection, what(env)).encode(env)
            });
        }
    }
}

fn closed<'a>(
    env: Env<'a>,
    connection: ResourceArc<ConnectionResource>,
    reason: &CloseReason,
) -> Term<'a> {
    let what = (atoms::closed(), terms::close_reason(env, reason));
    (atoms::quic_dist(), connection, what).encode(env)
}
