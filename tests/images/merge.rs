//! Layers merge as OCI says: case by case, and compared with a simple model.

use std::collections::BTreeMap;

use bfc::format::{S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG};
use bfc::rootfs::{Attr, Kind, Node, NodeId, Tree};
use lxcri_fs::layer::merge::{Change, Error, Reason, What, merge};

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

pub(super) fn file(path: &str, mark: u32) -> Change {
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

pub(super) fn dir(path: &str, mark: u32) -> Change {
    change(
        path,
        node(S_IFDIR | 0o755, mark, Kind::Dir(BTreeMap::new())),
    )
}

pub(super) fn symlink(path: &str, target: &str) -> Change {
    change(
        path,
        node(S_IFLNK | 0o777, 0, Kind::Symlink(target.as_bytes().into())),
    )
}

pub(super) fn device(path: &str) -> Change {
    change(path, node(S_IFCHR | 0o600, 0, Kind::Device(0, 0)))
}

pub(super) fn link(path: &str, target: &str) -> Change {
    change(path, What::HardLink(target.into()))
}

pub(super) fn whiteout(path: &str) -> Change {
    change(path, What::Whiteout)
}

pub(super) fn opaque(path: &str) -> Change {
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
pub(super) type Shown = BTreeMap<String, String>;

pub(super) fn show(tree: &Tree) -> Shown {
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
