//! The NIF of `quic_dist`: terms in, terms out. What a call means is decided by the engine
//! (`quic_dist_engine`); the interface is described in `erl_src/quic_dist_nif.erl`.
//!
//! Every call returns within a millisecond, but those marked for dirty schedulers. No call waits
//! for the event thread, but `info/1` and `endpoint_close/1`.

mod allocations;
mod events;
mod exit;
mod files;
mod inbox;
mod input;
mod logger;
mod mail;
mod options;
mod output;
mod owned;
mod owners;
mod resources;
mod streams;
mod terms;
mod waiters;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quic_dist_engine::identity::{CookieAuthority, Files, NodeIdentity};
use quic_dist_engine::term::Process;
use quic_dist_engine::{Endpoint, OpenError, SendError, SendStatus};
use rustler::schedule::consume_timeslice;
use rustler::{Binary, Encoder, Env, LocalPid, ResourceArc, Term};

use allocations::Counted;
use events::NifEvents;
use resources::{ConnectionResource, EndpointResource, IdentityResource, Watch};
use terms::{Address, atoms, send_error};

/// glibc's allocator gives memory back to the kernel as soon as a buffer is freed on another thread
/// than it was made on, and takes it anew, page by page, for the next: a third of the processor time
/// of a bulk transfer went there.
#[cfg(not(feature = "system_allocator"))]
#[global_allocator]
static ALLOCATOR: Counted<mimalloc::MiMalloc> = Counted(mimalloc::MiMalloc);
/// The system's, which AddressSanitizer sees.
#[cfg(feature = "system_allocator")]
#[global_allocator]
static ALLOCATOR: Counted<std::alloc::System> = Counted(std::alloc::System);

/// How long `info/1` waits for the event thread.
const INFO_WAIT: Duration = Duration::from_secs(1);
/// How long `endpoint_close/1` lets the connections end in order, and waits for the thread.
const CLOSE_LINGER: Duration = Duration::from_millis(500);
const CLOSE_WAIT: Duration = Duration::from_secs(2);

fn load(_env: Env, _info: Term) -> bool {
    logger::install();
    quic_dist_engine::panics::install();
    exit::install();
    true
}

#[rustler::nif(schedule = "DirtyCpu")]
fn identity_new<'a>(env: Env<'a>, cookie: Binary, name: Binary, trust_everybody: bool) -> Term<'a> {
    let minted = std::str::from_utf8(name.as_slice())
        .map_err(|_| "the node name is not valid UTF-8".to_owned())
        .and_then(|name| {
            CookieAuthority::derive(cookie.as_slice())
                .and_then(|authority| NodeIdentity::mint(&authority, name))
                .map_err(|error| error.to_string())
        })
        .map(|identity| match trust_everybody {
            true => identity.that_trusts_everybody(),
            false => identity,
        });
    match minted {
        Ok(identity) => (
            atoms::ok(),
            ResourceArc::new(IdentityResource(Arc::new(identity))),
        )
            .encode(env),
        Err(text) => env.error_tuple((atoms::identity(), terms::text(env, &text))),
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn identity_files<'a>(
    env: Env<'a>,
    cookie: Binary,
    name: Binary,
    client: Term<'a>,
    server: Term<'a>,
) -> Term<'a> {
    let files = options::side(client).and_then(|client| {
        let server = options::side(server)?;
        Ok(Files { client, server })
    });
    let files = match files {
        Ok(files) => files,
        Err(name) => return env.error_tuple((atoms::bad_option(), name)),
    };
    let name = String::from_utf8_lossy(name.as_slice());
    match NodeIdentity::read(&files, cookie.as_slice(), &name) {
        Ok(identity) => {
            let complaints: Vec<Term> = identity
                .complaints(SystemTime::now())
                .iter()
                .map(|complaint| terms::text(env, complaint))
                .collect();
            let identity = ResourceArc::new(IdentityResource(Arc::new(identity)));
            (atoms::ok(), identity, complaints).encode(env)
        }
        Err(error) => env.error_tuple((atoms::identity(), terms::text(env, &error.to_string()))),
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn endpoint_open<'a>(
    env: Env<'a>,
    owner: LocalPid,
    identity: ResourceArc<IdentityResource>,
    opts: Term<'a>,
) -> Term<'a> {
    let (address, limits) = match options::decode(opts) {
        Ok(decoded) => decoded,
        Err(name) => return env.error_tuple((atoms::bad_option(), name)),
    };
    logger::send_to(owner);
    let resource = ResourceArc::new(EndpointResource::default());
    let events = NifEvents::new(resource.clone(), owner);
    let endpoint = match Endpoint::open(address, identity.0.clone(), limits, events) {
        Ok(endpoint) => Arc::new(endpoint),
        Err(OpenError::Io(error)) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            return env.error_tuple(terms::posix(errno));
        }
        Err(error) => {
            return env.error_tuple((atoms::identity(), terms::text(env, &error.to_string())));
        }
    };
    let port = endpoint.local().port();
    exit::register(&endpoint);
    resource.fill(endpoint);
    if env.monitor(&resource, &owner).is_none() {
        resource.close();
        return env.error_tuple(atoms::closed());
    }
    (atoms::ok(), resource, port).encode(env)
}

