//! What can be wrong with a tar.

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
    /// Offset of the block that was looked at.
    pub offset: u64,
    /// The entry's path as far as it was known.
    pub path: Vec<u8>,
    /// What is wrong.
    pub reason: Reason,
}

/// What is wrong with a tar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Neither a header nor the end.
    #[error("a tar header was expected and its checksum is wrong")]
    Checksum,
    /// The stream ends inside an entry.
    #[error("the tar is cut off")]
    CutOff,
    /// One block of zeros, and then no second one.
    #[error("a single block of zeros in front of more entries")]
    LoneZeroBlock,
    /// A number that is none, or does not fit.
    #[error("the header's {0} is not a number in range")]
    Number(&'static str),
    /// A PAX record that cannot be parsed.
    #[error("a PAX record does not parse")]
    PaxRecord,
    /// A PAX value that cannot be parsed.
    #[error("the value of the PAX record `{0}` does not parse")]
    PaxValue(String),
    /// NUL where no NUL may be.
    #[error("a NUL byte in {0}")]
    Nul(&'static str),
    /// An extension header, a name or a map above its limit.
    #[error("{0} longer than {1} bytes")]
    TooLong(&'static str, usize),
    /// Extension headers that belong to no entry.
    #[error("extension headers without an entry")]
    Dangling,
    /// An entry type that has no meaning in a root file system.
    #[error("unsupported entry type {0:?}")]
    EntryType(char),
    /// A symlink or hard link that leads nowhere.
    #[error("a link without a target")]
    NoTarget,
    /// A sparse map that contradicts itself or the entry's sizes.
    #[error("the sparse map is wrong: {0}")]
    Sparse(&'static str),
}
