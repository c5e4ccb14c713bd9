//! Layers merge as OCI says: case by case, and compared with a simple model.

use std::collections::{BTreeMap, BTreeSet};

use bfc::format::{S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG};
use bfc::rootfs::{Attr, Kind, Node, NodeId, Tree};
use lxcri_fs::layer::merge::{Change, Error, Reason, What, merge};
use proptest::prelude::*;

fn node(mode: u32, mark: u32, kind: Kind) -> What {
    What::Node(Node {
        attr: Attr {
            mode,
            uid: mark,
            ..Attr::default()
        },
        kind,
    })
}

fn file(path: &str, mark: u32) -> Change {
    change(
        path,
        node(
            S_IFREG | 0o644,
            mark,
            Kind::File {
                size: 1,
                content: Some(mark),
            },
        ),
    )
}

fn dir(path: &str, mark: u32) -> Change {
    change(
        path,
        node(S_IFDIR | 0o755, mark, Kind::Dir(BTreeMap::new())),
    )
}

fn symlink(path: &str, target: &str) -> Change {
    change(
        path,
        node(S_IFLNK | 0o777, 0, Kind::Symlink(target.as_bytes().into())),
    )
}

fn device(path: &str) -> Change {
    change(path, node(S_IFCHR | 0o600, 0, Kind::Device(0, 0)))
}

fn link(path: &str, target: &str) -> Change {
    change(path, What::HardLink(target.into()))
}

fn whiteout(path: &str) -> Change {
    change(path, What::Whiteout)
}

fn opaque(path: &str) -> Change {
    change(path, What::Opaque)
}

fn change(path: &str, what: What) -> Change {
    Change {
        path: path.into(),
        what,
    }
}

/// What stands at a path: `d7` is a directory with mark 7, `f7` a file, `l->x` a symlink, `c` a
/// device; implied directories have mark 0. Other names of an earlier path's inode are `=path`.
type Shown = BTreeMap<String, String>;

fn show(tree: &Tree) -> Shown {
    let mut out = Shown::new();
    let mut first: BTreeMap<NodeId, String> = BTreeMap::new();
    let mut stack = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = stack.pop() {
        let node = tree.node(id);
        let text = match &node.kind {
            Kind::Dir(children) => {
                for (name, &child) in children.iter().rev() {
                    let name = std::str::from_utf8(name).unwrap();
                    stack.push((
                        if path.is_empty() {
                            name.into()
                        } else {
                            format!("{path}/{name}")
                        },
                        child,
                    ));
                }
                format!("d{}", node.attr.uid)
            }
            Kind::File { .. } => format!("f{}", node.attr.uid),
            Kind::Symlink(target) => format!("l->{}", std::str::from_utf8(target).unwrap()),
            Kind::Device(..) => "c".into(),
            Kind::Other => "o".into(),
        };
        let text = match first.get(&id) {
            Some(known) => format!("={known}"),
            None => text,
        };
        first.entry(id).or_insert_with(|| path.clone());
        out.insert(path, text);
    }
    out
}

fn merged<const N: usize>(layers: [Vec<Change>; N]) -> Vec<(String, String)> {
    let mut shown = show(&merge(layers).unwrap());
    shown.remove("");
    shown.into_iter().collect()
}

fn assert_tree<const N: usize>(layers: [Vec<Change>; N], expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect();
    assert_eq!(merged(layers), expected);
}

#[test]
fn a_whiteout_hides_what_lies_below_and_nothing_of_its_own_layer() {
    let lower = || vec![dir("a", 1), file("a/x", 2), file("b", 3)];
    assert_tree([lower(), vec![whiteout("a")]], &[("b", "f3")]);
    assert_tree(
        [lower(), vec![whiteout("b"), file("b", 4)]],
        &[("a", "d1"), ("a/x", "f2"), ("b", "f4")],
    );
    assert_tree(
        [lower(), vec![file("b", 4), whiteout("b")]],
        &[("a", "d1"), ("a/x", "f2"), ("b", "f4")],
    );
    assert_tree(
        [lower(), vec![file("a/y", 4), whiteout("a")]],
        &[("a", "d0"), ("a/y", "f4"), ("b", "f3")],
    );
    assert_tree(
        [lower(), vec![whiteout("no/such"), whiteout("b/x")]],
        &[("a", "d1"), ("a/x", "f2"), ("b", "f3")],
    );
}

