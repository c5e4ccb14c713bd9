//! Merges the files of users and groups by the name of the entry, so that the users and groups that
//! either side added survive.

use std::collections::{BTreeMap, BTreeSet};

use super::Policy;
use super::tree::Side;

/// Longest file that is merged, bytes.
pub(super) const MAX: u64 = 4 << 20;

/// A file of users or groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accounts {
    /// Third field: a numeric id, which only one entry should have.
    Users,
    /// As above; fourth field: members.
    Groups,
    /// No ids.
    UserSecrets,
    /// Fourth field: members.
    GroupSecrets,
}

impl Accounts {
    /// The kind of the file at a path.
    pub(super) fn at(path: &[u8]) -> Option<Self> {
        match path {
            b"etc/passwd" => Some(Self::Users),
            b"etc/group" => Some(Self::Groups),
            b"etc/shadow" => Some(Self::UserSecrets),
            b"etc/gshadow" => Some(Self::GroupSecrets),
            _ => None,
        }
    }

    /// Whether the file at a path is a copy of the last state of one of these, which programs make.
    pub(super) fn is_copy(path: &[u8]) -> bool {
        path.strip_suffix(b"-")
            .is_some_and(|of| Self::at(of).is_some())
    }

    fn has_ids(self) -> bool {
        matches!(self, Self::Users | Self::Groups)
    }

    fn has_members(self) -> bool {
        matches!(self, Self::Groups | Self::GroupSecrets)
    }
}

/// A merged file, and what was in conflict.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) text: Vec<u8>,
    /// Entries that both sides changed.
    pub(super) entries: Vec<String>,
    /// Ids that both sides gave to different entries; both entries stay.
    pub(super) ids: Vec<String>,
}

/// The name of an entry, and how many entries of that name precede it.
type Key<'a> = (&'a [u8], usize);

/// The lines of a file in their order, by their keys.
fn lines(text: &[u8]) -> Vec<(Key<'_>, &[u8])> {
    let mut seen: BTreeMap<&[u8], usize> = BTreeMap::new();
    let lines = text.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let name = line.split(|&b| b == b':').next().unwrap_or_default();
            let nth = seen.entry(name).or_default();
            *nth += 1;
            ((name, *nth), line)
        })
        .collect()
}

fn field(line: &[u8], n: usize) -> Option<&[u8]> {
    line.split(|&b| b == b':').nth(n)
}

