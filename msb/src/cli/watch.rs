//! `msb watch`

use std::ffi::OsString;
use std::io;
use std::path::Path;

use clap::Args;
use msb_ssh::client::Stdio;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::error::{CliError, TRANSPORT_ERROR, cannot};
use super::location::Location;
use super::output::escaped;
use super::spec_args::{BootTimeout, LoginUser};
use super::{Context, session};
use crate::Sandbox;
use crate::files::{FilesError, WatchError, WatchEvent, WatchOptions, Watcher};
use crate::sandbox::ssh::SshClientOptions;

/// Print what changes in a directory of a sandbox, or of a file, from now on
///
/// Paths are relative to what is watched, '.' is that itself; a directory ends with a slash. What was not told because too
/// much changed at once, or too little of it was read, is counted by `lost` in its place.
///
/// The exit status is 0 when what is watched is gone, when nobody reads on, and after SIGINT or SIGTERM; 255 when the
/// connection failed, as it does when the sandbox ends; 125 when it cannot be watched.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb watch box:/etc
  msb watch --recursive --json box:src | jq --unbuffered -r 'select(.event == \"modified\") | .path'

With --json, each line is an object whose `event` is one of:
  watching                                    the first: what changes is told from here on
  created, removed                            path, is_dir
  modified, attributes                        path
  renamed                                     from, to, is_dir
  unwatched                                   path, message: what changes in this directory is not told
  lost                                        changes: how many were not told, null if that is not known
  gone                                        the last: what was watched is not there any more
What is not UTF-8 in a path becomes U+FFFD.")]
pub(super) struct WatchArgs {
    /// A directory or a file; a relative path begins in the user's home directory
    #[arg(value_name = "SANDBOX:PATH")]
    what: OsString,
    /// Also the directories in it, and those that are made there
    #[arg(long, short)]
    recursive: bool,
    /// Print a JSON object on a line for each change
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    login: LoginUser,
    #[command(flatten)]
    boot: BootTimeout,
}

/// One line. The JSON has a stable schema: keys and events are added, never changed or left out.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line {
    Watching,
    Created { path: String, is_dir: bool },
    Modified { path: String },
    Attributes { path: String },
    Removed { path: String, is_dir: bool },
    Renamed { from: String, to: String, is_dir: bool },
    Unwatched { path: String, message: String },
    Lost { changes: Option<u64> },
    Gone,
}

pub(super) fn run(args: &WatchArgs, context: &Context) -> Result<u8, CliError> {
    let location = Location::from(&*args.what);
    let what = format!("watch {location}");
    let Location::In { sandbox, path } = location else {
        return Err(CliError::plain(format!(
            "cannot {what}: it is in no sandbox; name one as in box:/path"
        )));
    };
    let sandbox = Sandbox::find(&context.store, &sandbox).map_err(cannot(&what))?;
    super::runtime()?.block_on(async {
        let interrupt = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
        let (mut interrupt, mut terminate) = interrupt.map_err(cannot(&what))?;
        tokio::select! {
            ended = watch(&sandbox, &path, args, &what) => ended,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    })?;
    Ok(0)
}

/// Until there is nothing more to tell, or nobody to tell it to.
async fn watch(sandbox: &Sandbox, path: &Path, args: &WatchArgs, what: &str) -> Result<(), CliError> {
    let stdio = Stdio::inherit().map_err(cannot("use standard output"))?;
    let files = sandbox.files().with_options(SshClientOptions {
        user: args.login.of(sandbox),
        boot_timeout: args.boot.duration(),
        ..SshClientOptions::default()
    });
    let options = WatchOptions {
        recursive: args.recursive,
    };
    let mut watcher = files.watch(path, options).await.map_err(error(what))?;
    let mut line = Line::Watching;
    loop {
        let printed = line.printed(args.json);
        match stdio.write_all(printed.as_bytes()).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.map_err(cannot("write to standard output"))?,
        }
        if matches!(line, Line::Gone) {
            return Ok(());
        }
        line = next(&mut watcher).await.map_err(error(what))?;
    }
}

