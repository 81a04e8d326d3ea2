//! `msb logs`

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use super::error::{CliError, cannot};
use super::{Context, output};
use crate::Sandbox;
use crate::store::files::{self, FileError};

/// How long the end of a VMM process that was killed can go unnoticed: it touches no file.
const RECHECK: Duration = Duration::from_millis(250);

/// Print the console of a sandbox's latest run: what its kernel says
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  msb logs box\n  msb logs --follow box")]
pub(super) struct LogsArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Go on until the sandbox ends
    #[arg(long, short, conflicts_with = "vmm")]
    follow: bool,
    /// Print what the VMM process itself has to say instead
    #[arg(long)]
    vmm: bool,
}

pub(super) fn run(args: &LogsArgs, context: &Context) -> Result<u8, CliError> {
    let what = || format!("read the logs of {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(what()))?;
    let dir = sandbox.dir();
    if args.follow {
        return follow(&sandbox).map(|()| 0);
    }
    let files = match args.vmm {
        true => vec![dir.vmm_log()],
        false => vec![dir.older_console_log(), dir.console_log()],
    };
    for file in files {
        output::guest_bytes(&files::read_optional(&file).map_err(cannot(what()))?.unwrap_or_default())?;
    }
    Ok(0)
}

fn follow(sandbox: &Sandbox) -> Result<(), CliError> {
    let what = || format!("follow the logs of {}", sandbox.label());
    let dir = sandbox.dir();
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
    let inotify = inotify.map_err(|errno| cannot(what())(io::Error::from(errno)))?;
    let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&inotify, dir.path(), changes).map_err(|errno| cannot(what())(io::Error::from(errno)))?;
    output::guest_bytes(
        &files::read_optional(&dir.older_console_log())
            .map_err(cannot(what()))?
            .unwrap_or_default(),
    )?;
    let mut console = Follower {
        path: dir.console_log(),
        file: None,
    };
    loop {
        // The state comes first: what was written before the end is read after it.
        let is_alive = sandbox.state().map_err(cannot(what()))?.is_alive();
        output::guest_bytes(&console.read_more().map_err(cannot(what()))?)?;
        if !is_alive {
            return Ok(());
        }
        let pause = Timespec::try_from(RECHECK).expect("a quarter of a second fits");
        // An interrupted pause is a short one.
        let _ = poll(&mut [PollFd::new(&inotify, PollFlags::IN)], Some(&pause));
        while rustix::io::read(&inotify, &mut [0_u8; 4096]).is_ok_and(|read| read > 0) {}
    }
}

/// A log that grows, and is put aside when it is long.
#[derive(Debug)]
struct Follower {
    path: PathBuf,
    file: Option<File>,
}

impl Follower {
    /// What was written since the last time.
    fn read_more(&mut self) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        loop {
            if let Some(file) = &mut self.file {
                file.read_to_end(&mut bytes)
                    .map_err(FileError::io("read", &self.path))?;
                if !self.was_replaced() {
                    return Ok(bytes);
                }
            }
            match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(bytes),
                file => self.file = Some(file.map_err(FileError::io("read", &self.path))?),
            }
        }
    }

    fn was_replaced(&self) -> bool {
        let current = self.file.as_ref().and_then(|file| file.metadata().ok());
        match (current, std::fs::metadata(&self.path)) {
            (Some(current), Ok(there)) => (current.dev(), current.ino()) != (there.dev(), there.ino()),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_misses_nothing_when_the_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut follower = Follower {
            path: path.clone(),
            file: None,
        };
        assert_eq!(follower.read_more().unwrap(), b"");
        std::fs::write(&path, "one ").unwrap();
        assert_eq!(follower.read_more().unwrap(), b"one ");
        std::fs::write(&path, "one two ").unwrap();
        std::fs::rename(&path, dir.path().join("console.log.1")).unwrap();
        std::fs::write(&path, "three").unwrap();
        assert_eq!(follower.read_more().unwrap(), b"two three");
        assert_eq!(follower.read_more().unwrap(), b"");
    }
}
