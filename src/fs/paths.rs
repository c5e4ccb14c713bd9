//! Paths of any bytes in JSON, while serde's own must be UTF-8: a string if possible, or else a
//! list of bytes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    String(String),
    Bytes(Vec<u8>),
}

impl From<&Path> for Text {
    fn from(path: &Path) -> Self {
        path.to_str().map_or_else(
            || Text::Bytes(path.as_os_str().as_bytes().to_vec()),
            |s| Text::String(s.to_owned()),
        )
    }
}

impl From<Text> for PathBuf {
    fn from(text: Text) -> Self {
        match text {
            Text::String(string) => Self::from(string),
            Text::Bytes(bytes) => Self::from(OsString::from_vec(bytes)),
        }
    }
}

/// For `serde(with)`: a path.
pub mod path {
    use super::{Deserialize, Deserializer, Path, PathBuf, Serialize, Serializer, Text};

    /// Serializes a path.
    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        Text::from(path).serialize(serializer)
    }

    /// Deserializes a path.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Text::deserialize(deserializer).map(PathBuf::from)
    }
}

/// For `serde(with)`: a path that may be missing.
pub mod optional_path {
    use super::{Deserialize, Deserializer, PathBuf, Serialize, Serializer, Text};

    /// Serializes a path.
    // The signature is serde's.
    #[allow(clippy::ref_option)]
    pub fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        path.as_deref().map(Text::from).serialize(serializer)
    }

    /// Deserializes a path.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?.map(PathBuf::from))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Paths {
        #[serde(with = "path")]
        path: PathBuf,
        #[serde(with = "optional_path")]
        other: Option<PathBuf>,
    }

    #[test]
    fn any_path_comes_back() {
        let paths = Paths {
            path: "/ä".into(),
            other: Some(OsString::from_vec(b"/\xff".to_vec()).into()),
        };
        let json = serde_json::to_string(&paths).unwrap();
        assert_eq!(json, r#"{"path":"/ä","other":[47,255]}"#);
        assert_eq!(serde_json::from_str::<Paths>(&json).unwrap(), paths);
        let none = Paths {
            path: "/".into(),
            other: None,
        };
        assert_eq!(
            serde_json::from_str::<Paths>(&serde_json::to_string(&none).unwrap()).unwrap(),
            none
        );
    }
}
