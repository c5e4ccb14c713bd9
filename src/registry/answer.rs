//! Responses of registries and token servers: documents of bounded length, and refusals.

use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::error::{Error, Result, harmless};
use super::rate::{self, Body};
use super::retry::{Cause, Failures, is_transient, retry_after};

/// Longest error document that is read, bytes.
const MAX_REFUSAL: u64 = 1 << 14;

/// Sends a request that needs no authorization of ours; like [`Endpoint::send`].
pub(super) async fn send_patiently(
    url: &Url,
    request: impl Fn() -> Result<RequestBuilder>,
) -> Result<Response> {
    let mut failures = Failures::default();
    loop {
        match rate::begin(request()?.send()).await {
            Err(broken) => pause(failures.pause(&broken.cause()), url, &broken.to_string())
                .await
                .ok_or_else(|| broken.at(url))?,
            Ok(response) if is_transient(response.status()) => {
                let asked = retry_after(response.headers());
                if pause(
                    failures.pause(&Cause::Answer(asked)),
                    url,
                    &response.status().to_string(),
                )
                .await
                .is_none()
                {
                    return Err(refusal(response).await);
                }
            }
            Ok(response) => return Ok(response),
        }
    }
}

/// Waits, if there is to be another try, and says why.
pub(super) async fn pause(pause: Option<Duration>, url: &Url, why: &str) -> Option<()> {
    let pause = pause?;
    tracing::info!(
        "{}: {}; trying again in {pause:?}",
        super::error::shown(url),
        harmless(why)
    );
    tokio::time::sleep(pause).await;
    Some(())
}

/// The body of a response, if it has at most `limit` bytes.
pub(super) async fn document(mut response: Response, limit: u64) -> Result<Vec<u8>> {
    let url = response.url().clone();
    let mut body = Vec::new();
    let mut pieces = Body::new(&mut response);
    while let Some(piece) = pieces.piece().await.map_err(|broken| broken.at(&url))? {
        if (body.len() + piece.len()) as u64 > limit {
            return Err(Error::protocol(
                &url,
                format!("the document has more than {limit} bytes"),
            ));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The error that an answer is.
pub(super) async fn refusal(response: Response) -> Error {
    #[derive(Deserialize)]
    struct Refusal {
        errors: Vec<Detail>,
    }
    #[derive(Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Detail {
        code: String,
        message: String,
    }
    let (status, url) = (response.status(), response.url().clone());
    let asked = retry_after(response.headers());
    let body = document(response, MAX_REFUSAL).await.unwrap_or_default();
    let said = serde_json::from_slice::<Refusal>(&body)
        .ok()
        .and_then(|refusal| refusal.errors.into_iter().next());
    let message = said
        .map(|detail| {
            if detail.message.is_empty() {
                detail.code
            } else {
                detail.message
            }
        })
        .unwrap_or_default();
    let message = harmless(&message);
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let reason = if message.is_empty() {
            status.to_string()
        } else {
            message
        };
        return Error::Denied {
            registry: host_of(&url),
            reason,
        };
    }
    Error::Status {
        url: super::error::shown(&url),
        status,
        retry_after: asked,
        message,
    }
}

/// `HOST[:PORT]`, as logins name it.
fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
