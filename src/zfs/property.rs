//! Properties of datasets and snapshots, as `zfs get -Hp` prints them.

use std::collections::BTreeMap;

use super::error::{Error, Result};

/// ZFS's limit for the value of a user property, in bytes.
const LONGEST_VALUE: usize = 8191;
/// The columns to request, in the order in which [`parse`] reads them.
pub(super) const COLUMNS: &str = "name,property,value,source";

/// A property of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Its value; sizes in bytes, times in seconds of the epoch.
    pub value: String,
    /// Where it comes from.
    pub source: PropertySource,
}

/// Where the value of a property comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertySource {
    /// It is a fact, not a setting.
    Fact,
    /// It is not set.
    Default,
    /// It was set on this dataset.
    Local,
    /// It was set on the dataset that is named here.
    Inherited(String),
    /// It came with `zfs receive`.
    Received,
    /// It is that of the mount, until it is unmounted.
    Temporary,
}

/// The requested properties of one dataset or snapshot that are set, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, Property>);

impl Properties {
    /// The value of a property; `None` when it is not set, or does not apply.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|p| p.value.as_str())
    }

    /// The value of a property, and where it comes from.
    pub fn property(&self, name: &str) -> Option<&Property> {
        self.0.get(name)
    }

    /// A number: bytes, or seconds of the epoch.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// Names and properties, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Property)> {
        self.0
            .iter()
            .map(|(name, property)| (name.as_str(), property))
    }
}

#[cfg(test)]
impl FromIterator<(&'static str, String)> for Properties {
    /// Properties that were set on the dataset.
    fn from_iter<I: IntoIterator<Item = (&'static str, String)>>(set: I) -> Self {
        let source = PropertySource::Local;
        let local = |(name, value): (&str, _)| {
            let source = source.clone();
            (name.to_owned(), Property { value, source })
        };
        Self(set.into_iter().map(local).collect())
    }
}

/// Parses the output of `zfs get -Hp -o name,property,value,source`: the properties of each
/// dataset, in the order printed.
///
/// Values may contain tabs. A value with a line end could look like a property of another dataset;
/// this is detected, because each property of a dataset is printed only once.
pub(super) fn parse(output: &str) -> Result<Vec<(String, Properties)>> {
    let malformed = |line: &str| Error::Output {
        command: "zfs get",
        output: line.to_owned(),
    };
    let mut all: Vec<(String, BTreeMap<String, Option<Property>>)> = Vec::new();
    for line in output.lines() {
        let mut first = line.splitn(3, '\t');
        let (Some(name), Some(property), Some(rest)) = (first.next(), first.next(), first.next())
        else {
            return Err(malformed(line));
        };
        let (value, source) = rest.rsplit_once('\t').ok_or_else(|| malformed(line))?;
        let source = match source {
            "-" => PropertySource::Fact,
            "default" => PropertySource::Default,
            "local" => PropertySource::Local,
            "received" => PropertySource::Received,
            "temporary" => PropertySource::Temporary,
            other => PropertySource::Inherited(
                other
                    .strip_prefix("inherited from ")
                    .ok_or_else(|| malformed(line))?
                    .to_owned(),
            ),
        };
        if all.last().is_none_or(|(last, _)| last != name) {
            if all.iter().any(|(other, _)| other == name) {
                return Err(malformed(line));
            }
            all.push((name.to_owned(), BTreeMap::new()));
        }
        let Some((_, properties)) = all.last_mut() else {
            return Err(malformed(line));
        };
        let set = (value != "-" || source != PropertySource::Fact).then(|| Property {
            value: value.to_owned(),
            source,
        });
        if properties.insert(property.to_owned(), set).is_some() {
            return Err(malformed(line));
        }
    }
    let set = |properties: BTreeMap<String, Option<Property>>| {
        properties
            .into_iter()
            .filter_map(|(name, p)| Some((name, p?)))
            .collect()
    };
    Ok(all
        .into_iter()
        .map(|(name, properties)| (name, Properties(set(properties))))
        .collect())
}

