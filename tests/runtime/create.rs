//! `create` makes a container completely or leaves nothing, and `mount --all` restores what the
//! records say.

use crate::containers::{REGISTRY, image, pass, pass_on};

#[test]
fn a_failed_create_is_undone() {
    pass_on(
        &["--config.cmd", "true"],
        r#"
        head -c 100 $IMAGE > cut.bfc
        cp $IMAGE bad.bfc
        printf XXXX | dd of=bad.bfc bs=1 seek=400 conv=notrunc status=none
        mkdir -p full; touch full/x
        refused() {
            code=$1
            shift
            set +e
            lxcri_fs "$@" 2>err
            rc=$?
            set -e
            [ $rc = $code ] || fail "$* ended with $rc: $(cat err)"
            nothing_is_left
        }
        refused 3 create c --image ./cut.bfc --bundle /run/b
        refused 3 create c --image ./bad.bfc --bundle /run/b --verify full
        refused 5 create c --image ./none.bfc --bundle /run/b
        refused 1 create c --image $IMAGE --bundle /run/full
        refused 5 create c --image $IMAGE --bundle /run/b --upper /proc/self/nothing
        refused 2 create ../c --image $IMAGE --bundle /run/b
        refused 2 create c --image $IMAGE
        [ ! -e b ] && [ -e full/x ]
        mkdir lxc
        refused 1 create c --image $IMAGE --lxc --lxc-path /run/lxc --workdir "$(printf '/a\nb')"
        [ -z "$(ls lxc)" ] || fail "$(ls lxc)"
        # What is there twice.
        lxcri_fs create c --image $IMAGE --bundle /run/b
        ! lxcri_fs create c --image $IMAGE --bundle /run/b2 2>err &&
            grep -q already err &&
            [ ! -e b2 ]
        ! lxcri_fs delete other 2>err && grep -q 'no container other' err
        lxcri_fs delete c; [ ! -e b ]; nothing_is_left"#,
    );
}

/// Whenever a create is killed, the next create or delete of that name removes what it left.
#[test]
fn the_next_call_cleans_up_a_killed_create() {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &["--config.cmd", "true"]);
    let shown = pass(
        &image,
        r#"
        killed=0
        for delay in 0.001 0.003 0.006 0.01 0.015 0.02 0.03 0.04 0.05 0.07 0.09 0.12; do
            "$PROGRAM" create c --image $IMAGE --bundle /run/b >/dev/null & pid=$!
            sleep $delay
            kill -9 $pid 2>/dev/null && killed=$((killed + 1))
            wait $pid 2>/dev/null || :
            if lxcri_fs inspect c 2>/dev/null | grep -q 'State  *ready'; then
                lxcri_fs delete c
                continue
            fi
            # What the killed one had started may be mounting yet.
            for i in 1 2 3 4 5; do
                lxcri_fs create c --image $IMAGE --bundle /run/b && break
                sleep 0.3
            done
            lxcri_fs inspect c | grep -q 'State  *ready' || fail "after $delay s"
            lxcri_fs delete c
        done >/dev/null
        # What the store itself had begun, its own gc takes away.
        lxcri_fs gc >/dev/null; nothing_is_left; [ ! -e b ] || fail "$(find b)"
        echo $killed"#,
    );
    assert!(
        shown.trim().parse::<u32>().unwrap() > 0,
        "no create was killed"
    );
}

#[test]
fn a_later_create_continues_with_a_kept_upper() {
    pass_on(
        &["--config.cmd", "true"],
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b; echo mine > b/rootfs/file
        lxcri_fs delete c --keep; [ ! -e b ]; grep -q mine store/containers/c/upper/file
        lxcri_fs inspect c | grep -q kept
        # A create that fails, and one that is killed, take nothing of it away.
        ! lxcri_fs create c --image $IMAGE --bundle /run/b --user nobody 2>/dev/null
        ! lxcri_fs create c --image $IMAGE --lxc --lxc-path /run/none 2>/dev/null
        sed -i 's/"kept"/"creating"/' store/containers/c/container.json
        touch store/containers/c/unfinished
        lxcri_fs create c --image $IMAGE --bundle /run/other; grep -q mine other/rootfs/file
        lxcri_fs delete c; nothing_is_left
        ! lxcri_fs create c --image $IMAGE --lxc --lxc-path /run/none --upper /run/made 2>/dev/null
        [ ! -e made ]
        nothing_is_left
        # Elsewhere stays, and is said.
        lxcri_fs create c --image $IMAGE --bundle /run/b --upper /run/up; echo mine > b/rootfs/file
        lxcri_fs delete c 2>err; grep -q /run/up err; grep -q mine up/upper/file; nothing_is_left
        # What is not ours stays, and so does the container.
        lxcri_fs create c --image $IMAGE --bundle /run/b; echo mine > b/rootfs/file
        mount -t tmpfs none b/rootfs; ! lxcri_fs delete c 2>err; umount b/rootfs
        grep -q 'not one of lxcri-fs' err || fail "$(cat err)"
        ! lxcri_fs create c --image $IMAGE --bundle /run/b 2>/dev/null; grep -q mine b/rootfs/file
        lxcri_fs umount b/rootfs; lxcri_fs mount --all; grep -q mine b/rootfs/file
        lxcri_fs delete c; nothing_is_left"#,
    );
}

