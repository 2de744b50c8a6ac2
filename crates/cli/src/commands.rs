//! One function per command.

use crate::client::{self, explain};
use crate::keyfolder::{self, KeyFile};
use crate::show::{self, distance, moment};
use crate::{Cli, Command, Create, Keys, Output, Target};
use anyhow::{Result, bail};
use serde_json::json;
use service_kit::caller::NewKey;
use session_core::{Clock, SystemClock};
use session_proto::convert;
use session_proto::v1;
use std::time::{Duration, Instant};

/// How long `create --wait` waits in all; longer than any provisioning may take.
const LONGEST_WAIT: Duration = Duration::from_secs(16 * 60);
const ONE_WAIT: Duration = Duration::from_secs(30);

pub(crate) async fn run(cli: Cli) -> Result<()> {
    let Cli {
        target,
        output,
        command,
    } = cli;
    match command {
        Command::Create(create) => create_session(&target, output, create).await,
        Command::List { all, limit } => list(&target, output, all, limit).await,
        Command::Show { session } => {
            let session = describe(&target, session, None).await?;
            show_session(output, &session);
            Ok(())
        }
        Command::Events { session } => events(&target, output, session).await,
        Command::Close { sessions } => close(&target, output, sessions).await,
        Command::Warm { session } => {
            let request = v1::WarmSessionRequest { session_id: session };
            let warmed = client::sessions(&target)?
                .warm_session(request)
                .await
                .map_err(explain)?
                .into_inner();
            show_session(output, &warmed.session.unwrap_or_default());
            Ok(())
        }
        Command::Token { session, ttl } => token(&target, output, session, ttl).await,
        Command::Tokens { session } => tokens(&target, output, session).await,
        Command::Revoke {
            session,
            token,
            all: _,
        } => revoke(&target, session, token).await,
        Command::Clusters => clusters(&target, output).await,
        Command::Catalogs => catalogs(&target, output).await,
        Command::Keys(Keys::Signing { file }) => {
            let kid = crate::keys::write_signing_key(&file)?;
            let path = file.display().to_string();
            show::fields(
                output,
                &[("file", path.clone()), ("kid", kid.clone())],
                &json!({"file": path, "kid": kid}),
            );
            Ok(())
        }
        Command::Keys(Keys::Rotate { dir }) => {
            show_key(output, &keyfolder::rotate(&dir, SystemClock.now())?);
            Ok(())
        }
        Command::Keys(Keys::List { dir }) => {
            let keys = keyfolder::list(&dir)?;
            let json = keys.iter().map(key_json).collect();
            let rows = keys
                .iter()
                .map(|key| vec![key.kid.clone(), key.file.display().to_string()])
                .collect();
            show::rows(output, &["KID", "FILE"], rows, json);
            Ok(())
        }
        Command::Keys(Keys::Retire { dir, kid, emergency }) => {
            let (gone, next) = keyfolder::retire(&dir, &kid, emergency, SystemClock.now())?;
            if let Some(next) = next {
                eprintln!("Made {} first: it was the last one.", next.file.display());
            }
            show_key(output, &gone);
            Ok(())
        }
        Command::Keys(Keys::ServiceAccount) => {
            let NewKey { key, sha256 } = service_kit::caller::generate_key();
            let json = json!({"key": key, "key_sha256": sha256});
            show::fields(output, &[("key", key), ("key_sha256", sha256)], &json);
            Ok(())
        }
    }
}

fn key_json(key: &KeyFile) -> serde_json::Value {
    json!({"file": key.file.display().to_string(), "kid": key.kid})
}

fn show_key(output: Output, key: &KeyFile) {
    let fields = [("file", key.file.display().to_string()), ("kid", key.kid.clone())];
    show::fields(output, &fields, &key_json(key));
}

async fn create_session(target: &Target, output: Output, create: Create) -> Result<()> {
    let labels = create.labels().into_iter().collect();
    let request = v1::CreateSessionRequest {
        request_id: create.request_id.unwrap_or_default(),
        cluster: create.cluster,
        catalog: create.catalog.unwrap_or_default(),
        name: create.name.unwrap_or_default(),
        team: create.team.unwrap_or_default(),
        labels,
        idle_timeout: create.idle_timeout.map(convert::duration),
        close_after_idle: create.close_after_idle.map(convert::duration),
        max_lifetime: create.max_lifetime.map(convert::duration),
    };
    let created = client::sessions(target)?
        .create_session(request)
        .await
        .map_err(explain)?
        .into_inner();
    let mut session = created.session.unwrap_or_default();
    if create.wait {
        session = wait_ready(target, session).await?;
    }
    show_session(output, &session);
    Ok(())
}

