//! Resolves the user that an image names in the image's own passwd and group.

use super::error::{Error, Result};

/// Largest number of a user or group, as in runtimes: 2³¹ − 1.
const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Further groups of the user; none if a group was named.
    pub groups: Vec<u32>,
    /// Home directory; empty if it is unknown.
    pub home: String,
}

/// Resolves `[USER][:GROUP]`, names or numbers, against the content of /etc/passwd and /etc/group.
/// A number needs no entry; a name does.
///
/// # Errors
/// [`Error::Unfit`] for a name that does not exist, and for a number out of range.
pub fn resolve(text: &str, passwd: &[u8], group: &[u8]) -> Result<User> {
    let (name, group_name) = text.split_once(':').unwrap_or((text, ""));
    let number = number(name)?;
    let wanted = if name.is_empty() { Some(0) } else { number };
    let entry = passwd
        .split(|&b| b == b'\n')
        .filter_map(Passwd::parse)
        .find(|p| match wanted {
            Some(uid) => p.uid == uid,
            None => p.name == name.as_bytes(),
        });
    let uid = match (wanted, &entry) {
        (_, Some(entry)) => entry.uid,
        (Some(uid), None) => uid,
        (None, None) => return Err(missing("user", name, "/etc/passwd")),
    };
    let groups = || group.split(|&b| b == b'\n').filter_map(Group::parse);
    let mut user = User {
        uid,
        gid: entry.as_ref().map_or(0, |e| e.gid),
        groups: Vec::new(),
        home: entry.as_ref().map_or("", |e| e.home).to_owned(),
    };
    if !group_name.is_empty() {
        user.gid = match self::number(group_name)? {
            Some(gid) => gid,
            None => {
                groups()
                    .find(|g| g.name == group_name.as_bytes())
                    .ok_or_else(|| missing("group", group_name, "/etc/group"))?
                    .gid
            }
        };
    } else if let Some(entry) = entry {
        user.groups = groups()
            .filter(|g| g.members().any(|m| m == entry.name))
            .map(|g| g.gid)
            .collect();
    }
    Ok(user)
}

/// Parses a number; `None` if the text is not one.
fn number(text: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let number = text.parse().ok().filter(|n| *n <= MAX_ID);
    number
        .map(Some)
        .ok_or_else(|| Error::unfit(format!("{text} is not a valid number of a user or group")))
}

fn missing(what: &str, name: &str, file: &str) -> Error {
    Error::Unfit {
        what: format!("the image has no {what} {name:?} in its {file}"),
        hint: Some("give numbers, which need no entry there: `--user UID[:GID]`".into()),
    }
}

/// A line of passwd.
struct Passwd<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    /// Empty when it is not UTF-8.
    home: &'a str,
}

impl<'a> Passwd<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&b| b == b':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let _comment = fields.next();
        let home = fields
            .next()
            .and_then(|home| std::str::from_utf8(home).ok())
            .unwrap_or_default();
        Some(Self {
            name,
            uid,
            gid,
            home,
        })
    }
}

/// A line of group.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    list: &'a [u8],
}

impl<'a> Group<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&b| b == b':');
        let (name, _password) = (fields.next()?, fields.next()?);
        Some(Self {
            name,
            gid: id(fields.next()?)?,
            list: fields.next().unwrap_or_default(),
        })
    }

    fn members(&self) -> impl Iterator<Item = &'a [u8]> {
        self.list.split(|&b| b == b',').map(<[u8]>::trim_ascii)
    }
}

fn id(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field)
        .ok()?
        .trim()
        .parse()
        .ok()
        .filter(|n| *n <= MAX_ID)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken:x\nbig:x:4294967295:1::/:\n\
        app:x:1000:1001:App:/home/app:/bin/sh\nraw:x:7:8::/h\xff:\nbare:x:9:9";
    const GROUP: &[u8] =
        b"root:x:0:\napp:x:1001:\nextra:x:2000:app\nweb:x:33:other, app\nnone:x:bad:app\n";

    fn found(text: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve(text, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn names_and_numbers() {
        let app = (1000, 1001, vec![2000, 33], "/home/app".to_owned());
        assert_eq!(found("app"), app);
        assert_eq!(found("1000"), app);
        assert_eq!(found("app:"), app);
        assert_eq!(found(""), (0, 0, vec![], "/root".to_owned()));
        assert_eq!(found("app:web"), (1000, 33, vec![], "/home/app".to_owned()));
        assert_eq!(found("1000:77"), (1000, 77, vec![], "/home/app".to_owned()));
        assert_eq!(found("4242"), (4242, 0, vec![], String::new()));
        assert_eq!(found("4242:4343"), (4242, 4343, vec![], String::new()));
        assert_eq!(found(":web"), (0, 33, vec![], "/root".to_owned()));
        assert_eq!(found("raw"), (7, 8, vec![], String::new()));
        assert_eq!(found("bare"), (9, 9, vec![], String::new()));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for text in [
            "nobody",
            "app:nobody",
            "big",
            "broken",
            "2147483648",
            "99999999999999999999",
            "1:2147483648",
        ] {
            assert!(resolve(text, PASSWD, GROUP).is_err(), "{text}");
        }
        assert!(resolve("root", b"", b"").is_err());
        assert!(resolve("0", b"", b"").is_ok());
    }
}
