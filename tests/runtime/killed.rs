//! `create` and `delete` are killed at system calls of every kind: the next command continues the
//! work, and no leftover blocks it.

use crate::containers::{has, pass_on};

/// What every script uses: `killed SYSCALLS N COMMAND...` fails when it was killed at the Nth of
/// these calls.
const KILLED: &str = r#"
    killed() {
        local calls=$1 n=$2
        shift 2
        strace -o /dev/null -e trace=$calls -e inject=$calls:signal=KILL:when=$n "$PROGRAM" "$@" \
            >/dev/null 2>&1
    }
    create() { lxcri_fs create c --image $IMAGE --bundle /run/b "$@" -- true >/dev/null; }
    # A keeper that was started by one that was killed has some moments to end.
    again() {
        for i in 1 2 3 4 5 6; do "$@" 2>err && return; sleep 0.3; done
        fail "$* after $calls $n: $(cat err); $(ls -lA b 2>/dev/null)"
    }
    rounds=0"#;

/// Runs a script that kills commands.
#[track_caller]
fn with_kills(script: &str) {
    if has("strace") {
        pass_on(&[], &format!("{KILLED}{script}"));
    }
}

#[test]
fn a_killed_create_blocks_no_later_command() {
    with_kills(
        r#"
        for calls in rename,renameat,renameat2 mkdir,mkdirat fsync move_mount,fsmount; do
            for n in $(seq 12); do
                if killed $calls $n create c --image $IMAGE --bundle /run/b -- true; then
                    lxcri_fs delete c
                    break
                fi
                rounds=$((rounds + 1))
                # Either goes on.
                if [ $((n % 2)) = 1 ]; then
                    again create
                elif [ -e store/containers/c ]; then
                    again lxcri_fs delete c
                    [ ! -e b ] || fail "left after $calls $n: $(ls -A b)"
                    create
                else
                    create
                fi
                [ -e b/config.json ] && [ -x b/rootfs/bin/true ] || fail "not made after $calls $n"
                lxcri_fs delete c
                [ ! -e b ] || fail "left after $calls $n: $(find b)"
            done
        done
        [ $rounds -ge 12 ] || fail "only $rounds kills"
        lxcri_fs doctor | grep ^BAD && fail "broken" || :
        lxcri_fs gc >/dev/null; nothing_is_left"#,
    );
}

#[test]
fn a_killed_delete_can_be_continued_and_loses_no_kept_upper() {
    with_kills(
        r#"
        for keep in "" --keep; do
            for calls in rename,renameat,renameat2 unlink,unlinkat,rmdir fsync umount2; do
                for n in $(seq 8); do
                    create; echo precious > b/rootfs/precious
                    if killed $calls $n delete c $keep; then break; fi
                    rounds=$((rounds + 1))
                    if [ -n "$keep" ]; then
                        again lxcri_fs delete c --keep
                        again create
                        [ "$(cat b/rootfs/precious)" = precious ] || fail "lost after $calls $n"
                        lxcri_fs delete c
                    else
                        # All of it may be done, or nothing may be yet.
                        [ ! -e store/containers/c ] || again lxcri_fs delete c
                    fi
                    [ ! -e b ] || fail "left after $calls $n: $(find b)"
                done
                [ -z "$keep" ] || { create && lxcri_fs delete c; }
            done
        done
        [ $rounds -ge 12 ] || fail "only $rounds kills"
        lxcri_fs gc >/dev/null; nothing_is_left"#,
    );
}

/// Only what is marked as unfinished counts as left behind.
#[test]
fn cleanup_removes_only_what_a_create_left() {
    pass_on(
        &[],
        r#"
        mkdir -p store/containers/mine; echo precious > store/containers/mine/file
        for command in "create mine --image $IMAGE --bundle /run/b" "delete mine"; do
            ! lxcri_fs $command 2>err || fail "$command"
            grep -q 'no record' err || fail "$(cat err)"
        done
        [ "$(cat store/containers/mine/file)" = precious ]; rm -r store/containers/mine
        # A copy of the store on the same host has records of the originals.
        lxcri_fs create c --image $IMAGE --bundle /run/b -- true; cp -a store copy
        ! lxcri_fs --store dir:/run/copy mount --all 2>err
        grep -q 'copy of dir:/run/store/containers/c' err || fail "$(cat err)"
        lxcri_fs --store dir:/run/copy delete c
        [ -e b/config.json ] &&
            [ -x b/rootfs/bin/true ] &&
            [ ! -e copy/containers/c ] ||
            fail "the original is gone"
        # A store that was moved goes on.
        lxcri_fs umount b/rootfs; mv store copy/moved; export LXCRI_FS_STORE=dir:/run/copy/moved
        lxcri_fs mount --all
        [ -x b/rootfs/bin/true ]
        lxcri_fs delete c
        [ ! -e b ] || fail "$(find b)"
        nothing_is_left"#,
    );
}
