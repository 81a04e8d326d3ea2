//! The program that runs a sandbox's VMM: msb starts it, and a guest that took its VMM over finds nothing else in it. See
//! [`msb::vmm_process`].

use std::process::ExitCode;

use msb::cli::OWN_ERROR;

fn main() -> ExitCode {
    let json = std::env::args().nth(1).unwrap_or_default();
    match msb::vmm_process::run(&json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("msb-vmm: only msb starts this program: {error}");
            ExitCode::from(OWN_ERROR)
        }
    }
}
