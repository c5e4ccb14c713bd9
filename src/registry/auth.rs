//! Answers challenges: makes the `Authorization` of requests, with a token from the registry's
//! token server if it has one.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;
use zeroize::Zeroizing;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::answer::{document, refusal, send_patiently};
use super::credentials::Credential;
use super::error::{Error, Result};

/// Longest answer of a token server, bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// Client name for token servers.
const CLIENT_ID: &str = "lxcri-fs";

/// A value of the header; errors do not show it.
fn value(url: &Url, scheme: &str, secret: &str) -> Result<HeaderValue> {
    let text = Zeroizing::new(format!("{scheme} {secret}"));
    let mut value =
        HeaderValue::from_str(&text).map_err(|_| Error::protocol(url, "an invalid token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Name and password, as a header.
pub(super) fn basic(url: &Url, user: &str, password: &str) -> Result<HeaderValue> {
    let pair = Zeroizing::new(format!("{user}:{password}"));
    value(
        url,
        "Basic",
        &Zeroizing::new(STANDARD.encode(pair.as_bytes())),
    )
}

/// A token for `scopes`, as a header. `client` must not follow redirects, because the credentials
/// are for the realm only.
pub(super) async fn bearer(
    client: &Client,
    realm: &Url,
    service: Option<&str>,
    scopes: &[String],
    credential: Option<&Credential>,
) -> Result<HeaderValue> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<Zeroizing<String>>,
        access_token: Option<Zeroizing<String>>,
    }
    let make = || request(client, realm, service, scopes, credential);
    let response = send_patiently(realm, make).await?;
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    let body = Zeroizing::new(document(response, MAX_ANSWER).await?);
    let answer: Answer = serde_json::from_slice(&body)
        .map_err(|e| Error::protocol(realm, format!("its response is not a token: {e}")))?;
    let token = answer
        .token
        .or(answer.access_token)
        .filter(|t| !t.is_empty());
    value(
        realm,
        "Bearer",
        &token.ok_or_else(|| Error::protocol(realm, "its response has no token"))?,
    )
}

fn request(
    client: &Client,
    realm: &Url,
    service: Option<&str>,
    scopes: &[String],
    credential: Option<&Credential>,
) -> Result<RequestBuilder> {
    if let Some(Credential::Identity(token)) = credential {
        let scope = scopes.join(" ");
        let fields = [
            ("grant_type", "refresh_token"),
            ("service", service.unwrap_or_default()),
            ("client_id", CLIENT_ID),
            ("scope", &scope),
        ];
        // A form is encoded like the query of a URL.
        let mut form = realm.clone();
        form.query_pairs_mut()
            .clear()
            .extend_pairs(fields)
            .append_pair("refresh_token", token);
        let body = form.query().unwrap_or_default().to_owned();
        return Ok(client
            .post(realm.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body));
    }
    let mut url = realm.clone();
    if let Some(service) = service {
        url.query_pairs_mut().append_pair("service", service);
    }
    url.query_pairs_mut()
        .extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
    match credential {
        Some(Credential::Basic { user, password }) => {
            url.query_pairs_mut().append_pair("account", user);
            Ok(client
                .get(url)
                .header(AUTHORIZATION, basic(realm, user, password)?))
        }
        _ => Ok(client.get(url)),
    }
}
