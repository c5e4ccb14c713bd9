//! Which images are accepted: policy.json, signatures that openssl makes as cosign does, and
//! verifiers. tests/packages.sh has signatures of cosign itself, and compares with skopeo.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::common::{run, stderr};
use crate::fake::{INDEX, Image, MANIFEST, Response, Server};

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// openssl's arguments for each kind of key, and for signing with it.
const KEYS: [(&str, &str, &str); 3] = [
    (
        "ecdsa",
        "EC -pkeyopt ec_paramgen_curve:P-256",
        "dgst -sha256 -sign",
    ),
    (
        "rsa",
        "RSA -pkeyopt rsa_keygen_bits:2048",
        "dgst -sha256 -sign",
    ),
    ("ed25519", "ED25519", "pkeyutl -sign -rawin -inkey"),
];

/// Makes the keys, `NAME.key` and `NAME.pub`.
fn keys(bench: &Bench) {
    for (name, kind, _) in KEYS.into_iter().chain([("other", KEYS[0].1, "")]) {
        bench.sh(&format!(
            "openssl genpkey -algorithm {kind} -out {name}.key 2>/dev/null
             openssl pkey -in {name}.key -pubout -out {name}.pub"
        ));
    }
}

/// What cosign signs.
fn payload(name: &str, digest: &str) -> Value {
    json!({
        "critical": {
            "identity": { "docker-reference": name },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
}

/// A manifest with a signature of a document.
fn signature(bench: &Bench, image: &mut Image, key: &str, document: &Value) -> Value {
    std::fs::write(bench.path("payload"), document.to_string()).unwrap();
    let how = KEYS
        .iter()
        .find(|(name, ..)| *name == key)
        .map_or(KEYS[0].2, |(_, _, how)| how);
    let input = if how.starts_with("pkeyutl") {
        "-in payload"
    } else {
        "payload"
    };
    bench.sh(&format!("openssl {how} {key}.key -out signature {input}"));
    let signature = std::fs::read(bench.path("signature")).unwrap();
    let mut layer = image.blob(PAYLOAD, document.to_string().as_bytes());
    layer["annotations"] =
        json!({ "dev.cosignproject.cosign/signature": STANDARD.encode(signature) });
    let config = image.blob("application/vnd.oci.image.config.v1+json", b"{}");
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] })
}

fn digest(image: &Image) -> String {
    crate::fake::sha256(&image.manifests["latest"].1)
}

