//! Processes that wait in a call, each with a reference of its own.

use quic_dist_engine::streams::StreamError;
use rustler::env::{OwnedEnv, SavedTerm};
use rustler::{Encoder, Env, LocalPid, Term};

use crate::terms::atoms;

/// Who waits, and the reference that the answer carries.
pub struct Waiter {
    pub pid: LocalPid,
    env: OwnedEnv,
    reference: SavedTerm,
}

impl Waiter {
    pub fn new(pid: LocalPid, reference: Term) -> Self {
        let env = OwnedEnv::new();
        let reference = env.save(reference);
        Waiter {
            pid,
            env,
            reference,
        }
    }

    pub fn is(&self, reference: Term) -> bool {
        self.env.run(|env| self.reference.load(env) == reference)
    }

    /// Sends `{Ref, Answer}`. Called on the event thread only: the VM does not let its own threads
    /// send from an environment that is no process's. False: the process is dead.
    pub fn tell<'a>(mut self, answer: impl FnOnce(Env<'a>) -> Term<'a>) -> bool {
        let reference = self.reference;
        self.env
            .send_and_clear(&self.pid, |env| {
                (reference.load(env), answer(env)).encode(env)
            })
            .is_ok()
    }
}

/// `{error, _}`'s reason.
pub fn stream_error(error: StreamError) -> rustler::Atom {
    match error {
        StreamError::Closed => atoms::closed(),
        StreamError::Unknown => atoms::unknown_stream(),
        StreamError::Limit => atoms::stream_limit(),
        StreamError::TooLong => atoms::too_long(),
    }
}
