//! Threads that take an endpoint's turns while they wait ([`Handle::ask`]).

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use quic_dist_engine::{CloseReason, Handle, Limits};

use crate::support::{Conn, Node, PATIENCE, SECRET, limits, packet, ping, this_thread};

/// One whose guests ask for a while, also on a machine that stands still now and then.
fn node() -> Node {
    let limits = Limits {
        busy_wait: Duration::from_millis(20),
        ..limits()
    };
    Node::open("127.0.0.1:0", &SECRET, limits)
}

/// Who is kept from the processor now and then may not ask for seconds.
const LONG: Duration = Duration::from_secs(180);

/// Asks, as often as it may, until an event is there.
fn ask_for_event(conn: &Conn) {
    let start = Instant::now();
    while !conn.has_event() {
        assert!(start.elapsed() < PATIENCE, "no event");
        if !conn.handle.ask(0) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Waits until it may ask: who was kept from the processor for long stays out for a while.
fn may_ask(handle: &Handle) {
    let start = Instant::now();
    while !handle.ask(0) {
        assert!(start.elapsed() < LONG, "it may never ask");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_comes_is_told_within_the_guests_calls() {
    const WANTED: u32 = 10;
    let (a, b) = (node(), node());
    let (mut ours, mut theirs) = a.connect(&b);
    let me = thread::current().id();
    let (mut within, mut number) = (0, 0);
    let start = Instant::now();
    while within < WANTED {
        assert!(start.elapsed() < LONG, "{within} of {number}");
        number += 1;
        ours.send(&packet(number, 100));
        ask_for_event(&theirs);
        assert!(theirs.packet() == packet(number, 100));
        within += u32::from(theirs.teller == Some(me));
        // The answer too leaves as ever.
        theirs.send(&packet(!number, 10));
        assert!(ours.packet() == packet(!number, 10));
    }
    let turns = &b.endpoint.counters().guest_turns;
    assert!(turns.load(Relaxed) >= u64::from(WANTED));
    assert_eq!(a.endpoint.counters().guest_turns.load(Relaxed), 0);
}

/// The event thread takes the turns again, though nobody has given them back.
#[test]
fn who_asks_no_more_is_not_waited_for() {
    let (a, b) = (node(), node());
    let (mut ours, mut theirs) = a.connect(&b);
    let me = thread::current().id();
    for number in 0..3 {
        may_ask(&theirs.handle);
        ours.send(&packet(number, 100));
        assert!(theirs.packet() == packet(number, 100));
        assert_ne!(theirs.teller, Some(me));
        // Commands as well.
        may_ask(&theirs.handle);
        let info = theirs.handle.info().unwrap();
        assert!(info.recv_timeout(PATIENCE).is_ok());
    }
}

/// A guest's turn may set a deadline, through which a thread that slept already would sleep.
#[test]
fn a_guest_wakes_the_event_thread_before_it_takes_the_lead() {
    let (a, b) = (node(), node());
    let (_ours, theirs) = a.connect(&b);
    let wakings = || b.endpoint.counters().wake_calls.load(Relaxed);
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < LONG, "it is never woken");
        thread::sleep(Duration::from_millis(200));
        let before = wakings();
        // There are no commands that would wake it.
        theirs.handle.ask(0);
        if wakings() > before {
            return;
        }
    }
}

/// Of several guests one has the lead, and tells the others what is theirs.
#[test]
fn one_guest_takes_the_turns_for_all() {
    let (a, b) = (node(), node());
    let mut pairs: Vec<_> = (0..4).map(|_| a.connect(&b)).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (_, theirs) in &pairs {
            let (handle, done) = (theirs.handle.clone(), &done);
            scope.spawn(move || {
                while !done.load(Relaxed) {
                    if !handle.ask(0) {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }
        for number in 0..200 {
            for (ours, theirs) in &mut pairs {
                ping(ours, theirs, number);
            }
        }
        done.store(true, Relaxed);
    });
    assert!(b.endpoint.counters().guest_turns.load(Relaxed) > 0);
}

#[test]
fn handshakes_are_the_event_threads() {
    // While a guest takes turns, and so could have met them.
    const WANTED: usize = 5;
    let (a, b) = (node(), node());
    let (_ours, theirs) = a.connect(&b);
    let turns = || b.endpoint.counters().guest_turns.load(Relaxed);
    let done = AtomicBool::new(false);
    let met = thread::scope(|scope| {
        let (handle, flag) = (theirs.handle.clone(), &done);
        let guest = scope.spawn(move || {
            while !flag.load(Relaxed) {
                if !handle.ask(0) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            this_thread()
        });
        let (mut dialled, mut met) = (Vec::new(), 0);
        let start = Instant::now();
        while met < WANTED && start.elapsed() < LONG {
            let before = turns();
            let c = node();
            // Both ways: what b dials itself is not the guest's either.
            let (mut ours, mut theirs) = c.connect(&b);
            ping(&mut ours, &mut theirs, 1);
            let (mut back, mut there) = b.connect(&c);
            ping(&mut back, &mut there, 2);
            dialled.push(theirs.thread);
            met += usize::from(turns() > before);
        }
        done.store(true, Relaxed);
        let guest = guest.join().unwrap();
        assert!(dialled.iter().all(|thread| *thread != guest));
        met
    });
    assert_eq!(met, WANTED, "no guest was there");
}

/// A panic in a guest's turn is not the guest's: the endpoint ends, as by one on its event thread.
#[test]
fn a_panic_in_a_guests_turn_ends_the_endpoint() {
    quic_dist_engine::panics::install();
    for round in 0.. {
        assert!(round < 50, "never on the guest's thread");
        let (a, b) = (node(), node());
        let (mut ours, mut theirs) = a.connect(&b);
        may_ask(&theirs.handle);
        theirs.handle.panic("a wrong assumption").unwrap();
        theirs.handle.ask(0);
        let report = b.ended.recv_timeout(PATIENCE).unwrap().unwrap();
        assert!(report.contains("a wrong assumption"), "{report}");
        assert_eq!(theirs.end(), CloseReason::Internal);
        assert!(matches!(
            ours.end(),
            CloseReason::PeerClosed { code: 5, .. }
        ));
        assert!(!theirs.handle.ask(0), "of what has ended nobody is a guest");
        assert!(b.endpoint.wait_closed(PATIENCE));
        if report.contains("guest_turn") {
            return;
        }
    }
}
