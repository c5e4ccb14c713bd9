//! What injected code could do: in a worker, only answer requests; in a command that reads an
//! image, only write where the command does. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;

use common::{Mounted, golden, lxcri_fs, run};
use rustix::process::{Pid, Signal, kill_process};

/// Says to this test program that it is to be the worker.
const PROBE: &str = "LXCRI_FS_TEST_PROBE";

/// Runs a test of this program again, as a process that is to be confined in `directory`.
#[track_caller]
fn probe(test: &str, directory: &Path) {
    let exact = ["--exact", test, "--nocapture", "--test-threads=1"];
    run(Command::new(std::env::current_exe().unwrap())
        .args(exact)
        .env(PROBE, directory));
}

/// Everything that must fail, by name.
fn attempts(directory: &Path) -> Vec<(&'static str, io::Result<()>)> {
    let victim = directory.join("victim");
    vec![
        ("read a file", File::open("/etc/passwd").map(drop)),
        ("read a secret", File::open("/etc/shadow").map(drop)),
        ("read what everybody may", File::open("/dev/null").map(drop)),
        (
            "write to memory",
            File::options().write(true).open("/proc/self/mem").map(drop),
        ),
        (
            "open another connection",
            File::options()
                .read(true)
                .write(true)
                .open("/dev/fuse")
                .map(drop),
        ),
        (
            "reopen a descriptor",
            File::open("/proc/self/fd/2").map(drop),
        ),
        ("list a directory", fs::read_dir("/").map(drop)),
        ("make a file", File::create(directory.join("new")).map(drop)),
        ("make a directory", fs::create_dir(directory.join("new"))),
        ("remove a file", fs::remove_file(&victim)),
        ("rename a file", fs::rename(&victim, directory.join("new"))),
        (
            "change a mode",
            fs::set_permissions(&victim, std::os::unix::fs::PermissionsExt::from_mode(0o777)),
        ),
        ("look at a file", fs::metadata("/etc/passwd").map(drop)),
        (
            "connect to the network",
            TcpStream::connect("127.0.0.1:22").map(drop),
        ),
        ("send a datagram", UdpSocket::bind("127.0.0.1:0").map(drop)),
        (
            "connect to a local service",
            UnixStream::connect("/run/dbus/system_bus_socket").map(drop),
        ),
        ("make a socket", UnixDatagram::unbound().map(drop)),
        (
            "run a program",
            Command::new("/bin/true").status().map(drop),
        ),
        (
            "signal another process",
            kill_process(Pid::from_raw(1).unwrap(), Signal::CONT).map_err(Into::into),
        ),
        (
            "mount",
            rustix::mount::mount(
                "none",
                directory,
                "tmpfs",
                rustix::mount::MountFlags::empty(),
                None,
            )
            .map_err(Into::into),
        ),
        (
            "unmount",
            rustix::mount::unmount("/proc", rustix::mount::UnmountFlags::DETACH)
                .map_err(Into::into),
        ),
        (
            "change the root",
            rustix::process::chroot(directory).map_err(Into::into),
        ),
        (
            "become somebody else",
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(1)).map_err(Into::into),
        ),
    ]
}

fn threads_and_memory_work() {
    let len = std::thread::spawn(|| vec![1; 1 << 20].len());
    assert_eq!(len.join().unwrap(), 1 << 20);
}

