#!/usr/bin/env python3
"""Prepares the workload that run.py measures: an OCI image of three layers, and the same in every peer's form.

    prepare.py [--workload DIR] [--small] [STEP ...]

Debian, npm and PyPI packages, and in the top layer one of everything that an image may hold: whiteouts, opaque directories, hard
links, xattrs, a file capability, devices, a sparse file, odd names and times. What is there already is not made again; --small makes
a workload of a sixth, to try things out. In DIR (/var/tmp/lxcri-fs-bench) afterwards:

    tx/       the peers' programs, in a Debian of their own     tars/l1..3.tar  the layers, OCI whiteouts; plain/ without xattrs
    layers/   l1..l3, unpacked, with overlayfs whiteouts        oci/            the image
    flat/     the tars applied one after the other              img/            the image as the peers want it

For root, on Debian with mmdebstrap, npm and pip. 8 GB, ten minutes; --small 2 GB, two minutes.
"""

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from decimal import Decimal
from pathlib import Path

LAYERS = ["l1", "l2", "l3"]
SUITE, PYTHON = "trixie", "3.13"
# A mirror that is a snapshot may be past its date.
MMDEBSTRAP = ["mmdebstrap", "--quiet", "--variant=minbase", '--aptopt=Acquire::Check-Valid-Until "false"']
PEERS = "erofs-utils,squashfs-tools,squashfuse,fuse-overlayfs"
DEBIAN = "python3 perl git g++ nginx openssh-client iputils-ping sudo curl file xz-utils tzdata vim-tiny man-db ca-certificates"
NPM = "react react-dom typescript webpack eslint jest lodash date-fns rxjs core-js express aws-sdk @mui/material"
PYPI = "numpy matplotlib django requests flask sqlalchemy"
SMALL_DEBIAN, SMALL_NPM, SMALL_PYPI = "python3 git", "express eslint", "flask"


def run(*argv, **options):
    print("+", *(str(arg) for arg in argv), flush=True)
    subprocess.run(argv, check=True, **options)


def peer(tree, program):
    """The command that runs a program of `tree` with that tree's libraries, without chroot."""
    binary = next(p for d in ("usr/bin", "usr/sbin") if (p := tree / d / program).exists())
    libraries = next(tree.glob("usr/lib/*-linux-gnu*"))
    loader = next(p for d in ("usr/lib64", "usr/lib") for p in sorted((tree / d).glob("ld-linux*.so.*")))
    return [loader, "--library-path", libraries, binary]


