//! A container gets another image, and keeps what it wrote; it can go back; killed anywhere, it is
//! wholly the old or wholly the new one.

use crate::containers::{has, pass_on, shell};

/// What every script begins with: `app:1` and `app:2`, which differ in `/data/hello`, `/etc/conf`,
/// `/etc/group`, a new `/new` and a file that is gone, `/data/old`; and `tree DIR`, which says all
/// of a tree.
const IMAGES: &str = r#"
run() { crun --cgroup-manager=disabled run -b "$1" "$2" || fail "$2"; }
mkdir -p l1/data l1/etc l2/data l2/etc
echo old > l1/data/old; echo 1 > l1/etc/conf; cp l1/etc/conf l1/etc/both
lxcri_fs build bfc:$IMAGE --layer l1 -t app:1 >/dev/null
echo new > l2/new; echo 2 > l2/data/hello; echo 2 > l2/etc/conf; : > l2/data/.wh.old
echo two > l2/etc/both
printf 'root:x:0:\napp:x:1001:\nextra:x:2000:app\nweb:x:33:other,app\nnew:x:44:\n' > l2/etc/group
lxcri_fs build bfc:$IMAGE --layer l1 --layer l2 --change 'ENV V=2' -t app:2 >/dev/null
tree() {
    (cd $1; find . -mount \( -path ./dev -o -path ./proc -o -path ./sys \) -prune -o \
        -printf '%p %y %m %U %G %s %T@ %l\n' |
            sed 's/^\(.* d .*\) [0-9]* \([0-9.]* \)$/\1 \2/' | sort
        find . -mount -type f -print0 | sort -z | xargs -0 sha256sum)
}
"#;

#[track_caller]
fn updates(program: &str, script: &str) {
    if has(program) {
        pass_on(
            &shell("cat /data/hello /etc/conf; echo $V"),
            &format!("{IMAGES}{script}"),
        );
    }
}

#[test]
fn an_update_keeps_what_was_written_and_goes_back() {
    updates(
        "crun",
        r#"
        for map in '' '--idmap 0:100000:65536'; do
            lxcri_fs tag app:1 app
            lxcri_fs create one --image app --bundle /run/b1 $map -e MINE=1 --volume keep:/keep \
                >/dev/null
            root=b1/rootfs
            echo mine > $root/etc/mine; echo both > $root/etc/both; rm $root/etc/passwd
            mv $root/home $root/moved; chmod 600 $root/data/hello; ln $root/etc/mine $root/hard
            printf 'root:x:0:\napp:x:1001:\nextra:x:2000:app\nweb:x:33:other,app\nown:x:45:\n' \
                > $root/etc/group
            setfattr -n user.x -v y $root/moved; echo volume > store/volumes/keep/data/file
            jq '.mounts += [{"destination": "/mnt", "type": "tmpfs", "source": "tmpfs"}]' \
                b1/config.json > edited; cp edited b1/config.json
            tree $root > before; lxcri_fs update one > said
            grep -qx 'one is up to date' said || fail "$(cat said)"
            lxcri_fs tag app:2 app 2>err; grep -q 'one' err || fail "$(cat err)"
            lxcri_fs update one --dry-run > said; grep -q 'container  /etc/mine' said
            lxcri_fs update one --dry-run --json | jq -e '.result == "would-update" and
                ([.conflicts[].path] == ["/etc/both"]) and .carried_bytes > 0' >/dev/null
            tree $root | diff before - || fail 'a dry run changed it'
            ! lxcri_fs update one --on-conflict fail 2>err
            grep -q '/etc/both' err || fail "$(cat err)"
            tree $root | diff before - || fail 'a refused update changed it'

            lxcri_fs update one > said; grep -q 'conflict   /etc/both' said || fail "$(cat said)"
            [ "$(cat $root/etc/mine $root/etc/both $root/new $root/data/hello $root/etc/conf)" = \
                "$(printf 'mine\nboth\nnew\n2\n2')" ] || fail "$(find $root/etc)"
            [ ! -e $root/etc/passwd ] && [ ! -e $root/data/old ] && [ ! -e $root/home ]
            [ -d $root/moved/app ] && [ "$(getfattr --only-values -n user.x $root/moved)" = y ]
            [ "$(stat -c %a $root/data/hello)" = 600 ] && [ $root/etc/mine -ef $root/hard ]
            grep -q '^new:' $root/etc/group && grep -q '^own:' $root/etc/group
            [ "$(cat store/containers/one/lost+update/theirs/etc/both)" = two ]
            [ "$(cat store/volumes/keep/data/file)" = volume ]
            jq -e '(.process.env | index("V=2") and index("MINE=1")) and
                ([.mounts[].destination] | index("/mnt") and index("/keep"))' b1/config.json \
                >/dev/null || fail "$(cat b1/config.json)"
            [ "$(run b1 one)" = "$(printf '2\n2\n2')" ] || fail "$(run b1 one)"
            lxcri_fs containers | grep -q 'can go back to app' || fail "$(lxcri_fs containers)"
            ! lxcri_fs rm app:1 2>err; grep -q 'go back' err || fail "$(cat err)"

            echo since > $root/since; tree $root > after
            lxcri_fs rollback one | grep -q 'back to app'
            tree $root | diff before - || fail 'not as before'
            [ "$(run b1 one)" = "$(printf 'from the image\n1\n')" ] || fail "$(run b1 one)"
            # And forth again.
            lxcri_fs rollback one >/dev/null; tree $root | diff after - || fail 'not as after'
            lxcri_fs gc --rollbacks >/dev/null; ! lxcri_fs rollback one 2>err
            grep -q 'not been updated' err || fail "$(cat err)"
            ! ls store/containers/one | grep -e previous -e tmp
            lxcri_fs delete one; nothing_is_left
            lxcri_fs volumes --delete keep
        done
        lxcri_fs rm app:1 >/dev/null"#,
    );
}

