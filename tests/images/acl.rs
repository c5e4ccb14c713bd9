//! Access control lists of an image are enforced in every kind of mount, and cost images without
//! any nothing. Needs root.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::layer::{member, nodes, pax, refused, tar};
use crate::common::{Mounted, build_image, requests, run};
use rustix::fs::{XattrFlags, setxattr};

/// Tags of entries (linux/posix_acl.h).
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const NAMED_GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;
const READ_WRITE: u16 = 6;
const NOBODY_IN_PARTICULAR: u32 = u32::MAX;

/// In the source, the list forbids its owning group what the mode's bits allow, and allows a user
/// what they do not.
const GROUP: u32 = 4242;
const NAMED: u32 = 4243;

fn list() -> Vec<u8> {
    let entries = [
        (USER_OBJ, READ_WRITE, NOBODY_IN_PARTICULAR),
        (USER, READ_WRITE, NAMED),
        (GROUP_OBJ, 0, NOBODY_IN_PARTICULAR),
        (MASK, READ_WRITE, NOBODY_IN_PARTICULAR),
        (OTHER, 0, NOBODY_IN_PARTICULAR),
    ];
    attribute(&entries)
}

/// A list as the kernel has it in an attribute: version 2, then tag, rights and id of each entry.
fn attribute(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

struct Fixture {
    _temp: tempfile::TempDir,
    top: PathBuf,
}

impl Fixture {
    /// Runs a script where `root` is, and makes an image of it.
    fn new(script: &str, with_list: bool) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().canonicalize().unwrap();
        let common = "chmod 755 .; mkdir root m; chmod 755 root; echo secret > root/secret; chown \
                      0:4242 root/secret; chmod 660 root/secret";
        run(Command::new("bash")
            .args(["-euc", &format!("{common}; {script}")])
            .current_dir(&top));
        if with_list {
            setxattr(
                top.join("root/secret"),
                "system.posix_acl_access",
                &list(),
                XattrFlags::empty(),
            )
            .unwrap();
        }
        build_image(top.join("root"), &top.join("image.bfc"));
        Self { _temp: temp, top }
    }

    fn mount(&self, args: &[&str]) -> Mounted {
        let image = self.top.join("image.bfc");
        let all: Vec<&str> = args
            .iter()
            .copied()
            .chain([image.to_str().unwrap()])
            .collect();
        Mounted::new(&all, &self.top.join("m"))
    }
}

/// Whether a user of this group reads a file.
fn reads(uid: u32, gid: u32, path: &Path) -> bool {
    let mut command = Command::new("setpriv");
    command
        .args([
            format!("--reuid={uid}"),
            format!("--regid={gid}"),
            "--clear-groups".to_owned(),
        ])
        .arg("cat")
        .arg(path);
    command.output().unwrap().status.success()
}

/// More inodes with attributes than are listed in an image, and than are laid out in memory under
/// an upper.
const MANY: &str = "mkdir root/many; for i in $(seq 1100); do echo $i > root/many/$i; done; \
                    setfattr -n user.n -v 1 root/many/*";

#[test]
fn an_acl_holds_in_every_kind_of_mount() {
    for script in ["true", MANY] {
        let fixture = Fixture::new(script, true);
        let upper = fixture.top.join("upper");
        let upper = upper.to_str().unwrap();
        let forms: [&[&str]; 5] = [
            &[],
            &["--ephemeral"],
            &["--upper", upper],
            &["--ephemeral", "--idmap", "0:0:65536"],
            &["--idmap", "0:0:65536"],
        ];
        for form in forms {
            let _mounted = fixture.mount(form);
            for secret in [
                fixture.top.join("root/secret"),
                fixture.top.join("m/secret"),
            ] {
                let read = [
                    reads(4244, GROUP, &secret),
                    reads(NAMED, 9, &secret),
                    reads(4244, 9, &secret),
                    reads(0, 0, &secret),
                ];
                assert_eq!(
                    read,
                    [false, true, false, true],
                    "{script:.20} {form:?} {}",
                    secret.display()
                );
            }
        }
    }
}

#[test]
fn copy_up_keeps_an_acl_and_idmap_shifts_it() {
    let fixture = Fixture::new("true", true);
    let secret = fixture.top.join("m/secret");
    let mounted = fixture.mount(&["--ephemeral"]);
    std::fs::write(&secret, "changed").unwrap();
    assert_eq!(
        [reads(4244, GROUP, &secret), reads(NAMED, 9, &secret)],
        [false, true]
    );
    drop(mounted);
    let _mounted = fixture.mount(&["--ephemeral", "--idmap", "0:100000:65536"]);
    assert_eq!(
        [
            reads(104_244, 104_242, &secret),
            reads(104_243, 9, &secret),
            reads(NAMED, 9, &secret)
        ],
        [false, true, false]
    );
}

