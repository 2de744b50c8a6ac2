//! Walks gRPC messages as they stream in, and looks at who speaks in each one:
//! exactly one `session_id` and one `user_context` must be there, and the
//! context must name the token's subject, and on shared Spark the Berth
//! session. Bulk bytes are skipped, not held.

use crate::callers;
use prost::Message as _;
use session_proto::spark::UserContext;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What was found so far, by all calls of one port.
#[derive(Debug, Default)]
pub struct Tally {
    /// Messages that ended.
    pub messages: AtomicU64,
    /// Messages without the right identity.
    pub strangers: AtomicU64,
    /// Calls that were not understood at all.
    pub broken: AtomicU64,
}

/// The messages of one request.
#[derive(Debug, Default)]
pub struct Walker {
    state: State,
    /// An unfinished prefix, tag or length.
    held: Vec<u8>,
    /// Bytes of the present message that were not read yet.
    left: usize,
    session: Field,
    context: Field,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Prefix,
    Tag,
    Varint,
    Session(usize),
    Context(usize),
    Skip(usize),
}

#[derive(Debug, Default)]
struct Field {
    bytes: Vec<u8>,
    times: usize,
}

/// The bytes are not gRPC messages of protobuf fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Garbage;

impl Walker {
    /// The last `session_id` seen.
    pub fn session(&self) -> &[u8] {
        &self.session.bytes
    }

    /// Is no message half read?
    pub fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Prefix) && self.held.is_empty()
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they cannot be gRPC messages.
    pub fn feed(&mut self, mut data: &[u8], expect: bool, tally: &Tally) -> Result<(), Garbage> {
        while !data.is_empty() {
            match self.state {
                State::Prefix => {
                    if !self.hold(&mut data, 5) {
                        return Ok(());
                    }
                    if self.held[0] != 0 {
                        return Err(Garbage);
                    }
                    let len = [self.held[1], self.held[2], self.held[3], self.held[4]];
                    self.left = usize::try_from(u32::from_be_bytes(len)).map_err(|_| Garbage)?;
                    self.held.clear();
                    (self.session.times, self.context.times) = (0, 0);
                    self.state = State::Tag;
                    self.after_field(expect, tally);
                }
                State::Tag => {
                    self.tag(&mut data)?;
                    if let State::Session(0) | State::Context(0) | State::Skip(0) = self.state {
                        self.after_field(expect, tally);
                    }
                }
                State::Varint => {
                    let byte = data[0];
                    data = &data[1..];
                    self.left = self.left.checked_sub(1).ok_or(Garbage)?;
                    if byte < 0x80 {
                        self.after_field(expect, tally);
                    }
                }
                State::Session(left) => {
                    let took = take(&mut data, left, Some(&mut self.session.bytes));
                    self.state = State::Session(left - took);
                    self.passed(took, left, expect, tally)?;
                }
                State::Context(left) => {
                    let took = take(&mut data, left, Some(&mut self.context.bytes));
                    self.state = State::Context(left - took);
                    self.passed(took, left, expect, tally)?;
                }
                State::Skip(left) => {
                    let took = take(&mut data, left, None);
                    self.state = State::Skip(left - took);
                    self.passed(took, left, expect, tally)?;
                }
            }
        }
        Ok(())
    }

    fn passed(&mut self, took: usize, of: usize, expect: bool, tally: &Tally) -> Result<(), Garbage> {
        self.left = self.left.checked_sub(took).ok_or(Garbage)?;
        if took == of {
            self.after_field(expect, tally);
        }
        Ok(())
    }

    /// A field's number, and its length if it has one.
    fn tag(&mut self, data: &mut &[u8]) -> Result<(), Garbage> {
        while let [byte, rest @ ..] = *data {
            *data = rest;
            self.held.push(*byte);
            self.left = self.left.checked_sub(1).ok_or(Garbage)?;
            if self.held.len() > 20 {
                return Err(Garbage);
            }
            let Some((tag, used)) = varint(&self.held) else {
                continue;
            };
            let state = match tag & 7 {
                0 => State::Varint,
                1 => State::Skip(8),
                5 => State::Skip(4),
                2 => {
                    let Some((len, _)) = varint(&self.held[used..]) else {
                        continue;
                    };
                    let len = usize::try_from(len).map_err(|_| Garbage)?;
                    match tag >> 3 {
                        1 => {
                            self.session.begin();
                            State::Session(len)
                        }
                        2 => {
                            self.context.begin();
                            State::Context(len)
                        }
                        _ => State::Skip(len),
                    }
                }
                _ => return Err(Garbage),
            };
            self.held.clear();
            self.state = state;
            return Ok(());
        }
        Ok(())
    }

    fn after_field(&mut self, expect: bool, tally: &Tally) {
        if self.left > 0 {
            self.state = State::Tag;
            return;
        }
        self.state = State::Prefix;
        tally.messages.fetch_add(1, Relaxed);
        if expect && !self.is_right() {
            tally.strangers.fetch_add(1, Relaxed);
        }
    }

    fn is_right(&self) -> bool {
        if (self.session.times, self.context.times) != (1, 1) {
            return false;
        }
        let Some(index) = callers::index_of(&self.session.bytes) else {
            return false;
        };
        UserContext::decode(&self.context.bytes[..]).is_ok_and(|context| {
            // The session's name on shared Spark, the subject everywhere else.
            let (session, subject) = (callers::session(index), callers::subject(index));
            (context.user_id == session.as_str() || context.user_id == subject)
                && context.user_name == subject
        })
    }

    /// Collects until `want` bytes are held. Says whether they are.
    fn hold(&mut self, data: &mut &[u8], want: usize) -> bool {
        let missing = want - self.held.len();
        take(data, missing, Some(&mut self.held));
        self.held.len() == want
    }
}

