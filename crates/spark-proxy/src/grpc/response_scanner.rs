//! Parses the messages of a query's response while they are forwarded: their response ids, and
//! whether the result is complete.
//!
//! Only the headers of top-level fields are read, so a message of any length needs no buffer. The
//! engine writes the id after the rows; a compressed message is therefore decompressed as a stream,
//! and its content is dropped. A message that cannot be read has no id.

use super::encoding::Encoding;
use super::identity::GRPC_PREFIX;
use super::identity::wire::{Fields, Scanner};
use std::cell::Cell;
use std::io::{self, Write};

// Fields of `ExecutePlanResponse`.
const SESSION_ID: u64 = 1;
const SCHEMA: u64 = 7;
const OPERATION_ID: u64 = 12;
const RESPONSE_ID: u64 = 13;
const RESULT_COMPLETE: u64 = 14;
const SERVER_SIDE_SESSION_ID: u64 = 15;
const EXECUTION_PROGRESS: u64 = 18;

/// Length of a response id: a UUID. Other ids are ignored.
const ID_BYTES: usize = 36;
/// Maximum decompressed size of a message. Clients accept no more than 128 MiB.
const MAX_INFLATED: u64 = 256 << 20;
/// Memory of a gzip decoder: its window and its output buffer of 32 KiB each, and its tables.
const GZIP_BYTES: usize = 80 * 1024;

/// The id of one message of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResponseId([u8; ID_BYTES]);

impl ResponseId {
    /// The id in a request; `None` if it has another length.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.as_bytes().try_into().ok().map(Self)
    }
}

/// A complete message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScannedMessage {
    pub(crate) id: Option<ResponseId>,
    /// The message is `result_complete`, which ends every complete result.
    pub(crate) is_result_complete: bool,
}

/// Parses one response.
pub(crate) struct ResponseScanner {
    encoding: Encoding,
    state: State,
}

enum State {
    Prefix { bytes: [u8; GRPC_PREFIX], have: usize },
    Message { left: usize, reader: Reader },
}

const START: State = State::Prefix {
    bytes: [0; GRPC_PREFIX],
    have: 0,
};

enum Reader {
    Plain(Walk),
    Gzip(Box<flate2::write::GzDecoder<Walk>>),
    /// The message cannot be read.
    Opaque,
}

impl ResponseScanner {
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            state: START,
        }
    }

    /// Memory of the decoder of the present message.
    pub(crate) fn memory(&self) -> usize {
        match &self.state {
            State::Message {
                reader: Reader::Gzip(_),
                ..
            } => GZIP_BYTES,
            State::Message { .. } | State::Prefix { .. } => 0,
        }
    }

    /// Whether messages may be compressed, so that scanning a few bytes may take long.
    pub(crate) fn decompresses(&self) -> bool {
        self.encoding == Encoding::Gzip
    }

    /// Takes bytes up to the end of the present message. Returns how many, and the message if it is
    /// complete.
    pub(crate) fn scan(&mut self, data: &[u8]) -> (usize, Option<ScannedMessage>) {
        let mut taken = 0;
        if let State::Prefix { bytes, have } = &mut self.state {
            taken = (GRPC_PREFIX - *have).min(data.len());
            bytes[*have..*have + taken].copy_from_slice(&data[..taken]);
            *have += taken;
            if *have < GRPC_PREFIX {
                return (taken, None);
            }
            let [flag, len @ ..] = *bytes;
            let left = u32::from_be_bytes(len) as usize;
            let reader = Reader::new(self.encoding, flag != 0, left);
            self.state = State::Message { left, reader };
        }
        let State::Message { left, reader } = &mut self.state else {
            return (taken, None);
        };
        let rest = &data[taken..];
        let rest = &rest[..rest.len().min(*left)];
        reader.read(rest);
        *left -= rest.len();
        taken += rest.len();
        if *left > 0 {
            return (taken, None);
        }
        let State::Message { reader, .. } = std::mem::replace(&mut self.state, START) else {
            return (taken, None);
        };
        (taken, Some(reader.end()))
    }
}

impl Reader {
    fn new(encoding: Encoding, is_compressed: bool, len: usize) -> Self {
        if !is_compressed {
            return Self::Plain(Walk::new(len as u64));
        }
        match encoding {
            Encoding::Gzip => {
                let decoder = flate2::write::GzDecoder::new(Walk::new(MAX_INFLATED));
                Self::Gzip(Box::new(decoder))
            }
            Encoding::Identity | Encoding::Unknown => Self::Opaque,
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let read = match self {
            Self::Plain(walk) => walk.write_all(bytes),
            Self::Gzip(decoder) => decoder.write_all(bytes),
            Self::Opaque => Ok(()),
        };
        if read.is_err() {
            *self = Self::Opaque;
        }
    }

    fn end(self) -> ScannedMessage {
        let walk = match self {
            Self::Plain(walk) => Some(walk),
            Self::Gzip(decoder) => decoder.finish().ok(),
            Self::Opaque => None,
        };
        walk.map_or(UNREADABLE, |walk| walk.end())
    }
}

const UNREADABLE: ScannedMessage = ScannedMessage {
    id: None,
    is_result_complete: false,
};

/// Walks the fields of a decompressed message.
struct Walk {
    scanner: Scanner,
    found: Found,
}

impl Walk {
    fn new(len: u64) -> Self {
        Self {
            scanner: Scanner::new(len),
            found: Found::default(),
        }
    }