#[test]
fn an_image_without_acls_gets_no_requests_for_them() {
    // EROFS never asks the worker.
    const FUSE: &[&str] = &["--engine", "fuse"];
    // No attributes, and some that are no lists.
    for script in ["true", "setfattr -n user.n -v 1 root/secret"] {
        let fixture = Fixture::new(
            &format!(
                "{script}; for i in $(seq 50); do echo $i > root/$i; done; chmod 644 root/*; \
                 chmod 755 root"
            ),
            false,
        );
        let _mounted = fixture.mount(FUSE);
        for i in 1..=50 {
            assert!(reads(4244, 9, &fixture.top.join(format!("m/{i}"))));
        }
        assert_eq!(requests(&fixture.top.join("m"), "getxattr"), 0, "{script}");
    }
    // With one, each inode is asked for once, however often it is used; but the root each time,
    // which the kernel has made before it knows of lists.
    let fixture = Fixture::new(
        "for i in $(seq 50); do echo $i > root/$i; done; chmod 644 root/[0-9]*",
        true,
    );
    let _mounted = fixture.mount(FUSE);
    let asked = || {
        let before = requests(&fixture.top.join("m"), "getxattr");
        assert!((1..=50).all(|i| reads(4244, 9, &fixture.top.join(format!("m/{i}")))));
        requests(&fixture.top.join("m"), "getxattr") - before
    };
    let first = asked();
    assert!((50..=100).contains(&first), "{first}");
    // Other tests drop the caches now and then: once in a few times nobody does.
    assert!((0..30).any(|_| asked() <= 50));
}

/// GNU tar writes lists as text; the kernel has made the same values of them.
#[test]
fn access_control_lists_of_gnu_tar_are_read() {
    let script = "echo > f; mkdir d; setfacl -m u:1234:rwx,g:77:r f; setfacl -d -m u:1234:rx d; \
                  getfattr -d -m system.posix -e hex f d > ../values";
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let sh = |script: &str| {
        run(Command::new("bash")
            .args(["-euc", script])
            .current_dir(dir.path()))
    };
    sh(&format!("mkdir tree; cd tree; {script}"));
    sh(
        "tar -C tree --numeric-owner --acls --format=posix -cf out.tar .; \
        ! grep -qa SCHILY.xattr.system out.tar",
    );
    let found = nodes(&std::fs::read(dir.path().join("out.tar")).unwrap());
    let mut expected = Vec::new();
    let values = std::fs::read_to_string(dir.path().join("values")).unwrap();
    let mut path = "";
    for line in values.lines() {
        if let Some(name) = line.strip_prefix("# file: ") {
            path = name;
        } else if let Some((name, value)) = line.split_once("=0x") {
            expected.push((path, name, value));
        }
    }
    assert_eq!(expected.len(), 2, "{values}");
    for (path, name, value) in expected {
        let xattrs = &found[path.as_bytes()].0.attr.xattrs;
        let xattr = xattrs.iter().find(|x| x.name == name.as_bytes()).unwrap();
        let hex: String = xattr.value.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, value, "{path} {name}");
    }
}

#[test]
fn a_list_that_names_users_without_their_numbers_is_left_out() {
    let list = |text: &'static str| {
        let records = [("SCHILY.acl.access", text.as_bytes())];
        tar(vec![pax(b'x', &records), member(b"a", b'0', b"")])
    };
    let xattrs = |text| nodes(&list(text))[&b"a"[..]].0.attr.xattrs.len();
    assert_eq!(
        xattrs("user::rw-,user:joe:r--,group::r--,mask::r--,other::r--"),
        0
    );
    assert_eq!(
        xattrs("user::rw-,user:joe:r--:7,group::r--,mask::r--,other::r--"),
        1
    );
    refused(&list("user::rw-,what::r--"), "SCHILY.acl.access");
    // The mode of such a file has the mask in the place of the group's permissions.
    let text = b"user::rw-,user:joe:rw-,group::---,mask::rw-,other::---";
    let file = member(b"a", b'0', b"").with(100, b"0000660\0");
    let found = nodes(&tar(vec![pax(b'x', &[("SCHILY.acl.access", text)]), file]));
    assert_eq!(found[&b"a"[..]].0.attr.mode & 0o777, 0o600);
}

