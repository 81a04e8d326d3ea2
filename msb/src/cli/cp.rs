//! `msb cp`

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use msb_ssh::client::Stdio;
use msb_ssh::sftp::tree::{TreeError, TreeOptions, TreeSummary};
use msb_ssh::sftp::{SftpClient, SftpError};

use super::Context;
use super::error::{CliError, TRANSPORT_ERROR, cannot};
use super::location::{Location, own_name};
use super::progress::Progress;
use super::session::{self, ssh_error};
use super::spec_args::{BootTimeout, LoginUser};
use crate::Sandbox;
use crate::sandbox::ssh::SshClientOptions;

/// Bytes of standard input read at once.
const CHUNK: usize = 256 * 1024;

/// Copy files and directories to or from a sandbox
///
/// SANDBOX:PATH is a path in a sandbox; a relative one begins in the user's home directory. A local path with a colon is
/// written ./a:b. Directories are copied with all that is in them, links in them as links. Into a directory that exists,
/// a copy goes by its own name; otherwise it gets the name that is given. A copy of 'directory/.' is one of its content.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb cp notes.txt box:                 into the home directory
  msb cp -p box:/var/log logs           a tree, with its modes and times
  msb cp src/. box:/work                what is in src
  tar c src | msb cp - box:src.tar      standard input; 'msb cp box:src.tar -' is standard output")]
pub(super) struct CpArgs {
    /// What to copy: a path, SANDBOX:PATH, or '-'
    #[arg(value_name = "SRC")]
    source: OsString,
    /// Where to: a path, SANDBOX:PATH, or '-'
    #[arg(value_name = "DST")]
    target: OsString,
    /// Keep modes and times (in seconds) exactly; set-id bits only on the way into a sandbox
    #[arg(long, short)]
    preserve: bool,
    /// Show no progress, which only a terminal gets
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    login: LoginUser,
    #[command(flatten)]
    boot: BootTimeout,
}

/// A copy that has a sandbox at one end.
#[derive(Debug)]
enum Job {
    Upload(PathBuf, PathBuf),
    Download(PathBuf, PathBuf),
    FromInput(PathBuf),
    ToOutput(PathBuf),
}

pub(super) fn run(args: &CpArgs, context: &Context) -> Result<u8, CliError> {
    let (source, target) = (Location::from(&*args.source), Location::from(&*args.target));
    let what = format!("copy {source} to {target}");
    let (reference, job) = job(source, target).map_err(|why| CliError::plain(format!("cannot {what}: {why}")))?;
    let sandbox = Sandbox::find(&context.store, &reference).map_err(cannot(&what))?;
    let options = SshClientOptions {
        user: args.login.of(&sandbox),
        boot_timeout: args.boot.duration(),
        ..SshClientOptions::default()
    };
    let progress = Arc::new(Progress::new(args.quiet));
    let result = super::runtime()?.block_on(async {
        let client = sandbox.ssh().open_client(options).await.map_err(ssh_error(&what))?;
        let sftp = client.sftp().await.map_err(sftp_error(&what))?;
        copy(&sftp, job, args.preserve, &progress, &what).await
    });
    progress.clear();
    match result? {
        TreeSummary { failed: 0, .. } => Ok(0),
        TreeSummary { failed, .. } => Err(CliError::plain(format!(
            "cannot {what} whole: {failed} {} not copied",
            if failed == 1 { "entry was" } else { "entries were" }
        ))),
    }
}

/// The sandbox, and what to do.
fn job(source: Location, target: Location) -> Result<(String, Job), &'static str> {
    Ok(match (source, target) {
        (Location::Here(from), Location::In { sandbox, path }) => (sandbox, Job::Upload(from, path)),
        (Location::In { sandbox, path }, Location::Here(to)) => (sandbox, Job::Download(path, to)),
        (Location::Stream, Location::In { sandbox, path }) => (sandbox, Job::FromInput(path)),
        (Location::In { sandbox, path }, Location::Stream) => (sandbox, Job::ToOutput(path)),
        (Location::In { .. }, Location::In { .. }) => {
            return Err("both are in sandboxes; copy to this machine first, or pipe one `msb cp` into another");
        }
        _ => return Err("neither is in a sandbox; name one as in box:/path"),
    })
}

