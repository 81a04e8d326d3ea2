//! `msb image ls`

use clap::Args;
use jiff::Timestamp;

use super::super::error::{CliError, cannot};
use super::super::ls::age;
use super::super::progress::size;
use super::super::{Context, output};
use super::ImageView;

/// List images, the newest first
#[derive(Args, Debug)]
#[command(visible_alias = "list")]
#[command(after_help = "Examples:\n  msb image ls\n  msb image ls --json | jq -r '.[].names[]'")]
pub(super) struct LsArgs {
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// Print ids only
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

pub(super) fn run(args: &LsArgs, context: &Context) -> Result<u8, CliError> {
    let images = context.store.images().all().map_err(cannot("list the images"))?;
    let views: Vec<ImageView> = images.into_iter().map(Into::into).collect();
    if args.json {
        output::json(&views)?;
    } else if args.quiet {
        views
            .iter()
            .try_for_each(|view| output::line(&view.record.short_id()))?;
    } else {
        output::text(&table(&views))?;
    }
    Ok(0)
}

/// A line for each name; an image without one has a line, too.
fn table(views: &[ImageView]) -> String {
    let mut rows = vec![["NAME", "ID", "SIZE", "ON DISK", "CREATED"].map(str::to_owned).to_vec()];
    for view in views {
        let unnamed = ["-".to_owned()];
        let names = if view.names.is_empty() {
            unnamed.as_slice()
        } else {
            &view.names
        };
        for name in names {
            rows.push(vec![
                name.clone(),
                view.record.short_id(),
                size(view.record.size),
                size(view.disk_usage),
                age(Timestamp::now().as_second() - view.record.created_at.as_second()),
            ]);
        }
    }
    output::table(&rows)
}