    fn end(self) -> ScannedMessage {
        let Found { kind, id, id_len } = self.found;
        if !self.scanner.is_between_fields() {
            return UNREADABLE;
        }
        ScannedMessage {
            id: (id_len == ID_BYTES).then_some(ResponseId(id)),
            is_result_complete: kind.get() == Kind::ResultComplete,
        }
    }
}

impl Write for Walk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.scanner.left() {
            return Err(io::Error::other("the message is too long"));
        }
        self.scanner
            .scan(bytes, &mut self.found)
            .map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Has no part of the result.
    Heartbeat,
    ResultComplete,
    Results,
}

/// The relevant fields found so far.
struct Found {
    kind: Cell<Kind>,
    id: [u8; ID_BYTES],
    id_len: usize,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            kind: Cell::new(Kind::Heartbeat),
            id: [0; ID_BYTES],
            id_len: 0,
        }
    }
}

impl Fields for Found {
    fn allows(&self, field: u64) -> bool {
        match field {
            SESSION_ID
            | SCHEMA
            | OPERATION_ID
            | RESPONSE_ID
            | SERVER_SIDE_SESSION_ID
            | EXECUTION_PROGRESS => {}
            RESULT_COMPLETE if self.kind.get() == Kind::Heartbeat => self.kind.set(Kind::ResultComplete),
            _ => self.kind.set(Kind::Results),
        }
        true
    }

    fn wants(&mut self, field: u64, len: u64) -> bool {
        if field == RESPONSE_ID {
            self.id_len = 0;
        }
        field == RESPONSE_ID && len == ID_BYTES as u64
    }

    fn content(&mut self, _: u64, bytes: &[u8]) {
        // The scanner passes no more than the requested length.
        if let Some(room) = self.id.get_mut(self.id_len..self.id_len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.id_len += bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::encoding::testing::framed;
    use prost::Message as _;
    use session_proto::spark::ExecutePlanResponse;
    use session_proto::spark::execute_plan_response::{ArrowBatch, ResponseType, ResultComplete};

    const ID: &str = "11111111-89ab-cdef-0123-456789abcdef";
    const ENCODINGS: [Encoding; 2] = [Encoding::Identity, Encoding::Gzip];

    fn message(id: &str, of: Option<ResponseType>) -> Vec<u8> {
        ExecutePlanResponse {
            session_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
            server_side_session_id: "server".to_owned(),
            operation_id: "operation".to_owned(),
            response_id: id.to_owned(),
            response_type: of,
        }
        .encode_to_vec()
    }

    fn rows(id: &str, len: usize) -> Vec<u8> {
        let data = (0..len).map(|index| (index * index % 251) as u8).collect();
        message(
            id,
            Some(ResponseType::ArrowBatch(ArrowBatch {
                data,
                ..ArrowBatch::default()
            })),
        )
    }

    /// Ids and completeness of these messages, for any split into pieces.
    fn scanned(encoding: Encoding, messages: &[Vec<u8>]) -> Vec<(Option<ResponseId>, bool)> {
        let bytes: Vec<u8> = messages.iter().flat_map(|m| framed(encoding, m)).collect();
        let mut all = [1, 3, 7, 100, bytes.len().max(1)].map(|step| {
            let (mut scanner, mut found) = (ResponseScanner::new(encoding), Vec::new());
            for mut piece in bytes.chunks(step) {
                while !piece.is_empty() {
                    let (taken, message) = scanner.scan(piece);
                    found.extend(message.map(|message| (message.id, message.is_result_complete)));
                    piece = &piece[taken..];
                }
            }
            found
        });
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
        std::mem::take(&mut all[0])
    }

    #[test]
    fn ids_and_the_end_of_a_result_are_found() {
        let complete = || Some(ResponseType::ResultComplete(ResultComplete {}));
        let (id, none) = (ResponseId::parse(ID), None);
        for encoding in ENCODINGS {
            // `schema` is field 7, which Berth's own message types leave out.
            let schema = [message(ID, None), vec![7 << 3 | 2, 3, 1, 2, 3]].concat();
            let messages = [schema, rows(ID, 3), rows(ID, 100_000), message(ID, complete())];
            let expected = vec![(id, false), (id, false), (id, false), (id, true)];
            assert_eq!(scanned(encoding, &messages), expected, "{encoding:?}");
            assert_eq!(scanned(encoding, &[Vec::new()]), vec![(none, false)]);
            let mixed = [rows(ID, 3), message(ID, complete())].concat();
            assert_eq!(scanned(encoding, &[mixed]), vec![(id, false)]);
            for other in ["", "short"] {
                assert_eq!(scanned(encoding, &[message(other, None)]), vec![(none, false)]);
            }
        }
    }

    #[test]
    fn unreadable_messages_have_no_id() {
        let whole = |bytes: &[u8], encoding| {
            let (taken, message) = ResponseScanner::new(encoding).scan(bytes);
            assert_eq!(taken, bytes.len());
            message.unwrap()
        };
        let cut = framed(Encoding::Identity, &message(ID, None)[..60]);
        assert_eq!(whole(&cut, Encoding::Identity), UNREADABLE);
        let mut broken = framed(Encoding::Gzip, &rows(ID, 5000));
        let middle = broken.len() / 2;
        broken[middle..].fill(0xff);
        assert_eq!(whole(&broken, Encoding::Gzip).id, None);
        let unknown = framed(Encoding::Gzip, &message(ID, None));
        assert_eq!(whole(&unknown, Encoding::Unknown), UNREADABLE);
        // A small message with a huge decompressed size.
        let bomb = framed(Encoding::Gzip, &vec![0; 1 << 20]);
        assert_eq!(whole(&bomb, Encoding::Gzip).id, None);
    }
}
