//! Whom annotations let in, and what the host's users can reach.

use crate::containers::{pass_on, shell};

/// Annotations that the configuration allows count even if the bundle has a root file system. The
/// name of an upper cannot lead out of the directory of uppers, whatever containers write there.
#[test]
fn the_configuration_decides_which_annotations_count() {
    pass_on(
        &[],
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

/// The annotation of a container is its name in the store; only the record there says what it is,
/// and where its root file system is.
#[test]
fn a_containers_annotation_works_only_with_its_own_bundle() {
    pass_on(
        &["--config.cmd", "true"],
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
        grep -q 'of container c belongs on /run/b/rootfs, not on /run/other/rootfs' err ||
            fail "$(cat err)"
        sed -i.ready 's,"state": *"ready","state": "deleting",' store/containers/c/container.json
        ! cmp -s store/containers/c/container.json*
        ! hook /run/b c; grep -q 'being deleted' err || fail "$(cat err)"; ! mountpoint -q b/rootfs
        mv store/containers/c/container.json.ready store/containers/c/container.json
        hook /run/b c; grep -q 'from the image' b/rootfs/data/hello
        lxcri_fs delete c; rm -r other evil; nothing_is_left"#,
    );
}

/// Users of the host reach nothing that an image or a container's root has made, whatever the
/// umask; the root of the container's user namespace does.
#[test]
fn users_of_the_host_reach_no_root_file_system() {
    pass_on(
        &shell("stat -c %a /srv/w; true"),
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
