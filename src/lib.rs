//! The engine of `quic_dist`: QUIC connections for Erlang distribution, on one event thread.
//!
//! Nothing here knows of the BEAM. What decides (`frame`, `router`, `gate`, `send_queue`, `layout`, `table`,
//! `timers`, `ingress`, `connection`) takes bytes and instants and gives back bytes and events;
//! what does (`socket`, `driver`, `endpoint`) owns the socket, the thread and the clock.
//! Commands come in through a channel and a waker (`handle`); events go out through one trait
//! ([`Events`]), which the NIF implements.
//!
//! `docs/architecture.md` has the picture, `docs/protocol.md` every byte on the wire.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod close;
pub mod config;
pub mod connection;
mod driver;
pub mod endpoint;
pub mod event;
pub mod frame;
pub mod gate;
pub mod handle;
pub mod identity;
pub mod ingress;
pub mod layout;
pub mod router;
pub mod send_queue;
mod socket;
pub mod table;
pub mod term;
pub mod timers;

pub use close::CloseReason;
pub use config::Limits;
pub use endpoint::{Endpoint, OpenError};
pub use event::{Event, Events, Packets};
pub use handle::{ConnectionInfo, Handle, SendError, SendStatus, Stat};
