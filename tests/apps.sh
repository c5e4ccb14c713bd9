#!/bin/bash
# Real programs in a chroot of a mounted Debian that can be written to: apt, pip, git, a compile,
# PostgreSQL, fsx. For root, with a network; by hand.
#
#   tests/apps.sh [DIR]      what is written goes into DIR, on any file system that overlayfs can
#                            write to; into a temporary directory when left out
#
# Afterwards all of it has to be there in a second mount, and the image has to be as it was.
#
# Settings: LXCRI_FS           the program; built when not set
#           LXCRI_FS_IMAGE     an image of Debian; made when not set
#           LXCRI_FS_SECONDS   how long pgbench and fsx run (20)
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${LXCRI_FS:-}" ]; then
    cargo build --release --locked --quiet
    LXCRI_FS=${CARGO_TARGET_DIR:-target}/release/lxcri-fs
fi
lxcri_fs=$(realpath "$LXCRI_FS")
seconds=${LXCRI_FS_SECONDS:-20}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

temp=$(mktemp -d /var/tmp/apps.XXXXXX)
root=$temp/root
uppers=$(mktemp -d "${1:-$temp}/upper.XXXXXX")
mkdir "$root"

mount_image() {
    "$lxcri_fs" mount -o suid,dev --upper "$uppers/debian" "$image" "$root"
    mount -t proc proc "$root/proc"
    # PostgreSQL's shared memory
    mkdir -p "$root/dev/shm"
    mount -t tmpfs tmpfs "$root/dev/shm"
}
umount_image() {
    umount "$root/dev/shm" "$root/proc"
    "$lxcri_fs" umount "$root"
    if "$lxcri_fs" ps --json | grep -F "$root"; then echo "still mounted" >&2; return 1; fi
}
end() {
    [ ! -e "$root/srv/postgres/postmaster.pid" ] ||
        in_root postgres "$postgres/pg_ctl" -D /srv/postgres -m immediate stop || true
    for dir in dev/shm proc; do if mountpoint -q "$root/$dir"; then umount -l "$root/$dir"; fi; done
    if mountpoint -q "$root"; then "$lxcri_fs" umount "$root" || umount -l "$root"; fi
    if ! grep -q " $temp/" /proc/self/mountinfo; then rm -rf --one-file-system "$uppers" "$temp"; fi
}
trap end EXIT
trap 'exit 1' INT TERM

step() { printf '\n== %s (%d s)\n' "$*" $SECONDS; }
in_root() { # USER COMMAND…
    chroot --userspec="$1" "$root" /usr/bin/env HOME=/tmp "${@:2}"
}

step "An image of Debian"
image=${LXCRI_FS_IMAGE:-}
if [ -z "$image" ]; then
    image=$temp/debian.bfc
    # A mirror that is a snapshot may be past its date.
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' stable \
        "$temp/debian.tar"
    "$lxcri_fs" build "tar:$temp/debian.tar" -o "$image" >/dev/null
    rm "$temp/debian.tar"
fi
digest=$(sha256sum <"$image")
mount_image
echo "Written to $(stat -f -c %T "$uppers"), Linux $(uname -r)"

step "apt-get install"
# The network and the certificates are this machine's.
install -m 644 /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no services
chmod 755 "$root/usr/sbin/policy-rc.d"
in_root root apt-get update -q >"$temp/log" || { cat "$temp/log"; exit 1; }
in_root root apt-get install -y -q --no-install-recommends ca-certificates gcc git libc6-dev make \
    postgresql python3-dev python3-venv >"$temp/log" 2>&1 ||
    { tail -n 30 "$temp/log"; exit 1; }
