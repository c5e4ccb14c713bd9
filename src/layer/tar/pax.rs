//! PAX extended headers: records `LEN KEY=VALUE\n`.

use bfc::rootfs::Xattr;

use super::acl;
use super::error::Reason;
use super::header::decimal;
use super::sparse::PaxSparse;
use super::xattrs;

/// Our own record: the type of an entry that tar has no type for. `socket` is the only value.
pub(super) const TYPE: &[u8] = b"LXCRIFS.type";
const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";
/// Access control lists as text, with the attribute for each.
const ACLS: [(&[u8], &[u8]); 2] = [
    (b"SCHILY.acl.access", b"system.posix_acl_access"),
    (b"SCHILY.acl.default", b"system.posix_acl_default"),
];
/// The kernel's limit for the value of an extended attribute (XATTR_SIZE_MAX).
const MAX_XATTR_VALUE: usize = 1 << 16;
/// Longest name of one (XATTR_NAME_MAX).
const MAX_XATTR_NAME: usize = 255;

/// The records of one or several PAX headers. Later records replace earlier ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    /// `path`.
    pub path: Option<Vec<u8>>,
    /// `linkpath`.
    pub linkpath: Option<Vec<u8>>,
    /// `size`.
    pub size: Option<u64>,
    /// `uid`.
    pub uid: Option<u64>,
    /// `gid`.
    pub gid: Option<u64>,
    /// `mtime`: seconds, nanoseconds past them.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
    /// The permissions of the owning group, where a list of which only that can be used gives them.
    pub group: Option<u32>,
    /// Names of attributes that a SCHILY record gave: it is exact, libarchive's encoded copy of it
    /// is passed over.
    schily: Vec<Vec<u8>>,
    /// `GNU.sparse.*`.
    pub sparse: PaxSparse,
    /// Whether [`TYPE`] says `socket`.
    pub socket: bool,
}

impl Pax {
    /// Takes in the records of one header.
    pub(super) fn read(&mut self, mut data: &[u8]) -> Result<(), Reason> {
        while !data.is_empty() {
            // Some writers pad with zeros and count them.
            if data.iter().all(|&b| b == 0) {
                break;
            }
            let (key, value, rest) = record(data).ok_or(Reason::PaxRecord)?;
            self.apply(key, value)?;
            data = rest;
        }
        Ok(())
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), Reason> {
        let bad = || Reason::PaxValue(String::from_utf8_lossy(key).into_owned());
        match key {
            // An empty value cancels an earlier record.
            b"path" => self.path = text(value, "a path")?,
            b"linkpath" => self.linkpath = text(value, "a link's target")?,
            b"size" | b"uid" | b"gid" => {
                let n = if value.is_empty() {
                    None
                } else {
                    Some(decimal(value).ok_or_else(bad)?)
                };
                match key {
                    b"size" => self.size = n,
                    b"uid" => self.uid = n,
                    _ => self.gid = n,
                }
            }
            b"mtime" => {
                self.mtime = if value.is_empty() {
                    None
                } else {
                    Some(time(value).ok_or_else(bad)?)
                }
            }
            TYPE => {
                if value != b"socket" {
                    return Err(bad());
                }
                self.socket = true;
            }
            _ => {
                if let Some(name) = key.strip_prefix(SCHILY_XATTR) {
                    let name = decode_percent(name, true);
                    self.schily.push(name.clone());
                    self.xattr(name, value.to_vec(), bad)?;
                } else if let Some(name) = key.strip_prefix(LIBARCHIVE_XATTR) {
                    let name = decode_percent(name, false);
                    if !self.schily.contains(&name) {
                        self.xattr(name, base64(value).ok_or_else(bad)?, bad)?;
                    }
                } else if let Some((_, name)) = ACLS.iter().find(|(acl, _)| *acl == key) {
                    self.acl(name, value, bad)?;
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.record(key, value)?;
                }
            }
        }
        Ok(())
    }

