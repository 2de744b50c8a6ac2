//! Tokens in Redis: with their session while it lives; `save.lua` sets them
//! aside when it ends. `token.lua` says how each is written.

use super::{RedisStore, score};
use crate::prelude::*;
use crate::redis::schema::keys::Slot;
use crate::redis::schema::record::{Stored, pieces};
use crate::{Error, TOKEN_MEMORY, TokenRecord, Tokens};
use async_trait::async_trait;
use session_core::{SessionKey, Timestamp, TokenId, TokenUse};
use std::collections::BTreeMap;
use std::time::Duration;

/// Ends the key's id in the details: no principal has it.
const END_OF_KEY: char = '\n';

/// What scripts need not know of a token: "<issued_at> <epoch> <key>", and the
/// subject in a line of its own.
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
    let mut words = text.splitn(7, ' ');
    let id: TokenId = words.next()?.parse().ok()?;
    let moment = |word: &str| word.parse().ok().map(Timestamp::from_millis);
    let expires_at = moment(words.next()?)?;
    let (first, last) = (moment(words.next()?), moment(words.next()?));
    let issued_at = moment(words.next()?)?;
    let epoch = words.next()?.parse().ok()?;
    let (key_id, subject) = words.next()?.rsplit_once(END_OF_KEY)?;
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
    /// Records a token unless there is no room for it once `revoked` are gone.
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
            .arg(u64::try_from(TOKEN_MEMORY.as_millis()).unwrap_or(u64::MAX))
            .arg(revoked);
        self.audit_last(&mut script, &token.audited(key))?;
        self.run(&script).await?.accepted(|_| limit).map(drop)
    }

    /// The tokens of the present epoch that have not expired for longer than
    /// `memory`, with their uses.
    pub(super) async fn read_tokens(
        &self,
        key: &SessionKey,
        memory: Duration,
    ) -> Result<Vec<(TokenRecord, Option<TokenUse>)>, Error> {
        let now = self.now().await?;
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("GET").arg(self.keys.record(key));
        pipeline.cmd("GET").arg(self.keys.tokens(key));
        let (text, aside): (Option<Vec<u8>>, Option<Vec<u8>>) = self.connections.pipeline(&pipeline).await?;
        let Some(text) = text else {
            return Ok(Vec::new());
        };
        let stored = Stored::parse(&text)?;
        let mut texts = stored.tokens()?;
        texts.extend(pieces(aside.as_deref().unwrap_or_default())?);
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            let token = std::str::from_utf8(text).ok().and_then(parse);
            let token = token.ok_or_else(|| Error::Corrupt("a token cannot be read".to_owned()))?;
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
        // Only at the limit is it worth telling revoked tokens from live ones.
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
        let tokens = self.read_tokens(key, TOKEN_MEMORY).await?;
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
