//! Debian's registry on a port of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A registry of images on this machine, until this is dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    config: PathBuf,
    /// Its host and port, the beginning of its images' names.
    pub address: String,
}

impl Registry {
    /// Starts one that keeps its images in `storage`.
    pub fn start(storage: &Path) -> Self {
        let address = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        std::fs::create_dir_all(storage).unwrap();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        let file = storage.join("registry.yml");
        std::fs::write(&file, config).unwrap();
        Self {
            process: serve(&file),
            config: file,
            address,
        }
    }

    /// Kills it as SIGKILL does. It can be started again.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again after [`Registry::kill`], where it was.
    pub fn start_again(&mut self) {
        self.process = serve(&self.config);
    }

    /// Puts an archive of `docker save` there as `name`.
    pub fn push(&self, archive: &Path, name: &str) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]);
        command.arg(format!("docker-archive:{}", archive.display()));
        let pushed = command.arg(format!("docker://{}/{name}", self.address)).output();
        let pushed = pushed.expect("skopeo is installed: scripts/test as root does it");
        assert!(pushed.status.success(), "{pushed:?}");
    }
}

fn serve(config: &Path) -> Child {
    let mut command = Command::new("docker-registry");
    command
        .arg("serve")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut process = command
        .spawn()
        .expect("docker-registry is installed: scripts/test as root does it");
    let log = std::io::BufReader::new(process.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(log);
    let listening = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("listening on")));
    assert!(listening.is_some(), "the registry ended");
    // What it says must go somewhere as long as it lives.
    std::thread::spawn(move || lines.for_each(drop));
    process
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
