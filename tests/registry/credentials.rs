//! Files and helpers of credentials: which are used, and for whom.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::bench::Bench;
use crate::common::stderr;
use crate::fake::{Image, Response, Server};
use crate::server::{PASSWORD, USER};

/// What is wrong with files and helpers of credentials is said, and what needs none is fetched.
#[test]
fn images_that_need_no_login_are_fetched_whatever_the_credentials_are() {
    let bench = Bench::new();
    let image = Image::new("public", 1000);
    // Everybody gets a token, as at Docker Hub.
    let server = Server::new(move |request| {
        if request.path.starts_with("/token") {
            return Response::new(200, br#"{"token":"t"}"#);
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
        match request.header("authorization") {
            "Bearer t" => image.answer(request),
            _ => Response::new(401, b"").with("WWW-Authenticate", &realm),
        }
    });
    let host = server.host();
    bench.plain(&[&host]);
    let file = bench.path("auth.json");
    for (config, said) in [
        (
            json!({ "auths": {}, "credsStore": "not-installed" }),
            "not-installed",
        ),
        (
            json!({ "credHelpers": { &host: "../sh" } }),
            "not a valid name",
        ),
        (json!({ "auths": { &host: { "auth": "!" } } }), "not base64"),
        (json!(["what"]), "auth.json"),
        (json!({ "auths": {}, "credsStore": "" }), ""),
        (
            json!({ "auths": null, "credHelpers": null, "credsStore": null }),
            "",
        ),
        (json!({ "auths": { &host: { "auth": null } } }), ""),
        (
            json!({ "auths": { &host: null }, "credHelpers": { &host: null } }),
            "",
        ),
    ] {
        std::fs::write(&file, config.to_string()).unwrap();
        let output = bench
            .command()
            .args([
                "build",
                &format!("docker://{host}/app"),
                "-f",
                "-o",
                "image.bfc",
            ])
            .env("REGISTRY_AUTH_FILE", &file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{config}: {}", stderr(&output));
        let warned = stderr(&output);
        assert_eq!(
            warned.contains("without credentials"),
            !said.is_empty(),
            "{config}: {warned}"
        );
        assert!(warned.contains(said), "{config}: {warned}");
    }
    // A pipe that the user names may be the shell's; one in a home would be waited for without end.
    bench.sh("mkdir -p home/.docker; mkfifo home/.docker/config.json");
    let output = bench
        .command()
        .args(["build", &format!("docker://{host}/app"), "-f", "-o"])
        .arg("image.bfc")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("not a regular file"));
    let config = json!({ "auths": {} }).to_string();
    bench.sh(&format!(
        "export LXCRI_FS_CONFIG=config.toml
        REGISTRY_AUTH_FILE=<(echo '{config}') {} build docker://{host}/app -f -o image.bfc",
        env!("CARGO_BIN_EXE_lxcri-fs")
    ));
}

/// The setting `insecure` of a registry does not extend to the hosts that it names.
#[test]
fn credentials_go_to_no_plain_token_server_of_another_host() {
    let bench = Bench::new();
    let image = Image::new("secret", 1000);
    // Loopback has many addresses.
    let tokens = Server::at("127.0.0.2", |_| Response::new(200, b"{\"token\":\"t\"}"));
    let realm = format!("Bearer realm=\"http://{}/token\"", tokens.host());
    let server = Server::new(move |request| match request.header("authorization") {
        "Bearer t" => image.answer(request),
        _ => Response::new(401, b"").with("WWW-Authenticate", &realm),
    });
    let host = server.host();
    bench.plain(&[&host]);
    assert_eq!(bench.what(&format!("{host}/app"), &[]), "secret");
    assert!(!tokens.log.lock().unwrap().is_empty());
    tokens.log.lock().unwrap().clear();
    std::fs::create_dir_all(bench.path("home/.docker")).unwrap();
    for entry in [
        json!({ "auth": STANDARD.encode(format!("{USER}:{PASSWORD}")) }),
        json!({ "identitytoken": "a refresh token" }),
    ] {
        std::fs::write(
            bench.path("home/.docker/config.json"),
            json!({ "auths": { &host: entry } }).to_string(),
        )
        .unwrap();
        bench.refused(&format!("{host}/app"), 1, "no credentials are sent to it");
    }
    assert!(tokens.log.lock().unwrap().is_empty());
    let log = server.log.lock().unwrap();
    assert!(
        log.iter()
            .all(|request| ["", "Bearer t"].contains(&request.header("authorization")))
    );
}
