#!/usr/bin/env python3
"""A new user's jobs, each timed step by step beside other programs that do the same job in the same run.

    LXCRI_FS=target/release/lxcri-fs benches/jobs/run.py [JOB…] [-n 3] [--dir DIR] [--json]

    system   a Debian as a container of LXC, a package installed in it, and a second container with that package; beside
             directories of LXC, and lxc-copy
    crun     ten instances of a web server under crun, as the image's own user; beside ten copies unpacked by umoci
    podman   the same under podman, through lxcri-fs as its runtime; beside podman with its own image
    build    an image built upon by name, twice; beside umoci insert and podman build

For root on Debian, with mmdebstrap (and, the first time, a network), busybox-static, and what the job's name says: lxc and rsync,
crun and umoci, podman. What is not installed is left out, with a line that says so. Every job runs in namespaces of its own, with
a /run and cgroups of its own, so it needs no systemd, and whatever happens, neither mounts nor processes outlive it. After each
repetition the program checks that nothing is left. DIR (/var/tmp/lxcri-fs-jobs) needs 2 GB; the Debian stays there for the next
run, everything else is removed.

Each repetition begins with an empty store. Nothing is done about caches, and nobody waits until the data is on the disk unless
the program that is measured does: lxcri-fs does so for each image that it builds.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from jobs import JOBS, OURS, WAIT_SECONDS, Run, check, sh

# Namespaces with what container runtimes need without systemd. Mounts of ours that others have at this moment are not
# kept busy. The shell stays as the first process, which collects the processes that others leave.
WORLD = r"""
grep -E ' - (fuse\.lxcri-fs|overlay [^ ]*\.bfc) ' /proc/self/mountinfo | cut -d' ' -f5 | tac |
    while read -r dir; do umount -l "$dir" 2>/dev/null || :; done
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit
for dir in /run /dev/shm /var/empty; do mount -t tmpfs tmpfs $dir || exit; done
mkdir /run/lock && mount --make-rshared / && "$@"
exit $?"""
UNSHARE = [*"setpriv --pdeathsig KILL unshare".split(), *"-m -p -n -u -i -f --kill-child --propagation private".split(), "sh", "-c", WORLD, "_"]


def mounts():
    return {line.split()[0]: line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def clear(run, before):
    """Removes all that a job made, whether it came to its end or not. Anything that is left after that is an error."""
    if run.lxc_path.exists():
        for config in run.lxc_path.glob("*/config"):
            name = config.parent.name
            if run.lxc("info", name, "-s", "-H").strip() != "STOPPED":
                run.lxc("stop", name, "--kill")
                run.lxc("wait", name, "-s", "STOPPED", "-t", WAIT_SECONDS)
    if (run.area / "podman").exists():
        # Ours too: the hook that podman's runtime runs unmounts them.
        run.podman("rm", "-a", "-f", "-t", "0")
        run.podman("umount", "-a")
    if shutil.which("crun"):
        for name in run.crun("list", "-q").split():
            run.crun("delete", "-f", name)
    if names := run.ours("containers", "-q").split():
        run.ours("delete", *names)
    # podman leaves its own directory mounted on itself.
    for point in mounts().values():
        if point == f"{run.area}/podman/overlay":
            sh("umount", point)

    def left():
        processes = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]
        return [*(point for key, point in mounts().items() if key not in before), *map(process_name, processes)]

    # The keeper of a mount ends some moments after it.
    deadline = time.monotonic() + WAIT_SECONDS
    while found := left():
        check(time.monotonic() < deadline, f"left: {found}")
        time.sleep(0.05)
    shutil.rmtree(run.area)


def process_name(pid):
    with contextlib.suppress(OSError):
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return f"process {pid}"


def repeat(side, base):
    """One repetition: the times of its steps."""
    run = Run(base)
    before = mounts()
    run.begin()
    try:
        side.do(run)
    except BaseException:
        with contextlib.suppress(RuntimeError, OSError):
            clear(run, before)
        raise
    clear(run, before)
    return {**run.times, "all": sum(run.times.values())}


def measure(name, job, args):
    sides = {}
    for who, side in job.sides.items():
        if missing := [program for program in side.needs.split() if not shutil.which(program)]:
            print(f"{name}: without {who}, since {' and '.join(missing)} is not installed", file=sys.stderr)
        else:
            sides[who] = side
    if OURS not in sides:
        return
    load = os.getloadavg()[0]
    times = {who: [] for who in sides}
    for _ in range(args.n):
        for who, side in sides.items():
            times[who].append(repeat(side, args.dir))
    medians = {who: {step: statistics.median(r[step] for r in runs) for step in runs[0]} for who, runs in times.items()}
    if args.json:
        print(json.dumps({"job": name, "n": args.n, "load": load, "seconds": times, "medians": medians}), flush=True)
    else:
        table(name, job, args.n, load, medians)


def table(name, job, n, load, medians):
    ours, *peers = medians
    print(f"\n{name}: {job.title}, seconds (median of {n}, load {load:.1f})")
    print(f"{'':<20}{ours:>12}" + "".join(f"{peer:>12}{'ratio':>8}" for peer in peers))
    # The sum is the last line.
    steps = [step for step in dict.fromkeys(step for side in medians.values() for step in side) if step != "all"]
    for step in [*steps, "all"]:
        line = f"{step:<20}{cell(medians[ours].get(step), 12, 3)}"
        for peer in peers:
            values = [medians[who].get(step) for who in (ours, peer)]
            line += cell(values[1], 12, 3) + cell(values[0] / values[1] if None not in values else None, 8, 2)
        print(line, flush=True)


def cell(value, width, decimals):
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{decimals}f}"


def prepare(base, files):
    """What is made once and stays, with the network that jobs do not have."""
    debian = base / "debian.tar"
    if "debian" in files and not debian.exists():
        print(f"making {debian}", file=sys.stderr)
        new = base / "new.tar"
        sh("mmdebstrap", "--quiet", "--variant=minbase", '--aptopt=Acquire::Check-Valid-Until "false"', "stable", new)
        new.rename(debian)
    if "hello" in files and not list(base.glob("hello_*.deb")):
        sh("apt-get", "download", "hello", cwd=base)


def stop(number, _frame):
    raise SystemExit(128 + number)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="which jobs (default: all)")
    parser.add_argument("-n", type=int, default=3, help="repetitions")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/lxcri-fs-jobs"))
    parser.add_argument("--json", action="store_true", help="print one JSON object for each job, with all times")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    chosen = args.jobs or list(JOBS)
    if unknown := [name for name in chosen if name not in JOBS]:
        parser.error(f"no job {', '.join(unknown)}: there are {', '.join(JOBS)}")
    if not shutil.which(os.environ.get("LXCRI_FS", "lxcri-fs")):
        parser.error("LXCRI_FS does not name the program")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if args.inside:
        try:
            for name in chosen:
                measure(name, JOBS[name], args)
        except (RuntimeError, OSError) as error:
            return f"{error}"
        return 0
    base, empty = args.dir.resolve(), Path("/var/empty")
    base.mkdir(parents=True, exist_ok=True)
    remove(base / "work")
    prepare(base, {word for name in chosen for word in JOBS[name].files.split()})
    # podman demands that this directory is there.
    made = not empty.exists()
    empty.mkdir(exist_ok=True)
    try:
        again = [sys.executable, Path(__file__).resolve(), *chosen, "-n", str(args.n), "--dir", base, "--inside"]
        return subprocess.run([*UNSHARE, *again, *(["--json"] if args.json else [])], check=False).returncode
    finally:
        remove(base / "work")
        if made:
            empty.rmdir()


def remove(directory):
    """Removes a directory, in which processes that were ended may still be writing for a moment."""
    for _ in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)
    raise SystemExit(f"could not remove {directory}")


if __name__ == "__main__":
    sys.exit(main())
