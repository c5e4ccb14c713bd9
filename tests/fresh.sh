#!/bin/bash
# Runs both commands of the README, demo.sh and tests/run.sh, on fresh machines: bare Debian trees
# that get Rust and a clone of this repository, and nothing else. Each is a container with mounts,
# processes and a host name of its own, and with the network of this host. As root.
#
#   tests/fresh.sh [RELEASE...]      bookworm and trixie when left out
#
# Settings: LXCRI_FS_FRESH_TESTS   test files (`upper runtime`): runs demo.sh and these tests
#                                  instead of all
#           LXCRI_FS_FRESH_HOST    when set, the tree gets this host's apt configuration and its
#                                  certificates, which some proxies need
#           LXCRI_FS_FRESH_DIR     makes the trees here and keeps them; one that is there is used
#                                  again (a new one in /var/tmp, and removed)
# LXCRI_FS_…, CARGO_PROFILE_…, http_proxy, https_proxy and no_proxy are passed to the commands.
#
# Needs mmdebstrap, git and a Rust of rustup's. The packages are those of the mirror that this
# host's apt uses; crates that this host has are not fetched again.
set -euo pipefail
cd "$(dirname "$0")/.."
megabytes=20000; . tests/needs
[ "$(id -u)" = 0 ] || { echo "fresh.sh: needs root" >&2; exit 1; }

rust=$(rustc --print sysroot)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
case $rust in
    /usr | /usr/local)
        echo "fresh.sh: this Rust is part of the system: rustup's can be shown alone" >&2
        exit 1
        ;;
esac
# shellcheck source=tests/bare
. tests/bare

dir=${LXCRI_FS_FRESH_DIR:-}
if [ -z "$dir" ]; then
    dir=$(mktemp -d /var/tmp/lxcri-fs-fresh.XXXXXX)
    trap 'rm -rf --one-file-system "$dir"' EXIT
fi

make_tree() { # RELEASE TREE
    make_bare_tree "$1" "$2"
    mkdir -p "$2/opt/rust" "$2/root/.cargo/registry"
    # A copy: two hosts must not write to one cache.
    [ ! -d "$cargo_home/registry/cache" ] ||
        cp -r "$cargo_home"/registry/{cache,index} "$2/root/.cargo/registry/"
}

mapfile -t settings < <(env | grep -E '^(LXCRI_FS_|CARGO_PROFILE_|https?_proxy=|no_proxy=)' || :)

on_a_fresh_machine() { # RELEASE
    local tree=$dir/$1
    printf '\n=== %s\n' "$1"
    [ -d "$tree" ] || make_tree "$1" "$tree"
    if [ -d "$tree/root/lxcri-fs" ]; then
        git -C "$tree/root/lxcri-fs" fetch -q &&
            git -C "$tree/root/lxcri-fs" reset -q --hard FETCH_HEAD
    else
        git clone -q --no-hardlinks . "$tree/root/lxcri-fs"
    fi
    in_bare_tree "$tree" "$rust" "${settings[@]}" \
        bash -euc "cd ~/lxcri-fs
            ./demo.sh; echo \"=== $1: demo.sh took \$SECONDS s\"
            ./tests/run.sh ${LXCRI_FS_FRESH_TESTS:-}; echo \"=== $1: both took \$SECONDS s\""
}

[ $# -gt 0 ] || set -- bookworm trixie
for release in "$@"; do on_a_fresh_machine "$release"; done
