//! What is in a certificate, and what is read from one that anybody made.

use std::time::Duration;

use boring::x509::extension::SubjectAlternativeName;

use super::*;

#[test]
fn a_certificate_says_what_it_should() {
    let a = mint(&SECRET, "a@node-1.example.com");
    let certificate = &shown(&a).certificate;
    assert!(certificate.verify(SECRET.key()).unwrap());
    assert!(certificate.public_key().unwrap().public_eq(&shown(&a).key));
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
    assert_ne!(
        shown(&other).certificate.serial_number().to_bn().unwrap(),
        serial
    );
    assert!(!shown(&other).key.public_eq(&shown(&a).key));
    assert_eq!(
        certificate.authority_key_id().unwrap().as_slice(),
        SECRET.certificate().subject_key_id().unwrap().as_slice()
    );

    let names = certificate.subject_alt_names().unwrap();
    let dns: Vec<_> = names.iter().filter_map(|n| n.dnsname()).collect();
    let uri: Vec<_> = names.iter().filter_map(|n| n.uri()).collect();
    assert_eq!(dns, ["node-1.example.com"]);
    assert_eq!(uri, ["erlang://a@node-1.example.com"]);

    // Whatever the clock says of who reads it.
    let at = |t: i64| Asn1Time::from_unix(t).unwrap();
    assert!(*certificate.not_before() == at(0));
    assert!(*certificate.not_after() > at(now() + 7000 * 365 * 24 * HOUR));
    let read = PeerCertificate::read(&certificate.to_der().unwrap()).unwrap();
    for seconds in [1, now(), now() + 7000 * 365 * 24 * HOUR] {
        let time = UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap());
        assert_eq!(read.out_of_time(time), None, "{seconds}");
    }
}

#[test]
fn hosts_are_named_as_what_they_are() {
    let hosts = |name: &str| {
        let names = shown(&mint(&SECRET, name))
            .certificate
            .subject_alt_names()
            .unwrap();
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
        let der = shown(&mint(&SECRET, name)).certificate.to_der().unwrap();
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
    let der = shown(&mint(&SECRET, "a@host"))
        .certificate
        .to_der()
        .unwrap();
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

fn with_names(fill: impl FnOnce(&mut SubjectAlternativeName)) -> PeerCertificate {
    let mut names = SubjectAlternativeName::new();
    fill(&mut names);
    let draft = X509Builder::new().unwrap();
    let extension = names.build(&draft.x509v3_context(None, None)).unwrap();
    let authority = (SECRET.certificate(), SECRET.key());
    let certificate = forge(authority, &new_key(), &[extension]);
    PeerCertificate::read(&certificate.to_der().unwrap()).unwrap()
}

#[test]
fn a_certificate_that_names_nodes_is_good_for_no_other() {
    let certificate = with_names(|names| {
        names
            .uri("erlang://a%40host")
            .uri("erlang://b@host")
            .dns("host");
    });
    for name in ["a@host", "b@host", "@host", "host"] {
        assert!(certificate.is_for(name), "{name}");
    }
    for name in [
        "c@host", "a@host2", "A@host", "a@HOST", "@other", "other", "a", "", "@",
    ] {
        assert!(!certificate.is_for(name), "{name}");
    }
    assert_eq!(certificate.node(), None);
    assert_eq!(certificate.whose(), "a@host, b@host");
}

#[test]
fn a_certificate_that_names_hosts_is_good_for_all_their_nodes() {
    let certificate = with_names(|names| {
        names
            .dns("host")
            .dns("*.example.com")
            .ip("10.0.0.1")
            .ip("::1");
    });
    for name in [
        "a@host",
        "b@HOST",
        "a@x.example.com",
        "a@10.0.0.1",
        "a@::1",
        "a@0:0:0:0:0:0:0:1",
        "@host",
        "@10.0.0.1",
        "host",
    ] {
        assert!(certificate.is_for(name), "{name}");
    }
    for name in [
        "a@other",
        "a@example.com",
        "a@x.y.example.com",
        "a@.example.com",
        "a@10.0.0.2",
        "a@::2",
        "a@",
        "@",
        "",
        "a@*.example.org",
    ] {
        assert!(!certificate.is_for(name), "{name}");
    }
    // Not all the world.
    let greedy = with_names(|names| {
        names.dns("*.com").dns("*");
    });
    assert!(!greedy.is_for("a@example.com") && !greedy.is_for("a@host"));
}

#[test]
fn a_node_without_a_name_is_no_other_node() {
    let der = shown(&mint(&SECRET, "")).certificate.to_der().unwrap();
    let certificate = PeerCertificate::read(&der).unwrap();
    assert!(certificate.is_for("host"));
    for name in ["a@host", "@host", "@"] {
        assert!(!certificate.is_for(name), "{name}");
    }
}

#[test]
fn dates_are_those_of_the_certificate() {
    let validity = Validity {
        not_before: now() - HOUR,
        not_after: now() + HOUR,
    };
    let identity = NodeIdentity::mint_for(&SECRET, "a@host", validity).unwrap();
    let der = shown(&identity).certificate.to_der().unwrap();
    let certificate = PeerCertificate::read(&der).unwrap();
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(u64::try_from(now() + seconds).unwrap());
    let left = certificate.left(at(0)).unwrap().as_secs();
    assert!((3590..=3610).contains(&left), "{left}");
    assert_eq!(certificate.out_of_time(at(0)), None);
    for (seconds, says) in [
        (-2 * HOUR, "is not valid before "),
        (2 * HOUR, "has expired on "),
    ] {
        assert_eq!(certificate.left(at(seconds)), None);
        let text = certificate.out_of_time(at(seconds)).unwrap();
        assert!(text.starts_with(says) && text.ends_with("GMT"), "{text}");
    }
}