async fn wait_ready(target: &Target, mut session: v1::Session) -> Result<v1::Session> {
    let begun = Instant::now();
    while session.status() == v1::SessionStatus::Pending {
        if begun.elapsed() > LONGEST_WAIT {
            bail!(
                "session {} is still pending; `berth show {0}` tells more",
                session.id
            );
        }
        eprintln!(
            "{}: {} ({} s)",
            session.id,
            session.phase,
            begun.elapsed().as_secs()
        );
        session = describe(target, session.id, Some(ONE_WAIT)).await?;
    }
    if session.status() == v1::SessionStatus::Failed {
        bail!("session {} failed: {}", session.id, session.status_message);
    }
    Ok(session)
}

async fn describe(target: &Target, session_id: String, wait: Option<Duration>) -> Result<v1::Session> {
    let request = v1::DescribeSessionRequest {
        session_id,
        wait_ready: wait.map(convert::duration),
    };
    let answer = client::sessions(target)?
        .describe_session(request)
        .await
        .map_err(explain)?
        .into_inner();
    Ok(answer.session.unwrap_or_default())
}

fn show_session(output: Output, session: &v1::Session) {
    show::fields(
        output,
        &show::session_fields(session),
        &show::session_json(session),
    );
}

async fn list(target: &Target, output: Output, all: bool, limit: i32) -> Result<()> {
    let live = [
        v1::SessionStatus::Pending,
        v1::SessionStatus::Active,
        v1::SessionStatus::Idle,
    ];
    let statuses = if all {
        Vec::new()
    } else {
        live.into_iter().map(i32::from).collect()
    };
    let limit = usize::try_from(limit).unwrap_or(0);
    let mut sessions = Vec::new();
    let mut page_token = String::new();
    let mut client = client::sessions(target)?;
    loop {
        let wanted = i32::try_from((limit - sessions.len()).min(1000)).unwrap_or(1000);
        let request = v1::ListSessionsRequest {
            statuses: statuses.clone(),
            page_size: wanted,
            page_token,
            ..v1::ListSessionsRequest::default()
        };
        let page = client.list_sessions(request).await.map_err(explain)?.into_inner();
        sessions.extend(page.sessions);
        page_token = page.next_page_token;
        if page_token.is_empty() || sessions.len() >= limit {
            break;
        }
    }
    let now = SystemClock.now();
    let rows = sessions
        .iter()
        .map(|session| {
            vec![
                session.id.clone(),
                session.name.clone(),
                show::status(session).to_owned(),
                session.cluster.clone(),
                session.catalog.clone(),
                session.owner.clone(),
                distance(session.created_at.as_ref(), now),
                distance(session.closes_at.as_ref(), now),
            ]
        })
        .collect();
    let json = sessions.iter().map(show::session_json).collect();
    show::rows(
        output,
        &[
            "SESSION",
            "NAME",
            "STATUS",
            "CLUSTER",
            "CATALOG",
            "OWNER",
            "AGE",
            "CLOSES IN",
        ],
        rows,
        json,
    );
    Ok(())
}

async fn events(target: &Target, output: Output, session_id: String) -> Result<()> {
    let request = v1::ListSessionEventsRequest { session_id };
    let events = client::sessions(target)?
        .list_session_events(request)
        .await
        .map_err(explain)?
        .into_inner()
        .events;
    let rows = events
        .iter()
        .map(|event| {
            vec![
                moment(event.at.as_ref()),
                event.version.to_string(),
                event.phase.clone(),
                event.reason.clone(),
                event.actor.clone(),
                event.message.clone(),
            ]
        })
        .collect();
    let json = events
        .iter()
        .map(|event| {
            json!({
                "at": moment(event.at.as_ref()), "version": event.version, "generation": event.generation,
                "phase": event.phase, "reason": event.reason, "actor": event.actor, "message": event.message,
            })
        })
        .collect();
    show::rows(
        output,
        &["AT", "VERSION", "PHASE", "REASON", "ACTOR", "MESSAGE"],
        rows,
        json,
    );
    Ok(())
}

async fn close(target: &Target, output: Output, sessions: Vec<String>) -> Result<()> {
    let mut client = client::sessions(target)?;
    for session_id in sessions {
        let closed = client
            .close_session(v1::CloseSessionRequest { session_id })
            .await
            .map_err(explain)?
            .into_inner();
        show_session(output, &closed.session.unwrap_or_default());
    }
    Ok(())
}

