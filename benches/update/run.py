#!/usr/bin/env python3
"""Many containers of one image get a newer one: `lxcri-fs update --all`, beside what `podman auto-update` does for
each of as many, which is to remove a container and to create it again of the new image.

    LXCRI_FS=target/release/lxcri-fs benches/update/run.py [-c 100] [-n 3] [--dir DIR] [--json]

For root, with busybox-static; without podman, only lxcri-fs is timed. Each container of lxcri-fs has written a file of 1 MiB
and a list of users before, which are carried over and merged. Containers of podman keep nothing outside volumes, so
they have nothing to carry over. None runs. Everything is in namespaces of its own, with a /run of its own, and
removed afterwards. DIR (/var/tmp/lxcri-fs-update) is on the file system that is measured.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORLD = "mount -t proc proc /proc && mount -t tmpfs tmpfs /run && mkdir /run/lock && mount --make-rshared / && exec \"$@\""
UNSHARE = "setpriv --pdeathsig KILL unshare -m -p -n -u -i -f --kill-child --propagation private sh -ec".split()
PODMAN = "--root={0}/podman --runroot=/run/podman --storage-driver=overlay --cgroup-manager=cgroupfs --events-backend=none".split()


def run(*words):
    return subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True).stdout


def timed(*words):
    start = time.monotonic()
    run(*words)
    return time.monotonic() - start


def trees(area):
    """Two versions of an image."""
    for version in "12":
        root = area / f"root{version}"
        (root / "bin").mkdir(parents=True)
        (root / "etc").mkdir()
        shutil.copy(shutil.which("busybox"), root / "bin/busybox")
        (root / "bin/sh").symlink_to("busybox")
        (root / "etc/version").write_text(version)
        (root / "etc/passwd").write_text(f"root:x:0:0::/root:/bin/sh\nservice{version}:x:{100 + int(version)}:1::/:\n")
        for number in range(2000):
            path = root / f"lib/{number % 50}/{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{number if number % 10 else version}\n" * 50)


def ours(program, area, count):
    os.environ["LXCRI_FS_STORE"] = f"dir:{area}/store"
    for version in "12":
        run(program, "build", area / f"root{version}", "-t", f"app:{version}")
    run(program, "tag", "app:1", "app")
    for number in range(count):
        bundle = area / f"bundle{number}"
        run(program, "create", f"c{number}", "--image", "app", "--bundle", bundle, "--", "sh")
        (bundle / "rootfs/data").write_bytes(os.urandom(1 << 20))
        with open(bundle / "rootfs/etc/passwd", "a") as users:
            users.write("own:x:1000:1000::/:\n")
    run(program, "-q", "tag", "app:2", "app")
    seconds = timed(program, "-q", "update", "--all")
    for number in range(count):
        root = area / f"bundle{number}/rootfs"
        users = (root / "etc/passwd").read_text()
        assert (root / "etc/version").read_text() == "2" and "own:" in users and "service2:" in users
    back = timed(program, "-q", "rollback", "c0")
    run(program, "-q", "delete", *(f"c{number}" for number in range(count)))
    return {"update": seconds / count, "rollback": back}


def podman(area, count):
    def call(*words):
        return run("podman", *(word.format(area) for word in PODMAN), *words)

    for version in "12":
        run("tar", "-C", area / f"root{version}", "-cf", area / "root.tar", ".")
        call("import", "-q", area / "root.tar", f"localhost/app:{version}")
    make = ["create", "-q", "--network=none"]
    names = [f"p{number}" for number in range(count)]
    for name in names:
        call(*make, "--name", name, "localhost/app:1", "sh")
    start = time.monotonic()
    for name in names:
        call("rm", name)
        call(*make, "--name", name, "localhost/app:2", "sh")
    seconds = time.monotonic() - start
    call("rm", "-a", "-f")
    return {"re-create": seconds / count}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", type=int, default=100, help="how many containers")
    parser.add_argument("-n", type=int, default=3, help="how often")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/lxcri-fs-update"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    program = Path(os.environ.get("LXCRI_FS", "target/release/lxcri-fs")).resolve()
    if not args.inside:
        return subprocess.run([*UNSHARE, WORLD, "_", sys.executable, __file__, *sys.argv[1:], "--inside"]).returncode
    found = {}
    for _ in range(args.n):
        shutil.rmtree(args.dir, ignore_errors=True)
        args.dir.mkdir(parents=True)
        trees(args.dir)
        sides = {"lxcri-fs": lambda: ours(program, args.dir, args.c)}
        if shutil.which("podman"):
            sides["podman"] = lambda: podman(args.dir, args.c)
        for name, side in sides.items():
            for what, seconds in side().items():
                found.setdefault(f"{name} {what}", []).append(seconds * 1000)
    shutil.rmtree(args.dir, ignore_errors=True)
    for what, times in found.items():
        row = {"what": what, "containers": args.c, "median_ms": round(statistics.median(times), 1), "all_ms": [round(t, 1) for t in times]}
        print(json.dumps(row) if args.json else f"{what:<20} {row['median_ms']:>8} ms for each of {args.c}: {row['all_ms']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
