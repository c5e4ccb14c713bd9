#!/bin/bash
# Kills commands at random moments, over one store, and looks at what they leave: for root, by hand.
# Some seconds for ten kills.
#
#   tests/kills.sh [N]      so many kills (1000)
#
# Each command is killed with its whole process group (SIGKILL) at a moment of the time that it
# takes, and then the same is done again, which has to succeed at once. Every 25 kills `doctor` and
# `verify --all` have to find everything sound, and every image has to show its tree, byte for byte.
# In the end nothing may be left: no mount, process, lock, temporary file or unfinished thing.
#
# Settings: LXCRI_FS              the program; built when not set
#           LXCRI_FS_KILLS_SEED   a number; the same moments, as far as the machine takes the same
#                                 time
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${LXCRI_FS:-}" ]; then
    cargo build --locked --quiet
    LXCRI_FS=${CARGO_TARGET_DIR:-target}/debug/lxcri-fs
fi
if [ -z "${LXCRI_FS_KILLS_INSIDE:-}" ]; then
    # Mounts, processes and /run of its own: what is left there is ours.
    export LXCRI_FS LXCRI_FS_KILLS_INSIDE=1
    exec unshare -m -p -f --kill-child --propagation private --mount-proc bash -c '
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir -p /run/lock
        exec "$@"' _ "$PWD/tests/kills.sh" "$@"