impl Field {
    fn begin(&mut self) {
        self.bytes.clear();
        self.times += 1;
    }
}

/// Takes up to `most` bytes off the front. Says how many.
fn take(data: &mut &[u8], most: usize, into: Option<&mut Vec<u8>>) -> usize {
    let (taken, rest) = data.split_at(most.min(data.len()));
    if let Some(into) = into {
        into.extend_from_slice(taken);
    }
    *data = rest;
    taken.len()
}

fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (place, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, place + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::framed;
    use session_proto::spark::AddArtifactsRequest;
    use session_proto::spark::add_artifacts_request::{ArtifactChunk, Payload};

    fn message(index: u64, user_id: &str, user_name: &str) -> Vec<u8> {
        framed(&AddArtifactsRequest {
            session_id: callers::spark_session(index),
            user_context: Some(UserContext {
                user_id: user_id.to_owned(),
                user_name: user_name.to_owned(),
            }),
            payload: Some(Payload::Chunk(ArtifactChunk {
                data: vec![1; 1000],
                crc: 5,
            })),
            ..AddArtifactsRequest::default()
        })
        .to_vec()
    }

    fn walk(bytes: &[u8], step: usize) -> (Result<(), Garbage>, u64, u64) {
        let (mut walker, tally) = (Walker::default(), Tally::default());
        let result = bytes
            .chunks(step)
            .try_for_each(|piece| walker.feed(piece, true, &tally));
        (result, tally.messages.into_inner(), tally.strangers.into_inner())
    }

    #[test]
    fn the_right_speaker_is_recognized_in_every_message_and_in_any_pieces() {
        let session = callers::session(9);
        let good = message(9, session.as_str(), &callers::subject(9));
        let dedicated = message(9, &callers::subject(9), &callers::subject(9));
        let bytes = [good.clone(), dedicated, good].concat();
        for step in [1, 2, 7, 100, bytes.len()] {
            assert_eq!(walk(&bytes, step), (Ok(()), 3, 0), "in pieces of {step}");
        }
    }

    #[test]
    fn a_stranger_is_noticed_in_any_message() {
        let session = callers::session(9);
        let good = message(9, session.as_str(), &callers::subject(9));
        for bad in [
            message(9, "analyst", "analyst"),
            message(9, session.as_str(), "analyst"),
            message(8, session.as_str(), &callers::subject(9)),
        ] {
            assert_eq!(walk(&[good.clone(), bad].concat(), 64), (Ok(()), 2, 1));
        }
        // Two contexts in one message: both servers would use the last.
        let mut twice = good.clone();
        let appended = [0x12, 3, 0x0a, 1, b'x'];
        twice.extend_from_slice(&appended);
        let len = u32::try_from(twice.len() - 5).unwrap();
        twice[1..5].copy_from_slice(&len.to_be_bytes());
        assert_eq!(walk(&twice, 64), (Ok(()), 1, 1));
        // None at all.
        let anonymous = crate::wire::chunk(9, 100, false);
        assert_eq!(walk(&anonymous, 64), (Ok(()), 1, 1));
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(walk(&[1, 0, 0, 0, 0], 5).0, Err(Garbage));
        assert_eq!(walk(&[0, 0, 0, 0, 1, 0x0b], 6).0, Err(Garbage));
        assert_eq!(walk(&[0, 0, 0, 0, 2, 0x0a, 9, 1, 1, 1], 64).0, Err(Garbage));
    }
}
