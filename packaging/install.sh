#!/bin/sh
# Installs lxcri-fs below PREFIX, such as /usr/local:
#
#   ./install.sh PREFIX
#
# Settings: DESTDIR      another root directory, for packages
#           SYSCONFDIR   instead of /etc; files that exist are not changed
set -eu
umask 022
from=$(cd "$(dirname "$0")" && pwd)
[ $# = 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
case $1 in /*) prefix=${1%/} ;; *) echo "install.sh: PREFIX must begin with /" >&2; exit 2 ;; esac
root=${DESTDIR:-} etc=${SYSCONFDIR:-/etc}

# FILE TARGET [MODE]: with the paths of this installation.
put() {
    mkdir -p "$(dirname "$root$2")"
    sed -E "s|/usr(/local)?/bin/lxcri-fs|$prefix/bin/lxcri-fs|g" \
        "$from/$1" >"$root$2"
    chmod "${3:-644}" "$root$2"
    touch -r "$from/$1" "$root$2"
}
# The administrator's, once it is there.
put_once() { [ -e "$root$2" ] || put "$@"; }
link() { mkdir -p "$(dirname "$root$2")" && ln -sfn "$1" "$root$2"; }

mkdir -p "$root$prefix/bin"
# Another name first: the old program may be running.
cp -p "$from/bin/lxcri-fs" "$root$prefix/bin/.lxcri-fs.new"
mv "$root$prefix/bin/.lxcri-fs.new" "$root$prefix/bin/lxcri-fs"
link lxcri-fs "$prefix/bin/lxcri-fs-crun"
link lxcri-fs "$prefix/bin/lxcri-fs-runc"
link ../bin/lxcri-fs "$prefix/sbin/mount.fuse.lxcri-fs"

(cd "$from/share" && find . -type f) | while read -r file; do
    mkdir -p "$(dirname "$root$prefix/share/$file")"
    cp -p "$from/share/$file" "$root$prefix/share/$file"
done
for unit in "$from"/contrib/systemd/*; do
    put "contrib/systemd/${unit##*/}" "$prefix/lib/systemd/system/${unit##*/}"
done
put contrib/podman/lxcri-fs.json "$prefix/share/containers/oci/hooks.d/lxcri-fs.json"
put contrib/proxmox/hookscript "$prefix/share/lxcri-fs/proxmox-hookscript" 755
doc=$prefix/share/doc/lxcri-fs
put contrib/containerd/lxcri-fs.toml "$doc/examples/containerd.toml"
put contrib/apparmor/fusermount3 "$doc/examples/apparmor-fusermount3"
for file in README.md CHANGELOG.md LICENSE; do put "doc/$file" "$doc/$file"; done
for file in "$from"/doc/docs/*.md; do put "doc/docs/${file##*/}" "$doc/docs/${file##*/}"; done
put doc/bfc/FORMAT.md "$doc/bfc/FORMAT.md"

if mkdir -p "$root$etc/lxcri-fs" 2>/dev/null; then
    put_once contrib/config.toml "$etc/lxcri-fs/config.toml"
    put_once contrib/podman/containers.conf "$etc/containers/containers.conf.d/lxcri-fs.conf"
else
    echo "install.sh: $etc is not writable: the sample configuration stays in contrib/" >&2
fi
if [ -z "$root" ] && [ "$prefix" != /usr ]; then
    cat <<END
Installed below $prefix.
For mount(8) and fstab:   ln -s $prefix/bin/lxcri-fs /sbin/mount.fuse.lxcri-fs
For podman's hook:        hooks_dir in containers.conf, $prefix/share/containers/oci/hooks.d
For systemd:              systemctl daemon-reload && systemctl enable lxcri-fs-mounts
END
fi
