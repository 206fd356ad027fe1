//! The keys that session tickets are sealed with: derived, so that a node that was killed can read,
//! when it has been started again, the tickets that its peers still hold.
//!
//! A [`Secret`] is made of what the node proves its identity by, and of the cookie: whoever has it
//! could make a ticket that says anything of the peer, so it must take no less to have it than it
//! takes to be any node of the cluster. A node's [`Tickets`] are bound to the node's name and to all
//! by which it verifies others; the key of a time ends with its epoch, whose length is the lifetime
//! of sessions. HKDF is RFC 5869's, with SHA-256. docs/security.md says what all this is worth.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boring::error::ErrorStack;
use boring::hash::hmac_sha256;
use boring::pkey::{PKey, Private};
use zeroize::Zeroizing;

/// A name, a key for HMAC and one for AES, of 16 bytes each (BoringSSL's
/// `SSL_CTX_set_tlsext_ticket_keys`).
const KEY_BYTES: usize = 48;
const HASH: usize = 32;

const OF_COOKIE: &[u8] = b"quic_dist session tickets of a cookie v1";
const OF_KEY: &[u8] = b"quic_dist session tickets of a key v1";
const CALLS: &[u8] = b"quic_dist calls of a cookie's authority v1";

/// What a node derives its [`Tickets`] from.
#[derive(Clone)]
pub(super) struct Secret(Zeroizing<[u8; HASH]>);

impl Secret {
    /// Of the seed that the cookie's authority is made of.
    pub fn of_cookie(seed: &[u8]) -> Result<Self, ErrorStack> {
        extract(OF_COOKIE, seed)
    }

    /// What a cookie's authority is called by ([`super::choice`]): of the seed, and not of the authority's
    /// public key, which follows from any certificate that it has signed.
    pub fn for_calls(seed: &[u8]) -> Result<Self, ErrorStack> {
        extract(CALLS, seed)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0[..]
    }

    /// Of the operator's key and the cookie's seed. Not of the key alone: who has stolen one could
    /// else dial its node as any other. Nor of the cookie itself: any ticket would tell the thief at
    /// once whether he has guessed it.
    pub fn of_key(key: &PKey<Private>, seed: &[u8]) -> Result<Self, ErrorStack> {
        let key = Zeroizing::new(key.private_key_to_der_pkcs8()?);
        let mut both = Zeroizing::new(Vec::with_capacity(8 + key.len() + seed.len()));
        both.extend_from_slice(&(key.len() as u64).to_be_bytes());
        both.extend_from_slice(&key);
        both.extend_from_slice(seed);
        extract(OF_KEY, &both)
    }

    /// Known to nobody else, and to this node only while it runs.
    pub fn random() -> Result<Self, ErrorStack> {
        let mut secret = Zeroizing::new([0; HASH]);
        boring::rand::rand_bytes(&mut secret[..])?;
        Ok(Secret(secret))
    }
}

/// See the module's documentation.
pub struct Tickets(Zeroizing<[u8; HASH]>);

impl Tickets {
    /// `whose`: a digest of what the node shows and demands.
    pub(super) fn new(secret: &Secret, name: &str, whose: &[u8; HASH]) -> Result<Self, ErrorStack> {
        if name.is_empty() {
            // All nodes that have no name yet would have the same.
            return Ok(Tickets(Secret::random()?.0));
        }
        let info = [&whose[..], name.as_bytes()].concat();
        let mut own = Zeroizing::new([0; HASH]);
        expand(&secret.0, &info, &mut own[..])?;
        Ok(Tickets(own))
    }

