//! Changes of an image's configuration, as `podman commit --change` takes them.

use std::str::FromStr;

use serde_json::{Map, Value, json};

/// A change of an image's configuration: an instruction of a Containerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigChange {
    /// `CMD`: a JSON array of words, or a line for `/bin/sh -c`.
    Cmd(Vec<String>),
    /// `ENTRYPOINT`, likewise.
    Entrypoint(Vec<String>),
    /// `ENV NAME=VALUE`.
    Env(String, String),
    /// `EXPOSE PORT[/PROTOCOL]…`.
    Expose(Vec<String>),
    /// `LABEL NAME=VALUE`.
    Label(String, String),
    /// `STOPSIGNAL SIGNAL`.
    StopSignal(String),
    /// `USER USER[:GROUP]`.
    User(String),
    /// `VOLUME`: a JSON array of directories, or directories separated by blanks.
    Volume(Vec<String>),
    /// `WORKDIR DIR`, absolute.
    WorkDir(String),
}

/// Why a text is not a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAChange {
    /// There is no value.
    #[error("write an instruction and its value, such as `CMD [\"nginx\"]`")]
    Form,
    /// An instruction that changes no configuration, or none.
    #[error(
        "{0} is not one of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR"
    )]
    Instruction(String),
    /// A value without `=`.
    #[error("{0} needs NAME=VALUE")]
    Pair(&'static str),
    /// A directory that is not absolute, or leads up.
    #[error("{0} needs an absolute path without `..`")]
    Path(&'static str),
    /// A list of words that is cut off, or has something else in it.
    #[error("{0} needs a JSON array of strings, or a line for the shell")]
    Words(&'static str),
    /// A user that cannot be one.
    #[error("USER needs USER[:GROUP], as names or numbers")]
    User,
    /// A port that is none.
    #[error("EXPOSE needs ports, such as 80, 53/udp or 8000-8010")]
    Port,
}

impl FromStr for ConfigChange {
    type Err = NotAChange;

    fn from_str(text: &str) -> Result<Self, NotAChange> {
        let (instruction, value) = text
            .trim()
            .split_once([' ', '\t', '='])
            .ok_or(NotAChange::Form)?;
        let value = value.trim();
        if value.is_empty() {
            return Err(NotAChange::Form);
        }
        let whole = || unquoted(value).to_owned();
        Ok(match &*instruction.to_ascii_uppercase() {
            "CMD" => ConfigChange::Cmd(command("CMD", value)?),
            "ENTRYPOINT" => ConfigChange::Entrypoint(command("ENTRYPOINT", value)?),
            "ENV" => {
                let (name, value) = pair("ENV", value)?;
                ConfigChange::Env(name, value)
            }
            "LABEL" => {
                let (name, value) = pair("LABEL", value)?;
                ConfigChange::Label(name, value)
            }
            "EXPOSE" => ConfigChange::Expose(ports(value)?),
            "STOPSIGNAL" => ConfigChange::StopSignal(whole()),
            "USER" if is_user(&whole()) => ConfigChange::User(whole()),
            "USER" => return Err(NotAChange::User),
            "VOLUME" => ConfigChange::Volume(volumes(value)?),
            "WORKDIR" if is_plain(&whole()) => ConfigChange::WorkDir(whole()),
            "WORKDIR" => return Err(NotAChange::Path("WORKDIR")),
            _ => return Err(NotAChange::Instruction(instruction.to_owned())),
        })
    }
}

/// The words of a command.
fn command(instruction: &'static str, value: &str) -> Result<Vec<String>, NotAChange> {
    match serde_json::from_str(value) {
        Ok(words) => Ok(words),
        // `[ -e file ]` is a line for the shell.
        Err(_) if value.starts_with("[\"") => Err(NotAChange::Words(instruction)),
        Err(_) => Ok(vec![
            "/bin/sh".to_owned(),
            "-c".to_owned(),
            value.to_owned(),
        ]),
    }
}

fn is_user(text: &str) -> bool {
    let is_name =
        |name: &str| !name.is_empty() && !name.starts_with('-') && !name.contains([':', ' ', '\t']);
    let (user, group) = text.split_once(':').unwrap_or((text, "0"));
    is_name(user) && is_name(group)
}

/// Whether a path is absolute and stays below the root.
fn is_plain(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|name| name != "..")
}

fn pair(instruction: &'static str, value: &str) -> Result<(String, String), NotAChange> {
    let (name, value) = value.split_once('=').ok_or(NotAChange::Pair(instruction))?;
    let name = unquoted(name);
    // `ENV NAME VALUE` is an old form, of which `=` may be a part.
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(NotAChange::Pair(instruction));
    }
    Ok((name.to_owned(), unquoted(value).to_owned()))
}

