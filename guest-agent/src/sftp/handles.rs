//! Open files and directories by the handles that the client holds.

use std::os::fd::OwnedFd;

use rustix::fs::Dir;

use super::status::Status;

/// Handles open at once: below the limit of open files that a session has.
pub(super) const MAX_HANDLES: usize = 512;

/// What a handle stands for.
#[derive(Debug)]
pub(super) enum Open {
    File { file: OwnedFd, append: bool },
    Directory(Dir),
}

/// A table of slots. A handle carries its slot's generation, so that one that was closed stays invalid.
#[derive(Debug, Default)]
pub(super) struct Handles {
    slots: Vec<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    open: Option<Open>,
}

impl Handles {
    /// Whether no further handle can be had.
    pub(super) fn is_full(&self) -> bool {
        self.slots.len() >= MAX_HANDLES && self.slots.iter().all(|slot| slot.open.is_some())
    }

    /// Keeps `open` and returns its handle.
    pub(super) fn insert(&mut self, open: Open) -> Result<[u8; 8], Status> {
        let free = self.slots.iter().position(|slot| slot.open.is_none());
        let index = match free {
            Some(index) => index,
            None if self.slots.len() < MAX_HANDLES => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            None => return Err(Status::TOO_MANY_HANDLES),
        };
        let slot = &mut self.slots[index];
        slot.open = Some(open);
        let mut handle = [0; 8];
        handle[..4].copy_from_slice(&u32::try_from(index).expect("there are few slots").to_be_bytes());
        handle[4..].copy_from_slice(&slot.generation.to_be_bytes());
        Ok(handle)
    }

    pub(super) fn get(&mut self, handle: &[u8]) -> Result<&mut Open, Status> {
        self.slot(handle)?.open.as_mut().ok_or(Status::BAD_HANDLE)
    }

    pub(super) fn file(&mut self, handle: &[u8]) -> Result<(&OwnedFd, bool), Status> {
        match self.get(handle)? {
            Open::File { file, append } => Ok((file, *append)),
            Open::Directory(_) => Err(Status::BAD_HANDLE),
        }
    }

    pub(super) fn directory(&mut self, handle: &[u8]) -> Result<&mut Dir, Status> {
        match self.get(handle)? {
            Open::Directory(directory) => Ok(directory),
            Open::File { .. } => Err(Status::BAD_HANDLE),
        }
    }

    pub(super) fn close(&mut self, handle: &[u8]) -> Result<(), Status> {
        let slot = self.slot(handle)?;
        slot.open.take().ok_or(Status::BAD_HANDLE)?;
        slot.generation = slot.generation.wrapping_add(1);
        Ok(())
    }

    fn slot(&mut self, handle: &[u8]) -> Result<&mut Slot, Status> {
        let ([index, generation], []) = handle.as_chunks::<4>() else {
            return Err(Status::BAD_HANDLE);
        };
        let index = usize::try_from(u32::from_be_bytes(*index)).map_err(|_| Status::BAD_HANDLE)?;
        let generation = u32::from_be_bytes(*generation);
        let slot = self.slots.get_mut(index).filter(|slot| slot.generation == generation);
        slot.ok_or(Status::BAD_HANDLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Open {
        Open::File {
            file: std::fs::File::open("/dev/null").unwrap().into(),
            append: false,
        }
    }

    #[test]
    fn a_closed_handle_stays_invalid_when_its_slot_is_used_again() {
        let mut handles = Handles::default();
        let first = handles.insert(open()).unwrap();
        handles.close(&first).unwrap();
        let second = handles.insert(open()).unwrap();
        assert!(handles.get(&first).is_err() && handles.get(&second).is_ok());
        assert!(handles.close(&first).is_err());
    }

    #[test]
    fn handles_are_bounded() {
        let mut handles = Handles::default();
        let mut last = None;
        for _ in 0..MAX_HANDLES {
            last = handles.insert(open()).ok();
        }
        assert!(handles.is_full() && handles.insert(open()).is_err());
        handles.close(&last.unwrap()).unwrap();
        assert!(!handles.is_full() && handles.insert(open()).is_ok());
    }

    #[test]
    fn a_handle_of_the_wrong_shape_is_refused() {
        let mut handles = Handles::default();
        handles.insert(open()).unwrap();
        for handle in [&[][..], &[0; 4], &[0; 7], &[0; 9], &[0xff; 8]] {
            assert!(handles.get(handle).is_err());
        }
    }
}
