//! Keeps what lost a conflict, in `mine/` and `theirs/` of a directory beside the upper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, statat};
use rustix::io::Errno;

use super::apply::{copy, owned};
use super::lookup::shown;
use super::sides::Sides;
use crate::error::Io;
use crate::sys::tree_copy::attributes;
use crate::update::{Lost, Side};

/// Copies what lost into a directory.
///
/// # Errors
/// [`Io`].
pub fn keep_lost(
    lost: &[Lost],
    sides: &mut Sides,
    to: BorrowedFd<'_>,
    done: &dyn Fn(u64),
) -> Result<(), Io> {
    let name = sides.name.clone();
    for Lost { side, path } in lost {
        let top = match side {
            Side::Mine => &b"mine"[..],
            _ => b"theirs",
        };
        let failed = |e: std::io::Error| Io::at("keeping", &shown(&name, path))(e);
        let (from, last) = owned(sides.side(*side), path).map_err(failed)?;
        let parents = path.split(|&b| b == b'/').rev().skip(1).collect::<Vec<_>>();
        let parents = std::iter::once(top).chain(parents.into_iter().rev());
        let dir = make_all(to, parents).map_err(|e| failed(e.into()))?;
        copy(from.as_fd(), dir.as_fd(), &last, Path::new(&name), done).map_err(failed)?;
        let copied = statat(&from, &*last, AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|stat| attributes(from.as_fd(), dir.as_fd(), &last, &stat));
        copied.map_err(|e| failed(e.into()))?;
    }
    Ok(())
}

/// Makes directories, each in the one before, as far as they are missing.
fn make_all<'a>(
    top: BorrowedFd<'_>,
    names: impl Iterator<Item = &'a [u8]>,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(top, ".", flags, Mode::empty())?;
    for name in names {
        match mkdirat(&at, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        at = openat(&at, name, flags, Mode::empty())?;
    }
    Ok(at)
}
