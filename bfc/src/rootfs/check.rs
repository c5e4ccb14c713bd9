//! Checks that all records of a section agree with each other. Readers check only the records that
//! they use, as far as an error could mislead them.

use std::collections::HashSet;

use super::Section;
use super::format::{DENTRY_LEN, Dentry, Inode, ROOT, valid_name};
use crate::error::{Error, Result};

fn damaged(reason: &'static str) -> Error {
    Error::Section { offset: 0, reason }
}

/// Checks the tree: directories and their dentries, and that these name each inode as often as its
/// link count says.
///
/// # Errors
/// [`Error::Section`] for the first thing that is wrong, [`Error::Read`].
pub(super) fn tree(section: &Section) -> Result<()> {
    // How often each inode is named; as many as there are records, which were read.
    let mut names = vec![0_u32; section.inode_count() as usize];
    let listed = xattr_dentries(section)?;
    let mut dentries = 0;
    for ino in ROOT..=section.inode_count() {
        let inode = section
            .inode(ino)?
            .ok_or_else(|| damaged("an inode that is not there"))?;
        if inode.is_dir() {
            dentries += directory(section, &inode, &mut names, listed.as_ref())?;
        }
    }
    if dentries != section.header().dentries.size / DENTRY_LEN as u64 {
        return Err(damaged("a dentry of no directory"));
    }
    for (ino, &count) in (ROOT..).zip(&names) {
        let inode = section
            .inode(ino)?
            .ok_or_else(|| damaged("an inode that is not there"))?;
        let right = match (inode.is_dir(), ino) {
            (true, ROOT) => 0,
            (true, _) => 1,
            (false, _) => inode.nlink,
        };
        if count != right || (count == 0 && ino != ROOT) {
            return Err(damaged(
                "an inode that is not named as often as its link count says",
            ));
        }
    }
    Ok(())
}

/// The dentries in the list of those that lead to attributes, by directory and position in it;
/// `None` if there is no list.
fn xattr_dentries(section: &Section) -> Result<Option<HashSet<(u32, u64)>>> {
    let Some(list) = section.xattr_dentries()? else {
        return Ok(None);
    };
    let mut reached = HashSet::from([ROOT]);
    for &(dir, index) in &list {
        let inode = section.inode(dir)?.filter(|_| reached.contains(&dir));
        let dentry = inode
            .map(|inode| section.dentry(&inode, index.into()))
            .transpose()?
            .flatten();
        let dentry = dentry.ok_or_else(|| {
            damaged("a list of dentries with attributes whose directories are not in it")
        })?;
        reached.insert(dentry.ino);
    }
    Ok(Some(
        list.into_iter()
            .map(|(dir, index)| (dir, index.into()))
            .collect(),
    ))
}

/// Checks a directory's dentries; how many it has.
fn directory(
    section: &Section,
    dir: &Inode,
    names: &mut [u32],
    listed: Option<&HashSet<(u32, u64)>>,
) -> Result<u64> {
    let mut last: Option<Dentry> = None;
    let (mut index, mut subdirs) = (0, 0_u32);
    while let Some(dentry) = section.dentry(dir, index)? {
        let name = section.name(&dentry)?;
        if !valid_name(&name) {
            return Err(damaged("a name that is none"));
        }
        if let Some(last) = last
            && *section.name(&last)? >= *name
        {
            return Err(damaged("names that are not in order"));
        }
        let child = section.follow(&dentry)?;
        if child.xattr != 0 && listed.is_some_and(|listed| !listed.contains(&(dir.ino, index))) {
            return Err(damaged(
                "an inode with attributes that is not in the list of them",
            ));
        }
        subdirs += u32::from(child.is_dir());
        if let Some(count) = names.get_mut(child.ino as usize - 1) {
            *count = count.saturating_add(1);
        }
        last = Some(dentry);
        index += 1;
    }
    if dir.nlink.checked_sub(2) != Some(subdirs) {
        return Err(damaged(
            "a directory whose link count is not that of its subdirectories",
        ));
    }
    Ok(index)
}

/// Checks that a content's frames are its stored bytes, one behind the other.
///
/// # Errors
/// As [`tree`].
pub(super) fn contents(section: &Section) -> Result<()> {
    for number in 0..section.content_count() {
        let content = section.content(number)?;
        let mut end = 0;
        for index in 0..content.frames {
            let frame = section.frame(&content, index)?;
            if frame.offset != end {
                return Err(damaged("frames that do not stand one behind the other"));
            }
            end += u64::from(frame.stored);
        }
        if content.frames > 0 && end != content.stored {
            return Err(damaged("frames that are not all of their content"));
        }
    }
    Ok(())
}
