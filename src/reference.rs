//! References, the names of images: `nginx:1.27` or `registry.example.org/team/app@sha256:…`
//! (grammar: distribution/reference).
//!
//! oci-spec's parser compiles a regular expression of 8 MiB, which takes longer than a mount. The
//! tests compare this parser with it.

use std::net::Ipv6Addr;

use oci_spec::distribution::Reference;

/// The prefix with which skopeo and podman write references.
pub const PREFIX: &str = "docker://";
const HUB: &str = "docker.io";
/// Another name of [`HUB`].
const HUB_INDEX: &str = "index.docker.io";
/// The namespace on Docker Hub that may be left out.
const LIBRARY: &str = "library";
const LATEST: &str = "latest";
/// Longest name of a repository, bytes.
const MAX_NAME: usize = 255;
/// Longest tag, bytes.
const MAX_TAG: usize = 128;
/// Algorithms and how many hexadecimal digits their digests have.
const ALGORITHMS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

/// Parses `[docker://]NAME[:TAG][@DIGEST]`; `nginx` is `docker.io/library/nginx:latest`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Reference, &'static str> {
    let bare = text.strip_prefix(PREFIX).unwrap_or(text);
    let (rest, digest) = bare
        .split_once('@')
        .map_or((bare, None), |(rest, digest)| (rest, Some(digest)));
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if !is_short(name) => (host, path),
        _ => (HUB, name),
    };
    let host = if host == HUB_INDEX { HUB } else { host };
    let repository = if host == HUB && !path.contains('/') {
        format!("{LIBRARY}/{path}")
    } else {
        path.to_owned()
    };
    if !is_host(host) {
        return Err("it begins with an invalid host name");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("names of repositories must be in lower case");
    }
    if repository.len() > MAX_NAME || !path.split('/').all(is_component) {
        return Err("it has an invalid repository name");
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("there is no valid tag after the colon");
    }
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("there is no valid digest after the @");
    }
    let (host, tag, digest) = (
        host.to_owned(),
        tag.map(str::to_owned),
        digest.map(str::to_owned),
    );
    Ok(match (tag, digest) {
        (tag, None) => {
            Reference::with_tag(host, repository, tag.unwrap_or_else(|| LATEST.to_owned()))
        }
        (None, Some(digest)) => Reference::with_digest(host, repository, digest),
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(host, repository, tag, digest),
    })
}

/// Whether a name begins with no registry, not even with Docker Hub.
pub fn is_short(name: &str) -> bool {
    match name.split_once('/') {
        Some((host, _)) => !(host.contains(['.', ':']) || host == "localhost"),
        None => true,
    }
}

/// Labels separated by dots, or an IPv6 address in brackets, and optionally a port.
fn is_host(text: &str) -> bool {
    if let Some((address, port)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        return address.parse::<Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (labels, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    labels.split('.').all(is_label) && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// Lower-case letters and digits, separated by a dot, one or two underscores, or hyphens.
fn is_component(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(is_word)
        && text.ends_with(is_word)
        && text.split(is_word).all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    ALGORITHMS.contains(&(algorithm, hex.len())) && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// oci-spec takes `Team/` for a part of Docker Hub's repository.
    fn expected(text: &str) -> Option<Reference> {
        Reference::try_from(text)
            .ok()
            .filter(|r| !r.repository().bytes().any(|b| b.is_ascii_uppercase()))
    }

    #[test]
    fn prefixes_are_passed_over() {
        assert_eq!(
            parse("docker://nginx").unwrap().whole(),
            "docker.io/library/nginx:latest"
        );
        assert_eq!(
            parse("index.docker.io/nginx:1").unwrap().whole(),
            "docker.io/library/nginx:1"
        );
        assert!(parse("docker://").is_err() && parse("").is_err());
    }

    /// As distribution/reference has them; oci-spec has not.
    #[test]
    fn addresses_of_ipv6_are_hosts() {
        for (text, whole) in [
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[fe80::1]/team/app:1", "[fe80::1]/team/app:1"),
        ] {
            assert_eq!(parse(text).unwrap().whole(), whole);
            assert_eq!(parse(whole).unwrap().whole(), whole);
        }
        for text in [
            "[::1]:/app",
            "[::1]x/app",
            "[x]:1/app",
            "[::1/app",
            "[1.2.3.4]:1/app",
            "[::1]",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    const ALMOST_REFERENCES: &str = concat!(
        "((localhost|docker[.]io|index[.]docker[.]io|[a-zA-Z.-]{1,4})(:[0-9]{0,3})?/)?",
        "[a-c._/-]{0,8}(:[a-zA-Z._-]{0,3})?",
        "(@(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}|md5:[0-9a-f]{32}|sha256:[0-9]{0,3}))?"
    );

    proptest! {
        #[test]
        fn what_oci_spec_reads_is_read_alike(text in ALMOST_REFERENCES) {
            prop_assert_eq!(parse(&text).ok(), expected(&text));
        }

        #[test]
        fn anything_is_read_or_refused_alike(text in "[a-zA-B0-1.:/@_-]{0,16}") {
            prop_assert_eq!(parse(&text).ok(), expected(&text));
        }

        #[test]
        fn nothing_makes_it_panic(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
