//! Messages between processes of lxcri-fs: JSON and file descriptors over a SOCK_SEQPACKET socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recvmsg, sendmsg, socket_with, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::error::{Error, Result};
use crate::error::Io;

/// Longest message, bytes; below what a socket buffers (`net.core.wmem_default`).
const MAX_MESSAGE: usize = 192 << 10;
/// Most descriptors in a message: the kernel's limit. It limits the number of images in a mount,
/// which needs some other descriptors too.
pub(super) const MAX_FDS: usize = 253;
const _: () = assert!(MAX_FDS >= crate::fs::MAX_IMAGES + 3);

/// One end of a conversation.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    /// Name of the process at the other end, for error messages.
    peer: &'static str,
}

impl Channel {
    /// A channel to a process that is about to start, and the other end, for its standard input.
    pub(super) fn pair(peer: &'static str) -> Result<(Self, Stdio)> {
        let (ours, theirs) = Self::to_pass(peer)?;
        Ok((ours, theirs.into()))
    }

    /// A channel, and the other end to pass to a process.
    pub(super) fn to_pass(peer: &'static str) -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(Io::doing("making a socket pair"))?;
        Ok((Self { socket: ours, peer }, theirs))
    }

    /// The end that was passed to this process.
    pub(super) fn from_passed(socket: OwnedFd, peer: &'static str) -> Self {
        Self { socket, peer }
    }

    /// The channel that this process was started with. Standard input is /dev/null from now on.
    pub(super) fn from_stdin(peer: &'static str) -> Result<Self> {
        let failed = "taking over the control socket";
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
            .map_err(Io::doing(failed))?;
        let null = std::fs::File::open("/dev/null").map_err(Io::doing(failed))?;
        rustix::stdio::dup2_stdin(null).map_err(Io::doing(failed))?;
        Ok(Self { socket, peer })
    }

    /// Connects to the process that listens at `path`; `None` if there is none.
    pub(super) fn connect(path: &Path, peer: &'static str) -> Result<Option<Self>> {
        let failed = Io::at("connecting to", path);
        let address = match SocketAddrUnix::new(path) {
            Ok(address) => address,
            Err(e) => return Err(failed(e).into()),
        };
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let socket = socket.map_err(Io::doing("making a socket"))?;
        match connect(&socket, &address) {
            Ok(()) => Ok(Some(Self { socket, peer })),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
            Err(e) => Err(failed(e).into()),
        }
    }

    /// Sends a message with descriptors.
    pub(super) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let failed = |source| Error::Protocol {
            peer: self.peer,
            source,
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
        serde_json::to_writer(&mut *bytes, message).map_err(failed)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(Io::doing("passing the names of so many images")(
                io::ErrorKind::ArgumentListTooLong,
            )
            .into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(
                Io::doing("passing so many images")(io::ErrorKind::ArgumentListTooLong).into(),
            );
        }
        match sendmsg(
            &self.socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(Error::Gone { peer: self.peer }),
            Err(e) => Err(Io::doing("sending a message")(e).into()),
        }
    }

    /// Receives a message and its descriptors; `None` when the other end was closed.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let failed = "receiving a message";
        let mut bytes = Zeroizing::new(vec![0; MAX_MESSAGE]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match recvmsg(
                &self.socket,
                &mut parts,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                other => break other.map_err(Io::doing(failed))?.bytes,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if received == 0 {
            return Ok(None);
        }
        let message =
            serde_json::from_slice(&bytes[..received]).map_err(|source| Error::Protocol {
                peer: self.peer,
                source,
            })?;
        Ok(Some((message, fds)))
    }

    /// Receives an answer that must come within `limit`.
    pub(super) fn expect<T: DeserializeOwned>(&self, limit: Duration) -> Result<(T, Vec<OwnedFd>)> {
        if !self.readable(limit)? {
            return Err(Error::Timeout {
                peer: self.peer,
                seconds: limit.as_secs(),
            });
        }
        self.receive()?.ok_or(Error::Gone { peer: self.peer })
    }

    /// The process that made the other end.
    pub(super) fn peer_pid(&self) -> Option<u32> {
        rustix::net::sockopt::socket_peercred(&self.socket)
            .ok()
            .map(|c| c.pid.as_raw_nonzero().get().unsigned_abs())
    }

    fn readable(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(e) => return Err(Io::doing("waiting for a message")(e).into()),
            }
        }
    }
}

/// A socket that accepts connections.
#[derive(Debug)]
pub(super) struct Listener(OwnedFd);

impl Listener {
    /// Listens at `path`, which must not exist yet.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let failed = || Io::at("listening at", path);
        let address = SocketAddrUnix::new(path).map_err(failed())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(failed())?;
        bind(&socket, &address).map_err(failed())?;
        listen(&socket, 128).map_err(failed())?;
        Ok(Self(socket))
    }

    /// Accepts the next connection; `None` if there is none.
    pub(super) fn accept(&self) -> Result<Option<Channel>> {
        match accept_with(&self.0, SocketFlags::CLOEXEC) {
            Ok(socket) => Ok(Some(Channel {
                socket,
                peer: "command",
            })),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(e) => Err(Io::doing("accepting a connection")(e).into()),
        }
    }
}

impl From<OwnedFd> for Listener {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_descriptors_and_end_with_the_peer() {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let (a, b) = (
            Channel {
                socket: ours,
                peer: "b",
            },
            Channel {
                socket: theirs,
                peer: "a",
            },
        );
        let null = std::fs::File::open("/dev/null").unwrap();
        a.send(&("hello", 7), &[null.as_fd(), null.as_fd()])
            .unwrap();
        let ((text, number), fds) = b.expect::<(String, u32)>(Duration::from_secs(1)).unwrap();
        assert_eq!((text.as_str(), number, fds.len()), ("hello", 7, 2));
        assert!(matches!(
            b.expect::<u32>(Duration::from_millis(10)),
            Err(Error::Timeout { .. })
        ));
        drop(a);
        assert!(b.receive::<u32>().unwrap().is_none());
        assert!(matches!(b.send(&1, &[]), Err(Error::Gone { .. })));
    }
}
