//! Volumes outlive what a container writes elsewhere, and begin with what the image has there.

use crate::containers::{has, pass_on, shell};

const CRUN: &str = r#"
run() { crun --cgroup-manager=disabled run -b "$1" "$2" || fail "$2"; }
"#;

/// An image that declares a volume where it has a file.
fn declares(script: &str) -> Vec<&str> {
    [&["--config.volume", "/data"], &shell(script)[..]].concat()
}

fn crun(config: &[&str], script: &str) {
    if has("crun") {
        pass_on(config, &format!("{CRUN}{script}"));
    }
}

#[test]
fn a_declared_volume_begins_with_the_images_files_and_is_no_part_of_a_commit() {
    crun(
        &declares("cat /data/hello; echo more >> /data/hello; echo x > /elsewhere"),
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b >/dev/null
        run b c > out; run b c >> out
        [ "$(grep -c '^more$' out)" = 1 ] || fail "$(cat out)"
        ! grep -q more b/rootfs/data/hello || fail 'written to the root file system'
        [ "$(lxcri_fs diff c)" = "$(printf 'A /elsewhere')" ] || fail "$(lxcri_fs diff c)"
        lxcri_fs inspect c --json | grep -q '"destination":"/data"'
        lxcri_fs containers --json | grep -q '"volumes":\["/data"\]'
        lxcri_fs delete --keep c
        grep -q more store/containers/c/volumes/data/hello
        lxcri_fs create c --image $IMAGE --bundle /run/b >/dev/null
        run b c > out; [ "$(grep -c '^more$' out)" = 2 ] || fail "$(cat out)"
        lxcri_fs delete c; nothing_is_left"#,
    );
}

#[test]
fn modes_owners_and_attributes_of_a_volume_are_the_images() {
    crun(
        &declares("stat -c %a.%u.%g /data; cat /data/sub/f; readlink /data/l"),
        r#"
        mkdir -p up; lxcri_fs mount $IMAGE /mnt --upper /run/up -o dev,suid
        mkdir /mnt/data/sub; echo f > /mnt/data/sub/f; ln -s sub/f /mnt/data/l
        ln /mnt/data/sub/f /mnt/data/hard; truncate -s 1G /mnt/data/hole
        chmod 2750 /mnt/data; chown 1000:1001 /mnt/data; setfattr -n user.x -v y /mnt/data
        lxcri_fs umount /mnt; lxcri_fs commit up -t changed 2>/dev/null >/dev/null
        for map in '' '--idmap 0:100000:65536'; do
            lxcri_fs create c $map --image changed --bundle /run/b >/dev/null
            run b c > out
            [ "$(head -3 out)" = "$(printf '2750.1000.1001\nf\nsub/f')" ] || fail "$(cat out)"
            v=store/containers/c/volumes/data
            [ "$(stat -c %h $v/hard)" = 2 ] && [ $v/hard -ef $v/sub/f ]
            [ "$(getfattr --only-values -n user.x $v)" = y ]
            [ "$(stat -c %b $v/hole)" -lt 100 ] || fail "$(stat $v/hole)"
            lxcri_fs delete c
        done
        nothing_is_left"#,
    );
}

#[test]
fn volumes_of_the_store_are_shared_and_stay() {
    crun(
        &shell("echo $0 >> /srv/n/log; cat /srv/n/log; echo x > /host/x"),
        r#"
        mkdir host; echo from-host > host/f
        lxcri_fs create one --image $IMAGE --bundle /run/b1 --volume logs:/srv/n \
            --volume ./host:/host:ro >/dev/null
        lxcri_fs create two --image $IMAGE --bundle /run/b2 --volume logs:/srv/n \
            --volume /host >/dev/null
        ! crun --cgroup-manager=disabled run -b b1 one 2>err; run b2 two > out
        grep -q 'Read-only file system' err || fail "$(cat err)"
        [ "$(wc -l < store/volumes/logs/data/log)" = 2 ]; [ ! -e host/x ]
        lxcri_fs volumes --json > json
        [ "$(jq -c '[.name, .containers, .bytes > 0]' json)" = '["logs",["one","two"],true]' ] ||
            fail "$(cat json)"
        code=0; lxcri_fs volumes --delete logs 2>err || code=$?
        [ $code = 6 ] && grep -q 'container one, container two' err || fail "$code $(cat err)"
        lxcri_fs delete one two; [ "$(lxcri_fs volumes -q)" = logs ]
        lxcri_fs volumes --delete logs; [ -z "$(lxcri_fs volumes -q)" ]
        code=0; lxcri_fs volumes --delete logs 2>err || code=$?; [ $code = 5 ]
        nothing_is_left"#,
    );
}

