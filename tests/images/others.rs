//! Images as other programs write them, read as those read them.

use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::common::{lxcri_fs, run};

use super::sources::{Bench, Layout, named, sh};

/// A directory with an image's configuration and layer, and what they are called.
struct Parts {
    bench: Bench,
    config: String,
    layer: String,
}

impl Parts {
    fn new() -> Self {
        let bench = Bench::new();
        let layout = Layout::new(bench.path("layout"));
        layout.index(&[named(layout.image("image"), "latest")]);
        sh(
            bench.dir.path(),
            "skopeo --insecure-policy copy -q oci:layout:latest docker-archive:docker.tar:x:latest
            mkdir parts; tar -C parts -xf docker.tar; chmod -R u+w parts
            rm -f parts/manifest.json parts/repositories",
        );
        let hex = |file: &str| {
            let bytes = std::fs::read(bench.path("parts").join(file)).unwrap();
            let digest = Sha256::digest(bytes);
            digest
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
        };
        let find = |ending: &str| {
            let files = std::fs::read_dir(bench.path("parts")).unwrap();
            let mut names = files.map(|f| f.unwrap().file_name().into_string().unwrap());
            names
                .find(|name| name.ends_with(ending) && name.len() == 64 + ending.len())
                .unwrap()
        };
        let (config, layer) = (find(".json"), find(".tar"));
        assert_eq!(hex(&config), config.trim_end_matches(".json"));
        Self {
            bench,
            config,
            layer,
        }
    }

    /// An archive with the members under these names, in this order; `manifest` is the list of
    /// images.
    fn archive(&self, name: &str, config: &str, layer: &str, order: &str, manifest: &str) {
        let dir = self.bench.dir.path();
        sh(
            dir,
            &format!(
                "rm -rf made; mkdir made; cd made; mkdir -p $(dirname {config}) $(dirname {layer})
                cp ../parts/{} {config}; cp ../parts/{} layer
                case {layer} in
                    *.gz) gzip layer; mv layer.gz {layer} ;;
                    *) mv layer {layer} ;;
                esac",
                self.config, self.layer
            ),
        );
        std::fs::write(dir.join("made/manifest.json"), manifest).unwrap();
        sh(dir, &format!("tar -C made -cf {name} {order}"));
    }
}

fn manifest(config: &str, layers: &[&str], tags: &[&str]) -> String {
    json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]).to_string()
}

/// The names and the order are those of crane and ko, jib, apko, kaniko, and of nobody.
#[test]
fn archives_of_images_are_known_whatever_their_members_are_called() {
    let parts = Parts::new();
    let hex = parts.config.trim_end_matches(".json").to_owned();
    let crane = format!("sha256:{hex}");
    let long = format!("{}.tar.gz", "1".repeat(64));
    for (config, layer, order) in [
        (&*crane, &*long, format!("{crane} {long} manifest.json")),
        (
            "config.json",
            &*long,
            format!("{long} config.json manifest.json"),
        ),
        (
            "cfg.json",
            "layer0.tar",
            "cfg.json layer0.tar manifest.json".to_owned(),
        ),
        (
            "config/c.json",
            "layers/0.tar",
            "layers config manifest.json".to_owned(),
        ),
    ] {
        let list = manifest(config, &[layer], &["x:latest"]);
        parts.archive("a.tar", config, layer, &order, &list);
        sh(parts.bench.dir.path(), "gzip -kf a.tar; zstd -qf a.tar");
        for name in [
            "a.tar",
            "a.tar.gz",
            "a.tar.zst",
            "a.tar:x",
            "docker-archive:a.tar:x:latest",
        ] {
            assert_eq!(parts.bench.what(&[name]), "image", "{name} with {config}");
        }
    }
    // Files that macOS adds are nothing to it.
    sh(
        parts.bench.dir.path(),
        "cd made; echo > ._x; tar -cf ../mac.tar ._x layers config manifest.json",
    );
    assert_eq!(parts.bench.what(&["mac.tar"]), "image");
}

/// A root file system may have files of these names.
#[test]
fn a_tar_with_a_manifest_of_something_else_is_a_tar() {
    let bench = Bench::new();
    sh(
        bench.dir.path(),
        "mkdir dir; printf dir > dir/what; echo '{\"name\":1}' > dir/manifest.json
        echo x > dir/repositories; echo x > dir/index.json; tar -C dir -cf a.tar .; gzip -k a.tar
        echo x > dir/oci-layout; tar -C dir -cf b.tar .
        rm dir/index.json; echo '{\"imageLayoutVersion\":\"1.0.0\"}' > dir/oci-layout
        tar -C dir -cf c.tar .",
    );
    for name in ["a.tar", "a.tar.gz", "b.tar", "c.tar", "dir"] {
        assert_eq!(bench.what(&[name]), "dir");
    }
}

