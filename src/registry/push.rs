//! Pushes images to registries. Blobs that the registry has are not sent again; blobs are streamed,
//! not held in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Response, StatusCode, Url};
use tokio::runtime::Runtime;

use super::answer::pause;
use super::config::Registries;
use super::endpoint::Endpoint;
use super::error::{Error, Result};
use super::retry::{Cause, Failures};
use super::session::{CONTENT_DIGEST, MANIFESTS, expect, runtime};
use super::{Observer, Reference, Wanted, artifact};
use crate::build::Digest;
use crate::error::Io;

/// How many blobs are sent at a time.
const AT_ONCE: usize = 3;
/// How much of a file is read at a time, bytes.
const PIECE: usize = 1 << 18;

/// Something to send.
#[derive(Debug)]
pub struct Upload {
    /// Its digest.
    pub digest: Digest,
    /// Its length, bytes.
    pub size: u64,
    /// Its bytes.
    pub content: UploadContent,
}

/// The bytes of an upload.
#[derive(Debug)]
pub enum UploadContent {
    /// In a file.
    File(PathBuf),
    /// Here.
    Bytes(&'static [u8]),
    /// Here, made for this.
    Owned(Vec<u8>),
}

/// A repository that is written to.
pub struct Target {
    runtime: Runtime,
    endpoint: Endpoint,
    reference: Reference,
    /// Another repository of the registry, from which blobs may be mounted.
    other: Option<String>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("reference", &self.reference)
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Prepares to push to `reference`; `other` is a repository of the same registry that may have
    /// some of the blobs. Sends no request yet.
    ///
    /// # Errors
    /// [`Error::Certificate`], [`Error::Client`], [`Error::Io`], [`Error::Blocked`];
    /// [`Error::Reference`] if the reference has a digest.
    pub fn new(
        reference: &Reference,
        other: Option<String>,
        registries: &Registries,
    ) -> Result<Self> {
        if reference.digest().is_some() {
            let reason = "pushing makes the digest: give a tag, or nothing for `latest`".into();
            return Err(Error::Reference {
                text: reference.whole(),
                reason,
            });
        }
        let repository = reference.repository().to_owned();
        let other = other.filter(|other| *other != repository);
        let mut scopes = vec![format!("repository:{repository}:pull,push")];
        scopes.extend(other.iter().map(|other| format!("repository:{other}:pull")));
        let endpoint = Endpoint::new(registries.target(reference)?, scopes)?;
        Ok(Self {
            runtime: runtime()?,
            endpoint,
            reference: reference.clone(),
            other,
        })
    }

    /// Asks whether this user may push: begins an upload, and gives it up.
    ///
    /// # Errors
    /// [`Error::Denied`], [`Error::Transport`], [`Error::Status`].
    pub fn ask(&self) -> Result<()> {
        let asked = async {
            let begun = expect(self.begin().await?, &[StatusCode::ACCEPTED]).await?;
            self.give_up(&begun).await;
            Ok(())
        };
        self.runtime
            .block_on(asked)
            .map_err(|error| self.endpoint.named(error))
    }

    /// Whether the repository has a blob. Mounts it from the other repository if that has it.
    ///
    /// # Errors
    /// [`Error::Transport`], [`Error::Status`], [`Error::Denied`].
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        let asked = async {
            if self.is_there(digest).await? {
                return Ok(true);
            }
            match &self.other {
                Some(other) => self.take_over(digest, other).await,
                None => Ok(false),
            }
        };
        self.runtime
            .block_on(asked)
            .map_err(|error| self.endpoint.named(error))
    }

