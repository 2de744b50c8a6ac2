//! Inspects the response of a query on Sail as it passes: whether results were delivered, and
//! whether it is complete.
//!
//! Both determine the errors that the client gets. While a query runs, Sail sends an empty message
//! with a response id every 15 s, and the schema before the first row; a client that received only
//! these can reattach without loss. Sail ends the stream of an interrupted query with OK; only the
//! message `result_complete` marks a complete one (measured with Sail 0.7.2). Messages beyond
//! [`MAX_INSPECTED`] are not buffered, and no message is delayed.

use crate::grpc::identity::{GRPC_PREFIX, fields};
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use std::io::Read as _;

static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Longer messages count as results: relevant messages take about 200 bytes, and a schema is mostly
/// shorter than this.
const MAX_INSPECTED: usize = 4 * 1024;
/// Limit after the first result: only `result_complete` is then relevant.
const MAX_RESULT_COMPLETE: usize = 512;
/// Maximum decompressed size of an inspected message.
const MAX_INFLATED: u64 = 256 * 1024;

// Fields of `ExecutePlanResponse`.
const SESSION_ID: u64 = 1;
const SCHEMA: u64 = 7;
const OPERATION_ID: u64 = 12;
const RESPONSE_ID: u64 = 13;
const RESULT_COMPLETE: u64 = 14;
const SERVER_SIDE_SESSION_ID: u64 = 15;
const EXECUTION_PROGRESS: u64 = 18;

/// Compression of the messages of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Zstd,
    /// An unsupported encoding: its messages count as results.
    Unknown,
}

impl Encoding {
    /// Returns the encoding in the response headers.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match headers.get(&GRPC_ENCODING).map(|value| value.as_bytes()) {
            None | Some(b"identity") => Self::Identity,
            Some(b"gzip") => Self::Gzip,
            Some(b"zstd") => Self::Zstd,
            Some(_) => Self::Unknown,
        }
    }

    /// Decompresses a message; `None` if that is impossible here.
    pub(crate) fn inflate(self, compressed: bool, message: &[u8]) -> Option<Vec<u8>> {
        if !compressed {
            return Some(message.to_vec());
        }
        let mut out = Vec::new();
        let read = match self {
            Self::Gzip => flate2::read::GzDecoder::new(message)
                .take(MAX_INFLATED)
                .read_to_end(&mut out),
            Self::Zstd => zstd::stream::read::Decoder::new(message)
                .and_then(|decoder| decoder.take(MAX_INFLATED).read_to_end(&mut out)),
            Self::Identity | Self::Unknown => return None,
        };
        (read.ok()? < MAX_INFLATED as usize).then_some(out)
    }
}

/// Kind of a message, as far as relevant here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Can be lost or repeated without harm.
    Heartbeat,
    ResultComplete,
    Results,
}

/// Inspects one response.
#[derive(Debug)]
pub(crate) struct ResultInspector {
    encoding: Encoding,
    state: InspectorState,
    delivered: bool,
    complete: bool,
}

#[derive(Debug)]
enum InspectorState {
    Prefix {
        bytes: [u8; GRPC_PREFIX],
        have: usize,
    },
    /// The received part of an inspected message.
    Message {
        compressed: bool,
        len: usize,
        bytes: Vec<u8>,
    },
    /// Remaining bytes of a message that is not inspected.
    Skip(usize),
}

const START: InspectorState = InspectorState::Prefix {
    bytes: [0; GRPC_PREFIX],
    have: 0,
};

impl ResultInspector {
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            state: START,
            delivered: false,
            complete: false,
        }
    }

    /// Whether results were received.
    pub(crate) fn has_results(&self) -> bool {
        self.delivered
    }

    /// Whether the last message was `result_complete`.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes the next bytes of the response.
    pub(crate) fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            match &mut self.state {
                InspectorState::Prefix { bytes, have } => {
                    let count = (GRPC_PREFIX - *have).min(data.len());
                    let (taken, rest) = data.split_at(count);
                    bytes[*have..*have + count].copy_from_slice(taken);
                    *have += count;
                    data = rest;
                    if *have == GRPC_PREFIX {
                        let prefix = *bytes;
                        self.begin(prefix);
                    }
                }
                InspectorState::Message {
                    compressed,
                    len,
                    bytes,
                } => {
                    let count = (*len - bytes.len()).min(data.len());
                    let (taken, rest) = data.split_at(count);
                    bytes.extend_from_slice(taken);
                    data = rest;
                    if bytes.len() == *len {
                        let kind = self
                            .encoding
                            .inflate(*compressed, bytes)
                            .map_or(Kind::Results, |message| kind_of(&message));
                        self.take(kind);
                    }
                }
                InspectorState::Skip(left) => {
                    let count = (*left).min(data.len());
                    data = &data[count..];
                    *left -= count;
                    if *left == 0 {
                        self.state = START;
                    }
                }
            }
        }
    }

    fn begin(&mut self, [flag, len @ ..]: [u8; GRPC_PREFIX]) {
        let len = u32::from_be_bytes(len) as usize;
        let max = if self.delivered {
            MAX_RESULT_COMPLETE
        } else {
            MAX_INSPECTED
        };
        if len == 0 {
            self.take(Kind::Heartbeat);
        } else if len <= max {
            self.state = InspectorState::Message {
                compressed: flag != 0,
                len,
                bytes: Vec::with_capacity(len),
            };
        } else {
            self.take(Kind::Results);
            self.state = InspectorState::Skip(len);
        }
    }

    fn take(&mut self, kind: Kind) {
        self.delivered |= kind == Kind::Results;
        self.complete = kind == Kind::ResultComplete;
        self.state = START;
    }
}

