#!/usr/bin/env python3
"""Measures lxcri-fs beside its peers on one workload in one run, and holds the result against the project's targets.

    LXCRI_FS=target/release/lxcri-fs run.py [--workload DIR] [-n 3] [--rows ROW,…] [--phases PHASE,…] [-o FILE]
    run.py --summary FILE

A row is a way to have the image as a root file system, a phase is what is done with it. Each phase has a mount of its own, made
after caches were dropped. One JSON line per row, phase and repetition goes to FILE, then tables of medians to the output. Whatever
is mounted is unmounted again, also after a failure or Ctrl-C. For root; prepare.py comes first.
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
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from prepare import LAYERS, peer

HERE = Path(__file__).resolve().parent
BIG_FILE = "srv/big.bin"
MANY_FILES = "srv/special/many"
IMAGE = "img/lxcri-fs.bfc"
PLAIN_IMAGE = "img/lxcri-fs-plain.bfc"
BEFORE_IMAGE = "img/lxcri-fs-before.bfc"
RUN_MARK = "LXCRI_FS_BENCH_RUN"

# --- Rows: shell commands that mount the image on $ROOT. $LOWER is a directory for what lies below. --------------------------------

OVERLAY = "mount -t overlay overlay -o redirect_dir=off,index=off,metacopy=off,upperdir=$UPPER,workdir=$WORK"


def layered(mount_one):
    """Each layer mounted on its own, overlayfs on top."""
    each = f'for l in {" ".join(LAYERS)}; do mkdir "$LOWER/$l" && {mount_one} || exit; done'
    return f"{each}; {OVERLAY},lowerdir={':'.join(f'$LOWER/{name}' for name in reversed(LAYERS))} $ROOT"


NYDUSD = """sed "s#BLOBS#$W/img/nydus/blobs#; s#CACHE#$LOWER/cache#" "$HERE/nydusd.json" >"$LOWER/nydusd.json"
mkdir -p "$LOWER/cache" %(on)s
"$NYDUS_BIN/nydusd" --config "$LOWER/nydusd.json" --mountpoint %(on)s --bootstrap "$W/img/nydus/l3.boot" --log-level warn \
    --fuse-threads 4 --apisock "$LOWER/api" &
