//! An identity from the operator's files: the node's certificates and keys, the authorities it
//! trusts, and their lists of revoked certificates, all in PEM.
//!
//! Files are read here, and not in Erlang, so that keys never lie in the memory of the VM, which a
//! crash dump shows.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use boring::error::ErrorStack;
use boring::pkey::PKey;
use boring::x509::X509;
use boring::x509::store::X509StoreBuilder;
use zeroize::Zeroizing;

use crate::layout::Role;

use super::tickets::Secret;
use super::{Demanded, During, IdentityError, NodeIdentity, Shown, Side, Verified, authority};

/// The longest file that is read: bundles of all public authorities have 200 KB, the longest
/// revocation lists some MB.
const MAX_FILE_BYTES: u64 = 32 << 20;
/// Certificates in a chain, the node's own included.
const MAX_CHAIN: usize = 16;

/// What a node shows and demands in one role.
#[derive(Clone, Default)]
pub struct SideFiles {
    /// The certificate, and after it those between it and the authority.
    pub certificate: Option<PathBuf>,
    /// The key; by default it is in the certificate's file.
    pub key: Option<PathBuf>,
    /// What the key is encrypted with.
    pub password: Option<Zeroizing<Vec<u8>>>,
    /// The authorities that are trusted; none: the peer is not verified.
    pub authorities: Option<PathBuf>,
    /// Lists of revoked certificates, and whether the authorities' own certificates are looked up
    /// in them as well.
    pub revoked: Option<(PathBuf, bool)>,
    /// How many certificates there may be between an authority's and the peer's.
    pub depth: u32,
}

/// The files of both roles.
#[derive(Clone, Default)]
pub struct Files {
    /// Where this node dials.
    pub client: SideFiles,
    /// Where it is dialled.
    pub server: SideFiles,
}

/// What is wrong with a file.
#[derive(Debug)]
pub struct FileError {
    path: PathBuf,
    what: What,
}

#[derive(Debug)]
enum What {
    Io(io::Error),
    TooLong,
    NoCertificate,
    ChainTooLong,
    Certificate,
    Key(ErrorStack),
    OtherKey,
    Revoked,
    NoList,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.what {
            What::Io(error) => write!(f, "{error}"),
            What::TooLong => write!(f, "longer than {MAX_FILE_BYTES} bytes"),
            What::NoCertificate => f.write_str("no certificate in it"),
            What::ChainTooLong => write!(f, "more than {MAX_CHAIN} certificates"),
            What::Certificate => f.write_str("a certificate in it is malformed"),
            // BoringSSL's reasons say nothing of the key itself.
            What::Key(error) => match error.errors().first().and_then(|e| e.reason()) {
                Some("BAD_DECRYPT" | "BAD_PASSWORD_READ") => {
                    f.write_str("the key is encrypted, and the password is missing or wrong")
                }
                _ => f.write_str("no private key in it, or it is encrypted and the password wrong"),
            },
            What::OtherKey => f.write_str("the key is not that of the certificate"),
            What::Revoked => f.write_str("a revocation list in it is malformed"),
            What::NoList => f.write_str("no revocation list in it"),
        }
    }
}

impl std::error::Error for FileError {}

trait In<T> {
    fn of(self, path: &Path) -> Result<T, IdentityError>;
}

impl<T> In<T> for Result<T, What> {
    fn of(self, path: &Path) -> Result<T, IdentityError> {
        self.map_err(|what| {
            let path = path.to_owned();
            IdentityError::File(FileError { path, what })
        })
    }
}

impl NodeIdentity {
    /// Reads the files. What is wrong is found here and not in a handshake. The cookie has to do
    /// with session tickets alone: see [`Tickets`](super::Tickets). As slow as
    /// [`CookieAuthority::derive`](super::CookieAuthority::derive), and for the same reason.
    pub fn read(files: &Files, cookie: &[u8], node_name: &str) -> Result<Self, IdentityError> {
        // All files before the slow part: those of one moment belong together.
        let server = side(&files.server)?;
        let client = side(&files.client)?;
        let tickets = match &server.shown {
            Some(shown) => Secret::of_key(&shown.key, &authority::seed(cookie)?[..]),
            None => Secret::random(),
        };
        let identity = NodeIdentity {
            name: node_name.to_owned(),
            client,
            server,
            by: Verified::Certificate,
            tickets: tickets.during("ticket key")?,
        };
        identity.client_context()?;
        identity.server_context()?;
        Ok(identity)
    }
}

