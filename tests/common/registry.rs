//! Registries for tests: a real one, one that does what a test tells it to, and a connection that
//! breaks.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::common::{lxcri_fs, member, run, stderr};

/// The name that [`HTPASSWD`] lets in.
pub const USER: &str = "somebody";
/// Their password.
pub const PASSWORD: &str = "correct horse";
/// bcrypt of the password, as `htpasswd -B` writes it.
const HTPASSWD: &str = "somebody:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n";

/// Debian's docker-registry on loopback, until it is dropped.
pub struct Registry {
    pub port: u16,
    child: Child,
}

/// How a registry is to be reached.
#[derive(Default)]
pub struct Setup {
    /// With a certificate of [`certificate`] in its directory.
    pub tls: bool,
    /// For [`USER`] only.
    pub login: bool,
}

impl Registry {
    /// Starts one that keeps its data in `dir`.
    pub fn start(dir: &Path, setup: &Setup) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut config = json!({
            "version": "0.1",
            "log": { "level": "error" },
            "storage": {
                "filesystem": { "rootdirectory": dir.join("data") },
                "delete": { "enabled": true },
            },
            "http": { "addr": format!("127.0.0.1:{port}") },
        });
        if setup.tls {
            config["http"]["tls"] =
                json!({ "certificate": dir.join("tls.crt"), "key": dir.join("tls.key") });
        }
        if setup.login {
            std::fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
            config["auth"] =
                json!({ "htpasswd": { "realm": "test", "path": dir.join("htpasswd") } });
        }
        // JSON is YAML.
        std::fs::write(dir.join("config.yml"), config.to_string()).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let started = Self { port, child };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{}",
                std::fs::read_to_string(dir.join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        started
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a CA, and in `dir` `tls.crt` and `tls.key` of 127.0.0.1 signed by it; the CA is `ca.crt`.
pub fn certificate(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    run(Command::new("bash").current_dir(dir).args([
        "-euc",
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out \
         ca.crt -days 2 -subj /CN=test-ca 2>/dev/null
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout tls.key -out \
         tls.csr -subj /CN=127.0.0.1 2>/dev/null
         printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > ext
         openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile \
         ext -out tls.crt 2>/dev/null",
    ]));
}

/// Passes connections on, and breaks each one after so many bytes to the client.
pub struct Cutter {
    pub port: u16,
    /// After how many bytes; 0 breaks none.
    pub after: Arc<AtomicUsize>,
    /// Bytes that went to clients.
    pub passed: Arc<AtomicU64>,
    /// Bytes that came from clients.
    pub received: Arc<AtomicU64>,
    /// How many connections were broken.
    pub cut: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Cutter {
    pub fn before(port: u16, after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            port: listener.local_addr().unwrap().port(),
            after: Arc::new(AtomicUsize::new(after)),
            passed: Arc::default(),
            received: Arc::default(),
            cut: Arc::default(),
            stop: Arc::default(),
        };
        let (after, passed, cut, stop) = (
            this.after.clone(),
            this.passed.clone(),
            this.cut.clone(),
            this.stop.clone(),
        );
        let received = this.received.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (after, passed, cut, received) =
                    (after.clone(), passed.clone(), cut.clone(), received.clone());
                std::thread::spawn(move || {
                    pass(client.unwrap(), port, &after, &passed, &cut, received)
                });
            }
        });
        this
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pass(
    mut client: TcpStream,
    port: u16,
    after: &AtomicUsize,
    passed: &AtomicU64,
    cut: &AtomicUsize,
    received: Arc<AtomicU64>,
) {
    let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut from_client, mut to_server) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut buf = vec![0; 16 << 10];
        while let Ok(n) = from_client.read(&mut buf) {
            if n == 0 || to_server.write_all(&buf[..n]).is_err() {
                break;
            }
            received.fetch_add(n as u64, Ordering::Relaxed);
        }
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let mut buf = vec![0; 16 << 10];
    let mut sent = 0;
    while let Ok(n) = server.read(&mut buf) {
        let limit = after.load(Ordering::Relaxed);
        if n == 0 || client.write_all(&buf[..n]).is_err() {
            break;
        }
        sent += n;
        passed.fetch_add(n as u64, Ordering::Relaxed);
        if limit > 0 && sent >= limit {
            cut.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
    let _ = server.shutdown(std::net::Shutdown::Both);
}

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
        let config = json!({
            "os": "linux",
            "architecture": "amd64",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        });
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
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

/// A directory with a configuration, a home, and what is built.
pub struct Bench {
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let bench = Self {
            dir: tempfile::Builder::new()
                .prefix("lxcri-fs-registry")
                .tempdir_in("/var/tmp")
                .unwrap(),
        };
        std::fs::create_dir(bench.path("home")).unwrap();
        bench.configure("");
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn configure(&self, text: &str) {
        std::fs::write(self.path("config.toml"), text).unwrap();
    }

    /// Says of these registries that they may speak plain HTTP.
    pub fn plain(&self, hosts: &[&str]) {
        let tables: Vec<_> = hosts
            .iter()
            .map(|host| format!("[registries.\"{host}\"]\ninsecure = true\n"))
            .collect();
        self.configure(&tables.concat());
    }

    pub fn command(&self) -> Command {
        let mut command = lxcri_fs();
        command
            .current_dir(self.dir.path())
            .env("HOME", self.path("home"))
            .env("LXCRI_FS_CONFIG", self.path("config.toml"));
        command.env("LXCRI_FS_STORE", self.path("store"));
        for name in [
            "REGISTRY_AUTH_FILE",
            "XDG_RUNTIME_DIR",
            "XDG_CONFIG_HOME",
            "DOCKER_CONFIG",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "http_proxy",
            "https_proxy",
        ] {
            command.env_remove(name);
        }
        command
    }

    pub fn build(&self, reference: &str, image: &str, args: &[&str]) -> Output {
        self.command()
            .arg("build")
            .arg(format!("docker://{reference}"))
            .args(["--force", "-o", image])
            .args(args)
            .output()
            .unwrap()
    }

    #[track_caller]
    pub fn built(&self, reference: &str, image: &str) -> Vec<u8> {
        let output = self.build(reference, image, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(self.hidden(), Vec::<String>::new());
        std::fs::read(self.path(image)).unwrap()
    }

    /// What an image that is built of `reference` says it is.
    #[track_caller]
    pub fn what(&self, reference: &str, args: &[&str]) -> String {
        let output = self.build(reference, "what.bfc", args);
        assert!(output.status.success(), "{}", stderr(&output));
        run(self.command().args(["cat", "./what.bfc", "what"]))
    }

    #[track_caller]
    pub fn refused(&self, reference: &str, code: i32, text: &str) {
        let output = self.build(reference, "refused.bfc", &[]);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(text), "{}", stderr(&output));
        assert!(!self.path("refused.bfc").exists());
    }

    /// What an interrupted build has left here.
    pub fn hidden(&self) -> Vec<String> {
        let names = self
            .dir
            .path()
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.')).collect()
    }

    pub fn sh(&self, script: &str) -> String {
        run(Command::new("bash")
            .args(["-euc", script])
            .current_dir(self.dir.path())
            .env("HOME", self.path("home")))
    }

    /// An OCI layout `layout` with an image `v1` of several layers.
    pub fn layout(&self) {
        self.sh(r#"
            umoci init --layout layout
            umoci new --image layout:v1
            umoci unpack --image layout:v1 made
            (
                cd made/rootfs
                mkdir -p etc bin gone
                echo root:x:0:0 > etc/passwd
                cp /bin/true bin/tool
                chmod 4755 bin/tool
                echo x > gone/file
                ln etc/passwd hard
                ln -s etc/passwd sym
                setfattr -n user.note -v value etc/passwd
                mknod null c 1 3
                head -c 3000000 /dev/urandom > noise
            )
            umoci repack --refresh-bundle --image layout:v1 made
            (
                cd made/rootfs
                rm -r gone
                seq 300000 > numbers
                chown 1000:1001 numbers
                echo changed > bin/tool
            )
            umoci repack --refresh-bundle --image layout:v1 made
            head -c 1000000 /dev/urandom > made/rootfs/more
            umoci repack --image layout:v1 made
            umoci config --image layout:v1 --config.cmd /bin/tool --architecture amd64 --os linux
            umoci gc --layout layout
            printf '{"default":[{"type":"insecureAcceptAnything"}]}' > policy.json"#);
    }

    /// What `list --json` lists.
    pub fn listed(&self) -> Vec<Value> {
        run(self.command().args(["list", "--json"]))
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub fn pull(&self, args: &[&str]) -> Output {
        self.command().arg("pull").args(args).output().unwrap()
    }

    /// What `pull --json` says.
    #[track_caller]
    pub fn pulled(&self, args: &[&str]) -> Value {
        serde_json::from_str(&run(self
            .command()
            .args(["pull", "--json", "--quiet"])
            .args(args)))
        .unwrap()
    }

    /// The digest that `push` says.
    #[track_caller]
    pub fn pushed(&self, args: &[&str]) -> String {
        let said: Value = serde_json::from_str(&run(self
            .command()
            .args(["push", "--json", "--quiet"])
            .args(args)))
        .unwrap();
        said["digest"].as_str().unwrap().to_owned()
    }

    pub fn skopeo(&self, args: &str) -> String {
        self.sh(&format!("skopeo --policy policy.json {args}"))
    }
}
