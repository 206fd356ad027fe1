//! Who may open a connection: limits on half-open connections, and the proof that a peer is where
//! it says it is, which is asked for when there are many (Retry, RFC 9000, section 8.1.2).
//!
//! Whoever only pretends to be at an address never sees the token that is sent there. So what
//! pretenders can occupy is the places for those who have proved nothing, and everybody else is
//! still let in, a round trip later. Each address that is proved has its limit, and where all places
//! are taken, who comes from an address with few of them gets the oldest one of the address that has
//! most. So whoever has few addresses keeps nobody out; whoever has as many as there are places does,
//! if he comes again and again in less time than a handshake takes. What a token says, it says under
//! a key that only this endpoint has; nothing is remembered of it here.
//!
//! It takes addresses, tokens and instants, and gives back decisions.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use boring::error::ErrorStack;
use boring::hash::hmac_sha256;
use boring::memcmp;
use quiche::ConnectionId;
use zeroize::Zeroizing;

use crate::config::Limits;

/// How long a token is good: a round trip, lost packets and a busy peer included.
const TOKEN_LIFETIME: Duration = Duration::from_secs(10);
const TIME: usize = 8;
const MAC: usize = 32;

/// See the module's documentation.
pub struct Admission {
    key: Zeroizing<[u8; 32]>,
    /// The time in tokens counts from here.
    start: Instant,
    retry_threshold: usize,
    max_half_open: usize,
    max_per_address: usize,
    /// By address, oldest first. Those who have proved none count as one.
    taken: HashMap<Option<Host>, VecDeque<Taken>>,
    half_open: usize,
    /// Places that were ever taken.
    count: u64,
}

/// Without the key.
impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("half_open", &self.half_open)
            .finish_non_exhaustive()
    }
}

