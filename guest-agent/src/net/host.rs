//! Connections to the host.

use std::io;
use std::os::fd::FromRawFd;

use vsock::{VMADDR_CID_HOST, VsockStream};

use crate::syscall::check;

/// How long the host's device may take to answer. The kernel's own 2 s are too few for one of many guests that start at
/// once on one CPU.
const CONNECT_TIMEOUT_SECONDS: libc::time_t = 60;

/// `linux/vm_sockets.h`: the option of that name with a `timeval` of 64 bits.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

/// `AF_VSOCK`, as an address has it.
const ADDRESS_FAMILY: libc::sa_family_t = 40;
const _: () = assert!(libc::AF_VSOCK == 40);

/// Connects to a vsock port of the host.
///
/// # Errors
/// At once when nobody listens there; after a minute when the device does not answer.
pub fn connect(port: u32) -> io::Result<VsockStream> {
    let timeout = libc::timeval {
        tv_sec: CONNECT_TIMEOUT_SECONDS,
        tv_usec: 0,
    };
    // SAFETY: an all-zero sockaddr_vm is valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = ADDRESS_FAMILY;
    address.svm_cid = VMADDR_CID_HOST;
    address.svm_port = port;
    // SAFETY: a plain system call.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(socket)?;
    // SAFETY: the descriptor is new, and nobody else's.
    let stream = unsafe { VsockStream::from_raw_fd(socket) };
    // SAFETY: pointer and length are those of one timeval, which the option is.
    check(unsafe {
        libc::setsockopt(
            socket,
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const timeout).cast(),
            length_of(&timeout),
        )
    })?;
    // SAFETY: pointer and length are those of one address.
    check(unsafe { libc::connect(socket, (&raw const address).cast(), length_of(&address)) })?;
    Ok(stream)
}

fn length_of<T>(value: &T) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of_val(value)).expect("it has a few bytes")
}