until mountpoint -q %(on)s; do kill -0 $! || exit; sleep 0.002; done"""
UNPACKED = ":".join(f"$W/layers/{name}" for name in reversed(LAYERS))


@dataclass
class Row:
    mount: str
    writable: bool = True
    needs: str = ""
    image: str = ""
    """What its image is: a file or directory of the workload."""
    unmount: str = ""
    """What comes before plain umount."""


ROWS = {
    "ext4": Row("mount --bind -o ro $W/flat $ROOT", writable=False),
    "ext4+ovl": Row(f"{OVERLAY},lowerdir={UNPACKED} $ROOT"),
    "erofs+ovl": Row(layered("$LOOPS mount erofs $W/img/erofs/$l.img $LOWER/$l"), image="img/erofs"),
    "squashfs+ovl": Row(layered("mount -t squashfs -o loop,ro $W/img/squashfs/$l.img $LOWER/$l"), image="img/squashfs"),
    "squashfuse_ll+ovl": Row(layered("$SQUASHFUSE_LL -o allow_other,dev,suid $W/img/squashfs/$l.img $LOWER/$l"), image="img/squashfs"),
    "fuse-overlayfs": Row(f"$FUSE_OVERLAYFS -o allow_other,dev,suid,lowerdir={UNPACKED},upperdir=$UPPER,workdir=$WORK $ROOT"),
    "nydusd": Row(NYDUSD % {"on": "$ROOT"}, writable=False, needs="NYDUS_BIN", image="img/nydus"),
    "nydusd+ovl": Row(f"{NYDUSD % {'on': '$LOWER/m'}}; {OVERLAY},lowerdir=$LOWER/m $ROOT", needs="NYDUS_BIN", image="img/nydus"),
    "lxcri-fs": Row("$LXCRI_FS mount $IMAGE $ROOT", writable=False, needs="LXCRI_FS", image=IMAGE, unmount="$LXCRI_FS umount $ROOT"),
    # see with_upper()
    "lxcri-fs+ovl": Row("$LXCRI_FS mount -o suid,dev --upper $LOWER/upper $IMAGE $ROOT", needs="LXCRI_FS", image=IMAGE, unmount="$LXCRI_FS umount $ROOT"),
    "lxcri-fs-plain+ovl": Row(
        "$LXCRI_FS mount -o suid,dev --upper $LOWER/upper $PLAIN_IMAGE $ROOT", needs="LXCRI_FS", image=PLAIN_IMAGE, unmount="$LXCRI_FS umount $ROOT"
    ),
    # The same with FUSE alone.
    "fuse": Row(
        "$LXCRI_FS mount --engine fuse $IMAGE $ROOT", writable=False, needs="LXCRI_FS", image=IMAGE, unmount="$LXCRI_FS umount $ROOT"
    ),
    "fuse+ovl": Row(
        "$LXCRI_FS mount --engine fuse -o suid,dev --upper $LOWER/upper $IMAGE $ROOT",
        needs="LXCRI_FS",
        image=IMAGE,
        unmount="$LXCRI_FS umount $ROOT",
    ),
    # An earlier version of the program, with an image that it built itself: what a change costs.
    "before": Row(
        "$LXCRI_FS_BEFORE mount $BEFORE_IMAGE $ROOT",
        writable=False,
        needs="LXCRI_FS_BEFORE",
        image=BEFORE_IMAGE,
        unmount="$LXCRI_FS_BEFORE umount $ROOT",
    ),
    "before+ovl": Row(
        "$LXCRI_FS_BEFORE mount -o suid,dev --upper $LOWER/upper $BEFORE_IMAGE $ROOT",
        needs="LXCRI_FS_BEFORE",
        image=BEFORE_IMAGE,
        unmount="$LXCRI_FS_BEFORE umount $ROOT",
    ),
}


# --- Mounts ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Mount:
    """A row mounted afresh."""

    root: Path
    start: float
    """When mounting began."""
    before: set
    """The processes that were there before."""


class Bench:
    """What all rows share: the workload, programs, a directory for mounts."""

    def __init__(self, workload, temp):
        self.workload, self.temp = workload, temp
        self.loops = temp / "loops"
        subprocess.run(["cc", "-O2", "-pthread", "-o", self.loops, HERE / "loops.c"], check=True)
        self.lxcri_fs, self.before = (
            Path(path).resolve(strict=True) if (path := os.environ.get(name)) else None for name in ("LXCRI_FS", "LXCRI_FS_BEFORE")
        )
        words = {
            "W": workload,
            "HERE": HERE,
            "LOOPS": self.loops,
            "IMAGE": workload / IMAGE,
            "PLAIN_IMAGE": workload / PLAIN_IMAGE,
            "BEFORE_IMAGE": workload / BEFORE_IMAGE,
            "LXCRI_FS": self.lxcri_fs or "",
            "LXCRI_FS_BEFORE": self.before or "",
            "SQUASHFUSE_LL": " ".join(map(str, peer(workload / "tx", "squashfuse_ll"))),
            "FUSE_OVERLAYFS": " ".join(map(str, peer(workload / "tx", "fuse-overlayfs"))),
            RUN_MARK: temp,
        }
        self.env = {**os.environ, **{key: str(value) for key, value in words.items()}}

    def loop(self, *args):
        return json.loads(subprocess.run([self.loops, *map(str, args)], check=True, capture_output=True).stdout)

    def build_images(self):
        """Builds our images when they are missing or older than the program."""
        merged = [self.workload / "oci"]
        first, *rest = (f"tar:{self.workload}/plain/{name}.tar" for name in LAYERS)
        plain = [first, *(word for tar in rest for word in ("--layer", tar))]
        wanted = [(self.lxcri_fs, IMAGE, merged), (self.lxcri_fs, PLAIN_IMAGE, plain), (self.before, BEFORE_IMAGE, merged)]
        for program, name, source in wanted:
            image = self.workload / name
            if program and (not image.exists() or image.stat().st_mtime < program.stat().st_mtime):
                subprocess.run([program, "build", *source, "-o", image, "--force"], check=True, stdout=sys.stderr)

    @contextlib.contextmanager
    def mounted(self, name):
        row = ROWS[name]
        area = Path(tempfile.mkdtemp(dir=self.temp))
        places = {key: area / key.lower() for key in ("ROOT", "UPPER", "WORK", "LOWER")}
        for place in places.values():
            place.mkdir()
        env = {**self.env, **{key: str(place) for key, place in places.items()}}
        log = area / "log"

        def shell(commands):
            with open(log, "ab") as output:
                options = {"env": env, "stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
                return subprocess.run(commands, shell=True, check=False, **options).returncode

        before = set(processes())
        drop_caches()
        try:
            start = time.monotonic()
            status = shell(row.mount)
            if status != 0 or str(places["ROOT"]) not in mounts_below(area):
                raise RuntimeError(f"mount failed with status {status}: {log.read_text(errors='replace')[-500:]}")
            yield Mount(places["ROOT"], start, before)
        finally:
            if row.unmount:
                shell(row.unmount)
            unmount_below(area)
            self.end_daemons(before)
            shutil.rmtree(area)

    def daemons(self, before):
        """Processes that serve a mount made since `before`: they carry the mark, or (handed to systemd) run our program."""
        found = []
        for pid in set(processes()) - before:
            with contextlib.suppress(OSError):
                marked = f"{RUN_MARK}={self.temp}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                ours = os.readlink(f"/proc/{pid}/exe") in (str(self.lxcri_fs), str(self.before))
                if marked or ours:
                    found.append(pid)
        return found

    def end_daemons(self, before):
        for _ in range(100):
            left = self.daemons(before)
            if not left:
                return
            time.sleep(0.05)
        for pid in left:
            print(f"process {pid} did not end with its mount; ending it", file=sys.stderr)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    time.sleep(0.2)


def mounts_below(directory):
    """Mount points below a directory, the latest first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
        points = [line.split()[4] for line in mountinfo]
    return [point for point in reversed(points) if point.startswith(f"{directory}/")]