/// Merges three versions of a file.
pub(super) fn merge(
    kind: Accounts,
    base: &[u8],
    mine: &[u8],
    theirs: &[u8],
    policy: Policy,
) -> Merged {
    let (base, mine, theirs) = (lines(base), lines(mine), lines(theirs));
    let by_key = |lines: &[(Key<'_>, &[u8])]| -> BTreeMap<_, _> {
        lines
            .iter()
            .map(|((name, nth), line)| ((name.to_vec(), *nth), line.to_vec()))
            .collect()
    };
    let (old, own) = (by_key(&base), by_key(&mine));
    let new = by_key(&theirs);
    let (mut out, mut entries) = (Vec::new(), Vec::new());
    // The image's order, then what is only mine.
    let keys = theirs.iter().map(|(key, _)| key);
    let only_mine = mine.iter().map(|(key, _)| key);
    let all = keys.chain(only_mine.filter(|(name, nth)| !new.contains_key(&(name.to_vec(), *nth))));
    for (name, nth) in all {
        let key = (name.to_vec(), *nth);
        let (b, m, t) = (old.get(&key), own.get(&key), new.get(&key));
        let chosen = if m == t || m == b {
            t.cloned()
        } else if t == b {
            m.cloned()
        } else if let (Some(m), Some(t), true) = (m, t, kind.has_members())
            && let Some(line) = with_members(b.map(Vec::as_slice), m, t)
        {
            Some(line)
        } else {
            entries.push(String::from_utf8_lossy(name).into_owned());
            match policy.winner() {
                Side::Mine => m.cloned(),
                _ => t.cloned(),
            }
        };
        out.extend(chosen);
    }
    let is_new = |line: &[u8], from: &BTreeMap<(Vec<u8>, usize), Vec<u8>>| {
        let key = (field(line, 0).unwrap_or_default().to_vec(), 1);
        from.contains_key(&key) && !old.contains_key(&key)
    };
    let ids = match kind.has_ids() {
        true => shared_ids(&out, |line| (is_new(line, &own), is_new(line, &new))),
        false => Vec::new(),
    };
    let mut text = out.join(&b'\n');
    if !text.is_empty() {
        text.push(b'\n');
    }
    Merged { text, entries, ids }
}

/// The ids that an entry which only one side added shares with one that only the other added.
fn shared_ids(lines: &[Vec<u8>], new: impl Fn(&[u8]) -> (bool, bool)) -> Vec<String> {
    let mut mine: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for line in lines.iter().filter(|line| new(line) == (true, false)) {
        if let (Some(name), Some(id)) = (field(line, 0), field(line, 2)) {
            mine.insert(id, name);
        }
    }
    let theirs = lines.iter().filter(|line| new(line) == (false, true));
    let shared = theirs.filter_map(|line| {
        let (name, id) = (field(line, 0)?, field(line, 2)?);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let other = mine.get(id)?;
        Some(format!(
            "id {} of {} and {}",
            text(id),
            text(other),
            text(name)
        ))
    });
    shared.collect()
}

/// An entry whose members are merged as a set; `None` if other fields were changed on both sides.
fn with_members(base: Option<&[u8]>, mine: &[u8], theirs: &[u8]) -> Option<Vec<u8>> {
    const MEMBERS: usize = 3;
    let fields =
        |line: &[u8]| -> Vec<Vec<u8>> { line.split(|&b| b == b':').map(<[u8]>::to_vec).collect() };
    let (m, t) = (fields(mine), fields(theirs));
    let b = base.map(fields);
    if m.len() != MEMBERS + 1 || t.len() != MEMBERS + 1 {
        return None;
    }
    let mut merged = Vec::new();
    for n in 0..MEMBERS {
        let old = b.as_ref().and_then(|b| b.get(n));
        merged.push(match () {
            () if m[n] == t[n] || old == Some(&m[n]) => t[n].clone(),
            () if old == Some(&t[n]) => m[n].clone(),
            () => return None,
        });
    }
    let names = |list: &[u8]| -> Vec<Vec<u8>> {
        let names = list.split(|&b| b == b',').filter(|name| !name.is_empty());
        names.map(<[u8]>::to_vec).collect()
    };
    let old = b.and_then(|b| b.get(MEMBERS).cloned()).unwrap_or_default();
    let old: BTreeSet<_> = names(&old).into_iter().collect();
    let (own, new) = (names(&m[MEMBERS]), names(&t[MEMBERS]));
    // Those that one side removed go, those that one side added stay.
    let kept = new
        .iter()
        .filter(|&name| own.contains(name) || !old.contains(name));
    let added = own
        .iter()
        .filter(|&name| !new.contains(name) && !old.contains(name));
    let members: Vec<_> = kept.chain(added).cloned().collect();
    merged.push(members.join(&b','));
    Some(merged.join(&b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(kind: Accounts, base: &str, mine: &str, theirs: &str) -> Merged {
        let [base, mine, theirs] = [base, mine, theirs].map(str::as_bytes);
        merge(kind, base, mine, theirs, Policy::Mine)
    }

    fn text(merged: &Merged) -> String {
        String::from_utf8_lossy(&merged.text).into_owned()
    }

    #[test]
    fn users_of_either_side_survive() {
        let base = "root:x:0:0::/root:/bin/sh\ngames:x:5:60::/usr/games:/bin/sh\n";
        let mine = "root:x:0:0::/root:/bin/bash\npg:x:101:101::/var/lib/pg:/bin/sh\n";
        let theirs = "root:x:0:0::/root:/bin/sh\ngames:x:5:60::/usr/games:/bin/sh\n\
                      sshd:x:102:65534::/run/sshd:/bin/false";
        let found = merged(Accounts::Users, base, mine, theirs);
        assert_eq!(
            text(&found),
            "root:x:0:0::/root:/bin/bash\nsshd:x:102:65534::/run/sshd:/bin/false\n\
             pg:x:101:101::/var/lib/pg:/bin/sh\n"
        );
        assert_eq!((found.entries.len(), found.ids.len()), (0, 0));
    }

    #[test]
    fn one_entry_that_both_changed_and_one_id_of_two_are_conflicts() {
        let found = merged(
            Accounts::Users,
            "a:x:1:1::/:/bin/sh\n",
            "a:x:1:1::/mine:/bin/sh\nb:x:101:1::/:\n",
            "a:x:1:1::/theirs:/bin/sh\nc:x:101:1::/:\n",
        );
        assert_eq!(
            text(&found),
            "a:x:1:1::/mine:/bin/sh\nc:x:101:1::/:\nb:x:101:1::/:\n"
        );
        assert_eq!(found.entries, ["a"]);
        assert_eq!(found.ids, ["id 101 of b and c"]);
    }

    #[test]
    fn members_of_groups_are_merged_as_sets() {
        let found = merged(
            Accounts::Groups,
            "adm:x:4:syslog,old\nweb:x:33:\n",
            "adm:x:4:syslog,old,alice\nweb:x:33:a\n",
            "adm:x:4:syslog,bob\nweb:x:34:b\n",
        );
        assert_eq!(text(&found), "adm:x:4:syslog,bob,alice\nweb:x:34:b,a\n");
        assert_eq!(found.entries, Vec::<String>::new());
    }
}
