//! A stored image never changes, and damage does not spread from one to another.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::{Store, on_both};
use crate::common::{Mounted, run, stderr};

on_both! {
    a_stored_image_is_never_written_to_under_any_name
    an_added_layer_makes_another_stored_image
    build_checks_the_image_that_exists
    damage_does_not_spread_and_a_build_repairs_it
    an_image_is_kept_for_an_upper_outside_the_store
}

fn an_image_is_kept_for_an_upper_outside_the_store(store: &Store) {
    store.build("file", "app");
    let digest = store.image("app")["id"].as_str().unwrap().to_owned();
    let (upper, mnt) = (store.dir.path().join("upper"), store.dir.path().join("mnt"));
    std::fs::create_dir(&mnt).unwrap();
    let write = |image: &str| {
        store.run(&["mount", image, "mnt", "--upper", "upper"]);
        let mounted = Mounted(mnt.clone());
        std::fs::write(mounted.0.join("written"), image).unwrap();
    };
    write("app");
    let said = store.fails(&["rm", "app"], 6);
    assert!(
        said.contains(upper.to_str().unwrap()) && said.contains("`lxcri-fs rm --force`"),
        "{said}"
    );
    // Nor is it garbage when it loses its name, for as long as the upper is there.
    store.build("other", "app");
    assert_eq!(store.run(&["gc", "--grace", "0s"]), "0 B (0 bytes) freed\n");
    store.fails(&["rm", &digest], 6);
    write(&digest);
    std::fs::remove_dir_all(&upper).unwrap();
    assert!(store.run(&["gc", "--grace", "0s"]).contains(&digest));
    assert_eq!(store.images().len(), 1);
    // The second one is removed all the same.
    write("app");
    store.fails(&["rm", "app"], 6);
    store.run(&["rm", "--force", "app"]);
    assert!(store.images().is_empty());
}

fn path_of(store: &Store, name: &str) -> PathBuf {
    store.json(&["info", "--json", name])["image"]
        .as_str()
        .unwrap()
        .into()
}

/// An upper with something written over the image at `path`.
fn upper(store: &Store, path: &Path) -> PathBuf {
    let (upper, mountpoint) = (store.dir.path().join("upper"), store.dir.path().join("mnt"));
    std::fs::create_dir_all(&mountpoint).unwrap();
    let mounted = Mounted::new(
        &["--upper", upper.to_str().unwrap(), path.to_str().unwrap()],
        &mountpoint,
    );
    std::fs::write(mounted.0.join("written"), "written").unwrap();
    upper
}

fn a_stored_image_is_never_written_to_under_any_name(store: &Store) {
    store.build("file", "app");
    let path = path_of(store, "app");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o444);
    let before = std::fs::read(&path).unwrap();
    let layer = store.source("layer", b"layer");
    let layer = layer.to_str().unwrap();
    let upper = upper(store, &path);
    let link = store.dir.path().join("link.bfc");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let mut names = vec![path.clone(), link];
    let hard = store.dir.path().join("hard.bfc");
    if std::fs::hard_link(&path, &hard).is_ok() {
        names.push(hard);
    }
    let elsewhere = format!("dir:{}", store.dir.path().join("other-store").display());
    for name in &names {
        // Also when another store is asked.
        for location in [&store.location, &elsewhere] {
            let output = store
                .command(&["append", name.to_str().unwrap(), layer])
                .env("LXCRI_FS_STORE", location)
                .output()
                .unwrap();
            let said = stderr(&output);
            assert!(
                output.status.code() == Some(6)
                    && said.contains("must not change")
                    && said.contains("-t NAME"),
                "{name:?}: {said}"
            );
        }
    }
    for args in [
        ["commit", upper.to_str().unwrap(), "--in-place"],
        ["append", "app", layer],
    ] {
        let said = store.fails(&args, 6);
        assert!(
            said.contains("must not change") && said.contains("-t NAME"),
            "{said}"
        );
    }
    let said = store.fails(&["append", "nonesuch", layer], 5);
    assert!(said.contains("no image nonesuch"), "{said}");
    let output = path.to_str().unwrap();
    store.fails(
        &["commit", upper.to_str().unwrap(), "-o", output, "--force"],
        6,
    );
    store.fails(&["build", layer, "-o", output, "--force"], 6);
    assert_eq!(std::fs::read(&path).unwrap(), before);
    store.run(&["verify", "app"]);
}

