//! Templates: images that are made of another one, step by step, each step in a microVM.
//!
//! A [`Template`] says what is to be done; [`Template::build`] does it and gives an image of the store. What a step wrote is
//! kept as a layer under a key of all that it depends on, so that a step is run again only when something of that changed.
//!
//! ```no_run
//! use msb::template::{BuildEvent, BuildOptions, Template, wait_for_port};
//!
//! # async fn example(store: &msb::Store) -> Result<(), Box<dyn std::error::Error>> {
//! let template = Template::from_image("debian:12")
//!     .copy("site", "/srv/site")
//!     .run_cmd("chmod -R a+rX /srv/site")
//!     .set_start_cmd("httpd -f -p 8080 -h /srv/site", wait_for_port(8080));
//! let options = BuildOptions { names: vec!["site:1".parse()?], ..BuildOptions::default() };
//! let image = template.build(store, &options, |event| {
//!     if let BuildEvent::Step { number, title, cached, .. } = event {
//!         println!("{number} {title}{}", if cached { " CACHED" } else { "" });
//!     }
//! });
//! println!("{}", image.await?.short_id());
//! # Ok(())
//! # }
//! ```

mod apt;
mod build;
mod context;
mod file;
mod guest;
mod plan;

use std::path::{Path, PathBuf};
use std::time::Duration;

use msb_image::config::StartCommand;
pub use msb_protocol::ready::Probe as ReadyProbe;

pub use build::{BuildError, BuildEvent, BuildOptions};
pub use context::ContextError;
pub use file::TemplateFileError;
pub use guest::GuestError;
pub use plan::PlanError;

/// The file that a directory's template is in, when nothing else is said.
pub const FILE_NAME: &str = "template.toml";

/// What is to be done to an image. Nothing happens before it is built.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Template {
    base: String,
    steps: Vec<Step>,
    apt_repository: Option<PathBuf>,
    start: Option<StartCommand>,
}

/// One thing that is done.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Step {
    Copy { from: PathBuf, to: String },
    Run { command: String, user: Option<String> },
    AptInstall(Vec<String>),
    Env { name: String, value: String },
    WorkDir(String),
    User(String),
}

impl Template {
    /// Begins with an image of the store: its name or the beginning of its id.
    pub fn from_image(image: impl Into<String>) -> Self {
        Self {
            base: image.into(),
            steps: Vec::new(),
            apt_repository: None,
            start: None,
        }
    }

    /// Begins with what another template was built to: a template is an image, under its name.
    pub fn from_template(name: impl Into<String>) -> Self {
        Self::from_image(name)
    }

    /// Reads a file as docs/images.md describes it.
    ///
    /// # Errors
    /// When it cannot be read, or says what no template does.
    pub fn from_file(path: &Path) -> Result<Self, TemplateFileError> {
        file::read(path)
    }

    /// Copies a file or directory of the context, the directory it is built with: a directory's content into the directory
    /// `to`, a file to the file `to`, or into it when it ends with `/`. It belongs to root; links stay links.
    #[must_use]
    pub fn copy(self, from: impl Into<PathBuf>, to: impl Into<String>) -> Self {
        self.step(Step::Copy {
            from: from.into(),
            to: to.into(),
        })
    }

    /// Runs a command line in the image's shell, as the user and in the working directory that were set before.
    #[must_use]
    pub fn run_cmd(self, command: impl Into<String>) -> Self {
        self.step(Step::Run {
            command: command.into(),
            user: None,
        })
    }

    /// The same as another user.
    #[must_use]
    pub fn run_cmd_as(self, user: impl Into<String>, command: impl Into<String>) -> Self {
        self.step(Step::Run {
            command: command.into(),
            user: Some(user.into()),
        })
    }

    /// Installs Debian packages with what they depend on, from [`Self::apt_repository`].
    #[must_use]
    pub fn apt_install(self, packages: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.step(Step::AptInstall(packages.into_iter().map(Into::into).collect()))
    }

    /// The directory of the context that packages come from: `.deb` files, with an index named `Packages` or without. A
    /// guest has no network.
    #[must_use]
    pub fn apt_repository(self, directory: impl Into<PathBuf>) -> Self {
        Self {
            apt_repository: Some(directory.into()),
            ..self
        }
    }

    /// Sets a variable of the environment, from here on and in every sandbox.
    #[must_use]
    pub fn set_env(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.step(Step::Env {
            name: name.into(),
            value: value.into(),
        })
    }

    /// Sets several.
    #[must_use]
    pub fn set_envs<Name: Into<String>, Value: Into<String>>(
        self,
        variables: impl IntoIterator<Item = (Name, Value)>,
    ) -> Self {
        let variables = variables.into_iter();
        variables.fold(self, |template, (name, value)| template.set_env(name, value))
    }

    /// Sets the directory in which commands begin, from here on and in every sandbox. Made if it is not there.
    #[must_use]
    pub fn set_workdir(self, directory: impl Into<String>) -> Self {
        self.step(Step::WorkDir(directory.into()))
    }

    /// Sets who runs commands, from here on and in every sandbox.
    #[must_use]
    pub fn set_user(self, user: impl Into<String>) -> Self {
        self.step(Step::User(user.into()))
    }

    /// Sets a command line that runs in the background of every sandbox from its start on, and what says that it is ready:
    /// [`wait_for_port`] and the like, or `None`.
    #[must_use]
    pub fn set_start_cmd(self, command: impl Into<String>, ready: impl Into<Option<ReadyProbe>>) -> Self {
        Self {
            start: Some(StartCommand {
                command: command.into(),
                ready: ready.into(),
            }),
            ..self
        }
    }

    /// The image it begins with.
    pub fn base(&self) -> &str {
        &self.base
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// Ready when something listens on this TCP port of the guest.
pub fn wait_for_port(port: u16) -> ReadyProbe {
    ReadyProbe::Port(port)
}

/// Ready when this `http://` URL answers, seen from the guest, with a status below 400.
pub fn wait_for_url(url: impl Into<String>) -> ReadyProbe {
    ReadyProbe::Url(url.into())
}

/// Ready when there is a file of this path.
pub fn wait_for_file(path: impl Into<String>) -> ReadyProbe {
    ReadyProbe::File(path.into())
}

/// Ready when a process of this name runs.
pub fn wait_for_process(name: impl Into<String>) -> ReadyProbe {
    ReadyProbe::Process(name.into())
}

/// Ready when this command line ends with exit status 0.
pub fn wait_for_command(command: impl Into<String>) -> ReadyProbe {
    ReadyProbe::Command(command.into())
}

/// Ready after this time.
pub fn wait_for_timeout(time: Duration) -> ReadyProbe {
    ReadyProbe::Timeout(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
