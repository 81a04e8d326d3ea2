//! Names of images, as Docker's users write them.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference;
use serde::{Deserialize, Serialize};

/// What Docker leaves out of the names of its own registry.
const DOCKER: &str = "docker.io/";
const DOCKER_LIBRARY: &str = "docker.io/library/";

/// A name with its registry and its tag or digest: `debian:12` is `docker.io/library/debian:12`.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// The text is no name of an image.
#[derive(Debug, thiserror::Error)]
#[error("'{text}' is no name of an image; write one like debian:12 or registry.example.org/team/app:1.0")]
pub struct NameError {
    text: String,
}

impl ImageName {
    /// As short as a user would write it.
    pub fn familiar(&self) -> &str {
        let name = &self.0;
        name.strip_prefix(DOCKER_LIBRARY)
            .or_else(|| name.strip_prefix(DOCKER))
            .unwrap_or(name)
    }

    /// Where a registry has it.
    pub fn reference(&self) -> Reference {
        self.0.parse().expect("it was parsed when it was made")
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse::<Reference>() {
            Ok(reference) => Ok(Self(reference.whole())),
            Err(_) => Err(NameError {
                text: text.chars().filter(|c| !c.is_control()).take(200).collect(),
            }),
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.familiar())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_completed_as_docker_does_and_shown_as_it_was_written() {
        for (text, whole, shown) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("me/app", "docker.io/me/app:latest", "me/app:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b", "localhost:5000/a:b"),
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!((name.0.as_str(), name.familiar()), (whole, shown));
            assert_eq!(name.familiar().parse::<ImageName>().unwrap(), name);
        }
        for bad in ["", "A B", "UPPER", "a:b:c", "../x", "a\n"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
    }
}
