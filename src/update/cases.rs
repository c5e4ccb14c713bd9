//! Merges of databases of packages and of lists of users.

#![allow(clippy::panic, clippy::unwrap_used)]

use super::model::{InMemory, Node, Tree, apply, changed, clear};
use super::*;

fn with(files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::from([(Vec::new(), Node::new(Kind::Directory, b""))]);
    for (path, content) in files {
        clear(&mut tree, path.as_bytes());
        let node = Node::new(Kind::File(content.len() as u64), content.as_bytes());
        tree.insert(path.as_bytes().to_vec(), node);
    }
    tree
}

#[test]
fn a_database_of_packages_is_never_mixed() {
    let base = with(&[("var/lib/dpkg/status", "1"), ("var/lib/dpkg/info/a", "a1")]);
    let mine = with(&[
        ("var/lib/dpkg/status", "1+mine"),
        ("var/lib/dpkg/info/a", "a1"),
        ("var/lib/dpkg/info/m", "m"),
        ("var/lib/dpkg/lock", ""),
    ]);
    let theirs = with(&[
        ("var/lib/dpkg/status", "2"),
        ("var/lib/dpkg/info/a", "a2"),
        ("var/lib/dpkg/info/t", "t"),
        ("usr/bin/t", "t"),
    ]);
    for policy in [Policy::Mine, Policy::Theirs] {
        let options = Options {
            policy,
            keep: Vec::new(),
        };
        let mut trees = InMemory {
            base: &base,
            mine: &mine,
            theirs: &theirs,
        };
        let Ok(judgement) = merge(&mut trees, &changed(&base, &mine), &options);
        let found = apply(&judgement, &mine, &theirs);
        let (winner, loser) = match policy {
            Policy::Mine => (&mine, Side::Theirs),
            Policy::Theirs => (&theirs, Side::Mine),
        };
        for path in ["status", "info/a", "info/m", "info/t"] {
            let path = format!("var/lib/dpkg/{path}").into_bytes();
            let content = |tree: &Tree| tree.get(&path).map(|node| node.content.clone());
            assert_eq!(content(&found), content(winner), "{policy:?} {path:?}");
        }
        assert!(found.contains_key(&b"usr/bin/t"[..]));
        let [conflict] = &judgement.conflicts[..] else {
            panic!("{judgement:?}")
        };
        assert_eq!(conflict.path, b"var/lib/dpkg/status");
        assert!(matches!(
            conflict.reason,
            Reason::Packages {
                manager: "dpkg",
                ..
            }
        ));
        assert!(judgement.lost.iter().all(|lost| lost.side == loser));
        assert!(judgement.lost.len() >= 2, "{:?}", judgement.lost);
    }
    // An untouched database follows the image, also if only its lock was taken.
    let mut locked = base.clone();
    locked.insert(b"var/lib/dpkg/lock".to_vec(), Node::new(Kind::File(0), b""));
    let mut trees = InMemory {
        base: &base,
        mine: &locked,
        theirs: &theirs,
    };
    let Ok(judgement) = merge(&mut trees, &changed(&base, &locked), &Options::default());
    assert_eq!(judgement.conflicts, []);
}

#[test]
fn lists_of_users_are_merged_and_their_copies_are_no_conflict() {
    let base = with(&[("etc/passwd", "a:x:1:1\n"), ("etc/passwd-", "1")]);
    let mine = with(&[("etc/passwd", "a:x:1:1\nm:x:2:2\n"), ("etc/passwd-", "m")]);
    let theirs = with(&[("etc/passwd", "a:x:1:1\nt:x:3:3\n"), ("etc/passwd-", "t")]);
    let mut trees = InMemory {
        base: &base,
        mine: &mine,
        theirs: &theirs,
    };
    let Ok(judgement) = merge(&mut trees, &changed(&base, &mine), &Options::default());
    let found = apply(&judgement, &mine, &theirs);
    assert_eq!(
        found[&b"etc/passwd"[..]].content,
        b"a:x:1:1\nt:x:3:3\nm:x:2:2\n"
    );
    assert_eq!(found[&b"etc/passwd-"[..]].content, b"m");
    assert_eq!(judgement.conflicts, []);
}

/// What a container's user has written does not become a program of root's.
#[test]
fn rights_follow_the_content_that_they_were_given_to() {
    let tree = |content: &str, uid: u32, mode: u32, capability: bool| {
        let mut tree = with(&[("tool", content)]);
        let node = tree.get_mut(&b"tool"[..]).unwrap();
        let attributes = &mut node.entry.attributes;
        (attributes.uid, attributes.access.mode) = (uid, mode);
        if capability {
            attributes
                .xattrs
                .insert(b"security.capability".to_vec(), b"all".to_vec());
        }
        tree
    };
    let base = tree("old", 1000, 0o644, false);
    let written = tree("evil", 1000, 0o644, false);
    for theirs in [tree("new", 0, 0o4755, true), tree("old", 0, 0o4755, true)] {
        let mut trees = InMemory {
            base: &base,
            mine: &written,
            theirs: &theirs,
        };
        let Ok(judgement) = merge(&mut trees, &changed(&base, &written), &Options::default());
        let found = apply(&judgement, &written, &theirs);
        let node = &found[&b"tool"[..]];
        assert_eq!(node.content, b"evil");
        assert_eq!(node.entry.attributes.access.mode, 0o755);
        assert!(node.entry.attributes.xattrs.is_empty());
    }
}

/// A symlink in the place of a file does not open the file to everybody.
#[test]
fn a_symlinks_attributes_are_no_files() {
    let file = |content: &str| {
        let mut tree = with(&[("secret", content)]);
        tree.get_mut(&b"secret"[..])
            .unwrap()
            .entry
            .attributes
            .access
            .mode = 0o600;
        tree
    };
    let (base, theirs) = (file("old"), file("new"));
    let mut mine = with(&[]);
    let mut link = Node::new(Kind::Symlink(b"elsewhere".to_vec()), b"");
    link.entry.attributes.access.mode = 0o777;
    mine.insert(b"secret".to_vec(), link);
    let options = Options {
        policy: Policy::Theirs,
        keep: Vec::new(),
    };
    let mut trees = InMemory {
        base: &base,
        mine: &mine,
        theirs: &theirs,
    };
    let Ok(judgement) = merge(&mut trees, &changed(&base, &mine), &options);
    let found = apply(&judgement, &mine, &theirs);
    let node = &found[&b"secret"[..]];
    assert_eq!(node.content, b"new");
    assert_eq!(node.entry.attributes.access.mode, 0o600);
}
