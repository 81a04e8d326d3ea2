//! `msb image build`

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::super::error::{CliError, cannot};
use super::super::spec_args::{BootTimeout, Pull, find_image};
use super::super::{Context, output, runtime};
use crate::images::{ImageName, ImageRecord};
use crate::sandbox::spec::{DEFAULT_DISK_SIZE, Memory};
use crate::template::{BuildEvent, BuildOptions, FILE_NAME, Template};

/// Build a template to an image; prints its id
///
/// Each step runs in a microVM, one after the other. What a step wrote is kept, and it is run again only when it, a file
/// that it copies, or a step before it has changed. What steps print goes to standard error. docs/images.md says what a
/// template is.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb image build -t site:1 .
  msb image build -f server.toml -t server:2 --apt-repository /srv/debs app/
  msb image build --json -t site:1 . | jq -r 'select(.event == \"step\").title'")]
pub(super) struct BuildArgs {
    /// Directory that is copied from
    #[arg(value_name = "CONTEXT", default_value = ".")]
    context: PathBuf,
    /// The template; default: template.toml of CONTEXT
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What to call the image; may be given more than once
    #[arg(long = "tag", short = 't', value_name = "NAME")]
    names: Vec<ImageName>,
    /// Directory of .deb files that packages are installed from, in the place of the template's
    #[arg(long, value_name = "DIRECTORY")]
    apt_repository: Option<PathBuf>,
    /// Run every step, whatever is kept of it
    #[arg(long)]
    no_cache: bool,
    /// Virtual CPUs of the microVM that steps run in
    #[arg(long, short, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// Its memory, such as 512M or 2G
    #[arg(long, short, value_name = "SIZE", default_value = "1G")]
    memory: Memory,
    /// What all steps together may write
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_DISK_SIZE)]
    disk_size: Memory,
    /// Whether to get the image that the template begins with from its registry, if it is not here
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pull: Pull,
    /// Print nothing on standard error but what went wrong
    #[arg(long, short)]
    quiet: bool,
    /// Print what happens as JSON, a line each, and at the end what is known of the image
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    boot: BootTimeout,
}

/// What `--json` prints. Keys are added, never changed or left out.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Step {
        number: usize,
        of: usize,
        title: &'a str,
        cached: bool,
    },
    Output {
        number: usize,
        stream: &'static str,
        text: &'a str,
    },
    Assembling,
    Built {
        #[serde(flatten)]
        image: &'a ImageRecord,
    },
}

pub(super) fn run(args: &BuildArgs, context: &Context) -> Result<u8, CliError> {
    let file = args.file.clone().unwrap_or_else(|| args.context.join(FILE_NAME));
    let what = format!("build {}", file.display());
    let template = Template::from_file(&file).map_err(cannot(&what))?;
    find_image(template.base(), args.pull, context)?;
    let options = BuildOptions {
        context: args.context.clone(),
        names: args.names.clone(),
        apt_repository: args.apt_repository.clone(),
        no_cache: args.no_cache,
        cpus: args.cpus,
        memory: args.memory,
        disk_size: args.disk_size,
        boot_timeout: args.boot.duration(),
        ..BuildOptions::default()
    };
    let mut written = Ok(());
    let image = runtime()?.block_on(template.build(&context.store, &options, |event| {
        if args.json {
            written = std::mem::replace(&mut written, Ok(())).and_then(|()| print_json(&event));
        } else if !args.quiet {
            show(&event);
        }
    }));
    let image = image.map_err(|error| failed(&what, &error))?;
    written?;
    match args.json {
        true => print(&Line::Built { image: &image })?,
        false => output::line(&image.short_id())?,
    }
    Ok(0)
}

/// A line about the failure, and below it what the step printed last: that is the guest's, with lines of its own.
fn failed(what: &str, error: &crate::template::BuildError) -> CliError {
    let mut failed = CliError::cannot(what, error);
    if let Some(printed) = error.printed() {
        failed.message = format!("{}\n{printed}", failed.message);
    }
    failed
}

fn print_json(event: &BuildEvent<'_>) -> Result<(), CliError> {
    match *event {
        BuildEvent::Step {
            number,
            of,
            title,
            cached,
        } => print(&Line::Step {
            number,
            of,
            title,
            cached,
        }),
        BuildEvent::Output {
            number,
            bytes,
            is_error,
        } => print(&Line::Output {
            number,
            stream: if is_error { "stderr" } else { "stdout" },
            text: &String::from_utf8_lossy(bytes),
        }),
        BuildEvent::Assembling => print(&Line::Assembling),
    }
}

fn print(line: &Line<'_>) -> Result<(), CliError> {
    let json = serde_json::to_string(line).map_err(cannot("print as JSON"))?;
    output::line(&json)
}

/// Nobody is told when standard error cannot be written to: the build goes on.
fn show(event: &BuildEvent<'_>) {
    let mut stderr = io::stderr().lock();
    let _ = match event {
        BuildEvent::Step {
            number,
            of,
            title,
            cached,
        } => writeln!(
            stderr,
            "[{number}/{of}] {title}{}",
            if *cached { " CACHED" } else { "" }
        ),
        BuildEvent::Output { bytes, .. } if stderr.is_terminal() => {
            stderr.write_all(output::harmless(bytes).as_bytes())
        }
        BuildEvent::Output { bytes, .. } => stderr.write_all(bytes),
        BuildEvent::Assembling => writeln!(stderr, "putting the image together"),
    };
}
