//! Who may open a connection: limits on half-open connections, and the proof that a peer is where
//! it says it is, which is asked for when there are many (Retry, RFC 9000, section 8.1.2).
//!
//! Whoever only pretends to be at an address never sees the token that is sent there. So what
//! pretenders can occupy is the places for those who have proved nothing, and everybody else is
//! still let in, a round trip later. Nobody with few addresses can occupy all the places for those
//! who have proved theirs: each address has its limit. What a token says, it says under a key that
//! only this endpoint has; nothing is remembered of it here.
//!
//! It takes addresses, tokens and instants, and gives back decisions.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use boring::error::ErrorStack;
use boring::hash::hmac_sha256;
use boring::memcmp;
use quiche::ConnectionId;

use crate::config::Limits;

/// How long a token is good: a round trip, lost packets and a busy peer included.
const TOKEN_LIFETIME: Duration = Duration::from_secs(10);
const TIME: usize = 8;
const MAC: usize = 32;

/// See the module's documentation.
#[derive(Debug)]
pub struct Admission {
    key: [u8; 32],
    /// The time in tokens counts from here.
    start: Instant,
    retry_threshold: usize,
    max_half_open: usize,
    max_per_address: usize,
    unproven: usize,
    proven: HashMap<Host, usize>,
    half_open: usize,
}

/// An address as far as one peer has one: of IPv6 everybody has 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Host(IpAddr);

impl Host {
    fn of(address: SocketAddr) -> Self {
        Host(match address.ip() {
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_none() => {
                IpAddr::V6((u128::from(ip) >> 64 << 64).into())
            }
            ip => ip,
        })
    }
}

/// What to do with an Initial that opens a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may. With the id that the peer chose before it proved its address, if it has.
    Accept(Option<ConnectionId<'static>>),
    /// It has to prove its address first.
    Retry,
    /// A limit is reached.
    Full,
    /// Its token is none of ours, or too old. Whoever was given one will not take another.
    BadToken,
}

/// The place of a half-open connection, to be given back.
#[derive(Debug)]
#[must_use]
pub struct Place(Option<Host>);

impl Admission {
    /// With a key of its own.
    pub fn new(limits: &Limits, now: Instant) -> Result<Self, ErrorStack> {
        let mut key = [0; 32];
        boring::rand::rand_bytes(&mut key)?;
        Ok(Admission {
            key,
            start: now,
            retry_threshold: limits.retry_threshold,
            max_half_open: limits.max_half_open,
            max_per_address: limits.max_half_open_per_address,
            unproven: 0,
            proven: HashMap::new(),
            half_open: 0,
        })
    }

    /// Connections that are half open.
    pub fn half_open(&self) -> usize {
        self.half_open
    }

    /// Decides. `dcid` is the id that the Initial was sent to.
    pub fn decide(&self, from: SocketAddr, dcid: &[u8], token: &[u8], now: Instant) -> Verdict {
        if self.half_open >= self.max_half_open {
            return Verdict::Full;
        }
        if token.is_empty() {
            return if self.unproven < self.retry_threshold {
                Verdict::Accept(None)
            } else {
                Verdict::Retry
            };
        }
        let Some(original) = self.proved(from, dcid, token, now) else {
            return Verdict::BadToken;
        };
        let at_host = self.proven.get(&Host::of(from)).copied().unwrap_or(0);
        if at_host >= self.max_per_address {
            return Verdict::Full;
        }
        Verdict::Accept(Some(original))
    }

    /// The token for a Retry packet that has the id `retry_id`, in answer to an Initial that was
    /// sent to `original`.
    pub fn token(
        &self,
        from: SocketAddr,
        original: &[u8],
        retry_id: &[u8],
        now: Instant,
    ) -> Result<Vec<u8>, ErrorStack> {
        let mut token = self.millis(now).to_be_bytes().to_vec();
        token.extend_from_slice(original);
        let mac = self.mac(from, retry_id, &token)?;
        token.extend_from_slice(&mac);
        Ok(token)
    }

