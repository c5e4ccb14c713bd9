#!/bin/bash
# Installs what the tests need and runs them all. For a Debian machine with Rust, as root.
#
#   tests/run.sh [NAME...]      only the tests of tests/NAME.rs or tests/NAME/, when there are
#                               names
#
# Settings: LXCRI_FS_FUZZ_SECONDS (30) for each fuzz target; those of tests/zfs/vm and
# tests/zfs/run.
set -euo pipefail
cd "$(dirname "$0")/.."
megabytes=12000; . tests/needs
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto} DEBIAN_FRONTEND=noninteractive

step() { printf '\n== %s\n' "$*"; }

step "Tools"
# command:package
wanted="
    cc:build-essential fusermount3:fuse3 mmdebstrap:mmdebstrap umoci:umoci skopeo:skopeo
    setfattr:attr setfacl:acl setcap:libcap2-bin zstd:zstd xz:xz-utils bzip2:bzip2
    strace:strace pkg-config:pkg-config
    qemu-system-x86_64:qemu-system-x86 mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs
    sfdisk:fdisk objcopy:binutils setpriv:util-linux fuser:psmisc stress-ng:stress-ng jq:jq
    docker-registry:docker-registry openssl:openssl crun:crun runc:runc lxc-start:lxc
    newuidmap:uidmap ps:procps podman:podman busybox:busybox-static python3:python3 ip:iproute2
    aarch64-linux-gnu-g++:g++-aarch64-linux-gnu
    fsck.erofs:erofs-utils
    mandoc:mandoc fish:fish zsh:zsh lintian:lintian rpmbuild:rpm systemd-analyze:systemd
    dpkg-shlibdeps:dpkg-dev"
missing=
for pair in $wanted; do
    command -v "${pair%%:*}" >/dev/null || missing+=" ${pair##*:}"
done
# It has no program.
[ -e /usr/share/bash-completion/bash_completion ] || missing+=" bash-completion"
if [ -n "$missing" ]; then
    apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    apt-get install -y -q --no-install-recommends $missing
fi
# Hosts that were booted have it; fusermount3 unmounts nothing without it.
[ -e /etc/mtab ] || ln -s ../proc/self/mounts /etc/mtab
if [ $# -gt 0 ]; then
    step "Tests: $*"
    exec cargo test --locked --no-fail-fast "${@/#/--test=}"
fi
# Not optimized: they are built faster than they would run.
for tool in cargo-deny@0.20.2 cargo-fuzz@0.13.2 pjdfstest@0.2.2 fsx@0.3.2; do
    command -v ${tool%@*} >/dev/null || cargo install --locked --quiet --debug $tool
done

vm=
trap '[ -z "$vm" ] || kill -- -$vm 2>/dev/null || :' EXIT
if [ -z "${LXCRI_FS_TEST_POOL:-}" ]; then
    # Minutes, while the rest goes on.
    vm_log=$(mktemp)
    setsid nice -n 10 tests/zfs/vm build >"$vm_log" 2>&1 &
    vm=$!
fi

step "Format, lints, documentation, licences"
cargo fmt --all --check
# Of documents, only tables, code and links may be wider.
wide=$({
    export LC_ALL=C.UTF-8
    grep -rnE '^.{101}' --include='*.rs' --include='*.sh' --include='*.md' --exclude-dir=target .
    grep -nE '^.{101}' tests/needs tests/zfs/*
} | grep -vE '\.md:[0-9]+:(\||    |.*(\]\(|://))' || :)
[ -z "$wide" ] || { printf 'Wider than 100 columns:\n%s\n' "$wide" >&2; exit 1; }
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
cargo fetch --locked --quiet
cargo deny --offline --all-features check --hide-inclusion-graph bans licenses sources

step "The oldest Rust that will do, for arm64"
if command -v rustup >/dev/null; then
    oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    rustup toolchain install "$oldest" --profile minimal --target aarch64-unknown-linux-gnu
    # A directory of its own: nothing of it is of use to the builds that follow.
    cargo "+$oldest" check --workspace --locked --quiet --target aarch64-unknown-linux-gnu \
        --target-dir target/oldest
else
    echo "Skipped: rustup, which installs it, is not here."
fi

step "Fuzzing, ${LXCRI_FS_FUZZ_SECONDS:-30} s a target"
for target in fuzz/fuzz_targets/*.rs; do
    name=$(basename "$target" .rs)
    mkdir -p "fuzz/corpus/$name"
    case $name in
        image) cargo run --locked --quiet --example fuzz_seeds "fuzz/corpus/$name" ;;
        erofs) cargo run --locked --quiet --example fuzz_seeds "fuzz/corpus/$name" metadata ;;
        layer | guess) fuzz/seeds/layer.sh "fuzz/corpus/$name" ;;
    esac
    # The stable compiler has what the fuzzer needs, behind this switch.
    RUSTC_BOOTSTRAP=1 cargo fuzz run "$name" -- -max_total_time="${LXCRI_FS_FUZZ_SECONDS:-30}" \
        -timeout=10 -rss_limit_mb=1024 -max_len=65536 -verbosity=0 -print_final_stats=1
done

step "Model checker"
# A directory of its own: every dependency is built again, which takes six minutes of processor.
RUSTFLAGS="--cfg shuttle" CARGO_PROFILE_DEV_DEBUG=0 \
    cargo test --workspace --lib --locked --target-dir target/shuttle -- schedules::

step "Miri"
# bfc has no unsafe code; Miri checks the libraries below it, as far as they are Rust.
if cargo +nightly miri setup >/dev/null 2>&1; then
    cargo +nightly miri test --package bfc --lib --locked --target-dir target/miri -- crc:: aead::
else
    echo "Skipped: rustup's nightly with the component miri is not here."
fi

step "Tests"
cargo test --workspace --locked --no-fail-fast

# The emulated VM leaves a processor to the suites.
if [ -z "${LXCRI_FS_TEST_POOL:-}" ]; then
    wait $vm || { cat "$vm_log" >&2; exit 1; }
fi
zfs_log=$(mktemp)
setsid tests/zfs/run >"$zfs_log" 2>&1 &
vm=$!

step "Packages"
# The bare machines get what this host's apt needs to reach its mirror.
LXCRI_FS_FRESH_HOST=1 tests/packages.sh

step "File-system suites on an image with an upper"
timeout --kill-after=30 600 tests/suites.sh

step "The same mounts with the fuse engine"
LXCRI_FS_ENGINE=fuse cargo test --locked --no-fail-fast \
    --test commit --test confinement --test images --test keeper --test serve --test upper

step "Tests on ZFS"
ended=0
wait $vm || ended=$?
vm=
cat "$zfs_log"
exit $ended
