//! A clone of a container is a container: its own name, configuration and files.

use crate::containers::{has, pass, pass_on, shell};

const CRUN: &str = r#"
run() { crun --cgroup-manager=disabled run -b "$1" "$2" || fail "$2"; }
"#;

#[test]
fn a_clone_has_what_was_written_and_goes_its_own_way() {
    if !has("crun") {
        return;
    }
    pass_on(
        &[
            &["--config.volume", "/data"],
            &shell("hostname; cat /written /data/hello")[..],
        ]
        .concat(),
        &format!(
            r#"{CRUN}
        lxcri_fs create one --image $IMAGE --bundle /run/b1 -e A=b --volume shared:/s >/dev/null
        root=b1/rootfs
        echo one > $root/written; rm $root/etc/passwd; mkdir $root/d; ln $root/written $root/d/hard
        setfattr -n user.x -v y $root/d; truncate -s 1G $root/d/hole; mkfifo $root/d/p
        chown 7:8 $root/d/p; chmod 4755 $root/d/p; mv $root/data $root/moved; mkdir $root/data
        echo volume > store/containers/one/volumes/data/hello
        [ "$(lxcri_fs clone one two --dir /run/b2)" = /run/b2 ]
        [ "$(run b2 two)" = "$(printf 'two\none\nvolume')" ] || fail "$(run b2 two)"
        diff <(lxcri_fs diff one) <(lxcri_fs diff two)
        tree() {{
            (cd $1/rootfs; find . -mount -printf '%p %y %m %u %g %s %n %T@ %l\n' | sort
                find . -mount -type f -links +1 -printf '%f %i\n' | cut -d' ' -f1 | sort)
        }}
        # Their times and sizes are those of what runtimes have made since.
        diff <(tree b1 | grep -v -e '^\. ' -e '^./\(dev\|proc\|sys\|s\) ') \
            <(tree b2 | grep -v -e '^\. ' -e '^./\(dev\|proc\|sys\|s\) ')
        [ b2/rootfs/written -ef b2/rootfs/d/hard ]
        [ "$(getfattr --only-values -n user.x b2/rootfs/d)" = y ]
        [ "$(stat -c %b store/containers/two/upper/d/hole)" -lt 100 ]
        # Only names and paths differ.
        renamed='s,/run/b1,/run/b2,; s,"one",,; s,containers/one,containers/two,'
        diff <(sed "$renamed" b1/config.json) <(sed 's,"two",,' b2/config.json)
        echo more >> b2/rootfs/written; [ "$(cat b1/rootfs/written)" = one ]
        [ "$(lxcri_fs volumes --json | jq -c .containers)" = '["one","two"]' ]
        lxcri_fs delete one; [ "$(run b2 again | head -1)" = two ]
        lxcri_fs clone two three --hostname h; [ "$(run three three | head -1)" = h ]
        lxcri_fs delete two three; nothing_is_left"#
        ),
    );
}

#[test]
fn clones_that_cannot_be_are_refused_and_leave_nothing() {
    if !has("crun") {
        return;
    }
    pass_on(
        &shell("sleep 100"),
        r#"
        refused() {
            code=$1; said=$2; shift 2; found=0; lxcri_fs clone "$@" 2>err || found=$?
            [ $found = $code ] && grep -q "$said" err || fail "$*: $found $(cat err)"
            [ "$(lxcri_fs containers -q)" = "$before" ] || fail "$* left $(lxcri_fs containers)"
        }
        lxcri_fs create one --image $IMAGE --bundle /run/b1 >/dev/null
        lxcri_fs create two --image $IMAGE --bundle /run/b2 >/dev/null
        before=$(lxcri_fs containers -q)
        refused 1 'over itself' one one
        refused 1 'exists already' one two
        refused 5 'no container none' none new
        refused 5 'no snapshot before' one@before new
        refused 2 'name of a container' one /run/new
        refused 2 'a new dataset' one new --quota 1G
        refused 1 'is not empty' one new --dir /run/b2
        crun --cgroup-manager=disabled run -b b1 one & pid=$!
        for i in $(seq 100); do lxcri_fs containers | grep -q running && break; sleep 0.1; done
        refused 6 'being written to' one new
        crun kill one KILL; wait $pid || :
        lxcri_fs delete one two; nothing_is_left"#,
    );
}

/// What a killed clone has left is removed by the next one.
#[test]
fn a_killed_clone_leaves_nothing_that_stays() {
    let temp = tempfile::tempdir().unwrap();
    let image = crate::containers::image(temp.path(), &shell("cat /written"));
    if !has("crun") {
        return;
    }
    pass(
        &image,
        &format!(
            r#"{CRUN}
        lxcri_fs create one --image $IMAGE --bundle /run/b1 >/dev/null
        echo all > b1/rootfs/written
        for i in $(seq 300); do : > b1/rootfs/file$i; done
        for ms in 005 010 020 030 040 060 080 100 150; do
            timeout -s KILL 0.$ms "$PROGRAM" clone one two >/dev/null 2>&1 || :
        done
        if lxcri_fs containers -q | grep -qx two && [ -z "$(lxcri_fs clone one two 2>&1 >/dev/null |
            grep -v 'exists already')" ]; then :; fi
        [ "$(run two two)" = all ] && [ "$(ls two/rootfs | grep -c file)" = 300 ]
        lxcri_fs delete one two; nothing_is_left"#
        ),
    );
}

