//! A directory with a configuration, credentials and a store, in which commands are run.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::{lxcri_fs, run, stderr};
use crate::server::Registry;

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
            "XDG_CACHE_HOME",
            "CONTAINERS_REGISTRIES_CONF",
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

    /// A program that runs as commands here do: in this directory, with their variables.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path());
        for (name, value) in self.command().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// A command line of ours on a terminal.
    pub fn on_terminal(&self, arguments: &str) -> Command {
        let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_lxcri-fs"));
        let mut command = self.program("script");
        command.args(["-qec", &line, "/dev/null"]);
        command
    }

    /// [`Bench::layout`], and in the store as `app`.
    pub fn app(&self) {
        self.layout();
        run(self.command().args(["build", "oci:layout:v1", "-t", "app"]));
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

    /// Trusts the CA of [`Registry::with_login`] in the directory `registry`. Returns the directory
    /// of certificates for it.
    pub fn trust(&self, registry: &Registry) -> PathBuf {
        let certs = self.path("home/.config/containers/certs.d");
        let certs = certs.join(registry.host());
        std::fs::create_dir_all(&certs).unwrap();
        std::fs::copy(self.path("registry/ca.crt"), certs.join("ca.crt")).unwrap();
        certs
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
