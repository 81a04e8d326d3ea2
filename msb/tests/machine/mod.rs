//! `msb` where nobody has used it before.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A home, a store, a runtime directory and a place for the guest's files, all of a test's own.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A path in the home.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msb"));
        command.args(arguments).env_clear().stdin(Stdio::null());
        command
            .env("MSB_HOME", self.path("home"))
            .env("MSB_RUNTIME_DIR", self.path("run"))
            .env("MSB_LIB", self.path("lib"))
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/bin:/bin");
        command
    }

    /// Runs `msb` to its end.
    pub(crate) fn msb(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}
