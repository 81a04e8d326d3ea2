//! Extended headers of tar archives (POSIX.1-2017, pax, "pax Extended Header").

use std::collections::BTreeMap;

/// Key and value of each record; later ones win.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Pairs of offset and size, where each pair is two records (GNU tar's sparse format 0.0).
    pub(super) sparse_pairs: Vec<u64>,
    /// Bytes of all headers that they are from.
    size: usize,
}

/// A record whose length or form is wrong.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Malformed;

impl Records {
    /// Adds the records in `bytes`: `LENGTH KEY=VALUE\n`, where the length counts all of it. A value holds any byte.
    pub(super) fn extend(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        self.size += bytes.len();
        while !bytes.is_empty() {
            let blank = bytes.iter().position(|&byte| byte == b' ').ok_or(Malformed)?;
            let length = number(&bytes[..blank]).and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|length| *length > blank + 1 && *length <= bytes.len());
            let (record, rest) = bytes.split_at(length.ok_or(Malformed)?);
            let record = record[blank + 1..].strip_suffix(b"\n").ok_or(Malformed)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(Malformed)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            bytes = rest;
        }
        Ok(())
    }

    /// Bytes of all headers that were added: what they hold takes no more memory than in proportion.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
            self.sparse_pairs.push(number(value).ok_or(Malformed)?);
        }
        self.values.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    /// A value. An empty one takes back what an earlier header said.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let value = self.values.get(key.as_bytes())?;
        (!value.is_empty()).then_some(value.as_slice())
    }

    /// A value that is a decimal number.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Malformed> {
        self.get(key).map(|value| number(value).ok_or(Malformed)).transpose()
    }

    /// Seconds and nanoseconds, of which there may be a fraction: `-12.5` is half a second after -13.
    pub(super) fn time(&self, key: &str) -> Result<Option<(i64, u32)>, Malformed> {
        self.get(key).map(|value| time(value).ok_or(Malformed)).transpose()
    }

    /// Names and values of the keys that begin with `prefix`.
    pub(super) fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.values
            .iter()
            .filter_map(move |(key, value)| Some((key.strip_prefix(prefix.as_bytes())?, value.as_slice())))
    }
}

/// Decimal digits.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(number(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or(b"0");
    let mut nanoseconds = 0;
    for position in 0..9 {
        let digit = fraction.get(position).copied().unwrap_or(b'0');
        nanoseconds = nanoseconds * 10 + u32::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let digits = |length: usize| length.to_string().len();
        let mut length = body.len() + 1;
        while digits(length) + body.len() != length {
            length = digits(length) + body.len();
        }
        [length.to_string().as_bytes(), &body].concat()
    }

    #[test]
    fn a_value_may_hold_any_byte() {
        let mut records = Records::default();
        let value = b"a=b\n\0c 9 d=e\n";
        records
            .extend(&[record("k", value), record("mtime", b"-12.5")].concat())
            .unwrap();
        assert_eq!(records.get("k"), Some(value.as_slice()));
        assert_eq!(records.time("mtime"), Ok(Some((-13, 500_000_000))));
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        for bytes in [
            "5 a=b", "99 a=b\n", "x a=b\n", "6 a=b", "2 \n", "6 abc\n", "-6 a=b\n", "0 a=b\n",
        ] {
            assert_eq!(Records::default().extend(bytes.as_bytes()), Err(Malformed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut records = Records::default();
            let _ = records.extend(&bytes);
            let _ = (records.time("mtime"), records.number("size"));
        }

        #[test]
        fn what_was_written_is_read(value in proptest::collection::vec(any::<u8>(), 1..200)) {
            let mut records = Records::default();
            records.extend(&record("key", &value)).unwrap();
            prop_assert_eq!(records.get("key"), Some(value.as_slice()));
        }
    }
}