/// What a container has written belongs to the image that the file has now.
#[test]
fn an_image_with_a_container_is_not_replaced_by_force() {
    pass_on(
        &["--config.cmd", "true"],
        r#"
        cp $IMAGE own.bfc; lxcri_fs create c --image ./own.bfc --bundle /run/b
        echo mine > b/rootfs/file; mkdir other; lxcri_fs umount b/rootfs
        for command in "build other -o own.bfc" "commit c -o own.bfc"; do
            rc=0; lxcri_fs $command --force 2>err || rc=$?
            [ $rc = 6 ] && grep -q 'container c' err || fail "$command: $rc $(cat err)"
        done
        lxcri_fs mount --all; grep -q mine b/rootfs/file; lxcri_fs delete c
        lxcri_fs build other -o own.bfc --force
        # A mistyped file is no image of a registry.
        rc=0; lxcri_fs create c --image nope.bfc --bundle /run/b 2>err || rc=$?
        [ $rc = 5 ] && grep -q './FILE' err || fail "$rc $(cat err)"
        rc=0; lxcri_fs create c --image other --bundle /run/b 2>err || rc=$?
        [ $rc = 5 ] && grep -q './FILE' err || fail "$rc $(cat err)"
        nothing_is_left"#,
    );
}

#[test]
fn mount_all_restores_the_recorded_mounts() {
    pass_on(
        &["--config.cmd", "true"],
        r#"
        for c in a b; do
            lxcri_fs create $c --image $IMAGE --bundle /run/$c
            echo $c > $c/rootfs/name
        done
        cp $IMAGE gone.bfc; lxcri_fs create c --image ./gone.bfc --bundle /run/c
        for c in a b c; do lxcri_fs umount $c/rootfs; done; rm gone.bfc
        lxcri_fs inspect a --json | grep -q '"mounted":false'
        set +e; lxcri_fs mount --all 2>err; rc=$?; set -e
        [ $rc = 1 ] && grep -q 'container c:.*gone.bfc' err || fail "$rc $(cat err)"
        [ "$(cat a/rootfs/name b/rootfs/name | tr -d '\n')" = ab ]
        lxcri_fs inspect a --json | grep -q '"mounted":true'
        for c in a b c; do lxcri_fs delete $c; done; nothing_is_left"#,
    );
}

#[test]
fn create_pulls_a_missing_image() {
    if !["docker-registry", "ip"]
        .into_iter()
        .all(crate::containers::has)
    {
        return;
    }
    pass_on(
        &["--config.cmd", "true"],
        &format!(
            r#"{REGISTRY}
        skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$(dirname $IMAGE)/oci:t" \
            docker://127.0.0.1:5000/app:1
        printf '[registries."127.0.0.1:5000"]\ninsecure = true\n' > config.toml
        export LXCRI_FS_CONFIG=/run/config.toml
        ! lxcri_fs create a --image 127.0.0.1:5000/app:1 --bundle /run/a --pull never 2>err
        grep -q 'no image' err
        lxcri_fs create a --image 127.0.0.1:5000/app:1 --bundle /run/a
        lxcri_fs create b --image 127.0.0.1:5000/app:1 --bundle /run/b --pull always |
            grep -q 'up to date'
        ! lxcri_fs create c --image 127.0.0.1:5000/none:1 --bundle /run/c 2>err; [ ! -e c ]
        # The registry is not asked for what is there.
        kill $registry; lxcri_fs create d --image 127.0.0.1:5000/app:1 --bundle /run/d
        ! lxcri_fs rm 127.0.0.1:5000/app:1 2>err; grep -q 'container a' err
        for c in a b d; do lxcri_fs delete $c; done; nothing_is_left"#
        ),
    );
}
