//! Processes that wait in a call, each with a reference of its own.

use quic_dist_engine::streams::StreamError;
use rustler::env::SavedTerm;
use rustler::{Encoder, Env, LocalPid, Term};

use crate::mail::Mail;
use crate::terms::atoms;

/// Who waits, and the reference that the answer carries.
pub struct Waiter {
    pub pid: LocalPid,
    mail: Mail,
    reference: SavedTerm,
}

impl Waiter {
    pub fn new(pid: LocalPid, reference: Term) -> Self {
        let (mail, reference) = Mail::save(reference);
        Waiter {
            pid,
            mail,
            reference,
        }
    }

    pub fn is(&self, reference: Term) -> bool {
        self.mail.run(|env| self.reference.load(env) == reference)
    }

    /// Sends `{Ref, Answer}`, in a turn ([`Mail`]). False: the process is dead.
    pub fn tell<'a>(mut self, answer: impl FnOnce(Env<'a>) -> Term<'a>) -> bool {
        let reference = self.reference;
        self.mail.send(&self.pid, |env| {
            (reference.load(env), answer(env)).encode(env)
        })
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
