//! What a peer's certificate says: whose it is, and from when to when.
//!
//! A certificate that names nodes (`erlang://name@host`) is good for these and for no other. One
//! that names none is good for every node of the hosts that it names, as DNS name or address. The
//! common name counts for nothing (RFC 6125, section 6.4.4).

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boring::asn1::{Asn1Time, Asn1TimeRef};
use boring::error::ErrorStack;
use boring::x509::X509;

use super::{Admits, name};

/// Ours have under 5 KB, however long the name, those of public authorities 2 KB; what is longer
/// is not worth parsing.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;
/// Names of a kind that are looked at.
const MAX_NAMES: usize = 256;

/// The part of a peer's certificate that decides something after the chain has been verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    nodes: Vec<String>,
    dns: Vec<String>,
    ips: Vec<IpAddr>,
    not_before: i64,
    not_after: i64,
    dates: (String, String),
    admits: Admits,
}

impl PeerCertificate {
    /// Reads any bytes. `None`: no certificate, or a name in it that no node could have.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return None;
        }
        let read = X509::from_der(der).ok().and_then(|certificate| {
            let mut this = PeerCertificate {
                not_before: seconds(certificate.not_before())?,
                not_after: seconds(certificate.not_after())?,
                dates: (
                    certificate.not_before().to_string(),
                    certificate.not_after().to_string(),
                ),
                ..PeerCertificate::default()
            };
            let names = certificate.subject_alt_names();
            for name in names.iter().flatten().take(MAX_NAMES) {
                if let Some(uri) = name.uri() {
                    if let Some(uri) = uri.strip_prefix(name::SCHEME) {
                        this.nodes.push(name::decode(uri)?);
                    }
                } else if let Some(dns) = name.dnsname() {
                    this.dns.push(dns.to_owned());
                } else if let Some(ip) = name.ipaddress().and_then(address) {
                    this.ips.push(ip);
                }
            }
            Some(this)
        });
        // A malformed extension reads as none at all and leaves its error in the thread's queue,
        // where it would be taken for the next call's.
        drop(ErrorStack::get());
        read
    }

    /// The node that the certificate names, `""` of a node that did not know its name. `None`: it
    /// names none, or several.
    ///
    /// At most 255 characters with no control character among them: it can go into a log line.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match &self.nodes[..] {
            [node] => Some(node),
            _ => None,
        }
    }

    /// Whether it is good for the node of this name. Of a name without `@`: for a node of that host
    /// that has no name yet. Of one that begins with `@`: for some node of that host.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        if !self.admits.name(name) {
            return false;
        }
        match name.split_once('@') {
            Some(("", host)) => {
                self.nodes.iter().any(|node| node.ends_with(name)) || self.is_of_host(host)
            }
            Some(_) if !self.nodes.is_empty() => self.nodes.iter().any(|node| node == name),
            Some((_, host)) => self.is_of_host(host),
            // A node that has no name yet: its certificate says so, or names its host.
            None => self.nodes.iter().any(String::is_empty) || self.is_of_host(name),
        }
    }

    /// From now on it is good for these nodes at most.
    pub(crate) fn limit(&mut self, admits: Admits) {
        self.admits = admits;
    }

    /// The authority is not that of the cookie for the node, or nodes, that the certificate names.
    pub(crate) fn is_of_another_cookie(&self) -> bool {
        match &self.admits {
            Admits::These(_) => !self.nodes.iter().any(|node| self.admits.name(node)),
            Admits::Others(_) => self.nodes.iter().any(|node| !self.admits.name(node)),
        }
    }

    fn is_of_host(&self, host: &str) -> bool {
        match host.parse::<IpAddr>() {
            Ok(ip) => self.ips.contains(&ip),
            Err(_) => self.dns.iter().any(|dns| covers(dns, host)),
        }
    }

    /// How long it is still valid at a time; `None`: it is not.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Duration> {
        let now = unix(now)?;
        if now < self.not_before || now > self.not_after {
            return None;
        }
        u64::try_from(self.not_after - now)
            .ok()
            .map(Duration::from_secs)
    }

    /// Whom it names, for a log line.
    #[must_use]
    pub fn whose(&self) -> String {
        let names: Vec<String> = if self.nodes.is_empty() {
            let ips = self.ips.iter().map(IpAddr::to_string);
            self.dns.iter().cloned().chain(ips).collect()
        } else {
            self.nodes.clone()
        };
        let shown: Vec<String> = names
            .iter()
            .take(3)
            .map(|name| crate::close::printable(name.as_bytes()))
            .collect();
        match shown.len() {
            0 => "nobody".to_owned(),
            _ if names.len() > shown.len() => format!("{} and others", shown.join(", ")),
            _ => shown.join(", "),
        }
    }

    /// Why it is not valid at a time, with the date.
    #[must_use]
    pub fn out_of_time(&self, now: SystemTime) -> Option<String> {
        let now = unix(now)?;
        if now > self.not_after {
            Some(format!("has expired on {}", self.dates.1))
        } else if now < self.not_before {
            Some(format!("is not valid before {}", self.dates.0))
        } else {
            None
        }
    }
}

/// Whether a DNS name of a certificate is a host's: the same without regard to case, or with `*` in
/// place of the first label (RFC 6125, section 6.4.3), of at least three.
fn covers(dns: &str, host: &str) -> bool {
    let (dns, host) = (dns.trim_end_matches('.'), host.trim_end_matches('.'));
    if dns.eq_ignore_ascii_case(host) {
        return !host.is_empty();
    }
    match (dns.strip_prefix("*."), host.split_once('.')) {
        (Some(domain), Some((label, rest))) => {
            !label.is_empty() && domain.contains('.') && domain.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn unix(time: SystemTime) -> Option<i64> {
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

fn seconds(time: &Asn1TimeRef) -> Option<i64> {
    let epoch = Asn1Time::from_unix(0).ok()?;
    let since = epoch.diff(time).ok()?;
    Some(i64::from(since.days) * 24 * 60 * 60 + i64::from(since.secs))
}
