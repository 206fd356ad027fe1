//! The authority's own tests, and what the others have in common.

mod certificates;
mod handshakes;
mod wire;

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use boring::asn1::Asn1Integer;
use boring::bn::BigNum;
use boring::hash::MessageDigest;
use boring::x509::extension::{BasicConstraints, ExtendedKeyUsage, KeyUsage};
use boring::x509::{X509Builder, X509Extension};

use super::*;

static SECRET: LazyLock<CookieAuthority> =
    LazyLock::new(|| CookieAuthority::derive(b"secret").unwrap());
static OTHER: LazyLock<CookieAuthority> =
    LazyLock::new(|| CookieAuthority::derive(b"secreT").unwrap());

const HOUR: i64 = 60 * 60;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

fn public_key(certificate: &X509) -> Vec<u8> {
    let key = certificate.public_key().unwrap();
    key.public_key_to_der().unwrap()
}

fn peer_name(der: &[u8]) -> Option<String> {
    PeerCertificate::read(der)?.node().map(str::to_owned)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn client(identity: &NodeIdentity) -> SslContextBuilder {
    identity.client_context().unwrap()
}

fn server(identity: &NodeIdentity) -> SslContextBuilder {
    identity.server_context().unwrap()
}

/// The context of a client or server that lets anyone in.
fn careless(mut context: SslContextBuilder) -> SslContextBuilder {
    context.set_verify(SslVerifyMode::NONE);
    context
}

fn shown(identity: &NodeIdentity) -> &Shown {
    identity.server.shown.as_ref().unwrap()
}

fn mint(authority: &CookieAuthority, name: &str) -> NodeIdentity {
    NodeIdentity::mint(authority, name).unwrap()
}

/// An identity that shows `certificate` in place of its own.
fn showing(certificate: X509, key: PKey<Private>) -> NodeIdentity {
    let mut identity = mint(&SECRET, "forged@host");
    let other = Shown {
        key,
        certificate,
        intermediates: Vec::new(),
    };
    identity.client.shown = Some(other.clone());
    identity.server.shown = Some(other);
    identity
}

/// A certificate of the test's own making, signed by `issuer`'s key.
fn forge(
    issuer: (&X509, &PKey<Private>),
    key: &PKey<Private>,
    extensions: &[X509Extension],
) -> X509 {
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    let serial: Asn1Integer = BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap();
    builder.set_serial_number(&serial).unwrap();
    let subject = shown(&mint(&SECRET, "forged@host")).certificate.clone();
    builder.set_subject_name(subject.subject_name()).unwrap();
    builder.set_issuer_name(issuer.0.subject_name()).unwrap();
    builder
        .set_not_before(&Asn1Time::from_unix(now() - HOUR).unwrap())
        .unwrap();
    builder
        .set_not_after(&Asn1Time::from_unix(now() + HOUR).unwrap())
        .unwrap();
    builder.set_pubkey(key).unwrap();
    for extension in extensions {
        builder.append_extension(extension).unwrap();
    }
    builder.sign(issuer.1, MessageDigest::sha256()).unwrap();
    builder.build()
}

fn new_key() -> PKey<Private> {
    shown(&mint(&SECRET, "")).key.clone()
}

fn leaf_extensions() -> Vec<X509Extension> {
    vec![
        KeyUsage::new()
            .critical()
            .digital_signature()
            .build()
            .unwrap(),
        ExtendedKeyUsage::new()
            .server_auth()
            .client_auth()
            .build()
            .unwrap(),
    ]
}

fn ca_extensions() -> Vec<X509Extension> {
    vec![
        BasicConstraints::new().critical().ca().build().unwrap(),
        KeyUsage::new().critical().key_cert_sign().build().unwrap(),
    ]
}

#[test]
fn one_cookie_makes_one_authority() {
    let again = CookieAuthority::derive(b"secret").unwrap();
    assert_eq!(
        public_key(again.certificate()),
        public_key(SECRET.certificate())
    );
    assert_ne!(
        public_key(OTHER.certificate()),
        public_key(SECRET.certificate())
    );
    assert!(again.key().public_eq(SECRET.key()));
}

/// Nodes of different versions must agree on it. The point was computed apart from BoringSSL:
/// Python's `hashlib.scrypt` and the curve's formulas on Python's integers.
#[test]
fn the_derivation_is_what_it_was() {
    let expected = "6fdbb7523ee017cbc60d553154962666f9f350ebb476773840063bd72bef3b47\
                    228f57e204a102f8d33135723355e10a6a7a89d856378f4867a6290eb4cdd345";
    let der = hex(&public_key(SECRET.certificate()));
    assert!(der.ends_with(expected), "{der}");
}

#[test]
fn an_empty_cookie_is_refused() {
    let result = CookieAuthority::derive(b"");
    assert!(matches!(result, Err(IdentityError::EmptyCookie)));
}

#[test]
fn two_derivations_sign_for_each_other() {
    let again = CookieAuthority::derive(b"secret").unwrap();
    let (a, b) = (mint(&SECRET, "a@host"), mint(&again, "b@host"));
    let (client, server) = wire::run(client(&a), server(&b));
    assert!(client.echoed && server.echoed);
}

#[test]
fn debug_shows_no_secret() {
    let identity = mint(&SECRET, "a@host");
    let text = format!("{:?} {identity:?}", *SECRET);
    assert!(text.contains("a@host"));
    assert!(!text.contains("secret"));
    for key in [SECRET.key(), &shown(&identity).key] {
        let scalar = key.ec_key().unwrap().private_key().to_vec();
        assert!(!text.contains(&hex(&scalar)));
        assert!(!text.contains(&format!("{scalar:?}")));
    }
}

#[test]
fn identities_cross_threads() {
    fn check<T: Send + Sync>() {}
    check::<CookieAuthority>();
    check::<NodeIdentity>();
    check::<IdentityError>();
}
