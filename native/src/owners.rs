//! Who owns which of a connection's streams, who accepts new ones, who waits for one; and when they
//! are told what. What is known of one stream is [`crate::owned`]'s.
//!
//! One lock for a connection. It is held while a message is sent, so that what a process is told and
//! what it asks for have one order: who is not registered any more is told nothing afterwards. Under
//! it the engine is asked for what only moves between queues; not for what may write packets, and
//! nothing of the VM is called that could call back (monitors are set without it: `down` takes it).

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use quic_dist_engine::ids::Ids;
use quic_dist_engine::streams::{Demand, StreamError, code};
use quic_dist_engine::{CloseReason, Handle, StreamEvent};
use rustler::{Atom, Encoder, Env, LocalPid, ResourceArc, Term};

use crate::mail::Mail;
use crate::owned::{Active, End, Entry, binary, end_term, message};
use crate::resources::ConnectionResource;
use crate::terms::{self, atoms};
use crate::waiters::Waiter;

#[derive(Default)]
struct Table {
    node: Option<Atom>,
    ended: bool,
    streams: Ids<Entry>,
    /// Who waits for room in a stream's queue.
    writers: HashMap<u64, Vec<Waiter>>,
    acceptors: VecDeque<(LocalPid, Active)>,
    datagram_acceptors: VecDeque<LocalPid>,
    /// Processes whose death is told to us.
    watched: HashSet<LocalPid>,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Owners(Mutex<Table>);

/// Why something cannot be done.
#[derive(Clone, Copy)]
pub enum Refusal {
    Stream(StreamError),
    NotOwner,
    Invalid,
    /// Somebody receives already.
    Already,
}

impl From<StreamError> for Refusal {
    fn from(error: StreamError) -> Self {
        Refusal::Stream(error)
    }
}

impl Table {
    fn entry(&mut self, id: u64) -> Result<&mut Entry, Refusal> {
        if self.ended {
            return Err(StreamError::Closed.into());
        }
        match self.streams.get_mut(id) {
            Some(entry) if !entry.has_ended() => Ok(entry),
            _ => Err(StreamError::Unknown.into()),
        }
    }

    /// Tells everybody who has to do with a stream how it ended.
    fn end(&mut self, env: &mut Mail, id: u64, end: End) {
        let Some(mut entry) = self.streams.remove(id) else {
            return;
        };
        let writers = self.writers.remove(&id).unwrap_or_default();
        let reader = entry.take_reader();
        for waiter in writers.into_iter().chain(reader) {
            waiter.tell(|env| env.error_tuple(end_term(env, &end)));
        }
        if entry.giving {
            entry.ends(end);
            self.streams.insert(id, entry);
        } else {
            let node = self.node;
            let _ = env.send(&entry.owner, |env| {
                message(env, node, id, end_term(env, &end))
            });
        }
    }
}

impl Owners {
    pub fn start(&self, node: Atom) {
        self.0.lock().node = Some(node);
    }

    /// Has the VM tell us of a process's death. The table, and whether the process lives: its death
    /// is not noticed before the table is let go.
    fn watch(
        &self,
        env: Env,
        connection: &ResourceArc<ConnectionResource>,
        pid: LocalPid,
    ) -> (MutexGuard<'_, Table>, bool) {
        let mut table = self.0.lock();
        if table.watched.insert(pid) {
            drop(table);
            if env.monitor(connection, &pid).is_none() {
                self.down(&connection.handle, pid);
            }
            table = self.0.lock();
        }
        let lives = table.watched.contains(&pid);
        (table, lives)
    }

    /// The same of one that is to wait for something of a stream; whoever is refused is not watched.
    fn watch_waiter(
        &self,
        env: Env,
        connection: &ResourceArc<ConnectionResource>,
        id: u64,
        pid: LocalPid,
    ) -> Result<(MutexGuard<'_, Table>, bool), Refusal> {
        let mut table = self.0.lock();
        table.entry(id)?;
        if table.watched.contains(&pid) {
            return Ok((table, true));
        }
        drop(table);
        Ok(self.watch(env, connection, pid))
    }

