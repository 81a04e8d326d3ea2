//! The VMM process: one sandbox's virtual machine, from the lock it inherits to the record of its end.

pub mod args;
mod console;
pub mod control;
mod deadline;
mod events;
#[cfg(fuzzing)]
pub mod fuzzing;
mod machine;
mod notices;
mod outcome;
mod signals;
pub mod spawn;
pub mod status;
mod surroundings;
mod text;
mod vm;
mod volumes;

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use msb_protocol::identity::{GuestConfig, ImageRoot};
use msb_protocol::renewal::{ENTROPY, Renewal};
use msb_vmm::{Console, FileSystemConfig, VmConfig};

use args::{Lifetime, VmmArgs};
use console::ConsolePump;
use control::Take;
use control::server::ControlServer;
use deadline::Deadline;
use events::{Told, Watcher};
use machine::{Machine, Plan};
use notices::Notices;
use outcome::{Observed, VmEnd};
use signals::Signals;
use status::{Starter, StatusEvent};
use surroundings::{Surroundings, SurroundingsError};
use volumes::{VolumeError, Volumes};

use crate::identity::Identity;
use crate::log;
use crate::pools::PoolRef;
use crate::report;
use crate::sandbox::Sandbox;
use crate::sandbox::deadline::{Timeout, TimeoutEnd, boot_time};
use crate::sandbox::records::{
    DeadlineRecord, ExitRecord, PauseRecord, ProcessIdentity, ReadyRecord, RunRecord, VmProcess, WaitRecord,
};
use crate::store::files::{self, FileError};
use crate::store::layout::SandboxDir;
use crate::store::lock::RunLock;
use crate::store::names::SandboxId;
use crate::store::{Store, StoreError};
use crate::timings::{Timings, now_us};

