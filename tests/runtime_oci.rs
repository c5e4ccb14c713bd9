//! crun, runc and podman run containers on mounts of ours, started in every way that there is.
//!
//! Needs root, crun, runc, podman, umoci and busybox-static; `tests/run.sh` installs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod containers;

use containers::{has, image, inside, pass};

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
        &[
            "--config.cmd",
            "sh",
            "--config.cmd",
            "-c",
            "--config.cmd",
            "echo up > /up; while :; do sleep 0.1; done",
        ],
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
        rc=0
        lxcri_fs commit c -o c.bfc 2>err || rc=$?
        [ $rc = 6 ] && [ ! -e c.bfc ] || fail "$rc $(cat err)"
        $RUNTIME exec c sh -c 'echo written > /there && test -e /up' || fail "$(ls -R /run/store)"
        $RUNTIME kill c KILL
        for i in $(seq 100); do $RUNTIME state c | grep -q stopped && break; sleep 0.1; done
        $RUNTIME delete c
        lxcri_fs diff c | grep -qx 'A /up' || fail "$(lxcri_fs diff c)"
        lxcri_fs delete c
        lxcri_fs create d --image $IMAGE --bundle /run/d -- sh -c 'exit 7'
        rc=0; $RUNTIME run -b d d || rc=$?; [ $rc = 7 ] || fail "exit code $rc"
        lxcri_fs delete d; nothing_is_left"#,
    );
}

#[test]
fn a_user_namespace_sees_its_own_ids() {
    with_each(
        &[
            "--config.cmd",
            "sh",
            "--config.cmd",
            "-c",
            "--config.cmd",
            "stat -c %u /bin/busybox /data; touch /made; stat -c %u /made; cat /proc/self/uid_map",
        ],
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b --idmap 0:100000:65536
        chmod 711 /run; $RUNTIME run -b b c > out
        [ "$(head -3 out | tr '\n' ' ')" = '0 0 0 ' ] && grep -q 100000 out || fail "$(cat out)"
        [ "$(stat -c %u store/containers/c/upper/made)" = 100000 ]
        lxcri_fs delete c; nothing_is_left"#,
    );
}

#[test]
fn read_only_is_so() {
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
fn what_the_wrapper_cannot_mount_does_not_start() {
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
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &["--config.cmd", "true"]);
    pass(
        &image,
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
fn a_prestart_hook_that_is_in_time_mounts() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &["--config.cmd", "true"]);
    pass(
        &image,
        r#"
        mkdir -p b/rootfs; echo '{"root":{"path":"rootfs"}}' > b/config.json
        printf '[annotations]\nallow = ["image"]\n' > allow.toml
        state='{"ociVersion":"1.0.2","id":"c","status":"creating","pid":PID,"bundle":"/run/b",
            "annotations":{"org.lxcri-fs.image":"'$IMAGE'"}}'
        unshare -m --propagation slave sh -c '
            echo "$0" | sed "s/PID/$$/" |
                env -i LXCRI_FS_CONFIG=/run/allow.toml "$PROGRAM" hook oci prestart &&
                cat b/rootfs/data/hello' "$state" | grep -q 'from the image'
        nothing_is_left"#,
    );
}

#[test]
fn a_mount_made_by_a_hook_does_not_keep_crun_waiting() {
    if !has("crun") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &[]);
    // The wrapper's own keeper is of no concern to crun, and its end is not its container's.
    pass(
        &image,
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
    let temp = tempfile::tempdir().unwrap();
    let image = image(
        temp.path(),
        &[
            "--config.cmd",
            "sh",
            "--config.cmd",
            "-c",
            "--config.cmd",
            "hostname > /mine; cat /mine; while [ -e /run-on ]; do sleep 0.1; done",
        ],
    );
    pass(
        &image,
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

/// Podman, with what it needs without systemd and network.
const PODMAN: &str = r#"
mkdir -p etc hooks empty /var/empty
printf '{"default":[{"type":"insecureAcceptAnything"}]}' > etc/policy.json
cat > etc/containers.conf <<C
[engine]
hooks_dir = ["/run/hooks"]
runtime_supports_nocgroup = ["crun", "lxcri-fs-crun"]
[engine.runtimes]
lxcri-fs-crun = ["/run/lxcri-fs-crun"]
[containers]
C
export CONTAINERS_CONF=/run/etc/containers.conf
podman() {
    command podman --root /run/pod --runroot /run/podrun --storage-driver vfs \
        --cgroup-manager cgroupfs --events-backend none "$@"
}
podrun() {
    podman "${RT[@]}" run --rm --cgroups=disabled --network none --security-opt seccomp=unconfined \
        --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 "$@"
}
"#;

/// Whether podman runs anything here at all.
fn podman_runs(image: &std::path::Path) -> bool {
    if !has("podman") || !has("crun") {
        return false;
    }
    let output = inside(
        image,
        &format!(
            "{PODMAN} RT=(--runtime crun); lxcri_fs mount $IMAGE empty; podrun --rootfs \
             /run/empty:O true || podrun --rootfs /run/empty true"
        ),
    );
    if !output.status.success() {
        eprintln!(
            "NOT TESTED: podman does not run here: {}",
            common::stderr(&output)
        );
    }
    output.status.success()
}

#[test]
fn podman_with_the_wrapper() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &[]);
    if !podman_runs(&image) {
        return;
    }
    pass(
        &image,
        &format!(
            r#"{PODMAN} RT=(--runtime lxcri-fs-crun)
            podrun --annotation org.lxcri-fs.image=$IMAGE --rootfs /var/empty \
                sh -c 'cat /data/hello; echo x > /x; cat /x' > out || fail "$(cat out)"
            grep -q 'from the image' out
            rc=0
            podrun --annotation org.lxcri-fs.image=$IMAGE --rootfs /var/empty sh -c 'exit 5' ||
                rc=$?
            [ $rc = 5 ]
            rc=0
            podrun --annotation org.lxcri-fs.image=/run/none.bfc --rootfs /var/empty true 2>err ||
                rc=$?
            [ $rc != 0 ] && grep -q none.bfc err || fail "$rc $(cat err)"
            nothing_is_left"#
        ),
    );
}

