//! The merge beside a naive model, which merges whole trees recursively.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use proptest::prelude::*;

use super::tree::{above, is_within, join};
use super::*;

/// A tree in memory.
pub(super) type Tree = BTreeMap<Vec<u8>, Node>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) entry: Entry,
    pub(super) content: Vec<u8>,
}

impl Node {
    pub(super) fn new(kind: Kind, content: &[u8]) -> Self {
        let attributes = Attributes {
            uid: 0,
            gid: 0,
            access: Access {
                mode: 0o644,
                acl: None,
            },
            mtime: (1, 0),
            xattrs: BTreeMap::new(),
        };
        Self {
            entry: Entry {
                kind,
                attributes,
                file: None,
            },
            content: content.to_vec(),
        }
    }

    fn is_dir(&self) -> bool {
        self.entry.is_dir()
    }

    /// Everything but its identity.
    fn seen(&self) -> (Kind, Attributes, Vec<u8>) {
        let entry = &self.entry;
        (
            entry.kind.clone(),
            entry.attributes.clone(),
            self.content.clone(),
        )
    }

    fn same_content(&self, other: &Self) -> bool {
        (&self.entry.kind, &self.content) == (&other.entry.kind, &other.content)
    }
}

pub(super) struct InMemory<'a> {
    pub(super) base: &'a Tree,
    pub(super) mine: &'a Tree,
    pub(super) theirs: &'a Tree,
}

impl InMemory<'_> {
    fn side(&self, side: Side) -> &Tree {
        match side {
            Side::Base => self.base,
            Side::Mine => self.mine,
            Side::Theirs => self.theirs,
        }
    }
}

impl Trees for InMemory<'_> {
    type Error = Infallible;

    fn entry(&mut self, side: Side, path: &[u8]) -> Result<Option<Entry>, Infallible> {
        Ok(self.side(side).get(path).map(|node| node.entry.clone()))
    }

    fn names(&mut self, side: Side, path: &[u8]) -> Result<Vec<Vec<u8>>, Infallible> {
        Ok(names(self.side(side), path))
    }

    fn same_content(&mut self, path: &[u8], a: Side, b: Side) -> Result<bool, Infallible> {
        Ok(self.side(a)[path].content == self.side(b)[path].content)
    }

    fn read(&mut self, side: Side, path: &[u8], _: u64) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(Some(self.side(side)[path].content.clone()))
    }
}

fn names(tree: &Tree, path: &[u8]) -> Vec<Vec<u8>> {
    let parent = |child: &[u8]| above(child).next() == Some(path);
    let children = tree.keys().filter(|child| parent(child));
    children
        .map(|child| child.rsplit(|&b| b == b'/').next().unwrap().to_vec())
        .collect()
}

/// What differs from the base, as `diff` lists it: nothing below what is gone, and all names of a
/// file of which one is changed.
pub(super) fn changed(base: &Tree, mine: &Tree) -> BTreeSet<Vec<u8>> {
    let differs = |path: &&Vec<u8>| base.get(*path) != mine.get(*path);
    let touched = mine.keys().filter(differs);
    let files: BTreeSet<FileId> = touched.filter_map(|path| mine[path].entry.file).collect();
    let is_listed = |path: &&Vec<u8>| {
        let node = mine.get(*path);
        let file = node.and_then(|node| node.entry.file);
        let parent = above(path).next();
        let is_seen = parent.is_none_or(|up| mine.get(up).is_some_and(Node::is_dir));
        differs(path) && (node.is_some() || is_seen) || file.is_some_and(|f| files.contains(&f))
    };
    let paths = base.keys().chain(mine.keys());
    paths.filter(is_listed).cloned().collect()
}

