//! Who gets credentials, and what is refused: a registry may lie, stall and send without end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::bench::Bench;
use crate::common::{run, stderr};
use crate::fake::{self, Image, Response, Server, sha256};
use crate::server::{PASSWORD, Registry, USER};

#[test]
fn tls_and_a_login_are_used_where_the_registry_requires_them() {
    let bench = Bench::new();
    bench.layout();
    let registry = Registry::with_login(&bench.path("registry"));
    let host = registry.host();
    bench.skopeo(&format!(
        "copy -q --dest-tls-verify=false --dest-creds '{USER}:{PASSWORD}' --preserve-digests \
         oci:layout:v1 docker://{host}/app:v1"
    ));
    let reference = format!("{host}/app:v1");

    bench.refused(&reference, 1, "certs.d");
    bench.trust(&registry);
    bench.refused(&reference, 4, "lxcri-fs login");

    let file = bench.path("auth.json");
    let login = |path: &Path, password: &str| {
        let auth = STANDARD.encode(format!("{USER}:{password}"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(
            path,
            json!({ "auths": { &host: { "auth": auth } } }).to_string(),
        )
        .unwrap();
    };
    let build = || {
        let mut command = bench.command();
        let source = format!("docker://{reference}");
        command.args(["build", &source, "--force", "-o", "image.bfc"]);
        command
    };
    let with = |name: &str, value: &Path| {
        let output = build().env(name, value).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    login(&file, PASSWORD);
    assert_eq!(with("REGISTRY_AUTH_FILE", &file), (Some(0), String::new()));
    login(&bench.path("run/containers/auth.json"), PASSWORD);
    assert_eq!(
        with("XDG_RUNTIME_DIR", &bench.path("run")),
        (Some(0), String::new())
    );
    login(&bench.path("docker/config.json"), PASSWORD);
    assert_eq!(
        with("DOCKER_CONFIG", &bench.path("docker")),
        (Some(0), String::new())
    );
    // Also where the system has no certificates of its own.
    run(build()
        .env("REGISTRY_AUTH_FILE", &file)
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", bench.path("home")));
    login(&file, "wrong");
    assert_eq!(with("REGISTRY_AUTH_FILE", &file).0, Some(4));

    // A helper is told the registry on its standard input.
    let helper = bench.path("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread server; [ \"$1 $server\" = 'get {host}' ] || exit 1\necho \
         '{{\"ServerURL\":\"\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n"
    );
    std::fs::write(&helper, script).unwrap();
    bench.sh("chmod +x docker-credential-test");
    let path = format!(
        "{}:{}",
        bench.dir.path().display(),
        std::env::var("PATH").unwrap()
    );
    for config in [
        json!({ "credHelpers": { &host: "test" } }),
        json!({ "auths": { &host: {} }, "credsStore": "test" }),
    ] {
        std::fs::write(&file, config.to_string()).unwrap();
        run(build().env("REGISTRY_AUTH_FILE", &file).env("PATH", &path));
    }
    run(bench
        .command()
        .args(["build", "oci:layout:v1", "-o", "expected.bfc"]));
    assert!(
        std::fs::read(bench.path("image.bfc")).unwrap()
            == std::fs::read(bench.path("expected.bfc")).unwrap()
    );
}

/// By the name, port included, under which one logs in.
#[test]
fn a_refused_push_names_the_registry() {
    let bench = Bench::new();
    bench.layout();
    run(bench
        .command()
        .args(["build", "oci:layout:v1", "-o", "image.bfc"]));
    let server = Server::new(|request| match &*request.path {
        "/v2/" => Response::new(200, b""),
        _ => Response::new(403, b""),
    });
    let host = server.host();
    bench.plain(&[&host]);
    let push = ["push", "image.bfc", &format!("{host}/app")];
    let output = bench.command().args(push).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains(&format!("lxcri-fs login {host}`")), "{said}");
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    let bench = Bench::new();
    for (config, artifact, said) in [
        (
            "application/vnd.cncf.helm.config.v1+json",
            None,
            "vnd.cncf.helm.config",
        ),
        (
            "application/vnd.oci.empty.v1+json",
            Some("application/vnd.example+type"),
            "vnd.example",
        ),
    ] {
        let mut image = Image::new("artifact", 1000);
        let config = image.blob(config, b"{}");
        let layer = image.blob("text/plain", b"hello");
        let mut manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        if let Some(artifact) = artifact {
            manifest["artifactType"] = json!(artifact);
        }
        let manifest = image.manifest(fake::MANIFEST, &manifest);
        image.tag("latest", &manifest);
        let server = image.serve();
        bench.plain(&[&server.host()]);
        bench.refused(&format!("{}/app", server.host()), 1, said);
    }
}

#[test]
fn an_inconsistent_registry_is_refused() {
    let bench = Bench::new();
    let refused_as = |tag: &str, text: &str, change: &dyn Fn(&mut Image)| {
        let mut image = Image::new("lie", 200_000);
        change(&mut image);
        let server = image.serve();
        bench.plain(&[&server.host()]);
        bench.refused(&format!("{}/app{tag}", server.host()), 3, text);
        assert_eq!(bench.hidden(), Vec::<String>::new());
    };
    let refused = |text: &str, change: &dyn Fn(&mut Image)| refused_as("", text, change);
    let layer = |image: &mut Image, change: &dyn Fn(&mut Vec<u8>)| change(image.layer().1);
    refused("its digest is", &|image| {
        layer(image, &|bytes| bytes[100_000] ^= 1)
    });
    refused("its descriptor says", &|image| {
        layer(image, &|bytes| bytes.truncate(100_000))
    });
    refused("its descriptor says", &|image| {
        layer(image, &|bytes| bytes.extend_from_slice(&[0; 512]))
    });
    let digest = sha256(&Image::new("lie", 200_000).manifests["latest"].1);
    refused_as(&format!("@{digest}"), "its digest is", &|image| {
        image.manifests.get_mut(&digest).unwrap().1.push(b' ')
    });
    refused("is both an index and a manifest", &|image| {
        let both = image.manifest(
            fake::MANIFEST,
            &json!({ "schemaVersion": 2, "manifests": [], "layers": [] }),
        );
        image.tag("latest", &both);
    });
    refused("missing field `rootfs`", &|image| {
        let config = image.blob("application/vnd.oci.image.config.v1+json", b"{}");
        let layer = image.layer().0;
        let layers = [json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer,
            "size": 1,
        })];
        let manifest = image.manifest(
            fake::MANIFEST,
            &json!({ "schemaVersion": 2, "config": config, "layers": layers }),
        );
        image.tag("latest", &manifest);
    });

    // Documents without an end, and texts that drive a terminal.
    let endless = Server::new(|_| Response::new(200, &vec![b' '; 9 << 20]));
    bench.plain(&[&endless.host()]);
    bench.refused(
        &format!("{}/app", endless.host()),
        1,
        "more than 4194304 bytes",
    );
    let rude = Server::new(|_| {
        Response::new(
            400,
            b"{\"errors\":[{\"code\":\"X\",\"message\":\"\\u001b[31mred\\u0007\"}]}",
        )
    });
    bench.plain(&[&rude.host()]);
    bench.refused(
        &format!("{}/app", rude.host()),
        1,
        "400 Bad Request: [31mred",
    );
    let strange = Server::new(|r| {
        let realm = format!("Bearer realm=\"http://{}/token\"", r.header("host"));
        if r.path.starts_with("/token") {
            Response::new(200, b"{\"token\":\"a\\nb: c\"}")
        } else {
            Response::new(401, b"").with("WWW-Authenticate", &realm)
        }
    });
    bench.plain(&[&strange.host()]);
    bench.refused(&format!("{}/app", strange.host()), 1, "an invalid token");
}

/// Tokens are fetched with the registry's credentials, fetched again when they expire, and sent
/// nowhere else.
#[test]
fn tokens_go_to_their_registry_only() {
    let bench = Bench::new();
    let image = Image::new("secret", 100_000);
    let blobs = image.clone();
    // Where blobs really are.
    let storage = Server::new(move |request| blobs.answer(request));
    let elsewhere = storage.address;
    let issued = Arc::new(AtomicUsize::new(0));
    let count = issued.clone();
    let server = Server::new(move |request| {
        if request.path.starts_with("/token") {
            let login = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
            let asked = format!(
                "{} {}",
                request.path,
                String::from_utf8_lossy(&request.body)
            );
            assert!(
                asked.contains("scope=repository%3Ateam%2Fapp%3Apull")
                    && asked.contains("service=test"),
                "{asked}"
            );
            let identity = request.method == "POST"
                && String::from_utf8_lossy(&request.body).contains("refresh_token=a+refresh+token");
            if request.header("authorization") != login && !identity {
                return Response::new(401, b"");
            }
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            return Response::new(
                200,
                format!("{{\"access_token\":\"token{number}\",\"expires_in\":60}}").as_bytes(),
            );
        }
        // Every token is good for one kind of thing: the second is needed for blobs.
        let token = if request.path.contains("/blobs/") {
            "Bearer token2"
        } else {
            "Bearer token1"
        };
        if request.header("authorization") != token {
            let realm = format!(
                "Bearer realm=\"http://{}/token\",service=\"test\"",
                request.header("host")
            );
            return Response::new(401, b"").with("WWW-Authenticate", &realm);
        }
        if request.path.contains("/blobs/") {
            return Response::new(307, b"")
                .with("Location", &format!("http://{elsewhere}{}", request.path));
        }
        image.answer(request)
    });
    let host = server.host();
    bench.plain(&[&host]);
    std::fs::create_dir_all(bench.path("home/.docker")).unwrap();
    let write = |entry: serde_json::Value| {
        std::fs::write(
            bench.path("home/.docker/config.json"),
            json!({ "auths": { format!("{host}/team"): entry } }).to_string(),
        )
        .unwrap();
        issued.store(0, Ordering::Relaxed);
    };
    write(json!({ "auth": STANDARD.encode(format!("{USER}:{PASSWORD}")) }));
    assert_eq!(bench.what(&format!("{host}/team/app"), &[]), "secret");
    assert_eq!(issued.load(Ordering::Relaxed), 2);
    write(json!({ "identitytoken": "a refresh token" }));
    assert_eq!(bench.what(&format!("{host}/team/app"), &[]), "secret");
    write(json!({ "auth": STANDARD.encode("somebody:else") }));
    bench.refused(&format!("{host}/team/app"), 4, "denies access");

    let log = storage.log.lock().unwrap();
    assert!(
        log.len() >= 4
            && log
                .iter()
                .all(|request| request.header("authorization").is_empty())
    );
}

#[test]
fn a_blob_is_fetched_once_however_often_it_is_named() {
    let bench = Bench::new();
    let mut image = Image::default();
    let (first, second, third) = (
        image.add("first", 1000),
        image.add("second", 2000),
        image.add("third", 3000),
    );
    // The first again in the end: whoever has it already still needs it there.
    let stack = image.stack(&[&[&first][..], &[&second; 60][..], &[&third, &first][..]].concat());
    image.tag("latest", &stack);
    image.tag("base", &first);
    let many = image.stack(&[&second; 9000]);
    image.tag("many", &many);
    let server = image.serve();
    let host = server.host();
    bench.plain(&[&host]);
    let blobs = || {
        let mut asked: Vec<_> = server
            .asked()
            .into_iter()
            .filter(|line| line.contains("/blobs/"))
            .collect();
        server.log.lock().unwrap().clear();
        let all = asked.len();
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), all, "a blob was fetched twice");
        all
    };
    assert_eq!(bench.what(&format!("{host}/app"), &[]), "first");
    // Three layers and a configuration.
    assert_eq!(blobs(), 4);
    bench.pulled(&[&format!("{host}/app:base")]);
    blobs();
    bench.pulled(&[&format!("{host}/app:latest")]);
    assert_eq!(blobs(), 4);
    bench.refused(&format!("{host}/app:many"), 3, "at most 1024");
    assert_eq!(blobs(), 1);
}

