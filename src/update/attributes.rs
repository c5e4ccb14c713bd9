//! Merges attributes, one by one.

use super::Policy;
use super::tree::{Attributes, Side};

/// Merged attributes, and the names of those that were in conflict.
pub(super) struct Merged {
    pub(super) attributes: Attributes,
    pub(super) conflicts: Vec<String>,
}

/// Three values of an attribute.
struct Three<'a, T> {
    base: Option<&'a T>,
    mine: &'a T,
    theirs: &'a T,
}

impl<T: PartialEq + Clone> Three<'_, T> {
    /// The side whose value counts; `None` in a conflict.
    fn side(&self) -> Option<Side> {
        if self.mine == self.theirs || self.base == Some(self.mine) {
            Some(Side::Theirs)
        } else if self.base == Some(self.theirs) {
            Some(Side::Mine)
        } else {
            None
        }
    }

    fn of(&self, side: Side) -> T {
        match side {
            Side::Mine => self.mine.clone(),
            _ => self.theirs.clone(),
        }
    }
}

/// Set-user-id and set-group-id.
const SET_IDS: u32 = 0o6000;
/// Prefix of the attributes by which content gets rights, or is vouched for: capabilities, labels,
/// signatures.
const SECURITY: &[u8] = b"security.";

/// Makes the rights of content follow it: what one side has written must not get those that the
/// other side has given to something else. `from` are the attributes of the side that the content
/// comes from; `None` if it is of both. Without its owner, a file has no rights of its own, as
/// after chown(2).
pub(super) fn follow(attributes: &mut Attributes, from: Option<&Attributes>) {
    let is_owner = |from: &&Attributes| (from.uid, from.gid) == (attributes.uid, attributes.gid);
    let from = from.filter(is_owner);
    attributes.access.mode &= !SET_IDS;
    attributes
        .xattrs
        .retain(|name, _| !name.starts_with(SECURITY));
    if let Some(from) = from {
        attributes.access.mode |= from.access.mode & SET_IDS;
        let own = from
            .xattrs
            .iter()
            .filter(|(name, _)| name.starts_with(SECURITY));
        attributes
            .xattrs
            .extend(own.map(|(name, value)| (name.clone(), value.clone())));
    }
}

/// Merges the attributes of something that both sides have. `content` is the side that its content
/// comes from, if the sides differ in that: a file's time is that of its content. Times are no
/// conflict: builds and containers change them without anybody's intention, and the later one wins.
pub(super) fn merge(
    base: Option<&Attributes>,
    mine: &Attributes,
    theirs: &Attributes,
    content: Option<Side>,
    policy: Policy,
) -> Merged {
    let mut conflicts = Vec::new();
    let mut decide = |name: &str, side: Option<Side>| {
        side.unwrap_or_else(|| {
            conflicts.push(name.to_owned());
            policy.winner()
        })
    };
    macro_rules! merged {
        ($name:literal, $field:ident) => {{
            let three = Three {
                base: base.map(|base| &base.$field),
                mine: &mine.$field,
                theirs: &theirs.$field,
            };
            three.of(decide($name, three.side()))
        }};
    }
    let (uid, gid) = (merged!("owner", uid), merged!("group", gid));
    let access = merged!("mode", access);
    let times = Three {
        base: base.map(|base| &base.mtime),
        mine: &mine.mtime,
        theirs: &theirs.mtime,
    };
    let mtime = match content.or_else(|| times.side()) {
        Some(side) => times.of(side),
        None => mine.mtime.max(theirs.mtime),
    };
    let mut xattrs = theirs.xattrs.clone();
    let names = mine.xattrs.keys().chain(theirs.xattrs.keys());
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let (mine, theirs) = (mine.xattrs.get(name), theirs.xattrs.get(name));
        let base = base.map(|base| base.xattrs.get(name));
        let three = Three {
            base: base.as_ref(),
            mine: &mine,
            theirs: &theirs,
        };
        match three.of(decide(&String::from_utf8_lossy(name), three.side())) {
            Some(value) => drop(xattrs.insert(name.clone(), value.clone())),
            None => drop(xattrs.remove(name)),
        }
    }
    Merged {
        attributes: Attributes {
            uid,
            gid,
            access,
            mtime,
            xattrs,
        },
        conflicts,
    }
}
