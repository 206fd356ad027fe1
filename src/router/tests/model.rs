//! A model of Erlang's promise: signals from one process to another arrive in the order in which
//! they were sent, by whatever name either goes in them.
//!
//! A story is what some processes of one node do, in the order in which the VM queues it. The
//! streams carry it, and a delivery lets them overtake each other as far as a network can.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::Route;
use super::encode::{self, ALIAS, Alternate, EXIT, Name, PRIORITY, Packet, Process};

/// What a process does to a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    SendToPid,
    SendToName,
    SendToAlias,
    /// As OTP 28 sends to an alias, and with priority.
    SendToNewAlias,
    SendUrgently,
    /// `exit/2` with priority, and to an alias.
    ExitUrgently,
    ExitAlias,
    /// As the VM sends while it is still connecting, without a sender.
    SendWhileConnecting,
    /// In this many fragments, which others' signals may come between.
    SendLarge(u8),
    Link,
    SetGroupLeader,
    /// It ends, and who monitors it by name, or by pid, is told. It does nothing afterwards.
    DieAsName,
    DieAsPid,
}

/// Each step: which process does what, to which receiver. A process's first step is preceded by
/// its `spawn_reply` when the story says that it is spawned by the other node.
#[derive(Clone, Debug)]
pub struct Story {
    pub spawned: bool,
    pub steps: Vec<(u8, Deed, u8)>,
}

/// Which promises are checked; each hazard alone, to see that a wrong rule falls for every one.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub names: bool,
    pub exits: bool,
    pub spawns: bool,
    pub fragments: bool,
}

