//! User identity in every message: the client's `user_context` is replaced by Berth's before any
//! byte is forwarded.
//!
//! Requests carry `session_id` (field 1) and `user_context` (field 2). Both engines use the *last*
//! of duplicate fields. So the head of each message, up to the first field above 2, is parsed and
//! rewritten, and a scanner rejects either field in the rest. Berth's fields come first and never
//! follow client bytes, so that no client field can contain them. Bulk data is forwarded unchanged;
//! only a head is buffered, 64 KiB at most.

mod client_type;
mod head;
mod operation;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

pub(crate) use client_type::{ClientType, KnownClients};
pub(crate) use head::{NOT_A_UUID, SparkSessionId};
pub(crate) use operation::Operation;

use bytes::{Buf as _, Bytes, BytesMut};
use client_type::Collector;
use head::{Head, MAX_HEAD_BYTES};
use operation::Rest;
use std::collections::VecDeque;
use wire::Scanner;

/// Length of the flag and length of a gRPC message.
pub(crate) const GRPC_PREFIX: usize = 5;
const SESSION_ID: u64 = 1;
const USER_CONTEXT: u64 = 2;
const USER_ID: u64 = 1;
const USER_NAME: u64 = 2;

/// Reason for rejecting a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidRequest {
    /// A compressed message, which cannot be inspected.
    Compressed,
    /// A message that decoders could read differently.
    Malformed(&'static str),
}

impl From<&'static str> for InvalidRequest {
    fn from(why: &'static str) -> Self {
        Self::Malformed(why)
    }
}

/// User identity for the backend.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// `user_id` and `user_name`, encoded.
    user: Vec<u8>,
    /// Keep the client's extensions: the compute serves this session only.
    keep_extensions: bool,
}

impl Identity {
    pub(crate) fn new(user_id: &str, user_name: &str, keep_extensions: bool) -> Self {
        let mut user = Vec::with_capacity(user_id.len() + user_name.len() + 6);
        wire::put_field(&mut user, USER_ID, user_id.as_bytes());
        wire::put_field(&mut user, USER_NAME, user_name.as_bytes());
        Self {
            user,
            keep_extensions,
        }
    }

    /// Encodes the start of a message whose other fields take `rest` bytes.
    fn begin(
        &self,
        session: SparkSessionId,
        extensions: &[u8],
        rest: usize,
    ) -> Result<Vec<u8>, InvalidRequest> {
        let mut out = Vec::with_capacity(GRPC_PREFIX + self.user.len() + extensions.len() + 56);
        out.extend_from_slice(&[0; GRPC_PREFIX]);
        wire::put_varint(&mut out, USER_CONTEXT << 3 | 2);
        wire::put_varint(&mut out, (self.user.len() + extensions.len()) as u64);
        out.extend_from_slice(&self.user);
        out.extend_from_slice(extensions);
        wire::put_field(&mut out, SESSION_ID, session.as_bytes());
        let len = u32::try_from(out.len() - GRPC_PREFIX + rest).map_err(|_| "the message is too long")?;
        out[1..GRPC_PREFIX].copy_from_slice(&len.to_be_bytes());
        Ok(out)
    }
}

/// Bytes for one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Bytes written by Berth; empty within a message.
    pub(crate) berth_bytes: Bytes,
    /// Bytes of the client.
    pub(crate) client_bytes: Bytes,
}

/// Rewrites the messages of one call as their bytes arrive.
#[derive(Debug)]
pub(crate) struct Rewriter {
    identity: Identity,
    /// Spark session id of the first message; all others must have the same.
    session: Option<SparkSessionId>,
    /// Data of the operation, if it is collected.
    operation: Option<Operation>,
    /// Collects the client's versions, if they are wanted.
    client_type: Option<Collector>,
    state: RewriteState,
}

#[derive(Debug)]
enum RewriteState {
    /// Before or within the five bytes of gRPC.
    Prefix { bytes: [u8; GRPC_PREFIX], have: usize },
    /// Within the head; `held` has the message's bytes if they arrived in parts.
    Head { len: usize, head: Head, held: BytesMut },
    /// Beyond the head.
    Rest(Scanner),
}

impl RewriteState {
    const START: Self = Self::Prefix {
        bytes: [0; GRPC_PREFIX],
        have: 0,
    };
}

