//! The certificate authority that a cookie stands for: cookie -> scrypt -> P-256 key -> self-signed
//! certificate.
//!
//! All nodes with one cookie get the same key and the same subject, which is all that a chain
//! needs; the certificates themselves differ in their signatures. So everything from the salt to
//! the reduction is protocol: change any of it, and old and new nodes are strangers. [`SALT`]
//! carries the version for that day.

use std::fmt;

use boring::asn1::{Asn1Integer, Asn1Time};
use boring::bn::{BigNum, BigNumContext, MsbOption};
use boring::ec::{EcGroup, EcKey, EcPoint};
use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkcs5;
use boring::pkey::{PKey, Private};
use boring::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectKeyIdentifier,
};
use boring::x509::{X509, X509Builder, X509Name};

use zeroize::Zeroizing;

use super::tickets::Secret;
use super::{During, IdentityError, Validity, name};

/// Keeps this derivation apart from every other use of the cookie, and this version of it from the
/// next. It is the same for all clusters, as it must be: nodes that have only the cookie in common
/// must arrive at the same key. So a table of guesses, once made, serves against all clusters; the
/// remedy is a long cookie (the one that Erlang makes by itself, 20 random capitals, is out of
/// reach).
const SALT: &[u8] = b"quic_dist cookie authority v1";

/// scrypt's cost: 2^15 blocks of 1 KiB (128 * `SCRYPT_R` bytes), so 32 MiB, and `SCRYPT_P` such
/// passes one after the other in the same memory.
///
/// Measured on a two-core x86-64 machine, release build: 0.17 to 0.21 s (0.3 s beside five other
/// busy processes), and a peak resident memory of 36 MiB in a process of 3.3 MiB, given back (and
/// overwritten) when it ends. Three passes took 0.22 to 0.25 s, and (2^16, 8, 1) 0.18 to 0.24 s
/// with 67 MiB: a host that boots several nodes at once should have each up within half a second,
/// in the memory that it has.
const SCRYPT_N: u64 = 1 << 15;
const SCRYPT_R: u64 = 8;
const SCRYPT_P: u64 = 2;
/// What scrypt may allocate; it needs a few KiB over 32 MiB.
const SCRYPT_MAX_MEMORY: usize = 33 << 20;

/// 128 bits more than the order of P-256 has, so that the remainder is uniform for all purposes
/// (FIPS 186-5, A.2.1).
const SEED_LEN: usize = 48;

const SUBJECT: &str = "quic_dist cookie authority";
/// RFC 5280's "no well-defined expiration": the authority lives as long as the cookie.
const AUTHORITY_NOT_BEFORE: &str = "19700101000000Z";
const AUTHORITY_NOT_AFTER: &str = "99991231235959Z";

/// X.509 v3, which counts from zero.
const X509_V3: i32 = 2;

/// A cluster's certificate authority, with its private key. Keep it no longer than it takes to
/// mint.
pub struct CookieAuthority {
    key: PKey<Private>,
    certificate: X509,
    tickets: Secret,
    calls: Secret,
}

impl CookieAuthority {
    /// Derives the authority of `cookie`. Slow by intent (about 0.2 s, and 32 MiB meanwhile):
    /// not for a normal scheduler.
    ///
    /// The seed is overwritten here. The rest that is secret (scrypt's work space, the numbers, the
    /// key) lies in BoringSSL's heap, which overwrites all that is freed; what its functions leave
    /// on the stack is out of our hands. The cookie is the caller's.
    pub fn derive(cookie: &[u8]) -> Result<Self, IdentityError> {
        if cookie.is_empty() {
            return Err(IdentityError::EmptyCookie);
        }
        let seed = seed(cookie)?;
        let key = key_from_seed(&seed).during("authority key")?;
        let certificate = self_signed(&key).during("authority certificate")?;
        Ok(Self {
            key,
            certificate,
            tickets: Secret::of_cookie(&seed[..]).during("ticket key")?,
            calls: Secret::for_calls(&seed[..]).during("key of calls")?,
        })
    }

    /// What the keys of session tickets are derived from.
    pub(super) fn ticket_secret(&self) -> &Secret {
        &self.tickets
    }

    /// What the authority is called by.
    pub(super) fn calls(&self) -> &Secret {
        &self.calls
    }

    pub(super) fn public_key(&self) -> Result<Vec<u8>, IdentityError> {
        self.key.public_key_to_der().during("authority key")
    }

    pub(super) fn certificate(&self) -> &X509 {
        &self.certificate
    }

    #[cfg(test)]
    pub(super) fn key(&self) -> &PKey<Private> {
        &self.key
    }

