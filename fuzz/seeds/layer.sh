#!/bin/bash
# Seeds of the targets layer and guess into the directory $1: what GNU tar writes in each of its
# forms, and layers with marks.
set -euo pipefail
out=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
long=$(printf 'n%.0s' $(seq 120))
mkdir -p tree/dir/sub lower
echo data > tree/file
ln tree/file tree/hard
ln -s dir tree/link
mkfifo tree/fifo
echo in > "tree/dir/sub/$long"
echo e > tree/dir/.wh.gone
: > tree/dir/.wh..wh..opq
truncate -s 10000 tree/sparse
printf part | dd of=tree/sparse bs=1 seek=5000 conv=notrunc status=none
setfattr -n user.a -v value tree/file 2>/dev/null || true
echo old > lower/file; mkdir -p lower/dir/old lower/link; echo gone > lower/dir/gone
tar -b1 -C lower --format=posix -cf lower.tar .
blocks=$(($(stat -c %s lower.tar) / 512))
for form in v7 ustar oldgnu gnu posix; do
    raw="--sparse --hole-detection=raw"
    for sparse in "" "$raw" "$raw --sparse-version=0.0" "$raw --sparse-version=0.1"; do
        case $form$sparse in v7?*|ustar?*|*gnu*version*) continue ;; esac
        exclude=
        [ "$form" != v7 ] || exclude="--exclude=./fifo"
        # shellcheck disable=SC2086 # lists of words
        tar -b1 -C tree --format=$form $sparse $exclude -cf upper.tar . 2>/dev/null || true
        # The first byte says where the second layer begins.
        {
            printf '%b' "\\x$(printf %02x "$blocks")"
            cat lower.tar upper.tar
        } > "$out/$form-$(echo "$sparse" | tr -dc 'a-z0-9')"
    done
done