#[test]
fn what_is_behind_is_listed_and_updated_together() {
    updates(
        "crun",
        r#"
        lxcri_fs tag app:1 app web; mkdir up
        lxcri_fs create a --image app --bundle /run/a >/dev/null
        lxcri_fs create b --image app --bundle /run/b --upper /run/up --auto-update >/dev/null
        lxcri_fs create c --image web --bundle /run/c >/dev/null
        lxcri_fs create m --image app --bundle /run/m --ephemeral >/dev/null
        lxcri_fs containers --outdated > out || fail 'none is behind'
        [ "$(wc -l < out)" = 1 ] || fail "$(cat out)"
        for c in a b c; do echo $c > $c/rootfs/own; done
        lxcri_fs tag app:2 app 2>/dev/null
        code=0; lxcri_fs containers --outdated --json > out 2>/dev/null || code=$?
        [ $code = 7 ] && [ "$(jq -r .name < out | tr '\n' ' ')" = 'a b m ' ] ||
            fail "$code $(cat out)"
        lxcri_fs update --all --filter auto=on > out; grep -q '^b: updated' out || fail "$(cat out)"
        [ "$(wc -l < out)" = 1 ] || fail "$(cat out)"
        [ "$(cat b/rootfs/new b/rootfs/own)" = "$(printf 'new\nb')" ]; [ -e up/previous ]
        lxcri_fs update --auto off b
        # One that cannot be updated does not keep the others from it.
        code=0; lxcri_fs update --all --json > out 2>err || code=$?
        [ $code = 1 ] || fail "$code"
        [ "$(jq -r '.name + " " + .result' < out | tr '\n' ,)" = \
            'a updated,b current,c current,m failed,' ] || fail "$(cat out)"
        grep -q 'writes to memory' err || fail "$(cat err)"
        [ "$(cat a/rootfs/new)" = new ]
        lxcri_fs tag app:2 web 2>/dev/null
        lxcri_fs update --all --filter image=web | grep -q '^c: updated'
        lxcri_fs delete a b c m; nothing_is_left"#,
    );
}

#[test]
fn a_running_container_is_not_updated_and_a_failed_update_leaves_it_mounted() {
    updates(
        "crun",
        r#"
        lxcri_fs tag app:1 app
        lxcri_fs create one --image app --bundle /run/b1 -- sleep 100 >/dev/null
        lxcri_fs tag app:2 app 2>/dev/null
        crun --cgroup-manager=disabled run -b b1 one & pid=$!
        for i in $(seq 100); do lxcri_fs containers | grep -q running && break; sleep 0.1; done
        code=0; lxcri_fs update one 2>err || code=$?
        [ $code = 6 ] && grep -q 'is running' err && grep -q 'its runtime' err || fail "$(cat err)"
        code=0; lxcri_fs update one --check true 2>err || code=$?; [ $code = 2 ] || fail "$code"
        lxcri_fs update one --dry-run | grep -q 'would get'
        crun kill one KILL; wait $pid || :
        ! lxcri_fs update one --image /run/none 2>/dev/null
        [ -x b1/rootfs/bin/true ] || fail 'not mounted any more'
        lxcri_fs update one >/dev/null; [ -e b1/rootfs/new ]
        lxcri_fs clone one two >/dev/null; ! lxcri_fs rollback two 2>/dev/null
        lxcri_fs update two --image app:1 >/dev/null; [ ! -e two/rootfs/new ]
        [ "$(jq -r .hostname two/config.json)" = two ]
        lxcri_fs delete one two; nothing_is_left"#,
    );
}

