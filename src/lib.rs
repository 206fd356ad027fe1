//! The engine of `quic_dist`: QUIC connections for Erlang distribution, on one event thread.
//!
//! Nothing here knows of the BEAM. What decides (`frame`, `batch`, `router`, `gate`, `send_queue`, `layout`, `table`,
//! `timers`, `ingress`, `admission`, `sessions`, `connection`) takes bytes and instants and gives back bytes and events;
//! what does (`socket`, `driver`, `endpoint`) owns the socket, the thread and the clock.
//! Commands come in through a channel and a waker (`handle`); events go out through one trait
//! ([`Events`]), which the NIF implements.
//!
//! `docs/architecture.md` has the picture, `docs/protocol.md` every byte on the wire.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod addresses;
pub mod admission;
mod atom_cache;
pub mod batch;
pub mod close;
pub mod config;
pub mod connection;
mod driver;
pub mod endpoint;
pub mod event;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod gate;
pub mod handle;
pub mod identity;
pub mod ids;
pub mod ingress;
pub mod layout;
mod lead;
pub mod packets;
pub mod panics;
pub mod router;
pub mod send_queue;
mod sessions;
mod socket;
pub mod streams;
pub mod table;
pub mod term;
pub mod timers;

pub use batch::Batch;
pub use close::CloseReason;
pub use config::{CongestionControl, Limits};
pub use connection::Path;
pub use endpoint::{Endpoint, OpenError};
pub use event::{Event, Events, StreamEvent};
pub use handle::{ConnectionInfo, Handle, SendError, SendStatus, Stat};
pub use packets::Packets;
