//! Logging in and out: files that podman and skopeo write and read too, and credential helpers.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::common::{run, stderr};
use crate::fake::{Response, Server};
use crate::server::{PASSWORD, Registry, USER};

/// Runs `login` with the password on standard input.
fn login(bench: &Bench, password: &str, args: &[&str]) -> Output {
    let mut child = bench
        .command()
        .args(["login", "-u", USER, "--password-stdin"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may fail before it reads.
    let _ = writeln!(child.stdin.take().unwrap(), "{password}");
    child.wait_with_output().unwrap()
}

#[track_caller]
fn logged_in(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
    assert_eq!(output.stdout, b"Login Succeeded!\n");
}

#[track_caller]
fn failed(output: &Output, code: i32, said: &str) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.contains(said), "{message}");
    assert!(!message.contains(PASSWORD), "{message}");
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn entry() -> Value {
    json!({ "auth": STANDARD.encode(format!("{USER}:{PASSWORD}")) })
}

/// A bench with a registry that lets nobody but [`USER`] in.
fn guarded() -> (Bench, Registry, String) {
    let bench = Bench::new();
    bench.layout();
    let registry = Registry::with_login(&bench.path("registry"));
    bench.trust(&registry);
    let host = registry.host();
    (bench, registry, host)
}

#[test]
fn podman_and_skopeo_use_what_login_saves_and_login_what_they_save() {
    let (bench, _registry, host) = guarded();
    std::fs::create_dir(bench.path("run")).unwrap();
    let file = bench.path("run/containers/auth.json");
    let with_run = |command: &mut Command| {
        let mut again = bench.program(command.get_program());
        again
            .args(command.get_args())
            .env("XDG_RUNTIME_DIR", bench.path("run"));
        again
    };
    let mut child =
        with_run(
            bench
                .command()
                .args(["login", "--password-stdin", "-u", USER, &host]),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{PASSWORD}").unwrap();
    logged_in(&child.wait_with_output().unwrap());
    assert_eq!(read(&file), json!({ "auths": { &host: entry() } }));
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));

    let authfile = format!("--authfile {}", file.display());
    for program in ["podman", "skopeo"] {
        let user = bench.sh(&format!("{program} login --get-login {authfile} {host}"));
        assert_eq!(user.trim(), USER, "{program}");
    }
    bench.skopeo(&format!(
        "copy -q {authfile} --preserve-digests oci:layout:v1 docker://{host}/app:v1"
    ));
    let pulled = || {
        let source = format!("docker://{host}/app:v1");
        let build = ["build", &source, "-f", "-o", "image.bfc"];
        with_run(bench.command().args(build)).output().unwrap()
    };
    assert!(pulled().status.success());

    let logout = || {
        with_run(bench.command().args(["logout", &host]))
            .output()
            .unwrap()
    };
    let output = logout();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("Removed login credentials for {host}\n")
    );
    assert_eq!(read(&file), json!({ "auths": {} }));
    failed(&pulled(), 4, &format!("lxcri-fs login {host}`"));
    failed(&logout(), 5, "not logged in");

    for program in ["podman", "skopeo"] {
        bench.sh(&format!(
            "echo '{PASSWORD}' | {program} login -u {USER} --password-stdin {authfile} {host}"
        ));
        assert!(pulled().status.success(), "{program}");
        assert!(logout().status.success(), "{program}");
        assert_eq!(pulled().status.code(), Some(4), "{program}");
    }
}

