//! A container's configuration follows that of its image, as umoci reads it.

use std::path::Path;
use std::process::Command;

use crate::common::{build_image, lxcri_fs, run, stderr};
use crate::containers::{image, inside, layout, pass};
use serde_json::Value;

/// `config.json` of a container of this image, and umoci's.
fn both(config: &[&str]) -> (Value, Value) {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(temp.path(), config);
    let image = temp.path().join("t.bfc");
    build_image(format!("oci:{}:t", layout.display()), &image);
    let ours = pass(
        &image,
        "lxcri_fs create c --image $IMAGE --bundle /run/b >/dev/null; cat b/config.json; lxcri_fs \
         delete c",
    );
    let bundle = temp.path().join("umoci");
    run(Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:t", layout.display()))
        .arg(&bundle));
    let theirs = std::fs::read_to_string(bundle.join("config.json")).unwrap();
    (
        serde_json::from_str(&ours).unwrap(),
        serde_json::from_str(&theirs).unwrap(),
    )
}

/// Args, environment, directory and user are umoci's; returns ours.
#[track_caller]
fn agrees(config: &[&str]) -> Value {
    let (ours, theirs) = both(config);
    for field in ["args", "env", "cwd", "user"] {
        assert_eq!(
            ours["process"][field], theirs["process"][field],
            "{field} of {config:?}"
        );
    }
    // umoci writes fields that the image does not have, as empty ones.
    let theirs = theirs["annotations"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, value)| **value != "");
    for (name, value) in theirs {
        assert_eq!(
            ours["annotations"][name], *value,
            "annotation {name} of {config:?}"
        );
    }
    ours
}

#[test]
fn a_user_by_name_with_groups_and_a_shell_form() {
    let command = [
        "--config.user",
        "app",
        "--config.entrypoint",
        "/bin/sh",
        "--config.entrypoint",
        "-c",
        "--config.cmd",
        "echo \"$HOME\" 'a  b'",
    ];
    let ours = agrees(
        &[
            &command[..],
            &["--config.env", "PATH=/bin", "--config.env", "X=a=b c"],
        ]
        .concat(),
    );
    assert_eq!(
        ours["process"]["user"],
        serde_json::json!({ "uid": 1000, "gid": 1001, "additionalGids": [2000, 33] })
    );
    assert_eq!(
        ours["process"]["env"],
        serde_json::json!(["PATH=/bin", "TERM=xterm", "X=a=b c", "HOME=/home/app"])
    );
}

#[test]
fn a_numeric_user_with_a_group() {
    assert_eq!(
        agrees(&["--config.user", "1000:33", "--config.cmd", "id"])["process"]["user"],
        serde_json::json!({ "uid": 1000, "gid": 33 })
    );
    assert_eq!(
        agrees(&["--config.user", "4242", "--config.cmd", "id"])["process"]["user"],
        serde_json::json!({ "uid": 4242, "gid": 0 })
    );
}

#[test]
fn an_image_without_configuration() {
    assert_eq!(agrees(&[])["process"]["args"], serde_json::json!(["sh"]));
}

#[test]
fn volumes_ports_labels_signals_and_a_missing_directory() {
    let config = [
        "--config.volume",
        "/data",
        "--config.exposedports",
        "80/tcp",
        "--config.exposedports",
        "443/tcp",
        "--config.label",
        "org.opencontainers.image.title=b",
    ];
    let ours = agrees(
        &[
            &config[..],
            &[
                "--config.stopsignal",
                "SIGUSR1",
                "--config.workingdir",
                "/srv/not/there",
                "--config.cmd",
                "pwd",
            ],
        ]
        .concat(),
    );
    assert_eq!(ours["process"]["cwd"], "/srv/not/there");
    let mounts = ours["mounts"].as_array().unwrap();
    let volume = mounts.iter().find(|m| m["destination"] == "/data").unwrap();
    assert_eq!(volume["type"], "bind");
    assert!(
        volume["source"]
            .as_str()
            .unwrap()
            .ends_with("/volumes/data")
    );
    assert_eq!(
        ours["annotations"]["org.opencontainers.image.stopSignal"],
        "SIGUSR1"
    );
    assert_eq!(
        ours["annotations"]["org.opencontainers.image.exposedPorts"],
        "443/tcp,80/tcp"
    );
}

