//! crun and runc run containers on lxcri-fs mounts, started in every supported way.

use crate::containers::{has, image, pass, pass_on, shell};

/// Both runtimes, with what they need here.
const RUNTIMES: [(&str, &str); 2] = [("crun", "crun --cgroup-manager=disabled"), ("runc", "runc")];

/// Runs a script with $RUNTIME and $WRAPPER for each runtime.
fn with_each(config: &[&str], script: &str) {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), config);
    for (name, command) in RUNTIMES.into_iter().filter(|(name, _)| has(name)) {
        let wrapper = command.replacen(name, &format!("/run/lxcri-fs-{name}"), 1);
        pass(
            &image,
            &format!("NAME={name} RUNTIME='{command}' WRAPPER='{wrapper}'\n{script}"),
        );
    }
}

#[test]
fn a_bundle_runs() {
    with_each(
        &[
            "--config.user",
            "app",
            "--config.workingdir",
            "/srv/not/there",
            "--config.cmd",
            "sh",
            "--config.cmd",
            "-c",
            "--config.cmd",
            "id; pwd; cat /data/hello; hostname",
        ],
        r#"
        lxcri_fs create web1 --image $IMAGE --bundle /run/b
        $RUNTIME run -b b web1 > out; $RUNTIME run -b b again >> out
        user='uid=1000(app) gid=1001(app)'
        [ "$(grep -c "$user groups=33(web),1001(app),2000(extra)" out)" = 2 ] ||
            grep -q "$user groups=.*2000(extra)" out ||
            fail "$(cat out)"
        [ "$(grep -c '^/srv/not/there$' out)" = 2 ] &&
            [ "$(grep -c 'from the image' out)" = 2 ] &&
            [ "$(grep -c '^web1$' out)" = 2 ] ||
            fail "$(cat out)"
        lxcri_fs delete web1; nothing_is_left"#,
    );
}

#[test]
fn create_start_kill_delete_and_exit_codes() {
    with_each(
        &shell("echo up > /up; while :; do sleep 0.1; done"),
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b
        $RUNTIME create -b b c </dev/null >log 2>&1 || fail "$(cat log)"
        [ ! -e b/rootfs/up ]; $RUNTIME start c
        for i in $(seq 100); do [ -e b/rootfs/up ] && break; sleep 0.1; done
        ! lxcri_fs delete c 2>err; grep -q 'in use' err || fail "$(cat err)"
        # It has its root in a mount namespace of its own, also when it is taken out of sight here.
        rc=0
        lxcri_fs umount b/rootfs 2>err || rc=$?
        [ $rc = 6 ] && grep -q 'in use by' err || fail "$rc $(cat err)"
        lxcri_fs umount --lazy b/rootfs >/dev/null 2>&1; ! mountpoint -q b/rootfs
        rc=0
        lxcri_fs delete c 2>err || rc=$?
        [ $rc = 6 ] && grep -q 'in use' err || fail "$rc $(cat err)"
        lxcri_fs inspect c >out; grep -q 'still in use' out || fail "$(cat out)"
        lxcri_fs inspect c --json | grep -q '"mounted":false.*"detached":true' || fail detached
        rc=0
        lxcri_fs commit c -o c.bfc 2>err || rc=$?
        [ $rc = 6 ] && [ ! -e c.bfc ] || fail "$rc $(cat err)"
        $RUNTIME exec c sh -c 'echo written > /there && test -e /up' || fail "$(ls -R /run/store)"
        $RUNTIME kill c KILL
        for i in $(seq 100); do $RUNTIME state c | grep -q stopped && break; sleep 0.1; done
        $RUNTIME delete c
        lxcri_fs inspect c >out; grep -q 'not mounted,' out || fail "$(cat out)"
        lxcri_fs diff c | grep -qx 'A /up' || fail "$(lxcri_fs diff c)"
        lxcri_fs delete c
        # The same where it writes elsewhere, which outlives it; not when another has that mounted.
        lxcri_fs create c --image $IMAGE --bundle /run/b --upper /run/up
        $RUNTIME create -b b c </dev/null >log 2>&1 || fail "$(cat log)"; $RUNTIME start c
        for i in $(seq 100); do [ -e b/rootfs/up ] && break; sleep 0.1; done
        lxcri_fs umount --lazy b/rootfs >/dev/null 2>&1; ! mountpoint -q b/rootfs
        rc=0; lxcri_fs delete c 2>err || rc=$?
        [ $rc = 6 ] && grep -q 'b/rootfs is in use by .*overlay' err || fail "$rc $(cat err)"
        [ -e b/config.json ] && [ -e store/containers/c ] || fail "$(find b store)"
        $RUNTIME kill c KILL
        for i in $(seq 100); do $RUNTIME state c | grep -q stopped && break; sleep 0.1; done
        $RUNTIME delete c; mkdir m; lxcri_fs mount $IMAGE --upper /run/up m
        lxcri_fs delete c; [ -e m/up ] && lxcri_fs umount m || fail "$(ls -A up)"
        [ -e up/upper/up ] && [ ! -e b ] || fail "$(find b up)"; rm -r up m
        lxcri_fs create d --image $IMAGE --bundle /run/d -- sh -c 'exit 7'
        rc=0; $RUNTIME run -b d d || rc=$?; [ $rc = 7 ] || fail "exit code $rc"
        lxcri_fs delete d; nothing_is_left"#,
    );
}