/// `-o name=value` for each property.
pub(super) fn options(properties: &[(&str, &str)]) -> Result<Vec<String>> {
    Ok(assignments(properties)?
        .into_iter()
        .flat_map(|assignment| ["-o".to_owned(), assignment])
        .collect())
}

/// `name=value` for each property.
pub(super) fn assignments(properties: &[(&str, &str)]) -> Result<Vec<String>> {
    properties
        .iter()
        .map(|(name, value)| {
            let error = |why| Error::Property {
                name: (*name).to_owned(),
                why,
            };
            check_name(name)?;
            if value.chars().any(char::is_control) {
                return Err(error("its value has control characters in it"));
            }
            if value.len() > LONGEST_VALUE {
                return Err(error("its value is longer than 8191 bytes"));
            }
            Ok(format!("{name}={value}"))
        })
        .collect()
}

/// The names of properties as one argument.
pub(super) fn names(names: &[&str]) -> Result<String> {
    names.iter().try_for_each(|name| check_name(name))?;
    Ok(names.join(","))
}

fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.:@".contains(c);
    if name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() < 256
        && name.chars().all(fits)
    {
        return Ok(());
    }
    Err(Error::Property {
        name: name.to_owned(),
        why: "a property's name is lower-case letters, digits and `-_.:`",
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OUTPUT: &str = "tank/a\tused\t24576\t-\n\
                          tank/a\tmountpoint\t/tank/a\tdefault\n\
                          tank/a\txattr\ton\tinherited from tank\n\
                          tank/a\torigin\t-\t-\n\
                          tank/a\torg.lxcri-fs:ref\ta b\tc\tlocal\n\
                          tank/b c\tused\t0\t-\n\
                          tank/b c\torg.lxcri-fs:ref\t-\tlocal\n";

    #[test]
    fn what_zfs_prints() {
        let all = parse(OUTPUT).unwrap();
        assert_eq!(
            all.iter()
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>(),
            ["tank/a", "tank/b c"]
        );
        let (a, b) = (&all[0].1, &all[1].1);
        assert_eq!(a.number("used"), Some(24576));
        assert_eq!(a.get("mountpoint"), Some("/tank/a"));
        assert_eq!(
            a.property("xattr").unwrap().source,
            PropertySource::Inherited("tank".into())
        );
        assert_eq!(a.get("origin"), None);
        assert_eq!(a.get("org.lxcri-fs:ref"), Some("a b\tc"));
        assert_eq!(b.get("org.lxcri-fs:ref"), Some("-"));
        assert_eq!(a.iter().count(), 4);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn a_value_cannot_pass_for_another_datasets() {
        let forged = "tank/a\torg.lxcri-fs:ref\tx\tlocal\n\
                      tank/b\torg.lxcri-fs:ref\tevil\tlocal\n\
                      tank/b\torg.lxcri-fs:ref\tgood\tlocal\n";
        assert!(parse(forged).is_err());
        let forged = "tank/a\torg.lxcri-fs:ref\tx\tlocal\n\
                      tank/b\torg.lxcri-fs:ref\tevil\tlocal\n\
                      tank/b\torg.lxcri-fs:ref\tgood\tlocal\n";
        assert!(parse(forged).is_err());
        for broken in [
            "tank/a",
            "tank/a\tused",
            "tank/a\tused\t1",
            "tank/a\tused\t1\tsomewhere",
        ] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn what_is_set() {
        assert_eq!(
            options(&[("xattr", "sa"), ("org.lxcri-fs:ref", "a=b")]).unwrap(),
            ["-o", "xattr=sa", "-o", "org.lxcri-fs:ref=a=b"]
        );
        for (name, value) in [
            ("-o", "x"),
            ("", "x"),
            ("a=b", "x"),
            ("A", "x"),
            ("a,b", "x"),
            ("ref:x", "a\nb"),
            ("ref:x", "a\tb"),
        ] {
            assert!(options(&[(name, value)]).is_err(), "{name}={value:?}");
        }
        assert_eq!(
            names(&["used", "org.lxcri-fs:ref"]).unwrap(),
            "used,org.lxcri-fs:ref"
        );
        assert!(names(&["used,all"]).is_err());
    }
}
