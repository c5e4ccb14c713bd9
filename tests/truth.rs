//! Commands tell the truth about mounts: they take the mounts from mountinfo, and ask each whether
//! it answers. They name a dead or hung mount, never wait for it, and mount it again where that is
//! their task. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Mounted, build_image, eventually, golden, lxcri_fs, run, stderr};
use serde_json::Value;

struct Fixture {
    _temp: tempfile::TempDir,
    top: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().canonicalize().unwrap();
        let script =
            "chmod 755 .; mkdir -p root/bin m lxc; cp /bin/true root/bin; echo text > root/file";
        run(Command::new("sh").args(["-euc", script]).current_dir(&top));
        build_image(top.join("root"), &top.join("image.bfc"));
        Self { _temp: temp, top }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = lxcri_fs();
        command.args(args).env(
            "LXCRI_FS_STORE",
            format!("dir:{}", self.path("store").display()),
        );
        command
    }

    fn run(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn mount(&self, args: &[&str]) -> Mounted {
        let image = self.path("image.bfc");
        let all: Vec<&str> = args
            .iter()
            .copied()
            .chain([image.to_str().unwrap()])
            .collect();
        Mounted::new(&all, &self.path("m"))
    }

    /// A container; its root file system.
    fn create(&self, name: &str, target: &[&str]) {
        let image = self.path("image.bfc");
        let mut args = vec!["create", name, "--image", image.to_str().unwrap()];
        args.extend(target);
        args.extend(["--", "/bin/true"]);
        self.run(&args);
    }

    /// What `ps` says of what is mounted at a directory.
    fn ps(&self, dir: &Path) -> Option<Value> {
        let rows = self.run(&["ps", "--json"]);
        let rows = rows
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let dir = dir.to_str().unwrap();
        rows.into_iter().find(|row| {
            row["mountpoints"]
                .as_array()
                .unwrap()
                .iter()
                .any(|m| m == dir)
        })
    }

    fn state(&self, dir: &Path) -> String {
        self.ps(dir).map_or_else(
            || "not there".to_owned(),
            |row| row["state"].as_str().unwrap().to_owned(),
        )
    }

    /// Kills the processes that serve a directory, as the out-of-memory killer would.
    fn kill(&self, dir: &Path, who: &[&str]) {
        let row = eventually("row of the mount", || {
            self.ps(dir).filter(|row| row["worker"].is_u64())
        });
        for name in who {
            signal("KILL", row[name].as_u64().unwrap());
        }
        for name in who {
            let pid = row[name].as_u64().unwrap();
            let is_gone = || {
                std::fs::read_to_string(format!("/proc/{pid}/stat"))
                    .map_or(true, |stat| stat.contains(") Z "))
            };
            eventually("end of the process", || is_gone().then_some(()));
        }
    }

    /// What `doctor` finds bad about mounts.
    fn bad(&self) -> String {
        let output = self.output(&["doctor", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let is_bad =
            |l: &&str| l.contains("\"about\":\"mounts\"") && l.contains("\"level\":\"bad\"");
        // Other tests have theirs.
        let bad: Vec<&str> = text
            .lines()
            .filter(is_bad)
            .filter(|l| l.contains(self.top.to_str().unwrap()))
            .collect();
        assert!(bad.is_empty() || output.status.code() == Some(1));
        bad.join("\n")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        for path in text
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|path| Path::new(path).starts_with(&self.top))
        {
            let _ = Command::new("umount").arg("-l").arg(path).status();
        }
    }
}

fn signal(name: &str, pid: u64) {
    run(Command::new("kill").args([format!("-{name}"), pid.to_string()]));
}

const ALL: [&str; 2] = ["keeper", "worker"];

#[test]
fn a_container_with_a_dead_root_is_named_and_remounted_with_its_upper() {
    let fixture = Fixture::new();
    let bundle = fixture.path("b");
    let root = bundle.join("rootfs");
    fixture.create("c1", &["--bundle", bundle.to_str().unwrap()]);
    std::fs::write(root.join("new"), "written").unwrap();
    assert_eq!(
        (fixture.state(&root).as_str(), fixture.bad().as_str()),
        ("serving", "")
    );
    fixture.kill(&root, &ALL);
    assert!(std::fs::read(root.join("bin/true")).is_err());
    assert_eq!(fixture.state(&root), "dead");
    assert!(fixture.run(&["ps"]).contains("lxcri-fs mount --all"));
    assert!(fixture.bad().contains(root.to_str().unwrap()));
    let inspected: Value =
        serde_json::from_str(&fixture.run(&["inspect", "--json", "c1"])).unwrap();
    assert_eq!(
        (&inspected["mounted"], &inspected["answer"]),
        (&Value::Bool(true), &Value::from("dead"))
    );
    assert!(
        fixture
            .run(&["inspect", "c1"])
            .contains("no process serves it")
    );

    // Not while a process stands on it.
    let mut user = Command::new("sleep")
        .arg("60")
        .current_dir(&root)
        .spawn()
        .unwrap();
    let output = fixture.output(&["mount", "--all"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("c1") && stderr(&output).contains("sleep"),
        "{}",
        stderr(&output)
    );
    user.kill().unwrap();
    user.wait().unwrap();

    fixture.run(&["mount", "--all"]);
    assert_eq!(
        std::fs::read_to_string(root.join("new")).unwrap(),
        "written"
    );
    assert_eq!(
        (fixture.state(&root).as_str(), fixture.bad().as_str()),
        ("serving", "")
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(
        mounts
            .lines()
            .filter(|l| l.contains(&format!(" {} ", root.display())))
            .count(),
        1
    );
    fixture.run(&["delete", "c1"]);
    assert_eq!(fixture.state(&root), "not there");
}

#[test]
fn the_lxc_hook_remounts_a_dead_root_before_the_start() {
    let fixture = Fixture::new();
    fixture.create(
        "c2",
        &["--lxc", "--lxc-path", fixture.path("lxc").to_str().unwrap()],
    );
    let root = fixture.path("lxc/c2/rootfs");
    let hook = || {
        let mut hook = fixture.command(&["hook", "lxc"]);
        hook.env("LXC_HOOK_TYPE", "pre-start")
            .env("LXC_NAME", "c2")
            .output()
            .unwrap()
    };
    fixture.kill(&root, &ALL);
    assert_eq!(fixture.state(&root), "dead");
    let output = hook();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(root.join("bin/true").exists());
    assert_eq!(fixture.state(&root), "serving");
    fixture.run(&["delete", "c2"]);
}

#[test]
fn umount_removes_a_dead_mount() {
    let fixture = Fixture::new();
    let dir = fixture.path("m");
    let upper = fixture.path("upper");
    for args in [
        &[][..],
        &["--ephemeral"],
        &["--upper", upper.to_str().unwrap()],
    ] {
        let mounted = fixture.mount(args);
        fixture.kill(&dir, &ALL);
        assert_eq!(fixture.state(&dir), "dead", "{args:?}");
        // Nothing hides it, and nothing is mounted over it.
        let again = fixture.output(&[
            "mount",
            fixture.path("image.bfc").to_str().unwrap(),
            dir.to_str().unwrap(),
        ]);
        assert_eq!(again.status.code(), Some(6), "{}", stderr(&again));
        drop(mounted);
        assert_eq!(fixture.state(&dir), "not there");
        let mounted = fixture.mount(args);
        assert_eq!(std::fs::read_to_string(dir.join("file")).unwrap(), "text\n");
        drop(mounted);
    }
}

#[test]
fn ps_distinguishes_a_mount_without_a_keeper() {
    let fixture = Fixture::new();
    let dir = fixture.path("m");
    let mounted = fixture.mount(&[]);
    fixture.kill(&dir, &["keeper"]);
    assert_eq!(fixture.state(&dir), "unkept");
    assert!(dir.join("file").exists());
    let told = String::from_utf8(fixture.output(&["doctor"]).stdout).unwrap();
    assert!(
        told.lines()
            .any(|l| l.contains(dir.to_str().unwrap()) && l.contains("no keeper"))
    );
    drop(mounted);
}

#[test]
fn a_hanging_worker_is_reported_until_another_serves() {
    let fixture = Fixture::new();
    let dir = fixture.path("m");
    let mounted = fixture.mount(&["--ephemeral"]);
    let worker = fixture.ps(&dir).unwrap()["worker"].as_u64().unwrap();
    signal("STOP", worker);
    let reader = Command::new("cat")
        .arg(dir.join("file"))
        .stdout(Stdio::null())
        .spawn();
    assert_eq!(fixture.state(&dir), "hung");
    assert!(reader.unwrap().wait().unwrap().success());
    eventually("that it serves", || {
        (fixture.state(&dir) == "serving").then_some(())
    });
    assert_eq!(fixture.bad(), "");
    drop(mounted);
}

#[test]
fn a_hung_mount_is_reported_with_a_remedy_and_blocks_no_command() {
    let fixture = Fixture::new();
    let dir = fixture.path("m");
    let mounted = fixture.mount(&["--ephemeral"]);
    let row = fixture.ps(&dir).unwrap();
    // Nobody is left who would start another worker.
    let both = |name| {
        ALL.iter()
            .for_each(|who| signal(name, row[who].as_u64().unwrap()))
    };
    both("STOP");
    let began = Instant::now();
    assert_eq!(fixture.state(&dir), "hung");
    let told = fixture.run(&["ps"]);
    assert!(
        told.contains("not answering") && told.contains("umount --force"),
        "{told}"
    );
    assert!(fixture.bad().contains(dir.to_str().unwrap()));
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    both("CONT");
    eventually("that it serves", || {
        (fixture.state(&dir) == "serving").then_some(())
    });
    assert_eq!(fixture.bad(), "");
    // The way out that is named.
    let row = fixture.ps(&dir).unwrap();
    let both = |name| {
        ALL.iter()
            .for_each(|who| signal(name, row[who].as_u64().unwrap()))
    };
    both("STOP");
    run(lxcri_fs().args(["umount", "--force"]).arg(&dir));
    assert_eq!(fixture.state(&dir), "not there");
    both("CONT");
    std::mem::forget(mounted);
}

#[test]
fn root_sees_the_mounts_of_all_users_and_a_squatter_blocks_none() {
    let fixture = Fixture::new();
    std::fs::copy(env!("CARGO_BIN_EXE_lxcri-fs"), fixture.path("lxcri-fs")).unwrap();
    std::fs::copy(golden("zstd.bfc"), fixture.path("image.bfc")).unwrap();
    std::fs::set_permissions(fixture.path("image.bfc"), PermissionsExt::from_mode(0o644)).unwrap();
    // In a namespace of its own, because /dev/fuse is not open to everybody everywhere. Another
    // user has taken the name of nobody's directory.
    let script = r#"
        cd "$1"
        mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse
        mkdir -m 1777 tmp; chown nobody m .
        as() {
            user=$1
            shift
            setpriv --reuid="$user" --regid=nogroup --clear-groups \
                env -i PATH="$PATH" TMPDIR="$PWD/tmp" "$@"
        }
        as games mkdir -m 755 tmp/lxcri-fs-65534
        as nobody ./lxcri-fs mount image.bfc m
        as nobody ./lxcri-fs ps --json > ps
        ./lxcri-fs ps --json | grep -F "$PWD/m\"" > ps-of-root
        as nobody ./lxcri-fs umount m
        ! findmnt m
        rmdir tmp/lxcri-fs-65534
        as nobody ./lxcri-fs ps --json > ps-after
    "#;
    run(Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-euc",
            script,
            "sh",
        ])
        .arg(&fixture.top));
    let read = |name: &str| std::fs::read_to_string(fixture.path(name)).unwrap();
    let row: Value = serde_json::from_str(&read("ps")).unwrap();
    assert_eq!(
        (&row["state"], row["keeper"].is_u64()),
        (&Value::from("serving"), true)
    );
    let row: Value = serde_json::from_str(&read("ps-of-root")).unwrap();
    assert_eq!(
        (&row["state"], row["mountpoints"][0].as_str()),
        (&Value::from("other-user"), fixture.path("m").to_str())
    );
    assert_eq!(read("ps-after"), "");
}
