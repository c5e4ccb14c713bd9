//! Finds all names of files that have several.

use std::collections::{HashMap, HashSet};

use crate::fs::{Order, ROOT, Result, Rootfs, Step, Visit};

/// A directory of the image that a directory of the upper is merged with.
pub(super) struct Merged {
    /// The names that the upper has in it.
    pub(super) names: HashSet<Vec<u8>>,
    /// Whether it shows up elsewhere than in the image.
    pub(super) moved: bool,
}

/// Names in the image, of directories and of the requested files.
pub(super) struct Names {
    /// Parent and name of each directory but the root.
    dirs: HashMap<u32, (u32, Vec<u8>)>,
    /// Parent and name, for each name of a file.
    files: HashMap<u32, Vec<(u32, Vec<u8>)>>,
}

impl Names {
    /// Looks through the whole image.
    pub(super) fn find(image: &Rootfs, wanted: &HashSet<u32>) -> Result<Self> {
        let mut names = Self {
            dirs: HashMap::new(),
            files: HashMap::new(),
        };
        if wanted.is_empty() {
            return Ok(names);
        }
        let mut walk = image.walk(ROOT, Order::Depth)?;
        while let Some(step) = walk.step()? {
            let Step::Enter(Visit { dir, ino, inode }) = step else {
                continue;
            };
            if inode.is_dir() {
                names.dirs.insert(ino, (dir, walk.name().to_vec()));
            } else if wanted.contains(&ino) {
                names
                    .files
                    .entry(ino)
                    .or_default()
                    .push((dir, walk.name().to_vec()));
            }
        }
        Ok(names)
    }

    /// The paths of a file that the upper leaves unchanged, sorted.
    pub(super) fn untouched(&self, ino: u32, merged: &HashMap<u32, Merged>) -> Vec<Vec<u8>> {
        let names = self.files.get(&ino).into_iter().flatten();
        let mut paths: Vec<_> = names
            .filter_map(|(dir, name)| self.path(*dir, name, merged))
            .collect();
        paths.sort();
        paths
    }

    /// The path of a name, unless the upper hides it, replaces it, or shows it elsewhere.
    fn path(&self, mut dir: u32, name: &[u8], merged: &HashMap<u32, Merged>) -> Option<Vec<u8>> {
        let mut path = vec![name];
        // As soon as a directory is merged in its place, all above it are.
        let mut settled = false;
        loop {
            if let Some(Merged { names, moved }) = merged.get(&dir)
                && !settled
            {
                if *moved || path.last().is_some_and(|name| names.contains(*name)) {
                    return None;
                }
                settled = true;
            }
            let Some((parent, name)) = self.dirs.get(&dir) else {
                break;
            };
            path.push(name);
            dir = *parent;
        }
        path.reverse();
        settled.then(|| path.join(&b'/'))
    }
}