fn tag_of(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

/// A signature as cosign tags it.
fn sign(bench: &Bench, image: &mut Image, key: &str, document: &Value) {
    let manifest = signature(bench, image, key, document);
    let manifest = image.manifest(MANIFEST, &manifest);
    let tag = tag_of(&digest(image));
    image.tag(&tag, &manifest);
}

/// Makes it the policy that images of `scope` have these requirements, and all others none.
fn policy(bench: &Bench, scope: &str, requirements: &Value) {
    let policy = json!({
        "default": [{ "type": "reject" }],
        "transports": { "docker": { scope: requirements } },
    });
    std::fs::write(bench.path("policy.json"), policy.to_string()).unwrap();
    bench.configure(&format!(
        "[trust]\npolicy = {:?}\nverifiers = {:?}\n",
        bench.path("policy.json"),
        bench.path("verifiers")
    ));
}

/// The code with which `pull` ends, and what it says.
fn pull(bench: &Bench, reference: &str) -> (Option<i32>, String) {
    let output = bench
        .command()
        .args(["pull", "-q", reference])
        .output()
        .unwrap();
    (output.status.code(), stderr(&output))
}

#[track_caller]
fn refused(bench: &Bench, reference: &str, said: &str) {
    let (code, message) = pull(bench, reference);
    assert!(
        code == Some(8) && message.contains(said),
        "{code:?}: {message}"
    );
    assert!(message.contains(reference), "{message}");
    assert!(bench.listed().is_empty());
    // Nor is anything left of it.
    let temporary = bench.path("store/temporary");
    let left = temporary.read_dir().map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

#[test]
fn signatures_of_every_kind_of_key_are_accepted_from_tags_and_referrers() {
    for (key, ..) in KEYS {
        // The second is of a registry that refuses requests for referrers.
        for way in ["tag", "tag alone", "referrers", "referrers' tag"] {
            let bench = Bench::new();
            keys(&bench);
            let mut image = Image::new(key, 1000);
            let server_image = {
                // The name needs no port here: the rule accepts another repository.
                let document = payload("registry.example.org/team/app", &digest(&image));
                if way.starts_with("tag") {
                    sign(&bench, &mut image, key, &document);
                } else {
                    let mut manifest = signature(&bench, &mut image, key, &document);
                    let top = digest(&image);
                    let size = image.manifests["latest"].1.len();
                    manifest["subject"] =
                        json!({ "mediaType": MANIFEST, "digest": top, "size": size });
                    let mut entry = image.manifest(MANIFEST, &manifest);
                    entry["artifactType"] = json!(ARTIFACT);
                    let index = json!({
                        "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry],
                    });
                    let index = image.manifest(INDEX, &index);
                    image.tag(&top.replace(':', "-"), &index);
                }
                image.clone()
            };
            let top = digest(&image);
            let knows_referrers = way == "referrers";
            let refuses = way == "tag alone";
            let server = Server::new(move |request| {
                let is_list = request.path.contains("/referrers/");
                let list = top.replace(':', "-");
                if is_list && refuses {
                    return Response::new(405, b"");
                }
                match is_list && knows_referrers {
                    true => {
                        assert!(request.path.ends_with(&top), "{}", request.path);
                        let bytes = &server_image.manifests[&list].1;
                        Response::new(200, bytes).with("Content-Type", INDEX)
                    }
                    false if knows_referrers && request.path.ends_with(&list) => {
                        Response::new(404, b"")
                    }
                    false => server_image.answer(request),
                }
            });
            let reference = format!("{}/team/app:latest", server.host());
            let rule = json!([{
                "type": "sigstoreSigned",
                "keyPaths": [bench.path("other.pub"), bench.path(&format!("{key}.pub"))],
                "signedIdentity": {
                    "type": "exactRepository",
                    "dockerRepository": "registry.example.org/team/app",
                },
            }]);
            policy(&bench, &server.host(), &rule);
            let (code, said) = pull(&bench, &reference);
            assert_eq!(code, Some(0), "{key} by {way}: {said}");
            let listed = bench.listed();
            assert_eq!(listed[0]["trust"], "signed");
            let info = run(bench.command().args(["info", "--json", &reference]));
            let info: Value = serde_json::from_str(&info).unwrap();
            let trust = &info["trust"][0];
            assert_eq!(trust["reference"], *reference);
            assert_eq!(trust["rule"], *server.host());
            assert_eq!(
                trust["key"],
                *bench.path(&format!("{key}.pub")).to_str().unwrap()
            );
            let shown = run(bench.command().args(["info", &reference]));
            assert!(shown.contains(&format!("signed with {}", trust["key"].as_str().unwrap())));
        }
    }
}

#[test]
fn wrong_stripped_foreign_and_replayed_signatures_are_refused() {
    let bench = Bench::new();
    keys(&bench);
    let image = Image::new("app", 1000);
    let own = digest(&image);
    let other = digest(&Image::new("another", 1000));
    // Nothing is signed; then each document with a key, and the name that is asked for.
    let serve = |document: Option<&Value>, key: &str| {
        let mut image = image.clone();
        if let Some(document) = document {
            sign(&bench, &mut image, key, document);
        }
        let server = image.serve();
        let reference = format!("{}/team/app:latest", server.host());
        (server, reference)
    };
    let name = "registry.example.org/team/app";
    let rule = |identity: Value| {
        json!([{
            "type": "sigstoreSigned",
            "keyPath": bench.path("ecdsa.pub"),
            "signedIdentity": identity,
        }])
    };
    let repository = json!({ "type": "exactRepository", "dockerRepository": name });

    let (_server, reference) = serve(None, "");
    policy(&bench, "", &rule(repository.clone()));
    refused(&bench, &reference, "has none");
    let kind = {
        let mut document = payload(name, &own);
        document["critical"]["type"] = json!("atomic container signature");
        document
    };
    let unknown = {
        let mut document = payload(name, &own);
        document["critical"]["more"] = json!(1);
        document
    };
    for (document, key, said) in [
        (payload(name, &own), "other", "no signature is of a key"),
        (payload(name, &other), "ecdsa", "is of another image"),
        (
            payload("registry.example.org/team/other", &own),
            "ecdsa",
            "is of the name",
        ),
        (kind, "ecdsa", "not an image"),
        (unknown, "ecdsa", "is not understood"),
    ] {
        let (_server, reference) = serve(Some(&document), key);
        refused(&bench, &reference, said);
        // No other way leads around it.
        let output = bench.build(&reference, "image.bfc", &[]);
        assert_eq!(output.status.code(), Some(8), "{}", stderr(&output));
        let create = ["create", "web", "--image", &reference, "--bundle", "bundle"];
        let output = bench.command().args(create).output().unwrap();
        assert_eq!(output.status.code(), Some(8), "{}", stderr(&output));
        let file = ["pull", "-q", &reference, "-o", "file.bfc"];
        let output = bench.command().args(file).output().unwrap();
        assert_eq!(output.status.code(), Some(8), "{}", stderr(&output));
        assert!(!bench.path("image.bfc").exists() && !bench.path("file.bfc").exists());
    }
    // By default, the name that was signed must be the one that is asked for, with its tag.
    let (server, reference) = serve(Some(&payload("x/y", &own)), "ecdsa");
    for (signed, accepted) in [
        (reference.clone(), true),
        (reference.replace(":latest", ":old"), false),
        (reference.replace(":latest", ""), false),
    ] {
        let mut image = image.clone();
        sign(&bench, &mut image, "ecdsa", &payload(&signed, &own));
        let port = server.address.port();
        // The same name, from another server behind it.
        let behind = image.serve();
        bench.sh("rm -rf store");
        policy(
            &bench,
            "",
            &rule(json!({ "type": "matchRepoDigestOrExact" })),
        );
        let text = std::fs::read_to_string(bench.path("config.toml")).unwrap();
        bench.configure(&format!(
            "{text}[registries.\"127.0.0.1:{port}\"]\nmirrors = [\"{}\"]\n",
            behind.host()
        ));
        let (code, said) = pull(&bench, &reference);
        assert_eq!(code == Some(0), accepted, "{signed}: {code:?} {said}");
    }
}

/// A registry that does not say what refers to an image may hide a signature, but makes none.
#[test]
fn signatures_that_cannot_be_fetched_are_none() {
    let bench = Bench::new();
    keys(&bench);
    let image = Image::new("app", 1000);
    for (part, status) in [("/referrers/", 405), (".sig", 403)] {
        let image = image.clone();
        let server = Server::new(move |request| match request.path.contains(part) {
            true => Response::new(status, b""),
            false => image.answer(request),
        });
        let rule = json!([{ "type": "sigstoreSigned", "keyPath": bench.path("ecdsa.pub") }]);
        policy(&bench, "", &rule);
        let (code, said) = pull(&bench, &format!("{}/app", server.host()));
        assert!(
            code == Some(1) && said.contains("fetching the signatures"),
            "{code:?} {said}"
        );
        assert!(bench.listed().is_empty());
    }
}

#[test]
fn rules_that_accept_nothing_are_told_before_anything_is_asked() {
    let bench = Bench::new();
    keys(&bench);
    let server = Image::new("app", 1000).serve();
    let reference = format!("{}/team/app:1", server.host());
    for (requirement, said) in [
        (json!({ "type": "reject" }), "it rejects the image"),
        (
            json!({ "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x" }),
            "OpenPGP",
        ),
        (
            json!({
                "type": "sigstoreSigned",
                "keyPath": bench.path("ecdsa.pub"),
                "rekorPublicKeyPath": bench.path("ecdsa.pub"),
            }),
            "Rekor",
        ),
    ] {
        let scope = format!("{}/team", server.host());
        let accepts = json!({ "type": "insecureAcceptAnything" });
        policy(&bench, &scope, &json!([accepts, requirement]));
        refused(&bench, &reference, said);
        let (_, message) = pull(&bench, &reference);
        assert!(
            message.contains(&format!("the rule {scope:?}")),
            "{message}"
        );
    }
    assert_eq!(server.asked(), Vec::<String>::new());
    // A policy that is missing or wrong accepts nothing either.
    for text in ["", "{}", r#"{"default":[{"type":"acceptAnything"}]}"#] {
        std::fs::write(bench.path("policy.json"), text).unwrap();
        assert_eq!(pull(&bench, &reference).0, Some(1), "{text}");
    }
    std::fs::remove_file(bench.path("policy.json")).unwrap();
    assert_eq!(pull(&bench, &reference).0, Some(5));
    assert_eq!(server.asked(), Vec::<String>::new());
    // That of a user counts where the configuration names none.
    bench.configure("");
    bench.sh("mkdir -p home/.config/containers
         echo '{\"default\":[{\"type\":\"reject\"}]}' >home/.config/containers/policy.json");
    assert_eq!(pull(&bench, &reference).0, Some(8));
}

#[test]
fn verifiers_are_asked_as_containerd_asks_them() {
    let bench = Bench::new();
    let image = Image::new("app", 1000);
    let (top, size) = (digest(&image), image.manifests["latest"].1.len());
    let server = image.serve();
    let reference = format!("{}/team/app:latest", server.host());
    policy(&bench, "", &json!([{ "type": "insecureAcceptAnything" }]));
    let script = |name: &str, text: &str| {
        std::fs::create_dir_all(bench.path("verifiers")).unwrap();
        std::fs::write(
            bench.path("verifiers").join(name),
            format!("#!/bin/sh\n{text}\n"),
        )
        .unwrap();
        bench.sh("chmod +x verifiers/*");
    };
    let log = bench.path("log").display().to_string();
    script("a", &format!("echo \"$@\" >{log}; cat >>{log}"));
    script("b", "echo 'too old'; exit 1");
    let (code, said) = pull(&bench, &reference);
    assert!(
        code == Some(8) && said.contains("/verifiers/b: too old"),
        "{code:?} {said}"
    );
    let asked = std::fs::read_to_string(&log).unwrap();
    let (arguments, descriptor) = asked.split_once('\n').unwrap();
    assert_eq!(
        arguments,
        format!(
            "-name {reference} -digest {top} -stdin-media-type \
             application/vnd.oci.descriptor.v1+json"
        )
    );
    let descriptor: Value = serde_json::from_str(descriptor).unwrap();
    assert_eq!(
        descriptor,
        json!({ "mediaType": MANIFEST, "digest": top, "size": size })
    );
    script("b", "printf '\\033[2J'; exit 3");
    let (code, said) = pull(&bench, &reference);
    assert!(code == Some(8) && !said.contains('\u{1b}'), "{said:?}");
    // One that cannot be started accepts nothing.
    bench.sh("chmod -x verifiers/b");
    assert_eq!(pull(&bench, &reference).0, Some(1));
    script("b", "exec sleep 60");
    let start = std::time::Instant::now();
    assert!(pull(&bench, &reference).1.contains("more than 10 seconds"));
    assert!(start.elapsed().as_secs() < 30);
    script("b", "exit 0");
    assert_eq!(pull(&bench, &reference).0, Some(0));
    assert_eq!(bench.listed()[0]["trust"], "accepted");
    // There are not to be more than can be asked.
    for name in 0..10 {
        script(&name.to_string(), "exit 0");
    }
    let (code, said) = pull(&bench, &reference);
    assert!(
        code == Some(1) && said.contains("more than 10 verifiers"),
        "{said}"
    );
}

#[test]
fn create_and_pull_ask_again_when_the_rules_have_changed() {
    let bench = Bench::new();
    keys(&bench);
    let mut image = Image::new("app", 1000);
    let document = payload("registry.example.org/app", &digest(&image));
    sign(&bench, &mut image, "ecdsa", &document);
    let server = image.serve();
    let reference = format!("{}/app:latest", server.host());
    policy(&bench, "", &json!([{ "type": "insecureAcceptAnything" }]));
    assert_eq!(pull(&bench, &reference).0, Some(0));
    assert_eq!(bench.listed()[0]["trust"], "accepted");
    let create = |name: &str| {
        let args = [
            "create", name, "--image", &reference, "--bundle", name, "--", "true",
        ];
        let output = bench.command().args(args).output().unwrap();
        if output.status.success() {
            run(bench.command().args(["delete", name]));
        }
        (output.status.code(), stderr(&output))
    };
    let asked = || server.asked().len();
    let before = asked();
    assert_eq!(create("a").0, Some(0));
    assert_eq!(asked(), before, "the rules are the same");
    // A rule that its signature does not fulfil, and one that it does.
    let rule = |key: &str| {
        json!([{
            "type": "sigstoreSigned",
            "keyPath": bench.path(&format!("{key}.pub")),
            "signedIdentity": {
                "type": "exactRepository",
                "dockerRepository": "registry.example.org/app",
            },
        }])
    };
    policy(&bench, "", &rule("other"));
    let (code, said) = create("b");
    assert!(
        code == Some(8) && said.contains("no signature is of a key"),
        "{code:?} {said}"
    );
    assert!(!bench.path("b").exists());
    assert_eq!(pull(&bench, &reference).0, Some(8));
    policy(&bench, "", &rule("ecdsa"));
    assert_eq!(create("c"), (Some(0), String::new()));
    assert_eq!(bench.listed()[0]["trust"], "signed");
    let before = asked();
    assert_eq!(create("d").0, Some(0));
    assert_eq!(asked(), before, "the verdict is kept");
    // Another key in the same file is another rule.
    std::fs::copy(bench.path("other.pub"), bench.path("ecdsa.pub")).unwrap();
    assert_eq!(create("e").0, Some(8));
    policy(&bench, "", &json!([{ "type": "reject" }]));
    assert_eq!(create("f").0, Some(8));
    // Without the registry, it cannot be found out, and is not accepted.
    policy(&bench, "", &rule("rsa"));
    drop(server);
    let (code, said) = create("g");
    assert!(code != Some(0), "{said}");
    // What was built here needs no registry's rule.
    bench.sh("mkdir tree; echo x >tree/file");
    run(bench.command().args(["build", "tree", "-t", "own"]));
    let args = [
        "create", "h", "--image", "own", "--bundle", "h", "--", "true",
    ];
    run(bench.command().args(args));
    run(bench.command().args(["delete", "h"]));
}
