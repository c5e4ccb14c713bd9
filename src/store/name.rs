//! Names of images and containers as directories and ZFS datasets.
//!
//! Names of datasets may contain letters, digits, and `_ . : -`; references contain `/` and `@` as
//! well. In the name of an image
//!
//! | stands | for |
//! |---|---|
//! | letters, digits, `.` `-` `:` | themselves |
//! | `__` | `/` |
//! | `_` and two hexadecimal digits | the byte of that value: `_5f` is `_`, `_40` is `@` |
//! | `_h` and 32 hex digits, at the end | the rest of a long reference: half of its SHA-256 |
//! | `_g` and a number, at the end | nothing: tells images apart that had the same reference |
//!
//! This is reversible except for `_h`; then the facts contain the reference. `docker.io/library/`
//! is left out.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::error::Error;
use super::reference::Reference;
use crate::error::Io;
use crate::text::hex;

/// Longest name, bytes. ZFS allows 255 for the whole name with all parents and a snapshot; a
/// directory allows 255 for the file in it.
pub(super) const MAX_NAME: usize = 128;
/// Prefix of the names of incomplete images. No reference has such a name.
const WORK: &str = "_w";
/// Hexadecimal digits of a hash in a name.
const HASH: usize = 32;

/// A name that is a single component of a path and of a dataset's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Error::Name`] if it is empty, too long, begins with `.` or `-`, or contains characters
    /// that ZFS does not allow.
    pub fn new(text: &str) -> Result<Self, Error> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
        let wrong = |reason| {
            Err(Error::Name {
                name: text.to_owned(),
                reason,
            })
        };
        match text.as_bytes() {
            [] => wrong("it is empty"),
            [b'.' | b'-', ..] => wrong("it begins with a dot or a hyphen"),
            bytes if bytes.len() > MAX_NAME => wrong("it is longer than 128 characters"),
            bytes if !bytes.iter().all(|&b| legal(b)) => {
                wrong("only letters, digits, and _ . : - are allowed")
            }
            _ => Ok(Self(text.to_owned())),
        }
    }

    /// The name for a reference. `generation` counts its names, from 1.
    pub fn of(reference: &Reference, generation: u32) -> Self {
        let suffix = if generation > 1 {
            format!("_g{generation}")
        } else {
            String::new()
        };
        let mut name = escape(reference.familiar());
        let room = MAX_NAME - suffix.len();
        if name.len() > room {
            let hash = hex(&Sha256::digest(reference.as_str())[..HASH / 2]);
            name.truncate(room - HASH - 2);
            // Do not cut an escape.
            while name.rfind('_').is_some_and(|at| name.len() - at < 3) {
                name.pop();
            }
            name = format!("{name}_h{hash}");
        }
        Self(name + &suffix)
    }

    /// The reference that the name stands for, if it contains it.
    pub fn reference(&self) -> Option<Reference> {
        let digits = |b: &[u8]| !b.is_empty() && b.iter().all(u8::is_ascii_digit);
        let name = match self.0.rsplit_once("_g") {
            Some((name, generation)) if digits(generation.as_bytes()) => name,
            _ => &self.0,
        };
        let reference: Reference = unescape(name)?.parse().ok()?;
        // A name that is escaped in another way may mean anything.
        (escape(reference.familiar()) == name).then_some(reference)
    }

    /// A new, unique name for an incomplete image.
    ///
    /// # Errors
    /// [`Error::Io`] if random numbers are not available.
    pub fn work() -> Result<Self, Error> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(
            Io::at("reading random numbers from", "/dev/urandom".as_ref()),
        )?;
        Ok(Self(
            random
                .iter()
                .fold(WORK.to_owned(), |name, b| format!("{name}{b:02x}")),
        ))
    }

    /// Whether it is a name that [`Name::work`] gives.
    pub fn is_work(&self) -> bool {
        self.0.starts_with(WORK)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for Name {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

fn escape(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'/' => name.push_str("__"),
            b'.' | b'-' | b':' => name.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => name.push(byte.into()),
            _ => name.push_str(&format!("_{byte:02x}")),
        }
    }
    name
}

fn unescape(name: &str) -> Option<String> {
    let (mut text, mut rest) = (Vec::with_capacity(name.len()), name.as_bytes());
    loop {
        match rest {
            [] => return String::from_utf8(text).ok(),
            [b'_', b'_', more @ ..] => {
                text.push(b'/');
                rest = more;
            }
            [b'_', digits @ ..] => {
                let (digits, more) = digits.split_at_checked(2)?;
                text.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = more;
            }
            [byte, more @ ..] => {
                text.push(*byte);
                rest = more;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_have_names() {
        let digest = "a".repeat(64);
        let cases = [
            ("nginx:1.27", "nginx:1.27".to_owned()),
            ("nginx", "nginx:latest".to_owned()),
            (
                "ghcr.io/team/my_app:v1_RC",
                "ghcr.io__team__my_5fapp:v1_5fRC".to_owned(),
            ),
            ("registry:5000/a", "registry:5000__a:latest".to_owned()),
            (
                &format!("nginx@sha256:{digest}"),
                format!("nginx_40sha256:{digest}"),
            ),
        ];
        for (text, name) in cases {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(Name::of(&reference, 1).as_str(), name);
            assert_eq!(Name::of(&reference, 12).as_str(), format!("{name}_g12"));
            assert_eq!(
                Name::of(&reference, 12).reference(),
                Some(reference.clone())
            );
            assert_eq!(Name::new(&name).unwrap().reference(), Some(reference));
        }
    }

    #[test]
    fn long_references_end_in_a_hash() {
        let long = |tag: &str| {
            format!(
                "registry.example.org/{}:{tag}",
                "team_a/".repeat(20) + "app"
            )
            .parse::<Reference>()
            .unwrap()
        };
        let (a, b) = (Name::of(&long("1"), 1), Name::of(&long("2"), 1));
        assert_ne!(a, b);
        for name in [&a, &b, &Name::of(&long("1"), 7)] {
            assert_eq!(Name::new(name.as_str()).unwrap(), *name);
            assert_eq!(name.reference(), None);
        }
    }

    #[test]
    fn names_lead_nowhere_else() {
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "-rf",
            "a/b",
            "a@b",
            "a b",
            "ä",
            "a\0b",
            &"x".repeat(129),
        ] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
        assert!(
            Name::work().unwrap().is_work() && Name::new(Name::work().unwrap().as_str()).is_ok()
        );
        assert_eq!(Name::work().unwrap().reference(), None);
    }

    const REFERENCES: &str = concat!(
        "([a-z0-9]{1,8}(\\.[a-z]{2,3}|:[0-9]{2,4})/)?",
        "([a-z0-9]{1,5}([._]|__|-{1,3})?[a-z0-9]{1,5}/){0,3}[a-z0-9]{1,9}",
        "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,12})?(@sha256:[0-9a-f]{64})?"
    );

    proptest! {
        #[test]
        fn every_reference_comes_back(text in REFERENCES, generation in 1u32..50) {
            let reference: Reference = text.parse().unwrap();
            let name = Name::of(&reference, generation);
            prop_assert_eq!(&Name::new(name.as_str()).unwrap(), &name);
            prop_assert!(!name.is_work());
            if !name.as_str().contains("_h") {
                prop_assert_eq!(name.reference(), Some(reference));
            }
        }

        #[test]
        fn any_name_can_be_asked(text in "[A-Za-z0-9_.:-]{1,40}") {
            if let Ok(name) = Name::new(&text) {
                let _ = name.reference();
            }
        }
    }
}
