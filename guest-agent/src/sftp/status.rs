//! Status codes, with the meaning OpenSSH gives to errors of the kernel.

use std::io;

use rustix::io::Errno;

/// The outcome of a request that has no other reply.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Status {
    code: u32,
    message: Message,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Message {
    Fixed(&'static str),
    Kernel(String),
}

impl Status {
    pub(super) const OK: Self = Self::fixed(0, "Success");
    pub(super) const EOF: Self = Self::fixed(1, "End of file");
    pub(super) const FAILURE: Self = Self::fixed(4, "Failure");
    pub(super) const BAD_MESSAGE: Self = Self::fixed(5, "Bad message");
    pub(super) const UNSUPPORTED: Self = Self::fixed(8, "Operation unsupported");
    pub(super) const BAD_HANDLE: Self = Self::fixed(4, "Invalid handle");
    pub(super) const TOO_MANY_HANDLES: Self = Self::fixed(4, "Too many open handles");

    const NO_SUCH_FILE: u32 = 2;
    const PERMISSION_DENIED: u32 = 3;

    const fn fixed(code: u32, message: &'static str) -> Self {
        Self {
            code,
            message: Message::Fixed(message),
        }
    }

    pub(super) fn code(&self) -> u32 {
        self.code
    }

    pub(super) fn message(&self) -> &str {
        match &self.message {
            Message::Fixed(message) => message,
            Message::Kernel(message) => message,
        }
    }
}

impl From<Errno> for Status {
    fn from(error: Errno) -> Self {
        let code = match error {
            Errno::NOENT | Errno::NOTDIR | Errno::BADF | Errno::LOOP => Self::NO_SUCH_FILE,
            Errno::PERM | Errno::ACCESS | Errno::FAULT => Self::PERMISSION_DENIED,
            Errno::NAMETOOLONG | Errno::INVAL => Self::BAD_MESSAGE.code,
            Errno::NOSYS | Errno::OPNOTSUPP => Self::UNSUPPORTED.code,
            _ => Self::FAILURE.code,
        };
        let text = io::Error::from(error).to_string();
        // The standard library appends the number in brackets.
        let text = text.rsplit_once(" (os error").map_or(text.as_str(), |(text, _)| text);
        Self {
            code,
            message: Message::Kernel(text.into()),
        }
    }
}

impl From<io::Error> for Status {
    fn from(error: io::Error) -> Self {
        Errno::from_io_error(&error).map_or(Self::FAILURE, Self::from)
    }
}

impl From<Result<(), Status>> for Status {
    fn from(result: Result<(), Status>) -> Self {
        match result {
            Ok(()) => Self::OK,
            Err(status) => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_kernel_keep_their_meaning_and_text() {
        let status = Status::from(Errno::NOENT);
        assert_eq!((status.code(), status.message()), (2, "No such file or directory"));
        assert_eq!(Status::from(Errno::ACCESS).code(), 3);
        assert_eq!(Status::from(Errno::NOSPC).code(), 4);
    }
}
