//! Values that are typed: where a server listens, and sizes.

use std::path::PathBuf;
use std::str::FromStr;

/// Where an NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", at))
                if at
                    .rsplit_once(':')
                    .is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok()) =>
            {
                Ok(Self::Tcp(at.to_owned()))
            }
            _ => Err("an address is unix:PATH or tcp:HOST:PORT".into()),
        }
    }
}

/// A size in bytes: digits, and perhaps K, M, G, T or P (powers of 1024; `8G`, `8GiB`, `8GB` are
/// the same).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_uppercase();
        let letter = unit
            .strip_suffix("IB")
            .or(unit.strip_suffix('B'))
            .unwrap_or(&unit);
        let shift = match letter {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            "P" => 50,
            _ => return Err("a size is digits and perhaps K, M, G, T or P".into()),
        };
        let number: u64 = number
            .parse()
            .map_err(|_| "a size begins with digits".to_owned())?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| "that size is too large".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let good = [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1024),
            ("8G", 8 << 30),
            ("2gib", 2 << 30),
        ];
        for (text, bytes) in good {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "G", "-1", "1.5G", "8X", "99999999999P", "1 2"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!("unix:/a:b".parse(), Ok(Address::Unix("/a:b".into())));
        assert_eq!(
            "tcp:[::1]:10809".parse(),
            Ok(Address::Tcp("[::1]:10809".into()))
        );
        for bad in ["", "unix:", "tcp:host", "tcp::1", "tcp:h:99999", "/path"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
