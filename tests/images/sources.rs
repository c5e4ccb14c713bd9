//! Sources are found by their names, by what they are, and by platform; and documents are not
//! believed.
//!
//! Needs root, and the tools that `tests/run.sh` installs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::common::{lxcri_fs, run, stderr};

pub(crate) fn sh(dir: &Path, script: &str) -> String {
    run(Command::new("bash").args(["-euc", script]).current_dir(dir))
}

/// An OCI layout that is put together by hand.
pub(crate) struct Layout(PathBuf);

impl Layout {
    pub(crate) fn new(path: PathBuf) -> Self {
        std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self(path)
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let hex: String = Sha256::digest(bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        std::fs::write(self.0.join("blobs/sha256").join(&hex), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    }

    /// An image with one file that says what it is; its manifest's descriptor.
    pub(crate) fn image(&self, what: &str) -> Value {
        let dir = tempfile::tempdir().unwrap();
        sh(
            dir.path(),
            &format!("printf {what} > what; tar --mtime=@0 -cf layer.tar what"),
        );
        let layer = self.blob(
            "application/vnd.oci.image.layer.v1.tar",
            &std::fs::read(dir.path().join("layer.tar")).unwrap(),
        );
        let config = json!({
            "os": "linux",
            "architecture": "amd64",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
            "history": [{ "created_by": what }, { "created_by": "nothing", "empty_layer": true }],
        });
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        self.manifest(&config, &[layer])
    }

    fn manifest(&self, config: &Value, layers: &[Value]) -> Value {
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }

    fn nested(&self, manifests: &[Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.blob(
            "application/vnd.oci.image.index.v1+json",
            index.to_string().as_bytes(),
        )
    }

    pub(crate) fn index(&self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        std::fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }

    pub(crate) fn source(&self, reference: &str) -> String {
        format!("oci:{}{reference}", self.0.display())
    }
}

fn on(mut descriptor: Value, os: &str, architecture: &str, variant: Option<&str>) -> Value {
    descriptor["platform"] = json!({ "os": os, "architecture": architecture });
    if let Some(variant) = variant {
        descriptor["platform"]["variant"] = json!(variant);
    }
    descriptor
}

pub(crate) fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    descriptor
}

pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// With an OCI layout `layout`, in which an image is called latest, and with a policy for
    /// skopeo.
    fn with_layout() -> Self {
        let bench = Self::new();
        let layout = Layout::new(bench.path("layout"));
        layout.index(&[named(layout.image("image"), "latest")]);
        let policy = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        std::fs::write(bench.path("policy.json"), policy).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn build(&self, args: &[&str]) -> Output {
        lxcri_fs()
            .arg("build")
            .args(args)
            .arg("--force")
            .arg("-o")
            .arg(self.path("image.bfc"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What the image that is built says it is.
    #[track_caller]
    pub(crate) fn what(&self, args: &[&str]) -> String {
        let output = self.build(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        run(lxcri_fs()
            .arg("cat")
            .arg(self.path("image.bfc"))
            .arg("what"))
    }

    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str], code: i32, text: &str) {
        let _ = std::fs::remove_file(self.path("image.bfc"));
        let output = self.build(args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(text),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(!self.path("image.bfc").exists());
    }
}

#[test]
fn an_index_is_searched_by_platform() {
    let bench = Bench::new();
    let layout = Layout::new(bench.path("layout"));
    let inner = layout.nested(&[
        on(layout.image("arm-v6"), "linux", "arm", Some("v6")),
        on(layout.image("arm-v7"), "linux", "arm", Some("v7")),
        on(layout.image("attestation"), "unknown", "unknown", None),
    ]);
    layout.index(&[layout.nested(&[
        on(layout.image("amd64"), "linux", "amd64", None),
        on(layout.image("arm64"), "linux", "arm64", Some("v8")),
        inner,
    ])]);
    let source = layout.source("");
    for (platform, what) in [
        ("linux/amd64", "amd64"),
        ("linux/arm64", "arm64"),
        ("linux/arm64/v8", "arm64"),
        ("linux/arm", "arm-v7"),
        ("linux/arm/v6", "arm-v6"),
    ] {
        assert_eq!(bench.what(&[&source, "--platform", platform]), what);
    }
    bench.refused(&[&source, "--platform", "linux/riscv64"], 5, "linux/arm/v6");
    bench.refused(&[&source, "--platform", "linux"], 2, "OS/ARCHITECTURE");
    // An image alone, whose configuration says what it is for.
    let alone = Layout::new(bench.path("alone"));
    alone.index(&[alone.image("amd64")]);
    let alone = alone.source("");
    assert_eq!(bench.what(&[&alone]), "amd64");
    assert_eq!(bench.what(&[&alone, "--platform", "linux/amd64"]), "amd64");
    bench.refused(
        &[&alone, "--platform", "linux/arm64"],
        5,
        "choose one with --platform: linux/amd64",
    );
}

#[test]
fn images_of_a_layout_have_names() {
    let bench = Bench::new();
    let layout = Layout::new(bench.path("layout"));
    let digest = layout.image("three")["digest"].as_str().unwrap().to_owned();
    layout.index(&[
        named(layout.image("one"), "v1"),
        named(layout.image("two"), "registry.example:5000/two:v2"),
        layout.image("three"),
    ]);
    assert_eq!(bench.what(&[&layout.source(":v1")]), "one");
    assert_eq!(bench.what(&["layout:v1"]), "one");
    assert_eq!(
        bench.what(&[&layout.source(":registry.example:5000/two:v2")]),
        "two"
    );
    assert_eq!(
        bench.what(&[&layout.source(&format!(":{digest}"))]),
        "three"
    );
    bench.refused(
        &[&layout.source("")],
        1,
        "choose one with :TAG: v1, registry.example:5000/two:v2",
    );
    bench.refused(&[&layout.source(":v3")], 5, "no image named v3");
}

#[test]
fn the_kind_of_a_source_is_guessed() {
    let bench = Bench::with_layout();
    sh(
        bench.dir.path(),
        "copy='skopeo --policy policy.json copy -q oci:layout:latest'
        $copy docker-archive:docker.tar:example/image:1; $copy oci-archive:oci.tar:latest; gzip -k \
         docker.tar; zstd -q oci.tar
        mkdir dir; printf dir > dir/what; tar -C dir -cf tar what; gzip -k tar; tar -C dir -czf \
         slash.tgz ./what
        tar -C layout -cf first.tar blobs index.json oci-layout",
    );
    for (source, what) in [
        ("layout", "image"),
        ("docker.tar", "image"),
        ("docker.tar:example/image:1", "image"),
        (
            "docker-archive:docker.tar:docker.io/example/image:1",
            "image",
        ),
        ("docker-archive:docker.tar:@0", "image"),
        ("docker.tar.gz", "image"),
        ("oci.tar", "image"),
        ("oci.tar:latest", "image"),
        ("oci.tar.zst", "image"),
        ("first.tar", "image"),
        ("dir", "dir"),
        ("tar", "dir"),
        ("tar.gz", "dir"),
        ("slash.tgz", "dir"),
    ] {
        assert_eq!(bench.what(&[source]), what, "{source}");
    }
    // An image is a source too, layers and all.
    bench.what(&["layout"]);
    std::fs::rename(bench.path("image.bfc"), bench.path("first.bfc")).unwrap();
    assert_eq!(bench.what(&["first.bfc"]), "image");
    assert!(
        std::fs::read(bench.path("first.bfc")).unwrap()
            == std::fs::read(bench.path("image.bfc")).unwrap()
    );

    std::fs::write(bench.path("text"), "neither this nor that").unwrap();
    std::fs::write(bench.path("empty"), "").unwrap();
    bench.refused(&["text"], 1, "name it as dir:PATH");
    bench.refused(&["empty"], 1, "name it as dir:PATH");
    bench.refused(&["missing"], 5, "missing");
    bench.refused(
        &["ftp://example/image"],
        1,
        "ftp:// is not a kind of source",
    );
    bench.refused(&["docker://Example/image"], 2, "is not a reference");
    bench.refused(
        &["docker-archive:docker.tar:other:1"],
        5,
        "no image named other:1",
    );
}

/// Sources in every form of compression, by name and through a pipe.
#[test]
fn compressed_sources_are_read_from_files_and_pipes() {
    let bench = Bench::with_layout();
    sh(
        bench.dir.path(),
        "copy='skopeo --policy policy.json copy -q oci:layout:latest'
        $copy docker-archive:docker.tar:example/image:1; $copy oci-archive:oci.tar:latest
        # Of layers that are padded to 10 KiB, some versions make layers with other digests.
        umoci init --layout own; umoci new --image own:it; umoci unpack --image own:it bundle
        printf chunked > bundle/rootfs/what; umoci repack --image own:it bundle
        skopeo --policy policy.json copy -q --dest-compress-format zstd:chunked oci:own:it \
            oci:chunked
        mkdir dir; printf dir > dir/what; tar -C dir -cf plain.tar what
        for tar in plain docker oci; do
            for pack in 'gzip -k' 'zstd -qk' 'xz -k' 'bzip2 -k'; do $pack $tar.tar; done
        done
        head -c 700 plain.tar | xz > parts.tar.xz; tail -c +701 plain.tar | xz >> parts.tar.xz
        head -c 100 plain.tar.xz > short.tar.xz
        xz --lzma2=dict=512MiB -c plain.tar > large.tar.xz",
    );
    for (tar, kind, what) in [
        ("plain", "tar", "dir"),
        ("docker", "docker-archive", "image"),
        ("oci", "oci-archive", "image"),
    ] {
        for ending in ["", ".gz", ".zst", ".xz"] {
            let file = format!("{tar}.tar{ending}");
            assert_eq!(bench.what(&[&file]), what, "{file}");
            assert_eq!(bench.what(&[&format!("{kind}:{file}")]), what, "{file}");
            let source = format!("{kind}:-");
            sh(
                bench.dir.path(),
                &format!(
                    "cat {file} | {} build {source} -f -o piped.bfc",
                    env!("CARGO_BIN_EXE_lxcri-fs")
                ),
            );
            let piped = run(lxcri_fs()
                .arg("cat")
                .arg(bench.path("piped.bfc"))
                .arg("what"));
            assert_eq!(piped, what, "{file}");
        }
        let file = format!("{tar}.tar.bz2");
        for source in [&file, &format!("{kind}:{file}")] {
            bench.refused(&[source], 1, "it is compressed with bzip2");
        }
    }
    assert_eq!(bench.what(&["chunked"]), "chunked");
    assert_eq!(bench.what(&["parts.tar.xz"]), "dir");
    bench.refused(&["tar:short.tar.xz"], 3, "decompressing short.tar.xz");
    bench.refused(&["tar:large.tar.xz"], 3, "a larger dictionary than 256 MiB");
    bench.refused(
        &["short.tar.xz"],
        3,
        "decompressing short.tar.xz: it ends too early",
    );
    bench.refused(&["-"], 1, "hint: tar:-");
    sh(
        bench.dir.path(),
        "for tar in docker oci; do head -c 1500 $tar.tar > cut.$tar; done",
    );
    bench.refused(&["docker-archive:cut.docker"], 3, "cut off");
    bench.refused(&["oci-archive:cut.oci"], 3, "cut off");
    // Nobody wrote into the pipe.
    bench.refused(&["tar:-"], 1, "standard input: it is empty");
    bench.refused(
        &["tar:-", "--password-file", "-"],
        2,
        "standard input cannot be both a source and the password",
    );
    bench.refused(
        &["tar:-", "--layer", "tar:-"],
        2,
        "only one source can be standard input",
    );
}

/// The storage of podman is read through skopeo, here one of the test's own.
#[test]
fn the_storage_of_other_engines_is_read() {
    let bench = Bench::with_layout();
    let storage = format!(
        "containers-storage:[vfs@{}+{}]localhost/image:1",
        bench.path("root").display(),
        bench.path("run").display()
    );
    sh(
        bench.dir.path(),
        &format!("skopeo --policy policy.json copy -q oci:layout:latest {storage}"),
    );
    assert_eq!(bench.what(&[&storage]), "image");
    // The configuration is the image's own, to the byte.
    let config = |image: &str| -> Value {
        let info = run(lxcri_fs().args(["info", "--json"]).arg(bench.path(image)));
        serde_json::from_str::<Value>(&info).unwrap()["config"].take()
    };
    let stored = config("image.bfc");
    bench.what(&["layout"]);
    assert_eq!(config("image.bfc"), stored);
    bench.refused(
        &[&storage.replace("image:1", "image:2")],
        1,
        "skopeo says: ",
    );
    let output = lxcri_fs()
        .args(["build", &storage, "-o", "none.bfc"])
        .env("PATH", "/nowhere")
        .current_dir(bench.dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("only skopeo reads it"));
}

#[test]
fn layers_are_added_in_order() {
    let bench = Bench::new();
    let layout = Layout::new(bench.path("layout"));
    layout.index(&[layout.image("image")]);
    sh(
        bench.dir.path(),
        "mkdir -p one two/sub; printf one > one/what; printf x > one/kept; printf two > two/what; \
         mknod two/kept c 0 0
         printf s > two/sub/s; setfattr -n trusted.overlay.opaque -v y two/sub; mkdir one/sub; \
         printf hidden > one/sub/hidden",
    );
    assert_eq!(
        bench.what(&["layout", "--layer", "one", "--layer", "two"]),
        "two"
    );
    assert_eq!(
        run(lxcri_fs().args(["ls", "-R"]).arg(bench.path("image.bfc"))),
        "sub\nwhat\nsub/s\n"
    );
    let info: Value = serde_json::from_str(&run(lxcri_fs()
        .args(["info", "--json"])
        .arg(bench.path("image.bfc"))))
    .unwrap();
    let config = &info["config"];
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    let history: Vec<_> = config["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|h| h["created_by"].as_str().unwrap())
        .collect();
    assert_eq!(
        (history.len(), history[0], history[1]),
        (4, "image", "nothing")
    );
}

#[test]
fn documents_that_contradict_the_layers_are_refused() {
    let bench = Bench::new();
    let refused = |code, text: &str, make: &dyn Fn(&Layout) -> Vec<Value>| {
        let _ = std::fs::remove_dir_all(bench.path("layout"));
        let layout = Layout::new(bench.path("layout"));
        let manifests = make(&layout);
        layout.index(&manifests);
        bench.refused(&["oci:layout"], code, text);
    };
    let config = |layout: &Layout, diff_ids: Value| {
        let config = json!({
            "os": "linux",
            "architecture": "amd64",
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        layout.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        )
    };
    let layer = |layout: &Layout| layout.blob("application/vnd.oci.image.layer.v1.tar", &[0; 1024]);
    let zeros = format!("sha256:{}", "0".repeat(64));

    refused(3, "the image's configuration says sha256:0000", &|l| {
        vec![l.manifest(&config(l, json!([zeros])), &[layer(l)])]
    });
    refused(
        3,
        "diff_ids (0) differs from the number of layers (1)",
        &|l| vec![l.manifest(&config(l, json!([])), &[layer(l)])],
    );
    refused(3, "is not a SHA-256 digest", &|l| {
        vec![l.manifest(&config(l, json!(["sha256:../../etc/passwd"])), &[layer(l)])]
    });
    refused(3, "", &|l| {
        vec![l.blob(
            "application/vnd.oci.image.manifest.v1+json",
            b"{\"schemaVersion\":2,",
        )]
    });
    refused(3, "its descriptor says 3", &|l| {
        let mut manifest = l.image("x");
        manifest["size"] = json!(3);
        vec![manifest]
    });
    refused(3, "its digest is", &|l| {
        let (image, other) = (l.image("x"), l.image("y"));
        let file = |d: &Value| {
            l.0.join("blobs/sha256").join(
                d["digest"]
                    .as_str()
                    .unwrap()
                    .strip_prefix("sha256:")
                    .unwrap(),
            )
        };
        std::fs::copy(file(&other), file(&image)).unwrap();
        vec![image]
    });
    refused(3, "", &|l| {
        let mut manifest = l.image("x");
        manifest["digest"] = json!("sha256:../../../../etc/passwd");
        vec![manifest]
    });
    refused(3, "at most", &|l| {
        let large = [
            &b"{\"schemaVersion\":2, \"x\":\""[..],
            &vec![b'x'; 5 << 20],
            b"\"}",
        ]
        .concat();
        vec![l.blob("application/vnd.oci.image.manifest.v1+json", &large)]
    });
    refused(3, "nested too deep", &|l| {
        let mut index = l.image("x");
        for _ in 0..10 {
            index = l.nested(&[index]);
        }
        vec![index]
    });
    // A layer that is compressed and cut off, or followed by something else.
    let gzip = |l: &Layout, change: &dyn Fn(&mut Vec<u8>)| {
        let dir = tempfile::tempdir().unwrap();
        sh(dir.path(), "seq 100000 > x; tar -czf x.tgz x");
        let mut bytes = std::fs::read(dir.path().join("x.tgz")).unwrap();
        change(&mut bytes);
        vec![l.manifest(
            &config(l, json!([zeros])),
            &[l.blob("application/vnd.oci.image.layer.v1.tar+gzip", &bytes)],
        )]
    };
    refused(3, "decompressing", &|l| {
        gzip(l, &|b| b.truncate(b.len() / 2))
    });
    refused(3, "decompressing", &|l| gzip(l, &|b| b[5000] ^= 0xff));
    refused(3, "decompressing", &|l| {
        gzip(l, &|b| {
            b.extend_from_slice(b"rubbish that is no gzip member")
        })
    });
}

/// A disk that cannot hold the image is found too small before anything is read.
#[test]
fn free_space_is_checked_first() {
    let bench = Bench::new();
    let small = bench.path("small");
    std::fs::create_dir(&small).unwrap();
    sh(
        bench.dir.path(),
        "mkdir dir; head -c 20000000 /dev/urandom > dir/noise; mount -t tmpfs -o size=1M tmpfs \
         small",
    );
    let output = lxcri_fs()
        .arg("build")
        .arg(bench.path("dir"))
        .arg("-o")
        .arg(small.join("image.bfc"))
        .output()
        .unwrap();
    let left = small.read_dir().unwrap().count();
    sh(bench.dir.path(), "umount small");
    assert!(
        !output.status.success() && stderr(&output).contains("are free"),
        "{}",
        stderr(&output)
    );
    assert_eq!(left, 0);
}
