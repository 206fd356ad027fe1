//! What is in a certificate, and what is read from one that anybody made.

use boring::x509::extension::SubjectAlternativeName;

use super::*;

#[test]
fn a_certificate_says_what_it_should() {
    let a = mint(&SECRET, "a@node-1.example.com");
    let certificate = &a.certificate;
    assert!(certificate.verify(SECRET.key()).unwrap());
    assert!(certificate.public_key().unwrap().public_eq(&a.key));
    let common_name = certificate
        .subject_name()
        .entries_by_nid(Nid::COMMONNAME)
        .next();
    assert_eq!(
        common_name.unwrap().data().as_slice(),
        b"a@node-1.example.com"
    );
    let serial = certificate.serial_number().to_bn().unwrap();
    assert_eq!(serial.to_vec().len(), 16);
    let other = mint(&SECRET, "a@node-1.example.com");
    assert_ne!(other.certificate.serial_number().to_bn().unwrap(), serial);
    assert!(!other.key.public_eq(&a.key));
    assert_eq!(
        certificate.authority_key_id().unwrap().as_slice(),
        SECRET.certificate().subject_key_id().unwrap().as_slice()
    );

    let names = certificate.subject_alt_names().unwrap();
    let dns: Vec<_> = names.iter().filter_map(|n| n.dnsname()).collect();
    let uri: Vec<_> = names.iter().filter_map(|n| n.uri()).collect();
    assert_eq!(dns, ["node-1.example.com"]);
    assert_eq!(uri, ["erlang://a@node-1.example.com"]);

    let at = |t: i64| Asn1Time::from_unix(t).unwrap();
    assert!(*certificate.not_before() < at(now() - HOUR + 10));
    assert!(*certificate.not_before() > at(now() - HOUR - 60));
    assert!(*certificate.not_after() > at(now() + 396 * 24 * HOUR));
    assert!(*certificate.not_after() < at(now() + 398 * 24 * HOUR));
    let left = a.expires().duration_since(SystemTime::now()).unwrap();
    assert!(left > LIFETIME - Duration::from_secs(60) && left <= LIFETIME);
}

#[test]
fn hosts_are_named_as_what_they_are() {
    let hosts = |name: &str| {
        let names = mint(&SECRET, name).certificate.subject_alt_names().unwrap();
        let dns = names.iter().filter_map(|n| n.dnsname().map(str::to_owned));
        let ips = names.iter().filter_map(|n| n.ipaddress().map(hex));
        dns.chain(ips).collect::<Vec<_>>()
    };
    assert_eq!(hosts("a@host"), ["host"]);
    assert_eq!(hosts("a@10.0.0.1"), ["0a000001"]);
    assert_eq!(hosts("a@::1"), ["00000000000000000000000000000001"]);
    for nowhere in [
        "",
        "a",
        "a@",
        "a@10.0.0",
        "a@my_host",
        "a@-x",
        "a@x..y",
        "a@x@y",
        "a@*",
    ] {
        assert_eq!(hosts(nowhere), Vec::<String>::new(), "{nowhere}");
    }
}

#[test]
fn names_come_back() {
    let long = format!("{}@h", "\u{10348}".repeat(253));
    for name in [
        "",
        "a@host",
        "a-b_c.d~e@10.0.0.1",
        "a b%2f/?#é漢@h",
        "a@b@c",
        &long,
    ] {
        let der = mint(&SECRET, name).certificate.to_der().unwrap();
        assert_eq!(peer_name(&der).as_deref(), Some(name));
    }
    for bad in ["a\n@host", "a\0", "\u{7f}", "\u{85}", &format!("{long}x")] {
        let result = NodeIdentity::mint(&SECRET, bad);
        assert!(matches!(result, Err(IdentityError::BadNodeName)), "{bad:?}");
    }
}

#[test]
fn a_strange_name_reads_as_none() {
    let name_of = |uris: &[&str]| {
        let mut names = SubjectAlternativeName::new();
        names.dns("host");
        for uri in uris {
            names.uri(uri);
        }
        let draft = X509Builder::new().unwrap();
        let extension = names.build(&draft.x509v3_context(None, None)).unwrap();
        let authority = (SECRET.certificate(), SECRET.key());
        peer_name(&forge(authority, &new_key(), &[extension]).to_der().unwrap())
    };
    assert_eq!(name_of(&["erlang://a@b"]).as_deref(), Some("a@b"));
    assert_eq!(
        name_of(&["https://x", "erlang://%61@b"]).as_deref(),
        Some("a@b")
    );
    assert_eq!(name_of(&[]), None);
    assert_eq!(name_of(&["https://x"]), None);
    assert_eq!(name_of(&["erlang://a@b", "erlang://c@d"]), None);
    let too_long = format!("erlang://{}", "a".repeat(256));
    let far_too_long = format!("erlang://{}", "a".repeat(10_000));
    for bad in [
        "%", "%4", "%zz", "%+1", "%ff", "%0a", "%00", "a b", "é", "a/b",
    ] {
        assert_eq!(name_of(&[&format!("erlang://{bad}")]), None, "{bad}");
    }
    assert_eq!(name_of(&[&too_long]), None);
    assert_eq!(name_of(&[&far_too_long]), None);
}

#[test]
fn any_bytes_are_safe_to_read_a_name_from() {
    let der = mint(&SECRET, "a@host").certificate.to_der().unwrap();
    for length in 0..der.len() {
        assert_eq!(peer_name(&der[..length]), None);
    }
    assert_eq!(peer_name(&vec![0x30; 1 << 20]), None);
    let mut survivors = 0;
    for at in 0..der.len() {
        for flip in [0x01, 0x20, 0x80, 0xff] {
            let mut bad = der.clone();
            bad[at] ^= flip;
            if let Some(name) = peer_name(&bad) {
                assert!(name.len() < 64 && !name.contains(char::is_control));
                survivors += 1;
            }
            assert!(
                ErrorStack::get().errors().is_empty(),
                "byte {at} left an error behind"
            );
        }
    }
    assert!(
        survivors > 0,
        "the name is read without looking at the signature"
    );
}
