//! A node that is dialled by the cookie that it has for who dials, and not by its own.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use quic_dist_engine::CloseReason;
use quic_dist_engine::config::Limits;
use quic_dist_engine::identity::{CookieAuthority, NodeIdentity};

use super::support::raw::{Raw, careless};
use super::support::{Conn, Node, PATIENCE, limits, ping, until};

static OURS: LazyLock<CookieAuthority> = LazyLock::new(|| derive(b"ours"));
static THEIRS: LazyLock<CookieAuthority> = LazyLock::new(|| derive(b"theirs"));

fn derive(cookie: &[u8]) -> CookieAuthority {
    CookieAuthority::derive(cookie).unwrap()
}

fn mint(authority: &CookieAuthority, name: &str) -> Arc<NodeIdentity> {
    Arc::new(NodeIdentity::mint(authority, name).unwrap())
}

fn open(authority: &CookieAuthority, name: &str) -> (Node, Receiver<u64>) {
    open_with(authority, name, limits())
}

fn open_with(authority: &CookieAuthority, name: &str, limits: Limits) -> (Node, Receiver<u64>) {
    let (sender, questions) = unbounded();
    let identity = mint(authority, name);
    let node = Node::open_with("127.0.0.1:0", &identity, limits, Some(sender));
    (node, questions)
}

/// Calls an authority that is nobody's.
fn stranger(to: &Node) -> Raw {
    let identity = mint(&OURS, "x@127.0.0.1");
    let context = careless(identity.client_context().unwrap());
    let mut raw = Raw::new(to.endpoint.local(), context);
    let mut random = [0; 24];
    boring::rand::rand_bytes(&mut random).unwrap();
    let name: String = random.iter().map(|b| format!("{b:02x}")).collect();
    let tls: &mut boring::ssl::SslRef = raw.quic.as_mut();
    tls.set_hostname(&(name + ".cookie.quic-dist.invalid"))
        .unwrap();
    raw
}

fn dial(from: &Node, to: &Node) -> Conn {
    from.dial_node(to.endpoint.local(), Some("a@127.0.0.1"))
}

fn tls(by_us: bool, alert: u8) -> CloseReason {
    CloseReason::Tls { by_us, alert }
}

#[track_caller]
fn meet(from: &Node, to: &Node) -> bool {
    let mut ours = dial(from, to);
    ours.connected();
    let mut theirs = to.accept();
    ping(&mut ours, &mut theirs, 1);
    let info = theirs.handle.info().unwrap().recv().unwrap();
    ours.handle.close("done");
    ours.end();
    theirs.end();
    info.resumed
}

/// Who has been held is let in when the cookie is found, and refused when it is not.
#[test]
fn who_goes_by_an_unknown_cookie_waits_for_an_answer() {
    let (a, questions) = open(&OURS, "a@127.0.0.1");
    let (b, _) = open(&THEIRS, "b@127.0.0.1");
    let theirs = || ("b@127.0.0.1".to_owned(), Some(mint(&THEIRS, "a@127.0.0.1")));

    let mut held = dial(&b, &a);
    let question = questions.recv_timeout(PATIENCE).unwrap();
    a.endpoint.set_others(vec![], question);
    assert_eq!(held.end(), tls(true, 48));
    assert_eq!(a.refusal(), tls(false, 48));

    let mut held = dial(&b, &a);
    let question = questions.recv_timeout(PATIENCE).unwrap();
    // What answers another question, or is not all yet, does not end it.
    a.endpoint.set_others(vec![], question - 1);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(a.refused.try_recv().ok(), None, "question {question}");
    a.endpoint.set_others(vec![theirs()], question);
    held.connected();
    let mut in_a = a.accept();
    ping(&mut held, &mut in_a, 1);

    // It is known now, and nobody is asked. Sessions are not kept of it.
    assert!(!meet(&b, &a) && !meet(&b, &a));
    // By its own cookie everybody else is let in as before.
    let (c, _) = open(&OURS, "c@127.0.0.1");
    assert_eq!([meet(&c, &a), meet(&c, &a)], [false, true]);
    assert!(questions.is_empty());
}