#[test]
fn a_user_namespace_sees_its_own_ids() {
    with_each(
        &shell(
            "stat -c %u /bin/busybox /data; touch /made; stat -c %u /made; cat /proc/self/uid_map",
        ),
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b --idmap 0:100000:65536
        chmod 711 /run; $RUNTIME run -b b c > out
        [ "$(head -3 out | tr '\n' ' ')" = '0 0 0 ' ] && grep -q 100000 out || fail "$(cat out)"
        [ "$(stat -c %u store/containers/c/upper/made)" = 100000 ]
        lxcri_fs delete c; nothing_is_left"#,
    );
}

#[test]
fn a_read_only_container_cannot_write() {
    with_each(
        &[
            "--config.volume",
            "/data",
            "--config.cmd",
            "sh",
            "--config.cmd",
            "-c",
            "--config.cmd",
            "touch /x 2>/dev/null && echo written; touch /data/x && echo volume",
        ],
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b --read-only
        [ "$($RUNTIME run -b b c)" = volume ]
        lxcri_fs delete c; nothing_is_left"#,
    );
}

/// A prestart hook comes too late for crun and runc: it refuses, and says what to use.
#[test]
fn no_container_starts_on_an_empty_directory() {
    with_each(
        &["--config.cmd", "true"],
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b; lxcri_fs umount b/rootfs
        ! $RUNTIME run -b b c 2>err; grep -q 'lxcri-fs mount --all' err || fail "$(cat err)"
        lxcri_fs mount --all; $RUNTIME run -b b c2
        lxcri_fs delete c; [ ! -e b ] || fail "$(find b)"; nothing_is_left
        # Nor one that an annotation names, without the wrapper.
        mkdir -p h/rootfs
        lxcri_fs create t --image $IMAGE --bundle /run/t
        sed -e 's,/run/t/rootfs,rootfs,' \
            -e "s,\"org.lxcri-fs.container\": \"t\",\"org.lxcri-fs.image\": \"$IMAGE\"," \
            t/config.json > h/config.json
        lxcri_fs delete t
        ! $RUNTIME run -b h c3 2>err
        [ $NAME = crun ] || grep -q 'lxcri-fs runtime' err || fail "$(cat err)"
        nothing_is_left"#,
    );
}

