//! From a template to an image.

use std::path::PathBuf;
use std::time::Duration;

use msb_image::digest::Digest;
use msb_image::limits::Limits;
use tokio::task::{JoinError, spawn_blocking};

use super::Template;
use super::context::{Context, ContextError};
use super::guest::{Guest, GuestError, Output};
use super::plan::{Action, Plan, PlanError};
use crate::images::{ImageError, ImageName, ImageRecord, Images, ImportError, Origin};
use crate::sandbox::spec::{DEFAULT_DISK_SIZE, Memory, SandboxImage};
use crate::store::files::FileError;
use crate::{SandboxSpec, Store};

/// How a template is built.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The directory that is copied from. Default: the working directory.
    pub context: PathBuf,
    /// What to call the image.
    pub names: Vec<ImageName>,
    /// A directory of packages in the place of the template's, anywhere on the host.
    pub apt_repository: Option<PathBuf>,
    /// Runs every step, whatever is kept of it.
    pub no_cache: bool,
    /// Virtual CPUs of the microVM that steps run in.
    pub cpus: u8,
    /// Its memory.
    pub memory: Memory,
    /// What all steps together may write.
    pub disk_size: Memory,
    /// How long it may take to start.
    pub boot_timeout: Duration,
    /// How much the image, and what a step wrote, may hold.
    pub limits: Limits,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            context: ".".into(),
            names: Vec::new(),
            apt_repository: None,
            no_cache: false,
            cpus: 1,
            memory: Memory { mib: 1024 },
            disk_size: DEFAULT_DISK_SIZE,
            boot_timeout: Duration::from_secs(120),
            limits: Limits::default(),
        }
    }
}

/// What a build is doing.
#[derive(Clone, Copy, Debug)]
pub enum BuildEvent<'a> {
    /// A step begins, or is taken as it was before.
    Step {
        /// Which step of the template, from 1.
        number: usize,
        /// Of how many.
        of: usize,
        /// The step.
        title: &'a str,
        /// Whether it is not run, because what it wrote is kept.
        cached: bool,
    },
    /// What it prints.
    Output {
        /// Which step.
        number: usize,
        /// A piece of it.
        bytes: &'a [u8],
        /// Whether it comes from standard error.
        is_error: bool,
    },
    /// All steps are done; the image is put together.
    Assembling,
}

