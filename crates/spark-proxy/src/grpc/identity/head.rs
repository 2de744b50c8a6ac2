//! The head of a message: everything before the first field above 2. It holds session and user, and
//! is small in every released client.

use super::wire::{self, Fields, Kind, Malformed, Scanner, Tag};

/// Maximum length of a head.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;
const SESSION_ID: u64 = 1;
const USER_CONTEXT: u64 = 2;
const USER_CONTEXT_EXTENSIONS: u64 = 999;

/// Why a session id is rejected; Apache Spark has an error class for it.
pub(crate) const NOT_A_UUID: Malformed = "session_id is not a UUID";

/// A Spark session id as bytes, stored without allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SparkSessionId([u8; session_core::SparkSessionId::BYTES]);

impl SparkSessionId {
    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.try_into() {
            Ok(id) if session_core::SparkSessionId::is_one(bytes) => Ok(Self(id)),
            Ok(_) | Err(_) => Err(NOT_A_UUID),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn as_str(&self) -> &str {
        // Hexadecimal digits and hyphens.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::str::FromStr for SparkSessionId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::parse(text.as_bytes())
    }
}

/// Whether the field belongs to the head.
pub(super) fn is_head(field: u64) -> bool {
    field <= USER_CONTEXT
}

/// Accepts all fields.
struct AllFields;

impl Fields for AllFields {
    fn allows(&self, _: u64) -> bool {
        true
    }
}

/// The part of a head read so far.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Offset up to which the message was parsed.
    position: usize,
    pub(super) session: Option<SparkSessionId>,
    /// Whole fields, to be copied into Berth's `user_context`.
    pub(super) extensions: Vec<u8>,
}

impl Head {
    /// Continues parsing. `bytes` is the received part of the message from its beginning; `len` is
    /// its total length. Returns the end of the head, or `None` if more bytes are needed.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        len: usize,
        keep_extensions: bool,
    ) -> Result<Option<usize>, Malformed> {
        let whole = bytes.len() == len;
        let more = || {
            if whole {
                Err("the message ends in the middle of a field")
            } else {
                Ok(None)
            }
        };
        while self.position < len {
            let Some((tag, after_tag)) = wire::varint(bytes, self.position)? else {
                return more();
            };
            let tag = Tag::read(tag)?;
            if !is_head(tag.field) {
                break;
            }
            if tag.kind != Kind::Len {
                return Err("session_id or user_context has the wrong type");
            }
            let Some((count, begin)) = wire::varint(bytes, after_tag)? else {
                return more();
            };
            let count = wire::length(count, (len - begin) as u64)?;
            // Fits: the message length is a `usize`.
            let end = begin + count as usize;
            if end > MAX_HEAD_BYTES {
                return Err("session_id and user_context are too long");
            }
            let Some(content) = bytes.get(begin..end) else {
                return more();
            };
            if tag.field == SESSION_ID {
                if self.session.replace(SparkSessionId::parse(content)?).is_some() {
                    return Err("session_id comes twice");
                }
            } else {
                self.take_extensions(content, keep_extensions)?;
            }
            self.position = end;
        }
        Ok(Some(self.position))
    }

    /// Keeps only the extensions of the client's `user_context`.
    fn take_extensions(&mut self, context: &[u8], keep: bool) -> Result<(), Malformed> {
        Scanner::new(context.len() as u64).scan(context, &mut AllFields)?;
        if !keep {
            return Ok(());
        }
        let mut position = 0;
        while position < context.len() {
            let begin = position;
            let Some((tag, after)) = wire::varint(context, position)? else {
                return Err("a field is cut off");
            };
            let Tag { field, kind } = Tag::read(tag)?;
            position = match kind {
                Kind::Varint => wire::varint(context, after)?.map(|(_, end)| end),
                Kind::Fixed64 => Some(after + 8),
                Kind::Fixed32 => Some(after + 4),
                // Fits: the scanner has checked it.
                Kind::Len => wire::varint(context, after)?.map(|(count, begin)| begin + count as usize),
            }
            .ok_or("a field is cut off")?;
            if field == USER_CONTEXT_EXTENSIONS && kind == Kind::Len {
                self.extensions
                    .extend_from_slice(context.get(begin..position).ok_or("a field is cut off")?);
            }
        }
        Ok(())
    }
}