/// A place that is taken: its number, and the caller's key of the connection.
#[derive(Clone, Copy, Debug)]
struct Taken(u64, usize);

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
    /// It may, with that id, in the place of the half-open connection with this key.
    Displace(ConnectionId<'static>, usize),
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
pub struct Place(Option<Host>, u64);

impl Admission {
    /// With a key of its own.
    pub fn new(limits: &Limits, now: Instant) -> Result<Self, ErrorStack> {
        let mut key = Zeroizing::new([0; 32]);
        boring::rand::rand_bytes(&mut *key)?;
        Ok(Admission {
            key,
            start: now,
            retry_threshold: limits.retry_threshold,
            max_half_open: limits.max_half_open,
            max_per_address: limits.max_half_open_per_address,
            taken: HashMap::new(),
            half_open: 0,
            count: 0,
        })
    }

    /// Connections that are half open.
    pub fn half_open(&self) -> usize {
        self.half_open
    }

    /// Decides. `dcid` is the id that the Initial was sent to.
    pub fn decide(&self, from: SocketAddr, dcid: &[u8], token: &[u8], now: Instant) -> Verdict {
        let has_room = self.half_open < self.max_half_open;
        if token.is_empty() {
            return if has_room && self.taken_by(None) < self.retry_threshold {
                Verdict::Accept(None)
            } else {
                Verdict::Retry
            };
        }
        let Some(original) = self.proved(from, dcid, token, now) else {
            return Verdict::BadToken;
        };
        let at_host = self.taken_by(Some(Host::of(from)));
        if at_host >= self.max_per_address {
            return Verdict::Full;
        }
        if has_room {
            return Verdict::Accept(Some(original));
        }
        match self.oldest_where_most_are() {
            Some((most, key)) if most > at_host => Verdict::Displace(original, key),
            _ => Verdict::Full,
        }
    }

    fn taken_by(&self, host: Option<Host>) -> usize {
        self.taken.get(&host).map_or(0, VecDeque::len)
    }

    /// How many places are taken from the address that has most, and which one is its oldest.
    fn oldest_where_most_are(&self) -> Option<(usize, usize)> {
        self.taken
            .values()
            .filter_map(|taken| Some((taken.len(), *taken.front()?)))
            .max_by_key(|&(count, Taken(number, _))| (count, Reverse(number)))
            .map(|(count, Taken(_, key))| (count, key))
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
        hmac_sha256(&self.key[..], &all)
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }

    /// A connection was opened from there; `proven` if it was let in with a token.
    pub fn enter(&mut self, from: SocketAddr, proven: bool, key: usize) -> Place {
        let host = proven.then(|| Host::of(from));
        self.half_open += 1;
        self.count += 1;
        let taken = self.taken.entry(host).or_default();
        taken.push_back(Taken(self.count, key));
        Place(host, self.count)
    }

    /// It is half open no more.
    pub fn leave(&mut self, Place(host, number): Place) {
        self.half_open -= 1;
        if let Some(taken) = self.taken.get_mut(&host) {
            taken.retain(|&Taken(other, _)| other != number);
            if taken.is_empty() {
                self.taken.remove(&host);
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
            places.push(all.enter(host(number), false, 0));
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

    fn decide(all: &Admission, from: SocketAddr) -> Verdict {
        let now = Instant::now();
        let token = all.token(from, &ORIGINAL, &RETRY_ID, now).unwrap();
        all.decide(from, &RETRY_ID, &token, now)
    }

    fn displaces(key: usize) -> Verdict {
        Verdict::Displace(ORIGINAL.to_vec().into(), key)
    }

    #[test]
    fn an_address_has_its_limit() {
        let mut all = admission(Instant::now());
        let mut places = Vec::new();
        // Who pretends to be at an address takes nothing from who is there.
        places.push(all.enter(host(1), false, 0));
        places.push(all.enter(host(1), false, 1));
        for key in 2..5 {
            assert_ne!(decide(&all, host(1)), Verdict::Full);
            places.push(all.enter(host(1), true, key));
        }
        assert_eq!(decide(&all, host(1)), Verdict::Full);
        assert_ne!(decide(&all, host(2)), Verdict::Full);
        for place in places {
            all.leave(place);
        }
        assert_eq!((all.half_open(), all.taken.len()), (0, 0));
        assert_ne!(decide(&all, host(1)), Verdict::Full);
    }

    /// Two addresses have taken all there is.
    #[test]
    fn where_all_places_are_taken_who_has_most_gives_way() {
        let mut all = admission(Instant::now());
        let mut places = HashMap::new();
        for (key, number) in [1, 2, 2, 1, 2, 1].into_iter().enumerate() {
            places.insert(key, all.enter(host(number), true, key));
        }
        // Neither gets more of it.
        assert_eq!(decide(&all, host(1)), Verdict::Full);
        // Who has proved nothing has to, and then has the oldest place of theirs.
        let no_token = all.decide(host(3), &ORIGINAL, &[], Instant::now());
        assert_eq!(no_token, Verdict::Retry);
        let mut displaced = Vec::new();
        for (key, number) in [(6, 3), (7, 4), (8, 5)] {
            let Verdict::Displace(_, other) = decide(&all, host(number)) else {
                panic!("no place for {number}");
            };
            displaced.push(other);
            all.leave(places.remove(&other).unwrap());
            places.insert(key, all.enter(host(number), true, key));
        }
        // Of two that have as many, who has the oldest.
        assert_eq!(displaced, [0, 1, 2]);
        // Of 1, 1, 1, 1 and 2 places, that of one that has one is not taken.
        assert_eq!(decide(&all, host(6)), displaces(3));
        all.leave(places.remove(&3).unwrap());
        places.insert(9, all.enter(host(6), true, 9));
        // Where all have one, a new address takes the oldest, and an old one none.
        assert_eq!(decide(&all, host(7)), displaces(4));
        assert_eq!(decide(&all, host(6)), Verdict::Full);
        for (_, place) in places {
            all.leave(place);
        }
        assert_eq!((all.half_open(), all.taken.len()), (0, 0));
    }

    /// Those who have proved nothing are together one address.
    #[test]
    fn who_has_proved_nothing_gives_way_too() {
        let now = Instant::now();
        let limits = Limits {
            max_half_open: 3,
            ..Limits::default()
        };
        let mut all = Admission::new(&limits, now).unwrap();
        for key in 0..3 {
            let from = host(key as u8);
            assert_eq!(all.decide(from, &ORIGINAL, &[], now), Verdict::Accept(None));
            let _ = all.enter(from, false, key);
        }
        assert_eq!(all.decide(host(3), &ORIGINAL, &[], now), Verdict::Retry);
        assert_eq!(decide(&all, host(3)), displaces(0));
    }

    #[test]
    fn the_key_is_not_shown() {
        let shown = format!("{:?}", admission(Instant::now()));
        assert_eq!(shown, "Admission { half_open: 0, .. }");
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
