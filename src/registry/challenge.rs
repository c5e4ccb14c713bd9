//! Parses the challenge of a registry that requires credentials: `WWW-Authenticate`.

use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// The requested kind of authorization.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password.
    Basic,
    /// A token from a server.
    Bearer {
        /// The server.
        realm: Url,
        /// The token server's name for the registry.
        service: Option<String>,
    },
}

impl Challenge {
    /// The best of those that are made and understood.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            for challenge in value
                .to_str()
                .ok()
                .and_then(|text| http_auth::parse_challenges(text).ok())
                .into_iter()
                .flatten()
            {
                let parameter = |name: &str| {
                    challenge
                        .params
                        .iter()
                        .find(|(n, _)| n.eq_ignore_ascii_case(name))
                        .map(|(_, v)| v.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) =
                        parameter("realm").and_then(|realm| Url::parse(&realm).ok())
                    {
                        return Some(Self::Bearer {
                            realm,
                            service: parameter("service"),
                        });
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn challenges() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
            }
            Challenge::of(&headers)
        };
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.parse().unwrap(),
                service: service.map(str::to_owned),
            })
        };
        let hub = concat!(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io","#,
            r#"scope="repository:library/nginx:pull""#
        );
        assert_eq!(
            of(&[hub]),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"))
        );
        assert_eq!(
            of(&[
                "Basic realm=\"x, y\"",
                "bearer REALM=\"https://a.example/\""
            ]),
            bearer("https://a.example/", None)
        );
        assert_eq!(of(&["BASIC realm=\"Registry\""]), Some(Challenge::Basic));
        for none in [
            &[][..],
            &["Bearer realm=\"/relative\""],
            &["Negotiate"],
            &["\"\"\""],
            &["Bearer"],
        ] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
