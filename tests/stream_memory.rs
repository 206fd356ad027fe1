//! What an idle stream of the application's costs, on both sides of a connection together: what is allocated, exactly, and not what is
//! resident. docs/streams.md has the figures.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use quic_dist_engine::identity::{CookieAuthority, NodeIdentity};
use quic_dist_engine::ids::Ids;
use quic_dist_engine::streams::Demand;
use quic_dist_engine::{CloseReason, Endpoint, Event, Events, Handle, Limits, StreamEvent};

/// How long is waited for what must happen.
const PATIENCE: Duration = Duration::from_secs(120);
/// Streams opened and used at a time.
const AT_ONCE: usize = 10;
/// What a stream costs at most, as it is asked for.
const LIMIT: isize = 4096;
/// The same with what the allocator's blocks are larger; 4,122 was the most that was seen, of 17 numbers from 410 to 55,000.
const LIMIT_IN_BLOCKS: isize = 4200;

static BYTES: AtomicIsize = AtomicIsize::new(0);
static IN_BLOCKS: AtomicIsize = AtomicIsize::new(0);

/// What the NIF's allocator, mimalloc, makes of it: up to 64 bytes it has blocks of each multiple of 16, from there four sizes
/// for each power of two, and whole slices for what is very large.
fn block(size: usize) -> usize {
    let step = match size {
        0..=64 => 16,
        65..=0x8_0000 => (1 << (size - 1).ilog2()) / 4,
        _ => 0x1_0000,
    };
    size.next_multiple_of(step)
}

fn count(size: usize, sign: isize) {
    BYTES.fetch_add(sign * size as isize, SeqCst);
    IN_BLOCKS.fetch_add(sign * block(size) as isize, SeqCst);
}

struct Counting;

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// As large as what the NIF has of a stream (`native/src/owned.rs` sees to it): its owner, a box, a mode, and two flags.
type InTheNif = (u64, Option<Box<u8>>, [u8; 4], bool, bool);

/// Sends back what comes on the streams of others, and counts what comes on its own.
struct Echo {
    answers: Arc<AtomicUsize>,
    table: Ids<InTheNif>,
}

impl Events for Echo {
    /// Whether it is the one that has dialled.
    type Peer = (Handle, bool);

    fn incoming(&mut self, handle: &Handle, _: SocketAddr) -> Self::Peer {
        let _ = (handle.read_control(), handle.read_data());
        (handle.clone(), false)
    }

    fn refused(&mut self, _: SocketAddr, _: &CloseReason) {}

    fn unknown_cookie(&mut self, _: u64) -> bool {
        false
    }

    fn ended(&mut self, _: Option<String>) {}

    fn event(&mut self, (handle, dialled): &mut Self::Peer, event: Event) {
        match event {
            Event::Connected => {
                let _ = (handle.read_control(), handle.read_data());
                self.answers.fetch_add(1, SeqCst);
            }
            Event::Stream(id, StreamEvent::Incoming) => {
                self.table.insert(id, Default::default());
                let _ = handle.demand_stream(id, Some(Demand::Any));
            }
            Event::Stream(id, StreamEvent::Data { bytes, fin }) => {
                handle.stream_delivered(id, fin, Some(Demand::Any));
                if *dialled {
                    self.table.insert(id, Default::default());
                    self.answers.fetch_add(1, SeqCst);
                } else {
                    let _ = handle.send_stream(id, bytes, false);
                }
            }
            _ => {}
        }
    }
}

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What is allocated when nothing happens any more.
fn at_rest() -> [isize; 2] {
    let now = || [&BYTES, &IN_BLOCKS].map(|count| count.load(SeqCst));
    let (mut last, mut same) = (now(), 0);
    until("rest", || {
        std::thread::sleep(Duration::from_millis(50));
        same = if now() == last { same + 1 } else { 0 };
        last = now();
        same == 10
    });
    last
}

/// Opens streams, and has each of them used in both directions.
fn open(handle: &Handle, answers: &AtomicUsize, count: usize) {
    let mut left = count;
    while left > 0 {
        let some = left.min(AT_ONCE);
        let before = answers.load(SeqCst);
        for _ in 0..some {
            let mut opened = None;
            until("a stream is open", || {
                opened = handle.open_stream(false, 128).ok();
                opened.is_some()
            });
            let id = opened.unwrap();
            handle.demand_stream(id, Some(Demand::Any)).unwrap();
            handle.send_stream(id, vec![7], false).unwrap();
        }
        until("all are answered", || answers.load(SeqCst) == before + some);
        left -= some;
    }
}

fn cost_of(count: usize) -> [isize; 2] {
    let authority = CookieAuthority::derive(b"secret").unwrap();
    let identity = Arc::new(NodeIdentity::mint(&authority, "node@127.0.0.1").unwrap());
    let answers = Arc::new(AtomicUsize::new(0));
    let endpoint = || {
        let limits = Limits {
            user_streams: count + 3 * AT_ONCE,
            handshake_timeout: PATIENCE,
            ..Limits::default()
        };
        let echo = Echo {
            answers: answers.clone(),
            table: Ids::default(),
        };
        let address = "127.0.0.1:0".parse().unwrap();
        Endpoint::open(address, identity.clone(), limits, echo).unwrap()
    };
    let (a, b) = (endpoint(), endpoint());
    let handle = a
        .connect(b.local(), None, |handle| (handle.clone(), true))
        .unwrap();
    until("the connection", || answers.load(SeqCst) == 1);
    // What a connection takes that is in use, and who sends for the first time.
    for _ in 0..3 {
        open(&handle, &answers, AT_ONCE);
        at_rest();
    }
    let before = at_rest();
    open(&handle, &answers, count);
    let after = at_rest();
    [0, 1].map(|account| (after[account] - before[account]) / count as isize)
}

/// With numbers just behind a doubling of quiche's tables (seven eighths of a power of two, less the few dozen that the test had open before)
/// among them, where a stream costs most.
#[test]
fn an_idle_stream_costs_four_kilobytes_at_most_on_both_sides_together() {
    for count in [420, 866, 1000, 3585, 28_673, 55_000] {
        let [bytes, in_blocks] = cost_of(count);
        println!("{count} streams: {bytes} bytes each, {in_blocks} in blocks");
        assert!(bytes <= LIMIT, "{bytes} bytes with {count}");
        assert!(
            in_blocks <= LIMIT_IN_BLOCKS,
            "{in_blocks} in blocks with {count}"
        );
    }
}
