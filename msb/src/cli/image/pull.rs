//! `msb image pull`

use std::io::{self, Read as _};
use std::path::Path;

use clap::Args;
use msb_image::registry::{Credentials, RegistryOptions};

use super::super::error::{CliError, cannot};
use super::super::progress::{Progress, size};
use super::super::{Context, output};
use crate::images::{ImageName, ImageRecord, PullEvent, PullOptions};

/// The longest password that is read, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

/// Get an image from a registry; prints its id
///
/// Layers are checked against their digests and kept: what is here already is not asked for again, and a download that broke
/// goes on where it was. Logins of `docker login` are used; a registry on this machine is talked to without TLS.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb image pull debian:12
  msb image pull registry.example.org/team/app@sha256:...
  msb image pull --username me --password-stdin registry.example.org/app:1 <token")]
pub(super) struct PullArgs {
    /// Name, with a tag or digest
    #[arg(value_name = "NAME")]
    name: ImageName,
    /// Who to log in as
    #[arg(long, value_name = "USER", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password, or a token, from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Talk HTTP without TLS
    #[arg(long)]
    insecure: bool,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
    /// Print what is known of it as JSON instead of its id
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PullArgs, context: &Context) -> Result<u8, CliError> {
    let credentials = args.username.as_ref().map(|username| {
        let mut password = String::new();
        let read = io::stdin().lock().take(MAX_PASSWORD).read_to_string(&mut password);
        read.map_err(cannot("read the password"))?;
        Ok::<_, CliError>(Credentials {
            username: username.clone(),
            password: password.trim_end_matches(['\r', '\n']).to_owned(),
        })
    });
    let registry = RegistryOptions {
        credentials: credentials.transpose()?,
        insecure: args.insecure,
        ..RegistryOptions::default()
    };
    let image = pull(context, &args.name, registry, args.quiet)?;
    match args.json {
        true => output::json(&image)?,
        false => output::line(&image.short_id())?,
    }
    Ok(0)
}

/// Gets an image and shows how far it is.
pub(in crate::cli) fn pull(
    context: &Context,
    name: &ImageName,
    registry: RegistryOptions,
    quiet: bool,
) -> Result<ImageRecord, CliError> {
    let progress = Progress::new(quiet);
    let show = |event| match event {
        PullEvent::Layer {
            number,
            of,
            size: bytes,
        } => {
            progress.file(Path::new(&format!("layer {number} of {of} ({})", size(bytes))));
        }
        PullEvent::Assembling => progress.file(Path::new("putting the layers together")),
        PullEvent::Moved(bytes) => progress.moved(bytes),
    };
    let options = PullOptions {
        registry,
        ..PullOptions::default()
    };
    let pulled = context.store.images().pull(name, options, &show);
    progress.clear();
    pulled.map_err(cannot(format!("pull {name}")))
}
