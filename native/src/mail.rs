//! Messages to processes from whichever thread works on the connections: the event thread, or a scheduler
//! that has lent itself for a turn.

use std::cell::Cell;
use std::ptr;

use rustler::env::{OwnedEnv, SavedTerm};
use rustler::sys::{ErlNifEnv, enif_send};
use rustler::{Env, LocalPid, Term};

thread_local! {
    /// The environment of the NIF's call, while this thread is a scheduler that takes a turn.
    static CALLER: Cell<*mut ErlNifEnv> = const { Cell::new(ptr::null_mut()) };
}

/// Does something during a call from the VM that sends messages.
pub fn lent<T>(env: Env, action: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            CALLER.set(ptr::null_mut());
        }
    }
    let _reset = Reset;
    CALLER.set(env.as_c_arg());
    action()
}

/// An environment to make messages in, one after the other.
pub struct Mail(OwnedEnv);

impl Mail {
    pub fn new() -> Self {
        Mail(OwnedEnv::new())
    }

    /// A term that a later message is to have in it.
    pub fn save<'a>(term: Term<'a>) -> (Self, SavedTerm) {
        let env = OwnedEnv::new();
        let saved = env.save(term);
        (Mail(env), saved)
    }

    /// Looks at what is saved.
    pub fn run<'a, T>(&self, action: impl FnOnce(Env<'a>) -> T) -> T {
        self.0.run(action)
    }

    /// False: the process is dead.
    pub fn send<'a>(&mut self, to: &LocalPid, message: impl FnOnce(Env<'a>) -> Term<'a>) -> bool {
        let sent = self.0.run(|env| {
            let message = message(env);
            // SAFETY: the caller is the environment of the call that this scheduler is in, or null on a
            // thread that is not the VM's, as `enif_send` asks for; the message's environment is one of its
            // own, and is cleared below, as it has to be once it was sent.
            let sent = unsafe {
                enif_send(
                    CALLER.get(),
                    to.as_c_arg(),
                    env.as_c_arg(),
                    message.as_c_arg(),
                )
            };
            sent == 1
        });
        self.0.clear();
        sent
    }
}