impl Rules {
    const NONE: Rules = Rules {
        names: false,
        exits: false,
        spawns: false,
        fragments: false,
    };
    pub const ALL: Rules = Rules {
        names: true,
        exits: true,
        spawns: true,
        fragments: true,
    };
    pub const EACH: [(&'static str, Rules); 4] = [
        (
            "a process by pid, name and alias",
            Rules {
                names: true,
                ..Rules::NONE
            },
        ),
        (
            "DOWN after the reply",
            Rules {
                exits: true,
                ..Rules::NONE
            },
        ),
        (
            "spawn_reply before everything else",
            Rules {
                spawns: true,
                ..Rules::NONE
            },
        ),
        (
            "fragments",
            Rules {
                fragments: true,
                ..Rules::NONE
            },
        ),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Message,
    Fragment,
    Exit,
    SpawnReply,
}

/// A packet, whose it really is, to whom it goes and where in the story.
struct Signal {
    sender: u8,
    receiver: u8,
    kind: Kind,
    bytes: Vec<u8>,
}

pub fn stories() -> impl Strategy<Value = Story> {
    let deed = prop_oneof![
        4 => Just(Deed::SendToPid),
        2 => Just(Deed::SendToName),
        1 => Just(Deed::SendToAlias),
        1 => Just(Deed::SendToNewAlias),
        1 => Just(Deed::SendUrgently),
        1 => Just(Deed::ExitUrgently),
        1 => Just(Deed::ExitAlias),
        1 => Just(Deed::SendWhileConnecting),
        2 => (2u8..6).prop_map(Deed::SendLarge),
        1 => Just(Deed::Link),
        1 => Just(Deed::SetGroupLeader),
        1 => Just(Deed::DieAsName),
        1 => Just(Deed::DieAsPid),
    ];
    (
        any::<bool>(),
        prop::collection::vec((0u8..6, deed, 0u8..3), 1..60),
    )
        .prop_map(|(spawned, steps)| Story { spawned, steps })
}

const NAMES: [Name; 3] = [Name("alpha"), Name("beta"), Name("gamma")];

fn process(index: u8) -> Process {
    Process {
        id: 200 + u32::from(index),
        serial: 0,
    }
}

fn receiver(index: u8) -> Process {
    Process {
        id: 900 + u32::from(index),
        serial: 3,
    }
}

/// The story as the VM queues it. Large messages of different processes are interleaved.
fn signals(story: &Story) -> Vec<Signal> {
    let mut signals = Vec::new();
    let mut dead = [false; 6];
    let mut begun = [false; 6];
    let mut under_way: [VecDeque<(u8, Vec<u8>)>; 6] = Default::default();
    for &(me, deed, to) in &story.steps {
        let from = process(me);
        let you = receiver(to);
        let slot = usize::from(me);
        if dead[slot] {
            continue;
        }
        let signal = |receiver, kind, bytes| Signal {
            sender: me,
            receiver,
            kind,
            bytes,
        };
        if story.spawned && !begun[slot] {
            let reply = Packet::new().spawn_reply(you, from).whole();
            signals.push(signal(to, Kind::SpawnReply, reply));
        }
        begun[slot] = true;
        // A process is at one message at a time.
        for (receiver, bytes) in under_way[slot].drain(..) {
            signals.push(signal(receiver, Kind::Fragment, bytes));
        }
        let mut push = |kind, bytes| signals.push(signal(to, kind, bytes));
        match deed {
            Deed::SendToPid => push(Kind::Message, Packet::new().send_sender(from, you).whole()),
            Deed::SendToName => push(
                Kind::Message,
                Packet::new().reg_send(from, NAMES[usize::from(to)]).whole(),
            ),
            Deed::SendToAlias => push(Kind::Message, Packet::new().alias_send(from).whole()),
            Deed::SendToNewAlias => push(
                Kind::Message,
                Packet::new()
                    .alternate(ALIAS, from, Alternate::Alias)
                    .whole(),
            ),
            Deed::SendUrgently => push(
                Kind::Message,
                Packet::new()
                    .alternate(PRIORITY, from, Alternate::Pid(you))
                    .whole(),
            ),
            Deed::ExitUrgently => push(
                Kind::Message,
                Packet::new()
                    .alternate(EXIT | PRIORITY, from, Alternate::Pid(you))
                    .whole(),
            ),
            Deed::ExitAlias => push(
                Kind::Message,
                Packet::new()
                    .alternate(EXIT | ALIAS, from, Alternate::Alias)
                    .whole(),
            ),
            Deed::SendWhileConnecting => push(Kind::Message, Packet::new().send(you).whole()),
            Deed::Link => push(Kind::Message, Packet::new().link(from, you).whole()),
            Deed::SetGroupLeader => push(
                Kind::Message,
                Packet::new().group_leader(receiver(9), you).whole(),
            ),
            Deed::SendLarge(count) => {
                let first = Packet::new()
                    .send_sender(from, you)
                    .fragment(from, count.into());
                push(Kind::Fragment, first);
                for fragment in (1..u64::from(count)).rev() {
                    under_way[slot].push_back((to, encode::next_fragment(from, fragment)));
                }
            }
            Deed::DieAsName => {
                dead[slot] = true;
                let name = NAMES[slot % NAMES.len()];
                push(
                    Kind::Exit,
                    Packet::new().monitor_exit_of_name(name, you).whole(),
                );
            }
            Deed::DieAsPid => {
                dead[slot] = true;
                push(Kind::Exit, Packet::new().monitor_exit(from, you).whole());
            }
        }
        // The others go on with theirs.
        for (other, queue) in under_way.iter_mut().enumerate() {
            if other != slot
                && let Some((receiver, bytes)) = queue.pop_front()
            {
                signals.push(Signal {
                    sender: other as u8,
                    receiver,
                    kind: Kind::Fragment,
                    bytes,
                });
            }
        }
    }
    for (sender, queue) in under_way.into_iter().enumerate() {
        for (receiver, bytes) in queue {
            signals.push(Signal {
                sender: sender as u8,
                receiver,
                kind: Kind::Fragment,
                bytes,
            });
        }
    }
    signals
}

/// The story's packets, as the VM would give them.
pub fn packets(story: &Story) -> Vec<Vec<u8>> {
    signals(story)
        .into_iter()
        .map(|signal| signal.bytes)
        .collect()
}

#[derive(Clone, Copy)]
enum Item {
    Signal(usize),
    Fence(Option<usize>),
}

/// Carries a story over streams and checks the order in which it arrives.
pub fn order_is_kept(
    story: &Story,
    streams: usize,
    delivery: u64,
    rules: Rules,
    mut route: impl FnMut(&[u8]) -> Route,
) -> Result<(), String> {
    let signals = signals(story);
    let mut carried: Vec<VecDeque<Item>> = vec![VecDeque::new(); streams];
    for (index, signal) in signals.iter().enumerate() {
        match route(&signal.bytes) {
            Route::Stream(stream) => carried[stream].push_back(Item::Signal(index)),
            Route::Fence => {
                for (stream, items) in carried.iter_mut().enumerate() {
                    items.push_back(Item::Fence((stream == 0).then_some(index)));
                }
            }
        }
    }
    let arrived = deliver(carried, delivery);
    if arrived.len() != signals.len() {
        return Err(format!("{} of {} arrived", arrived.len(), signals.len()));
    }
    check(&signals, &arrived, rules)
}

/// Any stream may get ahead of any other; a fence waits for all.
fn deliver(mut carried: Vec<VecDeque<Item>>, mut random: u64) -> Vec<usize> {
    let mut arrived = Vec::new();
    loop {
        let ready: Vec<usize> = (0..carried.len())
            .filter(|&s| matches!(carried[s].front(), Some(Item::Signal(_))))
            .collect();
        if ready.is_empty() {
            let fence: Vec<Item> = carried.iter_mut().filter_map(VecDeque::pop_front).collect();
            if fence.is_empty() {
                return arrived;
            }
            arrived.extend(fence.iter().filter_map(|item| match item {
                Item::Fence(packet) => *packet,
                Item::Signal(_) => None,
            }));
            continue;
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let stream = ready[(random >> 33) as usize % ready.len()];
        // A burst: streams get far ahead of each other, not only by one packet.
        for _ in 0..=(random >> 20) % 8 {
            match carried[stream].front() {
                Some(Item::Signal(index)) => {
                    arrived.push(*index);
                    carried[stream].pop_front();
                }
                _ => break,
            }
        }
    }
}

fn check(signals: &[Signal], arrived: &[usize], rules: Rules) -> Result<(), String> {
    for (later, &second) in arrived.iter().enumerate() {
        for &first in &arrived[later + 1..] {
            // `first` was sent before `second`, and came after it.
            let (a, b) = (&signals[first], &signals[second]);
            if first > second || a.sender != b.sender {
                continue;
            }
            let same_pair = a.receiver == b.receiver;
            let broken = match (a.kind, b.kind) {
                (Kind::Fragment, Kind::Fragment) => rules.fragments,
                (Kind::SpawnReply, _) => rules.spawns,
                (_, Kind::Exit) => rules.exits && same_pair,
                _ => rules.names && same_pair,
            };
            if broken {
                return Err(format!(
                    "{:?} of process {} overtook its earlier {:?} (packets {second} and {first})",
                    b.kind, b.sender, a.kind
                ));
            }
        }
    }
    Ok(())
}