#[test]
fn code_in_a_worker_can_open_nothing() {
    if let Some(directory) = std::env::var_os(PROBE) {
        // The filter is for this thread and those that it starts.
        lxcri_fs::serve::confine::confine();
        let succeeded: Vec<&str> = attempts(Path::new(&directory))
            .into_iter()
            .filter(|(_, result)| result.is_ok())
            .map(|(name, _)| name)
            .collect();
        assert!(
            succeeded.is_empty(),
            "a worker can {}",
            succeeded.join(", ")
        );
        // What it is for still works.
        threads_and_memory_work();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    File::create(directory.path().join("victim")).unwrap();
    probe("code_in_a_worker_can_open_nothing", directory.path());
    assert!(directory.path().join("victim").exists());
}

#[test]
fn a_worker_has_no_capabilities_and_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.bfc");
    fs::copy(golden("zstd.bfc"), &image).unwrap();
    let mountpoint = dir.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &mountpoint);
    let rows = run(lxcri_fs().args(["ps", "--json"]));
    let rows = rows
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let row = rows
        .into_iter()
        .find(|row| row["images"][0] == image.to_str().unwrap())
        .unwrap();
    let (keeper, worker) = (
        row["keeper"].as_u64().unwrap(),
        row["worker"].as_u64().unwrap(),
    );
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    for line in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"]
        .map(|set| format!("{set}\t0000000000000000\n"))
    {
        assert!(status.contains(&line), "{status}");
    }
    assert!(
        status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"),
        "{status}"
    );
    let links = fs::read_dir(format!("/proc/{worker}/fd"))
        .unwrap()
        .flatten()
        .map(|fd| fs::read_link(fd.path()).unwrap());
    let kinds: BTreeSet<String> = links
        .map(|l| l.to_string_lossy().split(':').next().unwrap().to_owned())
        .collect();
    let expected = ["/dev/null", "/dev/fuse", "socket", image.to_str().unwrap()].map(str::to_owned);
    assert!(kinds.is_subset(&expected.into()), "{kinds:?}");
    // What is told of it is so: this host has all means.
    let told = lxcri_fs::serve::overview::all()
        .unwrap()
        .into_iter()
        .find(|m| u64::from(m.status.pid) == keeper)
        .unwrap();
    let confinement = told.status.confinement.unwrap();
    assert!(confinement.missing().is_empty(), "{confinement:?}");
    assert_eq!(lxcri_fs::serve::confine::probe(), Some(confinement));
    assert_eq!(
        row["confinement"],
        serde_json::to_value(confinement).unwrap()
    );
    let score = |pid: u64| {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
            .unwrap()
            .trim()
            .parse::<i32>()
            .unwrap()
    };
    assert!(score(worker) > score(keeper));
}

#[test]
fn a_keeper_keeps_nothing_of_its_caller() {
    let dir = tempfile::tempdir().unwrap();
    let mountpoint = dir.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    // A hook's caller reads until all ends of its pipes are closed, also of the ones that it did
    // not mean to pass on.
    let script = r#"exec 7>&1; "$0" mount "$1" "$2""#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script, env!("CARGO_BIN_EXE_lxcri-fs")])
        .arg(golden("plain.bfc"))
        .arg(&mountpoint);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(command.output().unwrap().status.success()));
    let done = receiver.recv_timeout(std::time::Duration::from_secs(20));
    drop(Mounted(mountpoint));
    assert_eq!(done, Ok(true));
}