#[test]
fn an_opaque_mark_hides_lower_entries_at_any_position() {
    let lower = || vec![dir("a", 1), dir("a/d", 2), file("a/d/x", 3), file("a/y", 4)];
    let expected = [("a", "d5"), ("a/d", "d6"), ("a/d/new", "f7")];
    assert_tree(
        [
            lower(),
            vec![opaque("a"), dir("a", 5), dir("a/d", 6), file("a/d/new", 7)],
        ],
        &expected,
    );
    assert_tree(
        [
            lower(),
            vec![dir("a", 5), dir("a/d", 6), file("a/d/new", 7), opaque("a")],
        ],
        &expected,
    );
    assert_tree([lower(), vec![opaque("a")]], &[("a", "d1")]);
    assert_tree([lower(), vec![opaque("")]], &[]);
    assert_tree(
        [vec![opaque("a"), file("a/x", 1)]],
        &[("a", "d0"), ("a/x", "f1")],
    );
}

#[test]
fn a_directory_over_a_directory_takes_attributes_and_keeps_entries() {
    assert_tree(
        [vec![dir("a", 1), file("a/x", 2)], vec![dir("a", 3)]],
        &[("a", "d3"), ("a/x", "f2")],
    );
    let root = merge([vec![dir("", 9)]]).unwrap();
    assert_eq!(root.node(Tree::ROOT).attr.uid, 9);
}

#[test]
fn an_upper_layer_can_change_the_type_of_an_entry() {
    assert_tree(
        [vec![dir("a", 1), file("a/x", 2)], vec![file("a", 3)]],
        &[("a", "f3")],
    );
    assert_tree(
        [vec![file("a", 1)], vec![dir("a", 2), file("a/x", 3)]],
        &[("a", "d2"), ("a/x", "f3")],
    );
    assert_tree(
        [vec![file("a", 1)], vec![file("a/x", 3)]],
        &[("a", "d0"), ("a/x", "f3")],
    );
    // A symlink to a directory is not a directory.
    assert_tree(
        [vec![dir("d", 1), symlink("a", "d")], vec![dir("a", 2)]],
        &[("a", "d2"), ("d", "d1")],
    );
}

#[test]
fn the_last_of_several_entries_wins() {
    assert_tree([vec![file("a", 1), file("a", 2)]], &[("a", "f2")]);
    assert_tree(
        [vec![dir("a", 1), file("a/x", 2), dir("a", 3)]],
        &[("a", "d3"), ("a/x", "f2")],
    );
}

#[test]
fn a_hard_link_refers_to_the_file_of_that_name_at_its_position() {
    assert_tree(
        [vec![file("a", 1), link("b", "a")]],
        &[("a", "f1"), ("b", "=a")],
    );
    // Of a lower layer.
    assert_tree(
        [vec![file("a", 1)], vec![link("b", "a")]],
        &[("a", "f1"), ("b", "=a")],
    );
    // Whose target a later entry replaces.
    assert_tree(
        [vec![file("a", 1), link("b", "a"), file("a", 2)]],
        &[("a", "f2"), ("b", "f1")],
    );
    assert_tree(
        [vec![file("a", 1), link("b", "a")], vec![file("a", 2)]],
        &[("a", "f2"), ("b", "f1")],
    );
    assert_tree(
        [vec![file("a", 1), link("b", "a")], vec![whiteout("a")]],
        &[("b", "f1")],
    );
    // To symlinks and devices.
    assert_tree(
        [vec![
            symlink("a", "x"),
            link("b", "a"),
            device("c"),
            link("d", "c"),
        ]],
        &[("a", "l->x"), ("b", "=a"), ("c", "c"), ("d", "=c")],
    );
    // To itself, and into what it replaces.
    assert_tree([vec![file("a", 1), link("a", "a")]], &[("a", "f1")]);
    assert_tree(
        [vec![file("a/b", 1)], vec![link("a", "a/b")]],
        &[("a", "f1")],
    );
}

