//! A registry that does what a test tells it to, and images made for it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::common::member;

/// A request as the server of a test sees it.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What it answers.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The length that is announced, if it is not that of the body.
    pub announced: Option<usize>,
    /// How long every byte takes.
    pub pause: Duration,
}

impl Response {
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_vec(),
            announced: None,
            pause: Duration::ZERO,
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// An HTTP server that answers as it is told, one request a connection.
pub struct Server {
    pub address: SocketAddr,
    /// What was asked.
    pub log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn new(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1", answer)
    }

    /// One at another address of loopback: another host.
    pub fn at(
        address: &str,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            log: Arc::default(),
            stop: Arc::default(),
        };
        let (log, stop, answer) = (this.log.clone(), this.stop.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(client.unwrap(), &log, &*answer));
            }
        });
        this
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `METHOD PATH` of all that was asked.
    pub fn asked(&self) -> Vec<String> {
        self.log
            .lock()
            .unwrap()
            .iter()
            .map(|r| format!("{} {}", r.method, r.path))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut client: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Response) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        match reader.read_until(b'\n', &mut line) {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        let Ok(line) = String::from_utf8(line) else {
            return;
        };
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut words = lines[0].split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return;
    };
    let header = |line: &String| {
        line.split_once(':')
            .map(|(n, v)| (n.to_lowercase(), v.trim().to_owned()))
    };
    let headers: BTreeMap<_, _> = lines[1..].iter().filter_map(header).collect();
    let mut body = vec![
        0;
        headers
            .get("content-length")
            .and_then(|l| l.parse().ok())
            .unwrap_or(0)
    ];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers,
        body,
    };
    log.lock().unwrap().push(request.clone());
    let Response {
        status,
        headers,
        body,
        announced,
        pause,
    } = answer(&request);
    let length = announced.unwrap_or(body.len());
    let mut head =
        format!("HTTP/1.1 {status} Some\r\nContent-Length: {length}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let _ = client.write_all(format!("{head}\r\n").as_bytes());
    if request.method != "HEAD" {
        let pieces = if pause.is_zero() {
            body.chunks(usize::MAX)
        } else {
            body.chunks(1)
        };
        for piece in pieces {
            std::thread::sleep(pause);
            if client.write_all(piece).is_err() {
                return;
            }
        }
    }
}

/// An image of one repository, in memory, that a [`Server`] can serve.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// By digest, and the tag `latest`: media type and document.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub blobs: BTreeMap<String, Vec<u8>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Image {
    /// An image with one file, `what`, and another of `size` bytes that do not compress.
    pub fn new(what: &str, size: usize) -> Self {
        let mut image = Self::default();
        let manifest = image.add(what, size);
        image.tag("latest", &manifest);
        image
    }

    /// Adds an image that is not named; its descriptor.
    pub fn add(&mut self, what: &str, size: usize) -> Value {
        let mut tar = Vec::new();
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .take(size)
        .collect();
        for (name, content) in [("what", what.as_bytes()), ("noise", &noise)] {
            tar.extend_from_slice(&member(name.as_bytes(), b'0', b"", content));
        }
        tar.resize(tar.len() + 1024, 0);
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", &tar);
        self.of_layers(&[layer])
    }

    /// Adds an image of these layers, which are not compressed; its descriptor.
    fn of_layers(&mut self, layers: &[Value]) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "os": "linux",
            "architecture": "amd64",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
        });
        self.manifest(MANIFEST, &manifest)
    }

    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        self.blobs.insert(sha256(bytes), bytes.to_vec());
        json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() })
    }

    pub fn manifest(&mut self, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        self.manifests
            .insert(sha256(&bytes), (media_type.to_owned(), bytes.clone()));
        json!({ "mediaType": media_type, "digest": sha256(&bytes), "size": bytes.len() })
    }

    /// Adds an image with the layers of others, the lowest first; its descriptor.
    pub fn stack(&mut self, descriptors: &[&Value]) -> Value {
        let manifests = descriptors.iter().map(|d| {
            serde_json::from_slice::<Value>(&self.manifests[d["digest"].as_str().unwrap()].1)
                .unwrap()
        });
        let layers: Vec<Value> = manifests
            .flat_map(|m| m["layers"].as_array().unwrap().clone())
            .collect();
        self.of_layers(&layers)
    }

    pub fn tag(&mut self, tag: &str, descriptor: &Value) {
        let manifest = self.manifests[descriptor["digest"].as_str().unwrap()].clone();
        self.manifests.insert(tag.to_owned(), manifest);
    }

    /// The largest blob: the layer.
    pub fn layer(&mut self) -> (String, &mut Vec<u8>) {
        self.blobs
            .iter_mut()
            .max_by_key(|(_, bytes)| bytes.len())
            .map(|(digest, bytes)| (digest.clone(), bytes))
            .unwrap()
    }

    /// What a registry answers, with ranges.
    pub fn answer(&self, request: &Request) -> Response {
        let path = request.path.split('?').next().unwrap();
        if let Some((_, tag)) = path.split_once("/manifests/") {
            return match self.manifests.get(tag) {
                Some((media_type, bytes)) => Response::new(200, bytes)
                    .with("Content-Type", media_type)
                    .with("Docker-Content-Digest", &sha256(bytes)),
                None => Response::new(
                    404,
                    br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
                ),
            };
        }
        let Some(bytes) = path
            .split_once("/blobs/")
            .and_then(|(_, digest)| self.blobs.get(digest))
        else {
            return Response::new(404, b"");
        };
        match request
            .header("range")
            .strip_prefix("bytes=")
            .and_then(|r| r.strip_suffix('-'))
        {
            Some(from) => {
                let from: usize = from.parse().unwrap();
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Response::new(206, &bytes[from..]).with("Content-Range", &range)
            }
            None => Response::new(200, bytes),
        }
    }

    pub fn serve(self) -> Server {
        Server::new(move |request| self.answer(request))
    }
}
