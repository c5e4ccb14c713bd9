//! Merges of databases of packages and of lists of users.

#![allow(clippy::panic)]

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
