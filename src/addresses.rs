//! When the host's addresses, routes or interfaces change: the kernel says so, and what has changed is
//! found by asking for routes again (`Socket::is_usable`, `Socket::local_for`).

use std::io;

use mio::{Registry, Token};

/// See the module's documentation. Without it (elsewhere than on Linux), an address that is gone is
/// noticed when something is sent from it.
pub(crate) struct Addresses {
    #[cfg(target_os = "linux")]
    socket: std::os::fd::OwnedFd,
}

#[cfg(target_os = "linux")]
impl Addresses {
    /// Starts to listen, and has the poll tell when there is something to hear.
    pub fn watch(registry: &Registry, token: Token) -> io::Result<Self> {
        use nix::libc;
        use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType};
        use std::os::fd::AsRawFd;

        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV6_ROUTE;
        let socket = nix::sys::socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        nix::sys::socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        registry.register(
            &mut mio::unix::SourceFd(&socket.as_raw_fd()),
            token,
            mio::Interest::READABLE,
        )?;
        Ok(Addresses { socket })
    }

    /// Hears everything there is, whatever it says.
    pub fn drain(&self) {
        use nix::sys::socket::{MsgFlags, recv};
        use std::os::fd::AsRawFd;

        let mut buffer = [0; 8192];
        // ENOBUFS: some messages were lost, which is a message too.
        while let Ok(1..) | Err(nix::errno::Errno::ENOBUFS) =
            recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
        {}
    }
}

#[cfg(not(target_os = "linux"))]
impl Addresses {
    /// Nothing is ever heard.
    pub fn watch(_: &Registry, _: Token) -> io::Result<Self> {
        Ok(Addresses {})
    }

    /// There is nothing to hear.
    pub fn drain(&self) {}
}
