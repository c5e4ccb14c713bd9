//! An upper moves to another image, and shows everything that was written as before.

use std::path::Path;

use super::common::{assert_same_tree, build_image, hard_links_part, lxcri_fs, run, stderr, tree};
use super::{Fixture, sh};

/// Builds `new.bfc`, which is the image with the changes of a script.
fn new_image(fixture: &Fixture, script: &str) -> String {
    sh(fixture.dir.path(), "cp -a root next");
    sh(&fixture.path("next"), script);
    let image = fixture.path("new.bfc");
    build_image(fixture.path("next"), &image);
    image.to_str().unwrap().to_owned()
}

fn rebase(fixture: &Fixture, to: &str, more: &[&str]) -> std::process::Output {
    let mut command = lxcri_fs();
    command.args(["rebase", &fixture.upper("upper"), "--from"]);
    command.arg(&fixture.image).args(["--to", to]).args(more);
    command.output().unwrap()
}

/// Everything that can be written to an upper, as far as the image stays away from it.
const CHANGES: &str = r"
    rm dir/link; mv dir moved; mkdir dir; echo own > dir/own
    rm -r home; echo changed > file; chmod 700 large; chown 7:8 bin/cap
    mkdir -p new/$'\xff\xfe' new/empty; echo x > new/x; ln new/x new/$'\xff\xfe'/hard
    ln -s ../nowhere new/link; mkfifo new/fifo; mknod new/null c 1 3; truncate -s 1G new/hole
    printf x | dd of=new/hole bs=1 seek=500000000 conv=notrunc status=none
    cp bin/suid new/suid; chmod 4755 new/suid; setfacl -m u:5:r,d:u:6:rwx new/empty
    setfacl -m u:5:r new/x; setfattr -n user.x -v y new; cp -a bin/cap new/cap
    touch -d '2001-02-03 04:05:06.123456789' new/x new";

#[test]
fn all_that_was_written_is_there_and_so_is_what_the_image_brings() {
    for options in [&[][..], &["--idmap", "0:100000:65536"]] {
        let fixture = Fixture::new();
        let upper = fixture.upper("upper");
        let args = [&["--upper", &upper, "-o", "suid,dev"][..], options].concat();
        let before = {
            let _mounted = fixture.mount(&args, "merged");
            sh(&fixture.path("merged"), CHANGES);
            let refused = rebase(&fixture, fixture.image.to_str().unwrap(), &[]);
            assert_eq!(refused.status.code(), Some(6), "{}", stderr(&refused));
            tree(&fixture.path("merged"))
        };
        // To an image with the same tree, which is another image.
        let same = new_image(&fixture, "echo x > added");
        let dry = rebase(&fixture, &same, &["--dry-run", "--json"]);
        assert!(dry.status.success(), "{}", stderr(&dry));
        let done = rebase(&fixture, &same, &[]);
        assert!(done.status.success(), "{}", stderr(&done));
        let image = Path::new(&same);
        let mut all = vec![image.to_str().unwrap()];
        all.extend(&args);
        {
            let _mounted = super::Mounted::new(&all, &fixture.path("merged"));
            let merged = fixture.path("merged");
            assert_eq!(sh(&merged, "cat added"), "x\n");
            sh(
                &merged,
                "[ $(stat -c %b new/hole) -lt 1000 ]; [ new/x -ef new/$'\\xff\\xfe'/hard ]",
            );
            // It is the image's, and everything else is as it was.
            let mut now = tree(&merged);
            now.remove(&b"added"[..]);
            // The image's root is younger.
            let root = now.get_mut(&b""[..]).unwrap();
            root.mtime = before[&b""[..]].mtime;
            assert_same_tree(&before, &now);
        }
        run(lxcri_fs().args(["rollback", &upper]));
        let _mounted = fixture.mount(&args, "merged");
        assert!(!fixture.path("merged/added").exists());
        assert_same_tree(&before, &tree(&fixture.path("merged")));
    }
}

