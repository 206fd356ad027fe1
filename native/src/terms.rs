//! How the engine's values look as terms, and terms as the engine's values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;

use quic_dist_engine::frame::Frames;
use quic_dist_engine::identity::Verified;
use quic_dist_engine::layout::Role;
use quic_dist_engine::{CloseReason, ConnectionInfo, Endpoint, Events, Path, SendError};
use rustler::{Atom, Binary, Decoder, Encoder, Env, Error, NewBinary, NifResult, Term};

pub mod atoms {
    rustler::atoms! {
        ok, again, error, warning, info, true_ = "true", undefined,
        quic_dist, quic_dist_incoming, quic_dist_refused, quic_dist_log, quic_dist_packets,
        quic_dist_endpoint_down, quic_dist_unknown_cookie,
        connected, control, writable, low, moved, silent, closed, busy, too_long, bad_option, identity,
        peer_closed, local_closed, idle_timeout, handshake_timeout, tls, protocol_error,
        transport_error, owner_down, endpoint_closed, endpoint_failed, io,
        econnrefused, eaddrinuse, eaddrnotavail, eacces, enetunreach, ehostunreach, enetdown,
        eafnosupport, emfile, eio, ebadf, eisdir, eloop, enametoolong, enfile, enobufs, enoent, enomem,
        enotdir, enxio, eperm,
        ip, port, max_udp_payload, path_mtu_discovery, congestion_control, cubic, reno, bbr2, data_streams, send_queue_high, send_queue_low,
        receive_budget, stream_window, connection_window, max_frame, max_connections,
        max_half_open, retry_threshold, max_half_open_per_address, busy_wait,
        peer, local, role, client, server, quic_version, tls_version, cipher, verified, cookie,
        peer_name, resumed, session_lifetime, mtu, srtt, rttvar, min_rtt, cwnd, packets_sent, packets_received, packets_lost,
        bytes_sent, bytes_received, send_queue, receive_unconsumed, paths,
        streams_out, streams_in,
        datagram_size, user_datagrams_sent, user_datagrams_received, user_datagrams_lost,
        user_datagrams_dropped,
        certificate, none, unknown, certfile, keyfile, password, cacertfile, crlfile, crl_check, depth,
        quic_dist_stream, quic_dist_datagram, data, passive, reset, connection,
        unknown_stream, stream_limit, not_owner, einval, ealready, wait, told,
        false_ = "false", once, bidi, uni, stream_id, owner, priority, direction, active,
        recv_fin, send_fin, queued,
        user_streams, user_stream_window, user_stream_queue, datagram_queue,
        connections, half_open, wake_ups, poll_calls, yields, guest_turns, receive_calls, send_calls, wake_calls,
        allocations, datagrams_received,
        datagrams_dropped, connections_dropped, retries_sent, send_errors,
    }
}

/// An `inet:ip_address()`.
pub struct Ip(pub IpAddr);

impl<'a> Decoder<'a> for Ip {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        if let Ok((a, b, c, d)) = term.decode::<(u8, u8, u8, u8)>() {
            return Ok(Ip(Ipv4Addr::new(a, b, c, d).into()));
        }
        let groups: Vec<u16> = rustler::types::tuple::get_tuple(term)?
            .into_iter()
            .map(Term::decode)
            .collect::<NifResult<_>>()?;
        let groups: [u16; 8] = groups.try_into().map_err(|_| Error::BadArg)?;
        Ok(Ip(Ipv6Addr::from(groups).into()))
    }
}

/// `{inet:ip_address(), inet:port_number()}`.
pub struct Address(SocketAddr);

impl<'a> Decoder<'a> for Address {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let (Ip(ip), port) = term.decode()?;
        Ok(Address(SocketAddr::new(ip, port)))
    }
}

impl From<Address> for SocketAddr {
    fn from(address: Address) -> Self {
        address.0
    }
}

/// The other way round.
pub fn address<'a>(env: Env<'a>, address: SocketAddr) -> Term<'a> {
    (ip(env, address.ip()), address.port()).encode(env)
}

/// Our address and the peer's.
pub fn path<'a>(env: Env<'a>, path: Path) -> Term<'a> {
    (address(env, path.local), address(env, path.peer)).encode(env)
}

fn ip<'a>(env: Env<'a>, ip: IpAddr) -> Term<'a> {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            (a, b, c, d).encode(env)
        }
        IpAddr::V6(ip) => {
            let groups = ip.segments();
            rustler::types::tuple::make_tuple(env, &groups.map(|group| group.encode(env)))
        }
    }
}

/// A text as a binary.
pub fn text<'a>(env: Env<'a>, text: &str) -> Term<'a> {
    binary(env, text.as_bytes())
}

