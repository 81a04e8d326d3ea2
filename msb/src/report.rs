//! An error as one line.

use std::error::Error;
use std::fmt::Write as _;

/// The error and what it came from, each once, on one line.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        // A transparent error repeats its source.
        if !line.ends_with(&message) {
            let _ = write!(line, ": {message}");
        }
        source = error.source();
    }
    line.split(['\n', '\r'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;
    use crate::store::files::FileError;

    #[test]
    fn each_cause_is_said_once() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = StoreError::from(FileError::io("read", std::path::Path::new("/x"))(denied));
        assert_eq!(one_line(&error), "cannot read /x: permission denied");
    }
}