    /// An access control list; the attribute itself, which some writers add, is exact.
    fn acl(&mut self, name: &[u8], text: &[u8], bad: impl Fn() -> Reason) -> Result<(), Reason> {
        if text.is_empty() || self.schily.iter().any(|known| known == name) && self.has_list(name) {
            return Ok(());
        }
        match acl::parse(text) {
            Ok(value) => self.xattr(name.to_vec(), value, bad),
            Err(acl::Bad::Text) => Err(bad()),
            Err(acl::Bad::Name) => {
                if name == ACLS[0].1 {
                    self.group = acl::group(text);
                }
                tracing::warn!(
                    "an access control list names users or groups without their numbers, and is \
                     left out; `tar --numeric-owner` writes numbers"
                );
                Ok(())
            }
        }
    }

    /// Whether there is a valid list already.
    fn has_list(&self, name: &[u8]) -> bool {
        let mut known = self.xattrs.iter().filter(|xattr| xattr.name == name);
        known.any(|xattr| acl::is_valid(&xattr.value))
    }

    fn xattr(
        &mut self,
        name: Vec<u8>,
        value: Vec<u8>,
        bad: impl Fn() -> Reason,
    ) -> Result<(), Reason> {
        if name.is_empty() || name.contains(&0) {
            return Err(bad());
        }
        if name.len() > MAX_XATTR_NAME {
            return Err(Reason::TooLong(
                "the name of an extended attribute",
                MAX_XATTR_NAME,
            ));
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err(Reason::TooLong("an extended attribute", MAX_XATTR_VALUE));
        }
        if xattrs::is_list(&name) && !acl::is_valid(&value) && self.has_list(&name) {
            return Ok(());
        }
        match self.xattrs.iter_mut().find(|x| x.name == name) {
            Some(known) => known.value = value,
            None => self.xattrs.push(Xattr { name, value }),
        }
        Ok(())
    }
}

/// The first record, key and value, and what follows it.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = data.iter().take(8).position(|&b| b == b' ')?;
    let len = usize::try_from(decimal(&data[..blank])?).ok()?;
    if len > data.len() || len < blank + 3 || data[len - 1] != b'\n' {
        return None;
    }
    let body = &data[blank + 1..len - 1];
    let equals = body.iter().position(|&b| b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &data[len..]))
}

fn text(value: &[u8], what: &'static str) -> Result<Option<Vec<u8>>, Reason> {
    if value.contains(&0) {
        return Err(Reason::Nul(what));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Seconds with a sign and a fraction, rounded down to nanoseconds as in GNU tar.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = value.iter().position(|&b| b == b'.').unwrap_or(value.len());
    let seconds = i64::try_from(decimal(&value[..dot])?).ok()?;
    let fraction = value.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |i: usize| fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
    let mut ns = (0..9).fold(0, |ns, i| ns * 10 + digit(i));
    if !negative {
        return Some((seconds, ns));
    }
    if fraction.iter().skip(9).any(|&b| b != b'0') {
        ns += 1;
    }
    match ns {
        0 => Some((-seconds, 0)),
        1_000_000_000 => Some(((-seconds).checked_sub(1)?, 0)),
        _ => Some(((-seconds).checked_sub(1)?, 1_000_000_000 - ns)),
    }
}

/// Decodes `%XX`; with `gnu`, only the two that GNU tar writes (`%3D` for the `=` that would end
/// the key, and `%25`).
fn decode_percent(name: &[u8], gnu: bool) -> Vec<u8> {
    let hex = |b: u8| char::from(b).to_digit(16);
    let mut out = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        let code = match name[at..] {
            [b'%', high, low, ..] => hex(high)
                .zip(hex(low))
                .and_then(|(h, l)| u8::try_from(h * 16 + l).ok()),
            _ => None,
        };
        match code {
            Some(b) if !gnu || b == b'=' || b == b'%' => {
                out.push(b);
                at += 3;
            }
            _ => {
                out.push(name[at]);
                at += 1;
            }
        }
    }
    out
}

