//! Protobuf wire format of top-level fields, restricted to what every decoder reads alike; anything
//! else is rejected. In particular protobuf-java cuts tags and lengths to 32 bits, so that an
//! unknown field here could be `session_id` there.

/// Reason for rejecting a message.
pub(crate) type Malformed = &'static str;

/// Maximum length of a varint.
const MOST_VARINT: u8 = 10;
/// protobuf-java reads lengths as signed 32-bit numbers.
const MOST_LEN: u64 = (1 << 31) - 1;

/// A varint parsed byte by byte.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Varint {
    value: u64,
    bytes: u8,
}

impl Varint {
    /// Takes one byte; returns the value after the last one.
    pub(super) fn push(&mut self, byte: u8) -> Result<Option<u64>, Malformed> {
        if self.bytes == MOST_VARINT - 1 && byte > 1 {
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
pub(super) fn varint(bytes: &[u8], from: usize) -> Result<Option<(u64, usize)>, Malformed> {
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
pub(super) struct Tag {
    pub(super) field: u64,
    pub(super) kind: Kind,
}

/// Wire types. Groups are deprecated, and other types are undefined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Varint,
    Fixed64,
    Len,
    Fixed32,
}

impl Tag {
    pub(super) fn read(value: u64) -> Result<Self, Malformed> {
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
pub(super) fn length(value: u64, left: u64) -> Result<u64, Malformed> {
    if value > MOST_LEN {
        return Err("a length is too large");
    }
    if value > left {
        Err("a field goes past the end of its message")
    } else {
        Ok(value)
    }
}

/// Handles the fields that a [`Scanner`] finds.
pub(super) trait Fields {
    /// Whether the field may occur.
    fn allows(&self, field: u64) -> bool;

    /// Whether the content of this length-delimited field is needed. If so, [`Self::show`] is
    /// called with its parts, then [`Self::shown`].
    fn wants(&mut self, _field: u64, _len: u64) -> bool {
        false
    }

    /// A part of the content of a needed field.
    fn show(&mut self, _field: u64, _bytes: &[u8]) {}

    /// The end of a needed field.
    fn shown(&mut self, _field: u64) {}
}

/// Scans the top-level fields of a message in pieces, without buffering.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scanner {
    state: State,
    /// Remaining bytes of the message.
    left: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Tag(Varint),
    Value(Varint),
    Len(u64, Varint),
    Skip(u64),
    Show(u64, u64),
}

impl Scanner {
    /// Creates a scanner of `left` bytes, which begin with a tag.
    pub(super) fn new(left: u64) -> Self {
        Self {
            state: State::Tag(Varint::default()),
            left,
        }
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Takes the next bytes, none of which is beyond the end of the message.
    pub(super) fn scan(&mut self, mut bytes: &[u8], fields: &mut impl Fields) -> Result<(), Malformed> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let State::Skip(count) | State::Show(_, count) = self.state {
                let step = count.min(bytes.len() as u64);
                // `step` is at most the length of a slice.
                let (content, rest) = bytes.split_at(step as usize);
                bytes = rest;
                self.left -= step;
                let done = step == count;
                self.state = match self.state {
                    State::Show(field, _) => {
                        fields.show(field, content);
                        if done {
                            fields.shown(field);
                        }
                        State::Show(field, count - step)
                    }
                    State::Tag(_) | State::Value(_) | State::Len(..) | State::Skip(_) => {
                        State::Skip(count - step)
                    }
                };
                if done {
                    self.state = State::Tag(Varint::default());
                }
                continue;
            }
            bytes = rest;
            self.left -= 1;
            self.state = match self.state {
                State::Tag(mut varint) => match varint.push(byte)? {
                    None => State::Tag(varint),
                    Some(value) => {
                        let tag = Tag::read(value)?;
                        if !fields.allows(tag.field) {
                            return Err("a field that must come first and once comes again");
                        }
                        match tag.kind {
                            Kind::Varint => State::Value(Varint::default()),
                            Kind::Len => State::Len(tag.field, Varint::default()),
                            Kind::Fixed64 => State::Skip(length(8, self.left)?),
                            Kind::Fixed32 => State::Skip(length(4, self.left)?),
                        }
                    }
                },
                State::Value(mut varint) => match varint.push(byte)? {
                    None => State::Value(varint),
                    Some(_) => State::Tag(Varint::default()),
                },
                State::Len(field, mut varint) => match varint.push(byte)? {
                    None => State::Len(field, varint),
                    Some(value) => match length(value, self.left)? {
                        0 => State::Tag(Varint::default()),
                        count if fields.wants(field, count) => State::Show(field, count),
                        count => State::Skip(count),
                    },
                },
                skipping @ (State::Skip(_) | State::Show(..)) => skipping,
            };
        }
        if self.left == 0 { self.end() } else { Ok(()) }
    }

    /// Checks that the message ends after a complete field.
    fn end(&self) -> Result<(), Malformed> {
        match self.state {
            State::Tag(varint) if !varint.is_begun() => Ok(()),
            State::Tag(_) | State::Value(_) | State::Len(..) | State::Skip(_) | State::Show(..) => {
                Err("the message ends in the middle of a field")
            }
        }
    }
}

/// Writes a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        // Seven bits and the continuation bit.
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a length-delimited field.
pub(super) fn put_field(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}
