//! Images are taken whole, with their names, or not at all.

use std::fs;

use super::{ImageName, Images, ImportOptions};
use crate::store::layout::Layout;

#[test]
fn an_image_whose_names_cannot_be_written_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let images = Images::new(&Layout {
        home: dir.path().join("home"),
        runtime: dir.path().join("run"),
    });
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "contents").unwrap();
    let names: Vec<ImageName> = ["app:1", "app:2"].map(|name| name.parse().unwrap()).into();
    let options = ImportOptions {
        names: names.clone(),
        ..ImportOptions::default()
    };
    // The names cannot be replaced while a directory is where the new ones are written.
    let obstacle = dir.path().join("home/images/refs.json.tmp");
    fs::create_dir_all(&obstacle).unwrap();
    images.import(&root, &options, &|_| {}).unwrap_err();
    assert!(images.all().unwrap().is_empty());

    fs::remove_dir(obstacle).unwrap();
    images.import(&root, &options, &|_| {}).unwrap();
    let all = images.all().unwrap();
    assert_eq!((all.len(), &all[0].names), (1, &names));
}
