//! `msb ssh-config`

use std::path::PathBuf;

use clap::Args;
use msb_ssh::keys::KeyPair;
use msb_ssh::ssh_config::{Plan, SshConfig};

use super::error::{CliError, cannot};
use super::{Context, output};
use crate::assets;
use crate::store::files;

/// Print or install what lets ssh, scp, sftp and rsync reach every sandbox as NAME.msb
///
/// It is one block for all sandboxes, those to come included. Host keys are pinned: ssh never asks about one, and
/// refuses any other.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb ssh-config --install && ssh box.msb
  msb ssh-config --install --dry-run
  msb ssh-config > box.conf && scp -F box.conf file box.msb:")]
pub(super) struct SshConfigArgs {
    /// Put it into ~/.ssh, included from ~/.ssh/config
    #[arg(long)]
    install: bool,
    /// Remove what --install put there
    #[arg(long, conflicts_with = "install")]
    uninstall: bool,
    /// Only print what would be changed
    #[arg(long)]
    dry_run: bool,
    /// Hand connections to ssh instead of copying bytes: faster, for OpenSSH's own programs only
    #[arg(long, conflicts_with = "uninstall")]
    fdpass: bool,
}

pub(super) fn run(args: &SshConfigArgs, context: &Context) -> Result<u8, CliError> {
    if args.uninstall {
        let what = || "remove the ssh configuration";
        let plan = Plan::uninstall(&home_directory()?).map_err(cannot(what()))?;
        return carry_out(&plan, args.dry_run, what());
    }
    let what = || "make the ssh configuration";
    let config = config(args, context)?;
    if args.install {
        let plan = Plan::install(&home_directory()?, &config).map_err(cannot(what()))?;
        return carry_out(&plan, args.dry_run, what());
    }
    output::text(&config.render().map_err(cannot(what()))?)?;
    Ok(0)
}

fn config(args: &SshConfigArgs, context: &Context) -> Result<SshConfig, CliError> {
    let layout = context.store.layout();
    // What the block names has to be there.
    files::create_private_dirs(&layout.home).map_err(cannot("make the state directory"))?;
    KeyPair::load_or_create(&layout.client_key(), "msb").map_err(cannot("make a key to log in with"))?;
    // ssh may run without the variables that say where this store is.
    let is_elsewhere = ["MSB_HOME", "XDG_STATE_HOME"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let environment = is_elsewhere.then(|| ("MSB_HOME".to_owned(), layout.home.clone()));
    Ok(SshConfig {
        msb: assets::own_program().map_err(cannot("find out where msb itself is"))?,
        known_hosts: layout.known_hosts(),
        identity: layout.client_key(),
        environment: environment.into_iter().collect(),
        fdpass: args.fdpass,
    })
}

fn carry_out(plan: &Plan, dry_run: bool, what: &str) -> Result<u8, CliError> {
    output::text(&plan.diff())?;
    if !dry_run {
        plan.apply().map_err(cannot(what))?;
    }
    Ok(0)
}

/// Where ssh looks for its configuration: it asks the user database, not the environment.
fn home_directory() -> Result<PathBuf, CliError> {
    let uid = rustix::process::getuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let home = home_of(&users, uid).map(PathBuf::from).or_else(std::env::home_dir);
    home.ok_or_else(|| CliError::plain(format!("cannot find the home directory of user {uid}; set HOME")))
}

/// A line of passwd(5) is `name:password:uid:gid:comment:home:shell`.
fn home_of(users: &str, uid: u32) -> Option<&str> {
    let uid = uid.to_string();
    let mut lines = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let fields = lines.find(|fields| fields.get(2) == Some(&uid.as_str()))?;
    fields.get(5).copied().filter(|home| home.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_directory_is_that_of_the_user_database() {
        let users = "root:x:0:0:root:/root:/bin/sh\nn:x:7:7::relative:/bin/sh\n";
        assert_eq!(home_of(users, 0), Some("/root"));
        assert_eq!(home_of(users, 7), None);
        assert_eq!(home_of(users, 8), None);
    }
}
