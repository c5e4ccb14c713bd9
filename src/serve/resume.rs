//! Takes over a FUSE connection whose worker has ended: makes a session for the next worker, and
//! gets the unanswered requests back.
//!
//! The kernel does the handshake once per connection, but fuser requires one for each session. The
//! session is therefore made on a socket pair where this module plays the kernel's part; then its
//! descriptor is replaced by that of the connection.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

use fuser::{Config, Filesystem, Session};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::error::Result;
use crate::error::Io;
use crate::sys::descriptors;

/// Opcode of the handshake.
const FUSE_INIT: u32 = 26;
/// Lengths of `fuse_in_header` and `fuse_init_in`.
const HEADER_LEN: usize = 40;
const INIT_LEN: usize = 64;
const REQUEST_LEN: u32 = 104;
/// The protocol version in the simulated handshake. What was agreed with the kernel stays in force.
const MAJOR: u32 = 7;
const MINOR: u32 = 40;
/// `FUSE_INIT_EXT`: there are more than 32 feature bits.
const INIT_EXT: u32 = 1 << 30;
/// Notification that makes the kernel repeat unanswered requests. Since Linux 6.9.
const NOTIFY_RESEND: i32 = 7;

/// Makes a session that continues where another process stopped.
///
/// # Errors
/// [`Io`].
pub(super) fn session<FS: Filesystem>(
    filesystem: FS,
    fuse: &OwnedFd,
    config: Config,
) -> Result<Session<FS>> {
    let failed = "playing the kernel's handshake";
    let (kernel, ours) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Io::doing(failed))?;
    send(&kernel, &init_request(), SendFlags::NOSIGNAL).map_err(Io::doing(failed))?;
    let acl = config.acl;
    let session = Session::from_fd(filesystem, ours, acl, config).map_err(Io::doing(failed))?;
    let mut answer = [0; 256];
    recv(&kernel, &mut answer, RecvFlags::DONTWAIT).map_err(Io::doing(failed))?;
    descriptors::replace(session.as_fd(), fuse).map_err(Io::doing("taking over the connection"))?;
    Ok(session)
}

fn init_request() -> [u8; HEADER_LEN + INIT_LEN] {
    let mut request = [0; HEADER_LEN + INIT_LEN];
    let mut put = |at: usize, value: u32| request[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(0, REQUEST_LEN);
    put(4, FUSE_INIT);
    // The number of the request, which the answer repeats.
    put(8, 1);
    put(HEADER_LEN, MAJOR);
    put(HEADER_LEN + 4, MINOR);
    // Read-ahead, which was agreed before.
    put(HEADER_LEN + 8, 1 << 20);
    put(HEADER_LEN + 12, u32::MAX | INIT_EXT);
    put(HEADER_LEN + 16, u32::MAX);
    request
}

/// Makes the kernel put all requests that were read but not answered back into the queue. It
/// refuses a reply that is on its way then, and the request is answered again, which is harmless on
/// a file system that never changes.
///
/// # Errors
/// [`Io`] if the kernel cannot do it.
pub(super) fn resend(fuse: &OwnedFd) -> Result<()> {
    let mut notification = [0; 16];
    notification[0..4].copy_from_slice(&16_u32.to_ne_bytes());
    notification[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    loop {
        match rustix::io::writev(fuse, &[IoSlice::new(&notification)]) {
            Err(Errno::INTR) => {}
            // Unmounted meanwhile, as the session will find out.
            Ok(_) | Err(Errno::NODEV) => return Ok(()),
            Err(e) => {
                return Err(Io::doing(
                    "asking the kernel to repeat unanswered requests (needs Linux 6.9)",
                )(e)
                .into());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use fuser::SessionACL;

    use super::*;

    struct Nothing;

    impl Filesystem for Nothing {}

    #[test]
    fn a_session_is_moved_to_another_descriptor() {
        let (kernel, ours) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let mut config = Config::default();
        config.acl = SessionACL::All;
        let session = session(Nothing, &ours, config).unwrap();
        resend(&ours).unwrap();
        let mut bytes = [0; 64];
        // The first that comes is the notification, not an answer to the handshake.
        let (_, len) = recv(&kernel, &mut bytes, RecvFlags::DONTWAIT).unwrap();
        assert_eq!((len, bytes[4]), (16, 7));
        // What the session writes arrives here.
        let _ = session.notifier().inval_inode(fuser::INodeNo(1), 0, 0);
        assert!(recv(&kernel, &mut bytes, RecvFlags::DONTWAIT).is_ok());
    }
}
