//! Token commands.

use crate::Output;
use crate::args::Revoke;
use crate::client::{self, explain};
use crate::output::{self, moment};
use crate::settings::Target;
use anyhow::Result;
use session_proto::convert;
use session_proto::v1;
use std::time::Duration;

pub(super) async fn token(
    target: &Target,
    output: Output,
    session_id: String,
    ttl: Option<Duration>,
) -> Result<()> {
    let request = v1::IssueSessionTokenRequest {
        session_id,
        ttl: ttl.map(convert::duration),
    };
    let issued = client::tokens(target)
        .await?
        .issue_session_token(request)
        .await
        .map_err(explain)?
        .into_inner();
    let expires_at = moment(issued.expires_at.as_ref());
    match output {
        Output::Table => {
            output::line(&issued.connection_url);
            output::note(&format!(
                "Valid until {expires_at}. Berth does not store the token: keep it, or issue another."
            ));
        }
        Output::Json => output::object(&issued),
    }
    Ok(())
}

pub(super) async fn tokens(target: &Target, output: Output, session_id: String) -> Result<()> {
    let request = v1::ListSessionTokensRequest { session_id };
    let tokens = client::tokens(target)
        .await?
        .list_session_tokens(request)
        .await
        .map_err(explain)?
        .into_inner()
        .tokens;
    let rows = tokens
        .iter()
        .map(|token| {
            let state = if token.revoked { "revoked" } else { "good" };
            vec![
                token.token_id.clone(),
                token.subject.clone(),
                moment(token.issued_at.as_ref()),
                moment(token.expires_at.as_ref()),
                moment(token.last_used_at.as_ref()),
                state.to_owned(),
            ]
        })
        .collect();
    output::rows(
        output,
        &["TOKEN", "SUBJECT", "ISSUED", "EXPIRES", "LAST USED", "STATE"],
        rows,
        &tokens,
    );
    Ok(())
}

pub(super) async fn revoke(target: &Target, revoke: Revoke) -> Result<()> {
    let mut client = client::tokens(target).await?;
    let session_id = revoke.session;
    match revoke.token {
        Some(token_id) => {
            let request = v1::RevokeSessionTokenRequest { session_id, token_id };
            client.revoke_session_token(request).await.map_err(explain)?;
            output::line("The token is revoked.");
        }
        None => {
            client
                .revoke_all_session_tokens(v1::RevokeAllSessionTokensRequest { session_id })
                .await
                .map_err(explain)?;
            output::line("Every token issued so far is revoked.");
        }
    }
    Ok(())
}
