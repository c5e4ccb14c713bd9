//! A pull keeps and shares what it fetches, and fetches nothing twice; a push sends an unchanged
//! image. The oracles are skopeo, podman and umoci.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::common::zfs::{Pool, Scratch, property, zfs};
use crate::common::{Mounted, assert_same_tree, run, stderr, tree};
use crate::fake::{self, Image, Response, Server, sha256};
use crate::server::{Cutter, PASSWORD, Registry, USER};

/// A pull fetches nothing if the image is up to date, and no layer that another image has.
#[test]
fn a_pull_fetches_what_the_store_does_not_have() {
    let bench = Bench::new();
    bench.layout();
    let registry = Registry::start(&bench.path("registry"));
    let cutter = Cutter::before(registry.port, 0);
    let host = cutter.host();
    bench.plain(&[&host]);
    bench.sh(
        "umoci unpack --image layout:v1 more; head -c 100000 /dev/urandom > more/rootfs/last; \
         umoci repack --image layout:v2 more
         umoci config --image layout:v2 --architecture amd64 --os linux",
    );
    for tag in ["v1", "v2"] {
        bench.skopeo(&format!(
            "copy -q --dest-tls-verify=false --preserve-digests oci:layout:{tag} \
             docker://{}/app:{tag}",
            registry.host()
        ));
    }
    let (v1, v2) = (format!("{host}/app:v1"), format!("{host}/app:v2"));
    let first = bench.pulled(&[&v1]);
    assert_eq!(
        (first["up_to_date"].as_bool(), first["layers"].as_u64()),
        (Some(false), Some(3))
    );
    assert!(
        first["fetched_bytes"].as_u64().unwrap() > 4_000_000,
        "{first}"
    );
    let digest = bench.skopeo(&format!(
        "inspect --tls-verify=false --format {{{{.Digest}}}} docker://{}/app:v1",
        registry.host()
    ));
    assert_eq!(first["manifest_digest"].as_str().unwrap(), digest.trim());

    cutter.passed.store(0, Ordering::Relaxed);
    let second = bench.pulled(&[&v1]);
    assert_eq!(
        (
            second["up_to_date"].as_bool(),
            second["fetched_bytes"].as_u64()
        ),
        (Some(true), Some(0))
    );
    assert!(cutter.passed.load(Ordering::Relaxed) < 2000);

    let third = bench.pulled(&[&v2, "-t", "newer"]);
    let fetched = third["fetched_bytes"].as_u64().unwrap();
    assert!((100_000..120_000).contains(&fetched), "{third}");
    assert!(cutter.passed.load(Ordering::Relaxed) < 150_000);
    assert_eq!(bench.listed().len(), 2);
    run(bench.command().args(["verify", "--all"]));
    run(bench
        .command()
        .args(["build", "oci:layout:v2", "-o", "expected.bfc"]));
    run(bench
        .command()
        .args(["pull", "--quiet", &v2, "--no-share", "-o", "whole.bfc"]));
    let root = |image: &str| run(bench.command().args(["info", "--json", image]));
    let digest_of =
        |image: &str| serde_json::from_str::<Value>(&root(image)).unwrap()["root_digest"].clone();
    assert_eq!(digest_of("newer"), digest_of("./expected.bfc"));
    assert_eq!(digest_of("newer"), digest_of("./whole.bfc"));

    // Lines for those who are no terminal.
    let output = bench.pull(&[&v2, "-t", "again", "--no-share"]);
    assert_eq!(stderr(&output).lines().count(), 4, "{}", stderr(&output));
}

#[test]
fn one_request_shows_that_an_image_is_up_to_date() {
    let bench = Bench::new();
    let mut image = Image::default();
    let on = |mut descriptor: Value, architecture: &str| {
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    };
    let manifests = [
        on(image.add("amd64", 1000), "amd64"),
        on(image.add("other", 1000), "arm64"),
    ];
    let index = image.manifest(
        fake::INDEX,
        &json!({ "schemaVersion": 2, "mediaType": fake::INDEX, "manifests": manifests }),
    );
    image.tag("latest", &index);
    let server = image.serve();
    bench.plain(&[&server.host()]);
    let reference = format!("{}/app", server.host());
    let args = [&*reference, "--platform", "linux/amd64"];
    assert_eq!(bench.pulled(&args)["manifest_digest"], index["digest"]);
    let before = server.asked().len();
    assert_eq!(bench.pulled(&args)["up_to_date"], true);
    assert_eq!(server.asked()[before..], ["HEAD /v2/app/manifests/latest"]);
    assert_eq!(
        bench.pulled(&[&reference, "--platform", "linux/arm64"])["up_to_date"],
        false
    );
}