#[test]
fn everything_else_in_the_file_stays() {
    let (bench, _registry, host) = guarded();
    let file = bench.path("auth.json");
    let other = json!({ "auth": STANDARD.encode("other:word") });
    let before = json!({
        "HttpHeaders": { "User-Agent": "x" },
        "auths": { "other.example": other, "https://index.docker.io/v1/": other },
        "credHelpers": { "helped.example": "test" },
        "detachKeys": "ctrl-e,e",
        "number": 1.5,
    });
    std::fs::write(&file, before.to_string()).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    // A symlink stays one.
    std::os::unix::fs::symlink("auth.json", bench.path("link.json")).unwrap();
    let authfile = ["--authfile", "link.json", &host];
    let changed = |auths: &[(&str, Value)]| {
        let mut expected = before.clone();
        for (key, entry) in auths {
            expected["auths"][key] = entry.clone();
        }
        expected
    };

    failed(
        &login(&bench, "wrong", &authfile),
        4,
        "does not accept this name and password",
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before.to_string());
    logged_in(&login(&bench, PASSWORD, &authfile));
    assert_eq!(read(&file), changed(&[(&host, entry())]));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(bench.path("link.json").is_symlink());
    // A part of a registry, beside the whole.
    let part = format!("{host}/team");
    logged_in(&login(
        &bench,
        PASSWORD,
        &["--authfile", "link.json", &part],
    ));
    assert_eq!(read(&file), changed(&[(&host, entry()), (&part, entry())]));
    let logout = |registry: &str| {
        let logout = ["logout", "--authfile", "link.json", registry];
        bench.command().args(logout).output().unwrap()
    };
    assert!(logout(&host).status.success());
    assert_eq!(read(&file), changed(&[(&part, entry())]));
    assert!(logout(&part).status.success());
    assert_eq!(read(&file), before);
    // Docker's URL is Docker Hub.
    assert!(logout("docker.io").status.success());
    assert_eq!(read(&file)["auths"], json!({ "other.example": other }));

    for (text, said) in [("[", "auth.json"), ("{\"auths\": []}", "auth.json")] {
        std::fs::write(&file, text).unwrap();
        failed(&login(&bench, PASSWORD, &authfile), 4, said);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}

#[test]
fn what_is_not_accepted_is_not_saved() {
    let (bench, _registry, host) = guarded();
    let file = bench.path("new/auth.json");
    let authfile = ["--authfile", "new/auth.json"];
    let with = |args: &[&'static str], host: &str| {
        let args: Vec<_> = authfile.iter().chain(args).copied().chain([host]).collect();
        login(&bench, PASSWORD, &args)
    };
    failed(
        &login(&bench, "wrong", &[&authfile[..], &[&host]].concat()),
        4,
        "does not accept",
    );
    failed(
        &with(&[], "no registry"),
        2,
        "is not the name of a registry",
    );
    failed(&with(&[], "app"), 2, "is not the name of a registry");
    failed(&with(&["--password", "x"], &host), 2, "unexpected argument");
    let colon = [
        "login",
        &host,
        "-u",
        "a:b",
        "--password-file",
        "policy.json",
    ];
    failed(
        &bench.command().args(colon).output().unwrap(),
        2,
        "not a user name",
    );
    let silent = bench
        .command()
        .args(["login", &host])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    failed(&silent, 2, "no terminal");
    // Another certificate than the trusted one.
    std::fs::remove_dir_all(bench.path("home/.config")).unwrap();
    failed(&with(&[], &host), 1, "certs.d");
    failed(&with(&["--tls-verify"], &host), 1, "certs.d");
    assert!(!bench.path("new").exists());
    logged_in(&with(&["--tls-verify=false"], &host));
    assert_eq!(read(&file), json!({ "auths": { &host: entry() } }));
    // The command line counts before the configuration.
    bench.plain(&[&host]);
    logged_in(&with(&[], &host));
    failed(&with(&["--tls-verify=true"], &host), 1, "certs.d");
    let all = ["logout", "--all", "--authfile", "new/auth.json"];
    assert_eq!(
        run(bench.command().args(all)),
        "Removed login credentials for all registries\n"
    );
    assert_eq!(read(&file), json!({ "auths": {} }));
}

#[test]
fn a_token_server_checks_name_and_password() {
    let bench = Bench::new();
    let server = Server::new(|request| {
        let login = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
        let token = request.path.starts_with("/token");
        match (token, request.header("authorization")) {
            (true, sent) if sent == login => Response::new(200, b"{\"token\":\"t\"}"),
            (false, "Bearer t") => Response::new(200, b"{}"),
            _ => Response::new(401, b"").with("WWW-Authenticate", &realm),
        }
    });
    let host = server.host();
    let args = [&host, "--tls-verify=false", "--authfile", "auth.json"];
    failed(&login(&bench, "wrong", &args), 4, "does not accept");
    assert!(!bench.path("auth.json").exists());
    logged_in(&login(&bench, PASSWORD, &args));
    assert_eq!(
        read(&bench.path("auth.json")),
        json!({ "auths": { &host: entry() } })
    );
    assert!(
        server.asked().iter().all(|line| !line.contains("scope=")),
        "{:?}",
        server.asked()
    );
}

#[test]
fn a_credential_helper_keeps_what_the_file_says_it_keeps() {
    let (bench, _registry, host) = guarded();
    let helper = bench.path("docker-credential-test");
    std::fs::write(
        &helper,
        "#!/bin/sh\nread line; echo \"$1 $line\" >> \"$HOME/log\"\n[ ! -e \"$HOME/none\" ] || \
         { echo 'credentials not found in native keychain'; exit 1; }\n",
    )
    .unwrap();
    bench.sh("chmod +x docker-credential-test");
    let file = bench.path("auth.json");
    let text = json!({ "credHelpers": { &host: "test" } }).to_string();
    std::fs::write(&file, &text).unwrap();
    let path = format!(
        "{}:{}",
        bench.dir.path().display(),
        std::env::var("PATH").unwrap()
    );
    let run = |args: &[&str]| {
        std::fs::write(bench.path("password"), PASSWORD).unwrap();
        let mut command = bench.command();
        command
            .args(args)
            .env("REGISTRY_AUTH_FILE", &file)
            .env("PATH", &path);
        command.output().unwrap()
    };
    let log = || std::fs::read_to_string(bench.path("home/log")).unwrap();
    logged_in(&run(&[
        "login",
        &host,
        "-u",
        USER,
        "--password-file",
        "password",
    ]));
    let stored: Value = serde_json::from_str(log().strip_prefix("store ").unwrap()).unwrap();
    let expected = json!({ "ServerURL": &host, "Username": USER, "Secret": PASSWORD });
    assert_eq!(stored, expected);
    assert!(run(&["logout", &host]).status.success());
    assert!(log().ends_with(&format!("erase {host}\n")), "{}", log());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    std::fs::write(bench.path("home/none"), "").unwrap();
    failed(&run(&["logout", &host]), 5, "not logged in");
}

/// Reads from a terminal until it shows a text.
fn shows(terminal: &mut Child, seen: &mut String, text: &str) {
    let mut byte = [0];
    let output = terminal.stdout.as_mut().unwrap();
    while !seen.contains(text) {
        assert_eq!(output.read(&mut byte).unwrap(), 1, "{seen:?}");
        seen.push(char::from(byte[0]));
    }
}

#[test]
fn what_is_not_given_is_asked_for_without_showing_the_password() {
    let (bench, _registry, host) = guarded();
    let mut terminal = bench
        .on_terminal(&format!("login {host} --authfile auth.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = String::new();
    let mut input = terminal.stdin.take().unwrap();
    shows(&mut terminal, &mut seen, "Username: ");
    writeln!(input, "{USER}").unwrap();
    shows(&mut terminal, &mut seen, "Password: ");
    writeln!(input, "{PASSWORD}").unwrap();
    shows(&mut terminal, &mut seen, "Login Succeeded!");
    assert!(terminal.wait().unwrap().success());
    assert!(!seen.contains(PASSWORD), "{seen}");
    assert_eq!(
        read(&bench.path("auth.json")),
        json!({ "auths": { &host: entry() } })
    );
}
