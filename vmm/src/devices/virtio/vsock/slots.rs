//! A bounded table with small indices that are used again.

/// A table of at most `limit` values.
#[derive(Debug)]
pub(super) struct Slots<T> {
    values: Vec<Option<T>>,
    free: Vec<u16>,
    limit: u16,
}

impl<T> Slots<T> {
    /// An empty table. It grows with what it holds.
    pub(super) fn new(limit: u16) -> Self {
        Self {
            values: Vec::new(),
            free: Vec::new(),
            limit,
        }
    }

    /// How many values the table holds.
    pub(super) fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }

    /// Whether [`Self::insert`] would give the value back.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= usize::from(self.limit)
    }

    /// Puts a value into a free slot.
    ///
    /// # Errors
    /// Gives the value back when the table is full.
    pub(super) fn insert(&mut self, value: T) -> Result<u16, T> {
        if let Some(index) = self.free.pop() {
            self.values[usize::from(index)] = Some(value);
            return Ok(index);
        }
        match u16::try_from(self.values.len()) {
            Ok(index) if index < self.limit => {
                self.values.push(Some(value));
                Ok(index)
            }
            _ => Err(value),
        }
    }

    /// The value in a slot.
    pub(super) fn get_mut(&mut self, index: u16) -> Option<&mut T> {
        self.values.get_mut(usize::from(index))?.as_mut()
    }

    /// Takes the value out of a slot.
    pub(super) fn remove(&mut self, index: u16) -> Option<T> {
        let value = self.values.get_mut(usize::from(index))?.take()?;
        self.free.push(index);
        Some(value)
    }

    /// The indices of the values for which `condition` holds.
    pub(super) fn indices(&self, condition: impl Fn(&T) -> bool) -> Vec<u16> {
        (0..=u16::MAX)
            .zip(&self.values)
            .filter(|(_, value)| value.as_ref().is_some_and(&condition))
            .map(|(index, _)| index)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_gives_the_value_back() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.insert('a'), Ok(0));
        assert_eq!(slots.insert('b'), Ok(1));
        assert!(slots.is_full());
        assert_eq!(slots.insert('c'), Err('c'));
    }

    #[test]
    fn a_removed_slot_is_used_again() {
        let mut slots = Slots::new(2);
        slots.insert('a').unwrap();
        slots.insert('b').unwrap();
        assert_eq!(slots.remove(0), Some('a'));
        assert_eq!(slots.remove(0), None);
        assert_eq!(slots.indices(|_| true), [1]);
        assert_eq!(slots.insert('c'), Ok(0));
        assert_eq!(slots.get_mut(0), Some(&mut 'c'));
        assert_eq!(slots.len(), 2);
    }
}