/// Carries out what was judged.
pub(super) fn apply(judgement: &Judgement, mine: &Tree, theirs: &Tree) -> Tree {
    let mut tree = theirs.clone();
    let mut next_file = 1000;
    for Step { path, what } in &judgement.steps {
        let was = tree.get(path).cloned();
        if !matches!(what, What::Directory(_)) || !was.as_ref().is_some_and(Node::is_dir) {
            tree.retain(|at, _| !is_within(at, path));
        }
        let with = |node: &Node, attributes: &Attributes| {
            let mut node = node.clone();
            node.entry.attributes = attributes.clone();
            node.entry.file = None;
            node
        };
        let new = match what {
            What::Remove => {
                assert!(was.is_some(), "nothing to remove: {judgement:?}");
                continue;
            }
            What::Directory(attributes) => with(&Node::new(Kind::Directory, b""), attributes),
            What::Mine(attributes) => with(&mine[path], attributes),
            What::Attributes(attributes) => with(&theirs[path], attributes),
            What::Text(text, attributes) => {
                with(&Node::new(Kind::File(text.len() as u64), text), attributes)
            }
            What::Link(first) => {
                next_file += 1;
                let first = tree.get_mut(first).unwrap();
                let file = *first.entry.file.get_or_insert((0, next_file));
                let mut node = first.clone();
                node.entry.file = Some(file);
                node
            }
        };
        let parent = above(path).next();
        assert!(
            parent.is_none_or(|up| tree.get(up).is_some_and(Node::is_dir)),
            "no directory for {path:?}: {judgement:?}"
        );
        tree.insert(path.clone(), new);
    }
    tree
}

/// The result as the description of the merge says it, path by path.
fn model(
    [base, mine, theirs]: [&Tree; 3],
    path: &[u8],
    policy: Policy,
    out: &mut Tree,
    conflicts: &mut BTreeSet<Vec<u8>>,
) {
    fn win<T>(policy: Policy, m: T, t: T) -> T {
        if policy == Policy::Mine { m } else { t }
    }
    let [b, m, t] = [base, mine, theirs].map(|tree| tree.get(path));
    let below = |out: &mut Tree, conflicts: &mut BTreeSet<Vec<u8>>| {
        let all = [base, mine, theirs].map(|tree| names(tree, path));
        for name in all.concat().into_iter().collect::<BTreeSet<_>>() {
            model(
                [base, mine, theirs],
                &join(path, &name),
                policy,
                out,
                conflicts,
            );
        }
    };
    let timeless = |node: &Node| {
        let mut node = node.clone();
        node.entry.attributes.mtime = (0, 0);
        node.seen()
    };
    let touched = |b: &Node, x: &Node| timeless(b) != timeless(x);
    // What is no directory there in the end, or a directory with attributes of its own.
    let (mut here, mut is_conflict) = match (b, m, t) {
        (_, None, None) => (None, false),
        (None, Some(x), None) | (None, None, Some(x)) => (Some(x.clone()), false),
        (Some(b), Some(x), None) | (Some(b), None, Some(x)) => {
            if b.is_dir() != x.is_dir() {
                (Some(x.clone()), false)
            } else if !b.is_dir() && touched(b, x) {
                (win(policy, m, t).cloned(), true)
            } else {
                (None, false)
            }
        }
        (b, Some(m), Some(t)) if m.is_dir() == t.is_dir() => {
            let b = b.filter(|b| b.is_dir() == m.is_dir());
            let mut node = t.clone();
            let (mut is_conflict, mut side) = (false, None);
            if !m.same_content(t) {
                side = Some(if b.is_some_and(|b| b.same_content(m)) {
                    t
                } else if b.is_some_and(|b| b.same_content(t)) {
                    m
                } else {
                    is_conflict = true;
                    win(policy, m, t)
                });
                node = side.unwrap().clone();
            }
            // Attributes of a symlink are nothing for a file.
            let is_mixed = !m.entry.is_like(&t.entry);
            let b = b.filter(|b| b.entry.is_like(&m.entry));
            let [old, own, new] = [b, Some(m), Some(t)].map(|n| n.map(|n| &n.entry.attributes));
            let (own, new) = (own.unwrap(), new.unwrap());
            macro_rules! three {
                ($of:expr) => {{
                    let of: fn(&Attributes) -> _ = $of;
                    let (b, m, t) = (old.map(of), of(own), of(new));
                    if m == t || b.as_ref() == Some(&m) {
                        t
                    } else if b.as_ref() == Some(&t) {
                        m
                    } else {
                        is_conflict = true;
                        win(policy, m, t)
                    }
                }};
            }
            if !is_mixed {
                let attributes = &mut node.entry.attributes;
                attributes.uid = three!(|a| a.uid);
                attributes.gid = three!(|a| a.gid);
                attributes.access = three!(|a| a.access.clone());
                let x = three!(|a| a.xattrs.get(&b"user.x"[..]).cloned());
                attributes.xattrs = x.into_iter().map(|x| (b"user.x".to_vec(), x)).collect();
                attributes.mtime = match (side, old) {
                    (Some(side), _) => side.entry.attributes.mtime,
                    (None, Some(old)) if own.mtime == old.mtime => new.mtime,
                    (None, Some(old)) if new.mtime == old.mtime => own.mtime,
                    _ => own.mtime.max(new.mtime),
                };
            }
            (Some(node), is_conflict)
        }
        (None, ..) => (win(policy, m, t).cloned(), true),
        (Some(b), Some(m), Some(t)) => {
            let (like, other) = if b.is_dir() == m.is_dir() {
                (m, t)
            } else {
                (t, m)
            };
            if !b.is_dir() && touched(b, like) {
                (Some(win(policy, m, t).clone()), true)
            } else {
                (Some(other.clone()), false)
            }
        }
    };
    let mut entries = Tree::new();
    let mut more = BTreeSet::new();
    below(&mut entries, &mut more);
    if !here.as_ref().is_some_and(Node::is_dir) && !entries.is_empty() {
        let side = |node: Option<&Node>| node.filter(|node| node.is_dir()).cloned();
        if here.is_none() {
            here = side(t).or_else(|| side(m));
        } else {
            is_conflict = true;
            let dir = if here.as_ref().map(Node::seen) == t.map(Node::seen) {
                m
            } else {
                t
            };
            // The winner may be the directory, or what is in its place.
            if win(policy, m, t).map(Node::seen) == dir.map(Node::seen) {
                here = side(dir);
            } else {
                entries.clear();
            }
        }
    }
    if is_conflict {
        conflicts.insert(path.to_vec());
    }
    conflicts.extend(more);
    out.extend(entries);
    out.extend(here.map(|here| (path.to_vec(), here)));
}

