//! What was printed last, to tell of a failure.

/// How much is kept, in bytes.
const SIZE: usize = 4096;

/// The end of what was printed.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&bytes[bytes.len().saturating_sub(SIZE)..]);
        self.0.drain(..self.0.len().saturating_sub(SIZE));
    }

    /// As text without control characters but ends of lines.
    pub(crate) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let harmless = text.trim().chars().filter(|c| !c.is_control() || *c == '\n');
        harmless.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept_and_nothing_that_moves_a_terminal() {
        let mut tail = Tail::default();
        tail.push(&[b'x'; 3 * SIZE]);
        tail.push(b"\r\x1b[2Jlast\nline\n");
        let text = tail.text();
        assert!(text.len() <= SIZE && text.ends_with("x[2Jlast\nline"), "{text}");
    }
}
