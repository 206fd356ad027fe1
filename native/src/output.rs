//! Packets and data as the VM gives them, for the engine: what is small is copied, what is large is
//! kept as it is, by a reference to the VM's binary.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quic_dist_engine::term::Process;
use quic_dist_engine::{Batch, router};
use rustler::env::OwnedEnv;
use rustler::{Binary, Error, NifResult, Term};

use crate::{exit, terms};

/// From this size on a part of a packet, or data that is one binary, is not copied. To keep it costs about as much as to copy 4 KiB.
const LARGE: usize = 8 << 10;

/// A list of packets, each iodata: what the VM gives is a flat list of binaries. The first is the header,
/// which the engine rewrites. Then comes the control message, but in a fragment that is not its
/// message's first; should one be large, the engine does not see its end, and takes it for unknown.
pub fn batch(packets: Term) -> NifResult<Batch> {
    let mut batch = Batch::default();
    let mut keep = None;
    let mut parts = Vec::new();
    for packet in packets.into_list_iterator()? {
        parts.clear();
        if !flat(packet, &mut parts) {
            parts.clear();
            parts.push(Binary::from_iolist(packet)?);
        }
        let lengths = parts.iter().map(|part| part.len());
        let copied = parts.iter().enumerate();
        let copied = copied.filter(|(index, part)| is_copied(*index, part));
        let inline = copied.map(|(_, part)| part.len()).sum();
        if !batch.begin(lengths.sum(), inline) {
            return Err(Error::BadArg);
        }
        for (index, part) in parts.iter().enumerate() {
            if is_copied(index, part) {
                batch.add(part.as_slice());
            } else {
                batch.add_part(keep.get_or_insert_with(Keep::new).bytes(*part));
            }
        }
    }
    Ok(batch)
}

/// Data for a stream, which is iodata.
pub fn bytes(data: Term) -> NifResult<Bytes> {
    match Binary::from_term(data) {
        Ok(binary) if binary.len() >= LARGE => Ok(Keep::new().bytes(binary)),
        _ => {
            let mut copy = Vec::new();
            terms::append(data, &mut copy)?;
            Ok(copy.into())
        }
    }
}

/// The process whose message this packet is the first fragment of, if that can be told.
pub fn process(packet: Term) -> NifResult<Option<Process>> {
    let mut parts = Vec::new();
    if !flat(packet, &mut parts) {
        return Ok(None);
    }
    let mut head = Vec::new();
    let copied = parts.iter().enumerate();
    for (_, part) in copied.take_while(|(index, part)| is_copied(*index, part)) {
        head.extend_from_slice(part.as_slice());
    }
    Ok(router::process(&head))
}

/// Whether this part of a packet, of this place, is copied.
fn is_copied(index: usize, part: &Binary) -> bool {
    index == 0 || part.len() < LARGE
}

/// Whether a packet is a flat list of binaries, which are put into `parts`.
fn flat<'a>(packet: Term<'a>, parts: &mut Vec<Binary<'a>>) -> bool {
    let Ok(list) = packet.into_list_iterator() else {
        return false;
    };
    for part in list {
        match Binary::from_term(part) {
            Ok(binary) => parts.push(binary),
            Err(_) => return false,
        }
    }
    true
}

/// An environment whose terms keep the VM's binaries in memory. No process's garbage collection has to
/// do with it, and it may be freed on any thread.
struct Keep(Arc<Mutex<Terms>>);

struct Terms(Option<OwnedEnv>);

impl Drop for Terms {
    fn drop(&mut self) {
        // While the VM exits nothing of it is touched any more.
        if exit::exiting() {
            std::mem::forget(self.0.take());
        }
    }
}

/// Bytes of one of the binaries.
struct Kept {
    bytes: &'static [u8],
    _terms: Arc<Mutex<Terms>>,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        self.bytes
    }
}

impl Keep {
    fn new() -> Self {
        Keep(Arc::new(Mutex::new(Terms(Some(OwnedEnv::new())))))
    }

    /// The binary's bytes. They are where they are as long as a term refers to them: the VM neither
    /// moves nor changes a binary that was looked at (`enif_inspect_binary` sees to it that no more is
    /// appended to it in place). The environment has such a term, and lives as long as the bytes do.
    fn bytes(&self, binary: Binary) -> Bytes {
        let terms = self.0.lock();
        let kept = terms.0.as_ref().and_then(|env| {
            env.run(|env| {
                let kept = Binary::from_term(binary.to_term(env)).ok()?;
                Some(kept.as_slice())
            })
        });
        match kept {
            Some(bytes) => Bytes::from_owner(Kept {
                bytes,
                _terms: self.0.clone(),
            }),
            None => Bytes::copy_from_slice(binary.as_slice()),
        }
    }
}
