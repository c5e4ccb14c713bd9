//! LXC runs containers on mounts that its hooks make: applications and systems, privileged and not,
//! restarted from inside.

use crate::containers::{has, pass_on, shell};

const LXC: &str = r#"
mkdir lxc; chmod 711 /run
create() { lxcri_fs create --image $IMAGE --lxc --lxc-path /run/lxc "$@" >/dev/null; }
start() {
    lxc-start -P /run/lxc -n "$1" -F -l INFO -o "/run/$1.log" >/dev/null 2>&1 ||
        fail "$1: $(tail -5 /run/$1.log)"
}
"#;

fn lxc(config: &[&str], script: &str) {
    if has("lxc-start") {
        pass_on(config, &format!("{LXC}{script}"));
    }
}

#[test]
fn an_application_runs_as_the_image_configures_it() {
    lxc(
        &[
            "--config.user",
            "app",
            "--config.env",
            "A=x  \"y\"",
            "--config.env",
            "PATH=/bin",
            "--config.workingdir",
            "/srv/not/there",
        ],
        r#"
            cat > command <<'C'
{ id; pwd; printf '[%s]' "$0" "$@"; echo; env; hostname; } > /tmp-out
C
            COMMAND=$(cat command)
            for map in '' '--idmap 0:100000:65536'; do
                create c $map -e "$(printf 'MULTI=a\n  b ')" -- sh -c "$COMMAND" "it's" '' 'a  b' \
                    "$(printf 'line\nend\n.')" '%s\n' '$HOME'
                install -m 666 /dev/null lxc/c/rootfs/tmp-out
                [ -z "$map" ] || chown 101000:101001 lxc/c/rootfs/tmp-out
                start c; out=store/containers/c/upper/tmp-out
                # LXC gives no further groups in a user namespace.
                [ -n "$map" ] || grep -q 'groups=.*2000(extra)' $out || fail "$(cat $out)"
                grep -q 'uid=1000(app) gid=1001(app)' $out &&
                    grep -qx /srv/not/there $out &&
                    grep -qx c $out ||
                    fail "$(cat $out)"
                [ "$(sed -n '/^\[it/,/\]$/p' $out | head -c -1)" = \
                    "$(printf "[it's][][a  b][line\nend\n.][%%s\\\\n][\$HOME]")" ] ||
                    fail "$(cat $out)"
                grep -qx 'A=x  "y"' $out &&
                    grep -qx 'HOME=/home/app' $out &&
                    grep -qx 'MULTI=a' $out &&
                    grep -qx '  b ' $out ||
                    fail "$(cat $out)"
                [ ! -e lxc/c/rootfs/bin ] || fail "still mounted"
                lxcri_fs delete c
                nothing_is_left
                [ -z "$(ls -A lxc | grep -v lock)" ] || fail "$(ls -A lxc)"
            done"#,
    );
}

#[test]
fn lxc_attaches_to_a_system_and_stops_it() {
    lxc(
        &[],
        r#"
        for map in '' '--idmap 0:100000:65536'; do
            create s $map; lxcri_fs inspect s | grep -q 'LXC, a system'
            lxc-start -P /run/lxc -n s -d -l INFO -o s.log || fail "$(tail -5 s.log)"
            lxc-wait -P /run/lxc -n s -s RUNNING -t 20
            lxc-attach -P /run/lxc -n s -- sh -c '
                hostname
                cat /data/hello
                echo x > /attached
                stat -c %u /attached /bin/busybox
                cat /proc/self/uid_map' </dev/null > out
            grep -qx s out &&
                grep -q 'from the image' out &&
                [ "$(grep -cx 0 out)" = 2 ] ||
                fail "$(cat out)"
            [ -z "$map" ] || grep -q 100000 out
            ! lxcri_fs delete s 2>err; grep -q 'in use' err || fail "$(cat err)"
            lxc-stop -P /run/lxc -n s -t 20; lxc-wait -P /run/lxc -n s -s STOPPED -t 20
            [ -e store/containers/s/upper/attached ] &&
                [ "$(wc -l < store/containers/s/upper/starts)" = 1 ]
            for i in $(seq 100); do [ -e lxc/s/rootfs/bin ] || break; sleep 0.1; done
            [ ! -e lxc/s/rootfs/bin ] || fail 'still mounted'
            # Once more: what it wrote is there.
            lxc-start -P /run/lxc -n s -d; lxc-wait -P /run/lxc -n s -s RUNNING -t 20
            lxc-attach -P /run/lxc -n s -- cat /attached </dev/null | grep -q x
            lxc-stop -P /run/lxc -n s -k; lxc-wait -P /run/lxc -n s -s STOPPED -t 20
            lxcri_fs delete s; nothing_is_left
        done"#,
    );
}

#[test]
fn a_reboot_from_inside_restarts_the_container() {
    let script = "echo boot >> /boots; [ $(wc -l < /boots) -ge 3 ] && { cat /boots > \
                  /dev/console; exit 0; }; reboot -f; sleep 20";
    lxc(
        &shell(script),
        r#"
        create r; start r
        [ "$(wc -l < store/containers/r/upper/boots)" = 3 ] ||
            fail "$(cat store/containers/r/upper/boots)"
        lxcri_fs delete r; nothing_is_left
        # In memory, it is gone with the stop, not with the reboot: or this would not end.
        create e --ephemeral; start e; [ ! -e store/containers/e/upper ]
        lxcri_fs delete e; nothing_is_left"#,
    );
}

#[test]
fn a_container_whose_hook_cannot_mount_does_not_start() {
    lxc(
        &shell("echo started > /started"),
        r#"
        cp $IMAGE own.bfc
        IMAGE=/run/own.bfc create c
        lxcri_fs umount lxc/c/rootfs
        mv own.bfc away.bfc
        ! lxc-start -P /run/lxc -n c -F -l DEBUG -o c.log 2>/dev/null
        grep -q 'lxcri-fs: .*own.bfc' c.log || fail "$(cat c.log)"
        [ -z "$(ls -A lxc/c/rootfs)" ] || fail "$(ls -A lxc/c/rootfs)"
        mv away.bfc own.bfc; start c; [ -e store/containers/c/upper/started ]
        lxcri_fs delete c; nothing_is_left"#,
    );
}

/// With `/` private, as without systemd; the other tests have it shared.
#[test]
fn a_private_root_mount_shows_the_container_too() {
    lxc(
        &shell("cat /data/hello > /seen"),
        r#"
        mount --make-rprivate /
        create c; start c; grep -q 'from the image' store/containers/c/upper/seen
        lxcri_fs delete c; nothing_is_left"#,
    );
}

/// As lxc-create: a copy, with an address of its own.
#[test]
fn a_container_gets_lxcs_default_configuration() {
    lxc(
        &["--config.cmd", "sleep", "--config.cmd", "100"],
        r#"
        cat > default.conf <<'CONF'
# A comment.
lxc.net.0.type = veth
lxc.net.0.link = lxcbr9
lxc.net.0.hwaddr = 00:16:3e:xx:xx:xx
lxc.idmap = u 0 100000 65536
lxc.prlimit.nofile = 512
CONF
        lxcri_fs create c --image $IMAGE --lxc --lxc-path /run/lxc 2>err
        grep -q 'lxc.idmap is left out' err || fail "$(cat err)"
        grep -q '^lxc.net.0.link = lxcbr9$' lxc/c/config || fail "$(cat lxc/c/config)"
        grep -qE '^lxc.net.0.hwaddr = 00:16:3e(:[0-9a-f]{2}){3}$' lxc/c/config
        ! grep -q -e lxc.idmap -e 'type = empty' lxc/c/config || fail "$(cat lxc/c/config)"
        lxcri_fs delete c
        # The bridge is not here, so it runs without.
        lxcri_fs create c --image $IMAGE --lxc --lxc-path /run/lxc --network none 2>/dev/null
        ! grep -q lxcbr9 lxc/c/config
        grep -q '^lxc.net.0.type = empty$' lxc/c/config
        lxc-start -P /run/lxc -n c || fail "$(lxc-start -F -P /run/lxc -n c 2>&1)"
        pid=$(lxc-info -P /run/lxc -n c -p -H)
        grep -q 'Max open files *512' /proc/$pid/limits || fail "$(cat /proc/$pid/limits)"
        lxc-stop -k -P /run/lxc -n c
        lxcri_fs delete c
        echo 'lxc.cap.drop = sys_boot' > more
        lxcri_fs create c --image $IMAGE --lxc --lxc-path /run/lxc --include more
        ! grep -q lxcbr9 lxc/c/config
        grep -q '^lxc.include = /run/more$' lxc/c/config
        lxcri_fs delete c
        nothing_is_left"#,
    );
}