    /// Sends the blobs that the registry lacks, then the manifest under the tag, unless the tag
    /// leads to it already. Returns the manifest's digest. Files come first among the uploads, and
    /// are what `observer` observes.
    ///
    /// # Errors
    /// [`Error`]; the tag is unchanged then.
    pub fn push(
        &self,
        uploads: &[Upload],
        manifest: Vec<u8>,
        media_type: &str,
        observer: &Arc<dyn Observer>,
    ) -> Result<Digest> {
        let digest = Digest::of(&manifest);
        let is_file = |upload: &&Upload| matches!(upload.content, UploadContent::File(_));
        let files = uploads.iter().take_while(is_file).map(|upload| Wanted {
            digest: upload.digest,
            size: upload.size,
        });
        observer.begins(&files.collect::<Vec<_>>());
        let tag = self.reference.tag().unwrap_or("latest");
        let path = format!("manifests/{tag}");
        let all = async {
            let send = |(number, upload)| self.upload(number, upload, observer);
            stream::iter(uploads.iter().enumerate())
                .map(send)
                .buffer_unordered(AT_ONCE)
                .try_collect::<()>()
                .await?;
            if self.is_tagged(&path, &digest).await? {
                return Ok(());
            }
            let put = self.endpoint.send(|http, base| {
                http.put(self.endpoint.url(base, &path))
                    .header(CONTENT_TYPE, media_type)
                    .body(manifest.clone())
            });
            expect(
                put.await?,
                &[StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED],
            )
            .await
            .map(drop)
        };
        self.runtime
            .block_on(all)
            .map_err(|error| self.endpoint.named(error))?;
        Ok(digest)
    }

    /// Whether a tag leads to this manifest.
    async fn is_tagged(&self, path: &str, digest: &Digest) -> Result<bool> {
        let response = self
            .endpoint
            .send(|http, base| {
                http.head(self.endpoint.url(base, path))
                    .header(ACCEPT, MANIFESTS)
            })
            .await?;
        let headers = response.headers();
        let said = headers.get(CONTENT_DIGEST).and_then(|v| v.to_str().ok());
        Ok(response.status() == StatusCode::OK && said.and_then(Digest::parse) == Some(*digest))
    }

    /// Begins an upload.
    async fn begin(&self) -> Result<Response> {
        let begin = |http: &reqwest::Client, base: &Url| {
            http.post(self.endpoint.url(base, "blobs/uploads/"))
                .header(CONTENT_LENGTH, 0)
        };
        self.endpoint.send(begin).await
    }

    /// Ends an upload that was begun, without a blob. A registry need not be able to.
    async fn give_up(&self, begun: &Response) {
        if let Ok(begun) = location(begun) {
            let delete = |http: &reqwest::Client, _: &Url| http.delete(begun.clone());
            let _ = self.endpoint.send_once(delete).await;
        }
    }

    async fn is_there(&self, digest: &Digest) -> Result<bool> {
        let path = format!("blobs/{digest}");
        let response = self
            .endpoint
            .send(|http, base| http.head(self.endpoint.url(base, &path)))
            .await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        expect(response, &[StatusCode::OK]).await.map(|_| true)
    }

    /// Asks the registry to let this repository have a blob of another one. A registry need not be
    /// able to.
    async fn take_over(&self, digest: &Digest, other: &str) -> Result<bool> {
        let (digest, from) = (digest.to_string(), other);
        let mount = |base: &Url| {
            let mut url = self.endpoint.url(base, "blobs/uploads/");
            url.query_pairs_mut()
                .append_pair("mount", &digest)
                .append_pair("from", from);
            url
        };
        let response = self
            .endpoint
            .send(|http, base| http.post(mount(base)).header(CONTENT_LENGTH, 0))
            .await?;
        if response.status() == StatusCode::CREATED {
            return Ok(true);
        }
        // It has begun an upload instead, which is not wanted.
        self.give_up(&response).await;
        Ok(false)
    }