    /// A process has died: its streams are reset, and it waits for nothing any more.
    pub fn down(&self, handle: &Handle, pid: LocalPid) {
        let mut table = self.0.lock();
        table.watched.remove(&pid);
        table.acceptors.retain(|(acceptor, _)| *acceptor != pid);
        table.datagram_acceptors.retain(|acceptor| *acceptor != pid);
        // What it was about to give away and has ended has nobody to be told.
        table
            .streams
            .retain(|_, entry| entry.owner != pid || !entry.has_ended());
        table.writers.retain(|_, writers| {
            writers.retain(|waiter| waiter.pid != pid);
            !writers.is_empty()
        });
        let mut owned = Vec::new();
        for (id, entry) in table.streams.iter_mut() {
            if entry.reader().is_some_and(|(by, _)| by.pid == pid) {
                entry.withdraw(handle, id);
            }
            if entry.owner == pid {
                entry.giving = false;
                owned.push(id);
            }
        }
        drop(table);
        for id in owned {
            // It may have ended by itself.
            let _ = handle.reset_stream(id, code::CANCELLED);
        }
    }

    /// A stream of a process that is dead is as one whose owner dies at once.
    pub fn open(
        &self,
        env: Env,
        connection: &ResourceArc<ConnectionResource>,
        owner: LocalPid,
        (uni, priority, active): (bool, u8, Active),
    ) -> Result<u64, Refusal> {
        let (mut table, lives) = self.watch(env, connection, owner);
        if table.ended {
            return Err(StreamError::Closed.into());
        }
        let id = connection.handle.open_stream(uni, priority)?;
        if !lives {
            drop(table);
            connection.handle.reset_stream(id, code::CANCELLED)?;
            return Ok(id);
        }
        let entry = Entry::new(owner, active.counted());
        let demand = if uni { None } else { entry.demand() };
        // It fails if the connection has just ended: then nobody is to be told of the stream.
        connection.handle.demand_stream(id, demand)?;
        table.streams.insert(id, entry);
        Ok(id)
    }

    pub fn accept(
        &self,
        env: Env,
        connection: &ResourceArc<ConnectionResource>,
        acceptor: LocalPid,
        active: Active,
    ) -> Result<(), Refusal> {
        let (mut table, lives) = self.watch(env, connection, acceptor);
        if table.ended {
            return Err(StreamError::Closed.into());
        }
        if !lives {
            return Ok(());
        }
        match table.acceptors.iter_mut().find(|(pid, _)| *pid == acceptor) {
            Some((_, mode)) => *mode = active.counted(),
            None => table.acceptors.push_back((acceptor, active.counted())),
        }
        Ok(())
    }

    pub fn stop_accepting(&self, acceptor: LocalPid) {
        let mut table = self.0.lock();
        table.acceptors.retain(|(pid, _)| *pid != acceptor);
    }

    pub fn accept_datagrams(
        &self,
        env: Env,
        connection: &ResourceArc<ConnectionResource>,
        acceptor: LocalPid,
    ) -> Result<(), Refusal> {
        let (mut table, lives) = self.watch(env, connection, acceptor);
        if table.ended {
            return Err(StreamError::Closed.into());
        }
        if lives && !table.datagram_acceptors.contains(&acceptor) {
            table.datagram_acceptors.push_back(acceptor);
        }
        Ok(())
    }

    pub fn stop_accepting_datagrams(&self, acceptor: LocalPid) {
        let mut table = self.0.lock();
        table.datagram_acceptors.retain(|pid| *pid != acceptor);
    }

    /// Waits for room in a stream's queue. True: there is room.
    pub fn await_room(
        &self,
        env: Env,
        connection: &ResourceArc<ConnectionResource>,
        id: u64,
        waiter: Waiter,
    ) -> Result<bool, Refusal> {
        let (mut table, lives) = self.watch_waiter(env, connection, id, waiter.pid)?;
        table.entry(id)?;
        let room = connection.handle.stream_has_room(id)?;
        if !room && lives {
            table.writers.entry(id).or_default().push(waiter);
        }
        Ok(room)
    }