/// Why a VMM process gives up before its VM runs.
#[derive(Debug, thiserror::Error)]
enum SetUpError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Surroundings(#[from] SurroundingsError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot write the guest's console to {}", path.display())]
    Console { path: PathBuf, source: io::Error },
    #[error("cannot {doing}")]
    System { doing: &'static str, source: io::Error },
    #[error("cannot read {}: it was removed", .0.display())]
    Absent(PathBuf),
}

impl SetUpError {
    fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}

/// Runs the VMM process. Returns when the VM has ended and everything is recorded and cleaned up.
///
/// # Errors
/// When `json` is not what a starter passes: somebody else executed this.
pub fn run(json: &str) -> Result<(), serde_json::Error> {
    let mut timings = Timings {
        vmm_started_us: Some(now_us()),
        ..Timings::default()
    };
    let args: VmmArgs = serde_json::from_str(json)?;
    log::to_stderr(args.log.as_deref());
    // All that this process makes is its user's alone, sockets included.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::thread::set_name(c"msb-vmm").unwrap_or_default();
    raise_descriptor_limit();
    let lock = RunLock::inherited(inherit(args.lock_fd));
    let mut starter = Starter::new(UnixStream::from(inherit(args.status_fd)), args.lifetime);
    let run = Run {
        store: Store::new(args.layout()),
        lock,
        run_id: new_run_id(),
        started_at: Timestamp::now(),
        args,
    };
    let (end, observed) = match run.run_vm(&mut starter, &mut timings) {
        Ok(ended) => ended,
        Err(error) => (VmEnd::Failed(report::one_line(&error)), Observed::default()),
    };
    run.finish(end, &observed, &starter);
    Ok(())
}

/// Lets the vsock device have as many connections as it may: each is a descriptor, and the usual soft limit is 1024.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    // The soft limit does until there are many connections.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}

/// One run of one sandbox.
#[derive(Debug)]
struct Run {
    store: Store,
    lock: RunLock,
    run_id: String,
    started_at: Timestamp,
    args: VmmArgs,
}

impl Run {
    fn id(&self) -> &SandboxId {
        &self.args.id
    }

    fn dir(&self) -> SandboxDir {
        self.store.layout().sandbox(self.id())
    }

    fn run_vm(&self, starter: &mut Starter, timings: &mut Timings) -> Result<(VmEnd, Observed), SetUpError> {
        let signals = Signals::block().map_err(SetUpError::system("receive signals"))?;
        self.write_run_record(None, &Volumes::default())?;
        let deadline = self.limit_time()?;
        self.store.create_socket_dir(self.id(), &self.lock)?;
        let sandbox = Sandbox::open(&self.store, self.id())?;
        let surroundings = surroundings::prepare(&self.store, self.id(), &sandbox.config().spec)?;
        let (notices, mut control) = self.listen(&surroundings)?;
        let (mut console, sink) = self.fresh_console()?;
        // SAFETY: this process has started no thread.
        let mut volumes = unsafe { Volumes::serve(&sandbox.config().spec, &surroundings) }?;
        let plan = self.plan(&sandbox, surroundings, sink, volumes.take_devices())?;
        let is_restored = plan.saved.is_some();
        // SAFETY: this process has started no thread.
        let mut machine = unsafe { Machine::spawn(&plan) }.map_err(SetUpError::system("start a process for the VM"))?;
        control.refuse(machine.pid());
        let Plan {
            config,
            saved,
            surroundings,
        } = plan;
        // The console ends with the machine, which has the other copy of its end.
        drop((config, saved));
        let killed = events::await_start(&machine, &signals, starter)
            .map_err(|errno| SetUpError::system("wait for the VM")(errno.into()))?;
        let started = match machine.started() {
            Ok(started) if killed.is_none() => started,
            Ok(_) => return Ok((machine.ended(), Observed::stopped(killed))),
            Err(end) => return Ok((surroundings.explain(end), Observed::stopped(killed))),
        };
        timings.kernel_loaded_us = started.loaded_us;
        timings.vm_built_us = Some(started.built_us);
        timings.vm_started_us = Some(started.started_us);
        self.write_run_record(
            Some(VmProcess {
                pid: machine.pid().as_raw_nonzero().get(),
                layers: started.layers,
            }),
            &volumes,
        )?;

        let watcher = Watcher {
            signals,
            starter,
            waits: false,
            notices,
            console: &mut console,
            machine: &mut machine,
            control,
            deadline,
            told: &Announcer {
                run: self,
                timings: timings.clone(),
            },
            owes_identity: is_restored,
        };
        let observed = watcher.run();
        let end = surroundings.explain(machine.ended());
        console.finish();
        Ok((end, observed))
    }

    /// Where the agent tells its notices, and verbs their requests.
    fn listen(&self, surroundings: &Surroundings) -> Result<(Notices, ControlServer), SetUpError> {
        let layout = self.store.layout();
        let path = layout.vsock_listener(self.id(), msb_protocol::ports::NOTICES);
        let notices = Notices::listen(&path).map_err(|source| SetUpError::Listen {
            path: path.clone(),
            source,
        })?;
        surroundings.let_connect(&path)?;
        let path = layout.control(self.id());
        let control = ControlServer::listen(&path).map_err(|source| SetUpError::Listen { path, source })?;
        Ok((notices, control))
    }

    /// An empty console log: an older panic would be taken for this run's.
    fn fresh_console(&self) -> Result<(ConsolePump, Console), SetUpError> {
        let dir = self.dir();
        for log in [dir.console_log(), dir.older_console_log()] {
            files::remove_optional(&log)?;
        }
        let path = dir.console_log();
        ConsolePump::new(path.clone()).map_err(|source| SetUpError::Console { path, source })
    }

    fn plan(
        &self,
        sandbox: &Sandbox,
        surroundings: Surroundings,
        console: Console,
        file_systems: Vec<FileSystemConfig>,
    ) -> Result<Plan, SetUpError> {
        let spec = &sandbox.config().spec;
        let vsock = self.store.layout().vsock(self.id());
        let image = spec.image.as_ref();
        let image = image.map(|image| (self.store.images().erofs(&image.id), self.dir().writable()));
        let vm_files = vm::VmFiles {
            kernel: &self.args.kernel,
            share_code: self.args.share_code,
            initramfs: &self.args.initramfs,
            rom: self.args.rom.as_deref(),
            tools: &self.args.tools,
            root: image
                .as_ref()
                .map(|(image, writable)| (image.as_path(), writable.as_path())),
            vsock: &vsock,
        };
        let saved = self.args.saved.map(|saved| vm::SavedFiles {
            state: File::from(inherit(saved.state)),
            memory: File::from(inherit(saved.memory)),
        });
        Ok(Plan {
            config: VmConfig {
                file_systems,
                ..vm::config(spec, vm_files, self.identity(sandbox)?, console)
            },
            saved,
            surroundings,
        })
    }

    fn write_run_record(&self, vm: Option<VmProcess>, volumes: &Volumes) -> Result<(), SetUpError> {
        let process = ProcessIdentity::of_self().map_err(SetUpError::system("read /proc"))?;
        let record = RunRecord {
            run_id: self.run_id.clone(),
            process,
            vm,
            volumes: volumes.records(),
            started_at: self.started_at,
            socket: self.store.layout().vsock(self.id()),
        };
        Ok(files::replace_json(&self.dir().run(), &record)?)
    }

    /// From now on the time of this run counts.
    fn limit_time(&self) -> Result<Deadline, SetUpError> {
        let limit = self.args.limit;
        let timer = Deadline::never(limit.end).and_then(|mut deadline| {
            deadline.set(limit.timeout.map(Timeout::duration), limit.end)?;
            Ok(deadline)
        });
        let deadline = timer.map_err(SetUpError::system("make a timer"))?;
        self.write_deadline(limit.timeout, limit.end)?;
        Ok(deadline)
    }

    fn write_deadline(&self, timeout: Option<Timeout>, end: TimeoutEnd) -> Result<(), FileError> {
        let path = self.dir().deadline();
        let Some(timeout) = timeout else {
            return files::remove_optional(&path);
        };
        let after = timeout.duration();
        let record = DeadlineRecord {
            run_id: self.run_id.clone(),
            at: Timestamp::now().saturating_add(after).unwrap_or(Timestamp::MAX),
            boot_time: boot_time() + after,
            end,
        };
        files::replace_json(&path, &record)
    }

    /// What a guest is told of itself, now.
    fn guest_config(sandbox: &Sandbox) -> GuestConfig {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let spec = &sandbox.config().spec;
        let image = spec.image.as_ref().map(|image| &image.config);
        let mut environment = image.map(|image| image.env.clone()).unwrap_or_default();
        environment.extend(spec.env.clone());
        GuestConfig {
            hostname: sandbox.label().to_owned(),
            environment,
            realtime: (now.as_secs(), now.subsec_nanos()),
            ssh: spec.ssh,
            image: image.map(|image| ImageRoot {
                user: image.user.clone(),
                working_dir: image.working_dir.clone(),
            }),
            volumes: volumes::mounts(spec),
        }
    }

    fn keys(&self) -> Result<(Vec<u8>, Vec<u8>), SetUpError> {
        let read = |path: PathBuf| files::read_optional(&path)?.ok_or(SetUpError::Absent(path));
        Ok((read(self.dir().host_key())?, read(self.dir().authorized_keys())?))
    }

    /// The archive that makes the guest this sandbox.
    fn identity(&self, sandbox: &Sandbox) -> Result<Vec<u8>, SetUpError> {
        let config = Self::guest_config(sandbox);
        let (host_key, authorized_keys) = self.keys()?;
        let identity = Identity {
            host_key: &host_key,
            authorized_keys: &authorized_keys,
            config: &config,
        };
        Ok(identity.to_archive())
    }

    fn announce_ready(&self, starter: &Starter, agent: &str, timings: Timings) {
        let record = ReadyRecord {
            run_id: self.run_id.clone(),
            ready_at: Timestamp::now(),
            agent: agent.to_owned(),
            timings,
        };
        let recorded = files::replace_json(&self.dir().ready(), &record).map_err(StoreError::from);
        let becomes_its_own = starter.lifetime() == Lifetime::DetachedWhenReady;
        let kept = if becomes_its_own {
            self.store.keep(self.id())
        } else {
            Ok(())
        };
        starter.tell(&StatusEvent::Ready(record));
        // The starter need not wait for the disk.
        let durable = if becomes_its_own {
            self.store.make_durable(self.id())
        } else {
            Ok(())
        };
        log_errors([recorded, kept, durable]);
    }

    /// Records the end and cleans up. The lock ends last, with this process.
    fn finish(&self, end: VmEnd, observed: &Observed, starter: &Starter) {
        let console = outcome::last_words(&self.dir().console_log());
        let (reason, message) = outcome::classify(end, observed, console.as_deref());
        let record = ExitRecord {
            run_id: self.run_id.clone(),
            ended_at: Timestamp::now(),
            reason,
            message,
        };
        let recorded = files::replace_json(&self.dir().exit(), &record).map_err(StoreError::from);
        let cleaned = match starter.lifetime().is_bound(observed.ready) {
            true => self.store.remove_held(self.id(), &self.lock),
            false => self.store.remove_surroundings(self.id()),
        };
        starter.tell(&StatusEvent::Ended(record));
        log_errors([recorded, cleaned]);
    }
}

/// Writes down, and tells the starter, what the watcher sees.
#[derive(Debug)]
struct Announcer<'a> {
    run: &'a Run,
    timings: Timings,
}

