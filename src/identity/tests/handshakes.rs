//! Who gets in and who does not. The codes and texts asserted here are what log lines are made of.

use std::os::unix::net::UnixStream;
use std::thread;

use boring::ssl::Ssl;
use boring::stack::Stack;
use boring::x509::{X509StoreContext, X509VerifyError};

use super::wire::{Side, run};
use super::*;

/// TLS alerts as QUIC error codes (RFC 9001, section 4.8).
const ALERT: u64 = 0x100;
const UNSUPPORTED_CERTIFICATE: u64 = ALERT + 43;
const CERTIFICATE_EXPIRED: u64 = ALERT + 45;
const UNKNOWN_CA: u64 = ALERT + 48;
const CERTIFICATE_REQUIRED: u64 = ALERT + 116;

/// BoringSSL's judgement of a chain by the authority alone, without the contexts' own limit on its
/// length.
fn judge(leaf: &X509, intermediate: &X509) -> Result<(), X509VerifyError> {
    let mut store = X509StoreBuilder::new().unwrap();
    store.add_cert(SECRET.certificate()).unwrap();
    let store = store.build();
    let mut chain = Stack::new().unwrap();
    chain.push(intermediate.clone()).unwrap();
    let mut context = X509StoreContext::new().unwrap();
    context
        .init(&store, leaf, &chain, |context| {
            context.verify_cert()?;
            Ok(context.verify_result())
        })
        .unwrap()
}

#[track_caller]
fn assert_refused_by_server(outcome: &(Side, Side), code: u64) {
    let (client, server) = outcome;
    assert!(
        !server.established && !server.echoed && !client.echoed,
        "{outcome:?}"
    );
    assert_eq!(server.local_error, Some((false, code, vec![])));
    assert_eq!(server.peer_error, None);
    assert_eq!(server.recv_error, Some(quiche::Error::TlsFail));
    assert_eq!(client.peer_error, Some((false, code, vec![])));
    assert_eq!(client.local_error, None);
    assert_eq!(client.recv_error, None);
}

#[track_caller]
fn assert_refused_by_client(outcome: &(Side, Side), code: u64) {
    let (client, server) = outcome;
    assert!(!client.established && !server.established, "{outcome:?}");
    assert_eq!(client.local_error, Some((false, code, vec![])));
    assert_eq!(client.peer_error, None);
    assert_eq!(client.recv_error, Some(quiche::Error::TlsFail));
    assert_eq!(server.peer_error, Some((false, code, vec![])));
    assert_eq!(server.local_error, None);
    assert_eq!(server.recv_error, None);
}

fn reason(side: &Side) -> &'static str {
    side.verified.map_or_else(|e| e.error_string(), |()| "ok")
}

#[test]
fn same_cookie_connects() {
    let (a, b) = (mint(&SECRET, "a@host"), mint(&SECRET, "b@10.0.0.1"));
    for (dialler, dialled) in [(&a, &b), (&b, &a)] {
        let (client, server) = run(client(dialler), server(dialled));
        assert!(client.established && server.established);
        assert!(client.echoed && server.echoed);
        assert_eq!(client.peer_name.as_deref(), Some(dialled.name()));
        assert_eq!(server.peer_name.as_deref(), Some(dialler.name()));
        assert_eq!(client.verified, Ok(()));
        assert_eq!(server.verified, Ok(()));
        assert_eq!((client.local_error, client.peer_error), (None, None));
        assert_eq!((server.local_error, server.peer_error), (None, None));
        assert_eq!((client.resumable, server.resumable), (true, false));
    }
}

#[test]
fn the_client_refuses_another_cookie() {
    let (a, x) = (mint(&SECRET, "a@host"), mint(&OTHER, "x@host"));
    for dialled in [server(&x), careless(server(&x))] {
        let outcome = run(client(&a), dialled);
        assert_refused_by_client(&outcome, UNKNOWN_CA);
        assert_eq!(reason(&outcome.0), "unable to get local issuer certificate");
        assert_eq!(outcome.0.peer_name.as_deref(), Some("x@host"));
        assert_eq!(outcome.1.peer_name, None);
    }
}

#[test]
fn the_server_refuses_another_cookie() {
    let (a, x) = (mint(&SECRET, "a@host"), mint(&OTHER, "x@host"));
    let outcome = run(careless(client(&x)), server(&a));
    assert_refused_by_server(&outcome, UNKNOWN_CA);
    assert_eq!(reason(&outcome.1), "unable to get local issuer certificate");
    assert_eq!(outcome.1.peer_name.as_deref(), Some("x@host"));
    assert!(
        outcome.0.established,
        "a client is done before the server has judged it"
    );
}

#[test]
fn the_server_refuses_a_client_without_certificate() {
    let a = mint(&SECRET, "a@host");
    let nobody = careless(SslContext::builder(SslMethod::tls()).unwrap());
    let outcome = run(nobody, server(&a));
    assert_refused_by_server(&outcome, CERTIFICATE_REQUIRED);
    assert_eq!(outcome.1.peer_name, None);
}

