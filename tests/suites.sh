#!/bin/bash
# Suites that others wrote, on an image of three layers with an upper: pjdfstest, fsx, and
# stress-ng's file stressors. For root.
#
#   tests/suites.sh [DIR]      uppers go into DIR, on any file system; an ext4 of its own when left
#                              out
#
# The same runs on the kernel's overlayfs over ext4, mounted with the same options: only what fails
# there too may fail. Each suite has a mount of its own, which has to end cleanly, with the image
# and what is read of it as before.
#
# Settings: LXCRI_FS                  the program; built when not set
#           LXCRI_FS_FSX_SECONDS      how long fsx runs (60)
#           LXCRI_FS_STRESS_SECONDS   how long each stressor runs (2)
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${LXCRI_FS:-}" ]; then
    cargo build --locked --quiet
    LXCRI_FS=${CARGO_TARGET_DIR:-target}/debug/lxcri-fs
fi
lxcri_fs=$(realpath "$LXCRI_FS")
fsx_seconds=${LXCRI_FS_FSX_SECONDS:-60} stress_seconds=${LXCRI_FS_STRESS_SECONDS:-2}

problems=0
problem() { printf 'PROBLEM: %s\n' "$*" >&2; problems=$((problems + 1)); }

# --- Where ----------------------------------------------------------------------------------------

temp=$(mktemp -d)
uppers=
end() {
    local dir
    for dir in ours read-only; do
        if mountpoint -q "$temp/$dir"; then
            "$lxcri_fs" umount "$temp/$dir" || umount -l "$temp/$dir"
        fi
    done
    if mountpoint -q "$temp/plain"; then umount "$temp/plain" || umount -l "$temp/plain"; fi
    if [ -n "$uppers" ]; then rm -rf --one-file-system "$uppers"; fi
    if mountpoint -q "$temp/ext4"; then umount "$temp/ext4" || umount -l "$temp/ext4"; fi
    if ! grep -q " $temp/" /proc/self/mountinfo; then rm -rf --one-file-system "$temp"; fi
}
trap end EXIT
trap 'exit 1' INT TERM
mkdir "$temp"/{ext4,ours,read-only,plain,layers}
chmod 755 "$temp" # pjdfstest becomes other users

truncate -s 8G "$temp/ext4.img"
mkfs.ext4 -q "$temp/ext4.img"
mount -o loop "$temp/ext4.img" "$temp/ext4"
uppers=$(mktemp -d "${1:-$temp/ext4}/suites.XXXXXX")
image=$temp/image.bfc lower=$temp/ext4/lower
echo "Uppers on $(stat -f -c %T "$uppers"), Linux $(uname -r)"

# --- The image, and the same tree on ext4 ---------------------------------------------------------

