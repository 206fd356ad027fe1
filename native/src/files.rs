//! Files that go out on a stream without passing through the heap of a process: they are read into
//! the buffers that the engine sends. And their hash, so that both ends of a copy can compare.
//!
//! All of it runs on dirty I/O schedulers, a bounded piece in a call.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use boring::sha::Sha256;
use parking_lot::Mutex;
use quic_dist_engine::streams::Sent;
use rustler::{Atom, Binary, Encoder, Env, Error, NifResult, Resource, ResourceArc, Term};

use crate::resources::ConnectionResource;
use crate::terms::{self, atoms};
use crate::waiters::stream_error;

/// What one call reads at most.
const MOST: usize = 1 << 20;

/// A file that is open for reading; none any more once it was closed.
struct FileResource(Mutex<Option<Arc<File>>>);

#[rustler::resource_impl]
impl Resource for FileResource {}

/// The SHA-256 of what was read so far.
struct HashResource(Mutex<Sha256>);

#[rustler::resource_impl]
impl Resource for HashResource {}

impl FileResource {
    fn get(&self) -> io::Result<Arc<File>> {
        let open = self.0.lock().clone();
        open.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// As much of `length` bytes as there is.
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let file = self.get()?;
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

/// A regular file, and how long it is. Anything else could keep a reader waiting for ever; without
/// O_NONBLOCK even opening it could.
fn open(path: &[u8]) -> io::Result<(File, u64)> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if !metadata.is_file() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok((file, metadata.len()))
}

/// The error by its name in OTP (`file:posix()`).
fn posix<'a>(env: Env<'a>, error: &io::Error) -> Term<'a> {
    // Without a number it is Rust's own: a path with a NUL in it.
    let name = error.raw_os_error().map_or(atoms::einval(), terms::posix);
    env.error_tuple(name)
}

fn piece(length: usize) -> NifResult<usize> {
    if length <= MOST {
        Ok(length)
    } else {
        Err(Error::BadArg)
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn file_open<'a>(env: Env<'a>, path: Binary) -> Term<'a> {
    match open(path.as_slice()) {
        Ok((file, size)) => {
            let resource = FileResource(Mutex::new(Some(Arc::new(file))));
            (atoms::ok(), ResourceArc::new(resource), size).encode(env)
        }
        Err(error) => posix(env, &error),
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn file_close(file: ResourceArc<FileResource>) -> Atom {
    // Closed here, unless somebody is reading; then when they have read.
    drop(file.0.lock().take());
    atoms::ok()
}

#[rustler::nif(schedule = "DirtyIo")]
fn stream_send_file<'a>(
    env: Env<'a>,
    connection: ResourceArc<ConnectionResource>,
    id: u64,
    file: ResourceArc<FileResource>,
    offset: u64,
    length: usize,
    fin: bool,
) -> NifResult<Term<'a>> {
    let length = piece(length)?;
    let bytes = match file.read(offset, length) {
        Ok(bytes) => bytes,
        Err(error) => return Ok(posix(env, &error)),
    };
    let read = bytes.len();
    // Cut short: that is not the end that was meant.
    let fin = fin && read == length;
    Ok(match connection.handle.send_stream(id, bytes, fin) {
        Ok(Sent::Taken) => (atoms::ok(), read).encode(env),
        Ok(Sent::Full) => atoms::busy().encode(env),
        Err(error) => env.error_tuple(stream_error(error)),
    })
}

#[rustler::nif]
fn hash_new(env: Env<'_>) -> Term<'_> {
    ResourceArc::new(HashResource(Mutex::new(Sha256::new()))).encode(env)
}

#[rustler::nif(schedule = "DirtyIo")]
fn hash_file<'a>(
    env: Env<'a>,
    hash: ResourceArc<HashResource>,
    file: ResourceArc<FileResource>,
    offset: u64,
    length: usize,
) -> NifResult<Term<'a>> {
    Ok(match file.read(offset, piece(length)?) {
        Ok(bytes) => {
            hash.0.lock().update(&bytes);
            (atoms::ok(), bytes.len()).encode(env)
        }
        Err(error) => posix(env, &error),
    })
}

#[rustler::nif]
fn hash_value(env: Env<'_>, hash: ResourceArc<HashResource>) -> Term<'_> {
    let value = hash.0.lock().clone().finish();
    terms::binary(env, &value)
}