#[test]
fn certificates_out_of_their_time_are_refused() {
    let a = mint(&SECRET, "a@host");
    let expired = (now() - 2 * HOUR, now() - HOUR, "certificate has expired");
    let future = (
        now() + HOUR,
        now() + 2 * HOUR,
        "certificate is not yet valid",
    );
    for (not_before, not_after, why) in [expired, future] {
        let validity = Validity {
            not_before,
            not_after,
        };
        let x = NodeIdentity::mint_for(&SECRET, "x@host", validity).unwrap();
        let outcome = run(client(&x), server(&a));
        assert_refused_by_server(&outcome, CERTIFICATE_EXPIRED);
        assert_eq!(reason(&outcome.1), why);
        let outcome = run(client(&a), server(&x));
        assert_refused_by_client(&outcome, CERTIFICATE_EXPIRED);
        assert_eq!(reason(&outcome.0), why);
    }
}

#[test]
fn a_leaf_signs_nothing() {
    let a = mint(&SECRET, "a@host");
    let thief = mint(&SECRET, "thief@host");
    let key = new_key();
    let forged = forge(
        (&shown(&thief).certificate, &shown(&thief).key),
        &key,
        &leaf_extensions(),
    );
    let verdict = judge(&forged, &shown(&thief).certificate).unwrap_err();
    assert_eq!(
        verdict.error_string(),
        "unable to get local issuer certificate"
    );

    let forged = showing(forged, key);
    let with_chain = |mut context: SslContextBuilder| {
        context
            .add_extra_chain_cert(shown(&thief).certificate.clone())
            .unwrap();
        careless(context)
    };
    let outcome = run(with_chain(client(&forged)), server(&a));
    assert_refused_by_server(&outcome, UNKNOWN_CA);
    let outcome = run(client(&a), with_chain(server(&forged)));
    assert_refused_by_client(&outcome, UNKNOWN_CA);
}

/// Even one that the authority itself has signed as an authority: BoringSSL alone would take the
/// chain.
#[test]
fn there_are_no_intermediates() {
    let a = mint(&SECRET, "a@host");
    let middle_key = new_key();
    let authority = (SECRET.certificate(), SECRET.key());
    let middle = forge(authority, &middle_key, &ca_extensions());
    let key = new_key();
    let leaf = forge((&middle, &middle_key), &key, &leaf_extensions());
    assert_eq!(judge(&leaf, &middle), Ok(()));

    let mut dialler = careless(client(&showing(leaf, key)));
    dialler.add_extra_chain_cert(middle).unwrap();
    let outcome = run(dialler, server(&a));
    assert_refused_by_server(&outcome, UNKNOWN_CA);
}

#[test]
fn a_certificate_is_good_for_its_purpose_only() {
    let a = mint(&SECRET, "a@host");
    let authority = (SECRET.certificate(), SECRET.key());
    let only = |purpose: &ExtendedKeyUsage| {
        let key = new_key();
        let certificate = forge(authority, &key, &[purpose.build().unwrap()]);
        showing(certificate, key)
    };
    let server_only = only(ExtendedKeyUsage::new().server_auth());
    let client_only = only(ExtendedKeyUsage::new().client_auth());

    let (good, _) = run(client(&client_only), server(&server_only));
    assert!(good.echoed);
    let outcome = run(client(&server_only), server(&a));
    assert_refused_by_server(&outcome, UNSUPPORTED_CERTIFICATE);
    let outcome = run(client(&a), server(&client_only));
    assert_refused_by_client(&outcome, UNSUPPORTED_CERTIFICATE);
}

/// QUIC has only TLS 1.3, so this is asked over a stream.
#[test]
fn older_tls_is_refused() {
    let (a, b) = (mint(&SECRET, "a@host"), mint(&SECRET, "b@host"));
    let over_stream = |client: SslContextBuilder, server: SslContextBuilder| {
        let (near, far) = UnixStream::pair().unwrap();
        let server = Ssl::new(&server.build()).unwrap();
        let accepting = thread::spawn(move || server.accept(far).map(drop).is_ok());
        let client = Ssl::new(&client.build()).unwrap();
        let connected = client.connect(near).map(drop).is_ok();
        (connected, accepting.join().unwrap())
    };
    let old = |mut context: SslContextBuilder| {
        context
            .set_min_proto_version(Some(SslVersion::TLS1))
            .unwrap();
        context
            .set_max_proto_version(Some(SslVersion::TLS1_2))
            .unwrap();
        context
    };
    assert_eq!(over_stream(client(&a), server(&b)), (true, true));
    assert_eq!(over_stream(old(client(&a)), old(server(&b))), (true, true));
    assert_eq!(over_stream(old(client(&a)), server(&b)), (false, false));
    assert_eq!(over_stream(client(&a), old(server(&b))), (false, false));
}
