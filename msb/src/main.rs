//! The `msb` command. See [`msb::cli`].

fn main() -> std::process::ExitCode {
    msb::cli::main()
}
