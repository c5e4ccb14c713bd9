//! podman runs containers on lxcri-fs mounts; annotations of an image select nothing.

use crate::containers::{has, image, inside, pass};

/// Podman, with what it needs without systemd and network.
const PODMAN: &str = r#"
mkdir -p etc hooks empty /var/empty
printf '{"default":[{"type":"insecureAcceptAnything"}]}' > etc/policy.json
cat > hook.json <<H
{
    "version": "1.0.0",
    "hook": {"path": "$PROGRAM", "args": ["lxcri-fs", "hook", "podman-precreate"]},
    "when": {"annotations": {"^org\\\\.lxcri-fs\\\\.image$": ".*"}},
    "stages": ["precreate"]
}
H
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
            crate::common::stderr(&output)
        );
    }
    output.status.success()
}

/// Runs a script with podman on an image of its own, where podman runs at all.
#[track_caller]
fn podman(script: &str) {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &[]);
    if podman_runs(&image) {
        pass(&image, &format!("{PODMAN}{script}"));
    }
}

#[test]
fn podman_runs_images_through_the_wrapper() {
    podman(
        r#"RT=(--runtime lxcri-fs-crun)
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
            nothing_is_left"#,
    );
}

#[test]
fn podman_runs_images_through_the_precreate_hook() {
    podman(
        r#"RT=(--runtime crun)
            cp hook.json hooks/
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
            ! echo '{"annotations":{"org.lxcri-fs.image":"/run/none.bfc"}}' |
                env -i "$PROGRAM" hook podman-precreate >out 2>err
            [ ! -s out ] && grep -q none.bfc err
            echo '{"annotations":{},  "x":1}' |
                env -i "$PROGRAM" hook podman-precreate |
                grep -qF '{"annotations":{},  "x":1}'
            nothing_is_left"#,
    );
}

/// Podman copies annotations of an image's manifest to the container. They must select neither an
/// image nor an upper, even if the image has no files.
#[test]
fn annotations_of_an_image_manifest_select_nothing() {
    if !has("skopeo") {
        return;
    }
    podman(
        r#"RT=(--runtime crun)
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
            [ $asked = 0 ] || grep -q "may be an image's own" err || fail "$(cat err)""#,
    );
}

/// The image's user, variables, directory and command are applied as podman applies them to an
/// image of its own, through the wrapper and through the hook; what is given wins.
#[test]
fn an_image_is_configured_as_podman_would() {
    if !has("skopeo") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let image = image(
        temp.path(),
        &[
            "--config.user",
            "app",
            "--config.env",
            "A=of the image",
            "--config.env",
            "PATH=/bin",
            "--config.workingdir",
            "/home/app",
            "--config.entrypoint",
            "sh",
            "--config.entrypoint",
            "-c",
            "--config.cmd",
            "id; pwd; env; grep Cap /proc/self/status",
        ],
    );
    if !podman_runs(&image) {
        return;
    }
    pass(
        &image,
        &format!(
            "{PODMAN}{}",
            r#"
            skopeo --policy etc/policy.json copy -q oci:$(dirname $IMAGE)/oci:t oci-archive:t.tar:t
            podman load -q -i t.tar >/dev/null
            said() { grep -v -e HOSTNAME= -e '^TERM=' -e ^container= | sort; }
            check() { # OPTIONS -- COMMAND
                options=()
                while [ "$1" != -- ]; do options+=("$1"); shift; done
                shift
                RT=(--runtime crun)
                rm -f hooks/*
                podrun "${options[@]}" localhost/t "$@" 2>&1 | said > expected
                [ $# -gt 0 ] || set -- -
                for runtime in lxcri-fs-crun crun; do
                    RT=(--runtime $runtime)
                    rm -f hooks/*
                    [ $runtime != crun ] || cp hook.json hooks/
                    podrun "${options[@]}" --annotation org.lxcri-fs.image=$IMAGE \
                        --rootfs /var/empty "$@" 2>&1 | said > found
                    # With the hook, podman keeps the directory.
                    if [ $runtime = crun ]; then
                        sed -i -e '/^PWD=/d' -e '/^\//d' found expected
                    fi
                    diff expected found >&2 || fail "$runtime ${options[*]} $*"
                done
            }
            check --
            grep -q 'uid=1000(app)' expected && grep -q '^A=of the image$' expected
            check -- 'echo mine; id'
            grep -q mine expected
            check --env A=mine --
            check --user 0:33 --
            check --user 1000:33 -- 'id; pwd'
            check --env PATH=/sbin:/bin --
            nothing_is_left"#
        ),
    );
}
