//! The limits of an endpoint, and the QUIC configuration that follows from them.

use std::time::Duration;

use boring::ssl::{SslContextBuilder, SslOptions};

use crate::connection::MAX_PATHS;
use crate::layout::{CLIENT_STREAMS, Role, SERVER_STREAMS};

/// The application protocol (RFC 7301) that both ends must speak; the number goes up when the wire
/// format of `docs/protocol.md` changes.
pub const ALPN: &[u8] = b"quic_dist/2";

/// Datagrams of the application's that came and have not been told; above it the oldest is lost.
const DATAGRAMS_IN: usize = 1024;
/// RFC 9000, section 16.
const MAX_VARINT: u64 = (1 << 62) - 1;

/// What decides how much is sent into a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CongestionControl {
    /// RFC 9438: what is lost is the path's limit.
    #[default]
    Cubic,
    /// The same, grown by a packet each round trip (RFC 9002, section 7).
    Reno,
    /// What is delivered is the path's limit, whatever is lost (draft-ietf-ccwg-bbr, as quiche has it).
    Bbr2,
}

impl CongestionControl {
    fn quic(self) -> quiche::CongestionControlAlgorithm {
        use quiche::CongestionControlAlgorithm::{Bbr2Gcongestion, CUBIC, Reno};
        match self {
            CongestionControl::Cubic => CUBIC,
            CongestionControl::Reno => Reno,
            CongestionControl::Bbr2 => Bbr2Gcongestion,
        }
    }
}

/// What an endpoint allows. Sizes are in bytes. The defaults are those of the OTP application's
/// environment, where each is explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest UDP payload that path MTU discovery tries, 1,200 to 16,383 (above that quiche
    /// does not go).
    pub max_udp_payload: usize,
    /// Whether to look for a path MTU above 1,200 (RFC 9000, section 14.3); without, packets are
    /// at most `max_udp_payload` from the end of the handshake on.
    pub path_mtu_discovery: bool,
    /// How this side finds out what a path can take. The peer's choice is its own.
    pub congestion_control: CongestionControl,
    /// The data streams that this side writes, 1 to 16.
    pub data_streams: usize,
    /// Above this many queued bytes a sender is told that the connection is busy.
    pub send_queue_high: usize,
    /// At this many queued bytes it is told to go on.
    pub send_queue_low: usize,
    /// Above this many bytes that were delivered and not consumed, streams are not read.
    pub receive_budget: usize,
    /// Flow control window of a stream (RFC 9000, section 4.1).
    pub stream_window: u64,
    /// Flow control window of a connection.
    pub connection_window: u64,
    /// Streams of the application's own that each side may have open; 0: there are none.
    pub user_streams: usize,
    /// Flow control window that such a stream begins with. It grows while it is read quickly, up to
    /// `stream_window`.
    pub user_stream_window: u64,
    /// At this many queued bytes such a stream takes nothing more; at half of it, it does again.
    pub user_stream_queue: usize,
    /// Datagrams of the application's that wait to be sent.
    pub datagram_queue: usize,
    /// The longest packet on a data stream. The VM cuts messages into fragments of 64 KiB, but not
    /// those that it had to encode before it knew the peer: a message that makes it dial is one
    /// packet, however long.
    pub max_frame: usize,
    /// Connections in all; above it, dialling fails and incoming ones are dropped.
    pub max_connections: usize,
    /// Incoming connections whose handshake is not complete.
    pub max_half_open: usize,
    /// Incoming connections in the handshake whose peer has not proved its address: one more has to
    /// (Retry, RFC 9000, section 8.1.2).
    pub retry_threshold: usize,
    /// Incoming connections in the handshake from one address that has been proved; of IPv6, from
    /// one /64.
    pub max_half_open_per_address: usize,
    /// How long a handshake may take, and then how long an incoming connection waits for an owner.
    pub handshake_timeout: Duration,
    /// How long after it a full TLS handshake may be resumed; zero: never.
    pub session_lifetime: Duration,
    /// `max_idle_timeout` of RFC 9000, section 10.1; zero for none.
    pub idle_timeout: Duration,
    /// How long the event thread asks for something to do before it sleeps, and three times that
    /// after a wait that was shorter; zero: not at all.
    pub busy_wait: Duration,
    /// How long an orderly end waits for the peer to have taken everything.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_udp_payload: 16_000,
            path_mtu_discovery: true,
            congestion_control: CongestionControl::default(),
            data_streams: 4,
            send_queue_high: 4 << 20,
            send_queue_low: 512 << 10,
            receive_budget: 1 << 20,
            stream_window: 8 << 20,
            connection_window: 16 << 20,
            user_streams: 1024,
            user_stream_window: 256 << 10,
            user_stream_queue: 256 << 10,
            datagram_queue: 128,
            max_frame: 1 << 30,
            max_connections: 4096,
            max_half_open: 256,
            retry_threshold: 16,
            max_half_open_per_address: 64,
            handshake_timeout: Duration::from_secs(7),
            session_lifetime: Duration::from_secs(24 * 60 * 60),
            idle_timeout: Duration::ZERO,
            busy_wait: Duration::from_micros(100),
            linger: Duration::from_secs(3),
        }
    }
}

