//! Errors in tars.

/// An error in a tar: what, where, and at which entry.
#[derive(Debug, thiserror::Error)]
#[error(
    "{reason} (offset {offset} of the tar{})",
    if path.is_empty() {
        String::new()
    } else {
        format!(", entry `{}`", String::from_utf8_lossy(path))
    }
)]
pub struct Error {
    /// Offset of the block that is wrong.
    pub offset: u64,
    /// The entry's path, as far as it is known.
    pub path: Vec<u8>,
    /// What is wrong.
    pub reason: Reason,
}

/// What is wrong with a tar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Neither a header nor the end.
    #[error("this should be a tar header, but its checksum is wrong")]
    Checksum,
    /// The stream ends inside an entry.
    #[error("the tar is cut off")]
    CutOff,
    /// One block of zeros without a second one.
    #[error("there is a single block of zeros between entries")]
    LoneZeroBlock,
    /// An invalid number, or one out of range.
    #[error("the header's {0} is not a valid number")]
    Number(&'static str),
    /// A PAX record that cannot be parsed.
    #[error("a PAX record is malformed")]
    PaxRecord,
    /// A PAX value that cannot be parsed.
    #[error("the value of the PAX record `{0}` is malformed")]
    PaxValue(String),
    /// A NUL byte where none is allowed.
    #[error("there is a NUL byte in {0}")]
    Nul(&'static str),
    /// An extension header, a name or a map above its limit.
    #[error("{0} is longer than {1} bytes")]
    TooLong(&'static str, usize),
    /// Extension headers that belong to no entry.
    #[error("extension headers are not followed by an entry")]
    Dangling,
    /// An entry type that has no meaning in a root file system.
    #[error("unsupported entry type {0:?}")]
    EntryType(char),
    /// A symlink or hard link without a target.
    #[error("the link has no target")]
    NoTarget,
    /// A sparse map that contradicts itself or the entry's sizes.
    #[error("the sparse map is wrong: {0}")]
    Sparse(&'static str),
}
