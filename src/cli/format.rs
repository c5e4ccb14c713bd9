//! `--format`: lists in a form that the user chooses, as podman's and docker's `--format`, over the
//! fields that `--json` prints.

use std::io::{self, Write as _};

use serde::Serialize;
use serde_json::Value;

use super::error::Error;
use super::output::{bytes, json, json_text};
use crate::text::neutral;

/// Stands for a value that is null.
const NONE: &str = "<none>";
/// Between two columns of a table.
const GAP: usize = 3;

/// A parsed format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Format {
    /// As `--json`.
    Json,
    /// A line for each row.
    Lines(Vec<Part>),
    /// Aligned columns below a header.
    Table(Vec<Part>),
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// Text as it is.
    Text(String),
    /// `{{.Field}}`: the path of the field.
    Field(&'static str),
    /// `{{json .}}`.
    Row,
    /// `{{json .Field}}`.
    Json(&'static str),
}

impl Format {
    /// Parses a format over rows with these fields: paths with dots, such as `image.name`. The
    /// error names the fields; a parser for clap.
    pub(super) fn parse(text: &str, fields: &'static [&'static str]) -> Result<Self, String> {
        let text = text.trim();
        if text == "json" {
            return Ok(Format::Json);
        }
        match text.strip_prefix("table ") {
            Some(columns) => Ok(Format::Table(parts(columns.trim(), fields)?)),
            None => Ok(Format::Lines(parts(text, fields)?)),
        }
    }

    /// Prints rows.
    pub(super) fn print(&self, rows: &[impl Serialize]) -> Result<(), Error> {
        let parts = match self {
            Format::Json => return rows.iter().try_for_each(json),
            Format::Lines(parts) | Format::Table(parts) => parts,
        };
        let rows = rows
            .iter()
            .map(|row| line(parts, &serde_json::to_value(row)?));
        let mut lines = rows
            .collect::<io::Result<Vec<String>>>()
            .map_err(Error::Output)?;
        if let Format::Table(_) = self {
            lines.insert(0, header(parts));
            lines = aligned(&lines);
        }
        print(&lines).map_err(Error::Output)
    }
}

/// Values are neutralised already; a template may have tabs and lines.
fn print(lines: &[String]) -> io::Result<()> {
    let mut out = io::BufWriter::new(bytes());
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    out.flush()
}

fn parts(text: &str, fields: &'static [&'static str]) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, after) = after
            .split_once("}}")
            .ok_or_else(|| "`{{` has no `}}`".to_owned())?;
        parts.push(Part::Text(unescaped(before)));
        parts.push(part(action.trim(), fields)?);
        rest = after;
    }
    parts.push(Part::Text(unescaped(rest)));
    parts.retain(|part| *part != Part::Text(String::new()));
    if parts.iter().all(|part| matches!(part, Part::Text(_))) {
        return Err(format!("it has no field; {}", known(fields)));
    }
    Ok(parts)
}

fn part(action: &str, fields: &'static [&'static str]) -> Result<Part, String> {
    if let Some(json) = action.strip_prefix("json ") {
        return match json.trim() {
            "." => Ok(Part::Row),
            name => Ok(Part::Json(field(name, fields)?)),
        };
    }
    Ok(Part::Field(field(action, fields)?))
}

/// Finds a field by its name as in Go, `.RootDigest`, or as in JSON, `.root_digest`.
fn field(name: &str, fields: &'static [&'static str]) -> Result<&'static str, String> {
    let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let wanted = name.strip_prefix('.').map(plain);
    fields
        .iter()
        .find(|field| Some(plain(field)) == wanted)
        .copied()
        .ok_or_else(|| format!("there is no field {name}; {}", known(fields)))
}

fn known(fields: &[&str]) -> String {
    let names: Vec<_> = fields.iter().map(|field| go_name(field)).collect();
    format!("the fields are {}", names.join(", "))
}