/// A change of a tree.
#[derive(Debug, Clone)]
enum Op {
    Write(Vec<u8>, u8),
    Symlink(Vec<u8>, u8),
    Directory(Vec<u8>),
    Delete(Vec<u8>),
    Mode(Vec<u8>, u32),
    Owner(Vec<u8>, u32),
    Touch(Vec<u8>, i64),
    Attribute(Vec<u8>, u8),
    Link(Vec<u8>, Vec<u8>),
    Move(Vec<u8>, Vec<u8>),
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "a-"]), 1..4)
        .prop_map(|names| names.join("/").into_bytes())
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), 0..3_u8).prop_map(|(p, v)| Op::Write(p, v)),
        1 => (path(), 0..2_u8).prop_map(|(p, v)| Op::Symlink(p, v)),
        2 => path().prop_map(Op::Directory),
        3 => path().prop_map(Op::Delete),
        1 => (path(), 0..3_u32).prop_map(|(p, v)| Op::Mode(p, v)),
        1 => (path(), 0..3_u32).prop_map(|(p, v)| Op::Owner(p, v)),
        1 => (path(), 0..9_i64).prop_map(|(p, v)| Op::Touch(p, v)),
        1 => (path(), 0..3_u8).prop_map(|(p, v)| Op::Attribute(p, v)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Op::Move(a, b)),
    ]
}

/// Makes a place free for something else, with directories above it.
pub(super) fn clear(tree: &mut Tree, path: &[u8]) {
    tree.retain(|at, _| !is_within(at, path));
    for up in above(path) {
        if !tree.get(up).is_some_and(Node::is_dir) {
            tree.insert(up.to_vec(), Node::new(Kind::Directory, b""));
        }
    }
}

