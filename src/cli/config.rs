//! `lxcri-fs config`

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};

use super::error::Error;
use super::output;
use super::store::StoreArgs;
use crate::store::config::{Config, Setting};

/// Show the configuration
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show every setting, its value, and where the value comes from
    #[command(after_help = "Example: LXCRI_FS_STORE=zfs:tank lxcri-fs config show")]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Print one JSON object: for every setting, its value and where it comes from
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    value: Value,
    from: String,
}

pub(super) fn run(args: &ConfigArgs) -> Result<(), Error> {
    let ConfigCommand::Show(args) = &args.command;
    let rows = rows(&args.store.config()?);
    if args.json {
        return output::json(&rows);
    }
    let mut out = output::lines();
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let wide = rows
        .values()
        .map(|row| text(&row.value).len())
        .max()
        .unwrap_or_default();
    rows.iter()
        .try_for_each(|(key, row)| {
            writeln!(out, "{key:<20} {:<wide$}  {}", text(&row.value), row.from)
        })
        .map_err(Error::Output)
}

/// As the configuration has it.
fn bytes(number: u64) -> Value {
    json!(number.to_string())
}

fn rows(config: &Config) -> BTreeMap<&'static str, Row> {
    fn row<T>(setting: &Setting<T>, value: Value) -> Row {
        Row {
            value,
            from: setting.origin.to_string(),
        }
    }
    let Config {
        store,
        engine,
        grace,
        max_size,
        keep_free,
        registries,
        policy,
        verifiers,
        annotations,
    } = config;
    BTreeMap::from([
        ("store", row(store, json!(store.value))),
        ("engine", row(engine, json!(engine.value))),
        ("gc.grace", row(grace, json!(format!("{:#}", grace.value)))),
        ("gc.max-size", row(max_size, bytes(max_size.value))),
        ("gc.keep-free", row(keep_free, bytes(keep_free.value))),
        ("registries", row(registries, json!(registries.value))),
        ("trust.policy", row(policy, json!(policy.value))),
        ("trust.verifiers", row(verifiers, json!(verifiers.value))),
        (
            "annotations.allow",
            row(annotations, json!(annotations.value)),
        ),
    ])
}