#[test]
fn volumes_that_cannot_be_are_refused_and_leave_nothing() {
    crun(
        &shell("true"),
        r#"
        refused() {
            code=0; lxcri_fs create c --image $IMAGE --bundle /run/b --volume "$2" 2>err || code=$?
            [ $code = $1 ] && grep -q "$3" err || fail "$2: $code $(cat err)"
            [ -z "$(lxcri_fs volumes -q)" ] || fail "$2 left $(lxcri_fs volumes -q)"
            nothing_is_left
        }
        refused 1 new:/proc/x 'would hide files'
        refused 1 new:/ 'would hide files'
        refused 1 new:/etc/passwd 'Not a directory'
        refused 5 /not/there:/x 'finding the volume'
        refused 2 a:b 'not an absolute path'
        refused 2 'a b:/x' 'neither the name of a volume'
        refused 2 /x:/y:z 'SOURCE:DESTINATION'"#,
    );
}

/// What an image has in place of a volume's directory leads nowhere but into the image.
#[test]
fn a_symlink_in_the_image_does_not_make_a_volume_of_the_hosts_files() {
    crun(
        &shell("cat /v/*"),
        r#"
        mkdir up; echo secret > /run/secret
        lxcri_fs mount $IMAGE /mnt --upper /run/up; ln -s /run /mnt/v; mkdir /mnt/run
        echo inside > /mnt/run/inside
        lxcri_fs umount /mnt; lxcri_fs commit up -t links >/dev/null 2>&1
        lxcri_fs create c --image links --bundle /run/b --volume /v >/dev/null
        [ "$(run b c)" = inside ] || fail "$(run b c)"
        [ "$(ls store/containers/c/volumes/*)" = inside ]
        lxcri_fs delete c; nothing_is_left"#,
    );
}

#[test]
fn what_is_in_memory_needs_no_volume() {
    crun(
        &declares("cat /data/hello"),
        r#"
        lxcri_fs create c --image $IMAGE --bundle /run/b --ephemeral >/dev/null
        run b c | grep -q 'from the image'; [ ! -e store/containers/c/volumes ]
        lxcri_fs delete c
        lxcri_fs create c --image $IMAGE --bundle /run/b --read-only >/dev/null
        run b c | grep -q 'from the image'; [ -e store/containers/c/volumes/data/hello ]
        lxcri_fs delete c; nothing_is_left"#,
    );
}

#[test]
fn lxc_mounts_volumes_also_in_user_namespaces() {
    if !has("lxc-start") {
        return;
    }
    pass_on(
        &declares("cat /data/hello /n/f > /out; echo w > /data/w; echo w > /n/w; echo w > /host/w"),
        r#"
        mkdir lxc 'ho st'; chmod 711 /run; chmod 777 'ho st'
        for map in '' '--idmap 0:100000:65536'; do
            n=n${map:+shifted}
            lxcri_fs create c $map --image $IMAGE --lxc --lxc-path /run/lxc --volume "$n:/n" \
                --volume "/run/ho st:/host" --volume /dev/null:/null >/dev/null
            echo named > store/volumes/$n/data/f
            lxc-start -P /run/lxc -n c -F -l INFO -o c.log > log 2>&1 || fail "$(tail -5 c.log)"
            out=store/containers/c/upper/out
            grep -q 'from the image' $out && grep -q named $out || fail "$(cat $out)"
            [ -e store/containers/c/volumes/data/w ] && [ -e 'ho st/w' ] || fail "$(ls 'ho st')"
            [ -e store/volumes/$n/data/w ] || fail 'nothing written to the volume'
            rm -f 'ho st/w'; lxcri_fs delete c
        done
        lxcri_fs volumes --delete n nshifted; nothing_is_left"#,
    );
}

