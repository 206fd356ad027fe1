//! Certificate revocation lists (RFC 5280, section 5) for a certificate store: what BoringSSL has and
//! the crate `boring` does not. The engine forbids unsafe code, so these calls have a crate of their
//! own.

use std::ffi::c_int;
use std::ptr;

use boring::error::ErrorStack;
use boring::x509::store::X509StoreBuilder;
use boring_sys as ffi;
use foreign_types::ForeignType;

/// Adds all lists of a PEM file to a store, and says how many there were. What is no PEM is passed
/// over; a list that is malformed is an error.
pub fn add_pem(store: &mut X509StoreBuilder, pem: &[u8]) -> Result<usize, ErrorStack> {
    let Ok(length) = isize::try_from(pem.len()) else {
        return Ok(0);
    };
    // What another call has left is not about this one.
    drop(ErrorStack::get());
    let mut count = 0;
    // SAFETY: the BIO reads `pem`, which outlives it, and is freed below. Each list is ours until it is
    // freed here; the store takes a reference of its own. The store's pointer is valid while it is
    // borrowed.
    unsafe {
        let bio = ffi::BIO_new_mem_buf(pem.as_ptr().cast(), length as _);
        if bio.is_null() {
            return Err(ErrorStack::get());
        }
        let result = loop {
            let list = ffi::PEM_read_bio_X509_CRL(bio, ptr::null_mut(), None, ptr::null_mut());
            if list.is_null() {
                break end(ErrorStack::get());
            }
            let added: c_int = ffi::X509_STORE_add_crl(store.as_ptr(), list);
            ffi::X509_CRL_free(list);
            if added != 1 {
                break Err(ErrorStack::get());
            }
            count += 1;
        };
        ffi::BIO_free(bio);
        result.map(|()| count)
    }
}

/// The end of the file is told as an error too.
fn end(errors: ErrorStack) -> Result<(), ErrorStack> {
    let at_end = (errors.errors().last()).is_some_and(|e| e.reason() == Some("NO_START_LINE"));
    if at_end { Ok(()) } else { Err(errors) }
}
