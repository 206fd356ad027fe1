//! Why a connection ended: one enum that the engine decides with, the NIF turns into a term and a
//! log line shows to a person; and the application error codes that we put on the wire.

use std::fmt;
use std::io;

use nix::libc;

/// Application error codes of CONNECTION_CLOSE (RFC 9000, section 19.19), listed in
/// `docs/protocol.md`.
pub mod code {
    /// An orderly end.
    pub const NO_ERROR: u64 = 0x0;
    /// The peer broke the stream layout or the framing.
    pub const PROTOCOL: u64 = 0x1;
    /// An incoming connection was not taken by anybody, or stalled before it was.
    pub const NOT_ACCEPTED: u64 = 0x2;
    /// The endpoint is going away (the node stops).
    pub const GOING_AWAY: u64 = 0x3;
    /// A limit of ours was reached.
    pub const LIMIT: u64 = 0x4;
    /// The endpoint has failed.
    pub const INTERNAL: u64 = 0x5;
}

/// Why a connection ended. Every connection ends with exactly one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed with this application error code and text.
    PeerClosed {
        /// See [`code`].
        code: u64,
        /// At most [`MAX_TEXT`] bytes of what the peer said, made printable.
        text: String,
    },
    /// Our own side asked for it.
    LocalClosed {
        /// What our side said.
        text: String,
    },
    /// Nothing was heard for the negotiated idle time-out.
    IdleTimeout,
    /// The handshake (or the owner of an incoming connection) took longer than the limit.
    HandshakeTimeout,
    /// The TLS handshake failed.
    Tls {
        /// True when we refused the peer, false when the peer refused us.
        by_us: bool,
        /// The TLS alert (RFC 8446, section 6).
        alert: u8,
    },
    /// We refused the peer's certificate, and can say what is wrong with it.
    Certificate {
        /// As above.
        alert: u8,
        /// What is wrong: the date, or the name.
        text: String,
    },
    /// The peer broke the rules of `docs/protocol.md`.
    Protocol {
        /// Which rule.
        text: String,
    },
    /// A QUIC transport error (RFC 9000, section 20.1).
    Transport {
        /// True when we found it, false when the peer did.
        by_us: bool,
        /// The error code.
        code: u64,
        /// What the peer said, if anything.
        text: String,
    },
    /// The process that owned the connection is gone.
    OwnerDown,
    /// The endpoint was closed.
    EndpointClosed,
    /// The event thread has failed: a bug of ours. The log has the rest.
    Internal,
    /// The operating system says that nobody is there (ICMP port unreachable, confirmed by
    /// silence), or the socket failed: its `errno`, for [`io::ErrorKind`] has no name for some of what
    /// is to be told apart (EMFILE).
    Io(i32),
}

/// How much of a peer's reason phrase is kept, in bytes.
pub const MAX_TEXT: usize = 256;

/// Makes a peer's reason phrase fit for a log line: bounded, printable, valid UTF-8.
pub fn printable(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(MAX_TEXT)];
    String::from_utf8_lossy(cut)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// RFC 9001, section 4.8: a TLS alert travels as a transport error of 0x100 plus the alert.
const CRYPTO_ERROR: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;

impl CloseReason {
    /// What the system says.
    pub(crate) fn io(error: &io::Error) -> Self {
        // Without a number it is the standard library's own, of which none is expected here.
        CloseReason::Io(error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// The reason of a connection that ended with this transport or application error.
    pub(crate) fn from_error(error: &quiche::ConnectionError, by_us: bool) -> Self {
        let text = printable(&error.reason);
        if error.is_app {
            if by_us {
                CloseReason::LocalClosed { text }
            } else {
                CloseReason::PeerClosed {
                    code: error.error_code,
                    text,
                }
            }
        } else if CRYPTO_ERROR.contains(&error.error_code) {
            CloseReason::Tls {
                by_us,
                alert: (error.error_code & 0xff) as u8,
            }
        } else {
            CloseReason::Transport {
                by_us,
                code: error.error_code,
                text,
            }
        }
    }
}

/// The alerts that this protocol can meet, in words an operator can act on.
fn alert_text(alert: u8, by_us: bool) -> &'static str {
    match (alert, by_us) {
        (42 | 43 | 46 | 51, true) => "the peer's certificate is bad",
        (42 | 43 | 46 | 51, false) => "the peer calls our certificate bad",
        (44, true) => "the peer's certificate has been revoked",
        (44, false) => "the peer says that our certificate has been revoked",
        (45, true) => "the peer's certificate has expired or is not valid yet",
        (45, false) => "the peer says that our certificate has expired or is not valid yet",
        (48, true) => {
            "the peer's certificate is not from our authority: its cookie differs from ours, or it has \
             another authority"
        }
        (48, false) => {
            "our certificate is not from the peer's authority: our cookie differs from its, or it \
             trusts another authority"
        }
        (116, true) => "the peer showed no certificate",
        (116, false) => "the peer wants a certificate of us",
        (120, _) => "no application protocol in common: the other side is no quic_dist node",
        (70, _) => "no TLS version in common",
        (40, _) => "no TLS parameters in common",
        (_, true) => "the peer broke the TLS handshake",
        (_, false) => "the peer says that we broke the TLS handshake",
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::PeerClosed { code, text } if text.is_empty() => {
                write!(f, "closed by the peer with code {code:#x}")
            }
            CloseReason::PeerClosed { code, text } => {
                write!(f, "closed by the peer with code {code:#x}: {text}")
            }
            CloseReason::LocalClosed { text } => write!(f, "closed by this node: {text}"),
            CloseReason::IdleTimeout => write!(f, "nothing heard for the idle time-out"),
            CloseReason::HandshakeTimeout => write!(f, "the handshake did not finish in time"),
            CloseReason::Tls { by_us, alert } => {
                write!(f, "{} (TLS alert {alert})", alert_text(*alert, *by_us))
            }
            CloseReason::Certificate { alert, text } => write!(f, "{text} (TLS alert {alert})"),
            CloseReason::Protocol { text } => write!(f, "the peer broke the protocol: {text}"),
            CloseReason::Transport { by_us, code, text } => write!(
                f,
                "QUIC transport error {code:#x}{}{}{text}",
                if *by_us {
                    ", found here"
                } else {
                    ", reported by the peer"
                },
                if text.is_empty() { "" } else { ": " },
            ),
            CloseReason::OwnerDown => write!(f, "the process that owned the connection is gone"),
            CloseReason::EndpointClosed => write!(f, "this node's endpoint was closed"),
            CloseReason::Internal => write!(f, "this node's endpoint has failed"),
            CloseReason::Io(errno) => {
                write!(
                    f,
                    "the system says: {}",
                    io::Error::from_raw_os_error(*errno)
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_phrases_of_the_peer_are_bounded_and_printable() {
        let text = printable(&[b'x'; 10_000]);
        assert_eq!(text.len(), MAX_TEXT);
        assert_eq!(printable(b"a\nb\x1b[0m\xff"), "a?b?[0m\u{fffd}");
    }

    #[test]
    fn a_crypto_error_is_a_tls_alert() {
        let error = quiche::ConnectionError {
            is_app: false,
            error_code: 0x130,
            reason: vec![],
        };
        assert_eq!(
            CloseReason::from_error(&error, false),
            CloseReason::Tls {
                by_us: false,
                alert: 48
            }
        );
    }
}
