//! Plain HTTP: on this machine without further ado, elsewhere if the user says so.

use std::net::TcpListener;

use crate::bench::Bench;
use crate::common::{run, stderr};
use crate::fake::{Image, Server};
use crate::server::{PASSWORD, Registry, USER};

/// The name of a host that is this machine, which its name does not show.
const OTHER: &str = "registry.test";

/// Runs a command line in a world where [`OTHER`] is this machine. Returns exit code and messages.
fn elsewhere(bench: &Bench, script: &str) -> (Option<i32>, String) {
    std::fs::write(
        bench.path("hosts"),
        format!("127.0.0.1 localhost {OTHER}\n"),
    )
    .unwrap();
    let program = env!("CARGO_BIN_EXE_lxcri-fs");
    let script =
        format!("mount --bind hosts /etc/hosts; lxcri_fs() {{ {program} \"$@\"; }}\n{script}");
    let output = bench
        .program("unshare")
        .args(["-m", "bash", "-euc", &script])
        .output()
        .unwrap();
    (output.status.code(), stderr(&output))
}

#[test]
fn a_registry_on_this_machine_needs_no_configuration() {
    let bench = Bench::new();
    bench.layout();
    let registry = Registry::with_plain_login(&bench.path("registry"));
    let reference = format!("localhost:{}/team/app:v1", registry.port);
    let authfile = bench.path("auth.json");
    let run_with = |args: &[&str]| {
        run(bench
            .command()
            .args(args)
            .env("REGISTRY_AUTH_FILE", &authfile))
    };
    std::fs::write(bench.path("password"), PASSWORD).unwrap();
    let host = format!("localhost:{}", registry.port);
    run_with(&["login", &host, "-u", USER, "--password-file", "password"]);
    run_with(&["build", "oci:layout:v1", "-t", "app"]);
    run_with(&["push", "-q", "app", &reference]);
    run_with(&["pull", "-q", &reference]);
    // Asked for, a certificate is needed here too.
    let strict = ["pull", "-q", "--force", "--tls-verify", &reference];
    let output = bench
        .command()
        .args(strict)
        .env("REGISTRY_AUTH_FILE", &authfile)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    // Where there is https, nothing is sent without it.
    let guarded = Registry::with_login(&bench.path("guarded"));
    bench.refused(&format!("{}/app", guarded.host()), 1, "certificate");
    if TcpListener::bind("[::1]:0").is_ok() {
        let six = Server::at("::1", {
            let image = Image::new("six", 1000);
            move |request| image.answer(request)
        });
        let name = format!("{}/app", six.host());
        assert_eq!(bench.what(&name, &[]), "six");
        run_with(&["pull", "-q", &name]);
        assert_eq!(run_with(&["cat", &name, "what"]), "six");
    }
}

#[test]
fn elsewhere_tls_verify_false_allows_plain_http_and_any_certificate() {
    let bench = Bench::new();
    bench.app();
    let plain = Registry::start(&bench.path("plain"));
    let guarded = Registry::with_login(&bench.path("guarded"));
    std::fs::write(bench.path("password"), PASSWORD).unwrap();
    for registry in [&plain, &guarded] {
        let host = format!("{OTHER}:{}", registry.port);
        let name = format!("{host}/team/app:v1");
        let login = format!("login {host} -u {USER} --password-file password --authfile auth.json");
        for (command, code) in [
            (login, 1),
            (format!("push -q app {name}"), 1),
            (format!("pull -q {name} -t pulled"), 1),
            (format!("build docker://{name} -o built.bfc"), 1),
            (format!("append app docker://{name} -t appended"), 1),
            (format!("create web --image {name} --bundle bundle"), 1),
        ] {
            let exports = "export REGISTRY_AUTH_FILE=$PWD/auth.json";
            let (found, said) = elsewhere(&bench, &format!("{exports}; lxcri_fs {command}"));
            assert_eq!(found, Some(code), "{command}: {said}");
            assert!(said.contains("--tls-verify=false"), "{command}: {said}");
            // The mount of a container ends with its namespace, some time after its processes.
            let delete = match command.starts_with("create") {
                true => "; lxcri_fs delete web",
                false => "",
            };
            let command = format!("{exports}; lxcri_fs {command} --tls-verify=false{delete}");
            let (found, said) = elsewhere(&bench, &command);
            assert_eq!(found, Some(0), "{command}: {said}");
        }
        let remove = "lxcri_fs rm pulled appended; rm built.bfc";
        let (code, said) = elsewhere(&bench, remove);
        assert_eq!(code, Some(0), "{said}");
    }
}