/// Whenever it is killed, the next command finds the old container or the new one.
#[test]
fn a_killed_update_leaves_the_old_or_the_new_container() {
    if !has("strace") {
        return;
    }
    updates(
        "crun",
        r#"
        killed() {
            local calls=$1 n=$2; shift 2
            strace -o /dev/null -e trace=$calls -e inject=$calls:signal=KILL:when=$n "$PROGRAM" \
                "$@" >/dev/null 2>&1
        }
        lxcri_fs tag app:1 app
        lxcri_fs create one --image app:1 --bundle /run/b1 >/dev/null
        root=b1/rootfs; echo mine > $root/etc/mine; echo own > $root/etc/conf
        tree $root > old; cp b1/config.json old.json
        lxcri_fs update one --image app:2 >/dev/null; tree $root > new; cp b1/config.json new.json
        lxcri_fs rollback one >/dev/null; lxcri_fs gc --rollbacks >/dev/null
        # Which of both it is, as a whole.
        which() {
            for i in 1 2 3 4 5 6; do lxcri_fs mount --all 2>err && break; sleep 0.3; done
            tree $root > now
            for one in old new; do
                if cmp -s now $one; then
                    cmp -s b1/config.json $one.json || fail "the configuration is not $one"
                    case $(lxcri_fs inspect one --json | jq -r .image.name)$one in
                        app:1old | app:2new) echo $one; return ;;
                        *) fail "the record is not $one" ;;
                    esac
                fi
            done
            fail "neither, after $calls $n: $(cat err) $(diff old now; diff new now)"
        }
        rounds=0; found=
        for calls in renameat,renameat2:1 fsync,syncfs:2 unlinkat:7 umount2,move_mount:2 \
            mkdirat,mknodat:5 utimensat,fchmodat,linkat:5; do
            step=${calls#*:} calls=${calls%:*}
            for n in $(seq 1 $step 40); do
                if killed $calls $n update one --image app:2; then
                    [ "$(which)" = new ] || fail "it is not new after $calls $n"
                    lxcri_fs rollback one >/dev/null; break
                fi
                rounds=$((rounds + 1)); is=$(which); found="$found $is"
                # Whatever was left, the next one works.
                if [ $is = old ]; then
                    lxcri_fs update one --image app:2 >/dev/null || fail "$calls $n"
                    [ "$(which)" = new ]
                fi
                if killed $calls $n rollback one; then is=old; else is=$(which); fi
                found="$found $is"
                [ $is = old ] || lxcri_fs rollback one >/dev/null || fail "back after $calls $n"
                [ "$(which)" = old ] || fail "it is not old after $calls $n"
                ! ls -A store/containers/one | grep -e '^update$' -e tmp ||
                    fail "left after $calls $n: $(ls -A store/containers/one)"
            done
        done
        [ $rounds -ge 20 ] || fail "only $rounds kills"
        case $found in *old*new* | *new*old*) ;; *) fail "only $found" ;; esac
        lxcri_fs delete one; lxcri_fs gc >/dev/null; nothing_is_left"#,
    );
}

#[test]
fn lxc_is_stopped_and_started_again_and_a_failing_check_goes_back() {
    if !has("lxc-start") {
        return;
    }
    pass_on(
        &[],
        &format!(
            "{IMAGES}{}",
            r#"
        mkdir lxc; chmod 711 /run
        for map in '' '--idmap 0:100000:65536'; do
            lxcri_fs tag app:1 app 2>/dev/null
            lxcri_fs create s $map --image app --lxc --lxc-path /run/lxc -e A=b >/dev/null
            echo 'lxc.environment = OWN=1' >> lxc/s/config
            lxc-start -P /run/lxc -n s -d; lxc-wait -P /run/lxc -n s -s RUNNING -t 20
            inside() { lxc-attach -P /run/lxc -n s -- "$@" </dev/null; }
            inside sh -c 'echo mine > /mine'
            lxcri_fs tag app:2 app 2>/dev/null
            start=$(date +%s); code=0
            lxcri_fs update s --check 'cat /nothing' --check-timeout 2s 2>err || code=$?
            [ $code = 1 ] && [ $(($(date +%s) - start)) -lt 60 ] || fail "$code"
            grep -q 'did not succeed within 2 s' err && grep -q update-check.log err &&
                grep -q update.log err || fail "$(cat err)"
            grep -q nothing lxc/s/update-check.log
            lxc-wait -P /run/lxc -n s -s RUNNING -t 20
            inside sh -c '[ "$(cat /mine /data/hello)" = "$(printf "mine\nfrom the image")" ]'
            lxcri_fs update s --check '[ -e /new ]' >/dev/null || fail "$(lxcri_fs containers)"
            lxc-wait -P /run/lxc -n s -s RUNNING -t 20
            inside sh -c '[ "$(cat /mine /data/hello)" = "$(printf "mine\n2")" ]'
            grep -q '^lxc.environment = OWN=1' lxc/s/config || fail "$(cat lxc/s/config)"
            lxcri_fs rollback s >/dev/null; lxc-wait -P /run/lxc -n s -s RUNNING -t 20
            inside sh -c '[ ! -e /new ] && [ -e /mine ]'
            lxc-stop -P /run/lxc -n s -k; lxc-wait -P /run/lxc -n s -s STOPPED -t 20
            lxcri_fs delete s; rm -f lxc/s/update*; rmdir lxc/s 2>/dev/null || :; nothing_is_left
        done"#
        ),
    );
}
