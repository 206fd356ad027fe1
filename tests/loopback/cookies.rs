//! A node that is dialled by the cookie that it has for who dials, and not by its own.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use quic_dist_engine::CloseReason;
use quic_dist_engine::identity::{CookieAuthority, NodeIdentity};

use super::support::{Conn, Node, limits, ping};

static OURS: LazyLock<CookieAuthority> = LazyLock::new(|| derive(b"ours"));
static THEIRS: LazyLock<CookieAuthority> = LazyLock::new(|| derive(b"theirs"));

fn derive(cookie: &[u8]) -> CookieAuthority {
    CookieAuthority::derive(cookie).unwrap()
}

fn mint(authority: &CookieAuthority, name: &str) -> Arc<NodeIdentity> {
    Arc::new(NodeIdentity::mint(authority, name).unwrap())
}

fn open(authority: &CookieAuthority, name: &str) -> (Node, Receiver<u64>) {
    let (sender, questions) = unbounded();
    let identity = mint(authority, name);
    let node = Node::open_with("127.0.0.1:0", &identity, limits(), Some(sender));
    (node, questions)
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
    let question = questions.recv().unwrap();
    a.endpoint.set_others(vec![], question);
    assert_eq!(held.end(), tls(true, 48));
    assert_eq!(a.refusal(), tls(false, 48));

    let mut held = dial(&b, &a);
    let question = questions.recv().unwrap();
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
    let question = questions.recv().unwrap();
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
    let question = questions.recv().unwrap();
    let theirs = Some(mint(&THEIRS, "a@127.0.0.1"));
    let others = vec![("b@127.0.0.1".to_owned(), theirs)];
    a.endpoint.set_others(others, question);
    for conn in &mut held {
        conn.connected();
    }
}