async fn next(watcher: &mut Watcher) -> Result<Line, FilesError> {
    Ok(watcher.next().await?.map_or(Line::Gone, Line::from))
}

impl From<WatchEvent> for Line {
    fn from(event: WatchEvent) -> Self {
        match event {
            WatchEvent::Created { path, is_dir } => Self::Created {
                path: text(&path),
                is_dir,
            },
            WatchEvent::Modified { path } => Self::Modified { path: text(&path) },
            WatchEvent::Attributes { path } => Self::Attributes { path: text(&path) },
            WatchEvent::Removed { path, is_dir } => Self::Removed {
                path: text(&path),
                is_dir,
            },
            WatchEvent::Renamed { from, to, is_dir } => Self::Renamed {
                from: text(&from),
                to: text(&to),
                is_dir,
            },
            WatchEvent::Unwatched { path, message } => Self::Unwatched {
                path: text(&path),
                message,
            },
            WatchEvent::Lost { changes } => Self::Lost { changes },
        }
    }
}

/// What is watched has no name relative to itself.
fn text(path: &Path) -> String {
    match path.as_os_str().is_empty() {
        true => ".".into(),
        false => path.to_string_lossy().into_owned(),
    }
}

impl Line {
    /// With its end. Names are the guest's: none makes a line of its own or speaks to the terminal.
    fn printed(&self, as_json: bool) -> String {
        if as_json {
            return serde_json::to_string(self).expect("an event has string keys and no failing serializers") + "\n";
        }
        let named = |path: &str, is_dir: bool| escaped(path) + if is_dir { "/" } else { "" };
        let (event, detail) = match self {
            Self::Watching => ("watching", String::new()),
            Self::Created { path, is_dir } => ("created", named(path, *is_dir)),
            Self::Modified { path } => ("modified", named(path, false)),
            Self::Attributes { path } => ("attributes", named(path, false)),
            Self::Removed { path, is_dir } => ("removed", named(path, *is_dir)),
            Self::Renamed { from, to, is_dir } => {
                ("renamed", format!("{} -> {}", named(from, *is_dir), named(to, *is_dir)))
            }
            Self::Unwatched { path, message } => ("unwatched", format!("{}: {}", named(path, true), escaped(message))),
            Self::Lost { changes: Some(changes) } => ("lost", format!("{changes} changes")),
            Self::Lost { changes: None } => ("lost", "an unknown number of changes".into()),
            Self::Gone => ("gone", String::new()),
        };
        format!("{event:10}  {detail}").trim_end().to_owned() + "\n"
    }
}

/// For `map_err`.
fn error(what: &str) -> impl Fn(FilesError) -> CliError {
    move |error| match error {
        FilesError::Ssh(error) => session::ssh_error(what)(error),
        FilesError::Watch(WatchError::Client(error)) => session::client_error(what, &error),
        FilesError::Watch(WatchError::Refused { message, .. }) => {
            CliError::plain(format!("cannot {what}: {}", escaped(&message)))
        }
        error @ FilesError::Watch(WatchError::Ended(_)) => CliError::cannot(what, &error).with_status(TRANSPORT_ERROR),
        error => CliError::cannot(what, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line_whatever_its_name_is() {
        let renamed = Line::from(WatchEvent::Renamed {
            from: "a\nb\u{1b}[2J".into(),
            to: "c".into(),
            is_dir: true,
        });
        assert_eq!(renamed.printed(false), "renamed     a\\nb\\u{1b}[2J/ -> c/\n");
        assert_eq!(
            renamed.printed(true),
            "{\"event\":\"renamed\",\"from\":\"a\\nb\\u001b[2J\",\"to\":\"c\",\"is_dir\":true}\n"
        );
        let own = Line::from(WatchEvent::Attributes { path: "".into() });
        assert_eq!(own.printed(false), "attributes  .\n");
        assert_eq!(
            Line::Lost { changes: None }.printed(true),
            "{\"event\":\"lost\",\"changes\":null}\n"
        );
        assert_eq!(Line::Gone.printed(false), "gone\n");
    }
}