pub fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    NewBinary::from_slice(env, bytes).into()
}

/// Each packet as a binary of its own. Parts of one big binary would be cheaper to make, but a slow
/// process with one small message in its mailbox would keep all of them in memory. And a binary over
/// memory of ours (`enif_make_resource_binary`) kills the VM, which makes parts of a packet, on its
/// own, as if it were the VM's (OTP 25, `dec_term`).
pub fn binaries<'a>(env: Env<'a>, frames: &Frames) -> Term<'a> {
    before(env, frames, Term::list_new_empty(env))
}

/// The same, before those of a list.
pub fn before<'a>(env: Env<'a>, frames: &Frames, mut list: Term<'a>) -> Term<'a> {
    for range in frames.ranges.iter().rev() {
        list = list.list_prepend(binary(env, &frames.bytes[range.clone()]));
    }
    list
}

/// The bytes of a binary or a flat list of binaries; any other iodata is flattened by the VM itself.
pub fn append(iodata: Term, out: &mut Vec<u8>) -> NifResult<()> {
    if let Ok(binary) = Binary::from_term(iodata) {
        out.extend_from_slice(binary.as_slice());
        return Ok(());
    }
    let start = out.len();
    for part in iodata.into_list_iterator()? {
        match Binary::from_term(part) {
            Ok(binary) => out.extend_from_slice(binary.as_slice()),
            Err(_) => {
                out.truncate(start);
                out.extend_from_slice(Binary::from_iolist(iodata)?.as_slice());
                return Ok(());
            }
        }
    }
    Ok(())
}

/// `{error, _}`'s reason.
pub fn send_error(error: SendError) -> Atom {
    match error {
        SendError::Closed => atoms::closed(),
        SendError::TooLong => atoms::too_long(),
    }
}

/// A POSIX error (`errno`) by its name in OTP (`inet:posix()`, `file:posix()`).
pub fn posix(errno: i32) -> Atom {
    match errno {
        libc::EACCES => atoms::eacces(),
        libc::EADDRINUSE => atoms::eaddrinuse(),
        libc::EADDRNOTAVAIL => atoms::eaddrnotavail(),
        libc::EAFNOSUPPORT => atoms::eafnosupport(),
        libc::EBADF => atoms::ebadf(),
        libc::ECONNREFUSED => atoms::econnrefused(),
        libc::EHOSTUNREACH => atoms::ehostunreach(),
        libc::EINVAL => atoms::einval(),
        libc::EISDIR => atoms::eisdir(),
        libc::ELOOP => atoms::eloop(),
        libc::EMFILE => atoms::emfile(),
        libc::ENAMETOOLONG => atoms::enametoolong(),
        libc::ENETDOWN => atoms::enetdown(),
        libc::ENETUNREACH => atoms::enetunreach(),
        libc::ENFILE => atoms::enfile(),
        libc::ENOBUFS => atoms::enobufs(),
        libc::ENOENT => atoms::enoent(),
        libc::ENOMEM => atoms::enomem(),
        libc::ENOTDIR => atoms::enotdir(),
        libc::ENXIO => atoms::enxio(),
        libc::EPERM => atoms::eperm(),
        _ => atoms::eio(),
    }
}

/// See the reasons of `quic_dist_nif:close_reason()`.
pub fn close_reason<'a>(env: Env<'a>, reason: &CloseReason) -> Term<'a> {
    match reason {
        CloseReason::PeerClosed { code, text: said } => {
            (atoms::peer_closed(), code, text(env, said)).encode(env)
        }
        CloseReason::LocalClosed { text: said } => {
            (atoms::local_closed(), text(env, said)).encode(env)
        }
        CloseReason::IdleTimeout => atoms::idle_timeout().encode(env),
        CloseReason::HandshakeTimeout => atoms::handshake_timeout().encode(env),
        CloseReason::Tls { .. } | CloseReason::Certificate { .. } => {
            (atoms::tls(), text(env, &reason.to_string())).encode(env)
        }
        CloseReason::Protocol { text: said } => {
            (atoms::protocol_error(), text(env, said)).encode(env)
        }
        CloseReason::Transport { code, .. } => (
            atoms::transport_error(),
            code,
            text(env, &reason.to_string()),
        )
            .encode(env),
        CloseReason::OwnerDown => atoms::owner_down().encode(env),
        CloseReason::EndpointClosed => atoms::endpoint_closed().encode(env),
        CloseReason::Internal => atoms::endpoint_failed().encode(env),
        CloseReason::Io(errno) => (atoms::io(), posix(*errno)).encode(env),
    }
}