    /// The id in a token that is ours, not too old, and was sent to this address for an Initial that
    /// is sent to `retry_id`: so it is good for one connection at a time.
    fn proved(
        &self,
        from: SocketAddr,
        retry_id: &[u8],
        token: &[u8],
        now: Instant,
    ) -> Option<ConnectionId<'static>> {
        let (said, mac) = token.split_at_checked(token.len().checked_sub(MAC)?)?;
        let (time, original) = said.split_first_chunk::<TIME>()?;
        if !memcmp::eq(&self.mac(from, retry_id, said).ok()?, mac) {
            return None;
        }
        let age = self.millis(now).saturating_sub(u64::from_be_bytes(*time));
        (u128::from(age) <= TOKEN_LIFETIME.as_millis()).then(|| original.to_vec().into())
    }

    fn mac(&self, from: SocketAddr, retry_id: &[u8], said: &[u8]) -> Result<[u8; MAC], ErrorStack> {
        let mut all = Vec::with_capacity(128);
        match from.ip() {
            IpAddr::V4(ip) => all.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => all.extend_from_slice(&ip.octets()),
        }
        all.extend_from_slice(&from.port().to_be_bytes());
        // Two ids and an address, each of several lengths, must not read as others do.
        all.extend_from_slice(&[all.len() as u8, retry_id.len() as u8]);
        all.extend_from_slice(retry_id);
        all.extend_from_slice(said);
        hmac_sha256(&self.key, &all)
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }

    /// A connection was opened from there; `proven` if it was let in with a token.
    pub fn enter(&mut self, from: SocketAddr, proven: bool) -> Place {
        self.half_open += 1;
        let host = proven.then(|| Host::of(from));
        match host {
            Some(host) => *self.proven.entry(host).or_default() += 1,
            None => self.unproven += 1,
        }
        Place(host)
    }

    /// It is half open no more.
    pub fn leave(&mut self, place: Place) {
        self.half_open -= 1;
        let Some(host) = place.0 else {
            self.unproven -= 1;
            return;
        };
        if let Some(count) = self.proven.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                self.proven.remove(&host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORIGINAL: [u8; 8] = [7; 8];
    const RETRY_ID: [u8; 16] = [9; 16];

    fn admission(now: Instant) -> Admission {
        let limits = Limits {
            retry_threshold: 2,
            max_half_open: 6,
            max_half_open_per_address: 3,
            ..Limits::default()
        };
        Admission::new(&limits, now).unwrap()
    }

    fn host(number: u8) -> SocketAddr {
        ([10, 0, 0, number], 4000 + u16::from(number)).into()
    }

    #[test]
    fn the_first_are_let_in_as_they_are_and_the_others_have_to_prove_where_they_are() {
        let now = Instant::now();
        let mut all = admission(now);
        let mut places = Vec::new();
        for number in 0..2 {
            assert_eq!(
                all.decide(host(number), &ORIGINAL, &[], now),
                Verdict::Accept(None)
            );
            places.push(all.enter(host(number), false));
        }
        assert_eq!(all.decide(host(2), &ORIGINAL, &[], now), Verdict::Retry);
        let token = all.token(host(2), &ORIGINAL, &RETRY_ID, now).unwrap();
        assert_eq!(
            all.decide(host(2), &RETRY_ID, &token, now),
            Verdict::Accept(Some(ORIGINAL.to_vec().into()))
        );
        // There is room again for one that has proved nothing.
        all.leave(places.pop().unwrap());
        assert_eq!(
            all.decide(host(2), &ORIGINAL, &[], now),
            Verdict::Accept(None)
        );
        assert_eq!(all.half_open(), 1);
    }

    #[test]
    fn an_address_has_its_limit_and_all_have_one() {
        let now = Instant::now();
        let mut all = admission(now);
        let decide = |all: &Admission, from| {
            let token = all.token(from, &ORIGINAL, &RETRY_ID, now).unwrap();
            all.decide(from, &RETRY_ID, &token, now)
        };
        let mut places = Vec::new();
        // Who pretends to be at an address takes nothing from who is there.
        places.push(all.enter(host(1), false));
        places.push(all.enter(host(1), false));
        for _ in 0..3 {
            assert_ne!(decide(&all, host(1)), Verdict::Full);
            places.push(all.enter(host(1), true));
        }
        assert_eq!(decide(&all, host(1)), Verdict::Full);
        assert_ne!(decide(&all, host(2)), Verdict::Full);
        places.push(all.enter(host(2), true));
        assert_eq!(decide(&all, host(3)), Verdict::Full, "six in all");
        for place in places {
            all.leave(place);
        }
        assert_eq!((all.half_open(), all.unproven, all.proven.len()), (0, 0, 0));
        assert_ne!(decide(&all, host(1)), Verdict::Full);
    }

    #[test]
    fn ipv6_addresses_count_by_their_networks() {
        let of = |text: &str| Host::of(SocketAddr::new(text.parse().unwrap(), 1));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("::ffff:10.0.0.1"), of("::ffff:10.0.0.2"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn a_token_is_for_its_time() {
        let now = Instant::now();
        let all = admission(now);
        let later = now + Duration::from_secs(100);
        let token = all.token(host(1), &ORIGINAL, &RETRY_ID, later).unwrap();
        let verdict = |at| all.decide(host(1), &RETRY_ID, &token, at);
        assert_ne!(verdict(later + TOKEN_LIFETIME), Verdict::BadToken);
        let past = later + TOKEN_LIFETIME + Duration::from_millis(1);
        assert_eq!(verdict(past), Verdict::BadToken);
    }

    #[test]
    fn a_token_is_for_its_address_its_id_and_its_endpoint() {
        let now = Instant::now();
        let (all, other) = (admission(now), admission(now));
        let token = all.token(host(1), &ORIGINAL, &RETRY_ID, now).unwrap();
        let mut port = host(1);
        port.set_port(1);
        for from in [host(2), port] {
            assert_eq!(all.decide(from, &RETRY_ID, &token, now), Verdict::BadToken);
        }
        assert_eq!(
            all.decide(host(1), &ORIGINAL, &token, now),
            Verdict::BadToken
        );
        assert_eq!(
            other.decide(host(1), &RETRY_ID, &token, now),
            Verdict::BadToken
        );
    }

    proptest! {
        #[test]
        fn an_altered_token_is_none(at in 0..48usize, bit in 0..8u8, cut in 0..48usize) {
            let now = Instant::now();
            let all = admission(now);
            let token = all.token(host(1), &ORIGINAL, &RETRY_ID, now).unwrap();
            prop_assert_eq!(token.len(), 48);
            let mut altered = token.clone();
            altered[at] ^= 1 << bit;
            prop_assert_eq!(all.decide(host(1), &RETRY_ID, &altered, now), Verdict::BadToken);
            // None at all is another matter.
            if cut > 0 {
                let cut = all.decide(host(1), &RETRY_ID, &token[..cut], now);
                prop_assert_eq!(cut, Verdict::BadToken);
            }
        }

        #[test]
        fn garbage_is_no_token(garbage in prop::collection::vec(any::<u8>(), 1..200)) {
            let now = Instant::now();
            let all = admission(now);
            prop_assert_eq!(all.decide(host(1), &RETRY_ID, &garbage, now), Verdict::BadToken);
        }
    }
}
