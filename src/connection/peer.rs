//! Who the peer is, once its handshake is complete: what its certificate must say, of whichever
//! connection it was first shown on.
//!
//! BoringSSL has verified the certificate in a full handshake. A resumed one brings it along, to the
//! client in the session and to the server in the ticket, and verifies nothing anew; so dates are
//! looked at here.

use std::sync::Arc;
use std::time::SystemTime;

use super::{Connection, Happening, State};
use crate::close::CloseReason;
use crate::identity::{Choice, PeerCertificate, Verified};
use crate::layout::Role;
use crate::sessions::Session;

/// RFC 8446, section 6.
const BAD_CERTIFICATE: u8 = 42;
const CERTIFICATE_EXPIRED: u8 = 45;
/// RFC 9001, section 4.8.
const CRYPTO_ERROR: u64 = 0x100;

/// Whom a connection should lead to, and how that is known.
pub(super) struct Peer {
    /// The node that was dialled; its certificate has to say so.
    dialled: Option<String>,
    pub verified: Verified,
    /// Where it dials us: by which cookie's authority it may have come.
    choice: Option<Arc<Choice>>,
    /// The session has been told.
    told: bool,
}

impl Peer {
    pub fn new() -> Self {
        Peer {
            dialled: None,
            verified: Verified::Cookie,
            choice: None,
            told: false,
        }
    }
}

impl Connection {
    /// Dials a node of this name, with a session from before if there is one. To be called before
    /// anything is sent.
    pub(crate) fn dials(&mut self, node: &str, session: Option<&Session>) {
        self.peer.dialled = Some(node.to_owned());
        if let Some(session) = session
            && let Err(error) = self.quic.set_session(session.bytes())
        {
            log::debug!("a TLS session cannot be resumed: {error}");
        }
    }

    /// How the certificate of the peer was, or will be, verified.
    pub(crate) fn set_verified(&mut self, verified: Verified) {
        self.peer.verified = verified;
    }

    /// The peer may come by one of several authorities.
    pub(crate) fn set_choice(&mut self, choice: Arc<Choice>) {
        self.peer.choice = Some(choice);
    }

    /// Whether the handshake waits for an authority to be found ([`Choice::question`]). Then nothing is
    /// sent: a client of whose packets all are acknowledged, and that has no keys yet, asks for an answer
    /// a round trip later, and again, with full datagrams (RFC 9002, section 6.2.2.1). One that hears
    /// nothing repeats its first packet, ever more slowly. Once there is an answer, the next sending
    /// goes on with it.
    pub(crate) fn is_held(&mut self) -> bool {
        let (State::Handshaking(_), Some(choice)) = (&self.state, &self.peer.choice) else {
            return false;
        };
        let tls: &mut boring::ssl::SslRef = self.quic.as_mut();
        choice.holds(tls)
    }

    /// Looks at the certificate of a peer whose handshake is complete. An error has ended the
    /// connection.
    pub(super) fn judge_peer(&mut self) -> Result<(), CloseReason> {
        if self.peer.verified == Verified::No {
            return Ok(());
        }
        let mut certificate = self.quic.peer_cert().and_then(PeerCertificate::read);
        if let (Some(certificate), Some(choice), Verified::Cookie) =
            (&mut certificate, &self.peer.choice, self.peer.verified)
        {
            certificate.limit(choice.admits(self.quic.as_mut()));
        }
        let refusal = match (&certificate, self.peer.dialled.as_deref()) {
            (None, _) => Some((
                BAD_CERTIFICATE,
                "the peer's certificate cannot be read, or has a name that no node can have".into(),
            )),
            (Some(certificate), dialled) => {
                let expired = (self.quic.is_resumed())
                    .then(|| out_of_time(certificate))
                    .flatten()
                    .map(|text| (CERTIFICATE_EXPIRED, text));
                let other = certificate.is_of_another_cookie().then(|| {
                    let text = format!(
                        "the peer's certificate, of {}, is of another cookie than is set for it",
                        certificate.whose()
                    );
                    (BAD_CERTIFICATE, text)
                });
                expired.or(other).or_else(|| {
                    let node = dialled.filter(|node| !certificate.is_for(node))?;
                    let text = format!(
                        "the peer's certificate is that of {}, not of {node}",
                        certificate.whose()
                    );
                    Some((BAD_CERTIFICATE, text))
                })
            }
        };
        if let Some((alert, text)) = refusal {
            return Err(CloseReason::Certificate { alert, text });
        }
        if let Some(certificate) = certificate {
            // It is set once, for a handshake is completed once.
            let _ = self.shared.certificate.set(certificate);
        }
        Ok(())
    }

    /// Ends a connection whose peer has the wrong certificate.
    pub(super) fn refuse_peer(&mut self, reason: CloseReason) {
        let alert = match &reason {
            CloseReason::Certificate { alert, .. } => *alert,
            _ => BAD_CERTIFICATE,
        };
        self.report(reason);
        self.hang_up_with(false, CRYPTO_ERROR + u64::from(alert), "");
    }

    /// Tells of a session that the peer has given us.
    pub(super) fn look_for_session(&mut self) {
        if self.peer.told || self.role == Role::Server {
            return;
        }
        let (Some(bytes), Some(certificate)) = (self.quic.session(), self.shared.certificate.get())
        else {
            return;
        };
        self.peer.told = true;
        let left = certificate.left(SystemTime::now());
        if let (Some(session), Some(left)) = (Session::new(bytes), left) {
            self.happenings.push_back(Happening::Session(session, left));
        }
    }
}

/// Why the certificate is not valid now, if it is not.
pub(super) fn out_of_time(certificate: &PeerCertificate) -> Option<String> {
    certificate
        .out_of_time(SystemTime::now())
        .map(|text| format!("the peer's certificate ({}) {text}", certificate.whose()))
}

impl Connection {
    /// What is said of a certificate that BoringSSL has refused, if more is known than the alert.
    pub(super) fn refused_certificate(&mut self, alert: u8) -> Option<CloseReason> {
        let certificate = PeerCertificate::read(self.quic.peer_cert()?)?;
        let by_date = out_of_time(&certificate).filter(|_| alert == CERTIFICATE_EXPIRED);
        let text = match (by_date, self.peer.verified) {
            (Some(text), _) => text,
            // Of the cookie's authority nothing else can be wrong than what the alert says.
            (None, Verified::Cookie | Verified::No) => return None,
            (None, Verified::Certificate) => {
                let ssl: &mut boring::ssl::SslRef = self.quic.as_mut();
                let error = ssl.verify_result().err()?;
                format!(
                    "the peer's certificate ({}): {}",
                    certificate.whose(),
                    error.error_string()
                )
            }
        };
        Some(CloseReason::Certificate { alert, text })
    }
}