#[rustler::nif(schedule = "DirtyIo")]
fn endpoint_close(endpoint: ResourceArc<EndpointResource>) -> rustler::Atom {
    if let Some(endpoint) = endpoint.get() {
        endpoint.start_close(CLOSE_LINGER);
        if !endpoint.wait_closed(CLOSE_WAIT) {
            log::error!("the event thread has not ended within {CLOSE_WAIT:?}");
        }
    }
    atoms::ok()
}

#[rustler::nif]
fn endpoint_set_identity(
    endpoint: ResourceArc<EndpointResource>,
    identity: ResourceArc<IdentityResource>,
) -> rustler::Atom {
    if let Some(endpoint) = endpoint.get() {
        endpoint.set_identity(identity.0.clone());
    }
    atoms::ok()
}

#[rustler::nif]
fn endpoint_set_others(
    endpoint: ResourceArc<EndpointResource>,
    others: Vec<(Binary, Option<ResourceArc<IdentityResource>>)>,
    answered: u64,
) -> rustler::Atom {
    if let Some(endpoint) = endpoint.get() {
        let others = others.into_iter().map(|(node, identity)| {
            let node = String::from_utf8_lossy(node.as_slice()).into_owned();
            (node, identity.map(|identity| identity.0.clone()))
        });
        endpoint.set_others(others.collect(), answered);
    }
    atoms::ok()
}

#[rustler::nif]
fn endpoint_info<'a>(env: Env<'a>, endpoint: ResourceArc<EndpointResource>) -> Term<'a> {
    match endpoint.get() {
        Some(endpoint) => terms::endpoint_info(env, endpoint),
        None => rustler::types::map::map_new(env),
    }
}

#[rustler::nif]
fn connect<'a>(
    env: Env<'a>,
    endpoint: ResourceArc<EndpointResource>,
    to: Address,
    node: Binary,
    identity: Option<ResourceArc<IdentityResource>>,
    owner: LocalPid,
) -> Term<'a> {
    let Some(open) = endpoint.get() else {
        return env.error_tuple(atoms::closed());
    };
    let node = String::from_utf8_lossy(node.as_slice());
    let mut resource = None;
    let identity = identity.map(|identity| identity.0.clone());
    let dialled = open.connect_as(identity, SocketAddr::from(to), Some(&node), |handle| {
        let connection = ConnectionResource::new(handle.clone(), Some(owner));
        resource = Some(connection.clone());
        connection.into()
    });
    match (dialled, resource) {
        (Ok(_), Some(connection)) => {
            connection.watch(env, owner);
            (atoms::ok(), connection).encode(env)
        }
        _ => env.error_tuple(atoms::closed()),
    }
}

#[rustler::nif]
fn peer_is(connection: ResourceArc<ConnectionResource>, name: Binary) -> rustler::Atom {
    match (
        connection.handle.certificate(),
        std::str::from_utf8(name.as_slice()),
    ) {
        (None, _) => atoms::unknown(),
        (Some(certificate), Ok(name)) if certificate.is_for(name) => atoms::true_(),
        _ => atoms::false_(),
    }
}

#[rustler::nif]
fn peer_certificate<'a>(env: Env<'a>, connection: ResourceArc<ConnectionResource>) -> Term<'a> {
    match connection.handle.certificate() {
        Some(certificate) => terms::text(env, &certificate.whose()),
        None => atoms::unknown().encode(env),
    }
}

#[rustler::nif]
fn set_owner<'a>(
    env: Env<'a>,
    connection: ResourceArc<ConnectionResource>,
    owner: LocalPid,
) -> Term<'a> {
    connection.watch(env, owner);
    reply(env, connection.handle.read_control())
}

#[rustler::nif]
fn set_input<'a>(
    env: Env<'a>,
    connection: ResourceArc<ConnectionResource>,
    input: LocalPid,
) -> Term<'a> {
    connection.set_input(input);
    reply(env, connection.handle.read_data())
}

#[rustler::nif]
fn control_send<'a>(
    env: Env<'a>,
    connection: ResourceArc<ConnectionResource>,
    packet: Term<'a>,
) -> rustler::NifResult<Term<'a>> {
    let packet = Binary::from_iolist(packet)?;
    Ok(reply(
        env,
        connection.handle.send_control(packet.as_slice()),
    ))
}