#[test]
fn podman_with_the_precreate_hook() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &[]);
    if !podman_runs(&image) {
        return;
    }
    pass(
        &image,
        &format!(
            r#"{PODMAN} RT=(--runtime crun)
            cat > hooks/lxcri-fs.json <<H
{{
    "version": "1.0.0",
    "hook": {{"path": "$PROGRAM", "args": ["lxcri-fs", "hook", "podman-precreate"]}},
    "when": {{"annotations": {{"^org\\\\.lxcri-fs\\\\.image$": ".*"}}}},
    "stages": ["precreate"]
}}
H
            podrun --annotation org.lxcri-fs.image=$IMAGE --rootfs /var/empty \
                sh -c 'cat /data/hello; echo x > /x' > out || fail "$(cat out)"
            grep -q 'from the image' out
            nothing_is_left
            rc=0
            podrun --annotation org.lxcri-fs.image=/run/none.bfc --rootfs /var/empty \
                echo started >out 2>err || rc=$?
            [ $rc != 0 ] && [ ! -s out ] && grep -q precreate err || fail "$rc $(cat out err)"
            nothing_is_left
            # Podman does not show what a hook says.
            ! echo '{{"annotations":{{"org.lxcri-fs.image":"/run/none.bfc"}}}}' |
                env -i "$PROGRAM" hook podman-precreate >out 2>err
            [ ! -s out ] && grep -q none.bfc err
            echo '{{"annotations":{{}},  "x":1}}' |
                env -i "$PROGRAM" hook podman-precreate |
                grep -qF '{{"annotations":{{}},  "x":1}}'
            nothing_is_left"#
        ),
    );
}

