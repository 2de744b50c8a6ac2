//! Tokens in Redis: in the string of a live session; `save.lua` moves them to their own
//! key at its end. `token.lua` defines their form.

use super::{RedisStore, score};
use crate::prelude::*;
use crate::redis::schema::keys::Slot;
use crate::redis::schema::record::{Stored, pieces};
use crate::{Error, TOKEN_RETENTION, TokenRecord, Tokens};
use async_trait::async_trait;
use session_core::{SessionKey, Timestamp, TokenId, TokenUse};
use std::collections::BTreeMap;
use std::time::Duration;

/// Ends the key id in the details; no principal contains it.
const END_OF_KEY: char = '\n';

/// The fields of a token that scripts do not use: "<issued_at> <epoch> <key>", and the
/// subject in its own line.
fn details(token: &TokenRecord) -> String {
    format!(
        "{} {} {}{END_OF_KEY}{}",
        token.issued_at.as_millis(),
        token.epoch,
        token.key_id,
        token.subject
    )
}

fn parse(text: &str) -> Option<(TokenRecord, Option<TokenUse>)> {
    let mut fields = text.splitn(7, ' ');
    let id: TokenId = fields.next()?.parse().ok()?;
    let time = |field: &str| field.parse().ok().map(Timestamp::from_millis);
    let expires_at = time(fields.next()?)?;
    let (first, last) = (time(fields.next()?), time(fields.next()?));
    let issued_at = time(fields.next()?)?;
    let epoch = fields.next()?.parse().ok()?;
    let (key_id, subject) = fields.next()?.rsplit_once(END_OF_KEY)?;
    let used = first.map(|first| TokenUse {
        id: id.clone(),
        first,
        last: last.unwrap_or(first),
    });
    let token = TokenRecord {
        id,
        key_id: key_id.to_owned(),
        subject: subject.parse().ok()?,
        epoch,
        issued_at,
        expires_at,
        address: String::new(),
    };
    Some((token, used))
}

impl RedisStore {
    /// Records a token if there is room for it without the `revoked` ones.
    pub(super) async fn add_token(
        &self,
        key: &SessionKey,
        token: &TokenRecord,
        limit: u32,
        revoked: &[&str],
    ) -> Result<(), Error> {
        if self
            .is_short_of_memory(Slot::Partition(key.org.partition()))
            .await
        {
            return Err(Error::Full);
        }
        let mut script = self.scripts.record_token.prepare_invoke();
        script
            .key(self.keys.record(key))
            .key(self.keys.audit(key.org.partition()));
        script
            .arg(token.id.as_str())
            .arg(details(token))
            .arg(token.epoch)
            .arg(score(token.expires_at))
            .arg(limit)
            .arg(u64::try_from(TOKEN_RETENTION.as_millis()).unwrap_or(u64::MAX))
            .arg(revoked);
        self.add_audit_args(&mut script, &token.audited(key))?;
        self.run(&script).await?.accepted(|_| limit).map(drop)
    }

    /// Reads the tokens of the present epoch that expired at most `memory` ago, with
    /// their uses.
    pub(super) async fn read_tokens(
        &self,
        key: &SessionKey,
        memory: Duration,
    ) -> Result<Vec<(TokenRecord, Option<TokenUse>)>, Error> {
        let now = self.now().await?;
        // One command, not a transaction: a server without free memory queues none.
        let mut both = redis::cmd("MGET");
        both.arg(self.keys.record(key)).arg(self.keys.tokens(key));
        let (text, aside): (Option<Vec<u8>>, Option<Vec<u8>>) = self.connections.query(&both).await?;
        let Some(text) = text else {
            return Ok(Vec::new());
        };
        let stored = Stored::parse(&text)?;
        let mut texts = stored.tokens()?;
        texts.extend(pieces(aside.as_deref().unwrap_or_default())?);
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            let token = std::str::from_utf8(text).ok().and_then(parse);
            let token = token.ok_or_else(|| Error::Corrupt("a stored token cannot be decoded".to_owned()))?;
            if token.0.expires_at.after(memory) > now && token.0.epoch == stored.token_epoch {
                tokens.push(token);
            }
        }
        Ok(tokens)
    }
}

#[async_trait]
impl Tokens for RedisStore {
    async fn record_token(&self, key: &SessionKey, token: TokenRecord, limit: u32) -> Result<(), Error> {
        let recorded = self.add_token(key, &token, limit, &[]).await;
        if !matches!(recorded, Err(Error::Quota { .. })) {
            return recorded;
        }
        // The revoked tokens matter only at the limit.
        let Some(session) = self.get(key).await? else {
            return Err(Error::NotFound);
        };
        let revoked: Vec<_> = session.revoked_tokens.keys().map(TokenId::as_str).collect();
        if revoked.is_empty() {
            return recorded;
        }
        self.add_token(key, &token, limit, &revoked).await
    }

    async fn live_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        let tokens = self.read_tokens(key, Duration::ZERO).await?;
        let mut tokens: Vec<_> = tokens.into_iter().map(|(token, _)| token).collect();
        TokenRecord::sort_oldest_first(&mut tokens);
        Ok(tokens)
    }

    async fn recent_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        let tokens = self.read_tokens(key, TOKEN_RETENTION).await?;
        let mut tokens: Vec<_> = tokens.into_iter().map(|(token, _)| token).collect();
        TokenRecord::sort_oldest_first(&mut tokens);
        Ok(tokens)
    }

    async fn token_uses(&self, key: &SessionKey) -> Result<BTreeMap<TokenId, TokenUse>, Error> {
        let tokens = self.read_tokens(key, Duration::ZERO).await?;
        let uses = tokens.into_iter().filter_map(|(_, used)| used);
        Ok(uses.map(|used| (used.id.clone(), used)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (now, later) = (
            Timestamp::from_millis(1_800_000_000_000),
            Timestamp::from_millis(9),
        );
        let token = TokenRecord {
            id: TokenId::generate(now, 1),
            key_id: "a key\nof any form ".to_owned(),
            subject: "idp|a b c".parse().unwrap(),
            epoch: 3,
            issued_at: now,
            expires_at: later,
            address: String::new(),
        };
        let text = |first: &str, last: &str| format!("{} 9 {first} {last} {}", token.id, details(&token));
        assert_eq!(parse(&text("", "")), Some((token.clone(), None)));
        let used = TokenUse {
            id: token.id.clone(),
            first: Timestamp::from_millis(5),
            last: Timestamp::from_millis(7),
        };
        assert_eq!(parse(&text("5", "7")), Some((token.clone(), Some(used))));
        for broken in ["", "t-1", &format!("{} 9   1 3 k", token.id)] {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }
}