#[test]
fn unknown_media_types_are_refused_by_name() {
    let bench = Bench::new();
    let of_type = |media_type: &str| {
        let mut image = Image::new("typed", 1000);
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&image.manifests["latest"].1).unwrap();
        manifest["layers"][0]["mediaType"] = json!(media_type);
        let manifest = image.manifest(fake::MANIFEST, &manifest);
        image.tag("latest", &manifest);
        let server = image.serve();
        bench.plain(&[&server.host()]);
        server
    };
    let tar = "application/vnd.oci.image.layer.v1.tar";
    for media_type in [
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.v1.tar+xz",
        "application/vnd.docker.image.rootfs.diff.tar.",
        "text/plain",
        "",
    ] {
        let server = of_type(media_type);
        bench.refused(
            &format!("{}/app", server.host()),
            1,
            &format!("{media_type:?}"),
        );
        assert!(
            !server
                .asked()
                .iter()
                .any(|line| line.contains(&Image::new("typed", 1000).layer().0))
        );
    }
    for media_type in [
        tar,
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        let server = of_type(media_type);
        assert_eq!(bench.what(&format!("{}/app", server.host()), &[]), "typed");
    }
}

/// It takes the half minute after which a connection is too slow.
#[test]
fn a_registry_that_sends_a_byte_a_second_is_given_up() {
    let bench = Bench::new();
    let mut image = Image::new("slow", 100_000);
    let layer = image.layer().0;
    let slow = AtomicUsize::new(0);
    let server = Server::new(move |request| {
        let mut answer = image.answer(request);
        if request.path.ends_with(&layer) && slow.fetch_add(1, Ordering::Relaxed) == 0 {
            answer.pause = Duration::from_millis(200);
        }
        answer
    });
    bench.plain(&[&server.host()]);
    let begin = Instant::now();
    assert_eq!(bench.what(&format!("{}/app", server.host()), &[]), "slow");
    assert!(
        begin.elapsed() > Duration::from_secs(25) && begin.elapsed() < Duration::from_secs(60),
        "{:?}",
        begin.elapsed()
    );
    let log = server.log.lock().unwrap();
    let ranges: Vec<_> = log
        .iter()
        .map(|request| request.header("range"))
        .filter(|range| !range.is_empty())
        .collect();
    assert!(
        matches!(ranges[..], [one] if one != "bytes=0-"),
        "{ranges:?}"
    );
}