def unmount_below(directory):
    for options in ([], [], ["--lazy"]):
        for point in mounts_below(directory):
            subprocess.run(["umount", *options, point], stderr=subprocess.DEVNULL, check=False)
        if not mounts_below(directory):
            return
        time.sleep(0.5)
    raise SystemExit(f"could not unmount what is below {directory}")


def memory(pids):
    """What processes hold, MB: proportional and resident."""
    total = {"Pss:": 0, "Rss:": 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                words = line.split()
                if words[0] in total:
                    total[words[0]] += int(words[1])
    return {"pss_mb": total["Pss:"] / 1e3, "rss_mb": total["Rss:"] / 1e3}


# --- Phases: what is done with a fresh, cold mount -----------------------------------------------------------------------------------


def timed(*argv):
    start = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def exec_phase(_bench, m):
    timed("chroot", m.root, "/usr/bin/true")
    return {"exec_ms": 1e3 * (time.monotonic() - m.start)}


def find_phase(bench, m):
    cold, warm = (timed("find", m.root, "-ls") for _ in range(2))
    lstat = bench.loop("lstat", m.root)
    return {"find_cold_s": cold, "find_warm_s": warm, "lstat_us": lstat["us"], "entries": lstat["entries"], "errors": lstat["errors"]}


def python_phase(_bench, m):
    return {"python_ms": 1e3 * timed("chroot", m.root, "/usr/bin/python3", "-B", "-c", "import ssl, json, asyncio")}


def read_phase(threads):
    def phase(bench, m):
        cold, warm = (bench.loop("read", m.root, threads) for _ in range(2))
        counts = {key: cold[key] for key in ("files", "bytes", "errors")}
        return {f"read{threads}_cold_s": cold["s"], f"read{threads}_warm_s": warm["s"], **counts}

    return phase


def random_phase(bench, m):
    result = bench.loop("random", m.root / BIG_FILE, 1000, 7)
    return {"random_iops": result["iops"], "random_p99_us": result["p99_us"]}


def sequential_phase(bench, m):
    cold, *warm = (bench.loop("sequential", m.root / BIG_FILE)["mbps"] for _ in range(4))
    return {"seq_cold_mbps": cold, "seq_warm_mbps": max(warm)}


def memory_phase(bench, m):
    """All that a daemon is asked for, on one mount. (Measured after every phase.)"""
    find_phase(bench, m)
    for threads in (1, 4):
        bench.loop("read", m.root, threads)
    random_phase(bench, m)
    return {}


def write_phase(bench, m):
    new = m.root / "srv/new"
    return {
        "first_write_s": bench.loop("write", m.root / BIG_FILE)["s"],
        "create_s": bench.loop("create", new, 10_000)["s"],
        "unlink_s": bench.loop("unlink", new, 10_000)["s"],
        "rm_lower_s": timed("rm", "-r", m.root / MANY_FILES),
    }


PHASES = {
    "exec": exec_phase,
    "find": find_phase,
    "python": python_phase,
    "read1": read_phase(1),
    "read4": read_phase(4),
    "random": random_phase,
    "sequential": sequential_phase,
    "memory": memory_phase,
    "write": write_phase,
}


def build_phase(bench, row):
    """Makes an image, with neither sources nor result in the cache. Only of squashfs and ours the time is asked for."""
    if row not in ("squashfs+ovl", "lxcri-fs", "before"):
        image = bench.workload / ROWS[row].image
        files = [f for f in image.rglob("*") if f.suffix == ".img" or f.name == "l3.boot" or f.parent.name == "blobs"]
        return {"image_mb": sum(f.stat().st_size for f in files) / 1e6}
    out = Path(tempfile.mkdtemp(dir=bench.temp))
    if row in ("lxcri-fs", "before"):
        program = bench.lxcri_fs if row == "lxcri-fs" else bench.before
        commands = [[program, "build", bench.workload / "oci", "-o", out / "image"]]
    else:
        squash = peer(bench.workload / "tx", "mksquashfs")
        options = ["-comp", "zstd", "-Xcompression-level", "3", "-no-progress", "-quiet"]
        commands = [[*squash, bench.workload / "layers" / name, out / name, *options] for name in LAYERS]
    drop_caches()
    try:
        start, peak = time.monotonic(), 0
        for command in commands:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"{command[0]}: {process.stderr.read()[-500:]!r}")
            peak = max(peak, usage.ru_maxrss)
        seconds = time.monotonic() - start
        size = sum(f.stat().st_size for f in out.iterdir())
        return {"build_s": seconds, "build_peak_mib": peak / 1024, "image_mb": size / 1e6}
    finally:
        shutil.rmtree(out)