/// `config.json` of containers of an image, one for each `create` of the script with its options.
fn configs(image: &Path, script: &str) -> Vec<Value> {
    let create = r#"
        create() {
            lxcri_fs create c --image $IMAGE --bundle /run/b "$@" >/dev/null
            cat b/config.json
            lxcri_fs delete c
        }
        "#;
    serde_json::Deserializer::from_str(&pass(image, &format!("{create}{script}")))
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap()
}

#[test]
fn options_override_the_image_configuration() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(
        temp.path(),
        &[
            "--config.entrypoint",
            "/bin/echo",
            "--config.cmd",
            "image",
            "--config.volume",
            "/data",
        ],
    );
    std::fs::write(
        temp.path().join("seccomp.json"),
        r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#,
    )
    .unwrap();
    let configs = configs(
        &image,
        r#"create -- a 'b c'
        create --entrypoint /bin/cat --env A=1 --user 7:8 --workdir /w --hostname h --read-only \
            --tty --allow-new-privileges -- x
        create --entrypoint '' --idmap 0:100000:65536 --seccomp "$(dirname $IMAGE)/seccomp.json" \
            -- id"#,
    );
    assert_eq!(
        configs[0]["process"]["args"],
        serde_json::json!(["/bin/echo", "a", "b c"])
    );
    assert_eq!(configs[0]["hostname"], "c");
    let second = &configs[1]["process"];
    assert_eq!(second["args"], serde_json::json!(["/bin/cat", "x"]));
    assert!(second["env"].as_array().unwrap().contains(&"A=1".into()));
    assert_eq!(
        (
            &second["user"]["uid"],
            &second["user"]["gid"],
            &second["cwd"]
        ),
        (&7.into(), &8.into(), &"/w".into())
    );
    assert_eq!(
        (&second["terminal"], &second["noNewPrivileges"]),
        (&true.into(), &false.into())
    );
    assert_eq!(
        (&configs[1]["hostname"], &configs[1]["root"]["readonly"]),
        (&"h".into(), &true.into())
    );
    assert!(
        configs[1]["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .any(|m| m["destination"] == "/data" && m["type"] == "bind")
    );
    assert_eq!(configs[2]["process"]["args"], serde_json::json!(["id"]));
    assert_eq!(
        configs[2]["linux"]["uidMappings"],
        serde_json::json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }])
    );
    assert_eq!(
        configs[2]["linux"]["seccomp"]["defaultAction"],
        "SCMP_ACT_ALLOW"
    );
}

/// Docker's builder leaves `[""]` behind when a Dockerfile says `ENTRYPOINT [""]`, and its daemon
/// runs the command.
#[test]
fn an_entrypoint_of_one_empty_word_is_none() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(
        temp.path(),
        &[
            "--config.entrypoint",
            "",
            "--config.cmd",
            "/bin/echo",
            "--config.cmd",
            "image",
        ],
    );
    let args: Vec<Value> = configs(&image, "create; create -- /bin/ls -l")
        .iter()
        .map(|config| config["process"]["args"].clone())
        .collect();
    assert_eq!(
        args,
        [
            serde_json::json!(["/bin/echo", "image"]),
            serde_json::json!(["/bin/ls", "-l"])
        ]
    );
}

/// Go's programs write null for what is empty, and read it as if it were not there.
#[test]
fn nulls_in_a_configuration_are_what_go_takes_them_for() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(temp.path(), &["--config.cmd", "/bin/echo"]);
    let script = r#"
        import hashlib, json, pathlib, sys
        oci = pathlib.Path(sys.argv[1])
        blob = lambda d: oci / "blobs" / d["digest"].replace(":", "/")
        def put(d, value):
            data = json.dumps(value).encode()
            d.update(digest="sha256:" + hashlib.sha256(data).hexdigest(), size=len(data))
            blob(d).write_bytes(data)
        index = json.loads((oci / "index.json").read_text())
        manifest = json.loads(blob(index["manifests"][0]).read_text())
        config = json.loads(blob(manifest["config"]).read_text())
        config["history"][0]["empty_layer"] = None
        config["history"].append(None)
        config["author"] = None
        config["config"].update(Entrypoint=None, Labels={"a": None, "b": "c"})
        config["config"].update(Volumes={"/data": None}, ExposedPorts={"80/tcp": None})
        put(manifest["config"], config)
        put(index["manifests"][0], manifest)
        (oci / "index.json").write_text(json.dumps(index))"#;
    let script: String = script
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix("        ").unwrap_or(line)))
        .collect();
    run(Command::new("python3").args(["-c", &script]).arg(&layout));
    let image = temp.path().join("null.bfc");
    run(lxcri_fs()
        .arg("build")
        .arg(format!("oci:{}:t", layout.display()))
        .arg("-o")
        .arg(&image));
    let config = configs(&image, "create --read-only").remove(0);
    assert_eq!(config["process"]["args"], serde_json::json!(["/bin/echo"]));
    let mounts = config["mounts"].as_array().unwrap();
    assert!(
        mounts.iter().any(|m| m["destination"] == "/data"),
        "{mounts:?}"
    );
}

