//! Access control lists in tars: the text of `SCHILY.acl.*` records becomes the value of the
//! extended attribute that the kernel reads (acl(5), linux/posix_acl_xattr.h).

/// Version of the attribute's value.
const VERSION: u32 = 2;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;
/// Most entries of a list that is read.
const MAX_ENTRIES: usize = 4096;
/// Most entries of a list that can be used: the kernel reads lists from FUSE into a page.
const MAX_USABLE: usize = (4096 - size_of::<u32>()) / ENTRY;
/// Bytes of an entry in the attribute.
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What is wrong with a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// It is no list.
    Text,
    /// It names a user or group whose number it does not give.
    Name,
}

/// The attribute's value for a list: entries `TYPE:[NAME]:PERMISSIONS[:ID]`, separated by commas or
/// line ends. A user or group without `ID` has its number as `NAME`.
pub(super) fn parse(text: &[u8]) -> Result<Vec<u8>, Bad> {
    let text = std::str::from_utf8(text).map_err(|_| Bad::Text)?;
    let mut entries = Vec::new();
    for line in text.split([',', '\n']) {
        // `#effective:r--` may follow an entry.
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        if entries.len() == MAX_ENTRIES {
            return Err(Bad::Text);
        }
        entries.push(one(entry)?);
    }
    if entries.is_empty() {
        return Err(Bad::Text);
    }
    // The order that the kernel demands.
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Ok(value)
}

/// Whether the kernel takes it as the attribute's value (`posix_acl_valid` in fs/posix_acl.c): each
/// kind of entry in its place, and a mask where it is needed.
pub(super) fn is_valid(value: &[u8]) -> bool {
    let Some((version, entries)) = value.split_first_chunk() else {
        return false;
    };
    let (entries, []) = entries.as_chunks::<ENTRY>() else {
        return false;
    };
    if entries.len() > MAX_USABLE {
        return false;
    }
    // Which entry may follow: the last one, and whether one named a user or group.
    let (mut last, mut needs_mask) = (0, false);
    for (tag, permissions, id) in entries.iter().map(entry) {
        let follows = match tag {
            USER_OBJ => last == 0,
            USER => matches!(last, USER_OBJ | USER),
            GROUP_OBJ => matches!(last, USER_OBJ | USER),
            GROUP => matches!(last, GROUP_OBJ | GROUP),
            MASK => matches!(last, GROUP_OBJ | GROUP),
            OTHER => last == MASK || (!needs_mask && matches!(last, GROUP_OBJ | GROUP)),
            _ => false,
        };
        let named = matches!(tag, USER | GROUP);
        if !follows || permissions > 7 || (named && id == NO_ID) {
            return false;
        }
        needs_mask |= named;
        last = tag;
    }
    // None at all is no list.
    *version == VERSION.to_le_bytes() && (last == OTHER || entries.is_empty())
}

/// Tag, permissions and id.
fn entry(&[t0, t1, p0, p1, i0, i1, i2, i3]: &[u8; ENTRY]) -> (u16, u16, u32) {
    (
        u16::from_le_bytes([t0, t1]),
        u16::from_le_bytes([p0, p1]),
        u32::from_le_bytes([i0, i1, i2, i3]),
    )
}

/// The permissions that the first entry of this kind gives, in an attribute's value.
fn of(value: &[u8], wanted: u16) -> Option<u32> {
    let entries = value.get(size_of::<u32>()..).unwrap_or_default();
    let mut entries = entries.as_chunks::<ENTRY>().0.iter().map(entry);
    let found = entries.find(|(tag, ..)| *tag == wanted);
    found.map(|(_, permissions, _)| u32::from(permissions) & 7)
}

/// The permissions of the owning group in an attribute's value, which may be no valid list.
pub(super) fn group_of(value: &[u8]) -> u32 {
    of(value, GROUP_OBJ).unwrap_or(0)
}

/// What a list says of a file's mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Nothing: it has no entries, and is no list.
    None,
    /// These permissions, which say all of the list.
    Whole(u32),
    /// These permissions, and more.
    Part(u32),
}

/// What a valid list says of the mode, as `posix_acl_equiv_mode` in fs/posix_acl.c finds it.
pub(super) fn mode(value: &[u8]) -> Mode {
    let Some(group) = of(value, GROUP_OBJ) else {
        return Mode::None;
    };
    let bits = |tag| of(value, tag).unwrap_or(0);
    let of_all = |group| bits(USER_OBJ) << 6 | group << 3 | bits(OTHER);
    match of(value, MASK) {
        None => Mode::Whole(of_all(group)),
        Some(mask) => Mode::Part(of_all(mask)),
    }
}

/// The permissions of the owning group that a list gives, if it is one. Where there is a mask, a
/// file's mode has the mask in their place.
pub(super) fn group(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    let entries = text.split([',', '\n']).map(|line| one(line.trim()));
    let mut groups = entries.flatten().filter(|(tag, ..)| *tag == GROUP_OBJ);
    groups.next().map(|(.., permissions)| permissions.into())
}