# --- Targets ---------------------------------------------------------------------------------------------------------------------

# metric: (what it is, decimals); IOPS and MB/s are better when larger
METRICS = {
    "exec_ms": ("mount to first exec, ms", 0),
    "find_cold_s": ("find -ls, cold, s", 2),
    "find_warm_s": ("find -ls, warm, s", 2),
    "lstat_us": ("lstat of all paths, warm, µs", 2),
    "python_ms": ("python import in chroot, cold, ms", 0),
    "read1_cold_s": ("read all, cold, 1 thread, s", 2),
    "read4_cold_s": ("read all, cold, 4 threads, s", 2),
    "read1_warm_s": ("read all, warm, 1 thread, s", 2),
    "read4_warm_s": ("read all, warm, 4 threads, s", 2),
    "random_iops": ("random 4 KiB, cold, IOPS", 0),
    "random_p99_us": ("random 4 KiB, cold, p99 µs", 0),
    "seq_cold_mbps": ("sequential, cold, MB/s", 0),
    "seq_warm_mbps": ("sequential, warm, MB/s", 0),
    "pss_mb": ("daemon, PSS, MB", 1),
    "rss_mb": ("daemon, RSS, MB", 1),
    "first_write_s": ("first write to a 100 MB lower file, s", 2),
    "create_s": ("create 10k files, s", 2),
    "unlink_s": ("unlink 10k files, s", 2),
    "rm_lower_s": ("rm -r of lower files, s", 2),
    "build_s": ("build, s", 1),
    "build_peak_mib": ("build, peak memory, MiB", 0),
    "image_mb": ("image, MB", 0),
}
LARGER_IS_BETTER = {"random_iops", "seq_cold_mbps", "seq_warm_mbps"}
SERVING = list(METRICS)[:13]
WRITING = ("first_write_s", "create_s", "unlink_s", "rm_lower_s")

