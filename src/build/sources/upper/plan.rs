//! Finds the changes of an upper by walking it beside the image.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use bfc::format::{S_IFCHR, S_IFDIR, S_IFMT, S_IFREG};
use bfc::rootfs::format::Inode;
use rustix::fs::{AtFlags, Dir, Stat, statat};
use rustix::io::Errno;

use super::links::{Merged, Names};
use super::{Kind, Linked, Upper, handle, join, open_dir};
use crate::build::error::{Error, Result};
use crate::build::sources::attributes::{self, Marks};
use crate::fs::{self, Order, ROOT, Rootfs, Step, Visit};

/// All changes of an upper, parents before their entries.
pub(super) struct Plan {
    pub(super) items: Vec<Item>,
    /// Bytes of the files that will be packed.
    pub(super) size: u64,
}

/// A change.
pub(super) struct Item {
    pub(super) path: Vec<u8>,
    /// Whether the image has something at this path.
    was: bool,
    is_dir: bool,
    pub(super) what: Planned,
    /// The file's identity, if it may have more names.
    file: Option<FileId>,
}

/// What an upper has at a path.
pub(super) enum Planned {
    /// Nothing any more.
    Whiteout,
    /// A directory that hides the image's at the same path, which is this inode.
    Opaque(u32),
    /// Another name of the file at this path.
    HardLink(Vec<u8>),
    /// Something of the upper's. The content may be that of an inode of the image.
    Upper(Option<u32>),
    /// A file that was copied up, but not under this name: an entry of the index, and as above.
    Index(Vec<u8>, Option<u32>),
    /// Something of the image's that was elsewhere.
    Image(u32),
}

/// A file with several names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum FileId {
    /// In the upper: device and inode number.
    Upper(u64, u64),
    /// In the image.
    Image(u32),
}

/// A file of the image that is copied up under all its names.
struct Indexed {
    name: Vec<u8>,
    file: FileId,
    content: Option<u32>,
    size: u64,
}

/// A directory of the upper that is being walked.
struct Level {
    fd: OwnedFd,
    path: Vec<u8>,
    /// The directory of the image that is seen in it.
    lower: Option<u32>,
    /// The directory of the image at the same path.
    image: Option<u32>,
    /// Whether the upper hides what the image has there.
    hidden: bool,
    /// The names that remain to be examined, the next one last.
    names: Vec<Vec<u8>>,
}

struct Walk<'a> {
    upper: &'a Upper,
    image: &'a Rootfs,
    index: BTreeMap<u32, Indexed>,
    merged: HashMap<u32, Merged>,
    plan: Plan,
}

impl Plan {
    pub(super) fn read(upper: &Upper) -> Result<Self> {
        let mut walk = Walk::new(upper);
        walk.read_index()?;
        walk.run()?;
        walk.link()?;
        Ok(walk.plan)
    }

    /// The changes as a person sees them.
    pub(super) fn changes(self, image: &Rootfs) -> Result<Vec<(Kind, Vec<u8>)>> {
        let mut changes = BTreeMap::new();
        let (mut hidden, mut dirs) = (Vec::new(), HashSet::new());
        for Item {
            path,
            was,
            is_dir,
            what,
            ..
        } in self.items
        {
            if is_dir {
                dirs.insert(path.clone());
            }
            match what {
                Planned::Opaque(ino) => hidden.push((path, ino)),
                Planned::Whiteout => drop(changes.insert(path, Kind::Deleted)),
                _ if path.is_empty() => {}
                _ => drop(changes.insert(path, if was { Kind::Changed } else { Kind::Added })),
            }
        }
        for (dir, ino) in hidden {
            let mut walk = image.walk(ino, Order::Depth)?;
            while let Some(step) = walk.step()? {
                let Step::Enter(visit) = step else { continue };
                let path = join(&dir, walk.path());
                if visit.inode.is_dir() && dirs.contains(&path) {
                    continue;
                }
                changes.entry(path).or_insert(Kind::Deleted);
                if visit.inode.is_dir() {
                    walk.skip();
                }
            }
        }
        Ok(changes
            .into_iter()
            .map(|(path, kind)| (kind, path))
            .collect())
    }
}

/// As [`Upper::linked`].
pub(super) fn linked(upper: &Upper) -> Result<Vec<Linked>> {
    let mut walk = Walk::new(upper);
    walk.read_index()?;
    if walk.index.is_empty() {
        return Ok(Vec::new());
    }
    walk.run()?;
    let names = Names::find(&upper.image, &walk.index.keys().copied().collect())?;
    let linked = walk.index.iter().map(|(ino, indexed)| {
        // Those of directories that have moved are planned already.
        let moved = walk.plan.items.iter().filter(
            |item| matches!(&item.what, Planned::Index(entry, _) if *entry == indexed.name),
        );
        let moved = moved.map(|item| item.path.clone());
        Linked {
            entry: indexed.name.clone(),
            paths: names
                .untouched(*ino, &walk.merged)
                .into_iter()
                .chain(moved)
                .collect(),
        }
    });
    Ok(linked.collect())
}

