//! A real registry, and a connection to it that breaks.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{eventually, run};

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
    log: PathBuf,
    /// How many requests of the log were read.
    read: AtomicUsize,
}

impl Registry {
    /// Starts one that keeps its data in `dir`.
    pub fn start(dir: &Path) -> Self {
        Self::run(dir, false, false)
    }

    /// Starts one with plain HTTP, for [`USER`] only.
    pub fn with_plain_login(dir: &Path) -> Self {
        Self::run(dir, false, true)
    }

    /// Starts one with TLS, for [`USER`] only. `ca.crt` in `dir` is its CA.
    pub fn with_login(dir: &Path) -> Self {
        certificate(dir);
        Self::run(dir, true, true)
    }

    fn run(dir: &Path, tls: bool, login: bool) -> Self {
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
        if tls {
            config["http"]["tls"] =
                json!({ "certificate": dir.join("tls.crt"), "key": dir.join("tls.key") });
        }
        if login {
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
        let log = dir.join("log");
        let started = Self {
            port,
            child,
            log,
            read: AtomicUsize::new(0),
        };
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

    /// `METHOD PATH` of the requests since the last call. Those of a registry with TLS cannot be
    /// told.
    pub fn asked(&self) -> Vec<String> {
        let from = self.read.load(Ordering::Relaxed);
        // What was asked before this is in the log when this is.
        let mark = format!("GET /v2/?mark={from}");
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(connection, "{mark} HTTP/1.0\r\n\r\n").unwrap();
        connection.read_to_end(&mut Vec::new()).unwrap();
        let requests = eventually("the log of the registry", || {
            let log = std::fs::read_to_string(&self.log).unwrap();
            let request = |line: &str| {
                let (_, request) = line.split_once(" \"")?;
                Some(request.split_once(" HTTP/")?.0.to_owned())
            };
            let requests: Vec<_> = log.lines().filter_map(request).skip(from).collect();
            requests.contains(&mark).then_some(requests)
        });
        self.read.store(from + requests.len(), Ordering::Relaxed);
        requests
            .into_iter()
            .filter(|request| *request != mark)
            .collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a CA, and in `dir` `tls.crt` and `tls.key` of 127.0.0.1 signed by it; the CA is `ca.crt`.
fn certificate(dir: &Path) {
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
