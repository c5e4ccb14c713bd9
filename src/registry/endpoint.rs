//! One registry or mirror: authorizes requests to it, and repeats them if necessary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode, Url, redirect};

use super::answer::{pause, refusal};
use super::challenge::Challenge;
use super::config::Place;
use super::credentials::{self, Credential};
use super::error::{Error, Result, is_certificate};
use super::rate::{self, Interrupted};
use super::retry::{Cause, Failures, is_transient, retry_after};
use super::{auth, certificates};

const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may be silent.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const USER_AGENT: &str = concat!("lxcri-fs/", env!("CARGO_PKG_VERSION"));
const HUB: &str = "docker.io";
/// Host of Docker Hub's registry.
const HUB_HOST: &str = "registry-1.docker.io";

/// A registry, and a repository of it.
pub(super) struct Endpoint {
    /// The registry's name.
    name: String,
    repository: String,
    base: Mutex<Url>,
    /// Whether it has answered: what it speaks is known then.
    answered: AtomicBool,
    insecure: bool,
    plain: bool,
    http: Client,
    /// For credentials: follows no redirects.
    tokens: Client,
    /// The scopes to request tokens for.
    scopes: Vec<String>,
    /// The credential to use instead of those that are saved.
    credential: Option<Credential>,
    authorization: Mutex<Option<HeaderValue>>,
}

impl Endpoint {
    /// An endpoint for a repository, with the `scopes` that will be needed.
    ///
    /// # Errors
    /// [`Error::Certificate`], [`Error::Client`], [`Error::Io`]; [`Error::Reference`] if it is not
    /// a host.
    pub(super) fn new(place: Place, scopes: Vec<String>) -> Result<Self> {
        let Place {
            host: name,
            repository,
            insecure,
            plain,
        } = place;
        let host = if name == HUB { HUB_HOST } else { &name };
        let wrong = |reason: String| Error::Reference {
            text: name.clone(),
            reason,
        };
        let base = Url::parse(&format!("https://{host}/")).map_err(|e| wrong(e.to_string()))?;
        Ok(Self {
            base: Mutex::new(base),
            answered: AtomicBool::new(false),
            insecure,
            plain,
            http: client(&name, redirects(insecure), insecure)?,
            tokens: client(&name, redirect::Policy::none(), insecure)?,
            name,
            repository,
            scopes,
            credential: None,
            authorization: Mutex::new(None),
        })
    }

    /// The same, but with this credential instead of those that are saved.
    pub(super) fn with_credential(mut self, credential: Credential) -> Self {
        self.credential = Some(credential);
        self
    }