/// A bundle as others write it, with an annotation: its rootfs is not there.
const ANNOTATED: &str = r#"
annotated() { # DIR COMMAND [ANNOTATION VALUE]
    mkdir -p $1
    (
        cd $1
        rm -f config.json
        $NAME spec
        python3 - "$2" org.lxcri-fs.image $IMAGE "${@:3}" <<'P'
import json, sys
c = json.load(open('config.json'))
c['process']['terminal'] = False
c['process']['args'] = ['sh', '-c', sys.argv[1]]
c['root'] = {'path': 'rootfs'}
c['annotations'] = dict(zip(sys.argv[2::2], sys.argv[3::2]))
json.dump(c, open('config.json', 'w'))
P
    )
}
"#;

#[test]
fn the_wrapper_mounts_what_the_annotation_names() {
    with_each(
        &[],
        &format!(
            r#"{ANNOTATED}
            annotated b 'cat /data/hello; echo x > /x; exit 3'
            rc=0; $WRAPPER run -b b w1 > out || rc=$?
            [ $rc = 3 ] && grep -q 'from the image' out || fail "$rc $(cat out)"
            nothing_is_left
            # Again, by another id, and in steps.
            annotated b 'echo up > /up; while :; do sleep 0.1; done'
            $WRAPPER create -b b w2 </dev/null >log 2>&1 || fail "$(cat log)"
            $WRAPPER start w2; $WRAPPER state w2 | grep -q running
            for i in $(seq 100); do
                [ -e /run/lxcri-fs-rootfs/w2/rootfs/up ] && break
                sleep 0.1
            done
            $WRAPPER exec w2 cat /up | grep -q up
            $WRAPPER kill w2 KILL
            for i in $(seq 100); do $WRAPPER state w2 | grep -q stopped && break; sleep 0.1; done
            $WRAPPER delete w2; nothing_is_left
            # What was written is kept where the annotation says.
            annotated b 'echo kept > /kept' org.lxcri-fs.upper u1
            mkdir -p /var/lib/lxcri-fs; mount -t tmpfs tmpfs /var/lib/lxcri-fs
            $WRAPPER run -b b w3
            grep -q kept /var/lib/lxcri-fs/uppers/u1/upper/kept
            nothing_is_left
            annotated b 'true' org.lxcri-fs.upper /etc
            ! $WRAPPER run -b b w4 2>err; grep -q uppers err; nothing_is_left
            # All else goes through.
            $WRAPPER --version | grep -q "$NAME version"; ! $WRAPPER delete none 2>/dev/null"#
        ),
    );
}

#[test]
fn a_container_that_the_wrapper_cannot_mount_does_not_start() {
    with_each(
        &[],
        &format!(
            r#"{ANNOTATED}
            IMAGE=/run/none.bfc annotated b 'echo started'
            ! $WRAPPER run -b b w1 > out 2>err
            grep -q none.bfc err && [ ! -s out ] || fail "$(cat out err)"
            nothing_is_left
            # Mounted, and then the runtime fails: the next delete takes it away.
            annotated b 'true'; sed -i 's/"sh"/"no-such-program"/' b/config.json
            ! $WRAPPER run -b b w2 2>/dev/null; $WRAPPER delete --force w2 2>/dev/null || :
            nothing_is_left"#
        ),
    );
}

#[test]
fn hooks_need_no_environment_and_may_run_twice() {
    pass_on(
        &["--config.cmd", "true"],
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b
        state() { # STATUS PID
            cat <<E
{"ociVersion":"1.0.2","id":"c","status":"$1","pid":$2,"bundle":"/run/b","annotations":{}}
E
        }
        hook() { env -i "$PROGRAM" hook oci "$@"; }
        state creating 1 | hook prestart; state created 1 | hook createRuntime
        state stopped 0 | hook poststop; state stopped 0 | hook poststop
        ! state creating 1 | hook createRuntime 2>err; grep -q 'mount --all' err
        ! echo nonsense | hook prestart 2>err; grep -q state err
        ! head -c 2000000 /dev/zero | hook prestart 2>err
        grep -q 'too large' err || fail "$(cat err)"
        env -i LXC_HOOK_TYPE=pre-start "$PROGRAM" hook lxc /run/nothing 2>err && fail started
        grep -q 'not the directory of a container' err
        lxcri_fs delete c; nothing_is_left"#,
    );
}