#[test]
fn impossible_lengths_are_refused() {
    let bench = Bench::new();
    let image = Image::new("long", 100_000);
    let mut lying = image.clone();
    let (layer, _) = lying.layer();
    let server = Server::new(move |request| {
        let mut answer = image.answer(request);
        if request.path.ends_with(&layer) {
            if request.header("range").is_empty() {
                // Breaks, to be asked for the rest.
                answer.announced = Some(answer.body.len());
                answer.body.truncate(50_000);
            } else {
                answer.announced = Some(usize::MAX - 9);
            }
        }
        answer
    });
    bench.plain(&[&server.host()]);
    bench.refused(&format!("{}/app", server.host()), 3, "its descriptor says");

    let mut image = Image::new("claims", 1000);
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&image.manifests["latest"].1).unwrap();
    manifest["layers"][0]["size"] = json!(u64::MAX);
    let manifest = image.manifest(fake::MANIFEST, &manifest);
    image.tag("latest", &manifest);
    let server = image.serve();
    bench.plain(&[&server.host()]);
    bench.refused(&format!("{}/app", server.host()), 3, "are allowed");
}

/// Plain HTTP works on a system without certificates.
#[test]
fn no_certificates_are_needed_for_plain_http() {
    let bench = Bench::new();
    let server = Image::new("plain", 1000).serve();
    bench.plain(&[&server.host()]);
    let mut command = bench.command();
    command.args([
        "build",
        &format!("docker://{}/app", server.host()),
        "-o",
        "what.bfc",
    ]);
    run(command
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", bench.path("home")));
    assert_eq!(
        run(bench.command().args(["cat", "./what.bfc", "what"])),
        "plain"
    );
}
