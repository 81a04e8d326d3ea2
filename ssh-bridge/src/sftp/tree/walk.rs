//! The way through a tree. Its levels are on a stack of our own: how deep a tree is, a guest decides.

use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Transfer, TreeError};

/// Directories in directories that are copied. Each level holds a few descriptors and handles.
pub(super) const MAX_DEPTH: usize = 256;

/// Files of one directory that are under way.
pub(super) type Files = JoinSet<Result<(), TreeError>>;

/// What became of the next entry of a directory.
pub(super) enum Step<L> {
    /// It is copied, or under way.
    Copied,
    /// It is a directory.
    Below(L),
    /// There is none, or it cannot be known.
    End(Result<(), TreeError>),
}

/// A directory that is being copied.
pub(super) trait Level: Sized + Send {
    /// Copies the next entry.
    fn step(&mut self, copy: &Arc<Transfer>) -> impl Future<Output = Result<Step<Self>, TreeError>> + Send;

    /// The files of it that are under way.
    fn files(&mut self) -> &mut Files;

    /// Does what comes last, when nothing of it is under way any more.
    fn finish(self, copy: &Transfer) -> impl Future<Output = Result<(), TreeError>> + Send;
}

/// How deep a directory is in one that is `depth` deep.
pub(super) fn deeper(depth: usize, path: &Path) -> Result<usize, TreeError> {
    match depth + 1 {
        MAX_DEPTH => Err(TreeError::TooDeep(path.to_owned())),
        depth => Ok(depth),
    }
}

/// Copies a directory with all that is in it.
pub(super) async fn walk<L: Level>(copy: &Arc<Transfer>, root: L) -> Result<(), TreeError> {
    let mut above = Vec::new();
    let mut level = root;
    loop {
        let step = level.step(copy).await;
        copy.collect(level.files(), false).await?;
        match step {
            Ok(Step::Copied) => {}
            Ok(Step::Below(below)) => above.push(std::mem::replace(&mut level, below)),
            Ok(Step::End(listed)) => {
                copy.collect(level.files(), true).await?;
                let result = listed.and(level.finish(copy).await);
                match above.pop() {
                    Some(next) => level = next,
                    None => return result,
                }
                copy.note(result)?;
            }
            Err(error) => copy.note(Err(error))?,
        }
    }
}
