//! Settings of registries: `[registries."HOST[:PORT]"]` of the configuration, registries.conf, and
//! the command line.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Reference;
use super::error::{Error, Result};
use super::registries_conf::{RegistriesConf, Rule};
use crate::{reference, trust};

/// The table `registries` of the configuration, by `HOST[:PORT]`; Docker Hub is `docker.io`. For a
/// registry that is not in it, registries.conf counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Registries {
    own: BTreeMap<String, Registry>,
    #[serde(skip)]
    conf: RegistriesConf,
    /// Whether certificates must be valid, if the command line says so.
    #[serde(skip)]
    verify: Option<bool>,
    /// Which images may be pulled.
    #[serde(skip)]
    trust: trust::Settings,
}

/// Settings of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Whether its certificate need not be valid, and it may speak plain HTTP.
    pub insecure: bool,
    /// Mirrors to ask first when pulling, in this order: `HOST[:PORT][/PREFIX]`.
    pub mirrors: Vec<String>,
}

/// A repository of a registry, as requests go to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The registry: `HOST[:PORT]`.
    pub host: String,
    pub repository: String,
    /// Whether its certificate need not be valid.
    pub insecure: bool,
    /// Whether it may speak plain HTTP.
    pub plain: bool,
}

impl Registries {
    /// These settings, and for registries that they do not name those of registries.conf.
    ///
    /// # Errors
    /// [`Error::RegistriesConf`], [`Error::Io`].
    pub fn with_registries_conf(mut self) -> Result<Self> {
        self.conf = RegistriesConf::load()?;
        Ok(self)
    }

    /// These settings, but with `insecure` for no registry if `verify` is true, and for all if it
    /// is false.
    #[must_use]
    pub fn with_verify(mut self, verify: Option<bool>) -> Self {
        self.verify = verify;
        self
    }

    /// These settings, with those that say which images may be pulled (otherwise the system's
    /// policy does).
    #[must_use]
    pub fn with_trust(mut self, trust: trust::Settings) -> Self {
        self.trust = trust;
        self
    }

    /// Which images may be pulled.
    pub(super) fn trust(&self) -> &trust::Settings {
        &self.trust
    }

    /// What `text` refers to: a reference, or a short name that registries.conf has an alias for.
    ///
    /// # Errors
    /// [`Error::Reference`].
    pub fn resolve(&self, text: &str) -> Result<Reference> {
        super::pull::parse(&self.alias(text).unwrap_or_else(|| text.to_owned()))
    }

    /// The name that registries.conf has for a short name, if any, with the same tag and digest.
    pub fn alias(&self, text: &str) -> Option<String> {
        if !reference::is_short(text) {
            return None;
        }
        let name = text.split([':', '@']).next().unwrap_or(text);
        let alias = self.conf.alias(name)?;
        Some(format!("{alias}{}", &text[name.len()..]))
    }

    /// Where to read an image, in the order in which to ask; its registry is the last.
    pub(super) fn sources(&self, reference: &Reference) -> Result<Vec<Place>> {
        let (host, repository) = (reference.registry(), reference.repository());
        let name = format!("{host}/{repository}");
        let mut places = Vec::new();
        if let Some(own) = self.own.get(host) {
            for mirror in &own.mirrors {
                let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
                let path = format!("{}/{repository}", prefix.trim_matches('/'));
                places.push(self.as_named(host, path.trim_start_matches('/')));
            }
            places.push(self.as_named(host, repository));
        } else if let Some((rule, rest)) = self.rule(&name, reference)? {
            let mirrors = rule.mirrors.iter();
            for mirror in mirrors.filter(|mirror| mirror.is_for(reference.digest().is_some())) {
                places.push(self.relocated(&mirror.location, rest, mirror.insecure)?);
            }
            places.push(match &rule.location {
                Some(location) => self.relocated(location, rest, rule.insecure)?,
                None => self.as_named(host, repository),
            });
        } else {
            places.push(self.as_named(host, repository));
        }
        Ok(places)
    }