# metric, bound, and of which row's figure it is a multiple
READ_ONLY = [
    ("exec_ms", 0.85, "erofs+ovl"),
    ("find_cold_s", 0.45, "ext4"),
    ("find_warm_s", 0.95, "ext4"),
    ("lstat_us", 0.95, "ext4"),
    ("python_ms", 0.9, "erofs+ovl"),
    ("read1_cold_s", 0.6, "erofs+ovl"),
    ("read4_cold_s", 0.65, "erofs+ovl"),
    ("read1_warm_s", 0.85, "ext4"),
    ("read4_warm_s", 0.7, "ext4"),
    ("random_iops", 2.5, "erofs+ovl"),
    ("random_p99_us", 0.5, "erofs+ovl"),
    ("seq_cold_mbps", 2.0, "erofs+ovl"),
    ("seq_warm_mbps", 1.0, "ext4"),
]
WITH_UPPER = [
    ("exec_ms", 1.0, "erofs+ovl"),
    ("find_cold_s", 0.5, "erofs+ovl"),
    ("find_warm_s", 1.0, "erofs+ovl"),
    ("lstat_us", 1.0, "erofs+ovl"),
    ("python_ms", 1.0, "erofs+ovl"),
    ("read1_cold_s", 0.65, "erofs+ovl"),
    ("read4_cold_s", 0.75, "erofs+ovl"),
    ("read1_warm_s", 0.95, "erofs+ovl"),
    ("read4_warm_s", 1.0, "erofs+ovl"),
    ("random_iops", 2.2, "erofs+ovl"),
    ("seq_cold_mbps", 1.8, "erofs+ovl"),
    ("seq_warm_mbps", 1.0, "ext4"),
]
# row, metric, bound, and of which row's figure it is a multiple; None: the figure itself
TARGETS = [
    *(("lxcri-fs", *target) for target in READ_ONLY),
    ("lxcri-fs", "pss_mb", 15, None),
    *(("lxcri-fs+ovl", *target) for target in WITH_UPPER),
    ("lxcri-fs+ovl", "pss_mb", 15, None),
    *(("lxcri-fs+ovl", metric, 1.1, "erofs+ovl") for metric in WRITING),
    # What EROFS brings: no figure of the split engine is worse than that of FUSE alone.
    *(
        (row, metric, 1 / 1.05 if metric in LARGER_IS_BETTER else 1.05, fuse)
        for row, fuse in (("lxcri-fs", "fuse"), ("lxcri-fs+ovl", "fuse+ovl"))
        for metric in (*SERVING, *(WRITING if "ovl" in row else ()), "pss_mb")
    ),
    *(
        (row, metric, 1 / 1.05 if metric in LARGER_IS_BETTER else 1.05, before)
        for row, before in (("lxcri-fs", "before"), ("lxcri-fs+ovl", "before+ovl"))
        for metric in (*SERVING, *(WRITING if "ovl" in row else ()), "pss_mb")
    ),
    ("lxcri-fs", "image_mb", 1.05, "before"),
    ("lxcri-fs", "build_s", 1.3, "squashfs+ovl"),
    ("lxcri-fs", "build_peak_mib", 300, None),
    ("lxcri-fs", "image_mb", 1.06, "nydusd"),
]


def summarize(lines):
    """Prints medians and how they compare with the targets; returns whether all that could be judged were reached."""
    results = [json.loads(line) for line in lines]
    values = defaultdict(list)
    for result in results:
        for metric in METRICS.keys() & result.keys():
            values[result["row"], metric].append(result[metric])
    # Of memory, the most that was held after any phase.
    figures = {key: (max if key[1] in ("pss_mb", "rss_mb") else statistics.median)(found) for key, found in values.items()}
    print(f"\nMedians, n = {1 + max((result['repetition'] for result in results), default=-1)}\n")
    print_figures(figures)
    print("\nTargets\n")
    reached = print_targets(figures)
    if problems := find_problems(results):
        print("\nProblems\n")
        print(*(f"- {problem}" for problem in sorted(problems)), sep="\n")
    return reached


def print_figures(figures):
    rows = [row for row in ROWS if any(row == found for found, _ in figures)]
    table_row("", *rows)
    table_row("---", *("---:" for _ in rows))
    for metric, (label, decimals) in METRICS.items():
        if any((row, metric) in figures for row in rows):
            table_row(label, *(f"{figures[row, metric]:.{decimals}f}" if (row, metric) in figures else "–" for row in rows))


