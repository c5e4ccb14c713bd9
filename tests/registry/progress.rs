//! What pulls and pushes show while they work: a line for each layer.

use std::process::Stdio;
use std::time::Duration;

use crate::bench::Bench;
use crate::common::stderr;
use crate::fake::{Image, Server};
use crate::server::Registry;

/// Whether a line begins as those of a layer do: with 12 digits of its digest.
fn is_of_a_layer(line: &str) -> bool {
    let name = line.split(": ").next().unwrap();
    name.len() == 12 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[test]
fn without_a_terminal_a_line_tells_of_each_layer() {
    let bench = Bench::new();
    bench.app();
    let registry = Registry::start(&bench.path("registry"));
    let name = format!("{}/app:v1", registry.host());
    let lines = |args: &[&str]| {
        let output = bench.command().args(args).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let lines: Vec<_> = stderr(&output).lines().map(str::to_owned).collect();
        assert!(lines.iter().all(|line| is_of_a_layer(line)), "{lines:?}");
        lines
    };
    assert_eq!(lines(&["push", "app", &name]).len(), 3);
    // Nothing is to be made or sent any more.
    assert!(lines(&["push", "app", &name]).is_empty());
    // A file has no records of what its layers became, but the registry has that.
    let file = bench.listed()[0]["path"].as_str().unwrap().to_owned();
    std::fs::copy(file, bench.path("app.bfc")).unwrap();
    let again = lines(&["push", "./app.bfc", &name]);
    assert_eq!(again.len(), 3);
    assert!(
        again
            .iter()
            .all(|line| line.ends_with("were in the registry before")),
        "{again:?}"
    );
    assert!(lines(&["push", "-q", "app", &name, "--compression", "zstd"]).is_empty());
    assert_eq!(
        lines(&["pull", &name, "-t", "pulled", "--no-share"]).len(),
        3
    );
    assert!(lines(&["pull", "-q", &name, "-t", "quiet", "--no-share"]).is_empty());
}

/// What a command shows on a terminal.
fn shown(bench: &Bench, arguments: &str) -> String {
    let output = bench
        .on_terminal(arguments)
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// Whether a bar of this layer was drawn with its rate and the time that is left.
fn has_bar(shown: &str, layer: &str) -> bool {
    shown.split(['\r', '\n', '\x1b']).any(|drawn| {
        let bar = drawn.split_once(&format!("{layer} [")).map(|(_, bar)| bar);
        let words: Vec<_> = bar.unwrap_or_default().split_whitespace().collect();
        let rate = words.iter().position(|word| word.ends_with("/s"));
        rate.is_some_and(|at| words.get(at + 1).is_some_and(|left| left.ends_with('s')))
    })
}

#[test]
fn on_a_terminal_each_layer_has_a_bar_with_its_rate_and_the_time_left() {
    let bench = Bench::new();
    let mut image = Image::default();
    let stack = [image.add("first", 5_000), image.add("second", 6_000)];
    let stack = image.stack(&[&stack[0], &stack[1]]);
    image.tag("latest", &stack);
    let layers: Vec<_> = image
        .blobs
        .iter()
        .filter(|(_, bytes)| bytes.len() > 5_000)
        .map(|(digest, _)| digest["sha256:".len()..][..12].to_owned())
        .collect();
    assert_eq!(layers.len(), 2);
    let server = Server::new(move |request| {
        let mut answer = image.answer(request);
        if request.path.contains("/blobs/") && answer.body.len() > 5_000 {
            answer.pause = Duration::from_micros(50);
        }
        answer
    });
    let pulled = shown(&bench, &format!("pull {}/app -t app", server.host()));
    for layer in &layers {
        assert!(has_bar(&pulled, layer), "{layer}: {pulled:?}");
    }
    let registry = Registry::start(&bench.path("registry"));
    let pushed = shown(
        &bench,
        &format!("push app {}/app --compression none", registry.host()),
    );
    for layer in &layers {
        assert!(has_bar(&pushed, layer), "{layer}: {pushed:?}");
    }
}