#[test]
fn the_list_of_an_archive_is_read_as_docker_reads_it() {
    let parts = Parts::new();
    let bench = &parts.bench;
    let tags = ["team/x:latest", "reg.example:5000/y/z:latest", "v:1"];
    let list = manifest("/c.json", &["/l.tar"], &tags);
    parts.archive(
        "a.tar",
        "c.json",
        "l.tar",
        "c.json l.tar manifest.json",
        &list,
    );
    // Names without a tag, and absolute names of members.
    for name in ["team/x", "team/x:latest", "reg.example:5000/y/z", "v:1"] {
        assert_eq!(
            bench.what(&[&format!("docker-archive:a.tar:{name}")]),
            "image",
            "{name}"
        );
    }
    bench.refused(&["docker-archive:a.tar:v"], 5, "no image named v");
    // Docker leaves the name of its own registry out, skopeo writes it; what is exactly the name
    // goes before.
    let other = bench.path("made/other.json");
    std::fs::write(&other, "{}").unwrap();
    let layers = ["l.tar"];
    let entry =
        |config: &str, tag: &str| json!({ "Config": config, "RepoTags": [tag], "Layers": layers });
    let list = json!([
        entry("other.json", "docker.io/library/a:latest"),
        entry("c.json", "a:latest"),
        entry("c.json", "library/b:1"),
        entry("c.json", "docker.io/team/c:latest"),
    ]);
    std::fs::write(bench.path("made/manifest.json"), list.to_string()).unwrap();
    // Members may be links with names of other forms.
    sh(
        &bench.path("made"),
        "ln l.tar 0; tar --no-recursion -cf ../names.tar ./0 ./l.tar c.json other.json \
         manifest.json",
    );
    for name in [
        "a:latest",
        "b:1",
        "docker.io/library/b:1",
        "team/c",
        "docker.io/team/c",
    ] {
        let source = format!("docker-archive:names.tar:{name}");
        assert_eq!(bench.what(&[&source]), "image", "{name}");
    }
    // Go writes an empty list as null.
    let empty = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    std::fs::write(bench.path("made/e.json"), empty).unwrap();
    let list = r#"[{"Config":"e.json","RepoTags":null,"Layers":null}]"#;
    std::fs::write(bench.path("made/manifest.json"), list).unwrap();
    sh(
        bench.dir.path(),
        "tar -C made -cf empty.tar e.json manifest.json",
    );
    assert!(bench.build(&["empty.tar"]).status.success());
}

#[test]
fn a_directory_of_skopeo_is_an_image() {
    let bench = Bench::new();
    let layout = Layout::new(bench.path("layout"));
    layout.index(&[named(layout.image("image"), "latest")]);
    sh(
        bench.dir.path(),
        "skopeo --insecure-policy copy -q oci:layout:latest dir:sk
        skopeo --insecure-policy copy -q --format v2s2 oci:layout:latest dir:docker",
    );
    for name in ["sk", "dir:sk", "docker"] {
        assert_eq!(bench.what(&[name]), "image", "{name}");
    }
    // A directory that only has such a file is a directory.
    sh(
        bench.dir.path(),
        "mkdir dir; echo 1 > dir/version; printf dir > dir/what",
    );
    assert_eq!(bench.what(&["dir"]), "dir");
    // In a root file system, the file may be anything.
    sh(
        bench.dir.path(),
        "rm dir/version; mkfifo dir/version fifo; cp -a dir linked",
    );
    assert_eq!(bench.what(&["dir"]), "dir");
    sh(
        bench.dir.path(),
        "rm linked/version; ln -s ../fifo linked/version",
    );
    assert_eq!(bench.what(&["linked"]), "dir");
    bench.refused(&["tar:fifo"], 1, "not a regular file");
    // Damage is found.
    sh(
        bench.dir.path(),
        "for f in sk/*; do case $f in */version | *.json) ;; *) printf x >> $f ;; esac; done",
    );
    bench.refused(&["sk"], 3, "blob sha256:");
}

/// umoci ends with a segmentation fault where an entry of the history has no time.
#[test]
fn umoci_stats_an_image_of_a_directory() {
    let bench = Bench::new();
    sh(bench.dir.path(), "mkdir dir; printf dir > dir/what");
    assert_eq!(bench.what(&["dir"]), "dir");
    let exported = bench.path("exported");
    run(lxcri_fs()
        .arg("export")
        .arg(bench.path("image.bfc"))
        .arg("--oci")
        .arg(&exported));
    let said = sh(bench.dir.path(), "umoci stat --image exported:latest");
    assert!(said.contains("lxcri-fs build"), "{said}");
}

#[test]
fn sources_that_only_skopeo_reads_are_named_with_the_way_out() {
    let bench = Bench::new();
    for source in ["ostree:x@/repo", "sif:x.sif"] {
        bench.refused(
            &[source],
            1,
            &format!("`skopeo copy {source} oci-archive:image.tar`"),
        );
    }
}

/// gzip(1) ignores zeros behind the data, and nothing else.
#[test]
fn zeros_may_follow_compressed_data() {
    let bench = Bench::new();
    let script = |dir: &Path| {
        sh(
            dir,
            "mkdir dir; printf dir > dir/what; tar -C dir -cf t .; split -n 2 t part; \
             gzip -c partaa > two; gzip -c partab >> two; gzip -c t > one
             head -c 70000 /dev/zero > zeros; cat one zeros > zeros.tgz; cat two zeros > two.tgz
             cat one zeros two > behind.tgz; (cat one; echo rubbish) > rubbish.tgz
             gzip -dc zeros.tgz 2> said | cmp - t",
        )
    };
    script(bench.dir.path());
    for name in ["tar:zeros.tgz", "tar:two.tgz", "zeros.tgz"] {
        assert_eq!(bench.what(&[name]), "dir", "{name}");
    }
    for name in ["tar:behind.tgz", "tar:rubbish.tgz"] {
        bench.refused(&[name], 3, "something other than zeros");
    }
}