#[rustler::nif]
fn data_send<'a>(
    env: Env<'a>,
    connection: ResourceArc<ConnectionResource>,
    packets: Term<'a>,
    waiting: Vec<(u32, u32)>,
) -> rustler::NifResult<Term<'a>> {
    send_packets(env, &connection, packets, waiting)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn data_send_large<'a>(
    env: Env<'a>,
    connection: ResourceArc<ConnectionResource>,
    packets: Term<'a>,
    waiting: Vec<(u32, u32)>,
) -> rustler::NifResult<Term<'a>> {
    send_packets(env, &connection, packets, waiting)
}

fn send_packets<'a>(
    env: Env<'a>,
    connection: &ConnectionResource,
    packets: Term<'a>,
    waiting: Vec<(u32, u32)>,
) -> rustler::NifResult<Term<'a>> {
    let mut batch = output::batch(packets)?;
    for (id, serial) in waiting {
        batch.tell_when_low(Process { id, serial });
    }
    Ok(match connection.handle.send_data(batch) {
        Ok(SendStatus::Ready) => atoms::ok().encode(env),
        Ok(SendStatus::Busy) => atoms::busy().encode(env),
        Err(error) => env.error_tuple(send_error(error)),
    })
}

#[rustler::nif]
fn packet_sender<'a>(env: Env<'a>, packet: Term<'a>) -> rustler::NifResult<Term<'a>> {
    Ok(match output::process(packet)? {
        Some(process) => (process.id, process.serial).encode(env),
        None => atoms::none().encode(env),
    })
}

/// What asking in vain counts for, in percent of a timeslice (4,000 reductions), which is more than it takes.
///
/// When a scheduler picks a process and another one is left in its queue, the VM adds 400 reductions and those
/// executed meanwhile to a sum, and if none is left it takes those executed away; at 40,000 it wakes another
/// scheduler to take one (`erl_process.c`, `wakeup_other_check`). Who asks is the one that is left whenever
/// somebody answers a message, and executes next to nothing otherwise. So the other scheduler came after some
/// hundred messages, and once the two are on two schedulers each message there and back changes threads twice.
const IN_VAIN: i32 = 25;

#[rustler::nif]
fn data_take<'a>(env: Env<'a>, connection: ResourceArc<ConnectionResource>) -> Term<'a> {
    let (inbox, handle) = (&connection.inbox, &connection.handle);
    let before = match inbox.take(handle) {
        Ok(packets) => return input::binaries(env, packets),
        Err(before) => before,
    };
    let asks = mail::lent(env, || handle.ask(before));
    match inbox.take_or_leave(handle, asks) {
        Ok(packets) if asks => (atoms::again(), input::binaries(env, packets)).encode(env),
        Ok(packets) => input::binaries(env, packets),
        Err(_) if asks => {
            consume_timeslice(env, IN_VAIN);
            atoms::again().encode(env)
        }
        Err(_) => Term::list_new_empty(env),
    }
}

#[rustler::nif]
fn tick<'a>(env: Env<'a>, connection: ResourceArc<ConnectionResource>) -> Term<'a> {
    reply(env, connection.handle.tick())
}

#[rustler::nif]
fn seek<'a>(
    env: Env<'a>,
    connection: ResourceArc<ConnectionResource>,
    address: Address,
) -> Term<'a> {
    reply(env, connection.handle.seek(address.into()))
}

#[rustler::nif]
fn stats<'a>(env: Env<'a>, connection: ResourceArc<ConnectionResource>) -> Term<'a> {
    match connection.handle.stat() {
        Ok(stat) => (atoms::ok(), stat.received, stat.sent, stat.pending).encode(env),
        Err(error) => env.error_tuple(send_error(error)),
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn info<'a>(env: Env<'a>, connection: ResourceArc<ConnectionResource>) -> Term<'a> {
    let info = connection
        .handle
        .info()
        .and_then(|reply| reply.recv_timeout(INFO_WAIT).map_err(|_| SendError::Closed));
    match info {
        Ok(info) => (atoms::ok(), terms::connection_info(env, &info)).encode(env),
        Err(error) => env.error_tuple(send_error(error)),
    }
}

#[rustler::nif]
fn close(connection: ResourceArc<ConnectionResource>, reason: Binary) -> rustler::Atom {
    connection
        .handle
        .close(&String::from_utf8_lossy(reason.as_slice()));
    atoms::ok()
}

#[rustler::nif]
fn panic<'a>(env: Env<'a>, connection: ResourceArc<ConnectionResource>, text: Binary) -> Term<'a> {
    let text = String::from_utf8_lossy(text.as_slice());
    reply(env, connection.handle.panic(&text))
}

fn reply<'a>(env: Env<'a>, result: Result<(), SendError>) -> Term<'a> {
    match result {
        Ok(()) => atoms::ok().encode(env),
        Err(error) => env.error_tuple(send_error(error)),
    }
}

rustler::init!("quic_dist_nif", load = load);