async fn token(target: &Target, output: Output, session_id: String, ttl: Option<Duration>) -> Result<()> {
    let request = v1::IssueSessionTokenRequest {
        session_id,
        ttl: ttl.map(convert::duration),
    };
    let issued = client::tokens(target)?
        .issue_session_token(request)
        .await
        .map_err(explain)?
        .into_inner();
    let expires_at = moment(issued.expires_at.as_ref());
    match output {
        Output::Table => {
            println!("{}", issued.connection_url);
            eprintln!("Good until {expires_at}. It is not stored: keep it, or make another.");
        }
        Output::Json => println!(
            "{:#}",
            json!({
                "token": issued.token, "token_id": issued.token_id, "token_type": issued.token_type,
                "issued_at": moment(issued.issued_at.as_ref()), "expires_at": expires_at,
                "grpc_endpoint": issued.grpc_endpoint, "connection_url": issued.connection_url,
            })
        ),
    }
    Ok(())
}

async fn tokens(target: &Target, output: Output, session_id: String) -> Result<()> {
    let request = v1::ListSessionTokensRequest { session_id };
    let tokens = client::tokens(target)?
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
    let json = tokens
        .iter()
        .map(|token| {
            json!({
                "token_id": token.token_id, "key_id": token.key_id, "subject": token.subject,
                "issued_at": moment(token.issued_at.as_ref()), "expires_at": moment(token.expires_at.as_ref()),
                "first_used_at": moment(token.first_used_at.as_ref()),
                "last_used_at": moment(token.last_used_at.as_ref()), "revoked": token.revoked,
            })
        })
        .collect();
    show::rows(
        output,
        &["TOKEN", "SUBJECT", "ISSUED", "EXPIRES", "LAST USED", "STATE"],
        rows,
        json,
    );
    Ok(())
}

async fn revoke(target: &Target, session_id: String, token: Option<String>) -> Result<()> {
    let mut client = client::tokens(target)?;
    match token {
        Some(token_id) => {
            let request = v1::RevokeSessionTokenRequest { session_id, token_id };
            client.revoke_session_token(request).await.map_err(explain)?;
            println!("The token is revoked.");
        }
        None => {
            client
                .revoke_all_session_tokens(v1::RevokeAllSessionTokensRequest { session_id })
                .await
                .map_err(explain)?;
            println!("Every token issued so far is revoked.");
        }
    }
    Ok(())
}

async fn clusters(target: &Target, output: Output) -> Result<()> {
    let clusters = client::clusters(target)?
        .list_clusters(v1::ListClustersRequest {})
        .await
        .map_err(explain)?
        .into_inner()
        .clusters;
    let status = |cluster: &v1::Cluster| {
        cluster
            .status()
            .as_str_name()
            .trim_start_matches("CLUSTER_STATUS_")
            .to_lowercase()
    };
    let rows = clusters
        .iter()
        .map(|cluster| {
            vec![
                cluster.name.clone(),
                status(cluster),
                show::engine(cluster.engine()),
                cluster.engine_version.clone(),
                cluster.client_versions.join(", "),
            ]
        })
        .collect();
    let json = clusters
        .iter()
        .map(|cluster| {
            json!({
                "name": cluster.name, "status": status(cluster), "engine": show::engine(cluster.engine()),
                "engine_version": cluster.engine_version, "client_versions": cluster.client_versions,
                "idle_policy": cluster.idle_policy,
            })
        })
        .collect();
    show::rows(
        output,
        &["CLUSTER", "STATUS", "ENGINE", "VERSION", "CLIENTS"],
        rows,
        json,
    );
    Ok(())
}

async fn catalogs(target: &Target, output: Output) -> Result<()> {
    let catalogs = client::catalogs(target)?
        .list_catalogs(v1::ListCatalogsRequest {})
        .await
        .map_err(explain)?
        .into_inner()
        .catalogs;
    let rows = catalogs
        .iter()
        .map(|catalog| {
            vec![
                catalog.name.clone(),
                show::engine(catalog.engine()),
                catalog.default_database.clone(),
            ]
        })
        .collect();
    let json = catalogs
        .iter()
        .map(|catalog| {
            json!({
                "name": catalog.name, "org": catalog.org, "engine": show::engine(catalog.engine()),
                "default_database": catalog.default_database,
            })
        })
        .collect();
    show::rows(output, &["CATALOG", "ENGINE", "DATABASE"], rows, json);
    Ok(())
}
