//! `msb image import`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use msb_image::source::Format;

use super::super::error::{CliError, cannot};
use super::super::progress::Progress;
use super::super::{Context, output};
use crate::images::{ImageName, ImportOptions};

/// Import an image from a file or directory of this host; prints its id
///
/// What it is, is found out: a directory or tar archive of a root file system, an archive of `docker save` or `podman save`,
/// an OCI layout as a directory or an archive, each plain or packed with gzip or zstd.
///
/// Limits: a million files, 64 GiB unpacked, 512 layers. What is beyond, damaged or leads out of the image is refused, and
/// nothing of it stays.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb image import rootfs/ mine:1
  msb image import debian.tar.gz debian:12
  docker save app:1 | msb image import -
  msb image import --image v2 oci-layout/ app:2")]
pub(super) struct ImportArgs {
    /// Directory or archive; '-' is standard input
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// What to call it; default: what it is called in SOURCE
    #[arg(value_name = "NAME")]
    names: Vec<ImageName>,
    /// What SOURCE is, when it would be taken for something else
    #[arg(long, value_enum)]
    format: Option<ImportFormat>,
    /// Which image of SOURCE, when it has several
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
    /// Print what is known of it as JSON instead of its id
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ImportFormat {
    /// A root file system
    Rootfs,
    /// An archive of `docker save`
    Docker,
    /// An OCI image layout
    Oci,
}

pub(super) fn run(args: &ImportArgs, context: &Context) -> Result<u8, CliError> {
    let options = ImportOptions {
        format: args.format.map(|format| match format {
            ImportFormat::Rootfs => Format::Rootfs,
            ImportFormat::Docker => Format::Docker,
            ImportFormat::Oci => Format::Oci,
        }),
        wanted: args.image.clone(),
        names: args.names.clone(),
        ..ImportOptions::default()
    };
    let progress = Progress::new(args.quiet);
    progress.file(Path::new("importing"));
    let imported = context
        .store
        .images()
        .import(&args.source, &options, &|bytes| progress.moved(bytes));
    progress.clear();
    let image = imported.map_err(cannot(format!("import {}", args.source.display())))?;
    match args.json {
        true => output::json(&image)?,
        false => output::line(&image.short_id())?,
    }
    Ok(0)
}
