//! The limits of an endpoint, and the QUIC configuration that follows from them.

use std::time::Duration;

use boring::ssl::SslContextBuilder;

use crate::layout::{CLIENT_STREAMS, Role, SERVER_STREAMS};

/// The application protocol (RFC 7301) that both ends must speak; the number goes up when the wire
/// format of `docs/protocol.md` changes.
pub const ALPN: &[u8] = b"quic_dist/1";

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
    /// The longest packet on a data stream. The VM cuts messages into fragments of 64 KiB, but not
    /// those that it had to encode before it knew the peer: a message that makes it dial is one
    /// packet, however long.
    pub max_frame: usize,
    /// Connections in all; above it, dialling fails and incoming ones are dropped.
    pub max_connections: usize,
    /// Incoming connections whose handshake is not complete.
    pub max_half_open: usize,
    /// How long a handshake may take, and then how long an incoming connection waits for an owner.
    pub handshake_timeout: Duration,
    /// `max_idle_timeout` of RFC 9000, section 10.1; zero for none.
    pub idle_timeout: Duration,
    /// How long an orderly end waits for the peer to have taken everything.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_udp_payload: 16_000,
            path_mtu_discovery: true,
            data_streams: 4,
            send_queue_high: 2 << 20,
            send_queue_low: 512 << 10,
            receive_budget: 1 << 20,
            stream_window: 8 << 20,
            connection_window: 16 << 20,
            max_frame: 1 << 30,
            max_connections: 4096,
            max_half_open: 256,
            handshake_timeout: Duration::from_secs(7),
            idle_timeout: Duration::ZERO,
            linger: Duration::from_secs(3),
        }
    }
}

/// The QUIC configuration of one role.
pub(crate) fn quic(
    limits: &Limits,
    role: Role,
    tls: SslContextBuilder,
) -> Result<quiche::Config, quiche::Error> {
    let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls)?;
    config.set_application_protos(&[ALPN])?;
    config.set_max_idle_timeout(millis(limits.idle_timeout));
    config.set_max_recv_udp_payload_size(65_527);
    config.set_max_send_udp_payload_size(limits.max_udp_payload);
    config.discover_pmtu(limits.path_mtu_discovery);
    config.set_initial_max_data(limits.connection_window);
    config.set_max_connection_window(limits.connection_window);
    config.set_initial_max_stream_data_bidi_local(limits.stream_window);
    config.set_initial_max_stream_data_bidi_remote(limits.stream_window);
    config.set_max_stream_window(limits.stream_window);
    config.set_initial_max_streams_bidi(match role {
        Role::Client => SERVER_STREAMS,
        Role::Server => CLIENT_STREAMS,
    });
    config.set_initial_max_streams_uni(0);
    // Packets leave as GSO trains when there is something to send; quiche's release times are not
    // honoured, so they are not computed either.
    config.enable_pacing(false);
    Ok(config)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
