use super::*;
use crate::digest::Digest;

const LAYER: &[u8] = &[0; 1024];

fn config() -> String {
    let diff_id = Digest::of(LAYER);
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/x"]}},
            "rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    )
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        builder.append_data(&mut header, name, *contents).unwrap();
    }
    builder.into_inner().unwrap()
}

fn docker_archive(config: &str) -> Vec<u8> {
    let manifest = br#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l/layer.tar"]}]"#;
    let files: [(&str, &[u8]); 3] = [
        ("manifest.json", manifest),
        ("c.json", config.as_bytes()),
        ("l/layer.tar", LAYER),
    ];
    archive(&files)
}

fn options<'a>(format: Option<Format>, wanted: Option<&'a str>, scratch: &'a Path) -> OpenOptions<'a> {
    OpenOptions {
        format,
        wanted,
        scratch,
        limits: Limits::default(),
    }
}

fn opened(bytes: &[u8], wanted: Option<&str>) -> Result<Source, SourceError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    std::fs::write(&path, bytes).unwrap();
    open(&path, options(None, wanted, directory.path()))
}

fn layout_files() -> Vec<(String, Vec<u8>)> {
    let blob = |bytes: &[u8]| (format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes.to_vec());
    let descriptor = |bytes: &[u8]| {
        let (digest, size) = (Digest::of(bytes), bytes.len());
        format!(r#""mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size}"#)
    };
    let (config, layer) = (config(), descriptor(LAYER));
    let of_config = descriptor(config.as_bytes());
    let manifest = format!(r#"{{"schemaVersion":2,"config":{{{of_config}}},"layers":[{{{layer}}}]}}"#);
    let named = descriptor(manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{{named},"annotations":{{"org.opencontainers.image.ref.name":"v1"}}}}]}}"#
    );
    vec![
        ("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".into(), index.into_bytes()),
        blob(manifest.as_bytes()),
        blob(config.as_bytes()),
        blob(LAYER),
    ]
}

fn assert_whole(source: Result<Source, SourceError>, name: &str) {
    let Source::Image(image) = source.unwrap() else {
        panic!("no image in layers")
    };
    assert_eq!(image.names, [name]);
    assert_eq!(image.config.run.cmd, ["/x"]);
    for (layer, digest) in image.layers() {
        let mut bytes = Vec::new();
        layer.unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(Digest::of(&bytes), digest);
    }
}

#[test]
fn an_archive_of_docker_is_found_packed_or_not() {
    use std::io::Write as _;
    let plain = docker_archive(&config());
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    for bytes in [plain, encoder.finish().unwrap()] {
        assert_whole(opened(&bytes, None), "app:1");
    }
}

#[test]
fn a_layout_is_found_as_a_directory_and_as_an_archive() {
    let files = layout_files();
    let directory = tempfile::tempdir().unwrap();
    for (name, contents) in &files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
    }
    assert_whole(open(directory.path(), options(None, None, Path::new("/tmp"))), "v1");
    let borrowed: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    assert_whole(opened(&archive(&borrowed), Some("v1")), "v1");
    assert!(matches!(
        opened(&archive(&borrowed), Some("v2")),
        Err(SourceError::NoSuchImage { .. })
    ));
}

#[test]
fn what_is_damaged_or_incomplete_is_told_apart_from_what_is_no_image() {
    let without_layer = archive(&[
        (
            "manifest.json",
            br#"[{"Config":"c.json","RepoTags":null,"Layers":["l/layer.tar"]}]"#,
        ),
        ("c.json", config().as_bytes()),
    ]);
    let Source::Image(image) = opened(&without_layer, None).unwrap() else {
        panic!("no image in layers")
    };
    assert!(matches!(image.layers().next(), Some((Err(SourceError::Missing(_)), _))));
    let more_named = config().replace("diff_ids\":[", &format!("diff_ids\":[\"{}\",", Digest::of(b"")));
    let opened_as = |bytes: &[u8]| opened(bytes, None);
    assert!(matches!(
        opened_as(&docker_archive(&more_named)),
        Err(SourceError::LayerCount { .. })
    ));
    let mut files = layout_files();
    files[3].1[0] ^= 1;
    let borrowed: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    assert!(matches!(
        opened_as(&archive(&borrowed)),
        Err(SourceError::Damaged { .. })
    ));
    let cut = docker_archive(&config());
    assert!(matches!(
        opened_as(&cut[..cut.len() - 1500]),
        Err(SourceError::Archive { .. })
    ));
    assert!(matches!(
        opened_as(&archive(&[("etc/passwd", b"")])),
        Ok(Source::Tar(_))
    ));
    assert!(matches!(
        opened_as(&archive(&[("manifest.json", b"[]")])),
        Err(SourceError::NoImage)
    ));
}