class Workload:
    """The directory of a workload, and the steps that fill it. Each makes NAME.new first, so that an interrupted one starts again."""

    STEPS = ("tools", "l1", "l2", "l3", "tars", "plain", "oci", "flat", "images")

    def __init__(self, root, small):
        self.root, self.small = root, small
        self.layers, self.tar_dir, self.image_dir = root / "layers", root / "tars", root / "img"
        for directory in (root, self.layers, self.tar_dir, self.image_dir):
            directory.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def new(self, path):
        """Yields PATH.new, which becomes PATH when all went well; yields None when PATH is there."""
        if path.exists():
            yield None
            return
        new = path.with_name(path.name + ".new")
        if new.is_dir():
            shutil.rmtree(new)
        new.unlink(missing_ok=True)
        yield new
        new.rename(path)

    @contextlib.contextmanager
    def overlay(self, lowers, upper):
        """The merged view of layers; what is written goes to `upper`."""
        with tempfile.TemporaryDirectory(dir=self.root) as temp:
            merged, work = Path(temp, "merged"), Path(temp, "work")
            for directory in (merged, work, upper):
                directory.mkdir(mode=0o755, exist_ok=True)
            lower = ":".join(str(self.layers / name) for name in lowers)
            options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off,index=off,metacopy=off"
            run("mount", "-t", "overlay", "overlay", "-o", options, merged)
            try:
                yield merged
            finally:
                run("umount", "--recursive", merged)

    def tools(self):
        with self.new(self.root / "tx") as new:
            if new:
                run(*MMDEBSTRAP, f"--include={PEERS}", SUITE, new)

    def l1(self):
        with self.new(self.layers / "l1") as new:
            if new:
                run(*MMDEBSTRAP, SUITE, new)

    def l2(self):
        with self.new(self.layers / "l2") as new:
            if not new:
                return
            with self.overlay(["l1"], new) as merged:
                apt_install(merged, (SMALL_DEBIAN if self.small else DEBIAN).split())
                (merged / "srv").mkdir(exist_ok=True)
                big_file(merged / "usr", merged / "srv/big.bin", 100 << 20)
                to_be_hidden(merged / "srv")

    def l3(self):
        with self.new(self.layers / "l3") as new:
            if not new:
                return
            with self.overlay(["l2", "l1"], new) as merged:
                app = merged / "srv/app"
                app.mkdir()
                (app / "package.json").write_text('{"name":"app","version":"1.0.0","private":true}\n')
                packages = (SMALL_NPM if self.small else NPM).split()
                run("npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *packages, cwd=app)
                site = merged / "usr/lib/python3/dist-packages"
                packages = (SMALL_PYPI if self.small else PYPI).split()
                version = f"--python-version={PYTHON}"
                run(sys.executable, "-m", "pip", "install", "-q", "--target", site, version, "--only-binary=:all:", *packages)
                hide(merged)
                specials(merged, many=500 if self.small else 5000)

    def tars(self):
        for name in LAYERS:
            with self.new(self.tar_dir / f"{name}.tar") as new:
                if new:
                    write_tar(os.fsencode(self.layers / name), new)

    def plain(self):
        with self.new(self.root / "plain") as new:
            for name in LAYERS if new else []:
                new.mkdir(exist_ok=True)
                without_xattrs(self.tar_dir / f"{name}.tar", new / f"{name}.tar")

    def oci(self):
        with self.new(self.root / "oci") as new:
            if new:
                write_oci(new, [self.tar_dir / f"{name}.tar" for name in LAYERS])

    def flat(self):
        with self.new(self.root / "flat") as new:
            if new:
                new.mkdir()
                for name in LAYERS:
                    apply_tar(self.tar_dir / f"{name}.tar", os.fsencode(new))

    def images(self):
        """Every peer's own tool, zstd level 3."""
        with self.new(self.image_dir / "squashfs") as new:
            for name in LAYERS if new else []:
                new.mkdir(exist_ok=True)
                options = ["-comp", "zstd", "-Xcompression-level", "3", "-no-progress", "-quiet"]
                run(*peer(self.root / "tx", "mksquashfs"), self.layers / name, new / f"{name}.img", *options)
        with self.new(self.image_dir / "erofs") as new:
            for name in LAYERS if new else []:
                new.mkdir(exist_ok=True)
                options = ["--quiet", "--tar=f", "--aufs", "--preserve-mtime", "-zzstd,level=3", "-C65536"]
                run(*peer(self.root / "tx", "mkfs.erofs"), *options, new / f"{name}.img", self.tar_dir / f"{name}.tar")
        if "NYDUS_BIN" not in os.environ:
            return
        with self.new(self.image_dir / "nydus") as new:
            parent = []
            for name in LAYERS if new else []:
                (new / "blobs").mkdir(parents=True, exist_ok=True)
                options = ["--type", "tar-rafs", "--fs-version", "6", "--compressor", "zstd", "--blob-dir", new / "blobs"]
                bootstrap = new / f"{name}.boot"
                tool = Path(os.environ["NYDUS_BIN"], "nydus-image")
                run(tool, "create", *options, *parent, "--bootstrap", bootstrap, self.tar_dir / f"{name}.tar")
                parent = ["--parent-bootstrap", bootstrap]


def apt_install(root, packages):
    no_services = root / "usr/sbin/policy-rc.d"
    no_services.write_text("#!/bin/sh\nexit 101\n")
    no_services.chmod(0o755)
    resolv = root / "etc/resolv.conf"
    shutil.copy("/etc/resolv.conf", resolv)
    run("mount", "-t", "proc", "proc", root / "proc")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quiet = {"env": env, "stdout": subprocess.DEVNULL}
    run("chroot", root, "apt-get", "update", "-q", **quiet)
    run("chroot", root, "apt-get", "install", "-y", "-q", "--no-install-recommends", *packages, **quiet)
    run("umount", root / "proc")
    no_services.unlink()
    resolv.unlink()
    for path in [*root.glob("var/lib/apt/lists/*"), *root.glob("var/cache/apt/**/*")]:
        if path.is_file():
            path.unlink()


def big_file(source, target, size):
    """One file of program text, for reads that are sequential or random and for copy-up."""
    with open(target, "wb") as out:
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.is_symlink():
                out.write(path.read_bytes()[: size - out.tell()])


def to_be_hidden(srv):
    for i in range(20):
        path = srv / f"old/d{i % 4}/f{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"old {i}\n")
    (srv / "opaque/sub").mkdir(parents=True)
    for i in range(50):
        (srv / f"opaque/sub/hidden{i}").write_text("hidden\n")
    (srv / "becomes-dir").write_text("a file in l2\n")
    (srv / "becomes-file/x").mkdir(parents=True)


def hide(root):
    """Whiteouts, an opaque directory, a file that becomes a directory and the reverse."""
    for path in [root / "usr/share/doc", *root.glob("usr/share/locale/[a-d]*")]:
        shutil.rmtree(path)
    for gone in ("old/d1", "opaque", "becomes-file"):
        shutil.rmtree(root / "srv" / gone)
    (root / "srv/old/d2/f2").unlink()
    (root / "srv/opaque/sub").mkdir(parents=True)
    (root / "srv/opaque/sub/new").write_text("new\n")
    (root / "srv/becomes-dir").unlink()
    (root / "srv/becomes-dir").mkdir()
    (root / "srv/becomes-dir/in").write_text("in\n")
    (root / "srv/becomes-file").write_text("a file in l3\n")


def specials(root, many):
    """One of everything that an image may hold, and `many` small files."""
    top = root / "srv/special"
    (top / "owned").mkdir(parents=True)
    (top / "many").mkdir()
    for i in range(many):
        (top / f"many/file-{i:05}.txt").write_text(f"{i}\n" * (i % 50))
    (top / "link-0").write_text("hard link\n" * 500)
    for i in range(1, 6):
        (top / f"link-{i}").hardlink_to(top / "link-0")
    (top / "link-package.json").hardlink_to(root / "srv/app/package.json")
    for name, target in [("relative", "link-0"), ("absolute", "/etc/passwd"), ("dangling", "nowhere"), ("long", "x" * 4000)]:
        (top / f"symlink-{name}").symlink_to(target)
    for name, mode in [("suid", 0o4755), ("sgid", 0o2755), ("capability", 0o755)]:
        shutil.copy(root / "usr/bin/true", top / name)
        (top / name).chmod(mode)
    # struct vfs_cap_data, revision 2: CAP_NET_RAW permitted and effective
    os.setxattr(top / "capability", "security.capability", bytes.fromhex("0100000200200000" + 12 * "00"))
    os.setxattr(top / "link-0", "user.latin1", b"caf\xe9")
    os.setxattr(top / "link-0", "user.big", random.Random(2).randbytes(2000))
    os.setxattr(top, "user.directory", b"1")
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(7, 0))
    os.mkfifo(top / "fifo")
    for name in (b"n" * 255, b"latin-\xe9\xff\xfe", "utf8 \u65e5\u672c\t\n".encode()):
        with open(os.fsencode(top) + b"/" + name, "wb") as out:
            out.write(name)
    (top / "/".join(f"deep{i:02}{'d' * 80}" for i in range(12))).mkdir(parents=True)
    with open(top / "sparse", "wb") as out:
        for offset, content in [(5 << 20, b"A" * 4096), ((20 << 20) + 123, b"B" * 100_000)]:
            out.seek(offset)
            out.write(content)
        out.truncate(32 << 20)
    (top / "empty").touch()
    (top / "random").write_bytes(random.Random(1).randbytes(8 << 20))
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    for i in range(30):
        path = top / f"owned/{i}"
        path.write_text(str(i))
        os.chown(path, 1000 + 3000 * i, 100 + i)
        mtime = 1_500_000_000_000_001_001 * i // 10 if i % 7 else -1_000_000_001 * i
        os.utime(path, ns=(mtime, mtime))


