//! The keys that leave a session without ending the program's terminal for good: docker's `ctrl-p,ctrl-q`.

use std::str::FromStr;

/// Why a sequence of keys is none.
#[derive(Debug, thiserror::Error)]
#[error("{key:?} in the detach keys {sequence:?} is no key: write single characters and ctrl-X, separated by commas")]
pub struct DetachKeysError {
    key: String,
    sequence: String,
}

/// A sequence of keys, such as `ctrl-p,ctrl-q`, that is looked for in what is typed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl FromStr for DetachKeys {
    type Err = DetachKeysError;

    fn from_str(sequence: &str) -> Result<Self, Self::Err> {
        let parse = |key: &str| {
            parse_key(key).ok_or_else(|| DetachKeysError {
                key: key.to_owned(),
                sequence: sequence.to_owned(),
            })
        };
        Ok(Self {
            keys: sequence.split(',').map(parse).collect::<Result<_, _>>()?,
            matched: 0,
        })
    }
}

fn parse_key(key: &str) -> Option<u8> {
    let (control, character) = match key.strip_prefix("ctrl-") {
        Some(rest) => (true, rest),
        None => (false, key),
    };
    match (control, character.as_bytes()) {
        (false, &[byte]) if byte.is_ascii_graphic() => Some(byte),
        // Control characters are the letters with the two high bits off.
        (true, &[byte @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Some(byte & 0x1f),
        _ => None,
    }
}

impl DetachKeys {
    /// Takes typed bytes and appends to `forward` those that are no part of the sequence. `true` when it is complete:
    /// the rest of `typed` is dropped then.
    pub fn feed(&mut self, typed: &[u8], forward: &mut Vec<u8>) -> bool {
        typed.iter().any(|&byte| self.feed_byte(byte, forward))
    }

    fn feed_byte(&mut self, byte: u8, forward: &mut Vec<u8>) -> bool {
        while self.matched > 0 && self.keys[self.matched] != byte {
            self.give_up_oldest(forward);
        }
        if self.keys[self.matched] != byte {
            forward.push(byte);
            return false;
        }
        self.matched += 1;
        if self.matched < self.keys.len() {
            return false;
        }
        self.matched = 0;
        true
    }

    /// Releases held keys until those left are again a start of the sequence.
    fn give_up_oldest(&mut self, forward: &mut Vec<u8>) {
        let held = &self.keys[..self.matched];
        let released = (1..=self.matched)
            .find(|&count| held.starts_with(&held[count..]))
            .unwrap_or(self.matched);
        forward.extend_from_slice(&held[..released]);
        self.matched -= released;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(keys: &str, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut forward = Vec::new();
        let mut keys: DetachKeys = keys.parse().unwrap();
        // Byte by byte, as typed: a sequence may come in pieces.
        let detached = typed
            .iter()
            .any(|byte| keys.feed(std::slice::from_ref(byte), &mut forward));
        (forward, detached)
    }

    #[test]
    fn the_sequence_is_found_and_never_forwarded() {
        assert_eq!(feed("ctrl-p,ctrl-q", b"ls\r\x10\x11"), (b"ls\r".to_vec(), true));
        assert_eq!(feed("ctrl-]", b"a\x1db"), (b"a".to_vec(), true));
        assert_eq!(feed("a,a,b", b"aaab"), (b"a".to_vec(), true));
    }

    #[test]
    fn a_start_that_leads_nowhere_is_forwarded_whole() {
        assert_eq!(
            feed("ctrl-p,ctrl-q", b"\x10x\x10\x10x"),
            (b"\x10x\x10\x10x".to_vec(), false)
        );
        assert_eq!(feed("a,b,a,c", b"ababd"), (b"ababd".to_vec(), false));
    }

    #[test]
    fn what_is_no_key_is_named() {
        for sequence in ["", "ctrl-", "ctrl-pq", "ctrl-p,", "ctrl-1", "esc"] {
            assert!(sequence.parse::<DetachKeys>().is_err(), "{sequence:?}");
        }
    }
}
