//! Sizes on the command line.

/// Parses a number of bytes, such as `512`, or with a unit (powers of 1024) `64K`, `10M`, `10GiB`.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let error = || format!("`{text}` is not a size such as 512, 64K, 10M or 20G");
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        "P" | "PB" | "PIB" => 50,
        _ => return Err(error()),
    };
    let number: u64 = number.parse().map_err(|_| error())?;
    number
        .checked_mul(1 << shift)
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
        ];
        for (text, bytes) in good {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "1iB", "99999999P", "1 G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