fn an_added_layer_makes_another_stored_image(store: &Store) {
    store.build("file", "app");
    let path = path_of(store, "app");
    let before = std::fs::read(&path).unwrap();
    let upper = upper(store, &path);
    store.run(&["commit", upper.to_str().unwrap(), "-t", "app:committed"]);
    assert_eq!(store.run(&["ls", "app:committed"]), "file\nwritten\n");
    let layer = store.source("layer", b"layer");
    store.run(&[
        "append",
        "app",
        layer.to_str().unwrap(),
        "-t",
        "app:appended",
    ]);
    assert_eq!(store.run(&["ls", "app:appended"]), "file\nlayer\n");
    store.run(&[
        "append",
        path.to_str().unwrap(),
        layer.to_str().unwrap(),
        "-t",
        "app:again",
    ]);
    assert_eq!(store.images().len(), 3);
    assert_eq!(
        (store.run(&["ls", "app"]), std::fs::read(&path).unwrap()),
        ("file\n".to_owned(), before)
    );
    store.run(&["verify", "--all"]);
}

/// Replaces an image by another one, as any other program could.
fn change(store: &Store, path: &Path) {
    let other = store.dir.path().join("other.bfc");
    run(&mut store.command(&[
        "build",
        store.source("other", b"other").to_str().unwrap(),
        "--force",
        "-o",
        other.to_str().unwrap(),
    ]));
    with_dataset_writable(store, path, || {
        std::fs::copy(&other, path).unwrap();
    });
}

fn with_dataset_writable(store: &Store, path: &Path, change: impl FnOnce()) {
    let dataset = store.location.strip_prefix("zfs:").map(|parent| {
        format!(
            "{parent}/images/{}",
            path.parent()
                .unwrap()
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
        )
    });
    let set = |value: &str| {
        if let Some(dataset) = &dataset {
            run(Command::new("zfs").args(["set", &format!("readonly={value}"), dataset]));
        }
    };
    set("off");
    change();
    set("on");
}

fn build_checks_the_image_that_exists(store: &Store) {
    let source = store.source("file", b"file");
    let (source, oci) = (source.to_str().unwrap(), store.dir.path().join("oci"));
    run(&mut store.command(&["build", source, "-o", "made.bfc"]));
    store.run(&["export", "made.bfc", "--oci", oci.to_str().unwrap()]);
    let oci = format!("oci:{}", oci.display());
    store.run(&["build", &oci, "-t", "app"]);
    assert!(
        store
            .run(&["build", &oci, "-t", "app"])
            .contains("already in the store")
    );
    change(store, &path_of(store, "app"));
    assert_eq!(store.run(&["ls", "app"]), "other\n");
    // It is not what it was, so it is not there.
    assert!(
        !store
            .run(&["build", &oci, "-t", "app"])
            .contains("already in the store")
    );
    assert_eq!(store.run(&["ls", "app"]), "file\n");
    store.run(&["verify", "app"]);
    assert_eq!(store.images().len(), 1);
}