    /// Where to write an image: to the registry that it names.
    pub(super) fn target(&self, reference: &Reference) -> Result<Place> {
        let (host, repository) = (reference.registry(), reference.repository());
        if !self.own.contains_key(host) {
            self.rule(&format!("{host}/{repository}"), reference)?;
        }
        Ok(self.as_named(host, repository))
    }

    /// A registry under its own name; all of it if `repository` is empty.
    pub(super) fn as_named(&self, host: &str, repository: &str) -> Place {
        let name = format!("{host}/{repository}");
        let rule = self.conf.rule(name.trim_end_matches('/'));
        self.place(
            host,
            repository,
            rule.is_some_and(|(rule, _)| rule.insecure),
        )
    }

    /// The rule of registries.conf for an image, and what comes after the prefix in its name.
    fn rule<'a>(&self, name: &'a str, reference: &Reference) -> Result<Option<(&Rule, &'a str)>> {
        let end = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => format!("@{digest}"),
            (None, Some(tag)) => format!(":{tag}"),
            (None, None) => String::new(),
        };
        let whole = format!("{name}{end}");
        let Some((rule, rest)) = self.conf.rule(&whole) else {
            return Ok(None);
        };
        if rule.blocked {
            return Err(Error::Blocked {
                name: name.to_owned(),
                file: rule.file.clone(),
            });
        }
        // Of a name with its tag or digest, nothing comes after it.
        Ok(Some((rule, &name[name.len() - rest.len()..])))
    }

    /// The place at which `location` stands for what comes before `rest` in a name.
    fn relocated(&self, location: &str, rest: &str, insecure: bool) -> Result<Place> {
        let parsed = super::pull::parse(&format!("{location}{rest}"))?;
        Ok(self.place(parsed.registry(), parsed.repository(), insecure))
    }

    /// A repository of a registry, of which registries.conf says whether it is insecure.
    fn place(&self, host: &str, repository: &str, insecure: bool) -> Place {
        let own = self.own.get(host).map(|own| own.insecure);
        let insecure = self
            .verify
            .map_or(own.unwrap_or(insecure), |verify| !verify);
        Place {
            host: host.to_owned(),
            repository: repository.to_owned(),
            insecure,
            plain: insecure || self.verify.is_none() && is_loopback(host),
        }
    }
}

