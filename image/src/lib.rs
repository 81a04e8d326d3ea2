//! Container images as read-only EROFS file systems.
//!
//! Layers are read into one [`tree::Tree`] in memory, contents of files go straight into the image's file
//! ([`content::Spool`]), and [`erofs`] writes the tree behind them. Nothing of an image is ever unpacked on the host.

pub mod assemble;
pub mod config;
pub mod content;
pub mod cramfs;
pub mod digest;
mod directory;
pub mod erofs;
pub mod layer;
pub mod limits;
pub mod manifest;
pub mod registry;
pub mod source;
pub mod tree;

pub use directory::DirectoryError;
