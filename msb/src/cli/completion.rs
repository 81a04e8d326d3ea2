//! `msb completion`

use clap::{Args, CommandFactory};

use super::error::CliError;
use super::output;

/// Print a completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb completion bash > /etc/bash_completion.d/msb")]
pub(super) struct CompletionArgs {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run<C: CommandFactory>(args: &CompletionArgs) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut C::command(), "msb", &mut script);
    output::bytes(&script)?;
    Ok(0)
}
