//! The merge against a model, for any layers.

use std::collections::{BTreeMap, BTreeSet};

use bfc::rootfs::{Kind, Tree};
use lxcri_fs::layer::merge::{Change, What, merge};
use proptest::prelude::*;

use super::merge::{Shown, device, dir, file, link, opaque, show, symlink, whiteout};

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
