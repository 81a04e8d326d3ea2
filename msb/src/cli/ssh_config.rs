//! `msb ssh-config`

use clap::Args;

use super::Context;
use super::error::CliError;

/// Print or install what lets ssh, scp, sftp and rsync reach every sandbox as NAME.msb
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  msb ssh-config --install && ssh box.msb\n  msb ssh-config --uninstall")]
pub(super) struct SshConfigArgs {
    /// Include it from ~/.ssh/config
    #[arg(long)]
    install: bool,
}

pub(super) fn run(_args: &SshConfigArgs, _context: &Context) -> Result<u8, CliError> {
    Ok(0)
}