/// The name of a field as podman writes it: `image.root_digest` is `.Image.RootDigest`.
fn go_name(field: &str) -> String {
    let word = |word: &str| match word {
        "id" => "ID".to_owned(),
        word => {
            let (first, rest) = word.split_at(usize::from(!word.is_empty()));
            first.to_ascii_uppercase() + rest
        }
    };
    let name = |name: &str| name.split('_').map(word).collect::<String>();
    field
        .split('.')
        .map(|part| format!(".{}", name(part)))
        .collect()
}

/// `\t` and `\n` are a tab and the end of a line.
fn unescaped(text: &str) -> String {
    text.replace(r"\t", "\t").replace(r"\n", "\n")
}

fn at<'a>(row: &'a Value, field: &str) -> &'a Value {
    field.split('.').fold(row, |value, name| &value[name])
}

fn line(parts: &[Part], row: &Value) -> io::Result<String> {
    let text = |part: &Part| match part {
        Part::Text(text) => Ok(text.clone()),
        Part::Field(field) => Ok(neutral(&shown(at(row, field))).into_owned()),
        Part::Row => json_text(row),
        Part::Json(field) => json_text(at(row, field)),
    };
    parts.iter().map(text).collect()
}

/// A value as text: lists with commas.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => NONE.to_owned(),
        Value::String(text) => text.clone(),
        // An image within a container.
        Value::Object(fields) if fields.contains_key("name") => shown(&fields["name"]),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn header(parts: &[Part]) -> String {
    let text = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Field(field) | Part::Json(field) => {
            field.replace(['.', '_'], " ").to_ascii_uppercase()
        }
        Part::Row => "JSON".to_owned(),
    };
    parts.iter().map(text).collect()
}

/// Lines whose columns, divided by tabs, begin below each other.
fn aligned(lines: &[String]) -> Vec<String> {
    let rows: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.split('\t').collect())
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + GAP
    };
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let aligned = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths);
        let text: String = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.trim_end().to_owned()
    });
    aligned.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    const FIELDS: &[&str] = &["name", "root_digest", "id", "image.name", "list"];

    fn lines(format: &str) -> Vec<String> {
        let row = json!({"name": "a\u{1b}", "root_digest": "b", "id": 7, "list": ["x", "y"],
            "image": {"name": null}});
        let Format::Lines(parts) = Format::parse(format, FIELDS).unwrap() else {
            return Vec::new();
        };
        line(&parts, &row)
            .unwrap()
            .split('\n')
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn templates_are_filled() {
        assert_eq!(lines(r"{{.Name}}\t{{ .RootDigest }}"), ["a\\u{1b}\tb"]);
        assert_eq!(lines(r"{{.id}}: {{.ID}}\n{{.root_digest}}"), ["7: 7", "b"]);
        assert_eq!(lines("{{.Image.Name}} {{.List}}"), ["<none> x,y"]);
        assert_eq!(lines("{{json .List}}"), [r#"["x","y"]"#]);
        assert_eq!(Format::parse(" json ", FIELDS), Ok(Format::Json));
    }

    #[test]
    fn errors_name_the_fields() {
        let fields = "the fields are .Name, .RootDigest, .ID, .Image.Name, .List";
        for (format, why) in [
            ("{{.Nmae}}", "there is no field .Nmae"),
            ("{{Name}}", "there is no field Name"),
            ("{{json .X}}", "there is no field .X"),
            ("Name", "it has no field"),
        ] {
            let error = Format::parse(format, FIELDS).unwrap_err();
            assert_eq!(error, format!("{why}; {fields}"));
        }
        assert!(Format::parse("{{.Name", FIELDS).is_err());
    }

    #[test]
    fn columns_are_aligned() {
        let lines = ["NAME\tID".to_owned(), "longer\t1".to_owned()];
        assert_eq!(aligned(&lines), ["NAME     ID", "longer   1"]);
    }
}
