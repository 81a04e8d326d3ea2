//! `msb image`

mod build;
mod import;
mod ls;
pub(super) mod pull;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::error::{CliError, cannot};
use super::{Context, for_each, output};
use crate::images::{Image, ImageName, ImageRecord, Removed, short};

/// Import, build, list and remove the images that sandboxes are made from
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb image import debian.tar debian:12
  msb image pull debian:12
  docker save app:1 | msb image import -
  msb image build -t site:1 .
  msb image ls
  msb create --name box debian:12")]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Import(import::ImportArgs),
    Build(build::BuildArgs),
    Pull(pull::PullArgs),
    Ls(ls::LsArgs),
    Inspect(InspectArgs),
    Tag(TagArgs),
    Rm(RmArgs),
    Prune(PruneArgs),
}

/// Print all that is known of an image, as JSON
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb image inspect debian:12 | jq .config")]
struct InspectArgs {
    /// Name, or the beginning of the id
    #[arg(value_name = "IMAGE")]
    image: String,
    /// JSON is what is printed in any case
    #[arg(long, hide = true)]
    json: bool,
}

/// Give an image another name
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb image tag debian:12 base:latest")]
struct TagArgs {
    /// Name, or the beginning of the id
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The other name
    #[arg(value_name = "NAME")]
    name: ImageName,
}

/// Remove names of images, and images with their last one
///
/// An image that sandboxes are made from stays until they are removed.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  msb image rm debian:12\n  msb image rm 3f2a1b")]
struct RmArgs {
    /// Names, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Remove images that have no name and no sandbox, and layers kept from registries and builds
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  msb image prune\n  msb image prune --all")]
struct PruneArgs {
    /// Also those with a name
    #[arg(long, short)]
    all: bool,
    /// Print JSON instead of lines
    #[arg(long)]
    json: bool,
}

/// An image as the verbs show it. The JSON has a stable schema: keys are added, never changed or left out.
#[derive(Debug, Serialize)]
struct ImageView {
    names: Vec<String>,
    /// Bytes on this disk.
    disk_usage: u64,
    #[serde(flatten)]
    record: ImageRecord,
}

impl From<Image> for ImageView {
    fn from(image: Image) -> Self {
        Self {
            names: image.names.iter().map(ToString::to_string).collect(),
            disk_usage: image.disk_usage,
            record: image.record,
        }
    }
}

#[derive(Debug, Serialize)]
struct PrunedView {
    images: Vec<String>,
    bytes: u64,
}

pub(super) fn run(args: &ImageArgs, context: &Context) -> Result<u8, CliError> {
    match &args.verb {
        Verb::Import(args) => import::run(args, context),
        Verb::Build(args) => build::run(args, context),
        Verb::Pull(args) => pull::run(args, context),
        Verb::Ls(args) => ls::run(args, context),
        Verb::Inspect(args) => inspect(args, context),
        Verb::Tag(args) => tag(args, context),
        Verb::Rm(args) => rm(args, context),
        Verb::Prune(args) => prune(args, context),
    }
}

fn inspect(args: &InspectArgs, context: &Context) -> Result<u8, CliError> {
    let what = || format!("inspect the image {}", args.image);
    let images = context.store.images();
    let found = images.find(&args.image).map_err(cannot(what()))?;
    let all = images.all().map_err(cannot(what()))?;
    let image = all.into_iter().find(|image| image.record.id == found.id);
    let image = image.ok_or_else(|| CliError::plain(format!("cannot {}: it was removed meanwhile", what())))?;
    output::json(&ImageView::from(image))?;
    Ok(0)
}

fn tag(args: &TagArgs, context: &Context) -> Result<u8, CliError> {
    let what = || format!("tag the image {}", args.image);
    let images = context.store.images();
    let image = images.find(&args.image).map_err(cannot(what()))?;
    images.tag(&image.id, &args.name).map_err(cannot(what()))?;
    Ok(0)
}

fn rm(args: &RmArgs, context: &Context) -> Result<u8, CliError> {
    let images = context.store.images();
    for_each(&args.images, |reference| {
        let removed = images.remove(&context.store, reference);
        match removed.map_err(cannot(format!("remove the image {reference}")))? {
            Removed::Name(name) => output::line(&format!("untagged {name}")),
            Removed::Image(id) => output::line(&format!("removed {id}")),
        }
    })
}

fn prune(args: &PruneArgs, context: &Context) -> Result<u8, CliError> {
    let pruned = context.store.images().prune(&context.store, args.all);
    let pruned = pruned.map_err(cannot("remove unused images"))?;
    if args.json {
        output::json(&PrunedView {
            images: pruned.images.iter().map(ToString::to_string).collect(),
            bytes: pruned.bytes,
        })?;
    } else {
        pruned
            .images
            .iter()
            .try_for_each(|id| output::line(&format!("removed {}", short(id))))?;
        output::line(&format!("{} free again", super::progress::size(pruned.bytes)))?;
    }
    Ok(0)
}