/// Podman makes annotations of those of an image's manifest. Its maker must choose nothing with
/// them: no image, no upper, also where the image has no files.
#[test]
fn annotations_of_an_images_manifest_choose_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &[]);
    if !podman_runs(&image) || !has("skopeo") {
        return;
    }
    pass(
        &image,
        &format!(
            r#"{PODMAN} RT=(--runtime crun)
            cat > hook.json <<H
{{
    "version": "1.0.0",
    "hook": {{"path": "$PROGRAM", "args": ["lxcri-fs", "hook", "podman-precreate"]}},
    "when": {{"annotations": {{"^org\\\\.lxcri-fs\\\\.image$": ".*"}}}},
    "stages": ["precreate"]
}}
H
            mkdir -p /var/lib/lxcri-fs
            mount -t tmpfs tmpfs /var/lib/lxcri-fs
            cp -r "$(dirname $IMAGE)/oci" layout
            umoci new --image layout:empty
            asked=0
            for tag in t empty; do
                umoci config --image layout:$tag --manifest.annotation org.lxcri-fs.image=$IMAGE \
                    --manifest.annotation org.lxcri-fs.upper=u1 \
                    --config.entrypoint sh --config.entrypoint -c --config.cmd 'echo started'
                skopeo --policy etc/policy.json copy -q oci:layout:$tag oci-archive:$tag.tar:$tag
                podman load -q -i $tag.tar >/dev/null
                # Some versions leave a manifest's annotations alone: then the image runs as any
                # other.
                podman create --cgroups=disabled --network none --name asks localhost/$tag \
                    >/dev/null 2>&1 || :
                passes=$(podman inspect asks 2>/dev/null | grep -c org.lxcri-fs.image || :)
                podman rm asks >/dev/null 2>&1 || :
                for runtime in crun lxcri-fs-crun; do
                    RT=(--runtime $runtime)
                    rm -f hooks/*
                    [ $runtime != crun ] || cp hook.json hooks/
                    if [ "$passes" = 0 ]; then
                        podrun localhost/$tag >out 2>err || :
                        [ ! -e /var/lib/lxcri-fs/uppers ] &&
                            ! grep -q lxcri-fs out ||
                            fail "$tag $runtime: $(cat out err)"
                        nothing_is_left; continue
                    fi
                    asked=1
                    ! podrun localhost/$tag >out 2>err
                    [ ! -s out ] &&
                        [ ! -e /var/lib/lxcri-fs/uppers ] ||
                        fail "$tag $runtime: $(cat out err)"
                    nothing_is_left
                done
            done
            [ $asked = 0 ] || grep -q "may be an image's own" err || fail "$(cat err)""#
        ),
    );
}

/// What the configuration allows counts beside a root file system too; and an upper's name leads
/// nowhere, whatever a container has put in another.
#[test]
fn annotations_count_as_far_as_the_configuration_says() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &[]);
    pass(
        &image,
        r#"
        mkdir -p /var/lib/lxcri-fs; mount -t tmpfs tmpfs /var/lib/lxcri-fs; mkdir own other
        config() { # ROOT [ANNOTATION VALUE]
            python3 - "$1" org.lxcri-fs.image $IMAGE "${@:2}" <<'P'
import json, sys
annotations = dict(zip(sys.argv[2::2], sys.argv[3::2]))
print(json.dumps({"root": {"path": sys.argv[1]}, "annotations": annotations}))
P
        }
        hook() { env -i LXCRI_FS_CONFIG=/run/c.toml "$PROGRAM" hook podman-precreate >out 2>err; }
        : > c.toml
        config nowhere | hook
        grep -o '/run/lxcri-fs-rootfs/[^"]*' out | head -1 > root
        lxcri_fs umount "$(cat root)"
        ! config own | hook; grep -q "image may be an image's own" err || fail "$(cat err)"
        printf '[annotations]\nallow = ["image"]\n' > c.toml
        config own | hook
        lxcri_fs umount "$(grep -o '/run/lxcri-fs-rootfs/[^"]*' out | head -1)"
        ! config own org.lxcri-fs.upper u1 | hook; grep -q "upper may be an image's own" err
        printf '[annotations]\nallow = ["image", "upper"]\n' > c.toml
        config own org.lxcri-fs.upper u1 | hook
        root="$(grep -o '/run/lxcri-fs-rootfs/[^"]*' out | head -1)"
        mkdir "$root/x"
        ln -s /run/other "$root/x/upper"
        ln -s /run/other "$root/x/work"
        lxcri_fs umount "$root"
        [ "$(stat -c '%a %u' /var/lib/lxcri-fs/uppers /var/lib/lxcri-fs/uppers/u1 | sort -u)" = \
            '700 0' ] ||
            fail "$(stat -c '%a %u %n' /var/lib/lxcri-fs/uppers/*)"
        for name in u1/upper/x ../x . .hidden ''; do
            ! config own org.lxcri-fs.upper "$name" | hook || fail "$name"
        done
        # A symlink among the uppers is none, and an upper in which `upper` or `work` is one is not
        # used.
        ln -s /run/other /var/lib/lxcri-fs/uppers/u2
        ! config own org.lxcri-fs.upper u2 | hook || fail "a symlink"
        mkdir -p own2 /run/loose/target
        upper=$PWD/no-such/../loose/../other/../run/x
        ! lxcri_fs mount $IMAGE own2 --upper "$upper" 2>/dev/null || lxcri_fs umount own2
        for link in upper work; do
            rm -rf up
            mkdir up
            ln -s /run/other up/$link
            ! lxcri_fs mount $IMAGE own2 --upper up 2>err || fail "$link followed"
        done
        [ -z "$(ls -A other)" ] || fail "$(ls -A other)"
        # Whom it lets in: nobody else.
        chmod 777 /var/lib/lxcri-fs/uppers
        ! config own org.lxcri-fs.upper u3 | hook
        grep -q alone err
        printf '[annotations]\nallow = ["everything"]\n' > c.toml
        ! config own | hook
        grep -q 'c.toml, line 2' err || fail "$(cat err)""#,
    );
}

/// The annotation of a container is its name in the store: what it is, and where its root file
/// system is, nobody else says.
#[test]
fn a_containers_annotation_is_its_name_and_its_bundle_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &["--config.cmd", "true"]);
    pass(
        &image,
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b
        lxcri_fs umount b/rootfs
        grep -q '"org.lxcri-fs.container": "c"' b/config.json
        hook() { # BUNDLE ANNOTATION
            env -i LXC_HOOK_TYPE=pre-mount \
                "$PROGRAM" hook oci prestart --store dir:/run/store 2>err <<E
{
    "ociVersion": "1.0.2", "id": "x", "status": "creating", "pid": 0, "bundle": "$1",
    "annotations": {"org.lxcri-fs.container": "$2"}
}
E
        }
        mkdir -p other/rootfs evil; echo '{"root":{"path":"rootfs"}}' > other/config.json
        sed 's,/run/b",/run/other",' store/containers/c/container.json > evil/container.json
        for name in /run/evil ../evil /run/store/containers/c store/containers/c ''; do
            ! hook /run/other "$name" || fail "$name"
        done
        ! hook /run/other c
        grep -q 'has its root file system on /run/b/rootfs, not on /run/other/rootfs' err ||
            fail "$(cat err)"
        sed -i.ready 's,"state": *"ready","state": "deleting",' store/containers/c/container.json
        ! cmp -s store/containers/c/container.json*
        ! hook /run/b c; grep -q 'being deleted' err || fail "$(cat err)"; ! mountpoint -q b/rootfs
        mv store/containers/c/container.json.ready store/containers/c/container.json
        hook /run/b c; grep -q 'from the image' b/rootfs/data/hello
        lxcri_fs delete c; rm -r other evil; nothing_is_left"#,
    );
}

/// What an image or a container's root has made is out of reach of the host's users, whatever the
/// umask; a user namespace's root comes through.
#[test]
fn the_hosts_users_reach_no_root_file_system() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(
        temp.path(),
        &[
            "--config.cmd",
            "sh",
            "--config.cmd",
            "-c",
            "--config.cmd",
            "stat -c %a /srv/w; true",
        ],
    );
    pass(
        &image,
        r#"
        chmod 755 /run
        mkdir -p /var/lib/lxcri-fs lxc m
        mount -t tmpfs -o mode=711 tmpfs /var/lib/lxcri-fs
        reached() { # DIR
            setpriv --reuid=65534 --regid=65534 --clear-groups sh -c '
                cat "$0/data/hello" || cat "$0/upper/made" || cat "$0"' "$1" 2>/dev/null &&
                fail "nobody reads $1" || :
        }
        mode() {
            [ "$(stat -c '%a %g' "$1")" = "$2" ] || fail "$1: $(stat -c '%a %g' "$1"), not $2"
        }
        for mask in 000 022 077; do
            umask $mask
            lxcri_fs create a --image $IMAGE --bundle /run/a --env SECRET=1 --workdir /srv/w
            mode a '700 0'
            reached /run/a/rootfs
            mode a/config.json '600 0'
            [ "$(stat -c %a a/rootfs/srv/w)" = 755 ]
            lxcri_fs create b --image $IMAGE --lxc --lxc-path /run/lxc --env SECRET=1
            mode lxc/b '700 0'
            reached /run/lxc/b/rootfs
            mode lxc/b/config '600 0'
            # Also a directory that was there.
            mkdir -p c
            lxcri_fs create c --image $IMAGE --bundle /run/c --idmap 0:100000:65536 --workdir /srv/w
            mode c '710 100000'
            reached /run/c/rootfs
            crun --cgroup-manager=disabled run -b c c >out 2>&1 || fail "umask $mask: $(cat out)"
            grep -qx 755 out || fail "$(cat out)"
            mapped=',"linux":{"gidMappings":[{"containerID":0,"hostID":100000,"size":65536}]}'
            for map in '' "$mapped"; do
                "$PROGRAM" hook podman-precreate > out <<E
{
    "root": {"path": "nowhere"}$map,
    "annotations": {"org.lxcri-fs.image": "$IMAGE", "org.lxcri-fs.upper": "u"}
}
E
                root=$(grep -o '/run/lxcri-fs-rootfs/[^"]*' out | head -1)
                mode /run/lxcri-fs-rootfs '711 0'
                reached $root
                if [ -n "$map" ]; then
                    mode "$(dirname $root)" '710 100000'
                else
                    mode "$(dirname $root)" '700 0'
                fi
                lxcri_fs umount $root; rmdir $root "$(dirname $root)"
            done
            mkdir -p up; chmod 777 up
            for upper in up /run/new; do
                lxcri_fs mount $IMAGE m --upper $upper
                echo made > m/made
                chmod 666 m/made
                reached "$(realpath $upper)"
                mode $upper '700 0'
                lxcri_fs umount m
            done
            for name in a b c; do lxcri_fs delete $name; done; rm -rf c up new; nothing_is_left
        done"#,
    );
}