#[test]
fn a_keeper_leaves_the_control_group_of_its_caller() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let top = mounts
        .lines()
        .find(|l| l.contains(" - cgroup2 "))
        .map(|l| Path::new(l.split(' ').nth(4).unwrap()).to_owned());
    // Where systemd has the control groups, it is asked, and takes its time.
    let Some(top) = top.filter(|_| !Path::new("/run/systemd/system").exists()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let [image, mountpoint] = ["image.bfc", "mnt"].map(|name| dir.path().join(name));
    fs::copy(golden("zstd.bfc"), &image).unwrap();
    fs::create_dir(&mountpoint).unwrap();
    let group = top.join(format!("lxcri-fs-test-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    let script = r#"echo 0 > "$1/cgroup.procs"; exec "$0" mount "$2" "$3""#;
    let mut mount = Command::new("sh");
    mount
        .args(["-c", script, env!("CARGO_BIN_EXE_lxcri-fs")])
        .arg(&group)
        .arg(&image)
        .arg(&mountpoint);
    run(&mut mount);
    let mounted = Mounted(mountpoint);
    let left = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    drop(mounted);
    fs::remove_dir(&group).unwrap();
    assert_eq!(left, "");
}

/// System calls of a traced command, from the one that confined it on.
fn calls_after_confinement(trace: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).unwrap();
    let lines: Vec<&str> = text
        .lines()
        .map(|line| {
            line.split_once(' ')
                .map_or(line, |(_, call)| call.trim_start())
        })
        .collect();
    let last = lines
        .iter()
        .position(|line| line.starts_with("seccomp(") || line.contains("PR_SET_SECCOMP"))
        .expect("a seccomp filter");
    for means in ["landlock_restrict_self(", "PR_SET_NO_NEW_PRIVS", "capset("] {
        assert!(
            lines[..last].iter().any(|line| line.contains(means)),
            "{means} in {text}"
        );
    }
    lines[last..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

/// A process that reads a stranger's image could do little if the image took control of it.
#[test]
fn commands_confine_themselves_before_they_read_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::copy(golden("zstd.bfc"), at("image.bfc")).unwrap();
    let image = at("image.bfc").to_str().unwrap().to_owned();
    let first = run(lxcri_fs().args(["ls", "-R", &image]))
        .lines()
        .next()
        .unwrap()
        .to_owned();
    let (out, tar, oci) = (at("out"), at("tar"), at("oci"));
    let commands: [Vec<&str>; 7] = [
        vec!["ls", "-lR", &image],
        vec!["cat", &image, &first],
        vec!["info", &image],
        vec!["verify", &image],
        vec!["extract", &image, out.to_str().unwrap()],
        vec!["export", &image, "--tar", tar.to_str().unwrap()],
        vec!["export", &image, "--oci", oci.to_str().unwrap()],
    ];
    for command in commands {
        let trace = at("trace");
        let mut traced = Command::new("strace");
        traced
            .args(["-f", "-qq", "-s", "16", "-o"])
            .arg(&trace)
            .arg(env!("CARGO_BIN_EXE_lxcri-fs"))
            .args(&command);
        let _ = traced.env_remove("LXCRI_FS_PASSWORD").output().unwrap();
        let text = fs::read_to_string(&trace).unwrap();
        let opened = text
            .lines()
            .position(|line| line.contains("image.bfc\"") && line.contains("open"))
            .expect("the image is opened");
        let confined = text
            .lines()
            .position(|line| line.contains("landlock_restrict_self("))
            .expect("landlock");
        let descriptor = text
            .lines()
            .nth(opened)
            .unwrap()
            .rsplit("= ")
            .next()
            .unwrap()
            .to_owned();
        let reads = |line: &&str| {
            line.contains(&format!("pread64({descriptor},"))
                || line.contains(&format!("read({descriptor},"))
        };
        assert!(
            !text
                .lines()
                .take(confined)
                .skip(opened)
                .any(|line| reads(&line)),
            "{command:?} reads before it is confined\n{text}"
        );
        let calls = calls_after_confinement(&trace);
        for call in [
            "execve", "socket(", "connect(", "mount(", "fork(", "ptrace(",
        ] {
            assert!(
                !calls.iter().any(|line| line.starts_with(call)),
                "{command:?}: {call} in {calls:#?}"
            );
        }
        // Nothing that it needs is refused.
        let refused: Vec<_> = calls
            .iter()
            .filter(|line| line.contains("ENOSYS") && !line.contains("clone3"))
            .collect();
        assert!(refused.is_empty(), "{command:?}: {refused:#?}");
    }
    assert!(out.read_dir().unwrap().count() > 0 && tar.exists() && oci.join("index.json").exists());
}

/// The process that asks for a password is already confined.
#[test]
fn a_password_is_asked_for_on_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    fs::write(dir.path().join("root/file"), "what is in it").unwrap();
    let image = dir.path().join("image.bfc");
    run(lxcri_fs()
        .arg("build")
        .arg(dir.path().join("root"))
        .arg("-o")
        .arg(&image)
        .env("LXCRI_FS_PASSWORD", "secret"));
    // A terminal of its own, on which somebody types.
    let command = format!(
        "{} cat {} file",
        env!("CARGO_BIN_EXE_lxcri-fs"),
        image.display()
    );
    let mut typed = Command::new("sh");
    typed
        .args([
            "-c",
            "(sleep 1; echo secret; sleep 1) | script -qec \"$0\" /dev/null",
            &command,
        ])
        .env_remove("LXCRI_FS_PASSWORD");
    let said = run(&mut typed);
    assert!(
        said.contains("Password for ") && said.contains("what is in it"),
        "{said}"
    );
}

#[test]
fn code_in_a_command_can_write_only_where_the_command_does() {
    use lxcri_fs::serve::confine::{Kept, confine_command};
    if let Some(directory) = std::env::var_os(PROBE) {
        let directory = Path::new(&directory);
        confine_command(&Kept::default().below(&directory.join("target")));
        let succeeded: Vec<&str> = attempts(directory)
            .into_iter()
            // Neither is landlock's to refuse: what a file is, and a pipe that is open already.
            .filter(|(name, result)| {
                result.is_ok() && !["look at a file", "reopen a descriptor"].contains(name)
            })
            .map(|(name, _)| name)
            .collect();
        assert!(
            succeeded.is_empty(),
            "a command can {}",
            succeeded.join(", ")
        );
        fs::write(directory.join("target/file"), "x").unwrap();
        fs::create_dir(directory.join("target/dir")).unwrap();
        fs::hard_link(
            directory.join("target/file"),
            directory.join("target/dir/link"),
        )
        .unwrap();
        fs::remove_file(directory.join("target/file")).unwrap();
        threads_and_memory_work();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    File::create(directory.path().join("victim")).unwrap();
    fs::create_dir(directory.path().join("target")).unwrap();
    probe(
        "code_in_a_command_can_write_only_where_the_command_does",
        directory.path(),
    );
    assert!(
        directory.path().join("victim").exists()
            && directory.path().join("target/dir/link").exists()
    );
}
