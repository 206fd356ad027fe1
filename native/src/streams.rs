//! The functions of the NIF for the application's own streams; `erl_src/quic_dist_nif.erl` has their
//! documentation.

use quic_dist_engine::streams::{Sent, StreamInfo};
use rustler::{Atom, Encoder, Env, LocalPid, NifResult, ResourceArc, Term};

use crate::output;
use crate::owned::Active;
use crate::owners::Refusal;
use crate::resources::ConnectionResource;
use crate::terms::{self, atoms};
use crate::waiters::{Waiter, stream_error};

type Connection = ResourceArc<ConnectionResource>;

impl Encoder for Refusal {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Refusal::Stream(error) => stream_error(*error),
            Refusal::NotOwner => atoms::not_owner(),
            Refusal::Invalid => atoms::einval(),
            Refusal::Already => atoms::ealready(),
        }
        .encode(env)
    }
}

fn reply(env: Env, result: Result<(), impl Into<Refusal>>) -> Term {
    match result {
        Ok(()) => atoms::ok().encode(env),
        Err(refusal) => env.error_tuple(refusal.into()),
    }
}

#[rustler::nif]
fn streams_start(connection: Connection, node: Atom) -> Atom {
    connection.owners.start(node);
    atoms::ok()
}

#[rustler::nif]
fn stream_open(
    env: Env<'_>,
    connection: Connection,
    owner: LocalPid,
    uni: bool,
    priority: u8,
    active: Active,
) -> Term<'_> {
    let opts = (uni, priority, active);
    match connection.owners.open(env, &connection, owner, opts) {
        Ok(id) => (atoms::ok(), id).encode(env),
        Err(refusal) => env.error_tuple(refusal),
    }
}

#[rustler::nif]
fn stream_send<'a>(
    env: Env<'a>,
    connection: Connection,
    id: u64,
    data: Term<'a>,
    fin: bool,
) -> NifResult<Term<'a>> {
    send(env, &connection, id, data, fin)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn stream_send_large<'a>(
    env: Env<'a>,
    connection: Connection,
    id: u64,
    data: Term<'a>,
    fin: bool,
) -> NifResult<Term<'a>> {
    send(env, &connection, id, data, fin)
}

fn send<'a>(
    env: Env<'a>,
    connection: &Connection,
    id: u64,
    data: Term<'a>,
    fin: bool,
) -> NifResult<Term<'a>> {
    let bytes = output::bytes(data)?;
    Ok(match connection.handle.send_stream(id, bytes, fin) {
        Ok(Sent::Taken) => atoms::ok().encode(env),
        Ok(Sent::Full) => atoms::busy().encode(env),
        Err(error) => env.error_tuple(stream_error(error)),
    })
}

#[rustler::nif]
fn stream_await_room<'a>(
    env: Env<'a>,
    connection: Connection,
    id: u64,
    reference: Term<'a>,
) -> Term<'a> {
    let waiter = Waiter::new(env.pid(), reference);
    match connection.owners.await_room(env, &connection, id, waiter) {
        Ok(true) => atoms::ok().encode(env),
        Ok(false) => atoms::wait().encode(env),
        Err(refusal) => env.error_tuple(refusal),
    }
}

#[rustler::nif]
fn stream_finish(env: Env<'_>, connection: Connection, id: u64) -> Term<'_> {
    reply(env, connection.handle.finish_stream(id))
}

#[rustler::nif]
fn stream_reset(env: Env<'_>, connection: Connection, id: u64, code: u64) -> Term<'_> {
    reply(env, connection.handle.reset_stream(id, code))
}

#[rustler::nif]
fn stream_recv<'a>(
    env: Env<'a>,
    connection: Connection,
    id: u64,
    length: usize,
    reference: Term<'a>,
) -> Term<'a> {
    let waiter = Waiter::new(env.pid(), reference);
    match connection
        .owners
        .receive(env, &connection, id, length, waiter)
    {
        Ok(()) => atoms::wait().encode(env),
        Err(refusal) => env.error_tuple(refusal),
    }
}

