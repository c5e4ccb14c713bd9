//! The graph of images and their clones.

use std::collections::{HashMap, HashSet};

use super::backend::StoredImage;
use super::name::Name;

/// The images in an order in which parents come before their clones.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// All images.
    pub names: Vec<Name>,
    /// Images whose parent does not exist, each with that parent.
    pub missing: Vec<(Name, Name)>,
    /// Loops: each image was cloned from the next, the last from the first.
    pub loops: Vec<Vec<Name>>,
}

/// Orders images.
pub fn order(images: &[StoredImage]) -> Order {
    let parents: HashMap<&Name, Option<&Name>> = images
        .iter()
        .map(|i| (&i.name, i.parent.as_ref()))
        .collect();
    let mut order = Order::default();
    let mut done: HashSet<&Name> = HashSet::new();
    for image in images {
        let mut path: Vec<&Name> = Vec::new();
        let mut at = Some(&image.name);
        while let Some(name) = at.filter(|name| !done.contains(name)) {
            if let Some(start) = path.iter().position(|n| *n == name) {
                order
                    .loops
                    .push(path[start..].iter().map(|n| (*n).clone()).collect());
                break;
            }
            let Some(parent) = parents.get(name) else {
                if let Some(child) = path.last() {
                    order.missing.push(((*child).clone(), name.clone()));
                }
                break;
            };
            path.push(name);
            at = *parent;
        }
        for name in path.into_iter().rev() {
            done.insert(name);
            order.names.push(name.clone());
        }
    }
    order
}

/// An image, the one it was cloned from, and so on.
pub fn chain<'a>(images: &'a [StoredImage], name: &Name) -> Vec<&'a StoredImage> {
    let mut chain: Vec<&StoredImage> = Vec::new();
    let mut at = Some(name);
    while let Some(image) = at.and_then(|name| images.iter().find(|i| i.name == *name)) {
        if chain.iter().any(|seen| seen.name == image.name) {
            break;
        }
        chain.push(image);
        at = image.parent.as_ref();
    }
    chain
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::store::Facts;

    fn image(name: &str, parent: Option<&str>) -> StoredImage {
        let facts = Facts {
            refs: Vec::new(),
            root_digest: String::new(),
            manifest_digest: None,
            created: Timestamp::UNIX_EPOCH,
            unnamed: None,
            uppers: Vec::new(),
            layers: Vec::new(),
            compression: String::new(),
            encryption: String::new(),
            size: 0,
            parent: None,
            checked: None,
            trust: Vec::new(),
        };
        let parsed = |text: &str| Name::new(text).unwrap();
        StoredImage {
            name: parsed(name),
            path: "/".into(),
            facts,
            parent: parent.map(parsed),
        }
    }

    fn texts(names: &[Name]) -> Vec<&str> {
        names.iter().map(Name::as_str).collect()
    }

    #[test]
    fn loops_and_missing_parents_are_named() {
        let images = [
            image("c", Some("b")),
            image("a", None),
            image("b", Some("a")),
            image("x", Some("y")),
            image("y", Some("x")),
            image("z", Some("gone")),
        ];
        let order = order(&images);
        assert_eq!(texts(&order.names), ["a", "b", "c", "y", "x", "z"]);
        assert_eq!(
            order.missing,
            [(Name::new("z").unwrap(), Name::new("gone").unwrap())]
        );
        assert_eq!(
            order.loops.iter().map(|l| texts(l)).collect::<Vec<_>>(),
            [["x", "y"]]
        );
        assert_eq!(
            chain(&images, &Name::new("c").unwrap())
                .iter()
                .map(|i| i.name.as_str())
                .collect::<Vec<_>>(),
            ["c", "b", "a"]
        );
        assert_eq!(chain(&images, &Name::new("x").unwrap()).len(), 2);
        let own = [image("s", Some("s"))];
        assert_eq!(super::order(&own).loops.len(), 1);
    }

    proptest! {
        #[test]
        fn parents_come_first(
            parents in proptest::collection::vec(proptest::option::of(0usize..12), 1..12),
        ) {
            let name = |i: usize| format!("n{i}");
            let images: Vec<StoredImage> = parents
                .iter()
                .enumerate()
                .map(|(i, p)| image(&name(i), p.map(name).as_deref()))
                .collect();
            let order = order(&images);
            prop_assert_eq!(order.names.len(), images.len());
            let at = |n: &Name| order.names.iter().position(|x| x == n);
            for image in &images {
                let in_loop = order.loops.iter().flatten().any(|n| *n == image.name);
                let parent = image.parent.as_ref();
                if let Some(parent) = parent.filter(|p| !in_loop && at(p).is_some()) {
                    prop_assert!(at(parent) < at(&image.name));
                }
            }
        }
    }
}
