"""The jobs that run.py times: what each side does, step by step, and checks of what came out."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

WAIT_SECONDS = 20


# --- Programs --------------------------------------------------------------------------------------------------------------------


def sh(*command, **options):
    """Runs a command, and returns what it printed. A file takes the output: some commands leave processes that keep it open."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        words = [str(word) for word in command]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False, **options)
        output.seek(0)
        said = output.read()
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.returncode}\n{said}")
    return said


@dataclass
class Run:
    """One repetition of a job by one side: a directory that was empty, and the times of the steps."""

    base: Path
    times: dict = field(default_factory=dict)

    def __post_init__(self):
        self.program = Path(shutil.which(os.environ.get("LXCRI_FS", "lxcri-fs"))).resolve()
        self.area, self.debian = self.base / "work", self.base / "debian.tar"
        self.lxc_path, self.layout = self.area / "lxc", self.area / "layout"
        os.environ.update({"LXCRI_FS_STORE": f"dir:{self.area}/store", "CONTAINERS_CONF": f"{self.area}/containers.conf", "LC_ALL": "C"})

    def begin(self):
        self.area.mkdir()
        (self.area / "lxcri-fs-crun").symlink_to(self.program)
        (self.area / "containers.conf").write_text(CONTAINERS_CONF.format(self.area))
        # What others wrote is not ours to wait for.
        os.sync()

    @contextlib.contextmanager
    def step(self, name):
        start = time.perf_counter()
        yield
        self.times[name] = time.perf_counter() - start

    def ours(self, *words):
        return sh(self.program, *words)

    def umoci(self, verb, tag, *words):
        return sh("umoci", *verb.split(), "--image", f"{self.layout}:{tag}", *words)

    def lxc(self, verb, name, *words):
        return sh(f"lxc-{verb}", "-P", self.lxc_path, "-n", name, *words)

    def crun(self, *words):
        return sh("crun", "--cgroup-manager=disabled", *words)

    def podman(self, *words):
        return sh("podman", *(word.format(self.area) for word in PODMAN), *words)


PODMAN = ["--root={}/podman", "--runroot=/run/podman", "--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--events-backend=none"]
CONTAINERS_CONF = """[engine]
runtime_supports_nocgroup = ["crun", "lxcri-fs-crun"]
[engine.runtimes]
lxcri-fs-crun = ["{}/lxcri-fs-crun"]
"""


def check(right, what):
    if not right:
        raise RuntimeError(f"wrong: {what}")


# --- system ----------------------------------------------------------------------------------------------------------------------

NETWORK = "lxc.net.0.type = empty\nlxc.apparmor.profile = unconfined\n"
# A minimal Debian has no init.
INIT = ["sleep", "infinity"]


def system_ours(run):
    def create(name, image):
        run.ours("create", name, "--image", image, "--lxc", "--lxc-path", run.lxc_path, "--include", network, "--", *INIT)

    network = run.area / "network.conf"
    network.write_text(NETWORK)
    run.lxc_path.mkdir()
    with run.step("build"):
        run.ours("build", f"tar:{run.debian}", "-t", "debian")
    with run.step("create"):
        create("one", "debian")
    install_hello(run)
    with run.step("commit"):
        run.ours("commit", "one", "-t", "debian:hello")
    with run.step("second container"):
        create("two", "debian:hello")
    run_hello(run)


def system_lxc(run):
    with run.step("create"):
        rootfs = run.lxc_path / "one/rootfs"
        rootfs.mkdir(parents=True)
        sh("tar", "-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-f", run.debian, "-C", rootfs)
        lines = ["lxc.include = /usr/share/lxc/config/common.conf", f"lxc.rootfs.path = dir:{rootfs}", "lxc.uts.name = one"]
        (rootfs.parent / "config").write_text("\n".join([*lines, f"lxc.init.cmd = {' '.join(INIT)}", NETWORK]))
    install_hello(run)
    with run.step("second container"):
        run.lxc("copy", "one", "-N", "two")
    run_hello(run)


def install_hello(run):
    [package] = run.base.glob("hello_*.deb")
    with run.step("start"):
        start(run, "one")
    with run.step("install"):
        pid = run.lxc("info", "one", "-p", "-H").strip()
        shutil.copy(package, f"/proc/{pid}/root/root/")
        run.lxc("attach", "one", "--", "dpkg", "-i", f"/root/{package.name}")
    with run.step("stop"):
        # As process 1, sleep ignores other signals.
        run.lxc("stop", "one", "--kill")
        run.lxc("wait", "one", "-s", "STOPPED", "-t", WAIT_SECONDS)


def run_hello(run):
    with run.step("run it there"):
        start(run, "two")
        said = run.lxc("attach", "two", "--", "hello")
    check(said == "Hello, world!\n", f"the second container said {said!r}")


