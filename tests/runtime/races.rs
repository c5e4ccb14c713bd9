//! What happens when other users change paths, or other processes are at work on a container, while
//! a command runs.

use crate::containers::{has, pass_on};

/// `slow SYSCALLS COMMAND...` runs a command that takes a second after each of these calls, which
/// options of strace may narrow; `swap` has the owner of `home` put a symlink to root's own
/// directory in the place of one of his; `untrusted` expects a command to say so.
const SLOW: &str = r#"
    slow() {
        local calls=${1%% *} only=${1#"${1%% *}"}
        shift
        strace -o /dev/null -e trace=$calls -e inject=$calls:delay_exit=1000000 $only \
            "$PROGRAM" "$@"
    }
    soon() {
        for i in $(seq 300); do if "$@"; then return; fi; sleep 0.05; done
        fail "never: $*"
    }
    user() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
    swap() { user mv home/$1 home/$1-gone; user ln -s /run/protected home/$1; }
    back() { user rm home/$1; user mv home/$1-gone home/$1; }
    seen() { find protected | sort; cat protected/config.json protected/x/lxcri-fs.json; }
    untouched() { [ "$(seen)" = "$before" ] || fail "touched: $(seen)"; }
    untrusted() {
        ! lxcri_fs "$@" 2>err || fail "$*"
        grep -q 'another user could have created' err && grep -q hint: err || fail "$*: $(cat err)"
        untouched
    }
    mkdir -p home protected/x/upper protected/rootfs/a/b
    echo mine > protected/config.json; : > protected/x/lxcri-fs.json
    chown 65534 home; before=$(seen)"#;

/// Runs a script that slows commands down.
#[track_caller]
fn with_delays(script: &str) {
    if has("strace") {
        pass_on(&[], &format!("{SLOW}{script}"));
    }
}

#[test]
fn owners_of_directories_above_cannot_redirect_create_or_delete() {
    with_delays(
        r#"
        calls='mkdir,mkdirat -P /run/home -P /run/home/b -P /run/home/b/rootfs'
        create="create c --image $IMAGE"
        slow "$calls" $create --bundle /run/home/b -- true >/dev/null 2>err &
        soon test -d home/b; swap b; ! wait $! || fail 'a symlink is no directory'
        untouched; back b; lxcri_fs delete c; [ ! -e home/b ] || fail "$(find home)"
        slow "$calls" $create --bundle /run/home/b -- true >/dev/null 2>err &
        soon test -d home/b/rootfs; swap b; wait $! || fail "$(cat err)"
        untouched; [ -x home/b-gone/rootfs/bin/true ] && [ -e home/b-gone/config.json ] ||
            fail "$(ls -lA home home/b-gone)"
        untrusted delete c
        back b
        slow umount2 delete c 2>err &
        soon eval '! mountpoint -q home/b/rootfs'; swap b; ! wait $! || fail 'the symlink is gone'
        untouched; [ -z "$(ls -A home/b-gone)" ] || fail "$(find home)"
        back b; lxcri_fs delete c; [ ! -e home/b ] || fail "$(find home)"
        # What is left of an upper that was never used is removed where it was made, or not at all.
        user mkdir home/u
        ! strace -o /dev/null -e trace=mknod,mknodat -e inject=mknod,mknodat:signal=KILL \
            "$PROGRAM" $create --bundle /run/b --upper /run/home/u/x -- true >/dev/null 2>&1
        [ -d home/u/x/work ]; swap u; untrusted delete c
        back u; lxcri_fs delete c 2>err
        [ ! -s err ] && [ -z "$(ls -A home/u)" ] && [ ! -e b ] || fail "$(cat err; find home b)"
        # Nor does an upper go to where somebody else's symlink leads.
        user ln -s /run/protected home/s
        for upper in s/x s/new s/new/x; do
            untrusted mount $IMAGE --upper /run/home/$upper home/u
        done
        lxcri_fs gc >/dev/null; nothing_is_left"#,
    );
}

#[test]
fn hooks_and_delete_wait_for_each_other() {
    with_delays(
        r#"
        create() { lxcri_fs create c --image $IMAGE "$@" -- true >/dev/null; }
        hook() { LXC_HOOK_TYPE=$1 lxcri_fs hook lxc /run/${2-store}/containers/c; }
        locked() { [ -n "$(ls -A store/locks 2>/dev/null)" ]; }
        # refused WHY COMMAND...
        refused() {
            local why=$1; shift
            ! "$@" 2>err || fail "$*"
            grep -q "$why" err || fail "$*: $(cat err)"
        }
        for round in 1 2 3; do
            create --lxc --lxc-path /run/home; lxcri_fs umount home/c/rootfs
            LXC_HOOK_TYPE=pre-start slow fsopen hook lxc /run/store/containers/c & hook=$!
            soon locked; lxcri_fs delete c || fail 'not deleted'
            wait $hook; [ ! -e home/c ] || fail "$(find home)"
            create --lxc --lxc-path /run/home
            slow umount2 delete c & delete=$!
            soon eval '! mountpoint -q home/c/rootfs'
            if [ $round = 1 ]; then
                hook post-stop
            else
                refused 'not the directory of a container' hook pre-start
            fi
            wait $delete || fail 'not deleted'
            [ ! -e home/c ] || fail "$(find home)"
            nothing_is_left
        done
        # The record of a copy is the original's.
        create --lxc --lxc-path /run/home; cp -a store copy
        refused 'copy of dir:/run/store/containers/c' hook pre-start copy
        hook post-stop copy; mountpoint -q home/c/rootfs || fail 'unmounted for the sake of a copy'
        hook post-stop; ! mountpoint -q home/c/rootfs || fail 'still mounted'
        lxcri_fs delete c
        create --bundle /run/home/c; rm -r copy; cp -a store copy; lxcri_fs umount home/c/rootfs
        cat > state <<'S'
{"ociVersion": "1.0.2", "id": "c", "status": "created", "pid": 1, "bundle": "/run/home/c",
 "annotations": {"org.lxcri-fs.container": "c"}}
S
        prestart() {
            LXC_HOOK_TYPE=pre-mount lxcri_fs --store dir:/run/$1 hook oci prestart < state
        }
        refused 'copy of dir:/run/store/containers/c' prestart copy
        prestart store; mountpoint -q home/c/rootfs || fail 'not mounted'
        lxcri_fs delete c; nothing_is_left"#,
    );
}