    /// The key of the epoch that a time is in, for `quiche::Config::set_ticket_key`.
    pub fn key(
        &self,
        lifetime: Duration,
        epoch: u64,
    ) -> Result<Zeroizing<[u8; KEY_BYTES]>, ErrorStack> {
        let mut info = lifetime.as_nanos().to_be_bytes().to_vec();
        info.extend_from_slice(&epoch.to_be_bytes());
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        expand(&self.0, &info, &mut key[..])?;
        Ok(key)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

/// The epoch that a time is in. What comes before 1970 is one epoch; with no lifetime there is one.
pub fn epoch(now: SystemTime, lifetime: Duration) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let number = since.as_nanos().checked_div(lifetime.as_nanos());
    u64::try_from(number.unwrap_or(0)).unwrap_or(u64::MAX)
}

fn extract(salt: &[u8], secret: &[u8]) -> Result<Secret, ErrorStack> {
    Ok(Secret(Zeroizing::new(hmac_sha256(salt, secret)?)))
}

fn expand(secret: &[u8; HASH], info: &[u8], into: &mut [u8]) -> Result<(), ErrorStack> {
    let mut block = Zeroizing::new(Vec::with_capacity(HASH + info.len() + 1));
    for (number, out) in (1..=u8::MAX).zip(into.chunks_mut(HASH)) {
        block.extend_from_slice(info);
        block.push(number);
        let hash = Zeroizing::new(hmac_sha256(secret, &block)?);
        out.copy_from_slice(&hash[..out.len()]);
        block.clear();
        block.extend_from_slice(&hash[..]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use boring::ec::{EcGroup, EcKey};
    use boring::nid::Nid;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digits).collect()
    }

    /// RFC 5869, appendix A.1.
    #[test]
    fn it_is_hkdf() {
        let secret = extract(&bytes("000102030405060708090a0b0c"), &[0x0b; 22]).unwrap();
        let expected = "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5";
        assert_eq!(secret.0[..], bytes(expected));
        let mut out = [0; 42];
        expand(&secret.0, &bytes("f0f1f2f3f4f5f6f7f8f9"), &mut out).unwrap();
        let expected =
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
        assert_eq!(out[..], bytes(expected));
    }

    #[test]
    fn an_epoch_is_as_long_as_the_lifetime() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let day = Duration::from_secs(86_400);
        assert_eq!(epoch(at(86_399), day), 0);
        assert_eq!(epoch(at(86_400), day), 1);
        assert_eq!(epoch(at(2 * 86_400 - 1), day), 1);
        assert_eq!(epoch(UNIX_EPOCH - day, day), 0);
        assert_eq!(epoch(at(5), Duration::ZERO), 0);
    }

    #[test]
    fn with_files_it_takes_the_key_and_the_cookie() {
        let key = || {
            let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
            PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
        };
        let of = |key: &PKey<Private>, seed: &[u8]| Secret::of_key(key, seed).unwrap().0;
        let (ours, other) = (key(), key());
        let pem = ours.private_key_to_pem_pkcs8().unwrap();
        let again = PKey::private_key_from_pem(&pem).unwrap();
        assert_eq!(of(&ours, b"seed"), of(&again, b"seed"));
        assert_ne!(of(&ours, b"seed"), of(&ours, b"seeds"));
        assert_ne!(of(&ours, b"seed"), of(&other, b"seed"));
        let of_cookie = Secret::of_cookie(b"seed").unwrap().0;
        assert_ne!(of(&ours, b"seed"), of_cookie);
    }

    #[test]
    fn every_part_makes_another_key() {
        let day = Duration::from_secs(86_400);
        let key = |secret: &Secret, name, whose: u8, lifetime, epoch| {
            let tickets = Tickets::new(secret, name, &[whose; HASH]).unwrap();
            tickets.key(lifetime, epoch).unwrap()[..].to_vec()
        };
        let secret = Secret::of_cookie(b"seed").unwrap();
        let first = key(&secret, "a@h", 1, day, 7);
        assert_eq!(first, key(&secret, "a@h", 1, day, 7));
        let other = Secret::of_cookie(b"seeds").unwrap();
        let nameless = key(&secret, "", 1, day, 7);
        let others = [
            key(&other, "a@h", 1, day, 7),
            key(&secret, "b@h", 1, day, 7),
            key(&secret, "a@h", 2, day, 7),
            key(&secret, "a@h", 1, day * 2, 7),
            key(&secret, "a@h", 1, day, 8),
            key(&secret, "", 1, day, 7),
        ];
        for other in others {
            assert_ne!(first, other);
            assert_ne!(nameless, other);
        }
        assert!(first[..16] != first[16..32] && first[16..32] != first[32..]);
    }
}