/// Whether `HOST[:PORT]` is this machine.
fn is_loopback(host: &str) -> bool {
    let port = |c: char| c.is_ascii_digit();
    let name = match host.rsplit_once(':') {
        Some((name, digits)) if digits.chars().all(port) => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = address.unwrap_or(name).parse::<IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CONF: &str = r#"
        unqualified-search-registries = ["search.example"]
        [[registry]]
        location = "registry.com"
        blocked = false
        [[registry.mirror]]
        location = "mirror.registry.com"
        [[registry]]
        prefix = "example.com/foo"
        location = "internal.example.net/bar"
        [[registry.mirror]]
        location = "mirror-0.local/for-foo"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "mirror-1.local:5000/mirrors/foo/"
        insecure = true
        [[registry]]
        prefix = "example.com/foo/closed"
        location = "example.com/foo/closed"
        blocked = true
        [[registry]]
        prefix = "*.wild.example"
        insecure = true
        [[registry]]
        prefix = "a.wild.example"
        location = "b.example"
        [[registry]]
        prefix = "docker.io/library"
        location = "hub.example/library"
        [[registry]]
        prefix = "tagged.example/app:1"
        location = "one.example/app"
        [aliases]
        fedora = "registry.fedoraproject.org/fedora"
        "ubi8/ubi" = "registry.access.redhat.com/ubi8/ubi"
    "#;

    fn registries(own: &str, conf: &str) -> Registries {
        let mut registries: Registries = toml::from_str(own).unwrap();
        registries
            .conf
            .add(conf.as_bytes(), "/r.conf".as_ref())
            .unwrap();
        registries
    }

    /// The places to ask for an image; those that are insecure with an exclamation mark.
    fn places(registries: &Registries, name: &str) -> Vec<String> {
        let reference = registries.resolve(name).unwrap();
        let shown = |place: Place| {
            let mark = if place.insecure { "!" } else { "" };
            format!("{}/{}{mark}", place.host, place.repository)
        };
        registries
            .sources(&reference)
            .unwrap()
            .into_iter()
            .map(shown)
            .collect()
    }

    #[test]
    fn the_longest_prefix_says_where_to_read() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let registries = registries("", CONF);
        for (name, expected) in [
            (
                "registry.com/image",
                &["mirror.registry.com/image", "registry.com/image"][..],
            ),
            ("registry.com:5000/image", &["registry.com:5000/image"]),
            ("registry.comb/image", &["registry.comb/image"]),
            (
                "example.com/foo/image:latest",
                &[
                    "mirror-1.local:5000/mirrors/foo/image!",
                    "internal.example.net/bar/image",
                ],
            ),
            (
                &format!("example.com/foo/image@{digest}"),
                &[
                    "mirror-0.local/for-foo/image",
                    "mirror-1.local:5000/mirrors/foo/image!",
                    "internal.example.net/bar/image",
                ],
            ),
            ("example.com/food/image", &["example.com/food/image"]),
            ("x.y.wild.example:5000/app", &["x.y.wild.example:5000/app!"]),
            ("wild.example/app", &["wild.example/app"]),
            ("a.wild.example/app", &["b.example/app"]),
            ("nginx", &["hub.example/library/nginx"]),
            ("team/app", &["docker.io/team/app"]),
            ("tagged.example/app:1", &["one.example/app"]),
            ("tagged.example/app:2", &["tagged.example/app"]),
            ("fedora:40", &["registry.fedoraproject.org/fedora"]),
            ("ubi8/ubi", &["registry.access.redhat.com/ubi8/ubi"]),
            ("docker.io/fedora", &["hub.example/library/fedora"]),
            ("docker://fedora", &["hub.example/library/fedora"]),
        ] {
            assert_eq!(places(&registries, name), expected, "{name}");
        }
        let resolved = |name: &str| registries.resolve(name).unwrap().whole();
        assert_eq!(
            resolved("fedora:40"),
            "registry.fedoraproject.org/fedora:40"
        );
        let with_digest = format!("fedora@{digest}");
        assert_eq!(
            resolved(&with_digest),
            format!("registry.fedoraproject.org/{with_digest}")
        );
        let closed = registries.resolve("example.com/foo/closed:1").unwrap();
        for error in [
            registries.sources(&closed).unwrap_err(),
            registries.target(&closed).unwrap_err(),
        ] {
            let said = "example.com/foo/closed is blocked by /r.conf";
            assert_eq!(error.to_string(), said);
        }
        // Nothing is pushed elsewhere than it says.
        let nginx = registries
            .target(&registries.resolve("nginx").unwrap())
            .unwrap();
        assert_eq!(nginx, registries.as_named("docker.io", "library/nginx"));
    }

    #[test]
    fn the_configuration_and_the_command_line_come_first() {
        let own = "[\"example.com\"]\nmirrors = [\"mirror-1.local:5000/own/\", \"plain\"]\n\
                   [\"mirror-1.local:5000\"]\n[\"docker.io\"]\ninsecure = true\n";
        let registries = registries(own, CONF);
        for (name, expected) in [
            (
                "example.com/foo/closed",
                &[
                    "mirror-1.local:5000/own/foo/closed",
                    "plain/foo/closed",
                    "example.com/foo/closed",
                ][..],
            ),
            ("nginx", &["docker.io/library/nginx!"]),
            ("x.wild.example/a", &["x.wild.example/a!"]),
        ] {
            assert_eq!(places(&registries, name), expected, "{name}");
        }
        let verified = registries.clone().with_verify(Some(true));
        assert_eq!(places(&verified, "nginx"), ["docker.io/library/nginx"]);
        assert_eq!(places(&verified, "x.wild.example/a"), ["x.wild.example/a"]);
        let any = registries.with_verify(Some(false));
        assert_eq!(places(&any, "other.example/a"), ["other.example/a!"]);
    }

    #[test]
    fn this_machine_may_speak_plain_http() {
        for (host, plain) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1", true),
            ("127.1.2.3:5000", true),
            ("[::1]:5000", true),
            ("[::1]", true),
            ("[fe80::1]:5000", false),
            ("10.0.0.1:5000", false),
            ("localhost.example", false),
            ("127.0.0.1.example:5000", false),
            ("docker.io", false),
        ] {
            let place = Registries::default().as_named(host, "app");
            assert_eq!((place.plain, place.insecure), (plain, false), "{host}");
            let verify = Registries::default().with_verify(Some(true));
            assert!(!verify.as_named(host, "app").plain, "{host}");
            let any = Registries::default()
                .with_verify(Some(false))
                .as_named(host, "app");
            assert!(any.plain && any.insecure, "{host}");
        }
    }

    #[test]
    fn a_later_file_counts_first() {
        let mut registries = registries("", CONF);
        let later = "[[registry]]\nlocation = \"registry.com\"\ninsecure = true\n[aliases]\n\
                     fedora = \"\"\nnew = \"new.example/new\"\n";
        registries
            .conf
            .add(later.as_bytes(), "/s.conf".as_ref())
            .unwrap();
        assert_eq!(
            places(&registries, "registry.com/image"),
            ["registry.com/image!"]
        );
        assert_eq!(
            places(&registries, "fedora"),
            ["hub.example/library/fedora"]
        );
        assert_eq!(places(&registries, "new"), ["new.example/new"]);
    }

    #[test]
    fn a_malformed_file_is_refused_with_its_line() {
        for (text, said) in [
            ("a = 1\n[[registry]]\nprefix = 1\n", "line 3: invalid type"),
            ("\n[[registry]\n", "line 2: "),
            (
                "\n[[registry]]\n",
                "line 2: [[registry]] has neither a prefix nor a location",
            ),
            (
                "[[registry]]\nprefix = \"a.b\"\n",
                "line 1: [[registry]] with prefix \"a.b\" has no",
            ),
            ("[[registry]]\nprefix = \"a.*.b\"\n", "line 1: "),
            (
                "[[registry]]\nprefix = \"*.b.c/d\"\n",
                "line 1: \"*.b.c/d\" is not *.DOMAIN",
            ),
            ("[[registry]]\nlocation = \"https://a.b\"\n", "line 1: "),
            (
                "[[registry]]\nlocation = \"a.b\"\n[[registry.mirror]]\n",
                "line 1: location \"\"",
            ),
            (
                "[[registry]]\nlocation = \"a.b\"\n[[registry.mirror]]\nlocation = \"c.d\"\n\
                 pull-from-mirror = \"some\"\n",
                "line 5: unknown variant `some`",
            ),
            (
                "[[registry]]\nlocation = \"a.b\"\n\n[[registry]]\nlocation = \"a.b\"\n\
                 blocked = true\n",
                "line 4: it contradicts",
            ),
            (
                "\n[registries.search]\nregistries = [\"a.b\"]\n",
                "line 2: [registries] is version 1",
            ),
            ("[aliases]\na = \"b\"\n", "line 2: \"b\" is not HOST"),
            (
                "[aliases]\n\"a.b/c\" = \"d.e/f\"\n",
                "line 2: \"a.b/c\" is not a short name",
            ),
        ] {
            let mut conf = RegistriesConf::default();
            let error = conf.add(text.as_bytes(), "/r.conf".as_ref()).unwrap_err();
            let message = error.to_string();
            assert!(
                message.starts_with(&format!("/r.conf, {said}")),
                "{text}: {message}"
            );
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