#[test]
fn a_cookie_is_for_the_node_it_is_set_for() {
    let (a, questions) = open(&OURS, "a@127.0.0.1");
    let theirs = Some(mint(&THEIRS, "a@127.0.0.1"));
    a.endpoint
        .set_others(vec![("b@127.0.0.1".to_owned(), theirs)], 0);
    // Of others that know it, and of one that has no name yet.
    for (authority, name, whose) in [
        (&THEIRS, "c@127.0.0.1", "c@127.0.0.1"),
        (&THEIRS, "", ""),
        // And nobody else's cookie is for that node.
        (&OURS, "b@127.0.0.1", "b@127.0.0.1"),
    ] {
        let (x, _) = open(authority, name);
        let mut conn = dial(&x, &a);
        // A client is done before it has been judged.
        conn.connected();
        assert_eq!(conn.end(), tls(false, 42));
        let text =
            format!("the peer's certificate, of {whose}, is of another cookie than is set for it");
        let alert = 42;
        assert_eq!(a.refusal(), CloseReason::Certificate { alert, text });
        assert!(a.incoming.is_empty());
    }
    let (b, _) = open(&THEIRS, "b@127.0.0.1");
    meet(&b, &a);
    // One that is still to be derived is no reason to take the own.
    let missing = vec![("c@127.0.0.1".to_owned(), None)];
    a.endpoint.set_others(missing, 0);
    let (c, _) = open(&OURS, "c@127.0.0.1");
    let mut conn = dial(&c, &a);
    conn.connected();
    assert_eq!(conn.end(), tls(false, 42));
    assert!(questions.is_empty());
}

/// A new cookie of the node's own counts for a handshake that began before.
#[test]
fn who_is_held_may_go_by_the_newest_own_cookie() {
    let (a, questions) = open(&OURS, "a@127.0.0.1");
    let (b, _) = open(&THEIRS, "b@127.0.0.1");
    let mut held = dial(&b, &a);
    let question = questions.recv_timeout(PATIENCE).unwrap();
    a.endpoint.set_identity(mint(&THEIRS, "a@127.0.0.1"));
    a.endpoint.set_others(vec![], question);
    held.connected();
    let mut in_a = a.accept();
    ping(&mut held, &mut in_a, 1);
    meet(&b, &a);
}

/// One question may be that of several.
#[test]
fn many_may_be_held_at_once() {
    let (a, questions) = open(&OURS, "a@127.0.0.1");
    let (b, _) = open(&THEIRS, "b@127.0.0.1");
    let mut held: Vec<Conn> = (0..8).map(|_| dial(&b, &a)).collect();
    let question = questions.recv_timeout(PATIENCE).unwrap();
    let theirs = Some(mint(&THEIRS, "a@127.0.0.1"));
    let others = vec![("b@127.0.0.1".to_owned(), theirs)];
    a.endpoint.set_others(others, question);
    for conn in &mut held {
        conn.connected();
    }
}

