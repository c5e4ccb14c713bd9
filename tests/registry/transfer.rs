//! Images come from registries whole or not at all: out of Debian's docker-registry, and in spite
//! of one that breaks.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bench::Bench;
use crate::common::{Mounted, assert_same_tree, run, stderr, tree};
use crate::fake::{self, Image, Response, Server};
use crate::server::{Cutter, Registry};

#[test]
fn an_image_of_a_registry_equals_the_pushed_one() {
    let bench = Bench::new();
    bench.layout();
    let registry = Registry::start(&bench.path("registry"));
    let host = registry.host();
    bench.plain(&[&host]);
    let push = "copy -q --dest-tls-verify=false";
    bench.skopeo(&format!(
        "{push} --preserve-digests oci:layout:v1 docker://{host}/team/app:v1"
    ));
    bench.skopeo("copy -q --dest-decompress oci:layout:v1 dir:plain");
    bench.skopeo(&format!(
        "{push} --dest-compress-format zstd dir:plain docker://{host}/team/app:zstd"
    ));
    bench.skopeo(&format!(
        "{push} --format v2s2 oci:layout:v1 docker://{host}/app:docker"
    ));

    run(bench
        .command()
        .args(["build", "oci:layout:v1", "-o", "expected.bfc"]));
    let expected = std::fs::read(bench.path("expected.bfc")).unwrap();
    assert!(bench.built(&format!("{host}/team/app:v1"), "v1.bfc") == expected);
    let digest = bench.skopeo(&format!(
        "inspect --tls-verify=false --format {{{{.Digest}}}} docker://{host}/team/app:v1"
    ));
    assert!(bench.built(&format!("{host}/team/app@{}", digest.trim()), "digest.bfc") == expected);

    bench.sh("umoci unpack --image layout:v1 bundle");
    let unpacked = tree(&bench.path("bundle/rootfs"));
    for reference in ["team/app:v1", "team/app:zstd", "app:docker"] {
        bench.built(&format!("{host}/{reference}"), "image.bfc");
        let dir = tempfile::tempdir().unwrap();
        let _mounted = Mounted::new(&[bench.path("image.bfc").to_str().unwrap()], dir.path());
        assert_same_tree(&unpacked, &tree(dir.path()));
    }
    bench.refused(&format!("{host}/team/app:v2"), 5, "manifest unknown");
}

