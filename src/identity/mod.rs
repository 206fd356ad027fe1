//! Who a node is to its peers: the key and certificate it shows, and what it demands of theirs.
//!
//! The default needs no file. A cluster already shares a secret, its cookie: every node derives the
//! same certificate authority from it ([`CookieAuthority`]), mints itself a key and a certificate
//! at boot ([`NodeIdentity::mint`]), drops the authority, and from then on trusts what that
//! authority signed and nothing else, whether it dials or is dialled. A node with another cookie
//! fails in the TLS handshake. The keys of its session tickets come from the same secret
//! ([`Tickets`]), so that it can read them when it has been started again.
//!
//! # What this proves, and what it does not
//!
//! A peer that passes knows the cookie. The *name* in its certificate is what the peer calls
//! itself: each holder of the cookie holds the authority and can sign any name, so [`peer_name`]
//! tells an operator who is there and authorises nothing. Anyone who can reach the port can have
//! our certificate (a TLS server shows it to whoever asks) and try cookies against its signature at
//! leisure; how much each guess costs him is `authority`'s business.
//!
//! # Rules for a caller
//!
//! * Never call `quiche::Config::verify_peer` on a configuration made from these contexts. It
//!   replaces the verify mode (`true` gives `SSL_VERIFY_PEER` alone), and a client without a
//!   certificate would be let in.
//! * Give `quiche::connect` no server name: it would also ask for a DNS name in the certificate,
//!   which a node called `a@10.0.0.1` has not got. The authority is the identity here. The server
//!   name that TLS sends says which authority that is (`choice`), and is set on its own.
//! * TLS 1.3's client is done before the server has looked at the client's certificate. A client's
//!   `is_established()` means "I accept the server"; that the server accepts the client is known by
//!   its first byte, or its refusal.

mod authority;
mod certificate;
mod choice;
mod files;
mod name;
#[cfg(test)]
mod tests;
mod tickets;

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use boring::asn1::Asn1Time;
use boring::ec::{EcGroup, EcKey};
use boring::error::ErrorStack;
use boring::nid::Nid;
use boring::pkey::{PKey, Private};
use boring::sha::Sha256;
use boring::ssl::{SslContext, SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};
use boring::x509::X509;
use boring::x509::store::X509StoreBuilder;
use boring::x509::verify::X509VerifyFlags;

use crate::layout::Role;

pub use authority::CookieAuthority;
pub use certificate::PeerCertificate;
pub use choice::OtherCookie;
pub(crate) use choice::{Admits, Choice};
pub use files::{FileError, Files, SideFiles};
pub use tickets::Tickets;
pub(crate) use tickets::epoch;

use tickets::Secret;

/// Why there is no identity.
#[derive(Debug)]
pub enum IdentityError {
    /// The cookie is empty: an authority that anyone can derive protects nothing.
    EmptyCookie,
    /// The node name cannot be one (too long, or with control characters).
    BadNodeName,
    /// A file of the operator's, which is named.
    File(FileError),
    /// BoringSSL refused a step, which is named.
    Crypto {
        /// What was being done.
        step: &'static str,
        /// What BoringSSL says.
        source: ErrorStack,
    },
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyCookie => f.write_str("the cookie is empty"),
            Self::BadNodeName => f.write_str("the node name is too long or has control characters"),
            Self::File(error) => write!(f, "{error}"),
            Self::Crypto { step, source } => write!(f, "{step}: {source}"),
        }
    }
}

impl Error for IdentityError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Crypto { source, .. } => Some(source),
            Self::File(error) => Some(error),
            Self::EmptyCookie | Self::BadNodeName => None,
        }
    }
}

/// Names the step in which BoringSSL failed.
trait During<T> {
    fn during(self, step: &'static str) -> Result<T, IdentityError>;
}

impl<T> During<T> for Result<T, ErrorStack> {
    fn during(self, step: &'static str) -> Result<T, IdentityError> {
        self.map_err(|source| IdentityError::Crypto { step, source })
    }
}

/// When a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy)]
pub(crate) struct Validity {
    pub not_before: i64,
    pub not_after: i64,
}

impl Validity {
    /// Whatever the time is: what a node mints for itself has the dates of the cookie's authority.
    ///
    /// Dates are read by another clock than they are written by, and with the cookie for trust nobody
    /// has promised that there is one time. A host without a battery begins in 1970 and learns the date
    /// later; a virtual machine that was asleep is days behind. On TCP such nodes connect. With dates
    /// the certificate of a node that was just started would be of tomorrow to such a host, and what
    /// it minted in 1970 would have ended for everybody else, until it is started again.
    ///
    /// What dates are good for is not lost by it. They take power from a key that was stolen, or is
    /// not to be used any more. This key does not exist before the mint, so there is nothing that an
    /// earlier date lets anybody do; it is in the node's memory and nowhere else, and who has read that
    /// has the cookie, with which he signs a certificate of any date. The key alone leads as far as the
    /// distribution handshake, whose challenge takes the cookie. What ends it is another cookie: that is
    /// another authority.
    ///
    /// The dates of an operator's certificates ([`NodeIdentity::read`]) are the operator's, and count.
    const ALWAYS: Validity = Validity {
        not_before: 0,
        // RFC 5280's "no well-defined expiration": the end of the year 9999.
        not_after: 253_402_300_799,
    };

