//! `gc` makes room of what could be pulled again.

use serde_json::Value;

use crate::bench::Bench;
use crate::common::{run, stderr};
use crate::fake::Image;

/// The names of the images in the store.
fn names(bench: &Bench) -> Vec<String> {
    let mut names: Vec<String> = bench
        .listed()
        .iter()
        .map(|row| {
            let name = row["reference"].as_str().unwrap();
            name.rsplit('/').next().unwrap().to_owned()
        })
        .collect();
    names.sort();
    names
}

/// What a `gc` prints.
fn gc(bench: &Bench, args: &str) -> Vec<Value> {
    let args = args.split_whitespace();
    let output = bench
        .command()
        .args(["gc", "--json"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn images_that_could_be_pulled_again_make_room_the_oldest_first() {
    let bench = Bench::new();
    let mut servers = Vec::new();
    for name in ["first", "second", "third", "used"] {
        let server = Image::new(name, 1_000_000).serve();
        let reference = format!("{}/{name}", server.host());
        run(bench
            .command()
            .args(["pull", "-q", &reference, "-t", &format!("{name}:1")]));
        servers.push(server);
    }
    bench.sh("mkdir tree; head -c 1000000 /dev/urandom >tree/file");
    run(bench.command().args(["build", "tree", "-t", "built:1"]));
    let create = [
        "create", "web", "--image", "used:1", "--bundle", "web", "--", "true",
    ];
    run(bench.command().args(create));
    let all = ["built:1", "first:1", "second:1", "third:1", "used:1"];
    assert_eq!(names(&bench), all);

    // Without limits, and with those that are kept, nothing happens.
    assert!(gc(&bench, "").is_empty());
    assert!(gc(&bench, "--max-size 1G --keep-free 1").is_empty());
    let planned = gc(&bench, "--dry-run --max-size 4M");
    let kinds: Vec<_> = planned
        .iter()
        .map(|row| (&row["kind"], &row["name"]))
        .collect();
    assert_eq!(kinds, [(&"spare image".into(), &"first:1".into())]);
    assert_eq!(names(&bench), all);
    let freed = gc(&bench, "--max-size 4M");
    assert!(
        freed.len() == 1 && freed[0]["freed"].as_u64().unwrap() >= 1_000_000,
        "{freed:?}"
    );
    assert_eq!(names(&bench), ["built:1", "second:1", "third:1", "used:1"]);

    // As a setting, which the timer uses; and when not enough can be removed, that is said.
    bench.configure("[gc]\nkeep-free = \"900P\"\n");
    let output = bench.command().arg("gc").output().unwrap();
    let said = stderr(&output);
    assert!(
        output.status.success() && said.contains("nothing else can be removed"),
        "{said}"
    );
    assert_eq!(names(&bench), ["built:1", "used:1"]);
    run(bench.command().args(["delete", "web"]));
    bench.configure("");
    assert_eq!(gc(&bench, "--max-size 1").len(), 1);
    assert_eq!(names(&bench), ["built:1"]);
}