#[test]
fn a_hard_link_to_nothing_or_to_a_directory_is_an_error() {
    let error = |layer: Vec<Change>| merge([layer]).unwrap_err();
    assert_eq!(
        error(vec![link("a", "b")]),
        Error {
            path: b"a".into(),
            reason: Reason::NoTarget(b"b".into())
        }
    );
    assert_eq!(
        error(vec![dir("b", 1), link("a", "b")]).reason,
        Reason::DirTarget(b"b".into())
    );
    assert_eq!(
        error(vec![link("a", "")]).reason,
        Reason::DirTarget(b"".into())
    );
    assert_eq!(
        error(vec![file("a", 1), link("", "a")]).reason,
        Reason::Root
    );
    assert_eq!(error(vec![file("", 1)]).reason, Reason::Root);
    // The whiteout takes the target away, wherever it stands.
    assert!(merge([vec![file("b", 1)], vec![link("a", "b"), whiteout("b")]]).is_err());
}

#[test]
fn symlinks_among_the_parents_stay_inside_the_tree() {
    let inside = [("a", "l->../../d"), ("d", "d0"), ("d/x", "f1")];
    assert_tree([vec![symlink("a", "../../d"), file("a/x", 1)]], &inside);
    assert_tree(
        [vec![symlink("a", "/d"), dir("d", 2)], vec![file("a/x", 1)]],
        &[("a", "l->/d"), ("d", "d2"), ("d/x", "f1")],
    );
    assert_tree(
        [vec![dir("b", 1), symlink("b/up", ".."), file("b/up/x", 2)]],
        &[("b", "d1"), ("b/up", "l->.."), ("x", "f2")],
    );
    assert_tree(
        [
            vec![dir("d", 1), file("d/x", 2), symlink("a", "d")],
            vec![whiteout("a/x")],
        ],
        &[("a", "l->d"), ("d", "d1")],
    );
    assert_tree(
        [
            vec![dir("d", 1), file("d/x", 2), symlink("a", "d")],
            vec![opaque("a")],
        ],
        &[("a", "l->d"), ("d", "d1")],
    );
    // Never the last component.
    assert_tree(
        [vec![file("d", 1), symlink("a", "d"), file("a", 2)]],
        &[("a", "f2"), ("d", "f1")],
    );
    let looping = merge([vec![symlink("a", "b"), symlink("b", "a"), file("a/x", 1)]]);
    assert_eq!(looping.unwrap_err().reason, Reason::Symlinks);
}

#[test]
fn marks_in_a_directory_that_replaces_a_symlink_hide_nothing_behind_it() {
    let base = || {
        vec![
            dir("usr", 1),
            dir("usr/lib", 1),
            file("usr/lib/libc", 1),
            symlink("lib", "usr/lib"),
            symlink("r", "/"),
            symlink("self", "self"),
        ]
    };
    let marks = [
        vec![dir("lib", 2), opaque("lib"), file("lib/mine", 2)],
        vec![opaque("lib"), dir("lib", 2), file("lib/mine", 2)],
        vec![
            dir("lib", 2),
            opaque("lib"),
            file("lib/mine", 2),
            whiteout("lib"),
        ],
        vec![dir("lib", 2), whiteout("lib/libc"), file("lib/mine", 2)],
        vec![dir("r", 2), opaque("r"), dir("self", 2), opaque("self")],
    ];
    for layer in marks {
        let tree = show(&merge([base(), layer.clone()]).unwrap());
        assert_eq!(
            tree.get("usr/lib/libc").map(String::as_str),
            Some("f1"),
            "{layer:?}"
        );
    }
    // Without a directory of its own, the layer goes through the symlink, as its nodes do.
    let tree = show(&merge([base(), vec![whiteout("lib/libc"), file("lib/mine", 2)]]).unwrap());
    assert!(!tree.contains_key("usr/lib/libc") && tree.contains_key("usr/lib/mine"));
}

#[test]
fn a_layer_can_rename_a_file_of_the_layers_below() {
    for layer in [
        vec![link("new", "old"), whiteout("old")],
        vec![whiteout("old"), link("new", "old")],
        vec![opaque(""), link("new", "old")],
    ] {
        assert_tree([vec![file("old", 1)], layer], &[("new", "f1")]);
    }
    // What the layer has under the old name is what counts after it.
    let layer = vec![whiteout("old"), file("old", 2), link("new", "old")];
    assert_tree(
        [vec![file("old", 1)], layer],
        &[("new", "f2"), ("old", "=new")],
    );
}