/// The map of `info/1`.
pub fn connection_info<'a>(env: Env<'a>, info: &ConnectionInfo) -> Term<'a> {
    let micros = |duration: std::time::Duration| duration.as_micros() as u64;
    let verified = match info.verified {
        Verified::Cookie => atoms::cookie(),
        Verified::Certificate => atoms::certificate(),
        Verified::No => atoms::none(),
    };
    let role = match info.role {
        Role::Client => atoms::client(),
        Role::Server => atoms::server(),
    };
    map(
        env,
        &[
            (atoms::peer(), address(env, info.peer)),
            (atoms::local(), address(env, info.local)),
            (atoms::role(), role.encode(env)),
            (atoms::quic_version(), quiche_version().encode(env)),
            (atoms::tls_version(), text(env, &info.tls_version)),
            (atoms::cipher(), text(env, &info.cipher)),
            (atoms::verified(), verified.encode(env)),
            (
                atoms::peer_name(),
                text(env, info.peer_name.as_deref().unwrap_or("")),
            ),
            (atoms::resumed(), info.resumed.encode(env)),
            (atoms::mtu(), info.mtu.encode(env)),
            (atoms::srtt(), micros(info.srtt).encode(env)),
            (atoms::rttvar(), micros(info.rttvar).encode(env)),
            (
                atoms::min_rtt(),
                info.min_rtt.map_or_else(
                    || atoms::undefined().encode(env),
                    |rtt| micros(rtt).encode(env),
                ),
            ),
            (atoms::cwnd(), info.cwnd.encode(env)),
            (atoms::packets_sent(), info.packets_sent.encode(env)),
            (atoms::packets_received(), info.packets_received.encode(env)),
            (atoms::packets_lost(), info.packets_lost.encode(env)),
            (atoms::bytes_sent(), info.bytes_sent.encode(env)),
            (atoms::bytes_received(), info.bytes_received.encode(env)),
            (atoms::send_queue(), info.send_queue.encode(env)),
            (atoms::receive_unconsumed(), info.unconsumed.encode(env)),
            (atoms::paths(), info.paths.encode(env)),
            (atoms::streams_out(), info.streams_out.encode(env)),
            (atoms::datagram_size(), info.datagram_size.encode(env)),
            (
                atoms::user_datagrams_sent(),
                info.datagrams_sent.encode(env),
            ),
            (
                atoms::user_datagrams_received(),
                info.datagrams_received.encode(env),
            ),
            (
                atoms::user_datagrams_lost(),
                info.datagrams_lost.encode(env),
            ),
            (
                atoms::user_datagrams_dropped(),
                info.datagrams_dropped.encode(env),
            ),
            (
                atoms::streams_in(),
                info.streams_in.map_or_else(
                    || atoms::undefined().encode(env),
                    |streams| streams.encode(env),
                ),
            ),
        ],
    )
}

/// The only QUIC version that is spoken (RFC 9000).
fn quiche_version() -> u32 {
    1
}

/// The map of `endpoint_info/1`.
pub fn endpoint_info<'a, E: Events>(env: Env<'a>, endpoint: &Endpoint<E>) -> Term<'a> {
    let counters = endpoint.counters();
    let local = endpoint.local();
    let mut pairs = vec![
        (atoms::ip(), ip(env, local.ip())),
        (atoms::port(), local.port().encode(env)),
        (
            atoms::allocations(),
            crate::allocations::count().encode(env),
        ),
    ];
    for (name, counter) in [
        (atoms::connections(), &counters.connections),
        (atoms::half_open(), &counters.half_open),
        (atoms::wake_ups(), &counters.wake_ups),
        (atoms::poll_calls(), &counters.poll_calls),
        (atoms::yields(), &counters.yields),
        (atoms::guest_turns(), &counters.guest_turns),
        (atoms::receive_calls(), &counters.receive_calls),
        (atoms::send_calls(), &counters.send_calls),
        (atoms::wake_calls(), &counters.wake_calls),
        (atoms::datagrams_received(), &counters.datagrams_received),
        (atoms::datagrams_dropped(), &counters.dropped_strays),
        (atoms::connections_dropped(), &counters.dropped_limit),
        (atoms::retries_sent(), &counters.retries),
        (atoms::send_errors(), &counters.send_errors),
    ] {
        pairs.push((name, counter.load(Relaxed).encode(env)));
    }
    map(env, &pairs)
}

pub fn map<'a>(env: Env<'a>, pairs: &[(Atom, Term<'a>)]) -> Term<'a> {
    pairs
        .iter()
        .fold(rustler::types::map::map_new(env), |map, (key, value)| {
            // It fails only for what is no map.
            map.map_put(key, value).unwrap_or(map)
        })
}
