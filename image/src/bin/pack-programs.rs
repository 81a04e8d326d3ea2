//! Packs a directory of programs into a file system that guests run them from where it is in memory.

use std::path::Path;
use std::process::ExitCode;

use msb_image::cramfs::{self, Node};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, output] = arguments.as_slice() else {
        eprintln!("usage: pack-programs DIRECTORY OUTPUT");
        return ExitCode::from(2);
    };
    match pack(directory, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("pack-programs: {message}");
            ExitCode::FAILURE
        }
    }
}

fn pack(directory: &str, output: &str) -> Result<(), String> {
    let read = Node::read(Path::new(directory)).map_err(|error| format!("cannot read {directory}: {error}"))?;
    let Node::Directory(root) = read else {
        return Err(format!("{directory} is no directory"));
    };
    let image = cramfs::pack(&root).map_err(|error| format!("cannot pack {directory}: {error}"))?;
    std::fs::write(output, image).map_err(|error| format!("cannot write {output}: {error}"))
}