#[test]
fn a_character_device_0_0_is_not_a_whiteout() {
    assert_tree([vec![file("a", 1)], vec![device("a")]], &[("a", "c")]);
}

/// The model: every path and the inode it leads to, in one map, changed in the most plain way.
#[derive(Default, Clone)]
struct Model {
    paths: BTreeMap<Vec<String>, usize>,
    inodes: Vec<String>,
}

impl Model {
    fn new() -> Self {
        Self {
            paths: BTreeMap::from([(vec![], 0)]),
            inodes: vec!["d0".into()],
        }
    }

    fn at(&self, path: &[String]) -> Option<&str> {
        self.paths.get(path).map(|&i| self.inodes[i].as_str())
    }

    fn is_dir(&self, path: &[String]) -> bool {
        self.at(path).is_some_and(|t| t.starts_with('d'))
    }

    fn remove(&mut self, path: &[String]) {
        self.paths.retain(|p, _| !p.starts_with(path));
    }

    fn put(&mut self, path: &[String], text: String) {
        self.inodes.push(text);
        self.paths.insert(path.to_vec(), self.inodes.len() - 1);
    }

    /// The path without symlinks; `make` makes what is missing on the way. A symlink that is
    /// `replaced` leads nowhere.
    fn resolve(
        &mut self,
        path: &[String],
        make: bool,
        replaced: &BTreeSet<Vec<String>>,
        depth: &mut usize,
    ) -> Result<Option<Vec<String>>, ()> {
        let mut at: Vec<String> = vec![];
        for (i, name) in path.iter().enumerate() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(name.clone());
            if let Some(target) = self
                .at(&at)
                .and_then(|t| t.strip_prefix("l->"))
                .map(str::to_owned)
            {
                if replaced.contains(&at) {
                    return Ok(None);
                }
                *depth += 1;
                if *depth > 40 {
                    return Err(());
                }
                at.pop();
                let mut next: Vec<String> = if target.starts_with('/') { vec![] } else { at };
                next.extend(
                    target
                        .split('/')
                        .filter(|n| !n.is_empty() && *n != ".")
                        .map(str::to_owned),
                );
                next.extend_from_slice(&path[i + 1..]);
                return self.resolve(&next, make, replaced, depth);
            }
            if !self.is_dir(&at) {
                if !make {
                    return Ok(None);
                }
                self.put(&at, "d0".into());
            }
        }
        Ok(Some(at))
    }

    fn parent(&mut self, path: &[String], make: bool) -> Result<Option<Vec<String>>, ()> {
        self.parent_of_mark(path, make, &BTreeSet::new())
    }

    fn parent_of_mark(
        &mut self,
        path: &[String],
        make: bool,
        replaced: &BTreeSet<Vec<String>>,
    ) -> Result<Option<Vec<String>>, ()> {
        let Some((name, parent)) = path.split_last() else {
            return Ok(Some(vec![]));
        };
        Ok(self.resolve(parent, make, replaced, &mut 0)?.map(|mut p| {
            p.push(name.clone());
            p
        }))
    }

    fn layer(&mut self, changes: &[Change]) -> Result<(), ()> {
        let split = |path: &[u8]| -> Vec<String> {
            std::str::from_utf8(path)
                .unwrap()
                .split('/')
                .filter(|n| !n.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let mut replaced = BTreeSet::new();
        let mut below = BTreeMap::new();
        for c in changes {
            match &c.what {
                What::Node(node) if matches!(node.kind, Kind::Dir(_)) => {
                    replaced.insert(split(&c.path));
                }
                What::HardLink(target) => {
                    if let Ok(Some(path)) = self.parent(&split(target), false)
                        && let Some(&inode) = self.paths.get(&path)
                    {
                        below.insert(split(target), inode);
                    }
                }
                _ => {}
            }
        }
        let is_mark = |c: &Change| matches!(c.what, What::Whiteout | What::Opaque);
        if !changes.iter().any(is_mark) {
            below.clear();
        }
        for c in changes {
            let path = split(&c.path);
            match c.what {
                What::Whiteout if !path.is_empty() => {
                    if let Some(path) = self.parent_of_mark(&path, false, &replaced)? {
                        self.remove(&path);
                    }
                }
                What::Opaque => {
                    if let Some(path) = self.resolve(&path, false, &replaced, &mut 0)? {
                        self.paths
                            .retain(|p, _| !(p.starts_with(&path) && *p != path));
                    }
                }
                _ => {}
            }
        }
        for c in changes {
            let path = split(&c.path);
            match &c.what {
                What::Whiteout | What::Opaque => {}
                What::HardLink(target) => {
                    let now = self.parent(&split(target), false)?;
                    let now = now.and_then(|path| self.paths.get(&path).copied());
                    let inode = now.or(below.get(&split(target)).copied()).ok_or(())?;
                    if self.inodes[inode].starts_with('d') || path.is_empty() {
                        return Err(());
                    }
                    let path = self.parent(&path, true)?.ok_or(())?;
                    self.remove(&path);
                    self.paths.insert(path, inode);
                }
                What::Node(node) => {
                    let path = self.parent(&path, true)?.ok_or(())?;
                    let text = match &node.kind {
                        Kind::Dir(_) => format!("d{}", node.attr.uid),
                        Kind::File { .. } => format!("f{}", node.attr.uid),
                        Kind::Symlink(t) => format!("l->{}", std::str::from_utf8(t).unwrap()),
                        _ => "c".into(),
                    };
                    let is_dir = text.starts_with('d');
                    if path.is_empty() && !is_dir {
                        return Err(());
                    }
                    if !(is_dir && self.is_dir(&path)) {
                        self.remove(&path);
                    }
                    self.put(&path, text);
                }
            }
        }
        Ok(())
    }

    fn show(&self) -> Shown {
        // As the tree's walk: depth first, names in order.
        let mut first: BTreeMap<usize, String> = BTreeMap::new();
        let mut out = Shown::new();
        for (path, &inode) in &self.paths {
            let path = path.join("/");
            let text = match first.get(&inode) {
                Some(known) => format!("={known}"),
                None => self.inodes[inode].clone(),
            };
            first.entry(inode).or_insert_with(|| path.clone());
            out.insert(path, text);
        }
        out
    }
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn any_change() -> impl Strategy<Value = Change> {
    let targets = vec![
        "a", "b", "..", "../a", "/b", "/a/b", "c/..", "../../c", "b/c/../a", "nowhere", ".",
    ];
    let path_or_root = prop_oneof![9 => path(), 1 => Just(String::new())];
    prop_oneof![
        4 => (path(), 1..100_u32).prop_map(|(p, m)| file(&p, m)),
        4 => (path_or_root, 1..100_u32).prop_map(|(p, m)| dir(&p, m)),
        2 => (path(), prop::sample::select(targets)).prop_map(|(p, t)| symlink(&p, t)),
        1 => path().prop_map(|p| device(&p)),
        2 => (path(), path()).prop_map(|(p, t)| link(&p, &t)),
        2 => path().prop_map(|p| whiteout(&p)),
        1 => path().prop_map(|p| opaque(&p)),
    ]
}

fn any_layers() -> impl Strategy<Value = Vec<Vec<Change>>> {
    prop::collection::vec(prop::collection::vec(any_change(), 0..12), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_merge_agrees_with_the_model(layers in any_layers()) {
        // Hard links with nothing to name would end most cases early: drop those of both sides.
        let mut model = Model::new();
        let mut kept: Vec<Vec<Change>> = Vec::new();
        for layer in layers {
            let mut changes = Vec::new();
            for c in layer {
                let is_link = matches!(c.what, What::HardLink(_));
                changes.push(c);
                if is_link && model.clone().layer(&changes).is_err() {
                    changes.pop();
                }
            }
            let expected = model.layer(&changes);
            kept.push(changes);
            let found = merge(kept.clone());
            prop_assert_eq!(expected.is_err(), found.is_err(), "{:?}", kept);
            if expected.is_err() {
                return Ok(());
            }
            prop_assert_eq!(show(&found.unwrap()), model.show(), "{:?}", kept);
        }
    }

    #[test]
    fn no_directory_has_two_names(layers in any_layers()) {
        if let Ok(tree) = merge(layers) {
            let mut seen = BTreeSet::new();
            let mut stack = vec![Tree::ROOT];
            while let Some(id) = stack.pop() {
                prop_assert!(seen.insert(id));
                let Some(children) = tree.children(id) else { continue };
                stack.extend(children.values().filter(|&&c| tree.children(c).is_some()));
            }
        }
    }
}