/// One of two concurrent pulls of an image does the work. A killed pull leaves no image, and the
/// next one continues it.
#[test]
fn one_of_two_pulls_does_the_work_and_a_killed_one_is_resumed() {
    let bench = Bench::new();
    let image = Image::new("slow", 3_000_000);
    let slow = image.clone();
    let server = Server::new(move |request| {
        if request.path.contains("/blobs/") {
            std::thread::sleep(Duration::from_millis(500));
        }
        slow.answer(request)
    });
    let cutter = Cutter::before(server.address.port(), 0);
    bench.plain(&[&server.host(), &cutter.host()]);
    let reference = format!("{}/app", server.host());
    let start = || {
        bench
            .command()
            .args(["pull", &reference])
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let both = [start(), start()].map(|child| child.wait_with_output().unwrap());
    assert!(
        both.iter().all(|output| output.status.success()),
        "{both:?}"
    );
    assert_eq!(
        both.iter()
            .filter(|output| String::from_utf8_lossy(&output.stdout).contains("is up to date"))
            .count(),
        1
    );
    let layer = image.clone().layer().0;
    assert_eq!(
        server
            .asked()
            .iter()
            .filter(|asked| asked.contains(&layer))
            .count(),
        1
    );

    // Broken off for good in the middle, and then killed.
    cutter.after.store(1_000_000, Ordering::Relaxed);
    let reference = format!("{}/other", cutter.host());
    let mut child = bench
        .command()
        .args(["pull", &reference, "-t", "killed", "--no-share"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let spool = bench.path("store/images/.lxcri-fs-blobs");
    let size = || {
        spool.read_dir().map_or(0, |entries| {
            entries
                .map(|e| e.unwrap().metadata().unwrap().len())
                .sum::<u64>()
        })
    };
    while size() < 500_000 && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(bench.listed().len(), 1);
    cutter.after.store(0, Ordering::Relaxed);
    cutter.passed.store(0, Ordering::Relaxed);
    let pulled = bench.pulled(&[&reference, "-t", "killed", "--no-share"]);
    assert!(
        pulled["fetched_bytes"].as_u64().unwrap() <= 2_600_000,
        "{pulled}"
    );
    assert_eq!(run(bench.command().args(["cat", "killed", "what"])), "slow");
    run(bench.command().args(["verify", "--all"]));
}

/// What is pushed is the image that it was: skopeo, podman and umoci read it, and it can be pulled
/// back.
#[test]
fn other_tools_read_a_pushed_image() {
    let bench = Bench::new();
    bench.layout();
    let (first, second) = (
        Registry::start(&bench.path("one-registry")),
        Registry::start(&bench.path("two-registry")),
    );
    let counted = Cutter::before(first.port, 0);
    bench.plain(&[&counted.host(), &second.host()]);
    bench.skopeo(&format!(
        "copy -q --dest-tls-verify=false --preserve-digests oci:layout:v1 docker://{}/app:v1",
        first.host()
    ));
    let name = format!("{}/app:v1", counted.host());
    let pulled = bench.pulled(&[&name]);

    // Into another repository of its registry: nothing is made or sent but the documents, and it is
    // the same image.
    counted.received.store(0, Ordering::Relaxed);
    assert_eq!(
        bench.pushed(&[&name, &format!("{}/copy/app:v1", counted.host())]),
        pulled["manifest_digest"].as_str().unwrap()
    );
    assert!(counted.received.load(Ordering::Relaxed) < 20_000);
    bench.skopeo(&format!(
        "copy -q --src-tls-verify=false docker://{}/copy/app:v1 oci:copied:v1",
        first.host()
    ));

    bench.sh("umoci unpack --image layout:v1 bundle");
    let unpacked = tree(&bench.path("bundle/rootfs"));
    let inspect = |reference: &str| -> Value {
        serde_json::from_str(&bench.skopeo(&format!(
            "inspect --config --tls-verify=false docker://{reference}"
        )))
        .unwrap()
    };
    let before = inspect(&format!("{}/app:v1", first.host()));
    for compression in ["gzip", "zstd", "none"] {
        let reference = format!("{}/team/{compression}:v1", second.host());
        let digest = bench.pushed(&[&name, &reference, "--compression", compression]);
        assert_eq!(inspect(&reference), before);
        bench.skopeo(&format!(
            "copy -q --src-tls-verify=false docker://{}/team/{compression}@{digest} \
             oci:{compression}:v1",
            second.host()
        ));
        let again = bench.pulled(&[&reference, "--no-share", "-t", compression]);
        assert_eq!(again["manifest_digest"], digest);
        let dir = tempfile::tempdir().unwrap();
        let image = format!("{compression}.bfc");
        run(bench
            .command()
            .args(["pull", "-q", &reference, "-o", &image]));
        let _mounted = Mounted::new(&[bench.path(&image).to_str().unwrap()], dir.path());
        assert_same_tree(&unpacked, &tree(dir.path()));
    }
    bench.sh("umoci unpack --image gzip:v1 unpacked");
    assert_same_tree(&unpacked, &tree(&bench.path("unpacked/rootfs")));
    let podman = "podman --storage-driver vfs --root $PWD/podman --runroot $PWD/podman-run";
    let diff_ids = bench.sh(&format!(
        "{podman} pull -q --tls-verify=false --signature-policy policy.json \
         docker://{}/team/gzip:v1 >&2
         {podman} image inspect {}/team/gzip:v1 --format '{{{{json .RootFS.Layers}}}}'",
        second.host(),
        second.host(),
    ));
    assert_eq!(
        serde_json::from_str::<Value>(&diff_ids).unwrap(),
        before["rootfs"]["diff_ids"]
    );

    // Once more: it is all there.
    let counted = Cutter::before(second.port, 0);
    bench.plain(&[&counted.host()]);
    bench.pushed(&["gzip", &format!("{}/team/gzip:v2", counted.host())]);
    assert!(
        counted.received.load(Ordering::Relaxed) < 20_000,
        "{}",
        counted.received.load(Ordering::Relaxed)
    );
    let output = bench
        .command()
        .args([
            "push",
            "gzip",
            &format!("x.example/a@sha256:{}", "0".repeat(64)),
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(bench.hidden().is_empty());
}

#[test]
fn an_image_file_is_an_artifact_that_comes_back_byte_for_byte() {
    let bench = Bench::new();
    bench.layout();
    let registry = Registry::with_login(&bench.path("registry"));
    let host = registry.host();
    let certs = bench.trust(&registry);
    run(bench
        .command()
        .args(["build", "oci:layout:v1", "-o", "image.bfc"]));
    let reference = format!("{host}/images/app:bfc");
    let refused = bench
        .command()
        .args(["push", "./image.bfc", &reference, "--artifact"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));

    std::fs::create_dir_all(bench.path("home/.docker")).unwrap();
    let auth = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    std::fs::write(
        bench.path("home/.docker/config.json"),
        json!({ "auths": { &host: { "auth": auth } } }).to_string(),
    )
    .unwrap();
    // What an append that was killed has left stays here.
    let image = std::fs::read(bench.path("image.bfc")).unwrap();
    std::fs::write(
        bench.path("image.bfc"),
        [&image[..], b"never finished"].concat(),
    )
    .unwrap();
    let digest = bench.pushed(&["./image.bfc", &reference, "--artifact"]);
    run(bench
        .command()
        .args(["pull", "-q", &reference, "-o", "back.bfc"]));
    assert!(std::fs::read(bench.path("back.bfc")).unwrap() == image);
    assert_eq!(
        bench.pulled(&[&reference, "-t", "app"])["manifest_digest"],
        digest
    );
    assert_eq!(bench.pulled(&[&reference, "-t", "app"])["up_to_date"], true);
    assert_eq!(bench.listed()[0]["size"].as_u64(), Some(image.len() as u64));
    let raw = bench.skopeo(&format!(
        "inspect --raw --cert-dir {} --creds '{USER}:{PASSWORD}' docker://{reference}",
        certs.display()
    ));
    let manifest: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(
        manifest["artifactType"],
        "application/vnd.lxcri-fs.image.v1"
    );
    assert_eq!(manifest["layers"][0]["digest"], sha256(&image));
    bench.refused(&reference, 1, "lxcri-fs pull");

    // One that says another root digest.
    let mut lie = Image::default();
    let file = lie.blob("application/vnd.lxcri-fs.bfc.v1", &image);
    let config = lie.blob("application/vnd.oci.empty.v1+json", b"{}");
    let annotations = json!({ "org.lxcri-fs.root-digest": format!("blake3:{}", "0".repeat(64)) });
    let manifest = json!({
        "schemaVersion": 2,
        "config": config,
        "layers": [file],
        "annotations": annotations,
    });
    let manifest = lie.manifest(fake::MANIFEST, &manifest);
    lie.tag("latest", &manifest);
    let server = lie.serve();
    bench.plain(&[&server.host()]);
    let output = bench.pull(&[&format!("{}/app", server.host()), "-o", "lie.bfc"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(!bench.path("lie.bfc").exists() && bench.hidden().is_empty());
}

/// A failed upload is repeated, and other hosts get no password.
#[test]
fn uploads_are_retried() {
    let bench = Bench::new();
    let first = Mutex::new(HashMap::new());
    let storage = Server::new(move |request| {
        assert!(request.header("authorization").is_empty());
        // The upload that was begun to ask whether one may be.
        if request.method == "DELETE" {
            return Response::new(204, b"");
        }
        let digest = request.path.split("digest=sha256%3A").nth(1).unwrap();
        let whole = format!("sha256:{digest}") == sha256(&request.body);
        let mut first = first.lock().unwrap();
        let Some(refused) = first.get(digest).map(Instant::elapsed) else {
            first.insert(digest.to_owned(), Instant::now());
            return Response::new(503, b"").with("Retry-After", "1");
        };
        // As the answer to the first body has asked.
        let has_waited = refused >= Duration::from_secs(1);
        Response::new(if whole && has_waited { 201 } else { 400 }, b"")
    });
    let elsewhere = storage.address;
    let login = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let server = Server::new(move |request| match request.method.as_str() {
        _ if request.header("authorization") != login => {
            Response::new(401, b"").with("WWW-Authenticate", "Basic realm=\"x\"")
        }
        "HEAD" => Response::new(404, b""),
        "POST" => {
            Response::new(202, b"").with("Location", &format!("http://{elsewhere}/upload?state=x"))
        }
        _ => Response::new(201, b""),
    });
    bench.plain(&[&server.host()]);
    std::fs::create_dir_all(bench.path("home/.docker")).unwrap();
    let auth = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    std::fs::write(
        bench.path("home/.docker/config.json"),
        json!({ "auths": { server.host(): { "auth": auth } } }).to_string(),
    )
    .unwrap();
    bench.sh("mkdir dir; head -c 2000000 /dev/urandom > dir/noise");
    run(bench.command().args(["build", "dir", "-o", "image.bfc"]));
    let digest = bench.pushed(&["./image.bfc", &format!("{}/app:v1", server.host())]);
    let log = server.log.lock().unwrap();
    let last = log.last().unwrap();
    assert_eq!(
        (last.method.as_str(), last.path.as_str()),
        ("PUT", "/v2/app/manifests/v1")
    );
    assert_eq!(sha256(&last.body), digest);
    let methods: Vec<_> = storage
        .asked()
        .iter()
        .map(|line| line[..3].to_owned())
        .collect();
    assert_eq!(methods, ["DEL", "PUT", "PUT", "PUT", "PUT"]);
}

/// A file system that is full ends a pull with a message, and keeps nothing of it.
#[test]
fn a_full_disk_keeps_nothing_of_a_pull() {
    struct Unmount<'a>(&'a Bench);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            self.0.sh("umount small");
        }
    }
    let bench = Bench::new();
    bench.sh("mkdir small; mount -t tmpfs -o size=4M tmpfs small");
    let _mounted = Unmount(&bench);
    let server = Image::new("large", 3_000_000).serve();
    bench.plain(&[&server.host()]);
    let store = format!("dir:{}", bench.path("small/store").display());
    let args = ["pull", "--store", &store, &format!("{}/app", server.host())];
    let output = bench.command().args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("No space left on device"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        run(bench.command().args(["list", "--json", "--store", &store])),
        ""
    );
    let left = bench.sh("find small -type f -size +0");
    assert_eq!(left, "");
}

#[test]
fn zfs_images_are_pulled_into_datasets() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let bench = Bench::new();
    let mut image = Image::default();
    let (first, more) = (image.add("first", 3_000_000), image.add("second", 100_000));
    let both = image.stack(&[&first, &more]);
    image.tag("first", &first);
    image.tag("both", &both);
    let server = image.serve();
    bench.plain(&[&server.host()]);
    let store = format!("zfs:{}", scratch.child("store"));
    let app = |tag: &str| format!("{}/app:{tag}", server.host());
    assert_eq!(
        bench.pulled(&["--store", &store, &app("first")])["up_to_date"],
        false
    );
    let second = bench.pulled(&["--store", &store, &app("both"), "-t", "both"]);
    assert!(
        second["fetched_bytes"].as_u64().unwrap() < 110_000,
        "{second}"
    );
    assert_eq!(
        bench.pulled(&["--store", &store, &app("both"), "-t", "both"])["up_to_date"],
        true
    );

    let listed = run(bench.command().args(["list", "--json", "--store", &store]));
    let images: Vec<Value> = listed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let dataset = |reference: &str| {
        let image = images
            .iter()
            .find(|i| {
                i["references"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|r| r.as_str().unwrap().contains(reference))
            })
            .unwrap();
        scratch.child(&format!("store/images/{}", image["name"].as_str().unwrap()))
    };
    let (first, both) = (dataset("app:first"), dataset("both:latest"));
    assert_eq!(property(&first, "org.lxcri-fs:ref"), app("first"));
    assert!(
        property(&both, "origin").starts_with(&first),
        "{}",
        property(&both, "origin")
    );
    let used: u64 = property(&both, "used").parse().unwrap();
    assert!(used < 1 << 20, "{used}");
    assert_eq!(
        run(bench
            .command()
            .args(["cat", "--store", &store, "both", "what"])),
        "second"
    );
    run(bench.command().args(["verify", "--all", "--store", &store]));
}

/// A pull that fills the pool leaves nothing, and the other images stay whole.
#[test]
fn zfs_a_pool_that_is_full_keeps_nothing_of_a_pull() {
    let Some(_scratch) = Scratch::new() else {
        return;
    };
    let bench = Bench::new();
    let disk = std::env::var_os("LXCRI_FS_TEST_DISK")
        .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let mountpoint = bench.path("pool");
    let args = ["-O", "xattr=sa", "-m", mountpoint.to_str().unwrap()];
    let pool = Pool::new(
        &format!("lxcri-fs-full-{}", std::process::id()),
        &disk,
        64 << 20,
        &args,
    );
    let mut image = Image::default();
    let (small, large) = (image.add("small", 100_000), image.add("large", 60_000_000));
    image.tag("small", &small);
    image.tag("large", &large);
    let server = image.serve();
    bench.plain(&[&server.host()]);
    let store = format!("zfs:{}", pool.name);
    bench.pulled(&["--store", &store, &format!("{}/app:small", server.host())]);
    let before = zfs(&["list", "-r", "-H", "-o", "name", &pool.name]);
    let output = bench.pull(&["--store", &store, &format!("{}/app:large", server.host())]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("No space left on device"),
        "{}",
        stderr(&output)
    );
    assert_eq!(zfs(&["list", "-r", "-H", "-o", "name", &pool.name]), before);
    run(bench.command().args(["verify", "--all", "--store", &store]));
    run(bench.command().args(["doctor", "--store", &store]));
}
