//! registries.conf, which podman and skopeo read too: the same file leads all of them to the same
//! images.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::bench::Bench;
use crate::common::{run, stderr};
use crate::fake::{Image, Response, Server, sha256};
use crate::server::Registry;

const HOMES: &str = "home/.config/containers/registries.conf";

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// `[[registry]]` with a prefix and an insecure location.
fn rewrite(prefix: &str, location: &str) -> String {
    format!("[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{location}\"\ninsecure = true\n")
}

/// The digest of what is pulled.
fn digest(bench: &Bench, reference: &str) -> String {
    let pulled = bench.pulled(&["--force", reference]);
    pulled["manifest_digest"].as_str().unwrap().to_owned()
}

#[test]
fn skopeo_and_pull_find_the_same_image() {
    let bench = Bench::new();
    bench.layout();
    let registry = Registry::start(&bench.path("registry"));
    let host = registry.host();
    let push = "copy -q --dest-tls-verify=false --preserve-digests oci:layout:v1";
    for name in ["real/app", "mirror/app"] {
        bench.skopeo(&format!("{push} docker://{host}/{name}:v1"));
    }
    bench.skopeo(&format!(
        "copy -q --src-tls-verify=false --dest-tls-verify=false --format v2s2 \
         docker://{host}/real/app:v1 docker://{host}/mirror/app:other"
    ));
    let mirror = format!("[[registry.mirror]]\nlocation = \"{host}/mirror\"\ninsecure = true\n");
    let conf = [
        rewrite("team.example/here", &format!("{host}/real")),
        rewrite("mirrored.example", &format!("{host}/real")),
        mirror,
        rewrite("*.wild.example", &format!("{host}/real")),
    ];
    write(&bench.path(HOMES), &conf.concat());
    for name in [
        "team.example/here/app:v1",
        "mirrored.example/app:v1",
        "mirrored.example/app:other",
        "any.wild.example/app:v1",
    ] {
        let inspected = bench.skopeo(&format!(
            "inspect --no-tags --format {{{{.Digest}}}} docker://{name}"
        ));
        assert_eq!(digest(&bench, name), inspected.trim(), "{name}");
    }
    // The image has the name that it was asked for by.
    assert!(run(bench.command().arg("list")).contains("team.example/here/app:v1"));
}

#[test]
fn mirrors_and_aliases_are_used_as_the_file_says() {
    let bench = Bench::new();
    let broken = Server::new(|_| Response::new(404, b""));
    let mirror = Image::new("mirror", 1000);
    let by_digest = sha256(&mirror.manifests["latest"].1);
    let mirror = mirror.serve();
    let registry = Image::new("registry", 1000).serve();
    let at = |server: &Server, uses: &str| {
        format!(
            "[[registry.mirror]]\nlocation = \"{}/cache\"\ninsecure = true\n{uses}",
            server.host()
        )
    };
    let conf = |mirrors: &[String]| {
        let registry = rewrite("upstream.example", &registry.host());
        let aliases = "[aliases]\nshort = \"upstream.example/team/app\"\n";
        write(
            &bench.path("r.conf"),
            &[registry, mirrors.concat(), aliases.into()].concat(),
        );
    };
    let cat = |args: &[&str], name: &str| {
        let with = |command: &mut Command| {
            run(command.env("CONTAINERS_REGISTRIES_CONF", bench.path("r.conf")))
        };
        with(bench.command().args(["pull", "-q", "--force"]).args(args));
        with(bench.command().args(["cat", name, "what"]))
    };
    conf(&[at(&broken, ""), at(&mirror, "")]);
    let name = "upstream.example/team/app";
    assert_eq!(cat(&[name], name), "mirror");
    assert!(broken.asked()[0].ends_with(" /v2/cache/team/app/manifests/latest"));
    conf(&[
        at(&broken, ""),
        at(&mirror, "pull-from-mirror = \"digest-only\"\n"),
    ]);
    assert_eq!(cat(&[name], name), "registry");
    let with_digest = format!("{name}@{by_digest}");
    assert_eq!(cat(&[&with_digest, "-t", "digest"], "digest"), "mirror");
    conf(&[]);
    assert_eq!(cat(&["short"], "short:latest"), "registry");
    assert!(run(bench.command().arg("list")).contains("upstream.example/team/app:latest"));
    // What has the name itself comes first.
    run(bench.command().args(["tag", "digest", "short"]));
    assert_eq!(
        run(bench.command().args(["cat", "short", "what"])),
        "mirror"
    );
    // `docker://` is what it is for skopeo: Docker Hub's.
    let output = bench.build("short", "no.bfc", &[]);
    assert!(stderr(&output).contains("docker.io"), "{}", stderr(&output));
}

