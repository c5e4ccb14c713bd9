//! `containers` says what each container of a store is doing.

use crate::containers::pass_on;

#[test]
fn every_state_of_a_container_is_listed() {
    pass_on(
        &["--config.cmd", "sleep", "--config.cmd", "100"],
        r#"
        state() { # NAME STATE
            lxcri_fs containers --json > all.json
            is=$(python3 -c '
import json, sys
for line in open("all.json"):
    row = json.loads(line)
    if row["name"] == sys.argv[1]: print(row["status"], row["processes"])' $1)
            lxcri_fs inspect --json $1 2>/dev/null | grep -q "\"status\":\"${2%% *}\"" ||
                [ $2 = damaged ] || fail "inspect says of $1: $(lxcri_fs inspect $1 2>&1)"
            case $is in "$2"*) ;; *) fail "$1 is $is, not $2" ;; esac
        }
        [ -z "$(lxcri_fs containers -q)" ]
        [ "$(lxcri_fs containers | wc -l)" = 1 ]
        lxcri_fs build bfc:$IMAGE -t app
        # What is no directory is in nobody's way.
        mkdir -p store/containers; touch store/containers/stray
        lxcri_fs create c --image app --bundle /run/b
        state c mounted
        lxcri_fs create other --image $IMAGE --bundle /run/o --ephemeral=16M
        lxcri_fs create apart --image $IMAGE --bundle /run/a --upper /run/up
        [ "$(lxcri_fs containers -q | tr '\n' ' ')" = 'apart c other ' ]
        lxcri_fs containers > text
        grep -qE '^c +mounted +oci .* app$' text || fail "$(cat text)"
        grep -qE '^other +mounted +oci +memory ' text || fail "$(cat text)"
        grep -qE '^apart +mounted +oci +elsewhere ' text || fail "$(cat text)"
        head -c 3000000 /dev/zero | tr '\0' x > b/rootfs/large
        lxcri_fs containers | grep -qE '^c .* 2\.9 MiB'
        sh -c 'cd b/rootfs; exec sleep 100' & sleeper=$!
        for i in $(seq 50); do [ ! -e /proc/$sleeper/cwd/bin ] || break; sleep 0.1; done
        state c 'running 1'
        kill $sleeper; wait $sleeper || :
        lxcri_fs umount b/rootfs
        state c created
        # The name means another image now.
        mkdir new; echo new > new/file; lxcri_fs build new -t app >/dev/null
        lxcri_fs containers | grep -q '^c .* app (the name means another image now)$' ||
            fail "$(lxcri_fs containers)"
        lxcri_fs mount --all
        state c mounted
        # Its runtime's configuration is gone.
        mv b/config.json kept.json
        state c gone
        lxcri_fs containers | grep -q 'delete c' || fail "$(lxcri_fs containers)"
        mv kept.json b/config.json
        # Nobody serves it any more.
        pid=$(lxcri_fs ps --json | python3 -c '
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    if "/run/b/rootfs" in row["mountpoints"]: print(row["keeper"], row["worker"])')
        kill -9 $pid
        sleep 0.5
        state c dead
        lxcri_fs mount --all
        state c mounted
        # Several at a time; what can be done is, and the rest is an error.
        mkdir one two; lxcri_fs mount $IMAGE one; lxcri_fs mount $IMAGE two
        lxcri_fs ps | grep -qE '^ +/run/two$' || fail "$(lxcri_fs ps)"
        lxcri_fs umount one two
        ! grep -e /run/one -e /run/two /proc/self/mountinfo
        rc=0; lxcri_fs delete none other 2>err || rc=$?
        [ $rc = 5 ] && grep -q '1 of 2 containers were not deleted' err || fail "$rc $(cat err)"
        [ "$(lxcri_fs containers -q | tr '\n' ' ')" = 'apart c ' ]
        lxcri_fs delete c --keep
        state c kept
        echo '{' > store/containers/c/container.json
        state c damaged
        lxcri_fs delete apart
        rm -r store/containers/c store/containers/stray
        nothing_is_left"#,
    );
}