fi
wanted=${1:-1000} program=$(realpath "$LXCRI_FS")
RANDOM=${LXCRI_FS_KILLS_SEED:-$$$(date +%N | sed s/^0*//)} && RANDOM=$((RANDOM % 32768))
temp=$(mktemp -d /var/tmp/lxcri-fs-kills.XXXXXX)
export LXCRI_FS_STORE=dir:$temp/store LXCRI_FS_CONFIG=$temp/config.toml LC_ALL=C TMPDIR=$temp/tmp
touch "$LXCRI_FS_CONFIG"; mkdir "$TMPDIR"
end() {
    grep -o " $temp/[^ ]*" /proc/self/mountinfo | sort -r | xargs -r umount -l 2>/dev/null || :
    rm -rf --one-file-system "$temp"
}
trap end EXIT
trap 'exit 1' INT TERM

problems=0
problem() { # WHAT: it is told with what the last command said
    problems=$((problems + 1))
    printf 'PROBLEM after %s kills, %s: %s\n' "$kills" "$op" "$*" >&2
    sed 's/^/    /' "$temp/said" >&2
    [ $problems -lt 20 ] || exit 1
}
lxcri_fs() { "$program" "$@" >"$temp/said" 2>&1 </dev/null; }
must() { lxcri_fs "$@" || problem "$* ended with $?"; }

kills=0 op=start
declare -A took counted
# COMMAND...: kills it somewhere in the time that it takes
killed() {
    local pid moment=$((RANDOM % (${took[$op]:-150} * 11 / 10 + 2)))
    setsid "$program" "$@" >"$temp/said" 2>&1 </dev/null &
    pid=$!
    sleep "$(printf '%d.%03d' $((moment / 1000)) $((moment % 1000)))"
    # It may not have a group of its own yet.
    kill -KILL -- -$pid 2>/dev/null || kill -KILL $pid 2>/dev/null || :
    local status=0
    wait $pid 2>/dev/null || status=$?
    [ $status != 137 ] || { kills=$((kills + 1)); counted[$op]=$((${counted[$op]:-0} + 1)); }
}
# STATUS COMMAND...: the same once more, which may also end with STATUS when the first was quick
# enough
again() {
    local begin=${EPOCHREALTIME/./} status=0 fine=$1
    shift
    lxcri_fs "$@" || status=$?
    [ $status = 0 ] || [ $status = "$fine" ] || problem "$* again ended with $status"
    [ $status != 0 ] || took[$op]=$(((${EPOCHREALTIME/./} - begin) / 1000))
}
same() { # DIR TREE
    diff -r --no-dereference "$1" "$2" >"$temp/said" 2>&1
}
shows() { # IMAGE TREE...: it is one of these
    local image=$1 tree
    shift
    must mount "$image" "$temp/look"
    for tree in "$@"; do
        if same "$temp/look" "$tree"; then break; fi
        tree=
    done
    [ -n "$tree" ] || problem "$image shows something else than $*"
    must umount "$temp/look"
    shown=$tree
}

mkdir "$temp"/{mnt,look,a,b,layer,new}
mkdir "$temp"/a/{bin,etc,deep}
cp /bin/true "$temp/a/bin/"
seq 20000 >"$temp/a/etc/numbers"
head -c 3000000 /dev/urandom >"$temp/a/noise"
ln -s ../etc "$temp/a/deep/etc"
for i in $(seq 300); do echo "$i" >"$temp/a/deep/$i"; done
mkdir "$temp/a/bin/sh.d"
cp -a "$temp/a/." "$temp/b/"
head -c 2000000 /dev/urandom >"$temp/b/noise"
rm "$temp/b/etc/numbers"
head -c 1000000 /dev/urandom >"$temp/layer/more"
mkdir "$temp/layer/etc"
echo new >"$temp/layer/etc/new"
cp -a "$temp/a/." "$temp/new/"; cp -a "$temp/layer/." "$temp/new/"
must build "$temp/a" -t a
must build "$temp/a" -t x
must build "$temp/a" -o "$temp/base.bfc"
x=$temp/a writes=0

op_mount() {
    killed mount a "$temp/mnt"
    again 6 mount a "$temp/mnt"
    same "$temp/mnt" "$temp/a" || problem "the mount shows something else"
    must umount "$temp/mnt"
    must umount "$temp/mnt"
}
op_upper() {
    killed mount a "$temp/mnt" --upper "$temp/upper"
    again 6 mount a "$temp/mnt" --upper "$temp/upper"
    local there=0
    [ ! -e "$temp/mnt/written" ] || there=$(wc -l <"$temp/mnt/written")
    [ "$there" = $writes ] || problem "of $writes lines that were written there are $there"
    echo line >>"$temp/mnt/written"
    writes=$((there + 1))
    must umount "$temp/mnt"
}
op_create() {
    killed create c --image a --bundle "$temp/bundle"
    if [ $((RANDOM % 2)) = 0 ]; then
        again 1 create c --image a --bundle "$temp/bundle"
        # When the first was done, it is there already.
        lxcri_fs inspect c || problem "the container is not there"
        same "$temp/bundle/rootfs" "$temp/a" || problem "the container shows something else"
        must delete c
    else
        lxcri_fs delete c || [ $? = 5 ] || problem "delete ended with $?"
    fi
    # What was begun in the store may stay until `gc` (docs/STORE.md); in the end it is looked for.
    local left
    left=$(find "$temp/bundle" "$temp/store/containers" -mindepth 1 -not -path '*/_w*' \
        2>/dev/null || :)
    [ ! -e "$temp/bundle" ] && [ -z "$left" ] || problem "left: $temp/bundle $left"
}
op_commit() {
    if [ ! -e "$temp/written" ]; then
        must mount a "$temp/mnt" --upper "$temp/written"
        cp -a "$temp/layer/." "$temp/mnt/"
        must umount "$temp/mnt"
    fi
    killed commit "$temp/written" -o "$temp/committed.bfc" --force
    [ ! -e "$temp/committed.bfc" ] || shows "$temp/committed.bfc" "$temp/new"
    again 0 commit "$temp/written" -o "$temp/committed.bfc" --force
    shows "$temp/committed.bfc" "$temp/new"
    [ $((RANDOM % 2)) = 0 ] || rm "$temp/committed.bfc"
}
op_append() {
    cp --reflink=auto "$temp/base.bfc" "$temp/loose.bfc"
    killed append "$temp/loose.bfc" "$temp/layer"
    shows "$temp/loose.bfc" "$temp/a" "$temp/new"
    must verify "$temp/loose.bfc"
    if [ "$shown" = "$temp/a" ]; then again 0 append "$temp/loose.bfc" "$temp/layer"; fi
    shows "$temp/loose.bfc" "$temp/new"
    rm "$temp/loose.bfc"
}
op_build() {
    local next=$temp/b
    [ "$x" = "$temp/a" ] || next=$temp/a
    killed build "$next" -t x
    shows x "$x" "$next"
    again 0 build "$next" -t x
    x=$next
    shows x "$x"
}
op_gc() {
    killed gc --grace 0s
    again 0 gc --grace 0s
    lxcri_fs list
    [ "$(grep -c -e ^a -e ^x "$temp/said")" = 2 ] || problem "an image with a name is gone"
}

sound() {
    op=sound
    must doctor
    must verify --all
    shows a "$temp/a"
    shows x "$x"
    local told=
    for name in "${!counted[@]}"; do told+=" $name ${counted[$name]}"; done
    echo "$kills kills:$told; $problems problems; $SECONDS s"
}

operations=(mount mount upper create create commit append build gc) next=25
while [ $kills -lt "$wanted" ]; do
    op=${operations[RANDOM % ${#operations[@]}]}
    "op_$op"
    [ $kills -lt $next ] || { sound; next=$((next + 25)); }
done
sound

op=end
must gc --grace 0s
rm -rf --one-file-system "$temp/upper" "$temp/written"
left() {
    grep -e "$temp" -e fuse.lxcri-fs /proc/self/mountinfo || :
    find /proc/[0-9]*/exe -lname "$program*" 2>/dev/null || :
    find /run/lxcri-fs* ! -type d 2>/dev/null || :
    find /run/lxcri-fs/* -maxdepth 0 ! -name attaching 2>/dev/null || :
    find "$temp/store/locks" "$temp/store/containers" "$TMPDIR" -mindepth 1 2>/dev/null || :
    find "$temp" -name '_w*' -o -name '.lxcri-fs*' -o -name '.tmp*' 2>/dev/null || :
}
# Keepers take a moment.
for _ in $(seq 50); do [ -n "$(left)" ] || break; sleep 0.2; done
left >"$temp/said"
[ ! -s "$temp/said" ] || problem "this is left"
[ $problems = 0 ] || { echo "$problems problems" >&2; exit 1; }
echo "nothing is left"