async fn copy(
    sftp: &SftpClient,
    job: Job,
    preserve: bool,
    progress: &Arc<Progress>,
    what: &str,
) -> Result<TreeSummary, CliError> {
    let observer = Arc::clone(progress);
    let options = TreeOptions {
        preserve,
        observer: Some(Arc::new(move |event| observer.step(&event))),
    };
    match job {
        Job::Upload(from, to) => {
            let to = target_in_guest(sftp, &from, to).await.map_err(sftp_error(what))?;
            sftp.upload(&from, &to, &options).await.map_err(tree_error(what))
        }
        Job::Download(from, to) => {
            let to = target_here(&from, to);
            sftp.download(&from, &to, &options).await.map_err(tree_error(what))
        }
        Job::FromInput(to) => from_input(sftp, &to, progress, what).await,
        Job::ToOutput(from) => to_output(sftp, &from, progress, what).await,
    }
}

/// In a directory that is there, the copy goes by its own name.
async fn target_in_guest(sftp: &SftpClient, from: &Path, to: PathBuf) -> Result<PathBuf, SftpError> {
    match sftp.stat(&to).await {
        Ok(found) if found.is_directory() => Ok(own_name(from).map_or(to.clone(), |name| to.join(name))),
        Ok(_) => Ok(to),
        Err(error) if error.is_not_found() && !(from.is_file() && ends_with_slash(&to)) => Ok(to),
        Err(error) => Err(error),
    }
}

fn target_here(from: &Path, to: PathBuf) -> PathBuf {
    match own_name(from) {
        Some(name) if to.is_dir() => to.join(name),
        _ => to,
    }
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

async fn from_input(sftp: &SftpClient, to: &Path, progress: &Progress, what: &str) -> Result<TreeSummary, CliError> {
    let stdio = Stdio::inherit().map_err(cannot("use standard input"))?;
    let mut writer = sftp.writer(to).await.map_err(sftp_error(what))?;
    progress.file(to);
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = stdio.read(&mut buffer).await.map_err(cannot("read standard input"))?;
        if read == 0 {
            break;
        }
        let chunk = Bytes::copy_from_slice(&buffer[..read]);
        writer.write_chunk(chunk).await.map_err(sftp_error(what))?;
        progress.moved(u64::try_from(read).unwrap_or(u64::MAX));
    }
    writer.close().await.map_err(sftp_error(what))?;
    Ok(TreeSummary::default())
}

async fn to_output(sftp: &SftpClient, from: &Path, progress: &Progress, what: &str) -> Result<TreeSummary, CliError> {
    let stdio = Stdio::inherit().map_err(cannot("use standard output"))?;
    let mut reader = sftp.reader(from).await.map_err(sftp_error(what))?;
    progress.file(from);
    while let Some(chunk) = reader.next_chunk().await.map_err(sftp_error(what))? {
        stdio.write_all(&chunk).await.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => session::seen_enough(),
            _ => CliError::cannot("write to standard output", &error),
        })?;
        progress.moved(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
    }
    reader.close().await.map_err(sftp_error(what))?;
    Ok(TreeSummary::default())
}

fn sftp_error(what: &str) -> impl FnOnce(SftpError) -> CliError {
    move |error| with_status(CliError::cannot(what, &error), error.is_end())
}

fn tree_error(what: &str) -> impl FnOnce(TreeError) -> CliError {
    move |error| {
        let is_end = matches!(&error, TreeError::Sftp(error) if error.is_end());
        with_status(CliError::cannot(what, &error), is_end)
    }
}

fn with_status(error: CliError, is_transport: bool) -> CliError {
    match is_transport {
        true => error.with_status(TRANSPORT_ERROR),
        false => error,
    }
}