    /// Waits for data of a passive stream.
    pub fn receive(
        &self,
        env: Env,
        connection: &ResourceArc<ConnectionResource>,
        id: u64,
        length: usize,
        waiter: Waiter,
    ) -> Result<(), Refusal> {
        let (mut table, lives) = self.watch_waiter(env, connection, id, waiter.pid)?;
        let entry = table.entry(id)?;
        if entry.active != Active::False {
            return Err(Refusal::Invalid);
        }
        if entry.reader().is_some() {
            return Err(Refusal::Already);
        }
        if entry.fin {
            return Err(StreamError::Closed.into());
        }
        if !lives {
            return Ok(());
        }
        let demand = match length {
            0 => Demand::Any,
            length => Demand::Exactly(u32::try_from(length).map_err(|_| Refusal::Invalid)?),
        };
        entry.read_by(waiter, demand);
        let demanded = connection.handle.demand_stream(id, entry.demand());
        if demanded.is_err() {
            // It is about to end; who does not wait is not answered.
            entry.take_reader();
        }
        Ok(demanded?)
    }

    /// Stops waiting. False: the answer has been sent.
    pub fn cancel(&self, handle: &Handle, id: u64, reference: Term) -> bool {
        let mut table = self.0.lock();
        let Some(entry) = table.streams.get_mut(id) else {
            return false;
        };
        if entry
            .reader()
            .is_some_and(|(waiter, _)| waiter.is(reference))
        {
            entry.withdraw(handle, id);
            return true;
        }
        let Some(writers) = table.writers.get_mut(&id) else {
            return false;
        };
        let before = writers.len();
        writers.retain(|waiter| !waiter.is(reference));
        writers.len() < before
    }

    pub fn set_active(
        &self,
        env: Env,
        handle: &Handle,
        id: u64,
        active: Active,
    ) -> Result<(), Refusal> {
        let mut table = self.0.lock();
        let node = table.node;
        let entry = table.entry(id)?;
        if entry.reader().is_some() {
            return Err(Refusal::Invalid);
        }
        let added = match (active, entry.active) {
            (Active::Count(more), Active::Count(left)) => {
                Active::Count(left.checked_add(more).ok_or(Refusal::Invalid)?)
            }
            (active, _) => active,
        };
        entry.active = added.counted();
        if matches!(added, Active::Count(_)) && entry.active == Active::False {
            let _ = env.send(
                &entry.owner,
                message(env, node, id, atoms::passive().encode(env)),
            );
        }
        let demand = entry.demand();
        Ok(handle.demand_stream(id, demand)?)
    }

    /// The owner is about to give a stream away.
    pub fn give(&self, handle: &Handle, id: u64, owner: LocalPid) -> Result<(), Refusal> {
        let mut table = self.0.lock();
        let entry = table.entry(id)?;
        if entry.owner != owner {
            return Err(Refusal::NotOwner);
        }
        // If it is about to end, its owner is to be told.
        handle.demand_stream(id, None)?;
        entry.giving = true;
        Ok(())
    }

    /// The stream has its new owner.
    pub fn given(
        &self,
        env: Env,
        connection: &ResourceArc<ConnectionResource>,
        id: u64,
        owner: LocalPid,
    ) -> Result<(), Refusal> {
        let handle = &connection.handle;
        let (mut table, lives) = self.watch(env, connection, owner);
        let node = table.node;
        let Some(entry) = table.streams.get_mut(id) else {
            return Err(StreamError::Unknown.into());
        };
        if entry.owner != env.pid() || !entry.giving {
            return Err(Refusal::NotOwner);
        }
        entry.giving = false;
        entry.owner = owner;
        if let Some(end) = entry.take_end() {
            table.streams.remove(id);
            let _ = env.send(&owner, message(env, node, id, end_term(env, &end)));
            return Ok(());
        }
        if !lives {
            // As if it had died now. It may have ended by itself.
            drop(table);
            let _ = handle.reset_stream(id, code::CANCELLED);
            return Ok(());
        }
        // If it is about to end, its new owner will be told.
        let _ = handle.demand_stream(id, entry.demand());
        Ok(())
    }