impl Told for Announcer<'_> {
    fn ready(&self, starter: &Starter, agent: &str, init_us: u64, ready_us: u64) {
        let timings = Timings {
            ready_us: Some(now_us()),
            guest_init_us: Some(init_us),
            guest_ready_us: Some(ready_us),
            ..self.timings.clone()
        };
        self.run.announce_ready(starter, agent, timings);
    }

    fn waits(&self, pool: &PoolRef) -> Result<(), StoreError> {
        let record = WaitRecord {
            run_id: self.run.run_id.clone(),
            pool: pool.clone(),
        };
        self.run.store.wait_in_pool(self.run.id(), &record)
    }

    fn taken(&self, take: &Take) -> Result<(), StoreError> {
        self.run.store.take(self.run.id(), take)
    }

    fn paused(&self, paused: bool) {
        let path = self.run.dir().paused();
        let recorded = match paused {
            false => files::remove_optional(&path),
            true => files::replace_json(
                &path,
                &PauseRecord {
                    run_id: self.run.run_id.clone(),
                    paused_at: Timestamp::now(),
                },
            ),
        };
        log_errors([recorded.map_err(StoreError::from)]);
    }

    fn deadline(&self, timeout: Option<Timeout>, end: TimeoutEnd) -> Result<(), FileError> {
        self.run.write_deadline(timeout, end)
    }

    fn identity(&self) -> io::Result<Vec<u8>> {
        // One that was taken from a pool is called otherwise since.
        let sandbox = Sandbox::open(&self.run.store, self.run.id()).map_err(io::Error::other)?;
        let (host_key, authorized_keys) = self.run.keys().map_err(io::Error::other)?;
        let mut random = [0; ENTROPY + 16];
        // Up to 256 bytes come whole or not at all (getrandom(2)).
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let (entropy, machine_id) = random.split_first_chunk().expect("it is longer");
        Renewal {
            entropy: *entropy,
            machine_id: machine_id.iter().map(|byte| format!("{byte:02x}")).collect(),
            host_key: String::from_utf8(host_key).map_err(io::Error::other)?,
            // Comments are in any encoding.
            authorized_keys: String::from_utf8_lossy(&authorized_keys).into_owned(),
            config: Run::guest_config(&sandbox),
        }
        .to_message()
    }
}

/// Takes over a descriptor that the starter left for this process.
fn inherit(fd: RawFd) -> OwnedFd {
    // SAFETY: the starter opened it for this process to own, and nothing else here knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// What goes wrong while the VM runs ends nothing; it can only be told.
fn log_errors(results: impl IntoIterator<Item = Result<(), StoreError>>) {
    for error in results.into_iter().filter_map(Result::err) {
        tracing::error!("{}", report::one_line(&error));
    }
}

fn new_run_id() -> String {
    // It only has to differ from the runs before: without random bytes, the time does that.
    SandboxId::random().map_or_else(|_| now_us().to_string(), |id| id.to_string())
}
