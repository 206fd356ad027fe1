//! The options of `endpoint_open/3` as the engine's limits. `quic_dist_opts` has validated what the
//! user gave; here only the types are checked, and the name of what does not fit is the error.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use quic_dist_engine::identity::SideFiles;
use quic_dist_engine::{CongestionControl, Limits};
use rustler::{Atom, Binary, Decoder, Term};
use zeroize::Zeroizing;

use crate::terms::{Ip, atoms};

fn get<'a, T: Decoder<'a>>(opts: Term<'a>, name: Atom) -> Result<T, Atom> {
    opts.map_get(name)
        .and_then(|value| value.decode())
        .map_err(|_| name)
}

fn optional<'a, T: Decoder<'a>>(opts: Term<'a>, name: Atom) -> Result<Option<T>, Atom> {
    match opts.map_get(name) {
        Ok(value) => value.decode().map(Some).map_err(|_| name),
        Err(_) => Ok(None),
    }
}

/// The files of one role.
pub fn side(opts: Term) -> Result<SideFiles, Atom> {
    let path = |name| {
        let path: Option<Binary> = optional(opts, name)?;
        Ok(path.map(|path| PathBuf::from(OsStr::from_bytes(path.as_slice()))))
    };
    let password: Option<Binary> = optional(opts, atoms::password())?;
    let chains: Option<bool> = optional(opts, atoms::crl_check())?;
    Ok(SideFiles {
        certificate: path(atoms::certfile())?,
        key: path(atoms::keyfile())?,
        password: password.map(|password| Zeroizing::new(password.as_slice().to_vec())),
        authorities: path(atoms::cacertfile())?,
        revoked: path(atoms::crlfile())?.map(|file| (file, chains.unwrap_or(true))),
        depth: get(opts, atoms::depth())?,
    })
}

fn congestion_control(name: Atom) -> Result<CongestionControl, Atom> {
    let known = [
        (atoms::cubic(), CongestionControl::Cubic),
        (atoms::reno(), CongestionControl::Reno),
        (atoms::bbr2(), CongestionControl::Bbr2),
    ];
    let found = known.into_iter().find(|(known, _)| *known == name);
    found.map_or(Err(atoms::congestion_control()), |(_, which)| Ok(which))
}

/// The address to bind and the limits; or the name of the option that is missing or wrong.
pub fn decode(opts: Term) -> Result<(SocketAddr, Limits), Atom> {
    let Ip(ip) = get(opts, atoms::ip())?;
    let port: u16 = get(opts, atoms::port())?;
    let millis = |name| get(opts, name).map(Duration::from_millis);
    let limits = Limits {
        max_udp_payload: get(opts, atoms::max_udp_payload())?,
        path_mtu_discovery: get(opts, atoms::path_mtu_discovery())?,
        congestion_control: get(opts, atoms::congestion_control()).and_then(congestion_control)?,
        data_streams: get(opts, atoms::data_streams())?,
        send_queue_high: get(opts, atoms::send_queue_high())?,
        send_queue_low: get(opts, atoms::send_queue_low())?,
        receive_budget: get(opts, atoms::receive_budget())?,
        stream_window: get(opts, atoms::stream_window())?,
        connection_window: get(opts, atoms::connection_window())?,
        user_streams: get(opts, atoms::user_streams())?,
        user_stream_window: get(opts, atoms::user_stream_window())?,
        user_stream_queue: get(opts, atoms::user_stream_queue())?,
        datagram_queue: get(opts, atoms::datagram_queue())?,
        max_frame: get(opts, atoms::max_frame())?,
        max_connections: get(opts, atoms::max_connections())?,
        max_half_open: get(opts, atoms::max_half_open())?,
        retry_threshold: get(opts, atoms::retry_threshold())?,
        max_half_open_per_address: get(opts, atoms::max_half_open_per_address())?,
        handshake_timeout: millis(atoms::handshake_timeout())?,
        session_lifetime: Duration::from_secs(get(opts, atoms::session_lifetime())?),
        idle_timeout: millis(atoms::idle_timeout())?,
        busy_wait: Duration::from_micros(get(opts, atoms::busy_wait())?),
        ..Limits::default()
    };
    Ok((SocketAddr::new(ip, port), limits))
}
