//! The options of `endpoint_open/3` as the engine's limits. `quic_dist_opts` has validated what the
//! user gave; here only the types are checked, and the name of what does not fit is the error.

use std::net::SocketAddr;
use std::time::Duration;

use quic_dist_engine::Limits;
use rustler::{Atom, Decoder, Term};

use crate::terms::{Ip, atoms};

fn get<'a, T: Decoder<'a>>(opts: Term<'a>, name: Atom) -> Result<T, Atom> {
    opts.map_get(name)
        .and_then(|value| value.decode())
        .map_err(|_| name)
}

/// The address to bind and the limits; or the name of the option that is missing or wrong.
pub fn decode(opts: Term) -> Result<(SocketAddr, Limits), Atom> {
    let Ip(ip) = get(opts, atoms::ip())?;
    let port: u16 = get(opts, atoms::port())?;
    let millis = |name| get(opts, name).map(Duration::from_millis);
    let limits = Limits {
        max_udp_payload: get(opts, atoms::max_udp_payload())?,
        path_mtu_discovery: get(opts, atoms::path_mtu_discovery())?,
        data_streams: get(opts, atoms::data_streams())?,
        send_queue_high: get(opts, atoms::send_queue_high())?,
        send_queue_low: get(opts, atoms::send_queue_low())?,
        receive_budget: get(opts, atoms::receive_budget())?,
        stream_window: get(opts, atoms::stream_window())?,
        connection_window: get(opts, atoms::connection_window())?,
        max_frame: get(opts, atoms::max_frame())?,
        max_connections: get(opts, atoms::max_connections())?,
        max_half_open: get(opts, atoms::max_half_open())?,
        handshake_timeout: millis(atoms::handshake_timeout())?,
        idle_timeout: millis(atoms::idle_timeout())?,
        ..Limits::default()
    };
    Ok((SocketAddr::new(ip, port), limits))
}
