//! Protobuf wire format of top-level fields, restricted to what every decoder reads alike; anything
//! else is rejected. In particular protobuf-java cuts tags and lengths to 32 bits, so that an
//! unknown field here could be `session_id` there.

/// Reason for rejecting a message.
pub(crate) type Malformed = &'static str;

/// Maximum length of a varint.
const MAX_VARINT: u8 = 10;
/// protobuf-java reads lengths as signed 32-bit numbers.
const MAX_LEN: u64 = (1 << 31) - 1;

/// A varint parsed byte by byte.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Varint {
    value: u64,
    bytes: u8,
}

impl Varint {
    /// Takes one byte; returns the value after the last one.
    pub(crate) fn push(&mut self, byte: u8) -> Result<Option<u64>, Malformed> {
        if self.bytes == MAX_VARINT - 1 && byte > 1 {
            return Err("a varint is too long");
        }
        self.value |= u64::from(byte & 0x7f) << (7 * u32::from(self.bytes));
        self.bytes += 1;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }

    fn is_begun(self) -> bool {
        self.bytes > 0
    }
}

/// Parses a varint at `from`; returns its value and end, or `None` if the bytes end within it.
pub(crate) fn varint(bytes: &[u8], from: usize) -> Result<Option<(u64, usize)>, Malformed> {
    let mut varint = Varint::default();
    for (index, &byte) in bytes.iter().enumerate().skip(from) {
        if let Some(value) = varint.push(byte)? {
            return Ok(Some((value, index + 1)));
        }
    }
    Ok(None)
}

/// Number and wire type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) field: u64,
    pub(crate) kind: Kind,
}

/// Wire types. Groups are deprecated, and other types are undefined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Varint,
    Fixed64,
    Len,
    Fixed32,
}

impl Tag {
    pub(crate) fn read(value: u64) -> Result<Self, Malformed> {
        if value > u64::from(u32::MAX) {
            return Err("a field number is too large");
        }
        let kind = match value & 7 {
            0 => Kind::Varint,
            1 => Kind::Fixed64,
            2 => Kind::Len,
            5 => Kind::Fixed32,
            _ => return Err("a field has a wire type that is not in use"),
        };
        match value >> 3 {
            0 => Err("a field has the number 0"),
            field => Ok(Self { field, kind }),
        }
    }
}

/// Checks a length against the remaining bytes.
pub(crate) fn length(value: u64, left: u64) -> Result<u64, Malformed> {
    if value > MAX_LEN {
        return Err("a length is too large");
    }
    if value > left {
        Err("a field goes past the end of its message")
    } else {
        Ok(value)
    }
}

/// Handles the fields that a [`Scanner`] finds.
pub(crate) trait Fields {
    /// Whether the field may occur.
    fn allows(&self, field: u64) -> bool;

    /// Whether the content of this length-delimited field is needed. If so, [`Self::content`] is
    /// called with its parts, then [`Self::content_end`].
    fn wants(&mut self, _field: u64, _len: u64) -> bool {
        false
    }

    /// A part of the content of a needed field.
    fn content(&mut self, _field: u64, _bytes: &[u8]) {}

    /// The end of a needed field.
    fn content_end(&mut self, _field: u64) {}
}

/// Scans the top-level fields of a message in pieces, without buffering.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scanner {
    state: ScanState,
    /// Remaining bytes of the message.
    left: u64,
}

#[derive(Debug, Clone, Copy)]
enum ScanState {
    Tag(Varint),
    Value(Varint),
    Len(u64, Varint),
    Skip(u64),
    Content(u64, u64),
}

impl ScanState {
    const START: Self = Self::Tag(Varint { value: 0, bytes: 0 });
}

impl Scanner {
    /// Creates a scanner of `left` bytes, which begin with a tag.
    pub(crate) fn new(left: u64) -> Self {
        Self {
            state: ScanState::START,
            left,
        }
    }

    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Whether the bytes so far end after a complete field.
    pub(crate) fn is_between_fields(&self) -> bool {
        self.end().is_ok()
    }

    /// Takes the next bytes, none of which is beyond the end of the message.
    pub(crate) fn scan(&mut self, mut bytes: &[u8], fields: &mut impl Fields) -> Result<(), Malformed> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.state {
                ScanState::Skip(count) => {
                    let (content, rest) = self.split(bytes, count);
                    bytes = rest;
                    let left = count - content.len() as u64;
                    self.state = if left == 0 {
                        ScanState::START
                    } else {
                        ScanState::Skip(left)
                    };
                }
                ScanState::Content(field, count) => {
                    let (content, rest) = self.split(bytes, count);
                    bytes = rest;
                    fields.content(field, content);
                    let left = count - content.len() as u64;
                    self.state = if left == 0 {
                        fields.content_end(field);
                        ScanState::START
                    } else {
                        ScanState::Content(field, left)
                    };
                }
                ScanState::Tag(varint) => {
                    bytes = rest;
                    self.left -= 1;
                    self.state = self.tag(varint, byte, fields)?;
                }
                ScanState::Value(mut varint) => {
                    bytes = rest;
                    self.left -= 1;
                    self.state = match varint.push(byte)? {
                        None => ScanState::Value(varint),
                        Some(_) => ScanState::START,
                    };
                }
                ScanState::Len(field, varint) => {
                    bytes = rest;
                    self.left -= 1;
                    self.state = self.len(field, varint, byte, fields)?;
                }
            }
        }
        if self.left == 0 { self.end() } else { Ok(()) }
    }

    /// Takes at most `count` bytes of content; returns them and the others.
    fn split<'b>(&mut self, bytes: &'b [u8], count: u64) -> (&'b [u8], &'b [u8]) {
        let step = count.min(bytes.len() as u64);
        self.left -= step;
        // `step` is at most the length of a slice.
        bytes.split_at(step as usize)
    }

    /// Takes the next byte of a tag.
    fn tag(&self, mut varint: Varint, byte: u8, fields: &impl Fields) -> Result<ScanState, Malformed> {
        let Some(value) = varint.push(byte)? else {
            return Ok(ScanState::Tag(varint));
        };
        let tag = Tag::read(value)?;
        if !fields.allows(tag.field) {
            return Err("a field that must come first and once comes again");
        }
        Ok(match tag.kind {
            Kind::Varint => ScanState::Value(Varint::default()),
            Kind::Len => ScanState::Len(tag.field, Varint::default()),
            Kind::Fixed64 => ScanState::Skip(length(8, self.left)?),
            Kind::Fixed32 => ScanState::Skip(length(4, self.left)?),
        })
    }

    /// Takes the next byte of a length.
    fn len(
        &self,
        field: u64,
        mut varint: Varint,
        byte: u8,
        fields: &mut impl Fields,
    ) -> Result<ScanState, Malformed> {
        let Some(value) = varint.push(byte)? else {
            return Ok(ScanState::Len(field, varint));
        };
        Ok(match length(value, self.left)? {
            0 => ScanState::START,
            count if fields.wants(field, count) => ScanState::Content(field, count),
            count => ScanState::Skip(count),
        })
    }

    /// Checks that the message ends after a complete field.
    fn end(&self) -> Result<(), Malformed> {
        match self.state {
            ScanState::Tag(varint) if !varint.is_begun() => Ok(()),
            ScanState::Tag(_)
            | ScanState::Value(_)
            | ScanState::Len(..)
            | ScanState::Skip(_)
            | ScanState::Content(..) => Err("the message ends in the middle of a field"),
        }
    }
}

/// Writes a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        // Seven bits and the continuation bit.
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a length-delimited field.
pub(crate) fn put_field(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}
