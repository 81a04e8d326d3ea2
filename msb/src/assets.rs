//! The files that belong to msb itself: its programs, the guest kernel and the built-in image.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

/// What Linux calls the running program when its file was replaced.
const REPLACED: &str = "msb (deleted)";

/// The guest kernel, the built-in image with its tools, and who runs a VMM with them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Assets {
    /// An uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// The archives (newc) of the shared initramfs.
    pub initramfs: Vec<PathBuf>,
    /// Programs of the image that the guest runs from memory which it shares with others: a cramfs. A kernel that is not
    /// ours may not know how, and has them in its initramfs.
    pub programs: Option<PathBuf>,
    /// Programs of the image that are read only when they run: a read-only EROFS disk.
    pub tools: PathBuf,
    /// The program of a sandbox's VMM. It has nothing of msb that a running VM does not need.
    pub vmm: PathBuf,
}

/// Why a file of msb cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum AssetsError {
    /// The path of the running program is unknown.
    #[error(
        "cannot find out where msb itself is; set MSB_LIB to the directory with msb-vmm, vmlinux and the built-in image"
    )]
    OwnPath(#[source] io::Error),
    /// A file is not where it belongs.
    #[error("{} is missing; build it with `scripts/build`, or set MSB_LIB to the directory that has it", .0.display())]
    Missing(PathBuf),
    /// There is no msb.
    #[error("there is no program 'msb' on the PATH; install it or set MSB_PROGRAM to its path")]
    NoProgram,
}

impl Assets {
    /// The directory that has them: `$MSB_LIB`, else `../lib/msb` as seen from the directory of msb's program.
    ///
    /// # Errors
    /// When the running program's path is unknown.
    pub fn directory() -> Result<PathBuf, AssetsError> {
        if let Some(directory) = env::var_os("MSB_LIB").filter(|value| !value.is_empty()) {
            return Ok(directory.into());
        }
        let program = own_program().map_err(AssetsError::OwnPath)?;
        let bin = program.parent().unwrap_or(Path::new("/"));
        Ok(bin.parent().unwrap_or(bin).join("lib/msb"))
    }

    /// Finds all files. `kernel` replaces the built-in one.
    ///
    /// # Errors
    /// When one is missing.
    pub fn find(kernel: Option<&Path>) -> Result<Self, AssetsError> {
        let directory = Self::directory()?;
        let mut initramfs = vec![directory.join("initramfs.cpio")];
        let programs = match kernel {
            Some(_) => {
                initramfs.push(directory.join("programs.cpio"));
                None
            }
            None => Some(directory.join("programs.cramfs")),
        };
        let kernel = kernel.map_or_else(|| directory.join("vmlinux"), Path::to_owned);
        let tools = directory.join("tools.erofs");
        let vmm = directory.join("msb-vmm");
        for file in [&kernel, &tools, &vmm].into_iter().chain(&initramfs).chain(&programs) {
            if !file.is_file() {
                return Err(AssetsError::Missing(file.clone()));
            }
        }
        Ok(Self {
            kernel,
            initramfs,
            programs,
            tools,
            vmm,
        })
    }
}

/// The program to execute as msb: this very one if it is, however its file was replaced meanwhile; else, for other Rust
/// programs, `$MSB_PROGRAM` or the msb on the PATH.
///
/// # Errors
/// When there is none.
pub fn msb_program() -> Result<PathBuf, AssetsError> {
    if let Some(program) = env::var_os("MSB_PROGRAM").filter(|value| !value.is_empty()) {
        return Ok(program.into());
    }
    if env::current_exe().is_ok_and(|program| is_msb(&program)) {
        return Ok("/proc/self/exe".into());
    }
    on_path().ok_or(AssetsError::NoProgram)
}

/// The file of the msb program.
///
/// # Errors
/// When the path of the running program is unknown.
pub fn own_program() -> io::Result<PathBuf> {
    if let Some(program) = env::var_os("MSB_PROGRAM").filter(|value| !value.is_empty()) {
        return PathBuf::from(program).canonicalize();
    }
    let current = env::current_exe()?;
    match on_path() {
        Some(program) if !is_msb(&current) => program.canonicalize(),
        _ if current.ends_with(REPLACED) => Ok(current.with_file_name("msb")),
        _ => Ok(current),
    }
}

fn is_msb(program: &Path) -> bool {
    program.ends_with("msb") || program.ends_with(REPLACED)
}

fn on_path() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join("msb"))
        .find(|program| program.is_file())
}