/// Tag, id and permissions of an entry.
fn one(entry: &str) -> Result<(u16, u32, u16), Bad> {
    let mut fields = entry.split(':');
    let (Some(kind), Some(mut name)) = (fields.next(), fields.next()) else {
        return Err(Bad::Text);
    };
    let mut bits = fields.next();
    if bits.is_none() && matches!(kind, "mask" | "m" | "other" | "o") {
        // star writes these without the empty name.
        (name, bits) = ("", Some(name));
    }
    let bits = bits.ok_or(Bad::Text)?;
    let id = fields.next();
    let mut permissions = 0;
    for bit in bits.chars() {
        permissions |= match bit {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return Err(Bad::Text),
        };
    }
    let id = match (name, id) {
        ("", _) => None,
        (_, Some(id)) => Some(id.parse().map_err(|_| Bad::Text)?),
        (name, None) => Some(name.parse().map_err(|_| Bad::Name)?),
    };
    let (tag, id) = match (kind, id) {
        ("user" | "u", None) => (USER_OBJ, NO_ID),
        ("user" | "u", Some(id)) => (USER, id),
        ("group" | "g", None) => (GROUP_OBJ, NO_ID),
        ("group" | "g", Some(id)) => (GROUP, id),
        ("mask" | "m", None) => (MASK, NO_ID),
        ("other" | "o", None) => (OTHER, NO_ID),
        _ => return Err(Bad::Text),
    };
    Ok((tag, id, permissions))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entries(text: &str) -> Vec<(u16, u16, u32)> {
        let value = parse(text.as_bytes()).unwrap();
        assert_eq!(value[..4], 2_u32.to_le_bytes());
        let entry = |b: &[u8]| {
            (
                u16::from_le_bytes([b[0], b[1]]),
                u16::from_le_bytes([b[2], b[3]]),
                u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
            )
        };
        value[4..].chunks(8).map(entry).collect()
    }

    #[test]
    fn what_the_kernel_refuses_is_not_valid() {
        for text in [
            "u::rw-,g::r--,o::r--",
            "u::rw-,g::r--,m::r--,o::r--",
            "u::rw-,u:1:r--,g::r--,g:2:r--,g:3:r--,m::r--,o::---",
        ] {
            assert!(is_valid(&parse(text.as_bytes()).unwrap()), "{text}");
        }
        for text in [
            "u::rw-",
            "u::rw-,g::r--",
            "u::rw-,o::r--",
            "g::r--,o::r--",
            "u::rw-,u::rw-,g::r--,o::r--",
            "u::rw-,g::r--,g::r--,o::r--",
            "u::rw-,g::r--,o::r--,o::r--",
            "u::rw-,u:1:r--,g::r--,o::r--",
            "u::rw-,g::r--,g:1:r--,o::r--",
            "u::rw-,u:4294967295:r--,g::r--,m::r--,o::r--",
        ] {
            assert!(!is_valid(&parse(text.as_bytes()).unwrap()), "{text}");
        }
        let good = parse(b"u::rw-,g::r--,o::r--").unwrap();
        assert!(is_valid(&good[..4]) && !is_valid(&[]));
        for cut in 5..good.len() {
            assert!(!is_valid(&good[..cut]), "{cut}");
        }
        for (at, byte) in [(0, 3), (4, 3), (6, 8)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(!is_valid(&bad), "{at}");
        }
    }

    #[test]
    fn all_forms_of_a_list_become_the_same_value() {
        let expected = [
            (USER_OBJ, 6, NO_ID),
            (USER, 7, 10),
            (USER, 4, 1234),
            (GROUP_OBJ, 4, NO_ID),
            (GROUP, 5, 7),
            (MASK, 7, NO_ID),
            (OTHER, 4, NO_ID),
        ];
        for text in [
            // GNU tar
            "user::rw-\nuser:1234:r--\nuser:10:rwx\ngroup::r--\ngroup:7:r-x\nmask::rwx\n\
             other::r--\n",
            // star and libarchive
            "user::rw-,user:joe:r--:1234,user:ann:rwx:10,group::r--,group:g:r-x:7,mask::rwx,\
             other::r--",
            "u::rw-,u:1234:r--,u:10:rwx,g::r--,g:7:r-x,mask:rwx,other:r--",
            // getfacl
            "user::rw-\nuser:1234:r--\t#effective:r--\nuser:10:rwx\ngroup::r--\ngroup:7:r-x\n\
             mask::rwx\nother::r--",
        ] {
            assert_eq!(entries(text), expected, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "user",
            "user:",
            "user::rwz",
            "mask:1:rwx",
            "user:1:rwx:x",
            "\u{e9}",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(Bad::Text), "{text:?}");
        }
        assert_eq!(parse(b"user:joe:rwx"), Err(Bad::Name));
        assert_eq!(
            group(b"user::rw-\nuser:joe:rw-\ngroup::-w-\nmask::rw-"),
            Some(2)
        );
        assert_eq!(group(b"user:joe:rwx"), None);
        let many = "user:1:r--,".repeat(MAX_ENTRIES + 1);
        assert_eq!(parse(many.as_bytes()), Err(Bad::Text));
    }
}