in_root root dpkg --audit
# But for configuration, and what small images leave out.
ignored=' c /|^missing +/usr/share/(doc|info|lintian|locale|man)'
changed=$(in_root root dpkg --verify | grep -vE "$ignored" || true)
[ -z "$changed" ] || { echo "files of packages differ:"; head -n 20 <<<"$changed"; exit 1; } >&2
postgres=/$(cd "$root" && echo usr/lib/postgresql/*/bin)

step "git clone"
[ ! -e /etc/ssl/certs/ca-certificates.crt ] ||
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
cp -a "$root/usr/include" "$root/srv/source"
git_in() { in_root root git -C "$1" -c user.name=a -c user.email=a@example.org "${@:2}"; }
git_in /srv/source init -q
git_in /srv/source add .
git_in /srv/source commit -q -m first
in_root root git clone -q --no-local /srv/source /srv/clone
git_in /srv/clone fsck --full --no-progress
diff -r --no-dereference --exclude .git "$root/usr/include" "$root/srv/clone"

step "pip install, and a compile"
[ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"
in_root root python3 -m venv /srv/venv
in_root root /srv/venv/bin/pip install -q flask
in_root root /srv/venv/bin/pip install -q --no-cache-dir --no-binary zstandard zstandard
cat >"$root/srv/try.py" <<END
import flask, pathlib, zstandard
content = b"compiled" * 1000
compressed = zstandard.ZstdCompressor().compress(content)
assert zstandard.ZstdDecompressor().decompress(compressed) == content
assert flask.Flask("app").test_client().get("/").status_code == 404
END
in_root root /srv/venv/bin/python /srv/try.py

step "PostgreSQL: initdb, pgbench"
install -d -o "$(in_root postgres id -u)" -g "$(in_root postgres id -g)" -m 700 "$root/srv/postgres"
in_root postgres "$postgres/initdb" -D /srv/postgres --data-checksums >/dev/null
start_postgres() {
    in_root postgres "$postgres/pg_ctl" -D /srv/postgres -s -w -l /srv/postgres/log \
        -o "-c listen_addresses= -c unix_socket_directories=/tmp" start
}
stop_postgres() { in_root postgres "$postgres/pg_ctl" -D /srv/postgres -s -w stop; }
sql() { in_root postgres "$postgres/psql" -h /tmp -d postgres -Atc "$1"; }
balanced() {
    [ "$(sql 'select (select sum(bbalance) from pgbench_branches)
        = (select sum(delta) from pgbench_history)')" = t ]
}
start_postgres
in_root postgres "$postgres/pgbench" -h /tmp -q -i -s 5 postgres 2>/dev/null
in_root postgres "$postgres/pgbench" -h /tmp -c 4 -j 2 -T "$seconds" postgres |
    grep -E '^(number of (transactions actually|failed)|tps)'
balanced
rows=$(sql 'select count(*) from pgbench_history')
stop_postgres
in_root postgres "$postgres/pg_checksums" -D /srv/postgres --check | grep -i bad

step "fsx on a file of the image"
printf '%s\n' 'blockmode = true' '[weights]' 'read = 10' 'write = 10' 'mapread = 10' \
    'mapwrite = 10' 'truncate = 0' 'invalidate = 1' 'fsync = 1' 'punch_hole = 1' >"$temp/fsx.toml"
[ ! -e "$uppers/debian/upper/usr/bin/perl" ]
until=$((SECONDS + seconds)) seed=0
while [ $SECONDS -lt $until ]; do
    seed=$((seed + 1))
    fsx -q -S $seed -N 1000 -f "$temp/fsx.toml" -P "$temp" "$root/usr/bin/perl" >"$temp/log" 2>&1 ||
        { tail -n 20 "$temp/log"; exit 1; }
done
echo "$((seed * 1000)) operations"
written=$(sha256sum <"$root/usr/bin/perl")

step "The same in another mount"
umount_image
[ "$(sha256sum <"$image")" = "$digest" ]
mount_image
[ "$(sha256sum <"$root/usr/bin/perl")" = "$written" ]
git_in /srv/clone fsck --full --no-progress
git_in /srv/clone diff --quiet
in_root root /srv/venv/bin/python /srv/try.py
start_postgres
balanced
[ "$(sql 'select count(*) from pgbench_history')" = "$rows" ]
stop_postgres
echo "$("$lxcri_fs" diff "$root" | wc -l) paths were written"
umount_image
[ "$(sha256sum <"$image")" = "$digest" ]
step "All is well, and the image is as it was"