fn changed_by(tree: &mut Tree, ops: &[Op], number: &mut u64) {
    let set = |tree: &mut Tree, path: &[u8], change: &dyn Fn(&mut Attributes)| {
        let file = tree.get(path).and_then(|node| node.entry.file);
        for (at, node) in tree.iter_mut() {
            if at == path || file.is_some() && node.entry.file == file {
                change(&mut node.entry.attributes);
            }
        }
    };
    for op in ops {
        match op {
            Op::Write(path, value) => {
                clear(tree, path);
                let content = vec![*value; 3];
                tree.insert(path.clone(), Node::new(Kind::File(3), &content));
            }
            Op::Symlink(path, value) => {
                clear(tree, path);
                tree.insert(path.clone(), Node::new(Kind::Symlink(vec![*value]), b""));
            }
            Op::Directory(path) => {
                if !tree.get(path).is_some_and(Node::is_dir) {
                    clear(tree, path);
                    tree.insert(path.clone(), Node::new(Kind::Directory, b""));
                }
            }
            Op::Delete(path) => tree.retain(|at, _| !is_within(at, path)),
            Op::Mode(path, value) => set(tree, path, &|a| a.access.mode = *value),
            Op::Owner(path, value) => set(tree, path, &|a| a.uid = *value),
            Op::Touch(path, value) => set(tree, path, &|a| a.mtime = (*value, 0)),
            Op::Attribute(path, value) => set(tree, path, &|a| {
                a.xattrs = match value {
                    0 => BTreeMap::new(),
                    value => BTreeMap::from([(b"user.x".to_vec(), vec![*value])]),
                };
            }),
            Op::Link(from, to) => {
                let is_file = tree.get(from).is_some_and(|node| !node.is_dir());
                if is_file && !is_within(to, from) && !is_within(from, to) {
                    *number += 1;
                    let node = tree.get_mut(from).unwrap();
                    node.entry.file.get_or_insert((0, *number));
                    let node = node.clone();
                    clear(tree, to);
                    if tree.contains_key(from) {
                        tree.insert(to.clone(), node);
                    }
                }
            }
            Op::Move(from, to) => {
                if tree.contains_key(from) && !is_within(to, from) && !is_within(from, to) {
                    let moved: Tree = tree
                        .iter()
                        .filter(|(at, _)| is_within(at, from))
                        .map(|(at, node)| ([to, &at[from.len()..]].concat(), node.clone()))
                        .collect();
                    tree.retain(|at, _| !is_within(at, from));
                    clear(tree, to);
                    tree.extend(moved);
                }
            }
        }
    }
    // A file with one name has no identity of interest.
    let mut names: BTreeMap<FileId, usize> = BTreeMap::new();
    for node in tree.values() {
        if let Some(file) = node.entry.file {
            *names.entry(file).or_default() += 1;
        }
    }
    for node in tree.values_mut() {
        node.entry.file = node.entry.file.filter(|file| names[file] > 1);
    }
}