    fn asn1(self) -> Result<(Asn1Time, Asn1Time), ErrorStack> {
        Ok((
            Asn1Time::from_unix(self.not_before)?,
            Asn1Time::from_unix(self.not_after)?,
        ))
    }
}

/// What a node shows to its peers.
#[derive(Clone)]
pub(crate) struct Shown {
    key: PKey<Private>,
    certificate: X509,
    /// Between the certificate and its authority, in their order.
    intermediates: Vec<X509>,
}

/// What a node demands of its peers' certificates.
#[derive(Clone)]
pub(crate) struct Demanded {
    authorities: Vec<X509>,
    /// Lists of revoked certificates, in PEM, and whether whole chains are looked up in them.
    revoked: Option<(Vec<u8>, bool)>,
    /// How many intermediates there may be.
    depth: u32,
}

/// How a peer's certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// By the authority that the cookie stands for.
    Cookie,
    /// By authorities of the operator's.
    Certificate,
    /// Not at all.
    No,
}

/// What a node shows in one role, and what it demands of the peer.
#[derive(Clone)]
struct Side {
    /// A client that is not verified need not show anything.
    shown: Option<Shown>,
    demanded: Option<Demanded>,
    /// The public key of the cookie's authority, if that signed what is shown, and is demanded.
    of_cookie: Option<Vec<u8>>,
    /// What that authority is called by.
    calls: Option<Secret>,
}

/// A node's own keys and certificates, and the authorities it trusts.
///
/// The cookie's authority's private key is not in here, nor can it be had from what is: once the
/// certificate is signed, a running node has no use for it. The node's own keys live in memory of BoringSSL's, which overwrites all
/// it frees (`OPENSSL_free` cleanses).
pub struct NodeIdentity {
    name: String,
    client: Side,
    server: Side,
    by: Verified,
    tickets: Secret,
}

impl NodeIdentity {
    /// Makes a new key for the node and has its certificate signed. `node_name` may be empty: a
    /// node with a dynamic name does not know it yet when it starts to listen.
    pub fn mint(authority: &CookieAuthority, node_name: &str) -> Result<Self, IdentityError> {
        Self::mint_for(authority, node_name, Validity::ALWAYS)
    }

    pub(crate) fn mint_for(
        authority: &CookieAuthority,
        node_name: &str,
        validity: Validity,
    ) -> Result<Self, IdentityError> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).during("P-256")?;
        let key = EcKey::generate(&group)
            .and_then(PKey::from_ec_key)
            .during("node key")?;
        let certificate = authority.sign_leaf(&key, node_name, validity)?;
        let side = Side {
            shown: Some(Shown {
                key,
                certificate,
                intermediates: Vec::new(),
            }),
            demanded: Some(Demanded {
                authorities: vec![authority.certificate().clone()],
                revoked: None,
                // No intermediates. The authority's pathLenConstraint says so as well, but BoringSSL
                // does not read it on a trust anchor.
                depth: 0,
            }),
            of_cookie: Some(authority.public_key()?),
            calls: Some(authority.calls().clone()),
        };
        Ok(Self {
            name: node_name.to_owned(),
            client: side.clone(),
            server: side,
            by: Verified::Cookie,
            tickets: authority.ticket_secret().clone(),
        })
    }

    /// The same, but anybody is let in, and anybody is believed to be the node that was dialled.
    #[must_use]
    pub fn that_trusts_everybody(mut self) -> Self {
        self.client.demanded = None;
        self.server.demanded = None;
        self
    }

    /// The name it was minted for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the peers' certificates are verified where this node has a role.
    #[must_use]
    pub fn verifies(&self, role: Role) -> Verified {
        match self.side(role).demanded {
            Some(_) => self.by,
            None => Verified::No,
        }
    }

    /// What the node shows in a role.
    #[must_use]
    pub fn certificate(&self, role: Role) -> Option<PeerCertificate> {
        let shown = self.side(role).shown.as_ref()?;
        PeerCertificate::read(&shown.certificate.to_der().ok()?)
    }

    /// The keys for the session tickets that it gives where it is dialled.
    pub fn tickets(&self) -> Result<Tickets, IdentityError> {
        let whose = self.server.digest().during("own certificate")?;
        Tickets::new(&self.tickets, &self.name, &whose).during("ticket key")
    }

    fn side(&self, role: Role) -> &Side {
        match role {
            Role::Client => &self.client,
            Role::Server => &self.server,
        }
    }

    /// For `quiche::Config::with_boring_ssl_ctx_builder`, on the side that dials.
    pub fn client_context(&self) -> Result<SslContextBuilder, IdentityError> {
        self.client.context()
    }

    /// For `quiche::Config::with_boring_ssl_ctx_builder`, on the side that is dialled.
    pub fn server_context(&self) -> Result<SslContextBuilder, IdentityError> {
        self.server.context()
    }

    /// The same, for a node that has other cookies for others.
    pub(crate) fn server_context_or(
        &self,
        choice: &Arc<Choice>,
    ) -> Result<SslContextBuilder, IdentityError> {
        let mut context = self.server.context()?;
        if let Some(own) = self.server.calls.clone() {
            let choice = choice.clone();
            context.set_select_certificate_callback(move |mut hello| {
                choice.choose(own.bytes(), &mut hello)
            });
        }
        Ok(context)
    }

    /// The server name to dial with: it says by which cookie's authority. A new one for each dial.
    pub(crate) fn server_name(&self) -> Result<Option<String>, IdentityError> {
        let authority = self.client.calls.as_ref();
        let name = authority
            .map(|calls| choice::call(calls.bytes()))
            .transpose();
        name.during("server name")
    }
}