impl<'a> Walk<'a> {
    fn new(upper: &'a Upper) -> Self {
        let plan = Plan {
            items: Vec::new(),
            size: 0,
        };
        Self {
            upper,
            image: &upper.image,
            index: BTreeMap::new(),
            merged: HashMap::new(),
            plan,
        }
    }
}

impl Walk<'_> {
    /// Finds the files that are copied up under all their names.
    fn read_index(&mut self) -> Result<()> {
        let work = self.upper.directory("work")?;
        let index = match open_dir(&work, b"index") {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(self.upper.failed("opening", b"work/index"))?,
        };
        let mut numbers = None;
        for name in self.list(&index, b"work/index")? {
            let Some(number) = handle::inode_of_index(&name, self.upper.numbers) else {
                continue;
            };
            let Some(ino) = self.upper.inode_of(number, &mut numbers)? else {
                continue;
            };
            let path = join(b"work/index", &name);
            let stat = statat(&index, &*name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(self.upper.failed("reading", &path))?;
            let known = match self.image.inode(ino) {
                Ok(inode) => inode,
                Err(fs::Error::NotFound) => continue,
                Err(error) => return Err(error.into()),
            };
            // An entry of another type marks a file that was removed.
            if known.is_dir() || stat.st_mode & S_IFMT != known.mode & S_IFMT {
                continue;
            }
            let (_, marks) = attributes::read(index.as_fd(), &name, &[self.upper.marks.prefix()])
                .map_err(|(doing, e)| self.upper.failed(doing, &path)(e))?;
            let content = marks.metacopy.then_some(ino);
            let file = FileId::Upper(stat.st_dev, stat.st_ino);
            self.index.insert(
                ino,
                Indexed {
                    name,
                    file,
                    content,
                    size: length(&stat),
                },
            );
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let root = self.upper.directory("upper")?;
        let mut levels = vec![self.enter(root, Vec::new(), Some(ROOT), Some(ROOT), false)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            let path = join(&level.path, &name);
            let within = join(b"upper", &path);
            let failed = |doing| self.upper.failed(doing, &within);
            let stat =
                statat(&level.fd, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("reading"))?;
            let there = match level.image {
                Some(dir) => self.image.lookup(dir, &name)?,
                None => None,
            };
            let is_device = stat.st_mode & S_IFMT == S_IFCHR && stat.st_rdev == 0;
            let marks = if is_device {
                Marks {
                    whiteout: true,
                    ..Marks::default()
                }
            } else {
                attributes::read(level.fd.as_fd(), &name, &[self.upper.marks.prefix()])
                    .map_err(|(doing, e)| failed(doing)(e))?
                    .1
            };
            if marks.whiteout {
                if there.is_some() && !level.hidden {
                    self.plan.items.push(Item {
                        path,
                        was: true,
                        is_dir: false,
                        what: Planned::Whiteout,
                        file: None,
                    });
                }
                continue;
            }
            if stat.st_mode & S_IFMT == S_IFDIR {
                let lower = if marks.opaque {
                    None
                } else {
                    self.lower(level.lower, &name, marks.redirect.as_deref())?
                };
                let fd = open_dir(&level.fd, &name).map_err(failed("opening"))?;
                let hidden = level.hidden;
                let inner = self.enter(
                    fd,
                    path,
                    lower.filter(|&(_, is_dir)| is_dir).map(|(ino, _)| ino),
                    there.map(|(ino, _)| ino),
                    hidden,
                )?;
                levels.push(inner);
                continue;
            }
            let content = if marks.metacopy && stat.st_mode & S_IFMT == S_IFREG {
                let found = self
                    .lower(level.lower, &name, marks.redirect.as_deref())?
                    .filter(|&(_, is_dir)| !is_dir);
                let (ino, _) = found.ok_or_else(|| {
                    self.upper.unfit(
                        &path,
                        "its content should be in the image, but is missing there",
                    )
                })?;
                Some(ino)
            } else {
                None
            };
            self.plan.size = self.plan.size.saturating_add(length(&stat));
            let file = (stat.st_nlink > 1).then_some(FileId::Upper(stat.st_dev, stat.st_ino));
            self.plan.items.push(Item {
                path,
                was: there.is_some(),
                is_dir: false,
                what: Planned::Upper(content),
                file,
            });
        }
        Ok(())
    }

    /// What the image has at a path.
    fn at(&self, path: &[u8]) -> Result<Option<(u32, Inode)>> {
        match self.image.resolve(OsStr::from_bytes(path).as_ref()) {
            // A component of the path does not exist, or is not a directory.
            Err(fs::Error::NotFound | fs::Error::Kind { .. }) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// The inode of the image that an entry of the upper shows, and whether it is a directory.
    fn lower(
        &self,
        dir: Option<u32>,
        name: &[u8],
        redirect: Option<&[u8]>,
    ) -> Result<Option<(u32, bool)>> {
        let found = match (redirect, dir) {
            (Some(path), _) if path.starts_with(b"/") => self.at(path)?,
            (redirect, Some(dir)) => self.image.lookup(dir, redirect.unwrap_or(name))?,
            (_, None) => None,
        };
        Ok(found.map(|(ino, inode)| (ino, inode.is_dir())))
    }

    /// Plans a directory's own entry, and lists it. `there` is the image's inode at the same path,
    /// `lower` the directory of the image that it shows.
    fn enter(
        &mut self,
        fd: OwnedFd,
        path: Vec<u8>,
        lower: Option<u32>,
        there: Option<u32>,
        hidden: bool,
    ) -> Result<Level> {
        let image = match there {
            Some(ino) if self.image.inode(ino)?.is_dir() => Some(ino),
            _ => None,
        };
        let mut names = self.list(&fd, &join(b"upper", &path))?;
        self.plan.items.push(Item {
            path: path.clone(),
            was: there.is_some(),
            is_dir: true,
            what: Planned::Upper(None),
            file: None,
        });
        let inherited = if hidden { None } else { image };
        if let Some(ino) = inherited.filter(|_| lower != inherited) {
            self.plan.items.push(Item {
                path: path.clone(),
                was: true,
                is_dir: true,
                what: Planned::Opaque(ino),
                file: None,
            });
        }
        if let Some(dir) = lower {
            let set: HashSet<_> = names.iter().cloned().collect();
            let moved = lower != inherited;
            if moved {
                self.take_along(dir, &path, &set)?;
            }
            self.merged.insert(dir, Merged { names: set, moved });
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level {
            fd,
            path,
            lower,
            image,
            hidden: hidden || lower != inherited,
            names,
        })
    }

    /// Plans the entries that a directory shows from another directory of the image.
    fn take_along(&mut self, dir: u32, path: &[u8], but: &HashSet<Vec<u8>>) -> Result<()> {
        let mut walk = self.image.walk(dir, Order::Depth)?;
        while let Some(step) = walk.step()? {
            let Step::Enter(Visit {
                dir: parent,
                ino,
                inode,
            }) = step
            else {
                continue;
            };
            if parent == dir && but.contains(walk.name()) {
                if inode.is_dir() {
                    walk.skip();
                }
                continue;
            }
            let path = join(path, walk.path());
            let (what, file, size) = match self.index.get(&ino) {
                Some(Indexed {
                    name,
                    file,
                    content,
                    size,
                }) => (Planned::Index(name.clone(), *content), Some(*file), *size),
                None => {
                    let several = inode.nlink > 1 && !inode.is_dir();
                    (
                        Planned::Image(ino),
                        several.then_some(FileId::Image(ino)),
                        if inode.is_dir() { 0 } else { inode.size },
                    )
                }
            };
            self.plan.size = self.plan.size.saturating_add(size);
            let was = self.at(&path)?.is_some();
            self.plan.items.push(Item {
                path,
                was,
                is_dir: inode.is_dir(),
                what,
                file,
            });
        }
        Ok(())
    }

    /// Makes hard links of all names of a file but the first, and adds the names that the upper
    /// does not mention.
    fn link(&mut self) -> Result<()> {
        let mut wanted: HashSet<u32> = self.index.keys().copied().collect();
        wanted.extend(self.plan.items.iter().filter_map(|i| {
            if let Some(FileId::Image(ino)) = i.file {
                Some(ino)
            } else {
                None
            }
        }));
        let names = Names::find(self.image, &wanted)?;
        let mut first: HashMap<FileId, Vec<u8>> = HashMap::new();
        for item in &mut self.plan.items {
            let Some(file) = item.file else { continue };
            if let FileId::Image(ino) = file
                && !first.contains_key(&file)
                && let Some(path) = names.untouched(ino, &self.merged).into_iter().next()
            {
                first.insert(file, path);
            }
            match first.get(&file) {
                Some(path) => item.what = Planned::HardLink(path.clone()),
                None => drop(first.insert(file, item.path.clone())),
            }
        }
        for (ino, indexed) in &self.index {
            for path in names.untouched(*ino, &self.merged) {
                let what = match first.get(&indexed.file) {
                    Some(path) => Planned::HardLink(path.clone()),
                    None => {
                        first.insert(indexed.file, path.clone());
                        self.plan.size = self.plan.size.saturating_add(indexed.size);
                        Planned::Index(indexed.name.clone(), indexed.content)
                    }
                };
                self.plan.items.push(Item {
                    path,
                    was: true,
                    is_dir: false,
                    what,
                    file: None,
                });
            }
        }
        Ok(())
    }

    fn list(&self, dir: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = Vec::new();
        for entry in Dir::read_from(dir).map_err(self.upper.failed("listing", path))? {
            let name = entry
                .map_err(self.upper.failed("listing", path))?
                .file_name()
                .to_bytes()
                .to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// The length of a regular file; 0 of anything else.
fn length(stat: &Stat) -> u64 {
    if stat.st_mode & S_IFMT == S_IFREG {
        u64::try_from(stat.st_size).unwrap_or(0)
    } else {
        0
    }
}
