//! Packets for the VM: large ones lie in binaries of its own from the beginning, small ones become some.

use std::any::Any;

use quic_dist_engine::Packets;
use quic_dist_engine::packets::{Memory, Part};
use rustler::{Binary, Env, OwnedBinary, Term};

use crate::exit;
use crate::terms;

/// A binary of the VM's that no term refers to yet.
struct VmMemory(Option<OwnedBinary>);

impl Drop for VmMemory {
    fn drop(&mut self) {
        // While the VM exits nothing of it is touched any more.
        if exit::exiting() {
            std::mem::forget(self.0.take());
        }
    }
}

impl Memory for VmMemory {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |binary| binary.as_slice())
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut().map_or(&mut [], OwnedBinary::as_mut_slice)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Where the engine is to read large packets into.
pub fn allocate(length: usize) -> Box<dyn Memory> {
    Box::new(VmMemory(Some(OwnedBinary::new(length))))
}

/// Packets as a list of binaries.
pub fn binaries<'a>(env: Env<'a>, all: Vec<Packets>) -> Term<'a> {
    let empty = Term::list_new_empty(env);
    let parts = all
        .into_iter()
        .rev()
        .flat_map(|p| p.parts.into_iter().rev());
    parts.fold(empty, |list, part| match part {
        Part::Small(frames) => terms::before(env, &frames, list),
        Part::Large(memory) => list.list_prepend(large(env, memory)),
    })
}

fn large(env: Env<'_>, memory: Box<dyn Memory>) -> Term<'_> {
    match memory.into_any().downcast::<VmMemory>() {
        Ok(mut memory) => match memory.0.take() {
            Some(binary) => Binary::from_owned(binary, env).to_term(env),
            None => terms::binary(env, &[]),
        },
        // Not reached: it is from `allocate`.
        Err(_) => terms::binary(env, &[]),
    }
}
