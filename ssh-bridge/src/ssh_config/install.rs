//! Installs the block: a file of our own in `~/.ssh`, and an `Include` at the top of `~/.ssh/config`.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{RenderError, SshConfig, checked, quote};
use crate::atomic;

/// The file in `~/.ssh` that has the block.
const BLOCK_FILE: &str = "msb_config";

/// What stands above the `Include`, to say whose it is.
const MARKER: &str = "# Sandboxes of msb; `msb ssh-config --uninstall` removes this line and the next.";

/// Why ssh's configuration could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The block cannot be written.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// A file could not be read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// `config` is a link to nowhere.
    #[error("{} is a symbolic link to a file that does not exist: create its target or remove the link", path.display())]
    DanglingLink {
        /// The link.
        path: PathBuf,
    },
    /// A file is another than when the plan was made.
    #[error("{} was changed by another program meanwhile: try again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// What an installation or removal will change. Nothing is changed before [`Plan::apply`].
#[derive(Clone, Debug)]
pub struct Plan {
    directory: PathBuf,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    path: PathBuf,
    before: Option<Vec<u8>>,
    /// None: the file goes.
    after: Option<Vec<u8>>,
}

impl Plan {
    /// Plans to install the block into `.ssh` of the home directory `home`. ssh takes that from the user database, not
    /// from `HOME`.
    ///
    /// # Errors
    /// When the block cannot be written, or a file not be read.
    pub fn install(home: &Path, config: &SshConfig) -> Result<Self, InstallError> {
        let directory = home.join(".ssh");
        let block_path = directory.join(BLOCK_FILE);
        let include = include_lines(&block_path)?;
        let block = format!(
            "# Written by `msb ssh-config --install`; changes are lost.\n{}",
            config.render()?
        );
        let mut plan = Self {
            directory,
            changes: Vec::new(),
        };
        plan.change(block_path, |_| Some(block.into_bytes()))?;
        plan.change(plan.config_path()?, |before| {
            let rest = without_include(before, &include);
            Some([include.as_bytes(), &rest].concat())
        })?;
        Ok(plan)
    }

    /// Plans to remove what [`Plan::install`] installed.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn uninstall(home: &Path) -> Result<Self, InstallError> {
        let directory = home.join(".ssh");
        let block_path = directory.join(BLOCK_FILE);
        let include = include_lines(&block_path)?;
        let mut plan = Self {
            directory,
            changes: Vec::new(),
        };
        plan.change(plan.config_path()?, |before| Some(without_include(before, &include)))?;
        plan.change(block_path, |_| None)?;
        Ok(plan)
    }

    /// Whether everything already is as it shall be.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes for a reader, in the style of `diff -u`.
    pub fn diff(&self) -> String {
        self.changes.iter().map(Change::diff).collect()
    }

    /// Makes the changes, each file at once.
    ///
    /// # Errors
    /// When a file cannot be written, or is another than when the plan was made.
    pub fn apply(&self) -> Result<(), InstallError> {
        if self.is_empty() {
            return Ok(());
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.directory)
            .map_err(file_error("create", &self.directory))?;
        self.changes.iter().try_for_each(Change::apply)
    }

    /// The file that `~/.ssh/config` really is: it may be a link into a directory under version control.
    fn config_path(&self) -> Result<PathBuf, InstallError> {
        let path = self.directory.join("config");
        if !path.is_symlink() {
            return Ok(path);
        }
        match fs::canonicalize(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(InstallError::DanglingLink { path }),
            resolved => resolved.map_err(file_error("follow the link", &path)),
        }
    }

    fn change(&mut self, path: PathBuf, after: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Result<(), InstallError> {
        let before = atomic::read(&path).map_err(file_error("read", &path))?;
        let after = after(before.as_deref().unwrap_or_default());
        let nothing = before.is_none() && after.as_ref().is_some_and(Vec::is_empty);
        if before != after && !nothing {
            self.changes.push(Change { path, before, after });
        }
        Ok(())
    }
}

impl Change {
    fn apply(&self) -> Result<(), InstallError> {
        let current = atomic::read(&self.path).map_err(file_error("read", &self.path))?;
        if current != self.before {
            return Err(InstallError::Changed {
                path: self.path.clone(),
            });
        }
        match &self.after {
            Some(content) => atomic::replace_keeping_mode(&self.path, 0o600, content),
            None => atomic::remove(&self.path),
        }
        .map_err(file_error("write", &self.path))
    }

    /// Every change here is one stretch of lines, so what the ends have in common is left out.
    fn diff(&self) -> String {
        let name = |content: &Option<Vec<u8>>| match content {
            Some(_) => self.path.display().to_string(),
            None => "/dev/null".to_owned(),
        };
        let text =
            |content: &Option<Vec<u8>>| String::from_utf8_lossy(content.as_deref().unwrap_or_default()).into_owned();
        let (before, after) = (text(&self.before), text(&self.after));
        let (before, after): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
        let start = common(before.iter(), after.iter());
        let end = common(before[start..].iter().rev(), after[start..].iter().rev());
        let (removed, added) = (&before[start..before.len() - end], &after[start..after.len() - end]);

        let mut diff = format!("--- {}\n+++ {}\n", name(&self.before), name(&self.after));
        let position = |count: usize| if count == 0 { start } else { start + 1 };
        let hunk = (
            position(removed.len()),
            removed.len(),
            position(added.len()),
            added.len(),
        );
        writeln!(diff, "@@ -{},{} +{},{} @@", hunk.0, hunk.1, hunk.2, hunk.3).expect("a String takes everything");
        let lines = removed
            .iter()
            .map(|line| format!("-{line}\n"))
            .chain(added.iter().map(|line| format!("+{line}\n")));
        diff.extend(lines);
        diff
    }
}

fn common<'a>(one: impl Iterator<Item = &'a &'a str>, other: impl Iterator<Item = &'a &'a str>) -> usize {
    one.zip(other).take_while(|(one, other)| one == other).count()
}

/// The lines that go to the top of `config`: an `Include` below a `Host` would be for that host only. Characters that
/// glob(7) would expand are escaped.
fn include_lines(block: &Path) -> Result<String, InstallError> {
    let mut pattern = String::new();
    for character in checked(block)?.chars() {
        if "*?[\\".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    Ok(format!("{MARKER}\nInclude {}\n", quote(&pattern)))
}

fn without_include(config: &[u8], include: &str) -> Vec<u8> {
    let (marker, directive) = include.split_once('\n').expect("two lines");
    let ours = [format!("{marker}\n"), directive.to_owned()];
    let lines = config.split_inclusive(|&byte| byte == b'\n');
    lines
        .filter(|line| !ours.iter().any(|own| own.as_bytes() == *line))
        .flatten()
        .copied()
        .collect()
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File {
        operation,
        path,
        source,
    }
}
