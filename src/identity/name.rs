//! A node's name in a certificate: written into ours, read back from a peer's.
//!
//! The whole name is in a URI, `erlang://name@host`, with every byte but the plainest
//! percent-encoded (node names may be any UTF-8, URIs in certificates are ASCII). The common name
//! has it cut to X.509's 64 characters, for people.

use std::net::IpAddr;

use boring::x509::extension::SubjectAlternativeName;

use super::IdentityError;

pub(super) const SCHEME: &str = "erlang://";
/// An atom has at most 255 characters, so a node name too.
const MAX_NAME_CHARS: usize = 255;
/// 255 characters of 4 bytes, each byte as `%XX`.
const MAX_URI_BYTES: usize = SCHEME.len() + MAX_NAME_CHARS * 4 * 3;
/// X.509's ub-common-name.
const MAX_COMMON_NAME_CHARS: usize = 64;
/// A common name may not be empty; the name of a node that does not know its own yet is.
const NAMELESS: &str = "quic_dist node";

/// What goes into a certificate.
pub(super) struct Names {
    pub(super) common_name: String,
    uri: String,
    host: Option<Host>,
}

enum Host {
    Ip(IpAddr),
    Dns(String),
}

impl Names {
    pub(super) fn of(node_name: &str) -> Result<Self, IdentityError> {
        if !is_valid(node_name) {
            return Err(IdentityError::BadNodeName);
        }
        let common_name = match node_name {
            "" => NAMELESS.to_owned(),
            name => name.chars().take(MAX_COMMON_NAME_CHARS).collect(),
        };
        Ok(Self {
            common_name,
            uri: format!("{SCHEME}{}", encode(node_name)),
            host: node_name
                .split_once('@')
                .and_then(|(_, host)| parse_host(host)),
        })
    }

    pub(super) fn alternative(&self) -> SubjectAlternativeName {
        let mut names = SubjectAlternativeName::new();
        names.uri(&self.uri);
        match &self.host {
            Some(Host::Ip(ip)) => names.ip(&ip.to_string()),
            Some(Host::Dns(host)) => names.dns(host),
            None => &mut names,
        };
        names
    }
}

fn is_valid(node_name: &str) -> bool {
    node_name.chars().count() <= MAX_NAME_CHARS && !node_name.chars().any(char::is_control)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte)
}

fn encode(node_name: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut uri = String::with_capacity(node_name.len());
    for byte in node_name.bytes() {
        if is_plain(byte) {
            uri.push(char::from(byte));
        } else {
            uri.push('%');
            uri.push(char::from(HEX[usize::from(byte >> 4)]));
            uri.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    uri
}

/// The inverse of `encode`, and of nothing else: a byte that it would have encoded is an error, and
/// so is a name that no node can have.
pub(super) fn decode(uri: &str) -> Option<String> {
    if uri.len() > MAX_URI_BYTES - SCHEME.len() {
        return None;
    }
    let mut name = Vec::with_capacity(uri.len());
    let mut bytes = uri.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                name.push(u8::try_from(high << 4 | low).ok()?);
            }
            _ if is_plain(byte) => name.push(byte),
            _ => return None,
        }
    }
    String::from_utf8(name).ok().filter(|name| is_valid(name))
}

/// The host part of a node name, if it is an address or could be in DNS. Others (`a@my_host`) have
/// their URI only.
fn parse_host(host: &str) -> Option<Host> {
    if let Ok(ip) = host.parse() {
        return Some(Host::Ip(ip));
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits alone is half an address, not a domain.
    let is_domain = host.len() <= 253
        && host.split('.').all(is_label)
        && host
            .bytes()
            .rev()
            .take_while(|b| *b != b'.')
            .any(|b| !b.is_ascii_digit());
    is_domain.then(|| Host::Dns(host.to_owned()))
}