impl NodeIdentity {
    /// What peers will not like about what this node shows.
    #[must_use]
    pub fn complaints(&self, now: SystemTime) -> Vec<String> {
        let mut complaints = Vec::new();
        for (role, whom) in [(Role::Server, "dial"), (Role::Client, "are dialled")] {
            let Some(certificate) = self.certificate(role) else {
                continue;
            };
            if let Some(text) = certificate.out_of_time(now) {
                complaints.push(format!(
                    "this node's certificate ({}) {text}: nodes that {whom} refuse it",
                    certificate.whose()
                ));
            }
            if !self.name.is_empty() && !certificate.is_for(&self.name) {
                complaints.push(format!(
                    "this node's certificate is that of {}, not of {}: nodes that {whom} refuse it",
                    certificate.whose(),
                    self.name
                ));
            }
        }
        complaints
    }
}

fn side(files: &SideFiles) -> Result<Side, IdentityError> {
    let shown = match &files.certificate {
        Some(path) => Some(shown(path, files)?),
        None => None,
    };
    let demanded = match &files.authorities {
        Some(path) => Some(demanded(path, files)?),
        None => None,
    };
    Ok(Side {
        shown,
        demanded,
        of_cookie: None,
        calls: None,
    })
}

fn shown(path: &Path, files: &SideFiles) -> Result<Shown, IdentityError> {
    let mut chain = certificates(path)?.into_iter();
    let certificate = chain.next().ok_or(What::NoCertificate).of(path)?;
    let intermediates: Vec<X509> = chain.collect();
    if intermediates.len() >= MAX_CHAIN {
        return Err(What::ChainTooLong).of(path);
    }
    let key_path = files.key.as_deref().unwrap_or(path);
    let pem = read(key_path)?;
    let key = match &files.password {
        Some(password) => PKey::private_key_from_pem_passphrase(&pem, password),
        None => PKey::private_key_from_pem(&pem),
    };
    let key = key.map_err(What::Key).of(key_path)?;
    let of_it = certificate
        .public_key()
        .is_ok_and(|public| public.public_eq(&key));
    drop(ErrorStack::get());
    if !of_it {
        return Err(What::OtherKey).of(key_path);
    }
    Ok(Shown {
        key,
        certificate,
        intermediates,
    })
}

fn demanded(path: &Path, files: &SideFiles) -> Result<Demanded, IdentityError> {
    let authorities = certificates(path)?;
    if authorities.is_empty() {
        return Err(What::NoCertificate).of(path);
    }
    let revoked = match &files.revoked {
        Some((path, chains)) => {
            let pem = read(path)?;
            let mut trial = X509StoreBuilder::new().during("certificate store")?;
            match quic_dist_crl::add_pem(&mut trial, &pem) {
                Ok(0) => return Err(What::NoList).of(path),
                Ok(_) => Some((pem.to_vec(), *chains)),
                Err(_) => return Err(What::Revoked).of(path),
            }
        }
        None => None,
    };
    Ok(Demanded {
        authorities,
        revoked,
        depth: files.depth,
    })
}

fn certificates(path: &Path) -> Result<Vec<X509>, IdentityError> {
    let pem = read(path)?;
    X509::stack_from_pem(&pem)
        .map_err(|_| What::Certificate)
        .of(path)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let mut bytes = Zeroizing::new(Vec::new());
    let length = File::open(path)
        .and_then(|file| {
            // Room at once: a vector that grows leaves copies behind.
            let size = file
                .metadata()
                .map_or(0, |meta| meta.len().min(MAX_FILE_BYTES + 1));
            bytes.reserve_exact(usize::try_from(size).unwrap_or(0) + 1);
            file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)
        })
        .map_err(What::Io)
        .of(path)?;
    if length as u64 > MAX_FILE_BYTES {
        return Err(What::TooLong).of(path);
    }
    Ok(bytes)
}