/// With another map, files of the host's root would be in reach of the container's users on the
/// host.
#[test]
fn a_volume_has_one_map_of_ids_and_no_device_nodes() {
    crun(
        &declares("true"),
        r#"
        mkdir up; lxcri_fs mount $IMAGE /mnt --upper /run/up -o dev,suid
        cp -p /bin/busybox /mnt/data/suid; chmod 4755 /mnt/data/suid; mknod /mnt/data/zero c 1 5
        lxcri_fs umount /mnt; lxcri_fs commit up -t nodes >/dev/null 2>&1
        lxcri_fs create root --image nodes --bundle /run/b0 --volume of-root:/data >/dev/null
        lxcri_fs create one --image nodes --bundle /run/b1 --idmap 0:100000:65536 \
            --volume shifted:/data >/dev/null
        [ "$(stat -c '%U %a' store/volumes/of-root)" = 'root 700' ]
        [ "$(stat -c %u store/volumes/shifted/data/suid)" = 100000 ]
        [ ! -e store/volumes/of-root/data/zero ] && [ ! -e store/volumes/shifted/data/zero ]
        for of in of-root:0:100000:65536 shifted:0:200000:65536 shifted:; do
            map=${of#*:}; code=0
            lxcri_fs create two --image nodes --bundle /run/b2 ${map:+--idmap $map} \
                --volume ${of%%:*}:/data 2>err || code=$?
            [ $code = 1 ] && grep -q 'with the map of ids' err || fail "$of: $code $(cat err)"
            [ ! -e store/containers/two ]
        done
        [ "$(stat -c '%U %a' store/volumes/of-root)" = 'root 700' ]
        lxcri_fs create two --image nodes --bundle /run/b2 --idmap 0:100000:65536 \
            --volume shifted:/data >/dev/null
        lxcri_fs delete root one two; lxcri_fs volumes --delete of-root shifted; nothing_is_left"#,
    );
}

#[test]
fn a_volume_in_use_by_a_mount_is_not_deleted_and_names_do_not_collide() {
    crun(
        &shell("true"),
        r#"
        umask 077
        lxcri_fs create c --image $IMAGE --bundle /run/b --volume v:/v --volume /a.unfinished \
            >/dev/null
        [ "$(stat -c %a store/volumes store/containers/c/volumes | sort -u)" = 711 ] ||
            fail "$(stat -c %a store/volumes store/containers/c/volumes)"
        echo p > store/containers/c/volumes/a.unfinished/f; lxcri_fs delete c --keep
        lxcri_fs create c --image $IMAGE --bundle /run/b --volume /a --volume /a.unfinished \
            >/dev/null
        [ "$(cat store/containers/c/volumes/a.unfinished/f)" = p ]
        mkdir store/volumes/v/data/m; mount -t tmpfs none store/volumes/v/data/m
        code=0; lxcri_fs volumes --delete v 2>err || code=$?
        [ $code = 6 ] && [ "$(lxcri_fs volumes -q)" = v ] || fail "$code $(cat err)"
        umount store/volumes/v/data/m; mkdir store/volumes/_w00; : > store/volumes/stray
        [ "$(lxcri_fs volumes -q)" = v ]; lxcri_fs volumes >/dev/null
        lxcri_fs volumes --delete v; [ "$(ls store/volumes)" = stray ]
        lxcri_fs delete c; nothing_is_left"#,
    );
}
