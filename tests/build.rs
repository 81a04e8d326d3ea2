//! Makes functions of the examples in docs/api.md, for a test that runs them.

use std::path::Path;
use std::{env, fs};

fn main() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    println!("cargo::rerun-if-changed={}", document.display());
    let text = fs::read_to_string(document).expect("the documentation is there");
    let blocks = text.split("```rust,no_run\n").skip(1);
    let modules: String = blocks
        .map(|rest| module(rest.split("```").next().unwrap_or(rest)))
        .collect();
    let directory = env::var_os("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&directory).join("api_examples.rs"), modules).expect("cargo made the directory");
}

/// The function of an example, in a module of its name.
fn module(example: &str) -> String {
    let (_, function) = example.split_once("async fn ").expect("an example is a function");
    let (name, _) = function.split_once('(').expect("a function has arguments");
    let example = example.replace("async fn ", "pub(crate) async fn ");
    format!("mod {name} {{\n{example}\n}}\n")
}