/// Base64 as libarchive writes it: no padding needed, line ends passed over.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut n) = (0_u32, 0);
    for &b in text {
        let six = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' | b'\n' => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        n += 6;
        if n >= 8 {
            n -= 8;
            #[allow(clippy::cast_possible_truncation)] // the next eight bits
            out.push((bits >> n) as u8);
        }
    }
    Some(out)
}

/// Appends a record.
pub(super) fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len = body + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Appends the record of an extended attribute.
pub(super) fn push_xattr(out: &mut Vec<u8>, xattr: &Xattr) {
    let mut key = SCHILY_XATTR.to_vec();
    for &b in &xattr.name {
        match b {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            _ => key.push(b),
        }
    }
    push_record(out, &key, &xattr.value);
}

/// A time as a record has it.
pub(super) fn format_time(seconds: i64, ns: u32) -> String {
    let (sign, whole, ns) = match (seconds < 0, ns) {
        (true, 1..) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - ns),
        (true, _) => ("-", seconds.unsigned_abs(), 0),
        (false, _) => ("", seconds.unsigned_abs(), ns),
    };
    if ns == 0 {
        return format!("{sign}{whole}");
    }
    format!("{sign}{whole}.{ns:09}")
        .trim_end_matches('0')
        .to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.", Some((12, 0))),
            ("12.1234567899", Some((12, 123_456_789))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.000000001", Some((-1, 999_999_999))),
            ("-0.0000000001", Some((-1, 999_999_999))),
            ("-0.9999999999", Some((-1, 0))),
            ("", None),
            ("-", None),
            ("+1", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn times_go_round() {
        for t in [
            (0, 0),
            (5, 1),
            (-1, 0),
            (-1, 999_999_999),
            (-1, 1),
            (-7, 500_000_000),
            (i64::MAX, 5),
        ] {
            assert_eq!(time(format_time(t.0, t.1).as_bytes()), Some(t));
        }
    }

    #[test]
    fn records_go_round() {
        for len in 0..2000 {
            let (key, value) = (b"path".as_slice(), vec![b'x'; len]);
            let mut out = Vec::new();
            push_record(&mut out, key, &value);
            assert_eq!(record(&out), Some((key, value.as_slice(), b"".as_slice())));
        }
    }

    #[test]
    fn malformed_records() {
        for data in [
            "",
            "5 a=\n x",
            "9999999999999999999999 a=b\n",
            "6 a=b\nx",
            "0 a=b\n",
            "3 a=b\n",
            "6 aab\n",
            "6a=b\n",
            "6 a=b ",
            "-6 a=b\n",
        ] {
            let mut pax = Pax::default();
            assert_eq!(pax.read(data.as_bytes()).is_ok(), data.is_empty(), "{data}");
        }
        assert_eq!(
            Pax::default().read(b"9 path=\0\n").unwrap_err(),
            Reason::Nul("a path")
        );
    }

    #[test]
    fn attributes() {
        let mut out = Vec::new();
        let odd = Xattr {
            name: b"user.a=b%3D".to_vec(),
            value: b"x\ny=\0".to_vec(),
        };
        push_xattr(&mut out, &odd);
        push_record(&mut out, b"LIBARCHIVE.xattr.user.a%3Db%253D", b"AAAA");
        push_record(&mut out, b"LIBARCHIVE.xattr.user.%e9", b"AAH/");
        push_record(&mut out, b"SCHILY.xattr.user.empty", b"");
        let mut pax = Pax::default();
        pax.read(&out).unwrap();
        let expected = [
            odd,
            Xattr {
                name: b"user.\xe9".to_vec(),
                value: vec![0, 1, 255],
            },
            Xattr {
                name: b"user.empty".to_vec(),
                value: vec![],
            },
        ];
        assert_eq!(pax.xattrs, expected);
    }
}
