//! Requests about one repository to a registry and its mirrors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::{ACCEPT, CONTENT_TYPE, RANGE};
use reqwest::{Response, StatusCode};
use tokio::runtime::Runtime;

use super::Reference;
use super::answer::{document, refusal};
use super::config::{Place, Registries};
use super::endpoint::Endpoint;
use super::error::{Error, Result};
use crate::build::sources::MAX_DOCUMENT;
use crate::build::{self, Digest, Mismatch};
use crate::error::Io;

/// Accepted media types of manifests.
pub(super) const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
                                    application/vnd.oci.image.manifest.v1+json, \
                                    application/vnd.docker.distribution.manifest.list.v2+json, \
                                    application/vnd.docker.distribution.manifest.v2+json";
/// Media type of an index.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Header with the digest of a manifest.
pub(super) const CONTENT_DIGEST: &str = "docker-content-digest";

/// A manifest or an index.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The document.
    pub bytes: Vec<u8>,
    /// Its digest.
    pub digest: Digest,
    /// Its media type, as the registry says.
    pub media_type: String,
}

/// The registry of a reference, behind its mirrors.
pub struct Mirrored {
    /// In the order in which they are asked; the registry itself is the last.
    endpoints: Vec<(Endpoint, AtomicBool)>,
}

impl std::fmt::Debug for Mirrored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirrored").finish_non_exhaustive()
    }
}

/// Requests from a thread that is not asynchronous.
pub struct Session {
    /// Runs the requests.
    pub runtime: Runtime,
    /// The registry and its mirrors.
    pub sources: Arc<Mirrored>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// A runtime for requests: one thread, that of the caller.
pub(super) fn runtime() -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let at = std::path::Path::new("/proc/self");
    Ok(runtime.map_err(Io::at("starting the async runtime in", at))?)
}

impl Session {
    /// Prepares to read `reference`. Sends no request yet.
    ///
    /// # Errors
    /// Those of [`Endpoint::new`]; [`Error::Blocked`].
    pub fn new(reference: &Reference, registries: &Registries) -> Result<Self> {
        let runtime = runtime()?;
        let endpoint = |place: Place| {
            let scope = format!("repository:{}:pull", place.repository);
            Endpoint::new(place, vec![scope])
        };
        let endpoints = registries.sources(reference)?.into_iter().map(endpoint);
        let endpoints = endpoints.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            runtime,
            sources: Arc::new(Mirrored {
                endpoints: endpoints
                    .into_iter()
                    .map(|e| (e, AtomicBool::new(false)))
                    .collect(),
            }),
        })
    }

    /// The manifest that a tag or digest leads to.
    ///
    /// # Errors
    /// Those of [`Endpoint::send`]; [`Error::Build`] when it has another digest.
    pub fn manifest(&self, tag: &str) -> Result<Manifest> {
        self.runtime.block_on(self.sources.manifest(tag))
    }

    /// The digest that a tag leads to, without the manifest itself.
    ///
    /// # Errors
    /// Those of [`Endpoint::send`].
    pub fn digest(&self, tag: &str) -> Result<Digest> {
        match self.runtime.block_on(self.sources.digest(tag)) {
            // It has to say it, and some do not.
            Err(Error::Protocol { .. }) => Ok(self.manifest(tag)?.digest),
            other => other,
        }
    }

    /// The list of the manifests that refer to one: an index.
    ///
    /// # Errors
    /// Those of [`Endpoint::send`]; with the status 404 if the registry knows none.
    pub(super) fn referrers(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.runtime.block_on(self.sources.first(async |endpoint| {
            let path = format!("referrers/{digest}");
            let response = endpoint
                .send(|http, base| http.get(endpoint.url(base, &path)).header(ACCEPT, INDEX))
                .await?;
            document(expect(response, &[StatusCode::OK]).await?, MAX_DOCUMENT).await
        }))
    }

    /// A short blob, such as a configuration.
    ///
    /// # Errors
    /// Those of [`Endpoint::send`]; [`Error::Build`] when it has another digest.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.runtime.block_on(async {
            self.sources
                .first(async |endpoint| {
                    let response =
                        expect(get_blob(endpoint, digest, 0).await?, &[StatusCode::OK]).await?;
                    checked(document(response, MAX_DOCUMENT).await?, *digest, "blob")
                })
                .await
        })
    }
}