fn ports(value: &str) -> Result<Vec<String>, NotAChange> {
    let port = |word: &str| {
        let (number, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        let known = ["tcp", "udp", "sctp"].contains(&&*protocol);
        let (low, high) = number.split_once('-').unwrap_or((number, number));
        let parsed = |n: &str| {
            let is_number = n.bytes().all(|b| b.is_ascii_digit());
            n.parse::<u16>().ok().filter(|n| is_number && *n > 0)
        };
        let numbers = parsed(low).is_some_and(|low| parsed(high).is_some_and(|high| low <= high));
        let port = format!("{number}/{protocol}");
        Some(port)
            .filter(|_| known && numbers)
            .ok_or(NotAChange::Port)
    };
    value.split_whitespace().map(port).collect()
}

fn volumes(value: &str) -> Result<Vec<String>, NotAChange> {
    let words = || value.split_whitespace().map(str::to_owned).collect();
    let volumes: Vec<String> = serde_json::from_str(value).unwrap_or_else(|_| words());
    if volumes.iter().all(|volume| is_plain(volume)) {
        Ok(volumes)
    } else {
        Err(NotAChange::Path("VOLUME"))
    }
}

/// The text in quotation marks, if it is in some.
fn unquoted(text: &str) -> &str {
    let inside = |mark: char| text.strip_prefix(mark)?.strip_suffix(mark);
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}

impl ConfigChange {
    /// Changes the `config` of an OCI image configuration.
    pub(super) fn apply(&self, document: &mut Map<String, Value>) {
        change(document, "config", |config| self.change(config));
    }

    fn change(&self, config: &mut Map<String, Value>) {
        let (name, value) = match self {
            ConfigChange::Cmd(words) => ("Cmd", json!(words)),
            ConfigChange::Entrypoint(words) => ("Entrypoint", json!(words)),
            ConfigChange::StopSignal(signal) => ("StopSignal", json!(signal)),
            ConfigChange::User(user) => ("User", json!(user)),
            ConfigChange::WorkDir(dir) => ("WorkingDir", json!(dir)),
            ConfigChange::Env(name, value) => ("Env", variables(config.get("Env"), name, value)),
            ConfigChange::Label(name, value) => {
                return change(config, "Labels", |labels| {
                    labels.insert(name.clone(), json!(value));
                });
            }
            ConfigChange::Expose(names) => return change(config, "ExposedPorts", add(names)),
            ConfigChange::Volume(names) => return change(config, "Volumes", add(names)),
        };
        config.insert(name.to_owned(), value);
    }
}

/// Adds names to an object that stands for a set.
fn add(names: &[String]) -> impl FnOnce(&mut Map<String, Value>) {
    |set| set.extend(names.iter().map(|name| (name.clone(), json!({}))))
}

/// The variables, with a new one or a new value.
fn variables(found: Option<&Value>, name: &str, value: &str) -> Value {
    let mut variables = found.and_then(Value::as_array).cloned().unwrap_or_default();
    let is_it = |variable: &Value| {
        let variable = variable.as_str().unwrap_or_default();
        variable.split('=').next() == Some(name)
    };
    let new = json!(format!("{name}={value}"));
    match variables.iter_mut().find(|variable| is_it(variable)) {
        Some(variable) => *variable = new,
        None => variables.push(new),
    }
    Value::Array(variables)
}

/// Changes the object with this name, which is made if it is missing or null.
fn change(
    document: &mut Map<String, Value>,
    name: &str,
    act: impl FnOnce(&mut Map<String, Value>),
) {
    let mut object = match document.remove(name) {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    };
    act(&mut object);
    document.insert(name.to_owned(), Value::Object(object));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn changes_mean_what_podman_takes_them_for() {
        let mut document = Map::new();
        document.insert("config".into(), Value::Null);
        for change in [
            r#"CMD ["a","b"]"#,
            "ENV A=1 B=2",
            "LABEL x=y z",
            "USER 1:2",
            "WORKDIR /w",
            "STOPSIGNAL 9",
            r#"VOLUME ["/v","/w"]"#,
            "EXPOSE 80",
            "EXPOSE 53/UDP 8000-8010",
            "ENTRYPOINT /e --x",
            r#"ENV E="f g""#,
            "ENV E=h",
            "cmd=/bin/z",
        ] {
            change.parse::<ConfigChange>().unwrap().apply(&mut document);
        }
        assert_eq!(
            document["config"],
            json!({
                "Cmd": ["/bin/sh", "-c", "/bin/z"],
                "Entrypoint": ["/bin/sh", "-c", "/e --x"],
                "Env": ["A=1 B=2", "E=h"],
                "ExposedPorts": { "80/tcp": {}, "53/udp": {}, "8000-8010/tcp": {} },
                "Labels": { "x": "y z" },
                "StopSignal": "9",
                "User": "1:2",
                "Volumes": { "/v": {}, "/w": {} },
                "WorkingDir": "/w",
            })
        );
        for (text, said) in [
            ("CMD", "write an instruction"),
            ("FROM x", "FROM is not one of"),
            ("ENV C D", "ENV needs NAME=VALUE"),
            ("ENV C D=E", "ENV needs NAME=VALUE"),
            ("LABEL q", "LABEL needs NAME=VALUE"),
            ("WORKDIR w", "WORKDIR needs an absolute path"),
            ("VOLUME v", "VOLUME needs an absolute path"),
            ("EXPOSE http", "EXPOSE needs ports"),
            ("EXPOSE 1-2-3", "EXPOSE needs ports"),
            ("EXPOSE 9-5", "EXPOSE needs ports"),
            ("EXPOSE 0", "EXPOSE needs ports"),
            ("CMD [\"a\"", "CMD needs a JSON array"),
            ("ENTRYPOINT [\"a\", 1]", "ENTRYPOINT needs a JSON array"),
            ("USER :", "USER needs USER"),
            ("USER a b", "USER needs USER"),
            ("USER -1", "USER needs USER"),
            ("WORKDIR /../x", "WORKDIR needs an absolute path"),
            ("VOLUME /../x", "VOLUME needs an absolute path"),
            ("EXPOSE +80", "EXPOSE needs ports"),
        ] {
            let error = text.parse::<ConfigChange>().unwrap_err().to_string();
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }
}
