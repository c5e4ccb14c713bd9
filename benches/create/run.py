#!/usr/bin/env python3
"""What it takes to have a container of an image ready to be started: lxcri-fs create beside mount, umoci unpack, podman create, lxc-create.

    LXCRI_FS=target/release/lxcri-fs benches/create/run.py OCI-LAYOUT:TAG [-n 5] [--dir DIR]

For root, with umoci; with podman and LXC where they are installed. Every program has the image where it keeps images; what is timed is what comes after that. Each repetition begins with
an image that nobody has mounted; caches are warm. DIR (/var/tmp/lxcri-fs-create) needs room for the image three times.
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


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def timed(*command, **options):
    start = time.perf_counter()
    run(*command, **options)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="OCI layout and tag, as umoci takes them")
    parser.add_argument("-n", type=int, default=5, help="repetitions")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/lxcri-fs-create"))
    args = parser.parse_args()
    program = os.environ.get("LXCRI_FS", "lxcri-fs")
    base = args.dir
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    store, target = ["--store", f"dir:{base}/store"], base / "mnt"
    target.mkdir()
    run(program, "build", *store, f"oci:{args.image}", "-t", "bench")
    [image] = [json.loads(line) for line in run(program, "list", *store, "--json").splitlines()]
    print(f"image {args.image}: {image['size'] / 1e6:.1f} MB, layers: {len(image['layers'])}, load {os.getloadavg()[0]:.1f}")

    def fresh():
        # The keeper of the last mount ends some moments after it.
        for _ in range(100):
            if not run(program, "ps", "--json"):
                return
            time.sleep(0.1)

    def mount():
        fresh()
        took = timed(program, "mount", *store, "bench", target, "--upper", base / "upper")
        run(program, "umount", target)
        # A container begins with a new upper too.
        shutil.rmtree(base / "upper")
        return took

    def create():
        fresh()
        took = timed(program, "create", *store, "c", "--image", "bench", "--bundle", base / "bundle")
        run(program, "delete", *store, "c")
        return took

    def second():
        run(program, "create", *store, "first", "--image", "bench", "--bundle", base / "first")
        took = timed(program, "create", *store, "c", "--image", "bench", "--bundle", base / "bundle")
        for name in ["c", "first"]:
            run(program, "delete", *store, name)
        return took

    def umoci():
        took = timed("umoci", "unpack", "--image", args.image, base / "unpacked")
        shutil.rmtree(base / "unpacked")
        return took

    podman_command = ["podman", "--root", base / "podman", "--runroot", base / "podman-run", "--storage-driver", "overlay"]

    def podman():
        took = timed(*podman_command, "create", "--name", "bench", "--network", "none", "bench", "true")
        run(*podman_command, "rm", "bench")
        return took

    def lxc():
        took = timed("lxc-create", "-P", base / "lxc", "-n", "bench", "-t", "oci", "--", "--url", f"oci:{args.image}")
        run("lxc-destroy", "-P", base / "lxc", "-n", "bench")
        return took

    rows = [("lxcri-fs mount --upper", mount), ("lxcri-fs create", create), ("lxcri-fs create, image mounted", second), ("umoci unpack", umoci)]
    if shutil.which("podman") and shutil.which("skopeo"):
        loaded = timed("skopeo", "copy", "--insecure-policy", "-q", f"oci:{args.image}",
                       f"containers-storage:[overlay@{base}/podman+{base}/podman-run]localhost/bench:latest")
        print(f"podman had to unpack the image first, once: {loaded:.2f} s (skopeo copy)")
        rows.append(("podman create", podman))
    if shutil.which("lxc-create") and shutil.which("jq"):
        rows.append(("lxc-create -t oci", lxc))
    medians = {}
    for name, measure in rows:
        measure()
        times = [measure() for _ in range(args.n)]
        medians[name] = statistics.median(times)
        print(f"{name:<32} {medians[name] * 1000:9.1f} ms   (n = {args.n}, {min(times) * 1000:.1f} to {max(times) * 1000:.1f})")
    ratio = medians["lxcri-fs create"] / medians["lxcri-fs mount --upper"]
    print(f"create is {ratio:.2f} times mount: {'as it should be' if ratio <= 1.5 else 'MORE than 1.5'}")
    run(*podman_command, "system", "reset", "-f") if len(rows) > 4 else None
    shutil.rmtree(base, ignore_errors=True)
    return 0 if ratio <= 1.5 else 1


if __name__ == "__main__":
    sys.exit(main())