impl Mirrored {
    /// The answer of the first source that has one.
    async fn first<T>(&self, ask: impl AsyncFn(&Endpoint) -> Result<T>) -> Result<T> {
        let last = self.endpoints.len() - 1;
        for (endpoint, gone) in self
            .endpoints
            .iter()
            .take(last)
            .map(|(e, g)| (e, g))
            .filter(|(_, gone)| !gone.load(Ordering::Relaxed))
        {
            match ask(endpoint).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    tracing::info!(
                        "mirror {}: {}",
                        endpoint.name(),
                        crate::error::chain(&error)
                    );
                    gone.store(error.is_transient(), Ordering::Relaxed);
                }
            }
        }
        let (endpoint, _) = &self.endpoints[last];
        ask(endpoint).await.map_err(|error| endpoint.named(error))
    }

    async fn manifest(&self, tag: &str) -> Result<Manifest> {
        self.first(async |endpoint| {
            let path = format!("manifests/{tag}");
            let response = endpoint
                .send(|http, base| {
                    http.get(endpoint.url(base, &path))
                        .header(ACCEPT, MANIFESTS)
                })
                .await?;
            let response = expect(response, &[StatusCode::OK]).await?;
            let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            let media_type = header(CONTENT_TYPE.as_str())
                .and_then(|v| v.split(';').next())
                .unwrap_or_default()
                .trim()
                .to_owned();
            let said = header(CONTENT_DIGEST).and_then(Digest::parse);
            let bytes = document(response, MAX_DOCUMENT).await?;
            let digest = Digest::of(&bytes);
            match Digest::parse(tag).or(said) {
                Some(wanted) => Ok(Manifest {
                    bytes: checked(bytes, wanted, "manifest")?,
                    digest,
                    media_type,
                }),
                None => Ok(Manifest {
                    bytes,
                    digest,
                    media_type,
                }),
            }
        })
        .await
    }

    async fn digest(&self, tag: &str) -> Result<Digest> {
        self.first(async |endpoint| {
            let path = format!("manifests/{tag}");
            let response = endpoint
                .send(|http, base| {
                    http.head(endpoint.url(base, &path))
                        .header(ACCEPT, MANIFESTS)
                })
                .await?;
            let response = expect(response, &[StatusCode::OK]).await?;
            let said = response
                .headers()
                .get(CONTENT_DIGEST)
                .and_then(|v| v.to_str().ok())
                .and_then(Digest::parse);
            said.ok_or_else(|| {
                Error::protocol(
                    response.url(),
                    "its response lacks the digest of the manifest",
                )
            })
        })
        .await
    }

    /// The bytes of a blob from an offset on, or from its beginning when the registry cannot do
    /// otherwise.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Response> {
        self.first(async |endpoint| {
            let response = get_blob(endpoint, digest, from).await?;
            if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && from > 0 {
                return expect(get_blob(endpoint, digest, 0).await?, &[StatusCode::OK]).await;
            }
            expect(response, &[StatusCode::OK, StatusCode::PARTIAL_CONTENT]).await
        })
        .await
    }
}

async fn get_blob(endpoint: &Endpoint, digest: &Digest, from: u64) -> Result<Response> {
    let path = format!("blobs/{digest}");
    endpoint
        .send(|http, base| {
            let request = http.get(endpoint.url(base, &path));
            if from == 0 {
                request
            } else {
                request.header(RANGE, format!("bytes={from}-"))
            }
        })
        .await
}

/// Fails unless a response has one of these statuses.
pub(super) async fn expect(response: Response, wanted: &[StatusCode]) -> Result<Response> {
    if wanted.contains(&response.status()) {
        Ok(response)
    } else {
        Err(refusal(response).await)
    }
}

fn checked(bytes: Vec<u8>, wanted: Digest, what: &str) -> Result<Vec<u8>> {
    let found = Digest::of(&bytes);
    if found == wanted {
        return Ok(bytes);
    }
    let reason = Mismatch::Digest {
        found: found.to_string(),
        wanted: wanted.to_string(),
    };
    Err(build::Error::Mismatch {
        name: format!("{what} {wanted}"),
        reason,
    }
    .into())
}
