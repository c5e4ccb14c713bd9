//! A push asks the registry before it makes anything, and makes nothing twice.

use std::net::TcpListener;
use std::process::Output;

use crate::bench::Bench;
use crate::common::{run, stderr};
use crate::fake::{Response, Server};
use crate::server::Registry;

/// A push that cannot make a layer: it has no place for one.
fn push_without_room(bench: &Bench, args: &[&str]) -> Output {
    let push = ["push", "--temp-dir", "/nonexistent"];
    bench.command().args(push).args(args).output().unwrap()
}

#[test]
fn a_registry_that_cannot_be_pushed_to_is_asked_before_a_layer_is_made() {
    let bench = Bench::new();
    bench.app();
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let denies = Server::new(|request| match &*request.method {
        "HEAD" => Response::new(404, b""),
        _ => Response::new(403, b""),
    });
    for (host, code, said) in [
        (nobody.to_string(), 1, "requesting http://127.0.0.1"),
        (denies.host(), 4, "denies access"),
    ] {
        let name = format!("{host}/app");
        for more in [&[][..], &["--compression", "zstd"], &["--artifact"]] {
            let args = [&["app", &*name], more].concat();
            let output = match more {
                ["--artifact"] => bench.command().arg("push").args(args).output().unwrap(),
                _ => push_without_room(&bench, &args),
            };
            assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
            assert!(stderr(&output).contains(said), "{}", stderr(&output));
        }
    }
    let uploads = denies
        .asked()
        .into_iter()
        .filter(|line| line.starts_with("POST"));
    assert_eq!(uploads.count(), 3);
}

#[test]
fn what_was_compressed_once_is_not_compressed_again() {
    let bench = Bench::new();
    bench.app();
    let registry = Registry::start(&bench.path("registry"));
    let name = |tag: &str| format!("{}/team/app:{tag}", registry.host());
    for compression in [
        &[][..],
        &["--compression", "zstd"],
        &["--compression", "none"],
    ] {
        let reference = name("v1");
        let args = [&["app", &*reference][..], compression].concat();
        let digest = bench.pushed(&args);
        registry.asked();
        // It only asks.
        let again = push_without_room(&bench, &args);
        assert!(again.status.success(), "{}", stderr(&again));
        assert!(String::from_utf8_lossy(&again.stdout).contains(&digest));
        let asked = registry.asked();
        assert!(
            asked.iter().all(|line| line.starts_with("HEAD ")),
            "{asked:?}"
        );
        // For three layers, the configuration and the manifest, and if any compression will do, for
        // the layers as they came.
        let expected = if compression.is_empty() { 8 } else { 5 };
        assert_eq!(asked.len(), expected, "{asked:?}");
    }
    let records = bench.path("store/images/.lxcri-fs-compressed");
    assert_eq!(records.read_dir().unwrap().count(), 9);

    // Another tag needs the manifest alone.
    let digest = bench.pushed(&["app", &name("v1")]);
    registry.asked();
    let other = push_without_room(&bench, &["app", &name("v2")]);
    assert!(other.status.success(), "{}", stderr(&other));
    let sent: Vec<_> = registry
        .asked()
        .into_iter()
        .filter(|line| !line.starts_with("HEAD "))
        .collect();
    assert_eq!(sent, ["PUT /v2/team/app/manifests/v2"]);

    // A record is not believed: the registry may have lost a layer, though not the manifest.
    let layers = "registry/data/docker/registry/v2/repositories/team/app/_layers/sha256";
    bench.sh(&format!(
        "for record in store/images/.lxcri-fs-compressed/*.gzip; do
             read digest size < $record; rm -r {layers}/${{digest#*:}}; break
         done"
    ));
    assert!(
        !push_without_room(&bench, &["app", &name("v1")])
            .status
            .success()
    );
    registry.asked();
    assert_eq!(bench.pushed(&["app", &name("v1")]), digest);
    let sent = registry.asked();
    assert_eq!(
        sent.iter().filter(|line| line.starts_with("PUT ")).count(),
        1,
        "{sent:?}"
    );
    assert!(
        push_without_room(&bench, &["app", &name("v1")])
            .status
            .success()
    );
    bench.skopeo(&format!(
        "copy -q --src-tls-verify=false docker://{} oci:copied:v1",
        name("v1")
    ));

    // One that is damaged counts as none.
    bench.sh("for record in store/images/.lxcri-fs-compressed/*; do echo x > $record; done");
    assert!(
        !push_without_room(&bench, &["app", &name("v1")])
            .status
            .success()
    );
    assert_eq!(bench.pushed(&["app", &name("v1")]), digest);
    assert!(
        push_without_room(&bench, &["app", &name("v1")])
            .status
            .success()
    );

    // They go with the last image that has the layers.
    run(bench.command().args(["tag", "app", "again"]));
    run(bench.command().args(["rm", "app"]));
    run(bench.command().arg("gc"));
    assert_eq!(records.read_dir().unwrap().count(), 9);
    run(bench.command().args(["rm", "again"]));
    run(bench.command().args(["gc", "--dry-run"]));
    assert_eq!(records.read_dir().unwrap().count(), 9);
    run(bench.command().arg("gc"));
    assert_eq!(records.read_dir().unwrap().count(), 0);
}