    async fn upload(
        &self,
        number: usize,
        upload: &Upload,
        observer: &Arc<dyn Observer>,
    ) -> Result<()> {
        if self.is_there(&upload.digest).await? {
            observer.moved(number, upload.size, true);
            observer.complete(number);
            return Ok(());
        }
        let mut failures = Failures::default();
        loop {
            // Each attempt is a new upload, because the state of the previous one is unknown.
            let begun = expect(self.begin().await?, &[StatusCode::ACCEPTED]).await?;
            let mut url = location(&begun)?;
            url.query_pairs_mut()
                .append_pair("digest", &upload.digest.to_string());
            let file = upload.content.open()?;
            let put = |http: &reqwest::Client, _: &Url| {
                let request = http
                    .put(url.clone())
                    .header(CONTENT_LENGTH, upload.size)
                    .header(CONTENT_TYPE, "application/octet-stream");
                observer.again(number);
                let observer = observer.clone();
                let sent = move |bytes| observer.moved(number, bytes, false);
                request.body(file.body(upload.size, sent))
            };
            let why = match self.endpoint.send_once(put).await {
                Ok(response) => {
                    expect(response, &[StatusCode::CREATED]).await?;
                    observer.complete(number);
                    return Ok(());
                }
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            let asked = match &why {
                Error::Status { retry_after, .. } => *retry_after,
                _ => None,
            };
            let wait = failures.pause(&Cause::Answer(asked));
            pause(wait, &url, &why.to_string()).await.ok_or(why)?;
        }
    }
}

/// The URL at which an upload continues.
fn location(response: &Response) -> Result<Url> {
    let base = response.url();
    let text = response
        .headers()
        .get(LOCATION)
        .and_then(|v| v.to_str().ok());
    let url = text
        .and_then(|text| base.join(text).ok())
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(|| {
        Error::protocol(
            base,
            "its response has no valid URL for the \
                                                       upload",
        )
    })?;
    if base.scheme() == "https" && url.scheme() != "https" {
        return Err(Error::protocol(
            base,
            "it redirects the upload from https to http",
        ));
    }
    Ok(url)
}

/// An opened [`Content`].
enum Opened<'a> {
    File(Arc<File>),
    Bytes(&'a [u8]),
}

impl UploadContent {
    fn open(&self) -> Result<Opened<'_>> {
        match self {
            Self::File(path) => Ok(Opened::File(Arc::new(
                File::open(path).map_err(Io::at("opening", path))?,
            ))),
            Self::Bytes(bytes) => Ok(Opened::Bytes(bytes)),
            Self::Owned(bytes) => Ok(Opened::Bytes(bytes)),
        }
    }
}

impl Opened<'_> {
    /// The bytes, piece by piece; calls `sent` with the length of each piece of a file, when it is
    /// about to be sent.
    fn body(&self, size: u64, sent: impl Fn(u64) + Send + Sync + 'static) -> Body {
        let file = match self {
            Self::File(file) => file.clone(),
            Self::Bytes(bytes) => return bytes.to_vec().into(),
        };
        let sent = Arc::new(sent);
        Body::wrap_stream(stream::try_unfold(0, move |at| {
            let (file, sent) = (file.clone(), sent.clone());
            async move {
                let left = usize::try_from(size - at).unwrap_or(usize::MAX);
                if left == 0 {
                    return Ok(None);
                }
                let mut piece = vec![0; left.min(PIECE)];
                file.read_exact_at(&mut piece, at)?;
                sent(piece.len() as u64);
                let end = at + piece.len() as u64;
                Ok::<_, std::io::Error>(Some((piece, end)))
            }
        }))
    }
}

/// The empty configuration of an artifact.
pub fn empty_config() -> Upload {
    let content = artifact::EMPTY_CONFIG;
    Upload {
        digest: Digest::of(content),
        size: content.len() as u64,
        content: UploadContent::Bytes(content),
    }
}

/// The first `len` bytes of a file, and their SHA-256.
///
/// # Errors
/// [`Error::Io`].
pub fn file(path: &Path, len: u64, progress: &dyn Fn(u64)) -> Result<Upload> {
    use sha2::Digest as _;
    use std::io::Read;
    let reading = || Io::at("reading", path);
    let mut file = File::open(path).map_err(reading())?.take(len);
    let (mut hash, mut size, mut piece) = (sha2::Sha256::new(), 0, vec![0; PIECE]);
    loop {
        let n = file.read(&mut piece).map_err(reading())?;
        if n == 0 {
            break;
        }
        hash.update(&piece[..n]);
        size += n as u64;
        progress(n as u64);
    }
    Ok(Upload {
        digest: Digest(hash.finalize().into()),
        size,
        content: UploadContent::File(path.to_owned()),
    })
}