/// The QUIC configuration of one role.
pub(crate) fn quic(
    limits: &Limits,
    role: Role,
    mut tls: SslContextBuilder,
) -> Result<quiche::Config, quiche::Error> {
    if limits.session_lifetime.is_zero() {
        tls.set_options(SslOptions::NO_TICKET);
    }
    let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls)?;
    config.set_application_protos(&[ALPN])?;
    config.set_max_idle_timeout(millis(limits.idle_timeout));
    config.set_max_recv_udp_payload_size(65_527);
    config.set_max_send_udp_payload_size(limits.max_udp_payload);
    config.discover_pmtu(limits.path_mtu_discovery);
    let window = connection_window(limits);
    config.set_initial_max_data(window);
    config.set_max_connection_window(window);
    let first = match limits.user_streams {
        0 => limits.stream_window,
        _ => limits.user_stream_window.min(limits.stream_window),
    };
    config.set_initial_max_stream_data_bidi_local(first);
    config.set_initial_max_stream_data_bidi_remote(first);
    config.set_initial_max_stream_data_uni(first);
    config.set_max_stream_window(limits.stream_window);
    // Twice what the hello allows: quiche gives credit anew when half of it is used, by streams that
    // it has heard of.
    let user_streams = 2 * limits.user_streams as u64;
    let own = match role {
        Role::Client => SERVER_STREAMS,
        Role::Server => CLIENT_STREAMS,
    };
    config.set_initial_max_streams_bidi(own + user_streams);
    config.set_initial_max_streams_uni(user_streams);
    if limits.user_streams > 0 {
        config.enable_dgram(true, DATAGRAMS_IN, limits.datagram_queue);
    }
    config.set_active_connection_id_limit(MAX_PATHS);
    // Packets leave as GSO trains when there is something to send; quiche's release times are not
    // honoured, so they are not computed either.
    config.enable_pacing(false);
    config.set_cc_algorithm(limits.congestion_control.quic());
    Ok(config)
}

/// The flow control window of a connection.
///
/// What the application's streams hold unread must never keep the distribution's from being read.
/// QUIC has one credit for all, so it has to be enough for all: what each of the application's
/// streams can hold at most (those of this side, and all for which the peer has credit), besides
/// what the distribution may. And twice that, because quiche gives credit anew when half of it is left.
/// It is a number only: memory is bounded by the windows of the streams that are open.
fn connection_window(limits: &Limits) -> u64 {
    if limits.user_streams == 0 {
        return limits.connection_window;
    }
    let all = (5 * limits.user_streams as u64).saturating_mul(limits.stream_window);
    limits
        .connection_window
        .saturating_add(all)
        .saturating_mul(2)
        .min(MAX_VARINT)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