(
    cd "$temp/layers"
    mkdir -p {1,2,3}/tests/{pjdfstest,stress,fsx} 1/tests/fsx/gone
    head -c 262144 /dev/urandom >1/tests/fsx/random
    head -c 262144 /dev/zero | tr '\0' a >1/tests/fsx/hidden
    yes "a line of text" | head -c 3000000 >2/tests/fsx/text || true
    head -c 1000000 /dev/urandom >2/tests/fsx/hidden
    head -c 500000 /dev/urandom >3/tests/fsx/link-1
    ln 3/tests/fsx/link-1 3/tests/fsx/link-2
    # A few with attributes, which are in a layer of their own on kernels from 6.16 on.
    setfattr -n user.a -v a 1/tests/fsx/random 3/tests/fsx/link-1 1/tests/pjdfstest
    touch 3/tests/fsx/.wh.gone
    for layer in 1 2 3; do
        for i in $(seq 50); do echo "$layer" >"$layer/tests/stress/lower-$layer-$i"; done
        chmod 777 "$layer"/tests/*
        tar -C "$layer" --xattrs -cf "$layer.tar" .
    done
)
"$lxcri_fs" build "tar:$temp/layers/1.tar" --layer "tar:$temp/layers/2.tar" \
    --layer "tar:$temp/layers/3.tar" -o "$image" >/dev/null
mkdir "$lower"
for layer in 1 2 3; do tar -C "$lower" --xattrs -xf "$temp/layers/$layer.tar"; done
rm -r "$lower/tests/fsx/gone" "$lower/tests/fsx/.wh.gone"
digest=$(sha256sum <"$image")

mount_ours() { "$lxcri_fs" mount -o suid,dev --upper "$uppers/ours" "$image" "$temp/ours"; }
# The options of overlayfs that our mount has. Which they are depends on the kernel.
options() {
    grep -F " $temp/ours " /proc/self/mountinfo |
        grep -oE '\b(xino|index|redirect_dir|metacopy)=[a-z]+' |
        paste -sd,
}
mount_plain() {
    mkdir -p "$uppers"/plain/{upper,work}
    chmod 755 "$uppers/plain/upper"
    mount -t overlay overlay "$temp/plain" \
        -o "$(options),lowerdir=$lower,upperdir=$uppers/plain/upper,workdir=$uppers/plain/work"
}
umount_plain() { umount "$temp/plain" && rm -rf --one-file-system "$uppers/plain"; }

# suite NAME: runs the function of that name with our mount, and looks at what is left.
suite() {
    local start=$SECONDS
    printf '\n== %s\n' "$1"
    mount_ours
    "$1"
    # The page cache of the image, which is shared, must not have what was written.
    "$lxcri_fs" mount -o suid,dev "$image" "$temp/read-only"
    diff -r "$temp/read-only" "$lower" || problem "$1: the image reads differently"
    "$lxcri_fs" umount "$temp/read-only" || problem "$1: the image could not be unmounted"
    "$lxcri_fs" umount "$temp/ours" || problem "$1: could not be unmounted"
    # The kernel forgets hundreds of thousands of inodes before it lets go, for which a busy machine
    # takes its time.
    for _ in $(seq 60); do
        "$lxcri_fs" ps --json | grep -qF "$image" || break
        sleep 1
    done
    if "$lxcri_fs" ps --json | grep -F "$image"; then problem "$1: is still served"; fi
    [ "$(sha256sum <"$image")" = "$digest" ] || problem "$1: the image has changed"
    rm -rf --one-file-system "$uppers/ours"
    echo "$((SECONDS - start)) s"
}

# --- Suites ---------------------------------------------------------------------------------------

pjdfstest_on() { # MOUNT
    local log=$temp/pjdfstest.$1
    # A test that fails may leave a file open for writing, and the mount cannot be made read-only
    # then: those that do this are run alone.
    run_pjdfstest "$1" true erofs >"$log" 2>&1 || true
    run_pjdfstest "$1" false 2>&1 | grep -v '::erofs_' >>"$log" || true
    sed -n "s/^Summary/$1/p" "$log"
    [ "$(grep -c '^Summary' "$log")" = 2 ] ||
        { tail "$log"; problem "pjdfstest did not end on $1"; }
}

run_pjdfstest() { # MOUNT REMOUNT [PATTERN]
    cat >"$temp/pjdfstest.toml" <<-END
		[features]
		posix_fallocate = {}
		rename_ctime = {}
		utime_now = {}
		utimensat = {}
		[settings]
		naptime = 0.02
		allow_remount = $2
		[dummy_auth]
		entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
	END
    NO_COLOR=1 timeout --kill-after=10 120 pjdfstest -c "$temp/pjdfstest.toml" -s "$temp/ext4" \
        -p "$temp/$1/tests/pjdfstest" "${@:3}"
}

outcomes() { sed -n "s/^\([a-z_:0-9]*\) *$2\$/\1/p" "$temp/pjdfstest.$1" | sort; }

pjdfstest() {
    mount_plain
    pjdfstest_on ours
    pjdfstest_on plain
    umount_plain
    for outcome in FAILED skipped; do
        both=$(comm -12 <(outcomes ours $outcome) <(outcomes plain $outcome) | paste -sd ' ')
        fewer=$(comm -13 <(outcomes ours $outcome) <(outcomes plain $outcome) | paste -sd ' ')
        echo "$outcome on both: $both"
        echo "$outcome on plain overlayfs only: $fewer"
        more=$(comm -23 <(outcomes ours $outcome) <(outcomes plain $outcome) | paste -sd ' ')
        if [ -n "$more" ]; then
            grep -A5 -E "^(${more// /|}) " "$temp/pjdfstest.ours" || true
            problem "pjdfstest: $outcome on ours only: $more"
        fi
    done
}

# fsx_on FILE CONFIG: fsx with one seed after the other, until time is up.
fsx_on() {
    local seed=0 log=$temp/fsx.$1.log
    while [ $SECONDS -lt "$fsx_end" ]; do
        seed=$((seed + 1))
        timeout --kill-after=10 60 fsx -q -S $seed -N 1000 -f "$temp/fsx.$2.toml" -P "$temp" \
            "$temp/ours/tests/fsx/$1" >"$log" 2>&1 ||
            { tail -n 20 "$log"; echo "fsx fails on $1 with seed $seed"; return 1; }
    done
    echo "$1 ($2): $((seed * 1000)) operations"
}

fsx() {
    # What changes the size, and what does not: a file that keeps its size is copied up with its
    # content.
    local same="read = 10
        write = 10
        mapread = 10
        mapwrite = 10
        invalidate = 1
        fsync = 1
        fdatasync = 1
        punch_hole = 1
        sendfile = 1
        posix_fadvise = 1
        copy_file_range = 1"
    printf 'blockmode = true\n[weights]\nclose_open = 0\ntruncate = 0\nposix_fallocate = 0\n%s\n' \
        "$same" >"$temp/fsx.content.toml"
    printf '[weights]\nclose_open = 1\ntruncate = 3\nposix_fallocate = 1\n%s\n' "$same" \
        >"$temp/fsx.size.toml"
    local jobs=() job fsx_end=$((SECONDS + fsx_seconds)) files="$temp/ours/tests/fsx"
    chmod 640 "$files/text" # Only the metadata is copied up, until it is written to.
    fsx_on random content & jobs+=($!)
    fsx_on text content & jobs+=($!)
    fsx_on link-1 content & jobs+=($!)
    fsx_on hidden size & jobs+=($!)
    fsx_on new size & jobs+=($!)
    for job in "${jobs[@]}"; do wait "$job" || problem "fsx failed"; done
    [[ $(options) != *index=on* ]] ||
        cmp "$files/link-1" "$files/link-2" ||
        problem "fsx: a file has two contents under its two names"
    [ ! -e "$files/gone" ] || problem "fsx: a hidden directory is seen"
}

stressors="
    access chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fanotify
    fcntl fiemap file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags inotify
    io iomix lease link locka lockf lockofd mknod mmap msync open readahead rename seek sendfile
    symlink sync-file touch utime xattr"

stress_on() { # MOUNT STRESSOR
    timeout --kill-after=10 60 stress-ng --temp-path "$temp/$1/tests/stress" --seed 1 --verify \
        --timeout "$stress_seconds" "--$2" 1 \
        --dirdeep-inodes 2000 --fallocate-bytes 64M --hdd-bytes 64M --iomix-bytes 64M \
        --mmap-bytes 32M --mmap-file --readahead-bytes 64M \
        >"$temp/stress.$1" 2>&1
}

stress() {
    local stressor status plain passed=0
    mount_plain
    for stressor in $stressors; do
        status=0 plain=0
        stress_on ours "$stressor" || status=$?
        if [ $status = 0 ]; then
            passed=$((passed + 1))
            continue
        fi
        stress_on plain "$stressor" || plain=$?
        if [ $status = $plain ]; then
            case $status in
                3 | 4) echo "$stressor: skipped, the machine cannot" ;;
                *) echo "$stressor: fails on plain overlayfs too, with status $status" ;;
            esac
        else
            cat "$temp/stress.ours"
            problem "stress-ng --$stressor: status $status, on plain overlayfs $plain"
        fi
    done
    umount_plain
    echo "$passed of $(wc -w <<<"$stressors") stressors pass"
}

suite pjdfstest
suite fsx
suite stress
[ $problems = 0 ] || { echo "$problems problems" >&2; exit 1; }
