//! The fields of a frame.

/// A message is not one of this protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// Its kind is unknown.
    #[error("a message of the unknown kind {0} came")]
    Kind(u8),
    /// It ends too early.
    #[error("a message of the kind {0} ends before its last field")]
    Short(u8),
    /// Bytes follow its last field.
    #[error("a message of the kind {0} goes on after its last field")]
    Long(u8),
    /// A field has a value that it cannot have.
    #[error("a message of the kind {0} has a field of an unknown value")]
    Field(u8),
}

/// Takes fields off a message.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(frame: &'a [u8]) -> Result<Self, Malformed> {
        let (&kind, rest) = frame.split_first().ok_or(Malformed::Short(0))?;
        Ok(Self { kind, rest })
    }

    pub(crate) fn kind(&self) -> u8 {
        self.kind
    }

    pub(crate) fn field_error(&self) -> Malformed {
        Malformed::Field(self.kind)
    }

    /// All that is left.
    pub(crate) fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Long(self.kind))
        }
    }

    fn chunk<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], Malformed> {
        let (chunk, rest) = self.rest.split_first_chunk().ok_or(Malformed::Short(self.kind))?;
        self.rest = rest;
        Ok(*chunk)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.chunk::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.chunk()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.chunk()?))
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.field_error()),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, Malformed> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Short(self.kind))?;
        self.rest = rest;
        Ok(bytes.to_vec())
    }

    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?).map_err(|_| self.field_error())
    }

    pub(crate) fn option<T>(
        &mut self,
        field: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.bool()? { field(self).map(Some) } else { Ok(None) }
    }

    /// A list, whose memory is bounded by the bytes that are there.
    pub(crate) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        (0..self.u32()?).map(|_| item(self)).collect()
    }
}

/// Appends a frame to `out`, with the fields that `fields` writes.
pub(crate) fn frame(out: &mut Vec<u8>, kind: u8, fields: impl FnOnce(&mut Writer<'_>)) {
    let start = out.len();
    out.extend([0; 4]);
    out.push(kind);
    fields(&mut Writer(out));
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends fields to a message.
#[derive(Debug)]
pub(crate) struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.raw(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.raw(&value.to_be_bytes());
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// Longer strings than a frame holds make a frame that its reader refuses.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.raw(bytes);
    }

    pub(crate) fn option<T>(&mut self, value: Option<&T>, field: impl FnOnce(&mut Self, &T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            field(self, value);
        }
    }

    pub(crate) fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) {
        self.u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
        for each in items {
            item(self, each);
        }
    }
}