    /// Asks whether it is a registry that lets us in.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(super) async fn ping(&self) -> Result<Response> {
        let at = |base: &Url| {
            let mut url = base.clone();
            url.set_path("/v2/");
            url
        };
        let response = self.send(|http, base| http.get(at(base))).await;
        response.map_err(|error| self.named(error))
    }

    /// The registry's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// `/v2/REPOSITORY/PATH`, below the base that [`Self::send`] gives.
    pub(super) fn url(&self, base: &Url, path: &str) -> Url {
        let mut url = base.clone();
        url.set_path(&format!("/v2/{}/{path}", self.repository));
        url
    }

    /// Sends what `request` makes for the registry's base URL. Repeats it after transient failures,
    /// and adds credentials if the registry requires them. Returns any other response.
    ///
    /// # Errors
    /// [`Error::Transport`], [`Error::Status`], [`Error::Denied`], and those of
    /// [`credentials::find`].
    pub(super) async fn send(
        &self,
        request: impl Fn(&Client, &Url) -> RequestBuilder,
    ) -> Result<Response> {
        self.send_with(Failures::default(), request).await
    }

    /// Like [`Self::send`], without retries.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(super) async fn send_once(
        &self,
        request: impl Fn(&Client, &Url) -> RequestBuilder,
    ) -> Result<Response> {
        self.send_with(Failures::enough(), request).await
    }

    async fn send_with(
        &self,
        mut failures: Failures,
        request: impl Fn(&Client, &Url) -> RequestBuilder,
    ) -> Result<Response> {
        let mut challenged = false;
        loop {
            let base = lock(&self.base).clone();
            let mut request = request(&self.http, &base)
                .build()
                .map_err(|e| Error::transport(&base, e))?;
            let url = request.url().clone();
            // An upload may lead to another host, which must not see the credentials.
            if let Some(value) = lock(&self.authorization)
                .clone()
                .filter(|_| url.origin() == base.origin())
            {
                request.headers_mut().insert(AUTHORIZATION, value);
            }
            // Sending a body takes its time; without one, only the response is awaited.
            let sends = request.body().is_some();
            let answer = self.http.execute(request);
            let answer = if sends {
                answer.await.map_err(Interrupted::Broken)
            } else {
                rate::begin(answer).await
            };
            let response = match answer {
                Err(Interrupted::Broken(error)) if self.may_be_plain(&error, &base) => {
                    let mut plain = base;
                    // Cannot fail between these two.
                    let _ = plain.set_scheme("http");
                    *lock(&self.base) = plain;
                    continue;
                }
                Err(broken) => {
                    pause(failures.pause(&broken.cause()), &url, &broken.to_string())
                        .await
                        .ok_or_else(|| broken.at(&url))?;
                    continue;
                }
                Ok(response) => response,
            };
            self.answered.store(true, Ordering::Relaxed);
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && response.url().origin() == base.origin() {
                if challenged {
                    return Err(refusal(response).await);
                }
                challenged = true;
                let value = self.authorize(response, &base).await?;
                *lock(&self.authorization) = Some(value);
            } else if is_transient(status) {
                let asked = retry_after(response.headers());
                match pause(
                    failures.pause(&Cause::Answer(asked)),
                    &url,
                    &status.to_string(),
                )
                .await
                {
                    Some(()) => {}
                    None => return Err(refusal(response).await),
                }
            } else {
                return Ok(response);
            }
        }
    }

    /// Whether the registry may be one without https, after the first request to it has failed. A
    /// certificate that is not valid shows that it is none.
    fn may_be_plain(&self, error: &reqwest::Error, base: &Url) -> bool {
        self.plain
            && base.scheme() == "https"
            && error.is_connect()
            && !self.answered.load(Ordering::Relaxed)
            && (self.insecure || !is_certificate(error))
    }

    /// Answers the challenge of a response.
    async fn authorize(&self, response: Response, base: &Url) -> Result<HeaderValue> {
        let challenge = Challenge::of(response.headers());
        let given = self.credential.clone();
        let credential = given.or_else(|| credentials::find(&self.name, &self.repository));
        match (challenge, credential) {
            (Some(Challenge::Bearer { realm, service }), credential) => {
                // What is allowed for this host is not for others.
                let same_host = realm.host() == base.host();
                if realm.scheme() != "https" && !(self.plain && (same_host || credential.is_none()))
                {
                    let realm = super::error::shown(&realm);
                    return Err(Error::protocol(
                        base,
                        format!(
                            "its token server {realm} does not use https, so no credentials are \
                             sent to it"
                        ),
                    ));
                }
                let strict = if same_host {
                    None
                } else {
                    Some(client(&self.name, redirect::Policy::none(), false)?)
                };
                auth::bearer(
                    strict.as_ref().unwrap_or(&self.tokens),
                    &realm,
                    service.as_deref(),
                    &self.scopes,
                    credential.as_ref(),
                )
                .await
            }
            (Some(Challenge::Basic), Some(Credential::Basic { user, password })) => {
                auth::basic(base, &user, &password)
            }
            _ => Err(refusal(response).await),
        }
    }

    /// Turns a refusal into one that names the registry as people do.
    pub(super) fn named(&self, error: Error) -> Error {
        match error {
            Error::Denied { reason, .. } => Error::Denied {
                registry: self.name.clone(),
                reason,
            },
            other => other,
        }
    }
}

fn client(registry: &str, policy: redirect::Policy, insecure: bool) -> Result<Client> {
    let builder = certificates::add(
        builder()
            .redirect(policy)
            .tls_danger_accept_invalid_certs(insecure),
        registry,
    )?;
    builder.build().map_err(|source| Error::Client {
        registry: registry.to_owned(),
        source,
    })
}

fn builder() -> ClientBuilder {
    // Needed once per process; it may have been done already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .referer(false)
}

/// Redirects lead from https to https only. reqwest removes credentials from redirects to another
/// host.
fn redirects(insecure: bool) -> redirect::Policy {
    redirect::Policy::custom(move |attempt| {
        let from_https = attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("redirected too often")
        } else if from_https && attempt.url().scheme() != "https" && !insecure {
            attempt.error("redirected away from https")
        } else {
            attempt.follow()
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