def start(run, name):
    run.lxc("start", name, "-d", "-l", "INFO", "-o", run.area / f"{name}.log")
    run.lxc("wait", name, "-s", "RUNNING", "-t", WAIT_SECONDS)


# --- crun, podman ----------------------------------------------------------------------------------------------------------------

INSTANCES = [f"web{i}" for i in range(10)]
USER, UID, PORT = "web", 1000, 8080
SERVER = ["/bin/httpd", "-f", "-p", str(PORT), "-h", "/www"]
PAGE = "a page of the image\n"

def server_files(run):
    """A root file system with a web server, and directories for what its instances need."""
    root = run.area / "root"
    for name in ["bin", "etc", "www", "proc", "sys", "dev", "tmp", "run"]:
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for name in ["sh", "httpd"]:
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text(f"root:x:0:0::/root:/bin/sh\n{USER}:x:{UID}:{UID}::/:/bin/sh\n")
    (root / "etc/group").write_text(f"root:x:0:\n{USER}:x:{UID}:\n")
    (root / "www/index.html").write_text(PAGE)
    for name in ["pids", "bundles"]:
        (run.area / name).mkdir()
    return root


def build_server(run, root, *target):
    changes = [f"USER {USER}", f"CMD {json.dumps(SERVER)}"]
    run.ours("build", f"dir:{root}", *target, *(word for change in changes for word in ("--change", change)))


def all_answer(run):
    """Waits until all instances answer."""
    for name in INSTANCES:
        pid = (run.area / "pids" / name).read_text().strip()
        ask = ["nsenter", "-t", pid, "-n", "busybox", "wget", "-q", "-O", "-", f"http://127.0.0.1:{PORT}/"]
        deadline = time.monotonic() + WAIT_SECONDS
        while (answer := subprocess.run(ask, capture_output=True, text=True, check=False)).stdout != PAGE:
            check(time.monotonic() < deadline, f"{name} does not answer: {answer}")
            time.sleep(0.005)


def check_users(run):
    for name in INSTANCES:
        process = Path("/proc", (run.area / "pids" / name).read_text().strip())
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        check(set(status["Uid"].split()) == {str(UID)}, f"{name} runs as {status['Uid']}")
        command = (process / "cmdline").read_bytes().split(b"\0")[:-1]
        check(command == [word.encode() for word in SERVER], f"{name} runs {command}")


def crun_ours(run):
    root = server_files(run)
    with run.step("build"):
        build_server(run, root, "-t", "web")
    with run.step("create ten"):
        for name in INSTANCES:
            run.ours("create", name, "--image", "web", "--bundle", run.area / "bundles" / name)
    crun_starts(run)
    with run.step("remove ten"):
        for name in INSTANCES:
            run.crun("delete", "-f", name)
        run.ours("delete", *INSTANCES)


def crun_umoci(run):
    root = server_files(run)
    with run.step("build"):
        sh("umoci", "init", "--layout", run.layout)
        run.umoci("new", "web")
        run.umoci("insert", "web", root, "/")
        run.umoci("config", "web", "--config.user", USER, *(f"--config.cmd={word}" for word in SERVER))
    with run.step("create ten"):
        for name in INSTANCES:
            run.umoci("unpack", "web", run.area / "bundles" / name)
            config = run.area / "bundles" / name / "config.json"
            changed = json.loads(config.read_text())
            changed["process"]["terminal"] = False
            config.write_text(json.dumps(changed))
    crun_starts(run)
    with run.step("remove ten"):
        for name in INSTANCES:
            run.crun("delete", "-f", name)
            shutil.rmtree(run.area / "bundles" / name)


def crun_starts(run):
    with run.step("start ten, and ask"):
        for name in INSTANCES:
            run.crun("run", "-d", "--pid-file", run.area / "pids" / name, "-b", run.area / "bundles" / name, name)
        all_answer(run)
    check_users(run)


def podman_ours(run):
    root, image = server_files(run), run.area / "web.bfc"
    with run.step("build"):
        build_server(run, root, "-o", image)
    runtime = ["--runtime", "lxcri-fs-crun"]
    podman_runs(run, runtime, ["--annotation", f"org.lxcri-fs.image={image}", "--rootfs", "/var/empty", "-"])


def podman_own(run):
    server_files(run)
    with run.step("build"):
        (run.area / "Containerfile").write_text(f"FROM scratch\nCOPY root /\nUSER {USER}\nCMD {json.dumps(SERVER)}\n")
        podman_build(run, "web", run.area)
    podman_runs(run, ["--runtime", "crun"], ["web"])


def podman_build(run, name, context):
    run.podman("build", "-q", "--isolation=chroot", "-t", name, context)


