//! User identity in every message: the client's `user_context` is replaced by Berth's before any
//! byte is forwarded.
//!
//! Requests carry `session_id` (field 1) and `user_context` (field 2). Both engines use the *last*
//! of duplicate fields. So the head of each message, up to the first field above 2, is parsed and
//! rewritten, and a scanner rejects either field in the rest. Berth's fields come first and never
//! follow client bytes, so that no client field can contain them. Bulk data is forwarded unchanged;
//! only a head is buffered, 64 KiB at most.

mod head;
mod operation;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use head::SparkSessionId;
pub(crate) use operation::{Operation, fields};

use bytes::{Buf as _, Bytes, BytesMut};
use head::{Head, MOST_HEAD};
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
pub(crate) enum Hostile {
    /// A compressed message, which cannot be inspected.
    Compressed,
    /// A message that decoders could read differently.
    Malformed(&'static str),
}

impl From<&'static str> for Hostile {
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
    fn begin(&self, session: SparkSessionId, extensions: &[u8], rest: usize) -> Result<Vec<u8>, Hostile> {
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
    pub(crate) ours: Bytes,
    /// Bytes of the client.
    pub(crate) theirs: Bytes,
}

/// Rewrites the messages of one call as their bytes arrive.
#[derive(Debug)]
pub(crate) struct Rewriter {
    identity: Identity,
    /// Spark session id of the first message; all others must have the same.
    session: Option<SparkSessionId>,
    /// Data of the operation, if it is collected.
    operation: Option<Operation>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Before or within the five bytes of gRPC.
    Prefix { bytes: [u8; GRPC_PREFIX], have: usize },
    /// Within the head; `held` has the message's bytes if they arrived in parts.
    Head { len: usize, head: Head, held: BytesMut },
    /// Beyond the head.
    Rest(Scanner),
}

impl State {
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
            state: State::START,
        }
    }

    /// Also collects the operation of an `ExecutePlan`.
    pub(crate) fn noticing_operation(mut self) -> Self {
        self.operation = Some(Operation::default());
        self
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
    pub(crate) fn feed(&mut self, mut bytes: Bytes, out: &mut VecDeque<Piece>) -> Result<(), Hostile> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Prefix { bytes: prefix, have } => {
                    let count = (GRPC_PREFIX - *have).min(bytes.len());
                    bytes.copy_to_slice(&mut prefix[*have..*have + count]);
                    *have += count;
                    if *have == GRPC_PREFIX {
                        match prefix[0] {
                            0 => {}
                            1 => return Err(Hostile::Compressed),
                            _ => return Err(Hostile::Malformed("a message has unknown flags")),
                        }
                        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                        if len == 0 {
                            return Err(Hostile::Malformed("a message has no session_id"));
                        }
                        self.state = State::Head {
                            len,
                            head: Head::default(),
                            held: BytesMut::new(),
                        };
                    }
                }
                State::Head { len, head, held } => {
                    // The whole head is mostly in these bytes, and nothing is copied then.
                    let in_parts = !held.is_empty();
                    if in_parts {
                        // Undecided bytes are shorter than this: longer heads are rejected.
                        let room = (MOST_HEAD + 32).saturating_sub(held.len());
                        let count = bytes.len().min(*len - held.len()).min(room);
                        held.extend_from_slice(&bytes.split_to(count));
                    }
                    let view = if in_parts {
                        &held[..]
                    } else {
                        &bytes[..bytes.len().min(*len)]
                    };
                    match head.read(view, *len, self.identity.keep_extensions)? {
                        None if in_parts => {}
                        None => held.extend_from_slice(&std::mem::take(&mut bytes)),
                        Some(end) => {
                            let session = head.session.ok_or("a message has no session_id")?;
                            if *self.session.get_or_insert(session) != session {
                                return Err(Hostile::Malformed("session_id changes within a call"));
                            }
                            let rest = *len - end;
                            let ours = self.identity.begin(session, &head.extensions, rest)?;
                            let mut scanner = Scanner::new(rest as u64);
                            let theirs = if in_parts {
                                std::mem::take(held).freeze().slice(end..)
                            } else {
                                let mut message = bytes.split_to(bytes.len().min(*len));
                                message.advance(end);
                                message
                            };
                            scanner.scan(&theirs, &mut Rest(self.operation.as_mut()))?;
                            out.push_back(Piece {
                                ours: ours.into(),
                                theirs,
                            });
                            self.state = if scanner.left() == 0 {
                                State::START
                            } else {
                                State::Rest(scanner)
                            };
                        }
                    }
                }
                State::Rest(scanner) => {
                    // Bounded by the number of bytes.
                    let count = scanner.left().min(bytes.len() as u64) as usize;
                    let theirs = bytes.split_to(count);
                    scanner.scan(&theirs, &mut Rest(self.operation.as_mut()))?;
                    if scanner.left() == 0 {
                        self.state = State::START;
                    }
                    out.push_back(Piece {
                        ours: Bytes::new(),
                        theirs,
                    });
                }
            }
        }
        Ok(())
    }

    /// Checks at the end that the last message is complete, and that there is one.
    pub(crate) fn finish(&self) -> Result<(), Hostile> {
        match self.state {
            State::Prefix { have: 0, .. } if self.session.is_some() => Ok(()),
            State::Prefix { have: 0, .. } => Err(Hostile::Malformed("the request has no message")),
            State::Prefix { .. } | State::Head { .. } | State::Rest(_) => {
                Err(Hostile::Malformed("the request ends in the middle of a message"))
            }
        }
    }
}