/// However long it takes: who is held hears nothing, and says little.
#[test]
fn who_is_held_for_long_is_quiet() {
    let (a, questions) = open(&OURS, "a@127.0.0.1");
    let (b, _) = open(&THEIRS, "b@127.0.0.1");
    let mut held = dial(&b, &a);
    let question = questions.recv_timeout(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let counters = a.endpoint.counters();
    // His first message has two datagrams; if they come one at a time the first is acknowledged.
    let sent = counters.send_calls.load(Relaxed);
    assert!(sent <= 1, "{sent} answers");
    // Two each time that a time doubles, which is 1 ms at first if that was acknowledged: some 24.
    let received = counters.datagrams_received.load(Relaxed);
    assert!(received <= 40, "{received} datagrams");
    let theirs = ("b@127.0.0.1".to_owned(), Some(mint(&THEIRS, "a@127.0.0.1")));
    // While there are others to be found, this one is.
    a.endpoint.set_others(vec![theirs], question - 1);
    held.connected();
    let mut in_a = a.accept();
    ping(&mut held, &mut in_a, 1);
}

/// He has the place of any other, for as long as any other.
#[test]
fn who_is_held_is_half_open() {
    let limits = Limits {
        handshake_timeout: Duration::from_secs(2),
        ..limits()
    };
    let (a, questions) = open_with(&OURS, "a@127.0.0.1", limits);
    let (b, _) = open(&THEIRS, "b@127.0.0.1");
    let counters = a.endpoint.counters();
    let half_open = || counters.half_open.load(Relaxed);

    let mut held = dial(&b, &a);
    questions.recv_timeout(PATIENCE).unwrap();
    assert_eq!(half_open(), 1);
    assert_eq!(a.refusal(), CloseReason::HandshakeTimeout);
    let told = held.end();
    assert!(
        matches!(told, CloseReason::Transport { by_us: false, .. }),
        "{told:?}"
    );
    until("it is forgotten", || half_open() == 0);

    // Who has heard nothing and gives up says nothing either.
    let mut held = dial(&b, &a);
    until("it is there", || half_open() == 1);
    held.handle.close("that's enough");
    held.end();
    assert_eq!(a.refusal(), CloseReason::HandshakeTimeout);
    until("it is forgotten", || half_open() == 0);
}

/// Many strangers make one question at a time, get no answer, and have to prove their address.
#[test]
fn a_flood_of_unknown_names() {
    const PLACES: usize = 4;
    let limits = Limits {
        retry_threshold: PLACES,
        max_half_open_per_address: 2 * PLACES,
        ..limits()
    };
    let (a, questions) = open_with(&OURS, "a@127.0.0.1", limits);
    let counters = a.endpoint.counters();
    let received = || counters.datagrams_received.load(Relaxed);
    let mut strangers: Vec<Raw> = (0..100).map(|_| stranger(&a)).collect();
    for raw in &mut strangers {
        raw.flush();
    }
    let sent = |strangers: &[Raw]| {
        strangers
            .iter()
            .map(|raw| raw.sent.len() as u64)
            .sum::<u64>()
    };
    let (held, others) = strangers.split_at_mut(PLACES);
    let (in_all, retries) = (sent(held) + sent(others), sent(others));
    until("all have come", || received() >= in_all);
    until("they are asked to prove it", || {
        counters.retries.load(Relaxed) >= retries
    });
    // Nothing else is sent (but of the two datagrams of each, the first may have been acknowledged
    // before the second came), whatever else comes of those that are held.
    for _ in 0..20 {
        for raw in &mut *held {
            raw.socket.send_to(&raw.sent[0], raw.to).unwrap();
        }
    }
    let answers = || counters.send_calls.load(Relaxed).saturating_sub(retries);
    assert!(answers() <= PLACES as u64, "{}", answers());
    let again = 20 * PLACES as u64;
    until("all have come", || received() >= in_all + again);
    assert_eq!(counters.half_open.load(Relaxed), PLACES as u64);
    assert!(answers() <= PLACES as u64, "{}", answers());
    // Those that prove it are held as well, as many as there may be from one address.
    for raw in &mut others[..3 * PLACES] {
        let retried = raw.sent.len();
        raw.read();
        raw.flush();
        assert!(raw.sent.len() > retried, "with a token");
    }
    until("the places are taken", || {
        counters.half_open.load(Relaxed) == 3 * PLACES as u64
            && counters.dropped_limit.load(Relaxed) >= PLACES as u64
    });
    assert!(answers() <= 3 * PLACES as u64, "{}", answers());
    assert_eq!(questions.recv_timeout(PATIENCE).unwrap(), 1);
    std::thread::sleep(Duration::from_millis(100));
    assert!(questions.is_empty(), "one is open");
    // Who came after the question waits for the next one.
    a.endpoint.set_others(vec![], 1);
    assert_eq!(questions.recv_timeout(PATIENCE).unwrap(), 2);
    a.endpoint.set_others(vec![], 2);
    std::thread::sleep(Duration::from_millis(100));
    assert!(questions.is_empty(), "all are answered");
    // They go on by the own cookie.
    held[0].until("it is answered", |quic| quic.peer_cert().is_some());
}

/// A node of a release before this names no authority: it goes by the own cookie.
#[test]
fn who_names_none_goes_by_the_own_cookie() {
    let (a, questions) = open(&OURS, "a@127.0.0.1");
    let theirs = mint(&THEIRS, "a@127.0.0.1");
    let others = vec![("b@127.0.0.1".to_owned(), Some(theirs))];
    a.endpoint.set_others(others, 0);
    let old = |authority: &CookieAuthority, name: &str| {
        let identity = NodeIdentity::mint(authority, name).unwrap();
        Raw::new(a.endpoint.local(), identity.client_context().unwrap())
    };
    let mut raw = old(&OURS, "c@127.0.0.1");
    raw.handshake();
    raw.say_name();
    assert_eq!(a.accept().control(), b"name");

    // Nor by the cookie that is set for it, without saying so.
    let mut raw = old(&THEIRS, "b@127.0.0.1");
    raw.until("it refuses", |quic| quic.local_error().is_some());
    assert_eq!(a.refusal(), tls(false, 48));
    let mut raw = old(&OURS, "b@127.0.0.1");
    raw.handshake();
    assert_eq!(raw.told(), (false, 0x100 + 42, String::new()));
    assert!(questions.is_empty());
}
