//! What of a template is to be done in a guest, in which order, and the key of each step: a digest of all that its result
//! depends on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use msb_image::config::RunConfig;
use msb_image::digest::Digest;

use super::apt;
use super::context::{Context, ContextError, Source};
use super::{Step, Template};
use crate::images::ImageRecord;
use crate::store::files;

/// Changes whenever the same step would write something else than before.
const VERSION: u32 = 1;

/// Why a template cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// What a step copies.
    #[error("step {number}, {title}")]
    Source {
        /// Which step, from 1.
        number: usize,
        /// The step.
        title: String,
        /// Why not.
        source: ContextError,
    },
    /// A step says what no guest can be told.
    #[error("step {number}, {title}: {reason}")]
    Step {
        /// Which step, from 1.
        number: usize,
        /// The step.
        title: String,
        /// What is wrong.
        reason: String,
    },
    /// So does the start command.
    #[error("the start command cannot be used: {0}")]
    Start(&'static str),
    /// The directory that packages come from.
    #[error("cannot take packages from the repository")]
    Repository(#[source] ContextError),
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
    /// Of the image that comes out.
    pub(super) config: RunConfig,
}

/// A step that writes something.
#[derive(Debug)]
pub(super) struct Action {
    /// Which step of the template, from 1.
    pub(super) number: usize,
    pub(super) title: String,
    pub(super) key: Digest,
    pub(super) work: Work,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) enum Work {
    Copy { source: Source, to: PathBuf },
    Run { command: String },
    AptInstall { repository: Source, packages: Vec<String> },
}

/// What a step finds.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// Variables on top of those of the image below.
    pub(super) env: BTreeMap<String, String>,
    pub(super) user: String,
    pub(super) directory: String,
}

impl Template {
    /// The steps as they are shown.
    pub(super) fn titles(&self) -> Vec<String> {
        self.steps.iter().map(Step::title).collect()
    }

    pub(super) fn plan(
        &self,
        base: &ImageRecord,
        context: &Context,
        repository: Option<PathBuf>,
    ) -> Result<Plan, PlanError> {
        let mut planner = Planner {
            template: self,
            context,
            repository,
            place: Place {
                env: BTreeMap::new(),
                user: base.config.user.clone(),
                directory: base.config.working_dir.clone(),
            },
            previous: base.id,
            actions: Vec::new(),
        };
        for (index, step) in self.steps.iter().enumerate() {
            planner.step(index + 1, step)?;
        }
        let mut config = base.config.clone();
        config.env.extend(planner.place.env);
        config.user = planner.place.user;
        config.working_dir = planner.place.directory;
        if let Some(start) = &self.start {
            start.check().map_err(PlanError::Start)?;
            config.start = Some(start.clone());
        }
        Ok(Plan {
            actions: planner.actions,
            config,
        })
    }
}

struct Planner<'a> {
    template: &'a Template,
    context: &'a Context,
    /// In the place of the template's.
    repository: Option<PathBuf>,
    place: Place,
    previous: Digest,
    actions: Vec<Action>,
}

impl Planner<'_> {
    fn step(&mut self, number: usize, step: &Step) -> Result<(), PlanError> {
        let wrong = |reason: String| PlanError::Step {
            number,
            title: step.title(),
            reason,
        };
        let missing = |source| PlanError::Source {
            number,
            title: step.title(),
            source,
        };
        step.check().map_err(wrong)?;
        match step {
            Step::Env { name, value } => {
                self.place.env.insert(name.clone(), value.clone());
            }
            Step::WorkDir(directory) => {
                let directory = self.path(directory);
                self.place.directory = directory.to_string_lossy().into_owned();
            }
            Step::User(user) => self.place.user.clone_from(user),
            Step::Copy { from, to } => {
                let source = self.context.source(from).map_err(missing)?;
                let to = match !source.is_directory && to.ends_with('/') {
                    true => self.path(to).join(source.name()),
                    false => self.path(to),
                };
                let key = ("copy", source.digest().map_err(missing)?, source.is_directory, &to);
                let key = self.key(&key, None);
                self.push(number, step, key, Work::Copy { source, to }, None);
            }
            Step::Run { command, user } => {
                let user = user.clone().unwrap_or_else(|| self.place.user.clone());
                let place = Place {
                    user,
                    ..self.place.clone()
                };
                let key = self.key(&("run", command), Some(&place));
                let command = command.clone();
                self.push(number, step, key, Work::Run { command }, Some(place));
            }
            Step::AptInstall(packages) => {
                let repository = self.repository().map_err(PlanError::Repository)?;
                let repository = repository.ok_or_else(|| wrong(apt::NO_REPOSITORY.into()))?;
                let digest = repository.digest().map_err(PlanError::Repository)?;
                let place = Place {
                    user: "root".into(),
                    directory: "/".into(),
                    ..self.place.clone()
                };
                let key = self.key(&("apt", packages, digest), Some(&place));
                let packages = packages.clone();
                let work = Work::AptInstall { repository, packages };
                self.push(number, step, key, work, Some(place));
            }
        }
        Ok(())
    }

    /// The key of a step that follows the last one.
    fn key(&self, what: &impl serde::Serialize, place: Option<&Place>) -> Digest {
        let place = place.map(|place| (&place.env, &place.user, &place.directory));
        Digest::of(&files::to_json(&(VERSION, &self.previous, what, place)))
    }

    fn push(&mut self, number: usize, step: &Step, key: Digest, work: Work, place: Option<Place>) {
        self.previous = key;
        self.actions.push(Action {
            number,
            title: step.title(),
            key,
            work,
            place: place.unwrap_or_default(),
        });
    }

    /// A path of the guest, from the working directory.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from("/").join(&self.place.directory).join(path)
    }

    fn repository(&self) -> Result<Option<Source>, ContextError> {
        match (&self.repository, &self.template.apt_repository) {
            (Some(given), _) => Source::directory(given).map(Some),
            (None, Some(own)) => self.context.source(own).map(Some),
            (None, None) => Ok(None),
        }
    }
}

impl Step {
    /// As it is shown.
    fn title(&self) -> String {
        let text = match self {
            Self::Copy { from, to } => format!("copy {} {to}", from.display()),
            Self::Run { command, user: None } => format!("run {command}"),
            Self::Run {
                command,
                user: Some(user),
            } => format!("run as {user} {command}"),
            Self::AptInstall(packages) => format!("apt_install {}", packages.join(" ")),
            // A value may be a secret.
            Self::Env { name, .. } => format!("env {name}"),
            Self::WorkDir(directory) => format!("workdir {directory}"),
            Self::User(user) => format!("user {user}"),
        };
        text.trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }

    /// Checks what can be checked without a guest.
    fn check(&self) -> Result<(), String> {
        let texts: Vec<&str> = match self {
            Self::Copy { to, .. } => vec![to],
            Self::Run { command, user } => vec![command, user.as_deref().unwrap_or("root")],
            Self::AptInstall(packages) => return apt::check(packages),
            Self::Env { name, .. } if name.is_empty() || name.contains('=') => {
                return Err(format!("'{name}' is no name of a variable"));
            }
            // The empty value is one.
            Self::Env { name, value } => match value.contains('\0') {
                true => return Err("a value has a zero byte".into()),
                false => vec![name],
            },
            Self::WorkDir(directory) => vec![directory],
            Self::User(user) => vec![user],
        };
        match texts.iter().find(|text| text.is_empty() || text.contains('\0')) {
            Some(&"") => Err("something is empty that cannot be".into()),
            Some(_) => Err("a text has a zero byte".into()),
            None => Ok(()),
        }
    }
}
