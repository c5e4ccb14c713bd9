#!/bin/bash
# Makes the Debian package, has lintian look at it, and installs, uses, upgrades, removes and purges
# it on bare Debian machines, which have crun, fuse3, man-db and bash-completion already. The
# command that installs it is the README's. On trixie, cosign and skopeo sign images, and lxcri-fs
# must accept what skopeo accepts. As root.
#
#   tests/packages.sh [RELEASE...]     bookworm and trixie when left out
#
# Settings: LXCRI_FS_PACKAGE_PROGRAM   the program to package (that of `cargo build`)
#           LXCRI_FS_FRESH_HOST        see tests/bare
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/bare
. packaging/version
program=${LXCRI_FS_PACKAGE_PROGRAM:-${CARGO_TARGET_DIR:-target}/debug/lxcri-fs}
dir=$(mktemp -d /var/tmp/lxcri-fs-packages.XXXXXX)
registry=
trap '[ -z "$registry" ] || kill "$registry"; rm -rf --one-file-system "$dir"' EXIT
fail() { echo "packages.sh: $*" >&2; exit 1; }

[ $# -gt 0 ] || set -- bookworm trixie
trees=()
for release in "$@"; do
    packages=crun,fuse3,man-db,bash-completion
    # bookworm has no cosign, and its skopeo makes no such signatures.
    [ "$release" = bookworm ] || packages+=,cosign,skopeo
    make_bare_tree "$release" "$dir/$release" $packages &
    trees+=($!)
done

echo "The package"
# As a release has it; with its symbols it is five times as long.
strip -o "$dir/program" "$program"
packaging/stage "$dir/stage" --program "$dir/program"
# Twice the same, with another version: what an upgrade goes from and to.
for revision in 1 2; do
    LXCRI_FS_DEB_LEVEL=0 LXCRI_FS_DEB_VERSION=$version-$revision \
        packaging/deb "$dir/stage" "$dir/$revision" "$(dpkg --print-architecture)"
done 2>/dev/null
lintian --allow-root --fail-on warning "$dir"/1/*.deb
cmp <(dpkg-deb --fsys-tarfile "$dir"/1/*.deb | tar -xO ./usr/bin/lxcri-fs | sha256sum) \
    <(dpkg-deb --fsys-tarfile "$dir"/2/*.deb | tar -xO ./usr/bin/lxcri-fs | sha256sum)
echo "The rpm and the archive"
packaging/rpm "$dir/stage" "$dir/rpm" "$(uname -m)"
rpm -qlp "$dir"/rpm/*.rpm >"$dir/files"
for file in bin/lxcri-fs sbin/mount.fuse.lxcri-fs share/man/man1/lxcri-fs-pull.1.gz; do
    grep -q "^/usr/$file\$" "$dir/files" || fail "the rpm has no $file"
done
rpm -qcp "$dir"/rpm/*.rpm | grep -q ^/etc/lxcri-fs/config.toml ||
    fail "the rpm has no configuration"
export XZ_OPT=-0
for copy in 1 2; do packaging/tarball "$dir/stage" "$dir/tar$copy"; done
cmp "$dir"/tar[12]/*.tar.xz
# Also for others: a prefix of one's own, and units that systemd understands.
SYSCONFDIR=$dir/own/etc "$dir/stage/install.sh" "$dir/own/prefix" >/dev/null
"$dir/own/prefix/bin/lxcri-fs" --version
sed -i "s|^RequiresMountsFor=.*||; s|/usr/bin/lxcri-fs|/bin/true|" \
    "$dir"/own/prefix/lib/systemd/system/*
grep -rl /usr/bin/lxcri-fs "$dir/own" && fail "paths of another installation"
for unit in "$dir"/own/prefix/lib/systemd/system/*; do
    systemd-analyze verify --man=no "$unit"
done

echo "A registry"
mkdir -p "$dir"/root/{bin,etc,proc,sys,dev} "$dir/registry"
cp "$(command -v busybox)" "$dir/root/bin/busybox"
for name in sh cat sleep echo; do ln -s busybox "$dir/root/bin/$name"; done
head -c 20000000 /dev/urandom >"$dir/root/data"
umoci init --layout "$dir/oci"
umoci new --image "$dir/oci:app"
umoci insert --image "$dir/oci:app" "$dir/root" /
umoci config --image "$dir/oci:app" --config.cmd cat --config.cmd /etc/hostname
port=$((20000 + RANDOM % 20000))
cat >"$dir/registry.yml" <<END
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: "127.0.0.1:$port"}
END
docker-registry serve "$dir/registry.yml" >/dev/null 2>&1 &
registry=$!
for _ in $(seq 100); do
    skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$dir/oci:app" \
        "docker://127.0.0.1:$port/team/app:1" 2>/dev/null && break
    sleep 0.1
done

# The README's commands for a package.
typed=$(sed -n '/^## Install/,/^## /s/^    \(apt-get install.*\.deb\)$/\1/p' README.md)
[ -n "$typed" ] || fail "README.md does not say how to install the package"

on_a_bare_machine='
    fail() { echo "packages.sh: $*" >&2; exit 1; }
    everything() {
        find / -xdev \( -path /var/cache -o -path /var/log -o -path /var/lib/apt \
            -o -path /var/lib/dpkg -o -path /packages -o -path /tmp \) -prune -o -print | sort
    }
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null
    everything >/packages/before
    cd /packages/1
    eval "$TYPED" >/packages/log 2>&1 || { cat /packages/log; exit 1; }
    cd /
    man -w lxcri-fs lxcri-fs-pull bfc lxcri-fs.toml lxcri-fs-crun mount.fuse.lxcri-fs >/dev/null
    man -w 7 lxcri-fs >/dev/null
    bash -c "source /usr/share/bash-completion/bash_completion
        { _comp_load lxcri-fs || _completion_loader lxcri-fs; } 2>/dev/null; complete -p lxcri-fs" |
        grep -q _lxcri_fs || fail "bash does not complete"
    [ "$(readlink -f /sbin/mount.fuse.lxcri-fs)" = /usr/bin/lxcri-fs ] || fail "no mount helper"
    sed -i "s/^#\[gc\]/[gc]/; s/^#grace = .*/grace = \"48h\"/" /etc/lxcri-fs/config.toml

    lxcri-fs pull -q "$IMAGE"
    lxcri-fs create web --image "$IMAGE" --bundle /srv/web >/dev/null
    printf web >/srv/web/rootfs/etc/hostname
    [ "$(crun --cgroup-manager=disabled run -b /srv/web web </dev/null)" = web ] ||
        fail "crun: no output"

    echo "An upgrade under a mount that is read all the time"
    exe() { readlink "/proc/$1/exe"; }
    keeper=$(lxcri-fs ps --json | sed -n "s/.*\"keeper\":\([0-9]*\).*/\1/p" | head -n 1)
    [ "$(exe "$keeper")" = /usr/bin/lxcri-fs ]
    wanted=$(sha256sum </srv/web/rootfs/data)
    (set +e; while [ ! -e /packages/stop ]; do
        echo 1 >/proc/sys/vm/drop_caches
        [ "$(sha256sum </srv/web/rootfs/data)" = "$wanted" ] || echo wrong >>/packages/wrong
        echo round >>/packages/rounds
    done) &
    reader=$!
    apt-get install -y -q /packages/2/*.deb >/packages/log 2>&1 || { cat /packages/log; exit 1; }
    rounds=$(wc -l </packages/rounds)
    [ -e "/proc/$keeper" ] || fail "the keeper has ended"
    # It runs what is installed now; a program that was replaced would be "(deleted)".
    [ "$(exe "$keeper")" = /usr/bin/lxcri-fs ] || fail "the keeper runs $(exe "$keeper")"
    while [ "$(wc -l </packages/rounds)" -lt $((rounds + 3)) ]; do sleep 0.1; done
    touch /packages/stop; wait $reader
    [ ! -e /packages/wrong ] || fail "readers saw errors"
    grep -q "^grace = \"48h\"" /etc/lxcri-fs/config.toml || fail "the configuration was replaced"
    [ "$(dpkg-query -W -f "\${Version}" lxcri-fs)" != "$(dpkg-deb -f /packages/1/*.deb Version)" ]

    if command -v cosign >/dev/null; then
        echo "Signatures"
        cd /packages
        host=${IMAGE%%/*} app=${IMAGE%:*}
        export COSIGN_PASSWORD=secret
        printf secret >password
        for key in own other; do cosign generate-key-pair --output-key-prefix $key 2>/dev/null; done
        mkdir registries.d
        printf "docker:\n  $host:\n    use-sigstore-attachments: true\n" >registries.d/own.yaml
        skopeo() {
            command skopeo --registries.d registries.d "$@"
        }
        plain="--src-tls-verify=false --dest-tls-verify=false"
        # Other images, so that none has the signature of another.
        for tag in cosign skopeo none; do
            mkdir $tag; echo $tag >$tag/name
            lxcri-fs build bfc:"$IMAGE" --layer $tag -t "$app:$tag" >/dev/null
            lxcri-fs push -q "$app:$tag" "$app:$tag" 2>/dev/null
            lxcri-fs rm "$app:$tag" >/dev/null
        done
        digest=$(skopeo inspect --tls-verify=false --format "{{.Digest}}" "docker://$app:cosign")
        cosign sign --key own.key --tlog-upload=false --allow-http-registry -y \
            "$app@$digest" >/dev/null 2>&1
        skopeo --insecure-policy copy -q $plain --sign-by-sigstore-private-key own.key \
            --sign-passphrase-file password "docker://$app:skopeo" "docker://$app:skopeo"
        echo "trust.policy = \"/packages/policy.json\"" >config.toml
        export LXCRI_FS_CONFIG=/packages/config.toml
        signed=0
        for key in own other; do
            for identity in matchRepository matchRepoDigestOrExact; do
                cat >policy.json <<END
{ "default": [{ "type": "reject" }],
  "transports": { "docker": { "$host/team": [{
    "type": "sigstoreSigned", "keyPath": "/packages/$key.pub",
    "signedIdentity": { "type": "$identity" } }] } } }
END
                for tag in cosign skopeo none; do
                    skopeos=0 ours=0
                    skopeo --policy policy.json copy -q $plain "docker://$app:$tag" dir:copy \
                        2>/dev/null || skopeos=8
                    lxcri-fs pull -q "$app:$tag" >/dev/null 2>said || ours=$?
                    [ $ours = $skopeos ] || { cat said; fail "$key $identity $tag: $ours"; }
                    if [ $ours = 0 ]; then
                        signed=$((signed + 1))
                        lxcri-fs list | grep -q "$app:$tag .*signed" || fail "list does not say it"
                        lxcri-fs rm "$app:$tag" >/dev/null
                    fi
                done
            done
        done
        [ $signed = 3 ] || fail "$signed images were accepted"
        unset LXCRI_FS_CONFIG
        rm -r /var/lib/containers
        cd /
    fi

    echo "Removing, and purging"
    ! apt-get remove -y -q lxcri-fs >/packages/log 2>&1 || fail "it was removed under a mount"
    grep -q "images are mounted" /packages/log || { cat /packages/log; fail "it does not say why"; }
    lxcri-fs delete --keep web
    apt-get purge -y -q --autoremove lxcri-fs >/packages/log 2>&1 || { cat /packages/log; exit 1; }
    [ "$(cat /var/lib/lxcri-fs/containers/web/upper/etc/hostname)" = web ] ||
        fail "purge removed what a container wrote"
    grep -q "rm -r /var/lib/lxcri-fs" /packages/log ||
        { cat /packages/log; fail "it does not say what stays"; }
    apt-get install -y -q /packages/2/*.deb >/dev/null 2>&1
    lxcri-fs delete web
    lxcri-fs create web --image "$IMAGE" --bundle /srv/web >/dev/null
    lxcri-fs delete web
    apt-get purge -y -q --autoremove lxcri-fs >/packages/log 2>&1 || { cat /packages/log; exit 1; }
    everything >/packages/after
    diff /packages/before /packages/after || fail "purge leaves files"
'

for release in "$@"; do
    wait "${trees[0]}" || fail "no tree of $release"
    trees=("${trees[@]:1}")
    tree=$dir/$release
    echo "$release"
    needed=$(dpkg-deb -f "$dir"/1/*.deb Depends | sed -n 's/.*libc6 (>= \([^)]*\)).*/\1/p')
    has=$(chroot "$tree" dpkg-query -W -f '${Version}' libc6)
    if dpkg --compare-versions "$has" lt "$needed"; then
        echo "Skipped: built here, the program needs libc6 $needed, and $release has $has."
        continue
    fi
    mkdir "$tree/packages"
    cp -r "$dir/1" "$dir/2" "$tree/packages/"
    in_bare_tree "$tree" "" TYPED="$typed" IMAGE="127.0.0.1:$port/team/app:1" \
        bash -euc "$on_a_bare_machine"
done
echo "packages.sh: all passed"