impl Side {
    /// Both sides ask the same of each other. BoringSSL adds the purpose by itself: a server wants
    /// a certificate that is good for `clientAuth`, a client one for `serverAuth`.
    fn context(&self) -> Result<SslContextBuilder, IdentityError> {
        let mut context = SslContext::builder(SslMethod::tls()).during("TLS context")?;
        // QUIC knows no other version; said here too, so that the context is safe in any other
        // hands.
        context
            .set_min_proto_version(Some(SslVersion::TLS1_3))
            .and_then(|()| context.set_max_proto_version(Some(SslVersion::TLS1_3)))
            .during("TLS 1.3")?;
        // A store of our own in place of the default one: no authority of the system's is trusted.
        let mut store = X509StoreBuilder::new().during("certificate store")?;
        match &self.demanded {
            Some(demanded) => {
                demanded.fill(&mut store)?;
                context.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
                context.set_verify_depth(demanded.depth);
            }
            None => context.set_verify(SslVerifyMode::NONE),
        }
        context.set_cert_store_builder(store);
        // A session is resumed by the identity that made it, and by no other: a changed cookie or
        // certificate begins anew, and so does a node that verifies otherwise than it did.
        if let Some(shown) = &self.shown {
            shown.put(&mut context).during("own certificate")?;
        }
        let whose = self.digest().during("own certificate")?;
        context
            .set_session_id_context(&whose)
            .during("session context")?;
        Ok(context)
    }
}

impl Side {
    /// What a session stays bound to, also when the node starts again. With a cookie the node's own
    /// certificate is new then, and only says once more what the authority says.
    fn digest(&self) -> Result<[u8; 32], ErrorStack> {
        let mut hasher = Parts(Sha256::new());
        if let Some(authority) = &self.of_cookie {
            hasher.part(b"cookie", authority);
        } else if let Some(shown) = &self.shown {
            hasher.part(b"shown", &shown.certificate.to_der()?);
        }
        let Some(demanded) = &self.demanded else {
            hasher.part(b"nothing is demanded", &[]);
            return Ok(hasher.0.finish());
        };
        hasher.part(b"depth", &demanded.depth.to_be_bytes());
        if self.of_cookie.is_none() {
            for authority in &demanded.authorities {
                hasher.part(b"authority", &authority.to_der()?);
            }
        }
        if let Some((pem, chains)) = &demanded.revoked {
            hasher.part(b"revoked", pem);
            hasher.part(b"chains", &[u8::from(*chains)]);
        }
        Ok(hasher.0.finish())
    }
}

/// Hashes parts so that each can be told from the next.
struct Parts(Sha256);

impl Parts {
    fn part(&mut self, name: &[u8], value: &[u8]) {
        for text in [name, value] {
            self.0.update(&(text.len() as u64).to_be_bytes());
            self.0.update(text);
        }
    }
}

impl Shown {
    fn put(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        context.set_certificate(&self.certificate)?;
        for certificate in &self.intermediates {
            context.add_extra_chain_cert(certificate.clone())?;
        }
        context.set_private_key(&self.key)?;
        context.check_private_key()
    }
}

impl Demanded {
    fn fill(&self, store: &mut X509StoreBuilder) -> Result<(), IdentityError> {
        for authority in &self.authorities {
            store.add_cert(authority).during("trusted authority")?;
        }
        if let Some((pem, chains)) = &self.revoked {
            quic_dist_crl::add_pem(store, pem).during("revocation list")?;
            let mut flags = X509VerifyFlags::CRL_CHECK;
            if *chains {
                flags |= X509VerifyFlags::CRL_CHECK_ALL;
            }
            store.verify_param_mut().set_flags(flags);
        }
        Ok(())
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity")
            .field("name", &self.name)
            .field("by", &self.by)
            .finish_non_exhaustive()
    }
}
