//! What registries answer, and what `docker login` wrote: manifests, configurations of images, challenges, logins.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_image::config::{ParsedConfig, RunConfig};
use msb_image::manifest::Manifest;
use msb_image::registry;

fuzz_target!(|input: &[u8]| {
    let Some((&what, bytes)) = input.split_first() else {
        return;
    };
    match what % 4 {
        0 => {
            let _ = Manifest::parse(bytes);
        }
        1 => {
            let Ok(parsed) = ParsedConfig::parse(bytes) else {
                return;
            };
            // What is kept of it is read again whenever a sandbox is made of it.
            let kept = serde_json::to_vec(&parsed.run).expect("string keys");
            let again: RunConfig = serde_json::from_slice(&kept).expect("it was written by us");
            assert_eq!(again, parsed.run);
            let words = again.command(&[]);
            assert!(words.iter().all(|word| !word.contains('\0')));
        }
        2 => registry::parse_challenge(&String::from_utf8_lossy(bytes)),
        _ => registry::parse_logins(bytes),
    }
});