/// Why there is no image. Steps that were done are kept for the next time.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The image it begins with.
    #[error(transparent)]
    Base(#[from] ImageError),
    /// The context.
    #[error("cannot use the context")]
    Context(#[source] ContextError),
    /// The template.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file of the store could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The microVM does not start.
    #[error("cannot start the microVM that steps run in")]
    Guest(#[source] GuestError),
    /// A step failed.
    #[error("step {number}, {title}, failed")]
    Step {
        /// Which, from 1.
        number: usize,
        /// The step.
        title: String,
        /// Why.
        source: GuestError,
    },
    /// The image cannot be put together.
    #[error("cannot put the image together")]
    Assemble(#[from] ImportError),
    /// A part of the build was ended from outside.
    #[error("the build was given up")]
    GivenUp(#[from] JoinError),
}

impl BuildError {
    /// What a step printed last that failed, with its ends of lines.
    pub fn printed(&self) -> Option<&str> {
        match self {
            Self::Step {
                source: GuestError::Failed { output, .. },
                ..
            } if !output.is_empty() => Some(output),
            _ => None,
        }
    }
}

impl Template {
    /// Builds it and tells `on_event` how far it is. Steps that are kept from an earlier build are not run; if all are, no
    /// microVM is started.
    ///
    /// # Errors
    /// When a step fails, an image or file is missing, or the disk is full. Steps that were done are kept.
    pub async fn build(
        &self,
        store: &Store,
        options: &BuildOptions,
        mut on_event: impl FnMut(BuildEvent<'_>),
    ) -> Result<ImageRecord, BuildError> {
        let images = store.images();
        let base = images.find(&self.base)?;
        let context = Context::open(&options.context).map_err(BuildError::Context)?;
        let Plan { actions, config } = self.plan(&base, &context, options.apt_repository.clone())?;
        let mut build = Build {
            store,
            options,
            from: &self.base,
            base,
            layers: Vec::new(),
            of: self.steps.len(),
            on_event: &mut on_event,
        };
        let cached = build.take_cached(&images, &actions)?;
        if cached < actions.len() {
            build.run(&images, &actions[cached..]).await?;
        }
        (build.on_event)(BuildEvent::Assembling);
        let origin = build.origin(self.titles());
        let (base, names, limits) = (build.base, options.names.clone(), options.limits);
        let made = spawn_blocking(move || images.derive(&base, origin, config, &names, limits));
        Ok(made.await??)
    }
}

struct Build<'a, Event> {
    store: &'a Store,
    options: &'a BuildOptions,
    /// What the image below is called.
    from: &'a str,
    base: ImageRecord,
    /// Of the steps that are done.
    layers: Vec<Digest>,
    of: usize,
    on_event: &'a mut Event,
}

impl<Event: FnMut(BuildEvent<'_>)> Build<'_, Event> {
    /// Takes what is kept, up to the first step that must be run. Returns how many steps that are.
    fn take_cached(&mut self, images: &Images, actions: &[Action]) -> Result<usize, FileError> {
        if self.options.no_cache {
            return Ok(0);
        }
        for action in actions {
            let Some(layer) = images.cached_layer(&action.key)? else {
                break;
            };
            self.layers.push(layer);
            self.tell(action, true);
        }
        Ok(self.layers.len())
    }

    /// Runs steps one after the other in one microVM, and keeps what each wrote.
    async fn run(&mut self, images: &Images, actions: &[Action]) -> Result<(), BuildError> {
        let before = self.before(images).await?;
        let guest = Guest::start(self.store, self.spec(&before), self.options.boot_timeout).await;
        let result = match guest {
            Ok(guest) => {
                let result = self.run_in(&guest, images, actions).await;
                guest.discard().await;
                result
            }
            Err(error) => Err(BuildError::Guest(error)),
        };
        if before.id != self.base.id {
            // Nobody else knows of it; one that got a name or a sandbox meanwhile stays.
            let _ = images.remove_unnamed(self.store, &before.id);
        }
        result
    }

    async fn run_in(&mut self, guest: &Guest, images: &Images, actions: &[Action]) -> Result<(), BuildError> {
        for action in actions {
            self.tell(action, false);
            let number = action.number;
            let on_event = &mut *self.on_event;
            let output = |Output { bytes, is_error }: Output<'_>| {
                on_event(BuildEvent::Output {
                    number,
                    bytes,
                    is_error,
                });
            };
            let failed = |source| BuildError::Step {
                number,
                title: action.title.clone(),
                source,
            };
            guest.perform(action, output).await.map_err(failed)?;
            let kept = guest.keep(images, &action.key, self.options.limits.bytes);
            self.layers.push(kept.await.map_err(failed)?);
        }
        Ok(())
    }

    /// The image that the first step to be run finds.
    async fn before(&self, images: &Images) -> Result<ImageRecord, BuildError> {
        if self.layers.is_empty() {
            return Ok(self.base.clone());
        }
        let (images, base, limits) = (images.clone(), self.base.clone(), self.options.limits);
        let origin = self.origin(Vec::new());
        let made = spawn_blocking(move || images.derive(&base, origin, base.config.clone(), &[], limits));
        Ok(made.await??)
    }

    fn origin(&self, steps: Vec<String>) -> Origin {
        Origin {
            base: self.base.id,
            from: self.from.to_owned(),
            steps,
            layers: self.layers.clone(),
        }
    }

    fn spec(&self, image: &ImageRecord) -> SandboxSpec {
        let config = &image.config;
        SandboxSpec {
            cpus: self.options.cpus,
            memory: self.options.memory,
            disk_size: self.options.disk_size,
            image: Some(SandboxImage {
                name: self.from.to_owned(),
                id: image.id,
                config: config.clone(),
            }),
            ..SandboxSpec::default()
        }
    }

    fn tell(&mut self, action: &Action, cached: bool) {
        (self.on_event)(BuildEvent::Step {
            number: action.number,
            of: self.of,
            title: &action.title,
            cached,
        });
    }
}