fn damage_does_not_spread_and_a_build_repairs_it(store: &Store) {
    let mut random = vec![0_u8; 1_000_000];
    std::io::Read::read_exact(
        &mut std::fs::File::open("/dev/urandom").unwrap(),
        &mut random,
    )
    .unwrap();
    let base = store.source("random", &random);
    let mut layouts = Vec::new();
    for name in ["a", "b"] {
        let (layer, image, oci) = (
            store.source(name, name.as_bytes()),
            format!("{name}.bfc"),
            store.dir.path().join(format!("oci-{name}")),
        );
        run(&mut store.command(&[
            "build",
            base.to_str().unwrap(),
            "--layer",
            layer.to_str().unwrap(),
            "-o",
            &image,
        ]));
        store.run(&["export", &image, "--oci", oci.to_str().unwrap()]);
        layouts.push(format!("oci:{}", oci.display()));
    }
    store.run(&["build", &layouts[0], "-t", "app:a"]);
    let path = path_of(store, "app:a");
    store.damage(&path, &random[500_000..500_040]);
    store.fails(&["verify", "app:a"], 3);
    // Another image has the same base, and not its damage.
    store.run(&["build", &layouts[1], "-t", "app:b"]);
    store.run(&["verify", "app:b"]);
    // A layer on top of it would carry the damage on.
    let layer = store.source("top", b"top");
    store.fails(
        &["append", "app:a", layer.to_str().unwrap(), "-t", "app:top"],
        3,
    );
    assert!(
        store
            .images()
            .iter()
            .all(|image| image["references"][0] != "docker.io/library/app:top")
    );
    // Given as the base, its layers are read from the source instead, in the store and outside.
    let loose = store.dir.path().join("loose.bfc");
    std::fs::copy(&path, &loose).unwrap();
    for base in [path.to_str().unwrap(), loose.to_str().unwrap()] {
        store.run(&["build", &layouts[1], "--from", base, "-t", "app:from"]);
        store.run(&["verify", "app:from"]);
        store.run(&["build", &layouts[1], "--from", base, "-f", "-o", "from.bfc"]);
        store.run(&["verify", "from.bfc"]);
        store.run(&["rm", "app:from"]);
    }
    // Somebody goes on with the old one meanwhile.
    let open = std::fs::File::open(&path).unwrap();
    store.run(&["build", &layouts[0], "-t", "app:a"]);
    store.run(&["verify", "app:a"]);
    assert_eq!(path_of(store, "app:a"), path);
    assert_eq!(
        open.metadata().unwrap().len(),
        path.metadata().unwrap().len()
    );
    drop(open);
    // An image with the same contents under another name repairs it as well.
    store.damage(&path, &random[500_000..500_040]);
    store.run(&["build", &layouts[0], "-t", "app:again"]);
    store.run(&["verify", "app:a"]);
    store.run(&["rm", "app:again"]);
    // What is sound is shared again.
    store.run(&["rm", "app:b"]);
    store.run(&["build", &layouts[1], "-t", "app:b"]);
    assert_eq!(
        store
            .images()
            .iter()
            .filter(|image| !image["parent"].is_null())
            .count(),
        1
    );
    store.run(&["verify", "--all"]);
    for name in ["app:a", "app:b"] {
        store.run(&["rm", name]);
    }
    store.run(&["doctor"]);
}

/// `append` changes files outside a store; it first names the uppers that would no longer fit.
#[test]
fn append_names_uppers_that_it_would_orphan() {
    let store = Store::directory();
    let image = store.dir.path().join("loose.bfc");
    run(&mut store.command(&[
        "build",
        store.source("file", b"file").to_str().unwrap(),
        "-o",
        image.to_str().unwrap(),
    ]));
    let layer = store.source("layer", b"layer");
    let own = upper(&store, &image);
    let other = store.dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    {
        let other_upper = store.dir.path().join("other-upper");
        let _other = Mounted::new(
            &[
                "--upper",
                other_upper.to_str().unwrap(),
                image.to_str().unwrap(),
            ],
            &other,
        );
        for args in [
            vec!["commit", own.to_str().unwrap(), "--in-place"],
            vec!["append", image.to_str().unwrap(), layer.to_str().unwrap()],
        ] {
            let said = store.fails(&args, 6);
            assert!(
                said.contains(other_upper.to_str().unwrap()) && said.contains("--force"),
                "{said}"
            );
        }
        assert_eq!(store.run(&["ls", image.to_str().unwrap()]), "file\n");
    }
    let bundle = store.dir.path().join("b");
    store.run(&[
        "create",
        "c1",
        "--image",
        image.to_str().unwrap(),
        "--bundle",
        bundle.to_str().unwrap(),
        "--",
        "/bin/true",
    ]);
    let said = store.fails(
        &["append", image.to_str().unwrap(), layer.to_str().unwrap()],
        6,
    );
    assert!(said.contains("container c1"), "{said}");
    store.run(&["delete", "c1"]);
    store.run(&["commit", own.to_str().unwrap(), "--in-place"]);
    assert_eq!(
        store.run(&["ls", image.to_str().unwrap()]),
        "file\nwritten\n"
    );
}