#[rustler::nif]
fn stream_cancel(connection: Connection, id: u64, reference: Term) -> Atom {
    if connection.owners.cancel(&connection.handle, id, reference) {
        atoms::ok()
    } else {
        atoms::told()
    }
}

#[rustler::nif]
fn stream_set_active(env: Env<'_>, connection: Connection, id: u64, active: Active) -> Term<'_> {
    let set = connection
        .owners
        .set_active(env, &connection.handle, id, active);
    reply(env, set)
}

#[rustler::nif]
fn stream_set_priority(env: Env<'_>, connection: Connection, id: u64, priority: u8) -> Term<'_> {
    reply(env, connection.handle.set_stream_priority(id, priority))
}

#[rustler::nif]
fn stream_give(env: Env<'_>, connection: Connection, id: u64) -> Term<'_> {
    let given = connection.owners.give(&connection.handle, id, env.pid());
    reply(env, given)
}

#[rustler::nif]
fn stream_given(env: Env<'_>, connection: Connection, id: u64, owner: LocalPid) -> Term<'_> {
    reply(env, connection.owners.given(env, &connection, id, owner))
}

#[rustler::nif]
fn stream_accept(
    env: Env<'_>,
    connection: Connection,
    acceptor: LocalPid,
    active: Active,
) -> Term<'_> {
    let accepted = connection.owners.accept(env, &connection, acceptor, active);
    reply(env, accepted)
}

#[rustler::nif]
fn stream_stop_accepting(connection: Connection, acceptor: LocalPid) -> Atom {
    connection.owners.stop_accepting(acceptor);
    atoms::ok()
}

#[rustler::nif(schedule = "DirtyCpu")]
fn stream_list(env: Env<'_>, connection: Connection) -> Vec<Term<'_>> {
    let owners = connection.owners.owners();
    let mut streams = connection.handle.streams_info();
    streams.sort_unstable_by_key(|info| info.id);
    let owned = |info: StreamInfo| Some(fields(env, &info, *owners.get(&info.id)?));
    streams.into_iter().filter_map(owned).collect()
}

#[rustler::nif]
fn stream_info(env: Env<'_>, connection: Connection, id: u64) -> Term<'_> {
    let found = connection.handle.stream_info(id);
    match (found, connection.owners.owner(id)) {
        (Some(info), Some(owned)) => (atoms::ok(), fields(env, &info, owned)).encode(env),
        _ => env.error_tuple(atoms::unknown_stream()),
    }
}

fn fields<'a>(env: Env<'a>, info: &StreamInfo, (owner, active): (LocalPid, Active)) -> Term<'a> {
    let direction = if info.uni {
        atoms::uni()
    } else {
        atoms::bidi()
    };
    terms::map(
        env,
        &[
            (atoms::stream_id(), info.id.encode(env)),
            (atoms::owner(), owner.encode(env)),
            (atoms::priority(), info.priority.encode(env)),
            (atoms::direction(), direction.encode(env)),
            (atoms::active(), active.encode(env)),
            (atoms::recv_fin(), info.received.encode(env)),
            (atoms::send_fin(), info.finished.encode(env)),
            (atoms::queued(), info.queued.encode(env)),
        ],
    )
}

#[rustler::nif]
fn datagram_send<'a>(env: Env<'a>, connection: Connection, data: Term<'a>) -> NifResult<Term<'a>> {
    let mut datagram = Vec::new();
    terms::append(data, &mut datagram)?;
    Ok(reply(env, connection.handle.send_datagram(datagram)))
}

#[rustler::nif]
fn datagram_accept(env: Env<'_>, connection: Connection, acceptor: LocalPid) -> Term<'_> {
    let accepted = connection
        .owners
        .accept_datagrams(env, &connection, acceptor);
    reply(env, accepted)
}

#[rustler::nif]
fn datagram_stop_accepting(connection: Connection, acceptor: LocalPid) -> Atom {
    connection.owners.stop_accepting_datagrams(acceptor);
    atoms::ok()
}

#[rustler::nif]
fn datagram_size(env: Env<'_>, connection: Connection) -> Term<'_> {
    match connection.handle.datagram_size() {
        Ok(size) => (atoms::ok(), size).encode(env),
        Err(error) => env.error_tuple(stream_error(error)),
    }
}