#[test]
fn what_loses_a_conflict_is_kept_beside_the_upper() {
    for (policy, file, lost, home) in [
        ("mine", "mine\n", "theirs", false),
        ("theirs", "theirs\n", "mine", true),
    ] {
        let fixture = Fixture::new();
        let upper = fixture.upper("upper");
        {
            let _mounted = fixture.mount(&["--upper", &upper], "merged");
            sh(
                &fixture.path("merged"),
                "echo mine > file; rm -r dir; echo x > dir; chmod 700 large; rm bin/suid",
            );
        }
        let script = "echo theirs > file; rm dir/link; echo y > dir/new; chmod 711 large
            echo z > bin/suid; chmod 755 bin/suid";
        let to = new_image(&fixture, script);
        assert!(
            !rebase(&fixture, &to, &["--on-conflict", "fail"])
                .status
                .success()
        );
        let output = rebase(&fixture, &to, &["--on-conflict", policy, "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let reasons = said["conflicts"].as_array().unwrap().iter();
        let reasons: Vec<_> = reasons
            .map(|c| (c["path"].clone(), c["reason"].clone()))
            .collect();
        let expected = [
            ("/bin/suid", "deleted-by-mine"),
            ("/dir", "kind"),
            ("/file", "content"),
            ("/large", "attributes"),
        ];
        let expected = expected.map(|(path, reason)| (path.into(), reason.into()));
        assert_eq!(reasons, expected, "{said}");
        let kept = fixture.path(&format!("upper/lost+update/{lost}/file"));
        assert_eq!(std::fs::read_to_string(kept).unwrap(), format!("{lost}\n"));
        let _mounted = super::Mounted::new(&[&to, "--upper", &upper], &fixture.path("merged"));
        let merged = fixture.path("merged");
        assert_eq!(std::fs::read_to_string(merged.join("file")).unwrap(), file);
        assert_eq!(merged.join("dir").is_dir(), home);
        assert_eq!(merged.join("bin/suid").exists(), home);
        assert_eq!(
            sh(&merged, "stat -c %a large"),
            if home { "711\n" } else { "700\n" }
        );
    }
}

#[test]
fn uppers_that_cannot_move_are_refused_and_stay() {
    let fixture = Fixture::new();
    let to = new_image(&fixture, "echo x > added");
    let several = fixture.upper("several");
    {
        let image = fixture.image.to_str().unwrap();
        std::fs::create_dir_all(fixture.path("merged")).unwrap();
        let args = [image, &to, "--upper", &several];
        let _mounted = super::Mounted::new(&args, &fixture.path("merged"));
        sh(&fixture.path("merged"), "echo x > new");
    }
    let mut command = lxcri_fs();
    command
        .args(["rebase", &several, "--from"])
        .arg(&fixture.image);
    let refused = command.args(["--to", &to]).output().unwrap();
    assert!(
        stderr(&refused).contains("2 images at once"),
        "{}",
        stderr(&refused)
    );
    // There is no room for what was written a second time.
    let disk = fixture.path("disk");
    std::fs::create_dir(&disk).unwrap();
    sh(&disk, "mount -t tmpfs -o size=20m tmpfs .");
    let upper = disk.join("upper");
    {
        let _mounted = fixture.mount(&["--upper", upper.to_str().unwrap()], "merged");
        sh(&fixture.path("merged"), "head -c 12000000 /dev/zero > big");
    }
    let mut command = lxcri_fs();
    command
        .arg("rebase")
        .arg(&upper)
        .arg("--from")
        .arg(&fixture.image);
    let refused = command.args(["--to", &to]).output().unwrap();
    assert!(
        stderr(&refused).contains("of free space"),
        "{}",
        stderr(&refused)
    );
    let left = sh(&upper, "ls -A");
    sh(fixture.dir.path(), "umount disk");
    assert_eq!(left, "lxcri-fs.json\nupper\nwork\n");
}

/// As an encrypted one, and back.
#[test]
fn an_upper_moves_between_encrypted_images() {
    let fixture = Fixture::new();
    sh(
        fixture.dir.path(),
        "echo secret > password; cp -a root next; echo x > next/added",
    );
    let at = |name: &str| fixture.path(name).to_str().unwrap().to_owned();
    let password = at("password");
    for (source, image) in [("root", "one.bfc"), ("next", "two.bfc")] {
        let args = [
            "build",
            &at(source),
            "-o",
            &at(image),
            "--password-file",
            &password,
        ];
        run(lxcri_fs().args(args));
    }
    std::fs::create_dir(fixture.path("merged")).unwrap();
    let (upper, merged) = (at("upper"), fixture.path("merged"));
    let mount = |image: &str| {
        let args = [&at(image), "--password-file", &password, "--upper", &upper];
        super::Mounted::new(&args, &merged)
    };
    {
        let _mounted = mount("one.bfc");
        sh(&merged, "echo mine > file; mv dir moved");
    }
    let args = [
        "rebase",
        &upper,
        "--from",
        &at("one.bfc"),
        "--to",
        &at("two.bfc"),
    ];
    let refused = lxcri_fs().args(args).output().unwrap();
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
    run(lxcri_fs().args(args).args(["--password-file", &password]));
    let _mounted = mount("two.bfc");
    // The link is another name of the file that was written to.
    let link = if hard_links_part() { "text" } else { "mine" };
    assert_eq!(
        sh(&merged, "cat added file moved/link"),
        format!("x\nmine\n{link}\n")
    );
}

#[test]
fn no_length_of_a_path_keeps_an_upper_from_being_moved() {
    let fixture = Fixture::new();
    let to = new_image(&fixture, "echo x > added");
    let upper = fixture.upper("upper");
    let deep = |script: &str| {
        // Longer than PATH_MAX.
        let step = "n=$(printf '%0100d' 0); for i in $(seq 60); do mkdir -p $n; cd $n; done";
        sh(&fixture.path("merged"), &format!("{step}; {script}"))
    };
    {
        let _mounted = fixture.mount(&["--upper", &upper], "merged");
        deep("echo deep > a; ln a b");
    }
    let done = rebase(&fixture, &to, &[]);
    assert!(done.status.success(), "{}", stderr(&done));
    let _mounted = super::Mounted::new(&[&to, "--upper", &upper], &fixture.path("merged"));
    assert_eq!(deep("[ a -ef b ]; cat a"), "deep\n");
}