    /// Each stream's owner and mode.
    pub fn owners(&self) -> HashMap<u64, (LocalPid, Active)> {
        let table = self.0.lock();
        let owned = |(id, entry): (u64, &Entry)| (id, (entry.owner, entry.active));
        table.streams.iter().map(owned).collect()
    }

    /// The same of one.
    pub fn owner(&self, id: u64) -> Option<(LocalPid, Active)> {
        let table = self.0.lock();
        let entry = table.streams.get(id)?;
        Some((entry.owner, entry.active))
    }

    // What the engine tells, always on the event thread: what one stream's owner gets has one sender

    pub fn event(&self, env: &mut Mail, handle: &Handle, id: u64, event: StreamEvent) {
        match event {
            StreamEvent::Incoming => self.incoming(env, handle, id),
            StreamEvent::Data { bytes, fin } => self.data(env, handle, id, bytes, fin),
            StreamEvent::Room => {
                let mut table = self.0.lock();
                for waiter in table.writers.remove(&id).unwrap_or_default() {
                    waiter.tell(|env| atoms::ok().encode(env));
                }
            }
            StreamEvent::Reset(code) => self.0.lock().end(env, id, End::Reset(code)),
            StreamEvent::Closed => self.0.lock().end(env, id, End::Closed),
        }
    }

    /// The connection has ended.
    pub fn ended(&self, env: &mut Mail, reason: &CloseReason) {
        let mut table = self.0.lock();
        table.ended = true;
        table.acceptors.clear();
        table.datagram_acceptors.clear();
        let ids: Vec<u64> = table.streams.iter().map(|(id, _)| id).collect();
        for id in ids {
            table.end(env, id, End::Connection(reason.clone()));
        }
    }

    fn incoming(&self, env: &mut Mail, handle: &Handle, id: u64) {
        let mut table = self.0.lock();
        let node = table.node;
        let Some((acceptor, active)) = table.acceptors.pop_front() else {
            drop(table);
            // It may have ended by itself.
            let _ = handle.reset_stream(id, code::REFUSED);
            return;
        };
        table.acceptors.push_back((acceptor, active));
        let entry = Entry::new(acceptor, active);
        let demand = entry.demand();
        table.streams.insert(id, entry);
        if active == Active::False {
            // No data will say so.
            let _ = env.send(&acceptor, |env| {
                message(env, node, id, atoms::passive().encode(env))
            });
        }
        let _ = handle.demand_stream(id, demand);
    }

    fn data(&self, env: &mut Mail, handle: &Handle, id: u64, bytes: Bytes, fin: bool) {
        let mut table = self.0.lock();
        let node = table.node;
        // Whoever has no entry any more is about to be reset.
        let Some(entry) = table.streams.get_mut(id) else {
            return;
        };
        let kept = bytes.clone();
        let taken = if !entry.takes(bytes.len(), fin) {
            false
        } else if let Some(reader) = entry.take_reader() {
            reader.tell(|env| (atoms::ok(), binary(env, bytes), fin).encode(env))
        } else {
            // An owner that is dead is about to be noticed.
            let _ = env.send(&entry.owner, |env| {
                let data = (atoms::data(), binary(env, bytes), fin).encode(env);
                message(env, node, id, data)
            });
            if entry.delivered() {
                let _ = env.send(&entry.owner, |env| {
                    message(env, node, id, atoms::passive().encode(env))
                });
            }
            true
        };
        if taken {
            entry.fin |= fin;
            handle.stream_delivered(id, fin, entry.demand());
        } else {
            handle.put_back_stream(id, &kept, fin);
            let demand = entry.demand();
            let _ = handle.demand_stream(id, demand);
        }
    }

    pub fn datagrams(&self, env: &mut Mail, datagrams: Vec<Vec<u8>>) {
        let mut table = self.0.lock();
        let node = table.node.unwrap_or_else(atoms::undefined);
        for datagram in datagrams {
            let Some(acceptor) = table.datagram_acceptors.pop_front() else {
                return;
            };
            table.datagram_acceptors.push_back(acceptor);
            let _ = env.send(&acceptor, |env| {
                let data = terms::binary(env, &datagram);
                (atoms::quic_dist_datagram(), node, data).encode(env)
            });
        }
    }
}