impl Rewriter {
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            identity,
            session: None,
            operation: None,
            client_type: None,
            state: RewriteState::START,
        }
    }

    /// Also collects the operation of an `ExecutePlan`.
    pub(crate) fn with_operation(mut self) -> Self {
        self.operation = Some(Operation::default());
        self
    }

    /// Also collects the `client_type`, which has this field number, unless the client of the Spark
    /// session is known.
    pub(crate) fn with_client_type(mut self, field: u64, known: KnownClients) -> Self {
        self.client_type = Some(Collector::new(field, known));
        self
    }

    /// Returns the `client_type` as collected so far.
    pub(crate) fn client_type(&self) -> Option<&ClientType> {
        self.client_type.as_ref()?.collected()
    }

    /// Returns the operation as parsed so far.
    pub(crate) fn operation(&self) -> Option<&Operation> {
        self.operation.as_ref()
    }

    /// Returns the Spark session of the call, once its first head is parsed.
    pub(crate) fn session(&self) -> Option<SparkSessionId> {
        self.session
    }

    /// Takes client bytes and appends what may be forwarded to `out`. After an error nothing more
    /// may be forwarded.
    pub(crate) fn feed(&mut self, mut bytes: Bytes, out: &mut VecDeque<Piece>) -> Result<(), InvalidRequest> {
        while !bytes.is_empty() {
            match &mut self.state {
                RewriteState::Prefix { bytes: prefix, have } => {
                    if let Some(len) = read_prefix(prefix, have, &mut bytes)? {
                        self.state = RewriteState::Head {
                            len,
                            head: Head::default(),
                            held: BytesMut::new(),
                        };
                    }
                }
                RewriteState::Head { len, head, held } => {
                    let keep_extensions = self.identity.keep_extensions;
                    if let Some((end, client_bytes)) =
                        read_head(*len, head, held, keep_extensions, &mut bytes)?
                    {
                        let session = head.session.ok_or("a message has no session_id")?;
                        let extensions = std::mem::take(&mut head.extensions);
                        let rest = *len - end;
                        out.push_back(self.end_head(session, &extensions, rest, client_bytes)?);
                    }
                }
                RewriteState::Rest(scanner) => {
                    // Bounded by the number of bytes.
                    let count = scanner.left().min(bytes.len() as u64) as usize;
                    let client_bytes = bytes.split_to(count);
                    let mut rest = Rest {
                        operation: self.operation.as_mut(),
                        client_type: self.client_type.as_mut(),
                    };
                    scanner.scan(&client_bytes, &mut rest)?;
                    if scanner.left() == 0 {
                        self.state = RewriteState::START;
                    }
                    out.push_back(Piece {
                        berth_bytes: Bytes::new(),
                        client_bytes,
                    });
                }
            }
        }
        Ok(())
    }

    /// Creates the first piece of a message, with Berth's head, and continues with the `rest` bytes
    /// after the client's head, of which `client_bytes` are the first.
    fn end_head(
        &mut self,
        session: SparkSessionId,
        extensions: &[u8],
        rest: usize,
        client_bytes: Bytes,
    ) -> Result<Piece, InvalidRequest> {
        if *self.session.get_or_insert(session) != session {
            return Err(InvalidRequest::Malformed("session_id changes within a call"));
        }
        let berth_bytes = self.identity.begin(session, extensions, rest)?.into();
        if let Some(client_type) = &mut self.client_type {
            client_type.begin(&session);
        }
        let mut scanner = Scanner::new(rest as u64);
        let mut rest = Rest {
            operation: self.operation.as_mut(),
            client_type: self.client_type.as_mut(),
        };
        scanner.scan(&client_bytes, &mut rest)?;
        self.state = if scanner.left() == 0 {
            RewriteState::START
        } else {
            RewriteState::Rest(scanner)
        };
        Ok(Piece {
            berth_bytes,
            client_bytes,
        })
    }

    /// Checks at the end that the last message is complete, and that there is one.
    pub(crate) fn finish(&self) -> Result<(), InvalidRequest> {
        match self.state {
            RewriteState::Prefix { have: 0, .. } if self.session.is_some() => Ok(()),
            RewriteState::Prefix { have: 0, .. } => {
                Err(InvalidRequest::Malformed("the request has no message"))
            }
            RewriteState::Prefix { .. } | RewriteState::Head { .. } | RewriteState::Rest(_) => Err(
                InvalidRequest::Malformed("the request ends in the middle of a message"),
            ),
        }
    }
}

/// Takes bytes of the flag and length of a message; returns the length once both are complete.
fn read_prefix(
    prefix: &mut [u8; GRPC_PREFIX],
    have: &mut usize,
    bytes: &mut Bytes,
) -> Result<Option<usize>, InvalidRequest> {
    let count = (GRPC_PREFIX - *have).min(bytes.len());
    bytes.copy_to_slice(&mut prefix[*have..*have + count]);
    *have += count;
    if *have < GRPC_PREFIX {
        return Ok(None);
    }
    let [flag, len @ ..] = *prefix;
    match (flag, u32::from_be_bytes(len) as usize) {
        (0, 0) => Err(InvalidRequest::Malformed("a message has no session_id")),
        (0, len) => Ok(Some(len)),
        (1, _) => Err(InvalidRequest::Compressed),
        _ => Err(InvalidRequest::Malformed("a message has unknown flags")),
    }
}

/// Takes bytes of a message up to the end of its head; returns that end and the received bytes
/// after it, or `None` if more bytes are needed. `held` has the message's bytes if they arrive in
/// parts.
fn read_head(
    len: usize,
    head: &mut Head,
    held: &mut BytesMut,
    keep_extensions: bool,
    bytes: &mut Bytes,
) -> Result<Option<(usize, Bytes)>, InvalidRequest> {
    // The whole head is mostly in these bytes, and nothing is copied then.
    let in_parts = !held.is_empty();
    if in_parts {
        // Undecided bytes are shorter than this: longer heads are rejected.
        let room = (MAX_HEAD_BYTES + 32).saturating_sub(held.len());
        let count = bytes.len().min(len - held.len()).min(room);
        held.extend_from_slice(&bytes.split_to(count));
    }
    let view = if in_parts {
        &held[..]
    } else {
        &bytes[..bytes.len().min(len)]
    };
    let Some(end) = head.read(view, len, keep_extensions)? else {
        if !in_parts {
            held.extend_from_slice(&std::mem::take(bytes));
        }
        return Ok(None);
    };
    let client_bytes = if in_parts {
        std::mem::take(held).freeze().slice(end..)
    } else {
        let mut message = bytes.split_to(bytes.len().min(len));
        message.advance(end);
        message
    };
    Ok(Some((end, client_bytes)))
}
