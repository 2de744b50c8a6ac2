//! A session's list: `record.lua` says what stands where, and writes it; this
//! reads it.

use super::RedisStore;
use super::packed::unpack;
use crate::Error;
use session_core::{EventRecord, Session};

/// Where what scripts compare is.
pub(super) const HEAD: usize = 0;
/// Where the record is.
pub(super) const RECORD: usize = 1;
/// Where the last changes are.
const HISTORY: usize = 3;
/// Where the tokens begin.
pub(super) const TOKENS: usize = 4;

/// The length before each change, in bytes.
const LENGTH: usize = 2;

/// The token epoch that scripts compare.
pub(super) fn token_epoch(head: &str) -> Result<u64, Error> {
    let words: Vec<&str> = head.split(' ').collect();
    let epoch = match words.as_slice() {
        ["1", _version, _live, _status, _generation, token_epoch, _ledger_epoch] => token_epoch.parse().ok(),
        _ => None,
    };
    epoch.ok_or_else(|| Error::Corrupt("a session of another layout, or broken".to_owned()))
}

/// The changes that `save.lua` put together.
fn changes(mut history: &[u8]) -> Result<Vec<EventRecord>, Error> {
    let mut changes = Vec::new();
    while let Some((length, rest)) = history.split_first_chunk::<LENGTH>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let change = rest
            .get(..length)
            .ok_or_else(|| Error::Corrupt("a history that ends within a change".to_owned()))?;
        changes.push(unpack(change)?);
        history = &rest[length..];
    }
    if !history.is_empty() {
        return Err(Error::Corrupt("a history that ends within a length".to_owned()));
    }
    Ok(changes)
}

impl RedisStore {
    /// The record in the list `key`, if there is one.
    pub(super) async fn read_record(&self, key: &str) -> Result<Option<Session>, Error> {
        let packed = self.read_at(key, RECORD).await?;
        packed.map(|packed| unpack(&packed)).transpose()
    }

    /// The last changes in the list `key`, oldest first.
    pub(super) async fn read_history(&self, key: &str) -> Result<Vec<EventRecord>, Error> {
        changes(&self.read_at(key, HISTORY).await?.unwrap_or_default())
    }

    async fn read_at(&self, key: &str, place: usize) -> Result<Option<Vec<u8>>, Error> {
        let mut cmd = redis::cmd("LINDEX");
        self.connections.query(cmd.arg(key).arg(place)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_list_is_corrupt() {
        assert_eq!(token_epoch("1 12 1 active 3 7 0").unwrap(), 7);
        for head in ["", "2 12 1 active 3 7 0", "1 12 1 active 3 x 0", "1 12 1 active 3 7"] {
            assert!(matches!(token_epoch(head), Err(Error::Corrupt(_))), "{head}");
        }
        assert!(changes(b"").unwrap().is_empty());
        for broken in [&[0, 9, b'{'][..], &[0]] {
            assert!(matches!(changes(broken), Err(Error::Corrupt(_))), "{broken:?}");
        }
    }
}
