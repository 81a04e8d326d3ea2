//! Ids and names of sandboxes.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::rand::GetRandomFlags;
use serde::{Deserialize, Serialize};

use crate::jail::user;

/// Hex digits of an id.
const ID_DIGITS: usize = 12;

/// Longest name: a label of a host name (RFC 1123, section 2.1; RFC 1035, section 2.3.4).
const MAX_NAME: usize = 63;

/// What a sandbox is known by for ever: 12 lowercase hex digits, chosen at random.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// The text is no sandbox id.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no sandbox id: it has {ID_DIGITS} lowercase hex digits")]
pub struct IdError(String);

impl SandboxId {
    /// A new id.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; ID_DIGITS / 2];
        // Up to 256 bytes come whole or not at all (getrandom(2)).
        rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The user that the sandbox's VM is when root starts it. No two sandboxes of a store have the same.
    pub fn user(&self) -> u32 {
        user::of(u64::from_str_radix(&self.0, 16).expect("an id is hex digits, fewer than a number has"))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if looks_like_id(text) {
            Ok(Self(text.into()))
        } else {
            Err(IdError(text.into()))
        }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name the user gave: one label of a host name, because `NAME.msb` and the guest's host name are made of it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is no name.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a name must not be empty")]
    Empty,
    /// It is longer than a host name's label.
    #[error("the name '{name}' has {length} characters; a host name's label has at most {MAX_NAME}")]
    TooLong {
        /// What was given, shortened.
        name: String,
        /// Its length in characters.
        length: usize,
    },
    /// A character that a host name cannot have.
    #[error("the name '{name}' has the character {character:?}; use a-z, 0-9 and '-', as in a host name")]
    Character {
        /// What was given.
        name: String,
        /// The first one that is not allowed.
        character: char,
    },
    /// A hyphen at an end.
    #[error("the name '{0}' begins or ends with '-', which a host name cannot")]
    Hyphen(String),
    /// It could be taken for an id.
    #[error("the name '{0}' looks like a sandbox id ({ID_DIGITS} hex digits); choose another")]
    LooksLikeId(String),
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let length = text.chars().count();
        if length > MAX_NAME {
            let name = text.chars().take(20).chain("...".chars()).collect();
            return Err(NameError::TooLong { name, length });
        }
        let name = text.to_owned();
        match text.chars().find(|&c| !is_allowed(c)) {
            Some(character) => Err(NameError::Character { name, character }),
            None if text.is_empty() => Err(NameError::Empty),
            None if text.starts_with('-') || text.ends_with('-') => Err(NameError::Hyphen(name)),
            None if looks_like_id(text) => Err(NameError::LooksLikeId(name)),
            None => Ok(Self(name)),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` is a full id.
fn looks_like_id(text: &str) -> bool {
    text.len() == ID_DIGITS && is_id_prefix(text)
}

/// Whether `text` can begin an id.
pub(super) fn is_id_prefix(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn what_is_taken_as_a_name_is_a_label_of_a_host_name(text in "[a-z0-9A-F.\\-\u{e9}]{0,70}") {
            if let Ok(name) = text.parse::<Name>() {
                let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                proptest::prop_assert!((1..=63).contains(&name.as_str().len()) && name.as_str().bytes().all(is_label));
                proptest::prop_assert!(text.parse::<SandboxId>().is_err());
                let json = serde_json::to_string(&name).unwrap();
                proptest::prop_assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name);
            }
        }
    }

    #[test]
    fn a_name_is_one_label_of_a_host_name() {
        let longest = "a".repeat(63);
        for good in ["a", "box", "web-1", "1st", "beef", longest.as_str()] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            "Box",
            "a.b",
            "a_b",
            "a b",
            "a/b",
            "..",
            "bøx",
            "a\n",
            too_long.as_str(),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_cannot_be_taken_for_an_id() {
        assert_eq!(
            "0123456789ab".parse::<Name>(),
            Err(NameError::LooksLikeId("0123456789ab".into()))
        );
        assert!("0123456789a".parse::<Name>().is_ok());
    }

    #[test]
    fn a_random_id_is_an_id() {
        let id = SandboxId::random().unwrap();
        assert_eq!(id.as_str().parse::<SandboxId>().unwrap(), id);
        assert!("0123456789AB".parse::<SandboxId>().is_err());
    }
}