/// The kernel is asked about every order of entries, up to five of them.
#[test]
fn a_list_is_kept_if_the_kernel_takes_it() {
    let mut lists = vec![Vec::new()];
    for len in 0..5 {
        let shorter: Vec<_> = lists.iter().filter(|l| l.len() == len).cloned().collect();
        for tag in [USER_OBJ, USER, GROUP_OBJ, NAMED_GROUP, MASK, OTHER, 64] {
            lists.extend(shorter.iter().map(|list| [&list[..], &[tag]].concat()));
        }
    }
    let value = |list: &[u16]| {
        let entries = list.iter().map(|tag| match *tag {
            USER | NAMED_GROUP => (*tag, READ_WRITE, NAMED),
            tag => (tag, READ_WRITE, NOBODY_IN_PARTICULAR),
        });
        attribute(&entries.collect::<Vec<_>>())
    };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "").unwrap();
    let mut members = Vec::new();
    for (number, list) in lists.iter().enumerate() {
        members.push(pax(
            b'x',
            &[("SCHILY.xattr.system.posix_acl_access", &value(list))],
        ));
        members.push(member(format!("f{number}").as_bytes(), b'0', b""));
    }
    let found = nodes(&tar(members));
    let mut taken = 0;
    // The kernel takes an empty list as that there shall be none.
    for (number, list) in lists.iter().enumerate().skip(1) {
        let name = "system.posix_acl_access";
        let _ = rustix::fs::removexattr(&path, name);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let takes = setxattr(&path, name, &value(list), XattrFlags::empty());
        let attr = &found[format!("f{number}").as_bytes()].0.attr;
        let kept = attr
            .xattrs
            .iter()
            .any(|xattr| xattr.name == name.as_bytes());
        if takes.is_ok() {
            // It leaves out itself what the mode says as well.
            let mut buffer = [0_u8; 256];
            let has = rustix::fs::getxattr(&path, name, &mut buffer[..]).is_ok();
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!((kept, attr.mode & 0o777), (has, mode & 0o777), "{list:?}");
        }
        assert!(takes.is_ok() || !kept, "{list:?}: {takes:?}");
        taken += usize::from(takes.is_ok());
    }
    assert_eq!(taken, 4);
}

/// Kernels refuse them, so the file could not be used, or not be copied up.
#[test]
fn attributes_that_a_file_cannot_have_are_left_out() {
    let long = |entries: u32| {
        let mut list = vec![(USER_OBJ, 6, NOBODY_IN_PARTICULAR)];
        list.extend((0..entries).map(|id| (USER, 4, id)));
        for tag in [GROUP_OBJ, MASK, OTHER] {
            list.push((tag, 0, NOBODY_IN_PARTICULAR));
        }
        attribute(&list)
    };
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    for (kind, name, value, is_kept) in [
        (b'0', access, &list()[..], true),
        (b'5', default, &list(), true),
        (b'0', default, &list(), false),
        (b'2', access, &list(), false),
        (b'0', access, &long(507), true),
        (b'0', access, &long(508), false),
        (b'0', "user.a", b"", true),
        (b'5', "user.a", b"", true),
        (b'2', "user.a", b"", false),
        (b'6', "user.a", b"", false),
        (b'6', "trusted.a", b"", true),
        (b'2', "security.a", b"", true),
        (b'0', "security.capability", &capability, true),
        (b'0', "security.capability", &capability[1..], false),
        (b'0', "system.nfs4_acl", b"", false),
        (b'0', "com.apple.quarantine", b"", false),
    ] {
        let record = format!("SCHILY.xattr.{name}");
        let link: &[u8] = if kind == b'2' { b"target" } else { b"" };
        let file = member(b"a", kind, b"").with(157, link);
        let members = vec![pax(b'x', &[(&record, value)]), file];
        let kept = nodes(&tar(members))[&b"a"[..]].0.attr.xattrs.len();
        assert_eq!(kept == 1, is_kept, "{} {name}", char::from(kind));
    }
    // Without its list, a file's group has what the list gave it, not the mask.
    let bad = attribute(&[
        (USER_OBJ, 6, NOBODY_IN_PARTICULAR),
        (USER_OBJ, 6, NOBODY_IN_PARTICULAR),
        (GROUP_OBJ, 0, NOBODY_IN_PARTICULAR),
        (MASK, 7, NOBODY_IN_PARTICULAR),
        (OTHER, 0, NOBODY_IN_PARTICULAR),
    ]);
    let record = format!("SCHILY.xattr.{access}");
    let file = || member(b"a", b'0', b"").with(100, b"0000670\0");
    let mode = |records: &[(&str, &[u8])]| {
        let found = nodes(&tar(vec![pax(b'x', records), file()]));
        let attr = &found[&b"a"[..]].0.attr;
        (attr.mode & 0o777, attr.xattrs.len())
    };
    assert_eq!(mode(&[(&record, &bad)]), (0o600, 0));
    // As text, too, one that is too long for the kernel is left out, not refused.
    let users: String = (0..600).map(|id| format!("u:{id}:r--,")).collect();
    let text = format!("u::rw-,{users}g::---,m::r--,o::---");
    let long_text = ("SCHILY.acl.access", text.as_bytes());
    assert_eq!(mode(&[long_text]), (0o600, 0));
    // A list that is in order goes before one that is not, in whatever order they come.
    let good: (&str, &[u8]) = ("SCHILY.acl.access", b"u::rw-,u:1:r--,g::---,m::r--,o::---");
    assert_eq!(mode(&[(&record, &bad), good]), (0o640, 1));
    assert_eq!(mode(&[good, (&record, &bad)]), (0o640, 1));
    // No entries are no list.
    assert_eq!(mode(&[(&record, &attribute(&[]))]), (0o670, 0));
    // Mode and list say the same: what the list says.
    let open = ("SCHILY.acl.access", &b"u::rw-,g::---,o::---"[..]);
    assert_eq!(mode(&[open]), (0o600, 0));
}