fn seen(tree: &Tree) -> BTreeMap<Vec<u8>, (Kind, Attributes, Vec<u8>)> {
    tree.iter()
        .map(|(path, node)| (path.clone(), node.seen()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_thousand_random_updates_are_as_the_model_says(
        first in prop::collection::vec(op(), 0..12),
        own in prop::collection::vec(op(), 0..8),
        new in prop::collection::vec(op(), 0..8),
        policy in prop::sample::select(vec![Policy::Mine, Policy::Theirs]),
    ) {
        let mut number = 0;
        let mut base = Tree::from([(Vec::new(), Node::new(Kind::Directory, b""))]);
        changed_by(&mut base, &first, &mut number);
        let (mut mine, mut theirs) = (base.clone(), base.clone());
        changed_by(&mut mine, &own, &mut number);
        changed_by(&mut theirs, &new, &mut number);
        let merged = |base, mine, theirs| {
            let options = Options { policy, keep: Vec::new() };
            let changed = changed(base, mine);
            let judgement = merge(&mut InMemory { base, mine, theirs }, &changed, &options);
            let Ok(judgement) = judgement;
            let tree = apply(&judgement, mine, theirs);
            (judgement, tree)
        };
        let (judgement, found) = merged(&base, &mine, &theirs);
        let (mut expected, mut conflicts) = (Tree::new(), BTreeSet::new());
        model([&base, &mine, &theirs], b"", policy, &mut expected, &mut conflicts);
        prop_assert_eq!(seen(&found), seen(&expected), "{:?}", judgement);
        let listed: BTreeSet<_> = judgement.conflicts.iter().map(|c| c.path.clone()).collect();
        prop_assert!(listed.is_subset(&conflicts), "{:?} {:?}", listed, conflicts);
        prop_assert_eq!(listed.is_empty(), conflicts.is_empty());
        // What lost is there to be kept.
        for Lost { side, path } in &judgement.lost {
            let tree = if *side == Side::Mine { &mine } else { &theirs };
            prop_assert!(tree.get(path).is_some_and(|node| !node.is_dir()), "{path:?}");
        }
        // Names of one file in mine are names of one file where both are as in mine.
        let as_mine =
            |path: &&Vec<u8>| found.get(*path).map(Node::seen) == Some(mine[*path].seen());
        for path in mine.keys().filter(as_mine) {
            let file = mine[path].entry.file;
            let twins = mine.keys().filter(|twin| file.is_some() && mine[*twin].entry.file == file);
            for twin in twins.filter(as_mine) {
                let file_of = |path| base.get(path).and_then(|node: &Node| node.entry.file);
                let same = twin == path
                    // Theirs may have made two of what mine left alone.
                    || file_of(twin) == file && file_of(path) == file
                    || found[twin].entry.file.is_some()
                        && found[twin].entry.file == found[path].entry.file;
                prop_assert!(same, "{path:?} {twin:?} {judgement:?}");
            }
        }
        // Without changes on one side, the result is the other.
        let (nothing, tree) = merged(&base, &base, &theirs);
        prop_assert!(nothing.steps.is_empty() && nothing.conflicts.is_empty());
        prop_assert_eq!(seen(&tree), seen(&theirs));
        let (judgement, tree) = merged(&base, &mine, &base);
        prop_assert_eq!(seen(&tree), seen(&mine));
        prop_assert!(judgement.conflicts.is_empty());
        let (judgement, tree) = merged(&base, &mine, &mine);
        prop_assert_eq!(seen(&tree), seen(&mine));
        prop_assert!(judgement.conflicts.is_empty());
    }

    #[test]
    fn what_is_to_be_kept_is_as_in_mine(
        first in prop::collection::vec(op(), 0..12),
        own in prop::collection::vec(op(), 0..8),
        new in prop::collection::vec(op(), 0..8),
        policy in prop::sample::select(vec![Policy::Mine, Policy::Theirs]),
    ) {
        let mut number = 0;
        let mut base = Tree::from([(Vec::new(), Node::new(Kind::Directory, b""))]);
        changed_by(&mut base, &first, &mut number);
        let (mut mine, mut theirs) = (base.clone(), base.clone());
        changed_by(&mut mine, &own, &mut number);
        changed_by(&mut theirs, &new, &mut number);
        let options = Options { policy, keep: vec![b"a".to_vec()] };
        let changed = changed(&base, &mine);
        let mut trees = InMemory { base: &base, mine: &mine, theirs: &theirs };
        let Ok(judgement) = merge(&mut trees, &changed, &options);
        let found = seen(&apply(&judgement, &mine, &theirs));
        let within = |tree: BTreeMap<Vec<u8>, _>| -> BTreeMap<Vec<u8>, _> {
            tree.into_iter().filter(|(path, _)| is_within(path, b"a")).collect()
        };
        prop_assert_eq!(within(found), within(seen(&mine)));
    }
}
