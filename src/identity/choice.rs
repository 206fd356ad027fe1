//! Which of several cookies' authorities a node answers with when it is dialled.
//!
//! A node has one cookie for each other node (`erlang:set_cookie/2`), and who is dialled has to
//! show its certificate before it can know who dials. So who dials says which authority it goes by
//! ([`call`], as the server name of TLS), and who is dialled looks for that one among those of its
//! own cookie and of the cookies that it has for others. Who says nothing is answered with the own.
//!
//! What is said goes over the network as plain text. It is made with a key that follows from the cookie
//! alone, by scrypt, so a guess at the cookie costs as much by it as by a certificate or a ticket. And
//! of a random number, so who does not know the cookie cannot tell which nodes have one in common.
//!
//! Who comes by the authority of a cookie that is set for some nodes has to be one of these, and none
//! of these may come by the own ([`Admits`]): `dist_util` will ask for the one cookie afterwards.
//!
//! An authority that is not known may be that of a cookie that has just been set. So the handshake is
//! held until the owner of the endpoint has looked ([`Choice::question`]), and then goes on: with
//! that authority if it is known now, and else with the own, which fails.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use boring::error::ErrorStack;
use boring::ex_data::Index;
use boring::hash::hmac_sha256;
use boring::ssl::{ClientHello, NameType, SelectCertError, Ssl, SslOptions, SslRef};
use boring::x509::store::{X509Store, X509StoreBuilder};
use parking_lot::Mutex;

use super::tickets::Secret;
use super::{During, IdentityError, NodeIdentity, Shown};

/// Below `invalid` (RFC 2606), so that it is nobody's host.
const SUFFIX: &str = ".cookie.quic-dist.invalid";
const LABEL: &[u8] = b"quic_dist authority called v1";
const NONCE: usize = 8;
const TAG: usize = 16;

/// What who dials calls the authority that has this key for it (`Secret::for_calls`).
pub(super) fn call(authority: &[u8]) -> Result<String, ErrorStack> {
    let mut nonce = [0; NONCE];
    boring::rand::rand_bytes(&mut nonce)?;
    let tag = tag(authority, &nonce)?;
    let hex: String = nonce
        .iter()
        .chain(&tag)
        .map(|b| format!("{b:02x}"))
        .collect();
    Ok(hex + SUFFIX)
}

fn tag(authority: &[u8], nonce: &[u8; NONCE]) -> Result<[u8; TAG], ErrorStack> {
    let hash = hmac_sha256(authority, &[LABEL, nonce].concat())?;
    let mut tag = [0; TAG];
    tag.copy_from_slice(&hash[..TAG]);
    Ok(tag)
}

/// An authority, as who dials has called it.
#[derive(Debug, PartialEq, Eq)]
struct Called([u8; NONCE], [u8; TAG]);

