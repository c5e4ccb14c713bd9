//! Sizes, as the command line and the configuration have them.

/// Most digits after the point: further ones are less than a byte of most units.
const MAX_DECIMALS: usize = 9;

/// Parses a number of bytes, such as `512`, or with a unit (powers of 1024) `64K`, `1.5G`, `10GiB`,
/// and as lists print it, `1.2 GiB`.
///
/// # Errors
/// If it is none, in words for the user.
pub fn parse(text: &str) -> Result<u64, String> {
    let error = || format!("`{text}` is not a size such as 512, 64K, 10M or 1.5G");
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let end = text.find(|c| !is_number(c)).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim_start_matches(' ').to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        "P" | "PB" | "PIB" => 50,
        _ => return Err(error()),
    };
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if decimals.len() > MAX_DECIMALS || (shift == 0 && number.contains('.')) {
        return Err(error());
    }
    let (whole, part): (u64, u128) = match (whole.parse(), decimals.parse()) {
        (Ok(whole), Ok(part)) => (whole, part),
        _ => return Err(error()),
    };
    // Of 10 to the number of decimals.
    let of = decimals.bytes().fold(1u128, |of, _| of * 10);
    let part = u64::try_from((part << shift) / of).ok();
    let bytes = whole.checked_mul(1 << shift).zip(part);
    bytes
        .and_then(|(whole, part)| whole.checked_add(part))
        .ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes() {
        let good = [
            ("0", 0),
            ("512", 512),
            ("1B", 1),
            ("64K", 64 << 10),
            ("10m", 10 << 20),
            ("2GiB", 2 << 30),
            ("3TB", 3 << 40),
            ("1P", 1 << 50),
            ("1.5G", 3 << 29),
            ("1.2 GiB", 1_288_490_188),
            ("0.5 KiB", 512),
            ("7 B", 7),
        ];
        for (text, bytes) in good {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1.5",
            "1.5 B",
            ".5G",
            "1.G",
            "1.2.3G",
            "1X",
            "1iB",
            "99999999P",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