def write_tar(layer, target):
    """Packs an unpacked layer: overlayfs whiteouts and opaque marks become those of OCI, in front of what stands beside them."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for directory, dirs, files in os.walk(layer):
            dirs.sort()
            prefix = os.path.relpath(directory, layer) + b"/" if directory != layer else b""
            if prefix:
                add(tar, directory, prefix[:-1])
            if prefix and xattrs(directory).get("trusted.overlay.opaque") == b"y":
                tar.addfile(tarfile.TarInfo(os.fsdecode(prefix + b".wh..wh..opq")))
            names = sorted(files + [d for d in dirs if os.path.islink(os.path.join(directory, d))])
            hidden = [n for n in names if is_whiteout(os.path.join(directory, n))]
            for name in hidden:
                tar.addfile(tarfile.TarInfo(os.fsdecode(prefix + b".wh." + name)))
            for name in names:
                if name not in hidden:
                    add(tar, os.path.join(directory, name), prefix + name)


def is_whiteout(path):
    st = os.lstat(path)
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def xattrs(path):
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def add(tar, path, name):
    st = os.lstat(path)
    if stat.S_ISSOCK(st.st_mode):
        return
    entry = tar.gettarinfo(os.fsdecode(path), os.fsdecode(name))  # a hard link when this inode was there before
    entry.uname = entry.gname = ""
    entry.mtime = max(st.st_mtime_ns // 10**9, 0)
    if st.st_mtime_ns != entry.mtime * 10**9:
        entry.pax_headers["mtime"] = f"{Decimal(st.st_mtime_ns) / 10**9:.9f}"
    for key, value in xattrs(path).items():
        if not key.startswith("trusted.overlay."):
            entry.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    if entry.isreg():
        with open(path, "rb") as content:
            tar.addfile(entry, content)
    else:
        tar.addfile(entry)


def without_xattrs(source, target):
    with tarfile.open(source, encoding="utf-8", errors="surrogateescape") as tar:
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as out:
            for entry in tar:
                entry.pax_headers = {key: value for key, value in entry.pax_headers.items() if not key.startswith("SCHILY.xattr.")}
                out.addfile(entry, tar.extractfile(entry) if entry.isreg() else None)


def write_oci(root, tars):
    """An OCI image layout of one image, tag latest, gzip layers."""
    blobs = root / "blobs/sha256"
    blobs.mkdir(parents=True)

    def digest(path):
        with open(path, "rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()

    def store(path, kind):
        name = digest(path)
        path.rename(blobs / name)
        size = (blobs / name).stat().st_size
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{name}", "size": size}

    def store_json(document, kind):
        (root / "blob").write_text(json.dumps(document))
        return store(root / "blob", kind)

    layers = []
    for tar in tars:
        with open(tar, "rb") as source, open(root / "blob", "wb") as out, gzip.GzipFile("", "wb", 6, out, mtime=0) as packed:
            shutil.copyfileobj(source, packed, 1 << 20)
        layers.append(store(root / "blob", "layer.v1.tar+gzip"))
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(tar)}" for tar in tars]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": store_json(config, "config.v1+json"),
        "layers": layers,
    }
    latest = {**store_json(manifest, "manifest.v1+json"), "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [latest]}))
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def apply_tar(tar_path, root):
    """Applies a layer to a tree without overlayfs, so that the tree can be the reference for what overlayfs and others show."""
    dirs = []
    with tarfile.open(tar_path, encoding="utf-8", errors="surrogateescape") as tar:
        for entry in tar:
            path = os.path.join(root, os.fsencode(entry.name))
            parent, name = os.path.split(path)
            if name == b".wh..wh..opq":
                for child in os.listdir(parent):
                    remove(os.path.join(parent, child))
            elif name.startswith(b".wh."):
                remove(os.path.join(parent, name[4:]))
            elif entry.islnk():
                remove(path)
                os.link(os.path.join(root, os.fsencode(entry.linkname)), path, follow_symlinks=False)
            else:
                create(tar, entry, path)
                set_attributes(entry, path)
                if entry.isdir():
                    dirs.append((entry, path))
    for entry, path in dirs:
        set_attributes(entry, path)


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def create(tar, entry, path):
    if entry.isdir() and os.path.isdir(path) and not os.path.islink(path):
        return
    remove(path)
    if entry.isdir():
        os.mkdir(path)
    elif entry.issym():
        os.symlink(os.fsencode(entry.linkname), path)
    elif entry.isreg():
        with tar.extractfile(entry) as source, open(path, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    elif entry.isfifo():
        os.mkfifo(path)
    else:
        kind = stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
        os.mknod(path, kind, os.makedev(entry.devmajor, entry.devminor))


def set_attributes(entry, path):
    os.lchown(path, entry.uid, entry.gid)
    if not entry.issym():
        os.chmod(path, entry.mode)
    for key, value in entry.pax_headers.items():
        if key.startswith("SCHILY.xattr."):
            os.setxattr(path, key[13:], value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
    mtime = int(Decimal(entry.pax_headers.get("mtime", entry.mtime)) * 10**9)
    os.utime(path, ns=(mtime, mtime), follow_symlinks=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path, default=Path("/var/tmp/lxcri-fs-bench"), metavar="DIR")
    parser.add_argument("--small", action="store_true", help="a sixth of the entries, a third of the bytes")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"only these: {' '.join(Workload.STEPS)}")
    args = parser.parse_args()
    os.umask(0o022)
    workload = Workload(args.workload.resolve(), args.small)
    for step in args.steps or Workload.STEPS:
        getattr(workload, step)()


if __name__ == "__main__":
    main()
