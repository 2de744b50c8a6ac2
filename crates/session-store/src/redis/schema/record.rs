//! The string of a session: `record.lua` defines its layout and writes it; this module
//! reads it.

use super::codec::unpack;
use crate::Error;
use crate::redis::RedisStore;
use session_core::{EventRecord, Session};

/// Bytes of the length before each change and each token.
const LENGTH: usize = 2;

/// The parts of a session's string that Rust code reads.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::redis) struct Stored<'a> {
    /// Token epoch of the session.
    pub(in crate::redis) token_epoch: u64,
    record: &'a [u8],
    history: &'a [u8],
    tokens: &'a [u8],
}

impl<'a> Stored<'a> {
    pub(in crate::redis) fn parse(text: &'a [u8]) -> Result<Self, Error> {
        Self::parts(text).ok_or_else(|| Error::Corrupt("a session of another layout, or corrupt".to_owned()))
    }

    fn parts(text: &'a [u8]) -> Option<Self> {
        let end = text.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = (std::str::from_utf8(&text[..end]).ok()?, &text[end + 1..]);
        let fields: Vec<&str> = line.split(' ').collect();
        let [
            "1",
            _version,
            _live,
            _status,
            _generation,
            token_epoch,
            _ledger_epoch,
            record,
            used,
            history,
        ] = fields.as_slice()
        else {
            return None;
        };
        let (record, rest) = rest.split_at_checked(record.parse().ok()?)?;
        let (_, rest) = rest.split_at_checked(used.parse().ok()?)?;
        let (history, tokens) = rest.split_at_checked(history.parse().ok()?)?;
        Some(Self {
            token_epoch: token_epoch.parse().ok()?,
            record,
            history,
            tokens,
        })
    }

    /// The record.
    pub(in crate::redis) fn session(&self) -> Result<Session, Error> {
        unpack(self.record)
    }

    fn events(&self) -> Result<Vec<EventRecord>, Error> {
        pieces(self.history)?.into_iter().map(unpack).collect()
    }

    /// The tokens of a live session.
    pub(in crate::redis) fn tokens(&self) -> Result<Vec<&'a [u8]>, Error> {
        pieces(self.tokens)
    }
}

/// Splits a sequence of parts, each after its length.
pub(in crate::redis) fn pieces(mut text: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let mut pieces = Vec::new();
    while !text.is_empty() {
        let piece = text
            .split_first_chunk::<LENGTH>()
            .and_then(|(length, rest)| rest.split_at_checked(usize::from(u16::from_be_bytes(*length))));
        let (piece, rest) =
            piece.ok_or_else(|| Error::Corrupt("a part of a session is cut off".to_owned()))?;
        pieces.push(piece);
        text = rest;
    }
    Ok(pieces)
}

impl RedisStore {
    /// Reads the record at `key`, if it exists.
    pub(in crate::redis) async fn read_record(&self, key: &str) -> Result<Option<Session>, Error> {
        let text = self.read_text(key).await?;
        text.map(|text| Stored::parse(&text)?.session()).transpose()
    }

    /// Reads the last changes of the session at `key`, oldest first.
    pub(in crate::redis) async fn read_history(&self, key: &str) -> Result<Vec<EventRecord>, Error> {
        let text = self.read_text(key).await?;
        text.map_or_else(|| Ok(Vec::new()), |text| Stored::parse(&text)?.events())
    }

    async fn read_text(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.connections.query(redis::cmd("GET").arg(key)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_and_broken_ones_are_corrupt() {
        let text = b"1 12 1 active 3 7 0 3 2 4\nRECuu\x00\x02h\n\x00\x01t\x00\x00";
        let stored = Stored::parse(text).unwrap();
        assert_eq!(stored.token_epoch, 7);
        assert_eq!(stored.record, b"REC");
        assert_eq!(pieces(stored.history).unwrap(), [b"h\n"]);
        assert_eq!(stored.tokens().unwrap(), [&b"t"[..], b""]);
        let broken = [
            &b""[..],
            b"text",
            b"2 12 1 active 3 7 0 0 0 0\n",
            b"1 12 1 active 3 7 0 0 0\n",
            b"1 12 1 active 3 x 0 0 0 0\n",
            b"1 12 1 active 3 7 0 9 0 0\nREC",
        ];
        for text in broken {
            assert!(matches!(Stored::parse(text), Err(Error::Corrupt(_))), "{text:?}");
        }
        for text in [&[0][..], &[0, 9, b'{']] {
            assert!(matches!(pieces(text), Err(Error::Corrupt(_))), "{text:?}");
        }
    }
}