    /// A certificate for `key`, good for both ends of a connection and for signing nothing.
    pub(super) fn sign_leaf(
        &self,
        key: &PKey<Private>,
        node_name: &str,
        validity: Validity,
    ) -> Result<X509, IdentityError> {
        let names = name::Names::of(node_name)?;
        let times = validity.asn1().during("dates")?;
        self.build_leaf(key, &names, &times)
            .during("node certificate")
    }

    fn build_leaf(
        &self,
        key: &PKey<Private>,
        names: &name::Names,
        (not_before, not_after): &(Asn1Time, Asn1Time),
    ) -> Result<X509, ErrorStack> {
        let mut builder = X509Builder::new()?;
        builder.set_version(X509_V3)?;
        let serial = random_serial()?;
        builder.set_serial_number(&serial)?;
        let subject = common_name(&names.common_name)?;
        builder.set_subject_name(&subject)?;
        builder.set_issuer_name(self.certificate.subject_name())?;
        builder.set_not_before(not_before)?;
        builder.set_not_after(not_after)?;
        builder.set_pubkey(key)?;
        let basic = BasicConstraints::new().critical().build()?;
        let usage = KeyUsage::new().critical().digital_signature().build()?;
        let purpose = ExtendedKeyUsage::new()
            .server_auth()
            .client_auth()
            .build()?;
        let context = builder.x509v3_context(Some(&self.certificate), None);
        // It tells two cookies' authorities apart, which have the same subject: a peer with another
        // cookie is told "unknown authority" rather than "bad signature".
        let issuer_key = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
        let alternative = names.alternative().build(&context)?;
        for extension in [basic, usage, purpose, issuer_key, alternative] {
            builder.append_extension(&extension)?;
        }
        builder.sign(&self.key, MessageDigest::sha256())?;
        Ok(builder.build())
    }
}

/// What all that stands for a cookie is derived from. As slow as [`CookieAuthority::derive`].
pub(super) fn seed(cookie: &[u8]) -> Result<Zeroizing<[u8; SEED_LEN]>, IdentityError> {
    let mut seed = Zeroizing::new([0; SEED_LEN]);
    pkcs5::scrypt(
        cookie,
        SALT,
        SCRYPT_N,
        SCRYPT_R,
        SCRYPT_P,
        SCRYPT_MAX_MEMORY,
        &mut seed[..],
    )
    .during("scrypt")?;
    Ok(seed)
}

impl fmt::Debug for CookieAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieAuthority").finish_non_exhaustive()
    }
}

/// `seed mod (n - 1) + 1`, for the order n: uniform over all private keys. BoringSSL's division
/// takes a time that depends on the numbers; it happens once at boot, under no observer's clock,
/// and the multiplication is constant-time.
fn key_from_seed(seed: &[u8; SEED_LEN]) -> Result<PKey<Private>, ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let mut context = BigNumContext::new()?;
    let mut order = BigNum::new()?;
    group.order(&mut order, &mut context)?;
    order.sub_word(1)?;
    let wide = BigNum::from_slice(seed)?;
    let mut scalar = BigNum::new()?;
    scalar.nnmod(&wide, &order, &mut context)?;
    scalar.add_word(1)?;
    let mut point = EcPoint::new(&group)?;
    point.mul_generator(&group, &scalar, &mut context)?;
    let key = EcKey::from_private_components(&group, &scalar, &point)?;
    key.check_key()?;
    PKey::from_ec_key(key)
}

fn self_signed(key: &PKey<Private>) -> Result<X509, ErrorStack> {
    let mut builder = X509Builder::new()?;
    builder.set_version(X509_V3)?;
    let serial = BigNum::from_u32(1)?.to_asn1_integer()?;
    builder.set_serial_number(&serial)?;
    let subject = common_name(SUBJECT)?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(&subject)?;
    let not_before = Asn1Time::from_str_x509(AUTHORITY_NOT_BEFORE)?;
    let not_after = Asn1Time::from_str_x509(AUTHORITY_NOT_AFTER)?;
    builder.set_not_before(&not_before)?;
    builder.set_not_after(&not_after)?;
    builder.set_pubkey(key)?;
    let basic = BasicConstraints::new().critical().ca().pathlen(0).build()?;
    let usage = KeyUsage::new().critical().key_cert_sign().build()?;
    let subject_key = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
    for extension in [basic, usage, subject_key] {
        builder.append_extension(&extension)?;
    }
    builder.sign(key, MessageDigest::sha256())?;
    Ok(builder.build())
}

fn common_name(value: &str) -> Result<X509Name, ErrorStack> {
    let mut builder = X509Name::builder()?;
    builder.append_entry_by_nid(Nid::COMMONNAME, value)?;
    Ok(builder.build())
}

/// 127 random bits, the highest set: always 16 bytes, never zero or negative.
fn random_serial() -> Result<Asn1Integer, ErrorStack> {
    let mut number = BigNum::new()?;
    number.rand(127, MsbOption::ONE, false)?;
    number.to_asn1_integer()
}