/// An image must neither choose what is mounted nor lead out of itself.
#[test]
fn hostile_configurations_are_refused_or_have_no_effect() {
    let temp = tempfile::tempdir().unwrap();
    let refused = |name: &str, config: &[&str], said: &str| {
        let dir = temp.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let output = inside(
            &image(&dir, config),
            "lxcri_fs create c --image $IMAGE --bundle /run/b || { left; ls -A /run/b 2>/dev/null \
             || :; exit 1; }",
        );
        assert_eq!(output.status.code(), Some(1), "{name}: {}", stderr(&output));
        assert!(
            stderr(&output).contains(said),
            "{name}: {}",
            stderr(&output)
        );
        assert!(
            output.stdout.is_empty(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    };
    refused("user", &["--config.user", "nobody"], "no user \"nobody\"");
    refused(
        "signal",
        &["--config.stopsignal", "SIGNONE"],
        "is not a signal",
    );
    refused("platform", &["--architecture", "s390x"], "linux/s390x");
    let dir = temp.path().join("label");
    std::fs::create_dir(&dir).unwrap();
    let image = image(
        &dir,
        &[
            "--config.label",
            "org.lxcri-fs.image=/etc/passwd",
            "--config.cmd",
            "true",
        ],
    );
    let config = pass(
        &image,
        "lxcri_fs create c --image $IMAGE --bundle /run/b >/dev/null; cat b/config.json; lxcri_fs \
         delete c",
    );
    assert!(!config.contains("org.lxcri-fs.image"), "{config}");
    let output = inside(
        &image,
        "lxcri_fs create c --image $IMAGE --bundle /run/b --annotation org.lxcri-fs.image",
    );
    assert!(
        stderr(&output).contains("is a reserved annotation"),
        "{}",
        stderr(&output)
    );
    let lxc = inside(
        &image,
        "mkdir lxc; lxcri_fs create c --image $IMAGE --lxc --lxc-path /run/lxc -e \"A=$(printf \
         '1\nlxc.x = y')\"; cat lxc/c/config",
    );
    let lxc = String::from_utf8_lossy(&lxc.stdout).into_owned();
    assert!(
        lxc.contains("lxc.init.cmd = /bin/sh -c eval")
            && !lxc.lines().any(|l| l.starts_with("lxc.x")),
        "{lxc}"
    );
}

/// Runtimes do things because of annotations (crun: `run.oci.hooks.stdout` is a file of the host),
/// so labels become some only when that is asked for.
#[test]
fn labels_become_annotations_only_by_name_or_on_request() {
    let temp = tempfile::tempdir().unwrap();
    let label = |text| ["--config.label", text];
    let labels = [
        label("run.oci.hooks.stdout=/run/made"),
        label("run.oci.keep_original_groups=1"),
        label("a=b"),
        label("org.opencontainers.image.title=t"),
    ];
    let image = image(
        temp.path(),
        &[&labels.concat()[..], &["--config.cmd", "id"]].concat(),
    );
    let annotations = |args: &str| -> Value {
        let text = pass(
            &image,
            &format!(
                "lxcri_fs create c --image $IMAGE --bundle /run/b {args} >/dev/null; cat \
                 b/config.json; lxcri_fs delete c"
            ),
        );
        serde_json::from_str::<Value>(&text).unwrap()["annotations"].take()
    };
    let plain = annotations("");
    assert_eq!(plain["org.opencontainers.image.title"], "t");
    assert!(
        plain
            .as_object()
            .unwrap()
            .keys()
            .all(|k| k.starts_with("org.") || k == "run.oci.hooks.stderr"),
        "{plain}"
    );
    let asked = annotations(
        "--annotation a --annotation x=y=z --annotation org.opencontainers.image.title=mine",
    );
    assert_eq!(
        (
            &asked["a"],
            &asked["x"],
            &asked["org.opencontainers.image.title"]
        ),
        (&"b".into(), &"y=z".into(), &"mine".into())
    );
    assert_eq!(asked["run.oci.hooks.stdout"], Value::Null);
    let output = inside(
        &image,
        "lxcri_fs create c --image $IMAGE --bundle /run/b --annotation none",
    );
    assert!(
        stderr(&output).contains("no label \"none\""),
        "{}",
        stderr(&output)
    );
    pass(
        &image,
        "lxcri_fs create c --image $IMAGE --bundle /run/b; crun --cgroup-manager=disabled run -b \
         b c >/dev/null; [ ! -e made ]; lxcri_fs delete c",
    );
}

/// Nothing is mounted over the kernel's file systems, under whatever name; other volumes are where
/// a process looks for them.
#[test]
fn volumes_lie_in_the_image_and_never_over_kernel_file_systems() {
    let temp = tempfile::tempdir().unwrap();
    let made = |name: &str, volume: &str, target: &str| {
        let dir = temp.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let image = image(&dir, &["--config.volume", volume, "--config.cmd", "true"]);
        // umoci has no option for symlinks: one more layer.
        let root = dir.join("links");
        std::fs::create_dir(&root).unwrap();
        if !target.is_empty() {
            std::os::unix::fs::symlink(target, root.join("l")).unwrap();
        }
        run(Command::new("umoci")
            .args([
                "insert",
                "--image",
                &format!("{}:t", dir.join("oci").display()),
            ])
            .arg(&root)
            .arg("/links"));
        run(lxcri_fs()
            .arg("build")
            .arg(format!("oci:{}:t", dir.join("oci").display()))
            .args(["--force", "-o"])
            .arg(&image));
        image
    };
    let refused = [
        ("proc", "/proc", ""),
        ("below", "/sys/fs/cgroup", ""),
        ("dots", "/data/../dev/", ""),
        ("root", "/", ""),
        ("above", "/a/../..", ""),
        ("link", "/links/l", "/proc"),
        ("relative", "/links/l/kernel", "../data/../sys"),
    ];
    for (name, volume, target) in refused {
        let image = made(name, volume, target);
        let output = inside(
            &image,
            "lxcri_fs create c --image $IMAGE --bundle /run/b --read-only",
        );
        assert!(
            stderr(&output).contains("which would hide"),
            "{name}: {}",
            stderr(&output)
        );
        // Nothing is mounted for it otherwise.
        pass(
            &image,
            "lxcri_fs create c --image $IMAGE --bundle /run/b; crun --cgroup-manager=disabled run \
             -b b c; lxcri_fs delete c; nothing_is_left",
        );
    }
    for (name, volume, target, expected) in [
        ("up", "/data/../x", "", "/x"),
        ("over", "/a/../../b", "", "/b"),
        ("data", "/links/l/v", "/data", "/data/v"),
    ] {
        let image = made(name, volume, target);
        let config = pass(
            &image,
            "lxcri_fs create c --image $IMAGE --bundle /run/b --read-only >/dev/null; cat \
             b/config.json; lxcri_fs delete c",
        );
        let config: Value = serde_json::from_str(&config).unwrap();
        let mounts = config["mounts"].as_array().unwrap();
        assert!(
            mounts
                .iter()
                .any(|m| m["destination"] == expected && m["type"] == "bind"),
            "{name}: {config}"
        );
    }
}

/// passwd may be a symlink, which is resolved inside the image.
#[test]
fn users_are_those_of_the_image() {
    let temp = tempfile::tempdir().unwrap();
    let root = crate::containers::rootfs(temp.path());
    std::fs::rename(root.join("etc/passwd"), root.join("data/users")).unwrap();
    std::os::unix::fs::symlink("../../../../data/users", root.join("etc/passwd")).unwrap();
    let image = temp.path().join("t.bfc");
    let build = |image: &Path| {
        run(lxcri_fs()
            .arg("build")
            .arg(&root)
            .arg("--force")
            .arg("-o")
            .arg(image))
    };
    build(&image);
    let script = "lxcri_fs create c --image $IMAGE --bundle /run/b --user app >/dev/null && grep \
                  uid b/config.json; rc=$?; lxcri_fs delete c; exit $rc";
    assert!(pass(&image, script).contains("1000"));
    std::fs::remove_file(root.join("etc/passwd")).unwrap();
    std::os::unix::fs::symlink(
        "/etc/../../../../etc/shadow-of-the-host",
        root.join("etc/passwd"),
    )
    .unwrap();
    build(&image);
    let output = inside(
        &image,
        "lxcri_fs create c --image $IMAGE --bundle /run/b --user root",
    );
    assert!(
        stderr(&output).contains("no user \"root\""),
        "{}",
        stderr(&output)
    );
}