#[test]
fn what_is_blocked_or_malformed_is_refused() {
    let bench = Bench::new();
    let server = Image::new("open", 1000).serve();
    let host = server.host();
    let name = format!("{host}/team/app");
    let conf = bench.path(HOMES);
    let blocked = format!("[[registry]]\nlocation = \"{host}/team\"\nblocked = true\n");
    write(&conf, &blocked);
    let pull = || bench.pull(&[&name]);
    let push = || {
        bench
            .command()
            .args(["push", "./what.bfc", &name])
            .output()
            .unwrap()
    };
    bench.plain(&["other.example"]);
    let insecure = format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    write(
        &bench.path("home/.config/containers/registries.conf.d/a.conf"),
        &insecure,
    );
    assert_eq!(bench.what(&format!("{host}/app"), &[]), "open");
    for output in [pull(), push()] {
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(&format!("{name} is blocked by {}", conf.display())),
            "{said}"
        );
    }
    // The configuration of lxcri-fs counts first.
    bench.plain(&[&host]);
    assert!(pull().status.success());

    write(
        &conf,
        &format!("{blocked}\n[[registry]]\nprefix = \"x.example\"\n"),
    );
    let said = stderr(&pull());
    assert!(
        said.contains(&format!("{}, line 5: ", conf.display())),
        "{said}"
    );
    assert!(said.contains("has no location"), "{said}");
    // What needs no registry needs no such file.
    run(bench.command().arg("list"));
    let missing = bench
        .command()
        .args(["pull", &name])
        .env("CONTAINERS_REGISTRIES_CONF", "no.conf")
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(5), "{}", stderr(&missing));
    std::fs::remove_file(&conf).unwrap();
    bench.sh(&format!("mkfifo {HOMES}"));
    assert!(stderr(&pull()).contains("not a regular file"));
}

/// Root and another user have the system's files, and a home and a cache each.
#[test]
fn the_files_of_system_and_user_are_read_in_podmans_order() {
    let bench = Bench::new();
    let (first, second) = (
        Image::new("first", 1000).serve(),
        Image::new("second", 1000).serve(),
    );
    let alias = |name: &str| format!("[aliases]\n{name} = \"{name}.example/app\"\n");
    let files = bench.path("files");
    write(
        &files.join("etc/registries.conf"),
        &[rewrite("app.example", &first.host()), alias("etc")].concat(),
    );
    let drop_in = |number: u32, to: &Server| {
        let path = files.join(format!("etc/registries.conf.d/{number}.conf"));
        write(&path, &rewrite("dropped.example", &to.host()));
    };
    drop_in(10, &first);
    drop_in(20, &second);
    write(&files.join("etc/registries.conf.d/30.conf.bak"), "[");
    for place in ["root/containers", "home/.cache/containers"] {
        let conf = "[aliases]\nrecorded = \"app.example/recorded\"\n";
        write(&bench.path(place).join("short-name-aliases.conf"), conf);
    }
    // Where any user may execute it.
    let program = bench.path("program");
    std::fs::copy(env!("CARGO_BIN_EXE_lxcri-fs"), &program).unwrap();
    let program = program.display();
    std::fs::set_permissions(bench.dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let what = |user: &str, name: &str| {
        let script = format!(
            "mount --bind files/etc /etc/containers
             mkdir -p /var/cache/containers; mount --bind root/containers /var/cache/containers
             rm -rf store what.bfc; mkdir -m 777 store
             {user} {program} pull -q {name} -o what.bfc >&2
             {user} {program} cat ./what.bfc what"
        );
        run(bench
            .command()
            .args(["--help"])
            .get_envs()
            .fold(
                &mut Command::new("unshare"),
                |command, (name, value)| match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                },
            )
            .args(["-m", "bash", "-euc", &script])
            .current_dir(bench.dir.path()))
    };
    for user in ["", "setpriv --reuid 12345 --regid 12345 --clear-groups"] {
        assert_eq!(what(user, "app.example/app"), "first", "{user}");
        assert_eq!(what(user, "dropped.example/app"), "second", "{user}");
        assert_eq!(what(user, "recorded"), "first", "{user}");
    }
    // A user's own file is read instead of the system's, drop-ins included.
    write(
        &bench.path(HOMES),
        &rewrite("dropped.example", &first.host()),
    );
    assert_eq!(what("", "dropped.example/app"), "first");
    // Their drop-ins are added to the system's otherwise.
    std::fs::remove_file(bench.path(HOMES)).unwrap();
    let own = bench.path("home/.config/containers/registries.conf.d/00.conf");
    write(&own, &rewrite("dropped.example", &first.host()));
    assert_eq!(what("", "dropped.example/app"), "first");
    assert_eq!(what("", "app.example/app"), "first");
}
