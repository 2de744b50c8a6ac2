//! The operation of an `ExecutePlan`, parsed as its bytes pass: its id, and whether the client can
//! reattach to it.

use super::client_type::Collector;
use super::head::is_head;
use super::wire::{self, Fields, Kind, Malformed, Tag};

const REQUEST_OPTIONS: u64 = 5;
const OPERATION_ID: u64 = 6;
const REATTACH_OPTIONS: u64 = 1;
const REATTACHABLE: u64 = 1;
/// Length of an operation id: a UUID. Other ids are ignored.
const ID_BYTES: usize = 36;
/// Maximum length of an option; the relevant one takes four bytes.
const MAX_OPTION: usize = 32;

/// The operation as parsed so far; the last of duplicate fields counts, as in the engines.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    id: [u8; ID_BYTES],
    id_len: usize,
    option: [u8; MAX_OPTION],
    option_len: usize,
    reattachable: bool,
}

impl Default for Operation {
    fn default() -> Self {
        Self {
            id: [0; ID_BYTES],
            id_len: 0,
            option: [0; MAX_OPTION],
            option_len: 0,
            reattachable: false,
        }
    }
}

impl Operation {
    /// The operation id, if the client chose one.
    pub(crate) fn id(&self) -> Option<&str> {
        if self.id_len < ID_BYTES {
            return None;
        }
        std::str::from_utf8(&self.id).ok()
    }

    /// Whether the client can receive the results on another connection.
    pub(crate) fn is_reattachable(&self) -> bool {
        self.reattachable
    }
}

/// Handles the fields after the head: fields of the head are rejected.
pub(super) struct Rest<'a> {
    pub(super) operation: Option<&'a mut Operation>,
    pub(super) client_type: Option<&'a mut Collector>,
}

impl Fields for Rest<'_> {
    fn allows(&self, field: u64) -> bool {
        !is_head(field)
    }

    fn wants(&mut self, field: u64, len: u64) -> bool {
        if self
            .client_type
            .as_mut()
            .is_some_and(|client| client.wants(field))
        {
            return true;
        }
        let Some(operation) = &mut self.operation else {
            return false;
        };
        match field {
            OPERATION_ID => {
                operation.id_len = 0;
                len == ID_BYTES as u64
            }
            REQUEST_OPTIONS => {
                operation.option_len = 0;
                len <= MAX_OPTION as u64
            }
            _ => false,
        }
    }

    fn content(&mut self, field: u64, bytes: &[u8]) {
        let client_type = self.client_type.as_mut();
        if client_type.is_some_and(|client| client.content(field, bytes)) {
            return;
        }
        let Some(operation) = &mut self.operation else {
            return;
        };
        let (buffer, len) = match field {
            OPERATION_ID => (&mut operation.id[..], &mut operation.id_len),
            _ => (&mut operation.option[..], &mut operation.option_len),
        };
        // Not more than the requested length arrives.
        if let Some(room) = buffer.get_mut(*len..*len + bytes.len()) {
            room.copy_from_slice(bytes);
            *len += bytes.len();
        }
    }

    fn content_end(&mut self, field: u64) {
        let Some(operation) = &mut self.operation else {
            return;
        };
        if field != REQUEST_OPTIONS {
            return;
        }
        // The engine rejects an invalid option.
        if let Ok(Some(reattachable)) = reattachable(&operation.option[..operation.option_len]) {
            operation.reattachable = reattachable;
        }
    }
}

/// Parses the reattach flag of a `RequestOption`; `None` for another option.
fn reattachable(option: &[u8]) -> Result<Option<bool>, Malformed> {
    let mut flag = None;
    each_field(option, |field, kind, content, _| {
        if (field, kind) == (REATTACH_OPTIONS, Kind::Len) {
            let mut value = false;
            each_field(content, |field, kind, _, number| {
                if (field, kind) == (REATTACHABLE, Kind::Varint) {
                    value = number != 0;
                }
                Ok(())
            })?;
            flag = Some(value);
        }
        Ok(())
    })?;
    Ok(flag)
}

/// Calls `visit` with each field of a short message: number, type, content, and the value of a
/// varint.
fn each_field(
    bytes: &[u8],
    mut visit: impl FnMut(u64, Kind, &[u8], u64) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    const CUT: Malformed = "a field is cut off";
    let mut position = 0;
    while position < bytes.len() {
        let (tag, after) = wire::varint(bytes, position)?.ok_or(CUT)?;
        let Tag { field, kind } = Tag::read(tag)?;
        let (begin, len, number) = match kind {
            Kind::Varint => {
                let (number, end) = wire::varint(bytes, after)?.ok_or(CUT)?;
                (end, 0, number)
            }
            Kind::Fixed64 => (after, 8, 0),
            Kind::Fixed32 => (after, 4, 0),
            Kind::Len => {
                let (count, begin) = wire::varint(bytes, after)?.ok_or(CUT)?;
                let count = wire::length(count, (bytes.len() - begin) as u64)?;
                // Fits: the field is within a slice.
                (begin, count as usize, 0)
            }
        };
        let content = bytes.get(begin..begin + len).ok_or(CUT)?;
        visit(field, kind, content, number)?;
        position = begin + len;
    }
    Ok(())
}
