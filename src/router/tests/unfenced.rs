//! What our own rule would be without one of its fences.

use crate::term::{Sender, Terms};

fn control(packet: &[u8]) -> Option<(u8, Terms<'_>)> {
    let [131, 68, 0, control @ ..] = packet else {
        return None;
    };
    let mut terms = Terms::of_tuple(control)?;
    let operation = terms.small_integer()?;
    Some((operation, terms))
}

/// The leader in a GROUP_LEADER signal: it stands where the sender does in the others.
pub fn group_leader_of(packet: &[u8]) -> Option<u64> {
    match control(packet)? {
        (7, mut terms) => match terms.sender()? {
            Sender::Process(process) => Some(u64::from(process.id)),
            Sender::Port(port) => Some(port),
        },
        _ => None,
    }
}

pub fn is_exit_of_name(packet: &[u8]) -> bool {
    match control(packet) {
        Some((28, mut terms)) => terms.sender().is_none(),
        _ => false,
    }
}