def print_targets(figures):
    table_row("row", "on the workload", "to reach", "reached", "")
    table_row("---", "---", "---", "---:", "---")
    all_reached = True
    for row, metric, bound, reference in TARGETS:
        if (row, metric) not in figures or (reference and (reference, metric) not in figures):
            continue
        value = figures[row, metric] / (figures[reference, metric] if reference else 1)
        reached = value >= bound if metric in LARGER_IS_BETTER else value <= bound
        all_reached &= reached
        label, decimals = METRICS[metric]
        sign = "≥" if metric in LARGER_IS_BETTER else "≤"
        to_reach = f"{sign} {bound:.3g} × {reference}" if reference else f"{sign} {bound}"
        shown = f"{value:.2f} ×" if reference else f"{value:.{decimals}f}"
        table_row(row, label, to_reach, shown, "pass" if reached else "**fail**")
    return all_reached


def find_problems(results):
    """What failed, and rows that do not show the tree that ext4 shows."""
    counts = {}
    for result in results:
        for key in ("entries", "files", "bytes", "errors"):
            if key in result:
                counts.setdefault((result["phase"], key), {})[result["row"]] = result[key]
    problems = {f"{result['row']}, {result['phase']}: {result['failed']}" for result in results if "failed" in result}
    for (phase, key), by_row in counts.items():
        expected = by_row.get("ext4", 0 if key == "errors" else None)
        problems |= {
            f"{row}, {phase}: {key} {found}, should be {expected}"
            for row, found in by_row.items()
            if expected is not None and found != expected
        }
    return problems


def table_row(*cells):
    print("|", " | ".join(cells), "|")


# --- The run ---------------------------------------------------------------------------------------------------------------------


def measure(bench, row, phase):
    if phase == "build":
        return build_phase(bench, row)
    with bench.mounted(row) as m:
        result = PHASES[phase](bench, m)
        daemons = bench.daemons(m.before)
        return {**result, **memory(daemons)} if daemons else result


def applies(row, phase):
    if phase == "build":
        return bool(ROWS[row].image) and row not in ("squashfuse_ll+ovl", "nydusd+ovl", "lxcri-fs+ovl", "lxcri-fs-plain+ovl", "fuse", "fuse+ovl", "before+ovl")
    return phase != "write" or ROWS[row].writable


def run(args, output):
    temp = Path(tempfile.mkdtemp(prefix="run-", dir=args.workload))
    try:
        bench = Bench(args.workload, temp)
        ours = any(name in row for row in args.rows for name in ("lxcri-fs", "before", "fuse"))
        if ours and set(args.phases) != {"build"}:
            bench.build_images()
        for repetition in range(args.n):
            for phase in args.phases:
                for row in (row for row in args.rows if applies(row, phase)):
                    result = {"row": row, "phase": phase, "repetition": repetition, "load": os.getloadavg()[0]}
                    try:
                        result |= measure(bench, row, phase)
                    except (RuntimeError, OSError, ValueError, subprocess.CalledProcessError) as error:
                        detail = getattr(error, "stderr", None)
                        result["failed"] = f"{error} {detail.decode(errors='replace') if detail else ''}".strip()
                    print(json.dumps(result), file=output, flush=True)
                    print(json.dumps(result), file=sys.stderr)
    finally:
        unmount_below(temp)
        shutil.rmtree(temp)


def words(text):
    return text.split(",")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path, default=Path("/var/tmp/lxcri-fs-bench"), metavar="DIR")
    parser.add_argument("-n", type=int, default=3, help="repetitions (3)")
    parser.add_argument("--rows", type=words, default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--phases", type=words, default=[*PHASES, "build"], help=", ".join([*PHASES, "build"]))
    parser.add_argument("-o", "--output", type=Path, help="JSON lines (DIR/results.jsonl)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="only the tables of an earlier run")
    args = parser.parse_args()
    args.workload = args.workload.resolve()
    unknown = [name for name in args.rows if name not in ROWS] + [name for name in args.phases if name not in [*PHASES, "build"]]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}")
    args.rows = [row for row in args.rows if not ROWS[row].needs or os.environ.get(ROWS[row].needs)]
    results = args.summary or args.output or args.workload / "results.jsonl"
    if not args.summary:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
        with open(results, "w", encoding="utf-8") as output:
            run(args, output)
    with open(results, encoding="utf-8") as lines:
        return 0 if summarize(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