#[test]
fn lxc_starts_a_clone() {
    if !has("lxc-start") {
        return;
    }
    pass_on(
        &shell("{ hostname; cat /written; } > /out"),
        r#"
        mkdir lxc; chmod 711 /run
        printf 'lxc.net.0.type = veth\nlxc.net.0.hwaddr = 00:16:3e:xx:xx:xx\n' > addresses
        for map in '' '--idmap 0:100000:65536'; do
            lxcri_fs create a $map --image $IMAGE --lxc --lxc-path /run/lxc --include addresses \
                >/dev/null
            cat addresses >> lxc/a/config; lxcri_fs clone a b >/dev/null
            [ "$(grep -h hwaddr lxc/a/config lxc/b/config | sort -u | wc -l)" = 2 ] ||
                fail 'one address for two'
            lxcri_fs delete a b
            lxcri_fs create one $map --image $IMAGE --lxc --lxc-path /run/lxc >/dev/null
            echo w > lxc/one/rootfs/written; lxcri_fs clone one two >/dev/null
            lxcri_fs umount lxc/one/rootfs
            for c in one two; do
                lxc-start -P /run/lxc -n $c -F -l INFO -o $c.log > log 2>&1 ||
                    fail "$(tail -5 $c.log)"
                out=store/containers/$c/upper/out
                [ "$(cat $out)" = "$(printf "$c\nw")" ] || fail "$c: $(cat $out)"
            done
            ! grep -q one lxc/two/config || fail "$(cat lxc/two/config)"
            lxcri_fs delete one two
        done
        nothing_is_left"#,
    );
}

/// Wherever the original writes, its own volumes come along, and nothing else of the host.
#[test]
fn own_volumes_are_cloned_wherever_the_container_writes() {
    if !has("crun") {
        return;
    }
    pass_on(
        &shell("cat /own/x /written"),
        &format!(
            r#"{CRUN}
        mkdir store; ln -s store link; export LXCRI_FS_STORE=dir:/run/link
        lxcri_fs create elsewhere --image $IMAGE --bundle /run/e --upper /run/up --volume /own \
            --volume /run/e-data:/e 2>err && fail 'a volume that is not there'
        mkdir 'e data' up-volumes
        lxcri_fs create elsewhere --image $IMAGE --bundle /run/e --upper /run/up --volume /own \
            --volume '/run/e data:/e' >/dev/null
        lxcri_fs create memory --image $IMAGE --bundle /run/m --ephemeral --volume /own >/dev/null
        lxcri_fs create plain --image $IMAGE --bundle /run/p --volume /own --volume n:/n >/dev/null
        mkdir up/volumes; echo foreign > up/volumes/f
        export LXCRI_FS_STORE=dir:/run/store
        for c in elsewhere memory plain; do
            echo $c > store/containers/$c/volumes/own/x
            lxcri_fs inspect $c --json | jq -r .root > root
            echo w > $(cat root)/written
            lxcri_fs clone $c of-$c >/dev/null
            [ "$(ls store/containers/of-$c/volumes)" = own ] ||
                fail "$(ls store/containers/of-$c/*)"
            [ $c != memory ] || echo w > of-$c/rootfs/written
            [ "$(run of-$c of-$c)" = "$(printf "$c\nw")" ] || fail "$c: $(run of-$c of-$c)"
            echo own >> store/containers/of-$c/volumes/own/x
            [ "$(cat store/containers/$c/volumes/own/x)" = $c ]
            ! grep -q "containers/$c/" of-$c/config.json || fail "$(cat of-$c/config.json)"
        done
        grep -q '"/run/e data"' of-elsewhere/config.json
        grep -q '"/run/store/volumes/n/data"' of-plain/config.json
        lxcri_fs delete $(lxcri_fs containers -q); nothing_is_left"#
        ),
    );
}

/// Hard links and directories deeper than a path can name.
#[test]
fn no_depth_keeps_a_container_from_being_cloned() {
    if !has("crun") {
        return;
    }
    pass_on(
        &shell("true"),
        r#"
        lxcri_fs create one --image $IMAGE --bundle /run/one >/dev/null
        # A shell would look up the whole path at every step.
        python3 -c 'if 1:
            import os
            os.chdir("one/rootfs")
            for _ in range(1200): os.mkdir("dddd"); os.chdir("dddd")
            open("a", "w").write("x"); os.link("a", "b")'
        lxcri_fs clone one two >/dev/null
        python3 -c 'if 1:
            import os
            os.chdir("two/rootfs")
            for _ in range(1200): os.chdir("dddd")
            assert os.path.samefile("a", "b") and open("a").read() == "x"'
        lxcri_fs delete one two; nothing_is_left"#,
    );
}