def podman_runs(run, runtime, image):
    options = "--cgroups=disabled --network=none --security-opt=seccomp=unconfined --ulimit=nofile=1024:1024 --ulimit=nproc=1000:1000"
    with run.step("run ten, and ask"):
        for name in INSTANCES:
            run.podman(*runtime, "run", "-d", *options.split(), "--name", name, f"--pidfile={run.area}/pids/{name}", *image)
        all_answer(run)
    check_users(run)
    with run.step("remove ten"):
        run.podman(*runtime, "rm", "-f", "-t", "0", *INSTANCES)


# --- build -----------------------------------------------------------------------------------------------------------------------

LAYERS = ["one", "two"]
LAYER_FILES, FILE_SIZE = 200, 20_000


def layer_files(run):
    """A directory for each layer, with a small site below srv/, that a Containerfile can copy as well."""
    numbers = random.Random(1)
    for name, below in zip(LAYERS, ["base", *LAYERS]):
        site = run.area / name / "files/srv" / name
        site.mkdir(parents=True)
        for i in range(LAYER_FILES):
            (site / f"{i}.html").write_bytes(numbers.randbytes(FILE_SIZE))
        (run.area / name / "Containerfile").write_text(f"FROM localhost/{below}\nCOPY files /\n")


def last_file(name):
    return f"srv/{name}/{LAYER_FILES - 1}.html"


def original(run, name):
    return run.area / name / "files" / last_file(name)


def build_ours(run):
    layer_files(run)
    with run.step("base"):
        run.ours("build", f"tar:{run.debian}", "-t", "base")
    for name, below in zip(LAYERS, ["base", *LAYERS]):
        with run.step(f"layer {name}"):
            run.ours("build", below, "--layer", f"dir:{run.area / name / 'files'}", "-t", name)
    for name in LAYERS:
        check(run.ours("ls", "two", f"/srv/{name}").count(".html") == LAYER_FILES, f"files of layer {name}")
        content = subprocess.run([run.program, "cat", "two", f"/{last_file(name)}"], stdout=subprocess.PIPE, check=True).stdout
        check(content == original(run, name).read_bytes(), f"content of layer {name}")
    check("PRETTY_NAME" in run.ours("cat", "two", "/usr/lib/os-release"), "the base")


def build_umoci(run):
    layer_files(run)
    with run.step("base"):
        sh("umoci", "init", "--layout", run.layout)
        run.umoci("new", "base")
        run.umoci("raw add-layer", "base", run.debian)
    for name, below in zip(LAYERS, ["base", *LAYERS]):
        with run.step(f"layer {name}"):
            run.umoci("insert", below, "--tag", name, run.area / name / "files", "/")

    def blob(descriptor):
        return run.layout / "blobs" / descriptor["digest"].replace(":", "/")

    tags = json.loads((run.layout / "index.json").read_text())["manifests"]
    [top] = [tag for tag in tags if tag["annotations"]["org.opencontainers.image.ref.name"] == "two"]
    layers = json.loads(blob(top).read_text())["layers"]
    check(len(layers) == 1 + len(LAYERS), f"{len(layers)} layers")
    for name, layer in zip(LAYERS, layers[1:]):
        with tarfile.open(blob(layer)) as tar:
            member = next(entry for entry in tar if entry.name.lstrip("/") == last_file(name))
            check(tar.extractfile(member).read() == original(run, name).read_bytes(), f"content of layer {name}")


def build_podman(run):
    layer_files(run)
    with run.step("base"):
        run.podman("import", "-q", run.debian, "localhost/base")
    for name in LAYERS:
        with run.step(f"layer {name}"):
            podman_build(run, name, run.area / name)
    root = Path(run.podman("image", "mount", "localhost/two").strip())
    for name in LAYERS:
        check((root / last_file(name)).read_bytes() == original(run, name).read_bytes(), f"content of layer {name}")
    run.podman("image", "umount", "localhost/two")


# --- All jobs --------------------------------------------------------------------------------------------------------------------


@dataclass
class Side:
    do: Callable
    needs: str = ""


@dataclass
class Job:
    title: str
    sides: dict
    """Ours first."""
    files: str = ""
    """What is made once."""


OURS = "lxcri-fs"
JOBS = {
    "system": Job(
        "a system container, a package installed, a second container",
        {OURS: Side(system_ours, "lxc-start"), "LXC": Side(system_lxc, "lxc-start rsync")},
        "debian hello",
    ),
    "crun": Job(
        "ten instances under crun",
        {OURS: Side(crun_ours, "crun busybox"), "umoci": Side(crun_umoci, "crun busybox umoci")},
    ),
    "podman": Job(
        "ten instances under podman",
        {OURS: Side(podman_ours, "podman crun busybox"), "podman": Side(podman_own, "podman crun busybox")},
    ),
    "build": Job(
        "an image built upon by name, twice",
        {OURS: Side(build_ours), "umoci": Side(build_umoci, "umoci"), "podman": Side(build_podman, "podman crun")},
        "debian",
    ),
}
