//! `msb inspect`

use clap::Args;

use super::error::{CliError, cannot};
use super::view::SandboxView;
use super::{Context, output};
use crate::Sandbox;

/// Print all that is known of a sandbox, as JSON
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb inspect box | jq -r .state")]
pub(super) struct InspectArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// JSON is what is printed in any case
    #[arg(long, hide = true)]
    json: bool,
}

pub(super) fn run(args: &InspectArgs, context: &Context) -> Result<u8, CliError> {
    let what = || format!("inspect {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(what()))?;
    output::json(&SandboxView::of(&sandbox).map_err(cannot(what()))?)?;
    Ok(0)
}
