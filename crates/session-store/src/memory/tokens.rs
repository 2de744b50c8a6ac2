//! The token ledger in memory.

use super::Entry;
use super::MemoryStore;
use crate::{Error, TOKEN_RETENTION, TokenRecord, Tokens};
use async_trait::async_trait;
use session_core::{Quota, SessionKey, TokenId, TokenUse};
use std::collections::BTreeMap;

#[async_trait]
impl Tokens for MemoryStore {
    async fn record_token(&self, key: &SessionKey, token: TokenRecord, limit: u32) -> Result<(), Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let entry = state.entry_mut(key).ok_or(Error::NotFound)?;
        let session = &entry.session;
        if session.status().is_terminal() {
            return Err(Error::TokenRejected("closed"));
        }
        if session.token_epoch != token.epoch {
            return Err(Error::TokenRejected("epoch"));
        }
        entry
            .tokens
            .retain(|_, kept| kept.expires_at.after(TOKEN_RETENTION) > now && kept.epoch == token.epoch);
        if entry
            .tokens
            .get(&token.id)
            .is_some_and(|kept| kept.expires_at > now)
        {
            return Ok(());
        }
        entry.tokens.remove(&token.id);
        let is_live = |kept: &&TokenRecord| kept.expires_at > now;
        if entry.tokens.values().filter(is_live).count() >= limit as usize {
            entry
                .tokens
                .retain(|id, _| !session.revoked_tokens.contains_key(id));
        }
        if entry.tokens.values().filter(is_live).count() >= limit as usize {
            return Err(Error::Quota {
                quota: Quota::TokensPerSession,
                limit,
                retry_after: None,
            });
        }
        let mut expired: Vec<_> = entry
            .tokens
            .values()
            .filter(|kept| !is_live(kept))
            .cloned()
            .collect();
        TokenRecord::sort_oldest_first(&mut expired);
        let surplus = (entry.tokens.len() + 1).saturating_sub(limit as usize);
        for removed in expired.iter().take(surplus) {
            entry.tokens.remove(&removed.id);
        }
        entry.used.retain_tokens(|id| entry.tokens.contains_key(id));
        let issued = token.audited(key);
        entry.tokens.insert(token.id.clone(), token);
        state.trail.add(issued, self.clock.now());
        Ok(())
    }

    async fn live_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let Some(entry) = state.entry(key) else {
            return Ok(Vec::new());
        };
        let tokens = entry.tokens.values();
        let mut tokens: Vec<_> = tokens
            .filter(|token| entry.is_listed(token, now))
            .cloned()
            .collect();
        TokenRecord::sort_oldest_first(&mut tokens);
        Ok(tokens)
    }

    async fn recent_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let Some(entry) = state.entry(key) else {
            return Ok(Vec::new());
        };
        let recent = |token: &&TokenRecord| {
            token.expires_at.after(TOKEN_RETENTION) > now && token.epoch == entry.session.token_epoch
        };
        let mut tokens: Vec<_> = entry.tokens.values().filter(recent).cloned().collect();
        TokenRecord::sort_oldest_first(&mut tokens);
        Ok(tokens)
    }

    async fn token_uses(&self, key: &SessionKey) -> Result<BTreeMap<TokenId, TokenUse>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let uses = |e: &Entry| {
            e.used
                .token_uses(|id| e.tokens.get(id).is_some_and(|token| e.is_listed(token, now)))
        };
        Ok(state.entry(key).map(uses).unwrap_or_default())
    }
}