/// Where a hook runs in the container's own mount namespace before its root file system is taken,
/// as LXC's pre-mount does for lxcri, it is in time.
#[test]
fn a_prestart_hook_mounts_if_it_runs_in_time() {
    pass_on(
        &["--config.cmd", "true"],
        r#"
        mkdir -p b/rootfs; echo '{"root":{"path":"rootfs"}}' > b/config.json
        printf '[annotations]\nallow = ["image"]\n' > allow.toml
        state='{"ociVersion":"1.0.2","id":"c","status":"creating","pid":PID,"bundle":"/run/b",
            "annotations":{"org.lxcri-fs.image":"'$IMAGE'"}}'
        unshare -m --propagation slave sh -c '
            echo "$0" | sed "s/PID/$$/" |
                env -i LXCRI_FS_CONFIG=/run/allow.toml "$PROGRAM" hook oci prestart &&
                cat b/rootfs/data/hello' "$state" | grep -q 'from the image'
        # A state of nothing is not one of the bundle in this directory.
        cd b
        for nothing in '[]' '{}' '{"ociVersion":"1.0.2","id":"c","status":"creating","bundle":"."}'
        do
            ! echo "$nothing" | lxcri_fs hook oci prestart 2>/run/err
            grep -Eq 'absolute path|state on standard input' /run/err || fail "$(cat /run/err)"
        done
        cd ..; nothing_is_left"#,
    );
}

#[test]
fn a_mount_made_by_a_hook_does_not_keep_crun_waiting() {
    if !has("crun") {
        return;
    }
    // The wrapper's own keeper is of no concern to crun, and its end is not its container's.
    pass_on(
        &[],
        &format!(
            r#"NAME=crun; {ANNOTATED}
            annotated b 'true'; annotated other 'sleep 100'
            ./lxcri-fs-crun --cgroup-manager=disabled run -b other other >/dev/null & other=$!
            for i in $(seq 100); do
                ./lxcri-fs-crun state other 2>/dev/null | grep -q running && break
                sleep 0.1
            done
            timeout 20 ./lxcri-fs-crun --cgroup-manager=disabled run -b b c || fail "waited"
            lxcri_fs ps | grep -q '\.bfc'; ./lxcri-fs-crun kill other KILL; wait $other || :
            nothing_is_left"#
        ),
    );
}

#[test]
fn twenty_containers_share_one_mount() {
    pass_on(
        &shell("hostname > /mine; cat /mine; while [ -e /run-on ]; do sleep 0.1; done"),
        r#"
        for i in $(seq 20); do
            lxcri_fs create c$i --image $IMAGE --bundle /run/b$i &
            pids="${pids-} $!"
        done >/dev/null
        for pid in $pids; do wait $pid; done
        for i in $(seq 20); do touch b$i/rootfs/run-on; done
        for i in $(seq 20); do
            crun --cgroup-manager=disabled run -d -b b$i c$i </dev/null >out$i 2>&1 ||
                fail "$(cat out$i)"
        done
        for i in $(seq 20); do
            for j in $(seq 100); do [ -s b$i/rootfs/mine ] && break; sleep 0.1; done
            grep -qx c$i b$i/rootfs/mine
        done
        # One keeper, one worker, one file system.
        [ "$(lxcri_fs ps --json | wc -l)" = 1 ] || fail "$(lxcri_fs ps)"
        [ "$(grep -l lxcri-fs-keeper /proc/[0-9]*/comm | wc -l)" = 1 ]
        for i in $(seq 20); do rm b$i/rootfs/run-on; done
        for i in $(seq 20); do
            for j in $(seq 100); do crun state c$i | grep -q stopped && break; sleep 0.1; done
            crun delete c$i
            lxcri_fs delete c$i
        done
        nothing_is_left; [ -z "$(ls -d b* 2>/dev/null)" ]"#,
    );
}