/// A broken download continues where it broke, in the same build and in the next one.
#[test]
fn after_a_broken_connection_only_the_rest_is_fetched() {
    let bench = Bench::new();
    bench.layout();
    let registry = Registry::start(&bench.path("registry"));
    let cutter = Cutter::before(registry.port, 700_000);
    let (host, reference) = (cutter.host(), format!("{}/app:v1", cutter.host()));
    bench.plain(&[&host]);
    bench.skopeo(&format!(
        "copy -q --dest-tls-verify=false --preserve-digests oci:layout:v1 docker://{}/app:v1",
        registry.host()
    ));
    run(bench
        .command()
        .args(["build", "oci:layout:v1", "-o", "expected.bfc"]));
    let expected = std::fs::read(bench.path("expected.bfc")).unwrap();
    let blobs: u64 = bench
        .path("layout/blobs/sha256")
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();

    assert!(bench.built(&reference, "image.bfc") == expected);
    assert!(
        cutter.cut.load(Ordering::Relaxed) >= 4,
        "{}",
        cutter.cut.load(Ordering::Relaxed)
    );
    let passed = cutter.passed.swap(0, Ordering::Relaxed);
    assert!(passed < blobs * 3 / 2, "{passed} bytes for {blobs}");

    // Killed in the middle: nothing is to be seen, and the rest is what the next one fetches.
    cutter.after.store(1_500_000, Ordering::Relaxed);
    let mut child = bench
        .command()
        .args([
            "build",
            &format!("docker://{reference}"),
            "-o",
            "killed.bfc",
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let spool = bench.path(".lxcri-fs-blobs");
    let size = || {
        spool.read_dir().map_or(0, |entries| {
            entries
                .map(|e| e.unwrap().metadata().unwrap().len())
                .sum::<u64>()
        })
    };
    while size() < 1_000_000 && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!bench.path("killed.bfc").exists());
    let kept = size();
    assert!(kept >= 1_000_000, "{kept}");
    cutter.after.store(0, Ordering::Relaxed);
    cutter.passed.store(0, Ordering::Relaxed);
    assert!(bench.built(&reference, "image.bfc") == expected);
    let passed = cutter.passed.load(Ordering::Relaxed);
    assert!(
        passed < blobs - kept + 100_000,
        "{passed} bytes for {} that were missing",
        blobs - kept
    );

    // What was kept is not believed.
    std::fs::create_dir(&spool).unwrap();
    bench.sh(
        "for f in $(find layout/blobs/sha256 -type f -size +2k); do head -c 1000 /dev/zero > \
         .lxcri-fs-blobs/${f##*/}; done",
    );
    bench.refused(&reference, 3, "its digest is");
    assert!(bench.built(&reference, "image.bfc") == expected);
}

#[test]
fn an_index_of_a_registry_is_searched_by_platform() {
    let bench = Bench::new();
    let mut image = Image::default();
    let on = |mut descriptor: serde_json::Value, os: &str, architecture: &str| {
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    };
    let manifests = [
        on(image.add("arm64", 1000), "linux", "arm64"),
        on(image.add("amd64", 1000), "linux", "amd64"),
        on(image.add("attestation", 10), "unknown", "unknown"),
    ];
    let index = image.manifest(
        fake::INDEX,
        &json!({ "schemaVersion": 2, "mediaType": fake::INDEX, "manifests": manifests }),
    );
    image.tag("v1", &index);
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let index = image.manifest(
        list,
        &json!({ "schemaVersion": 2, "mediaType": list, "manifests": manifests }),
    );
    image.tag("v2", &index);
    let server = image.serve();
    bench.plain(&[&server.host()]);
    for tag in ["v1", "v2"] {
        for platform in ["amd64", "arm64"] {
            let reference = format!("{}/app:{tag}", server.host());
            assert_eq!(
                bench.what(&reference, &["--platform", &format!("linux/{platform}")]),
                platform
            );
        }
    }
    let output = bench.build(
        &format!("{}/app:v1", server.host()),
        "none.bfc",
        &["--platform", "linux/riscv64"],
    );
    assert!(
        stderr(&output).contains("choose one with --platform: linux/arm64, linux/amd64"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn requests_to_a_busy_registry_are_retried() {
    let bench = Bench::new();
    let image = Image::new("patience", 1000);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = Server::new(move |request| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Response::new(429, b"").with("Retry-After", "1"),
        1 | 3 => Response::new(503, b""),
        // Cut off in the middle of its body.
        5 => {
            let whole = image.answer(request);
            Response {
                announced: Some(whole.body.len()),
                ..Response::new(200, &whole.body[..100])
            }
        }
        _ => image.answer(request),
    });
    bench.plain(&[&server.host()]);
    let begin = Instant::now();
    assert_eq!(
        bench.what(&format!("{}/app", server.host()), &[]),
        "patience"
    );
    assert!(begin.elapsed() >= Duration::from_secs(1));

    let busy = Server::new(|_| Response::new(429, b"").with("Retry-After", "86400"));
    bench.plain(&[&busy.host()]);
    bench.refused(&format!("{}/app", busy.host()), 1, "429 Too Many Requests");
    assert_eq!(busy.asked().len(), 1);
}

#[test]
fn mirrors_come_before_their_registry() {
    let bench = Bench::new();
    let (registry, mirror) = (
        Image::new("registry", 1000).serve(),
        Image::new("mirror", 1000).serve(),
    );
    let broken = Server::new(|_| Response::new(404, b""));
    let configure = |mirrors: &[String]| {
        let hosts = [registry.host(), mirror.host(), broken.host()]
            .map(|host| format!("[registries.\"{host}\"]\ninsecure = true\n"));
        let mirrors = mirrors
            .iter()
            .map(|m| format!("\"{m}\""))
            .collect::<Vec<_>>()
            .join(", ");
        bench.configure(&format!(
            "{}[registries.\"upstream.invalid\"]\nmirrors = [{mirrors}]\n",
            hosts.concat()
        ));
    };
    configure(&[broken.host(), format!("{}/cache", mirror.host())]);
    assert_eq!(bench.what("upstream.invalid/team/app", &[]), "mirror");
    assert!(broken.asked()[0].ends_with(" /v2/team/app/manifests/latest"));
    assert!(mirror.asked()[0].ends_with(" /v2/cache/team/app/manifests/latest"));
    // The registry itself when no mirror has it.
    configure(&[broken.host()]);
    bench.refused("upstream.invalid/team/app", 1, "upstream.invalid");
    let hosts = [registry.host(), broken.host()]
        .map(|host| format!("[registries.\"{host}\"]\ninsecure = true\n"));
    bench.configure(&hosts.concat().replacen(
        "true\n",
        &format!("true\nmirrors = [\"{}\"]\n", broken.host()),
        1,
    ));
    assert_eq!(
        bench.what(&format!("{}/team/app", registry.host()), &[]),
        "registry"
    );
}

#[test]
fn a_proxy_of_the_environment_is_used() {
    let bench = Bench::new();
    let proxy = Image::new("proxied", 1000).serve();
    bench.plain(&["registry.invalid"]);
    let mut command = bench.command();
    command
        .args(["build", "docker://registry.invalid/app", "-o", "what.bfc"])
        .env("http_proxy", format!("http://{}", proxy.host()));
    run(&mut command);
    assert_eq!(
        run(bench.command().args(["cat", "./what.bfc", "what"])),
        "proxied"
    );
    assert!(
        proxy.asked()[0].starts_with("GET http://registry.invalid/v2/app/manifests/latest"),
        "{:?}",
        proxy.asked()
    );
}

/// A registry without ranges sends everything again; the part that is there is skipped.
#[test]
fn a_registry_without_ranges_is_enough() {
    let bench = Bench::new();
    let image = Image::new("whole", 500_000);
    let layer = image.clone().layer().0;
    let cut = AtomicUsize::new(0);
    let server = Server::new(move |request| {
        let mut plain = request.clone();
        plain.headers.remove("range");
        let whole = image.answer(&plain);
        if request.path.ends_with(&layer) && cut.fetch_add(1, Ordering::Relaxed) == 0 {
            return Response {
                announced: Some(whole.body.len()),
                ..Response::new(200, &whole.body[..300_000])
            };
        }
        whole
    });
    bench.plain(&[&server.host()]);
    assert_eq!(bench.what(&format!("{}/app", server.host()), &[]), "whole");
    let ranges: Vec<_> = server
        .log
        .lock()
        .unwrap()
        .iter()
        .map(|request| request.header("range").to_owned())
        .collect();
    assert!(ranges.last().unwrap().starts_with("bytes="), "{ranges:?}");
}

/// Two builds beside each other that need the same blobs do not disturb each other.
#[test]
fn concurrent_builds_in_one_directory_succeed() {
    let bench = Bench::new();
    let image = Image::new("both", 2_000_000);
    let server = Server::new(move |request| {
        std::thread::sleep(Duration::from_millis(200));
        image.answer(request)
    });
    bench.plain(&[&server.host()]);
    let build = |name: &str| {
        let reference = format!("docker://{}/app", server.host());
        bench
            .command()
            .args(["build", &reference, "-o", name])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let children = ["one.bfc", "two.bfc", "three.bfc"].map(build);
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let read = |name: &str| std::fs::read(bench.path(name)).unwrap();
    assert!(read("one.bfc") == read("two.bfc") && read("two.bfc") == read("three.bfc"));
    assert_eq!(bench.hidden(), Vec::<String>::new());
}
