//! Images that are put together by hand.

use msb_image::digest::Digest;
use serde_json::{Value, json};

/// A tar archive of files.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *contents).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What `docker save` writes for one image: `config` is what says how to run it, `layers` are tar archives.
pub fn docker_archive(name: &str, config: &Value, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let names: Vec<String> = (0..layers.len()).map(|layer| format!("{layer}/layer.tar")).collect();
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": names }]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    let mut files: Vec<(&str, &[u8])> = vec![
        ("manifest.json", manifest.as_bytes()),
        ("config.json", config.as_bytes()),
    ];
    files.extend(names.iter().map(String::as_str).zip(layers.iter().map(Vec::as_slice)));
    tar_of(&files)
}
