//! Credential helpers: the programs `docker-credential-NAME`, which keep credentials elsewhere.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Credential, MAX_FILE, TOKEN_USER, wrong};
use crate::registry::error::{Result, harmless};

/// What a helper says if it has no credentials for a registry. The protocol knows no other way.
const NOT_FOUND: &str = "credentials not found";

/// The credentials that a helper has for a server.
///
/// # Errors
/// [`Error::Credentials`](super::Error::Credentials).
pub(super) fn get(name: &str, server: &str) -> Result<Option<Credential>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: Zeroizing<String>,
    }
    let Some(output) = run(name, "get", server.as_bytes())? else {
        return Ok(None);
    };
    let answer: Answer = serde_json::from_slice(&output).map_err(|e| wrong(program(name), e))?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credential::Identity(answer.secret),
        _ => Credential::Basic {
            user: answer.username,
            password: answer.secret,
        },
    }))
}

/// Gives a helper the name and the password for a server.
///
/// # Errors
/// [`Error::Credentials`](super::Error::Credentials).
pub(super) fn store(name: &str, server: &str, user: &str, password: &str) -> Result<()> {
    #[derive(Serialize)]
    struct Entry<'a> {
        #[serde(rename = "ServerURL")]
        server: &'a str,
        #[serde(rename = "Username")]
        user: &'a str,
        #[serde(rename = "Secret")]
        secret: &'a str,
    }
    let entry = Entry {
        server,
        user,
        secret: password,
    };
    // Escaping makes a byte at most six; the vector must not grow, which would leave a copy behind.
    let most = 64 + 6 * (server.len() + user.len() + password.len());
    let mut input = Zeroizing::new(Vec::with_capacity(most));
    serde_json::to_writer(&mut *input, &entry).map_err(|e| wrong(program(name), e))?;
    match run(name, "store", &input)? {
        Some(_) => Ok(()),
        None => Err(wrong(program(name), NOT_FOUND)),
    }
}

/// Makes a helper forget the credentials for a server. Returns whether it had any.
///
/// # Errors
/// [`Error::Credentials`](super::Error::Credentials).
pub(super) fn erase(name: &str, server: &str) -> Result<bool> {
    Ok(run(name, "erase", server.as_bytes())?.is_some())
}

fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// Runs `docker-credential-NAME ACTION`. Returns its output; `None` if it has no such credentials.
fn run(name: &str, action: &str, input: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let program = program(name);
    if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        return Err(wrong(&program, "not a valid name of a credential helper"));
    }
    let failed = |e: std::io::Error| wrong(&program, e);
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it may know it anyway.
        let _ = stdin.write_all(input).and_then(|()| stdin.write_all(b"\n"));
    }
    let mut output = Zeroizing::new(Vec::new());
    let read = child
        .stdout
        .take()
        .map(|stdout| stdout.take(MAX_FILE).read_to_end(&mut output));
    let status = child.wait().map_err(failed)?;
    read.transpose().map_err(failed)?;
    if status.success() {
        return Ok(Some(output));
    }
    let message = String::from_utf8_lossy(&output);
    if message.contains(NOT_FOUND) {
        return Ok(None);
    }
    Err(wrong(&program, format!("{status}: {}", harmless(&message))))
}
