//! The subsystem `layer@msb` (`msb_protocol::layer`): what was written since it was asked last, as a layer of an image.
//!
//! Layers are directories of an overlay. To take one, everything that could still write is ended ([`quiet`]), the
//! directory is archived ([`archive`]), and an overlay with a new one on top becomes the root of all processes
//! ([`stack`]).

use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::console;

mod archive;
mod quiet;
mod stack;

use archive::ArchiveError;
use quiet::QuietError;
use stack::Stack;

/// Bytes written at once.
const BUFFER: usize = 256 << 10;

/// Why a layer was not taken.
#[derive(Debug, thiserror::Error)]
enum LayerError {
    /// The guest has no layers.
    #[error("this guest is not made from an image")]
    NoImage,
    /// Something goes on writing.
    #[error(transparent)]
    Quiet(#[from] QuietError),
    /// The layer cannot be archived.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A step to another root file system failed.
    #[error("cannot {doing} {}", path.display())]
    Stack {
        /// A verb.
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Whoever asked does not listen.
    #[error("cannot send the layer")]
    Send(#[source] io::Error),
}

/// Takes the layer to standard output and begins another.
pub fn run() -> ExitCode {
    match take() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", console::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn take() -> Result<(), LayerError> {
    let stack = Stack::open()?;
    quiet::end_others()?;
    let mut output = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    archive::write(stack.current().as_deref(), &mut output)?;
    output.flush().map_err(LayerError::Send)?;
    stack.grow()
}
