use super::*;
use proptest::prelude::*;

fn directory(tree: &mut Tree, path: &str) {
    tree.insert(
        path.as_bytes(),
        directory_attributes(),
        Kind::Directory(BTreeMap::new()),
    )
    .unwrap();
}

fn file(tree: &mut Tree, path: &str) -> NodeId {
    tree.insert(path.as_bytes(), Attributes::default(), Kind::Fifo).unwrap()
}

fn symlink(tree: &mut Tree, path: &str, target: &str) {
    let kind = Kind::Symlink(target.as_bytes().into());
    tree.insert(path.as_bytes(), Attributes::default(), kind).unwrap();
}

fn has(tree: &Tree, path: &str) -> bool {
    tree.lookup(path.as_bytes()).is_some()
}

#[test]
fn a_whiteout_takes_what_is_below_and_never_what_its_own_layer_has() {
    let mut tree = Tree::new(1000);
    file(&mut tree, "etc/old");
    file(&mut tree, "etc/kept");
    file(&mut tree, "opt/app/file");
    tree.begin_layer();
    file(&mut tree, "etc/new");
    for path in ["etc/old", "etc/new", "etc/never-was", "opt/app", "no/such"] {
        tree.whiteout(path.as_bytes()).unwrap();
    }
    assert!(has(&tree, "etc/new") && has(&tree, "etc/kept"));
    assert!(!has(&tree, "etc/old") && !has(&tree, "opt/app") && !has(&tree, "no"));
}

#[test]
fn a_directory_whited_out_and_made_again_has_only_what_is_new_whatever_comes_first() {
    for whiteout_first in [true, false] {
        let mut tree = Tree::new(1000);
        file(&mut tree, "d/old");
        file(&mut tree, "d/sub/old");
        tree.begin_layer();
        if whiteout_first {
            tree.whiteout(b"d").unwrap();
        }
        directory(&mut tree, "d");
        file(&mut tree, "d/sub/new");
        if !whiteout_first {
            tree.whiteout(b"d").unwrap();
        }
        assert!(has(&tree, "d/sub/new"), "{whiteout_first}");
        assert!(!has(&tree, "d/old") && !has(&tree, "d/sub/old"), "{whiteout_first}");
    }
}

#[test]
fn an_opaque_directory_hides_what_is_below_wherever_the_mark_comes() {
    for mark_first in [true, false] {
        let mut tree = Tree::new(1000);
        file(&mut tree, "d/old");
        tree.begin_layer();
        if mark_first {
            tree.make_opaque(b"d").unwrap();
        }
        file(&mut tree, "d/new");
        if !mark_first {
            tree.make_opaque(b"d").unwrap();
        }
        assert!(has(&tree, "d/new") && !has(&tree, "d/old"), "{mark_first}");
    }
}

#[test]
fn a_directory_that_comes_again_keeps_its_files_and_one_that_becomes_a_file_does_not() {
    let mut tree = Tree::new(1000);
    file(&mut tree, "d/a");
    tree.begin_layer();
    directory(&mut tree, "d");
    assert!(has(&tree, "d/a"));
    file(&mut tree, "d");
    assert!(!has(&tree, "d/a"));
}

#[test]
fn a_path_follows_the_links_of_the_image_and_stays_in_it() {
    let mut tree = Tree::new(1000);
    directory(&mut tree, "usr/lib");
    symlink(&mut tree, "lib", "usr/lib");
    symlink(&mut tree, "out", "../../../usr/../usr");
    symlink(&mut tree, "absolute", "/usr");
    file(&mut tree, "lib/a");
    file(&mut tree, "out/b");
    file(&mut tree, "absolute/c");
    for path in ["usr/lib/a", "usr/b", "usr/c"] {
        assert!(has(&tree, path), "{path}");
    }
    assert!(matches!(tree.node(tree.lookup(b"lib").unwrap()).kind, Kind::Symlink(_)));
}

#[test]
fn a_loop_of_links_and_a_way_through_a_file_are_errors() {
    let mut tree = Tree::new(1000);
    symlink(&mut tree, "a", "b");
    symlink(&mut tree, "b", "a");
    file(&mut tree, "f");
    let mut insert = |path: &[u8]| tree.insert(path, Attributes::default(), Kind::Fifo);
    assert!(matches!(insert(b"a/x"), Err(TreeError::Loop(_))));
    assert!(matches!(insert(b"f/x"), Err(TreeError::NotADirectory(_))));
    assert!(matches!(insert(b"/"), Err(TreeError::Root)));
}

#[test]
fn a_hard_link_is_the_same_file_and_leads_to_files_of_the_image_only() {
    let mut tree = Tree::new(1000);
    let id = file(&mut tree, "a");
    tree.link(b"d/b", b"/a").unwrap();
    assert_eq!(tree.lookup(b"d/b"), Some(id));
    tree.whiteout(b"a").unwrap();
    for target in [b"/no".as_slice(), b"d", b"/"] {
        assert!(matches!(tree.link(b"c", target), Err(TreeError::HardLink { .. })));
    }
    assert!(matches!(tree.link(b"c", b"../../etc/passwd"), Err(TreeError::Path(_))));
}

#[test]
fn directories_that_no_entry_describes_count() {
    let mut tree = Tree::new(10);
    let deep = "d/".repeat(20);
    let inserted = tree.insert(deep.as_bytes(), Attributes::default(), Kind::Fifo);
    assert!(matches!(inserted, Err(TreeError::Limit(_))));
}

proptest! {
    /// Any sequence of changes leaves a tree: every node below the root has one way to it, links aside.
    #[test]
    fn no_sequence_of_changes_breaks_the_tree(
        changes in proptest::collection::vec((0..6_u8, "[abc]{1}(/[abc]{1}){0,3}", "(/|\\.\\./)?[abc](/[abc]){0,2}"), 0..60),
    ) {
        let mut tree = Tree::new(1000);
        for (what, path, target) in changes {
            let path = path.as_bytes();
            let attributes = Attributes::default();
            let _ = match what {
                0 => tree.insert(path, attributes, Kind::Directory(BTreeMap::new())).map(drop),
                1 => tree.insert(path, attributes, Kind::Fifo).map(drop),
                2 => tree.insert(path, attributes, Kind::Symlink(target.as_bytes().into())).map(drop),
                3 => tree.link(path, target.as_bytes()),
                4 => tree.whiteout(path),
                _ => {
                    tree.begin_layer();
                    tree.make_opaque(path)
                }
            };
        }
        let mut directories = std::collections::HashSet::from([NodeId::ROOT]);
        let mut left = vec![NodeId::ROOT];
        while let Some(id) = left.pop() {
            if let Kind::Directory(entries) = &tree.node(id).kind {
                for child in entries.values() {
                    if matches!(tree.node(*child).kind, Kind::Directory(_)) {
                        prop_assert!(directories.insert(*child), "a directory has two names");
                        left.push(*child);
                    }
                }
            }
        }
    }
}
