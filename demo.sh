#!/bin/sh
# The main job, end to end: build lxcri-fs, make an image of a small Debian, mount it, run a command
# inside it, unmount. Needs a Debian machine with Rust, as root (or a user with sudo).
set -eu
cd "$(dirname "$0")"
megabytes=2000; . tests/needs
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
echo "Three to ten minutes on two cores: installs a C compiler, mmdebstrap and fuse3 where they are
missing, builds lxcri-fs in target/, and makes an image of a
minimal Debian (80 MB to download). Nothing stays mounted."

need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null ||
        $sudo apt-get install -y -q "$2" ||
        { $sudo apt-get update -q && $sudo apt-get install -y -q "$2"; }
}
need cc build-essential; need mmdebstrap mmdebstrap; need fusermount3 fuse3

# Less optimized than a release, and built in a fraction of the time.
cargo build --profile demo --locked
lxcri_fs=$PWD/target/demo/lxcri-fs
store=$PWD/target/demo-store
mkdir -p "$store/rootfs"

if [ ! -e "$store/debian.tar" ]; then
    echo "Making a root file system (a minimal Debian)"
    # A mirror that is a snapshot may be past its date.
    $sudo mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
        stable "$store/new.tar"
    mv "$store/new.tar" "$store/debian.tar"
fi
"$lxcri_fs" build "tar:$store/debian.tar" -o "$store/debian.bfc" --force

$sudo "$lxcri_fs" umount "$store/rootfs" 2>/dev/null
before=$(date +%s%N)
$sudo "$lxcri_fs" mount -o suid,dev "$store/debian.bfc" "$store/rootfs"
after=$(date +%s%N)
trap '$sudo "$lxcri_fs" umount "$store/rootfs"' EXIT
echo "Mounted in $(((after - before) / 1000000)) ms. Inside it:"
$sudo chroot "$store/rootfs" /bin/sh -c '
    . /etc/os-release
    echo "  $PRETTY_NAME, $(dpkg-query -f . -W | wc -c) packages"'
"$lxcri_fs" info "$store/debian.bfc" | sed 's/^/  /' | grep -v OCI
cat <<END
Next: cargo build --release --locked &&
    ${sudo:+$sudo }install target/release/lxcri-fs /usr/local/bin
      lxcri-fs pull nginx && lxcri-fs create web --image nginx --lxc
END
