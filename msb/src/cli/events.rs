//! `msb events`

use std::io::{self, Write as _};

use clap::Args;

use super::Context;
use super::error::{CliError, cannot};
use crate::events::{Event, Events};

/// Print what becomes of the sandboxes from now on: a JSON object on a line for each change
///
/// `state` is one of those of `msb ls`, or `removed`; `exit_reason` and `message` say how a sandbox ended, as in `msb inspect`. It ends when nobody reads it any more.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb events
  msb events box | jq --unbuffered -r 'select(.state == \"crashed\") | .message'")]
pub(super) struct EventsArgs {
    /// Name or id of the one sandbox to tell of; it need not be there yet
    #[arg(value_name = "SANDBOX")]
    sandbox: Option<String>,
}

pub(super) fn run(args: &EventsArgs, context: &Context) -> Result<u8, CliError> {
    let what = "watch the sandboxes";
    let mut events = Events::of(&context.store).map_err(cannot(what))?;
    loop {
        for event in events.next_batch().map_err(cannot(what))? {
            if args.sandbox.as_ref().is_none_or(|wanted| is_of(wanted, &event)) && !print(&event)? {
                return Ok(0);
            }
        }
    }
}

fn is_of(wanted: &str, event: &Event) -> bool {
    let is_name = event.name.as_ref().is_some_and(|name| name.as_str() == wanted);
    is_name || event.id.as_str() == wanted
}

/// Whether anybody reads on.
fn print(event: &Event) -> Result<bool, CliError> {
    let mut line = serde_json::to_vec(event).map_err(cannot("write an event as JSON"))?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&line).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(cannot("write to standard output")(error)),
    }
}
