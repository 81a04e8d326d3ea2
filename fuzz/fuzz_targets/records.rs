//! A store in which one file has anything in it, as `msb ls` and `msb image ls` read it.
//!
//! What is wrong is an error that names the file. What is understood survives being written again.
#![no_main]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use msb::images::{ImageRecord, ImportOptions};
use msb::sandbox::config::Config;
use msb::sandbox::deadline::TimeoutEnd;
use msb::sandbox::records::{
    DeadlineRecord, ExitReason, ExitRecord, PauseRecord, ProcessIdentity, ReadyRecord, RunRecord,
};
use msb::store::files;
use msb::store::layout::Layout;
use msb::store::lock::RunLock;
use msb::timings::Timings;
use msb::{Images, Sandbox, SandboxSpec, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;

const IMAGE: &str = "app:1";

/// A store with one sandbox, which seems to run, and one image.
struct World {
    store: Store,
    images: Images,
    sandbox: Sandbox,
    /// The files that may be wrong, with what is right in them.
    files: Vec<(PathBuf, Vec<u8>)>,
    _lock: RunLock,
    _directory: tempfile::TempDir,
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = Layout {
            home: directory.path().join("home"),
            runtime: directory.path().join("run"),
        };
        let root = directory.path().join("root");
        std::fs::create_dir(&root).expect("a directory");
        let images = Images::new(&layout);
        let options = ImportOptions {
            names: vec![IMAGE.parse().expect("a name")],
            ..ImportOptions::default()
        };
        images.import(&root, &options, &|_| {}).expect("an image");
        let store = Store::new(layout);
        let sandbox = Sandbox::create(&store, SandboxSpec::default(), &[]).expect("a sandbox");
        let lock = RunLock::try_acquire(&sandbox.dir().lock())
            .expect("a lock")
            .expect("it is free");
        write_records(&sandbox);
        let of_images = images_files(&store.layout().home.join("images"));
        let dir = sandbox.dir();
        let records = [
            dir.config(),
            dir.run(),
            dir.ready(),
            dir.paused(),
            dir.deadline(),
            dir.exit(),
        ];
        let files = records.into_iter().chain(of_images).map(|path| {
            let right = std::fs::read(&path).expect("a record");
            (path, right)
        });
        Self {
            files: files.collect(),
            store,
            images,
            sandbox,
            _lock: lock,
            _directory: directory,
        }
    }

    /// Reads all that is shown of sandboxes and images.
    fn read(&self) -> Result<(), Box<dyn Error>> {
        for sandbox in Sandbox::all(&self.store)? {
            let sandbox = sandbox?;
            sandbox.state()?;
            sandbox.deadline()?;
            sandbox.config().hosts();
        }
        self.images.all()?;
        self.images
            .find(IMAGE)
            .map(drop)
            .or_else(|error| match is_about_a_file(&error) {
                true => Err(error.into()),
                // It has another name now.
                false => Ok(()),
            })
    }
}

fn write_records(sandbox: &Sandbox) {
    let (run_id, now, dir) = (String::from("run"), Timestamp::UNIX_EPOCH, sandbox.dir());
    let run = RunRecord {
        run_id: run_id.clone(),
        process: ProcessIdentity::of_self().expect("this process"),
        vm: None,
        started_at: now,
        socket: "/s".into(),
        volumes: Vec::new(),
    };
    let ready = ReadyRecord {
        run_id: run_id.clone(),
        ready_at: now,
        agent: "1".into(),
        timings: Timings::default(),
    };
    let deadline = DeadlineRecord {
        run_id: run_id.clone(),
        at: now,
        boot_time: std::time::Duration::MAX,
        end: TimeoutEnd::Stop,
    };
    let exit = ExitRecord {
        run_id: run_id.clone(),
        ended_at: now,
        reason: ExitReason::Deadline,
        message: "why".into(),
    };
    let paused = PauseRecord { run_id, paused_at: now };
    files::replace_json(&dir.run(), &run).expect("a record");
    files::replace_json(&dir.ready(), &ready).expect("a record");
    files::replace_json(&dir.deadline(), &deadline).expect("a record");
    files::replace_json(&dir.exit(), &exit).expect("a record");
    files::replace_json(&dir.paused(), &paused).expect("a record");
}

/// The record of the only image, and the names.
fn images_files(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).expect("the images").flatten();
    let records = entries
        .map(|entry| entry.path().join("image.json"))
        .filter(|path| path.is_file());
    records.chain([root.join("refs.json")]).collect()
}

fn chain(error: &dyn Error) -> String {
    let cause = error.source().map(|cause| format!(": {}", chain(cause)));
    error.to_string() + &cause.unwrap_or_default()
}

fn is_about_a_file(error: &dyn Error) -> bool {
    chain(error).contains("cannot understand")
}

fn survives<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let again = files::to_json(&value);
        assert_eq!(
            serde_json::from_slice::<T>(&again).expect("it was written by us"),
            value
        );
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&which, wrong)) = input.split_first() else {
        return;
    };
    let world = &*WORLD;
    let which = usize::from(which) % world.files.len();
    let (path, right) = &world.files[which];
    match which {
        0 => survives::<Config>(wrong),
        1 => survives::<RunRecord>(wrong),
        2 => survives::<ReadyRecord>(wrong),
        3 => survives::<PauseRecord>(wrong),
        4 => survives::<DeadlineRecord>(wrong),
        5 => survives::<ExitRecord>(wrong),
        6 => survives::<ImageRecord>(wrong),
        _ => {}
    }
    std::fs::write(path, wrong).expect("a record");
    let read = world.read();
    std::fs::write(path, right).expect("a record");
    if let Err(error) = read {
        let told = chain(&*error);
        assert!(told.contains(&path.display().to_string()), "{told}");
    }
    assert!(world.sandbox.state().is_ok(), "what is right is read again");
});