fn kind_of(message: &[u8]) -> Kind {
    let mut kind = Kind::Heartbeat;
    let read = fields(message, |field| match field {
        SESSION_ID | SCHEMA | OPERATION_ID | RESPONSE_ID | SERVER_SIDE_SESSION_ID | EXECUTION_PROGRESS => {}
        RESULT_COMPLETE if kind == Kind::Heartbeat => kind = Kind::ResultComplete,
        _ => kind = Kind::Results,
    });
    if read.is_ok() { kind } else { Kind::Results }
}

/// The only message of a unary response, if `body` has all of it.
pub(crate) fn unary(encoding: Encoding, body: &[u8]) -> Option<Bytes> {
    let (prefix, message) = body.split_first_chunk::<GRPC_PREFIX>()?;
    let [flag, len @ ..] = *prefix;
    let message = message.get(..u32::from_be_bytes(len) as usize)?;
    encoding.inflate(flag != 0, message).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use session_proto::spark::ExecutePlanResponse;
    use session_proto::spark::execute_plan_response::{ArrowBatch, ResponseType, ResultComplete};
    use std::io::Write as _;

    fn message(of: Option<ResponseType>) -> Vec<u8> {
        ExecutePlanResponse {
            session_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
            server_side_session_id: "server".to_owned(),
            operation_id: "operation".to_owned(),
            response_id: "response".to_owned(),
            response_type: of,
        }
        .encode_to_vec()
    }

    fn rows(len: usize) -> Vec<u8> {
        message(Some(ResponseType::ArrowBatch(ArrowBatch {
            data: vec![7; len],
            ..ArrowBatch::default()
        })))
    }

    fn complete() -> Vec<u8> {
        message(Some(ResponseType::ResultComplete(ResultComplete {})))
    }

    /// `schema` is field 7, which Berth's own message types leave out.
    fn schema() -> Vec<u8> {
        [message(None), vec![7 << 3 | 2, 3, 1, 2, 3]].concat()
    }

    fn framed(encoding: Encoding, message: &[u8]) -> Vec<u8> {
        let (flag, message) = match encoding {
            Encoding::Identity | Encoding::Unknown => (0, message.to_vec()),
            Encoding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(message).unwrap();
                (1, encoder.finish().unwrap())
            }
            Encoding::Zstd => (1, zstd::stream::encode_all(message, 1).unwrap()),
        };
        let len = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flag][..], &len, &message].concat()
    }

    /// Results and completeness after these messages, for any split into pieces.
    fn watched(encoding: Encoding, messages: &[Vec<u8>]) -> (bool, bool) {
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|message| framed(encoding, message))
            .collect();
        let mut all = [1, 3, 7, 100, bytes.len().max(1)].map(|step| {
            let mut watch = ResultInspector::new(encoding);
            bytes.chunks(step).for_each(|piece| watch.feed(piece));
            (watch.has_results(), watch.is_complete())
        });
        let first = all[0];
        assert!(all.iter_mut().all(|seen| *seen == first), "{all:?}");
        first
    }

    #[test]
    fn heartbeats_and_schemas_are_not_results() {
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Zstd] {
            assert_eq!(watched(encoding, &[]), (false, false));
            assert_eq!(
                watched(encoding, &[schema(), message(None), message(None)]),
                (false, false)
            );
            assert_eq!(
                watched(encoding, &[message(None), rows(3)]),
                (true, false),
                "{encoding:?}"
            );
            assert_eq!(watched(encoding, &[message(None), rows(100_000)]), (true, false));
            assert_eq!(watched(encoding, &[schema(), rows(3), complete()]), (true, true));
            assert_eq!(
                watched(encoding, &[schema(), rows(100_000), rows(9), complete()]),
                (true, true)
            );
            assert_eq!(watched(encoding, &[schema(), complete(), rows(9)]), (true, false));
        }
    }

    #[test]
    fn unreadable_messages_count_as_results() {
        let mut watch = ResultInspector::new(Encoding::Unknown);
        watch.feed(&[1, 0, 0, 0, 2, 9, 9]);
        assert!(watch.has_results() && !watch.is_complete());
        let mut watch = ResultInspector::new(Encoding::Identity);
        watch.feed(&[0, 0, 0, 0, 2, 0xff, 0xff]);
        assert!(watch.has_results());
        // A small message with a huge decompressed size.
        let bomb = framed(Encoding::Zstd, &vec![0; 1 << 20]);
        assert!(bomb.len() < MAX_INSPECTED);
        let mut watch = ResultInspector::new(Encoding::Zstd);
        watch.feed(&bomb);
        assert!(watch.has_results());
    }

    #[test]
    fn incomplete_unary_responses_are_ignored() {
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Zstd] {
            let body = framed(encoding, &complete());
            assert_eq!(unary(encoding, &body).as_deref(), Some(&complete()[..]));
            assert_eq!(unary(encoding, &body[..body.len() - 1]), None);
        }
        assert_eq!(unary(Encoding::Identity, b""), None);
    }
}