impl Called {
    /// `None`: the name is another's, and nothing is said of an authority.
    fn read(name: &str) -> Option<Self> {
        let hex = name.strip_suffix(SUFFIX)?.as_bytes();
        if hex.len() != 2 * (NONCE + TAG) {
            return None;
        }
        let mut bytes = [0; NONCE + TAG];
        for (byte, digits) in bytes.iter_mut().zip(hex.chunks(2)) {
            let digit = |at: usize| char::from(digits[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        let (nonce, tag) = bytes.split_first_chunk()?;
        Some(Called(*nonce, tag.try_into().ok()?))
    }

    /// No secret is compared: the tag was on the network.
    fn is(&self, authority: &[u8]) -> bool {
        tag(authority, &self.0).is_ok_and(|tag| tag == self.1)
    }
}

type Nodes = Arc<HashSet<String>>;

/// Which nodes may come by an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admits {
    /// All but these, which have another cookie.
    Others(Nodes),
    /// These, whose cookie it is.
    These(Nodes),
}

impl Default for Admits {
    fn default() -> Self {
        Admits::Others(Nodes::default())
    }
}

impl Admits {
    /// See [`super::PeerCertificate::is_for`] for what names there are.
    pub fn name(&self, name: &str) -> bool {
        match self {
            Admits::Others(nodes) => !nodes.contains(name),
            Admits::These(nodes) if name.starts_with('@') => {
                nodes.iter().any(|node| node.ends_with(name))
            }
            Admits::These(nodes) => nodes.contains(name),
        }
    }
}

/// What has been decided of a handshake.
enum Answer {
    /// Until this authority is known, or this question is answered.
    Held(Called, u64),
    Own,
    Other(Nodes),
}

static ANSWER: LazyLock<Option<Index<Ssl, Answer>>> = LazyLock::new(|| Ssl::new_ex_index().ok());

/// What is shown and demanded by one authority.
struct Candidate {
    calls: Secret,
    shown: Shown,
    /// Whose certificates are believed; everybody's if there is none.
    store: Option<X509Store>,
    /// None of the node's own.
    nodes: Option<Nodes>,
}

impl Candidate {
    /// `None`: the identity is not a cookie's.
    fn new(identity: &NodeIdentity, nodes: Option<Nodes>) -> Result<Option<Self>, IdentityError> {
        let side = &identity.server;
        let (Some(calls), Some(shown)) = (&side.calls, &side.shown) else {
            return Ok(None);
        };
        let store = match &side.demanded {
            Some(demanded) => {
                let mut store = X509StoreBuilder::new().during("certificate store")?;
                demanded.fill(&mut store)?;
                Some(store.build())
            }
            None => None,
        };
        Ok(Some(Candidate {
            calls: calls.clone(),
            shown: shown.clone(),
            store,
            nodes,
        }))
    }

    /// Without tickets: the key that they are sealed with is the own cookie's, who has that could
    /// make one that says anything.
    fn put(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        ssl.set_certificate(&self.shown.certificate)?;
        ssl.set_private_key(&self.shown.key)?;
        if let Some(store) = &self.store {
            ssl.set_verify_cert_store(store.clone())?;
        }
        ssl.set_options(SslOptions::NO_TICKET);
        Ok(())
    }
}

/// Another cookie than the node's own: the node that it is for, and the identity made of it, if there
/// is one.
pub type OtherCookie = (String, Option<Arc<NodeIdentity>>);

#[derive(Default)]
struct Table {
    /// The newest, for handshakes that began with the one before.
    own: Option<Candidate>,
    others: Vec<Candidate>,
    /// The nodes for which there is another cookie.
    elsewhere: Nodes,
    /// Questions that the endpoint's owner was asked, and the last one that is answered.
    asked: u64,
    answered: u64,
}

impl Table {
    /// What was never asked is not answered.
    fn answer(&mut self, question: u64) {
        self.answered = self.answered.max(question.min(self.asked));
    }

    fn known(&self, called: &Called) -> Option<&Candidate> {
        let mut all = self.own.iter().chain(&self.others);
        all.find(|candidate| called.is(candidate.calls.bytes()))
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Choice {
    table: Mutex<Table>,
    question: AtomicBool,
}

impl Choice {
    /// The node's own identity is another one.
    pub fn set_own(&self, identity: &NodeIdentity) -> Result<(), IdentityError> {
        let own = Candidate::new(identity, None)?;
        self.table.lock().own = own;
        Ok(())
    }

    /// All cookies that are not the own, and the last question that this answers.
    pub fn set_others(&self, all: Vec<OtherCookie>, answered: u64) -> Result<(), IdentityError> {
        let elsewhere = all.iter().map(|(node, _)| node.clone()).collect();
        let mut by_identity: Vec<(Arc<NodeIdentity>, HashSet<String>)> = Vec::new();
        for (node, identity) in all {
            let Some(identity) = identity else { continue };
            let known = by_identity
                .iter_mut()
                .find(|(known, _)| Arc::ptr_eq(known, &identity));
            match known {
                Some((_, nodes)) => drop(nodes.insert(node)),
                None => by_identity.push((identity, HashSet::from([node]))),
            }
        }
        let mut others = Vec::new();
        for (identity, nodes) in by_identity {
            others.extend(Candidate::new(&identity, Some(Arc::new(nodes)))?);
        }
        let mut table = self.table.lock();
        table.others = others;
        table.elsewhere = Arc::new(elsewhere);
        table.answer(answered);
        Ok(())
    }

    /// Whether there is something to ask: somebody has called an authority that is not known, and no
    /// question is open. However many do so, there is one question at a time.
    pub fn has_question(&self) -> bool {
        self.question.load(Ordering::Relaxed) && {
            let table = self.table.lock();
            table.asked == table.answered
        }
    }

    /// The number of the next question. Who calls an unknown authority from now on waits for the one
    /// after it: a cookie may be set while this is answered.
    pub fn question(&self) -> u64 {
        self.question.store(false, Ordering::Relaxed);
        let mut table = self.table.lock();
        table.asked += 1;
        table.asked
    }

    /// There is no better answer to a question.
    pub fn give_up(&self, question: u64) {
        let mut table = self.table.lock();
        table.answer(question);
    }

    /// BoringSSL's callback, with the key for calls of the authority that the context goes by. Called
    /// again for a handshake that is held, whenever something is sent.
    pub(super) fn choose(
        &self,
        own: &[u8],
        hello: &mut ClientHello<'_>,
    ) -> Result<(), SelectCertError> {
        let called = hello.servername(NameType::HOST_NAME).and_then(Called::read);
        let Some(called) = called.filter(|called| !called.is(own)) else {
            return Ok(());
        };
        let index = ANSWER.ok_or(SelectCertError::ERROR)?;
        let ssl = hello.ssl_mut();
        let table = self.table.lock();
        let answer = match table.known(&called) {
            Some(candidate) => {
                candidate.put(ssl).map_err(|_| SelectCertError::ERROR)?;
                match &candidate.nodes {
                    Some(nodes) => Answer::Other(nodes.clone()),
                    None => Answer::Own,
                }
            }
            None => match ssl.ex_data(index) {
                Some(Answer::Held(_, question)) if *question > table.answered => {
                    return Err(SelectCertError::RETRY);
                }
                Some(_) => Answer::Own,
                None => {
                    ssl.replace_ex_data(index, Answer::Held(called, table.asked + 1));
                    self.question.store(true, Ordering::Relaxed);
                    return Err(SelectCertError::RETRY);
                }
            },
        };
        ssl.replace_ex_data(index, answer);
        Ok(())
    }

    /// Whether a handshake is held still.
    pub fn holds(&self, ssl: &SslRef) -> bool {
        match ANSWER.and_then(|index| ssl.ex_data(index)) {
            Some(Answer::Held(called, question)) => {
                let table = self.table.lock();
                *question > table.answered && table.known(called).is_none()
            }
            _ => false,
        }
    }

    /// Who may come by the authority that a handshake went by.
    pub fn admits(&self, ssl: &SslRef) -> Admits {
        match ANSWER.and_then(|index| ssl.ex_data(index)) {
            Some(Answer::Other(nodes)) => Admits::These(nodes.clone()),
            _ => Admits::Others(self.table.lock().elsewhere.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_known_by_what_it_is_called() {
        let (first, second) = (call(b"key").unwrap(), call(b"key").unwrap());
        assert_ne!(first, second);
        for name in [first, second] {
            let called = Called::read(&name).unwrap();
            assert!(called.is(b"key"));
            assert!(!called.is(b"kez"));
        }
    }

    /// Computed apart from this: Python's `hmac`.
    #[test]
    fn the_tag_is_what_it_was() {
        let tag = tag(b"key", b"01234567").unwrap();
        let hex: String = tag.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "298cc88110f3b774456918fb8f5282b6");
    }

    #[test]
    fn other_names_say_nothing() {
        let good = call(b"key").unwrap();
        let odd = format!("{}g{}", &good[..7], &good[8..]);
        let unicode = format!("é{}", &good[2..]);
        for name in ["", "a.example.com", SUFFIX, &good[1..], &odd, &unicode] {
            assert_eq!(Called::read(name), None, "{name}");
        }
    }
}
