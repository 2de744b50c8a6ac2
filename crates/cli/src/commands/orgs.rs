//! Organization commands: limits, and disabling of organizations and
//! principals.

use crate::args::{LimitArgs, OrgCommand, PrincipalCommand, Who};
use crate::client::{self, explain};
use crate::settings::Target;
use crate::{Output, output};
use anyhow::Result;
use serde_json::json;
use session_proto::convert;
use session_proto::v1;

pub(super) async fn run(target: &Target, output: Output, command: OrgCommand) -> Result<()> {
    let mut client = client::orgs(target).await?;
    let org = match command {
        OrgCommand::Principal(command) => return principal(target, output, command).await,
        OrgCommand::List => return list(target, output).await,
        OrgCommand::Describe { name } => describe(target, name).await?,
        OrgCommand::Create { name, limits } => {
            let limits = changed(convert::limits(&session_core::Limits::default()), limits);
            let request = v1::CreateOrgRequest {
                org: Some(v1::Org {
                    name,
                    limits: Some(limits),
                    ..v1::Org::default()
                }),
            };
            let created = client.create_org(request).await.map_err(explain)?;
            created.into_inner().org.unwrap_or_default()
        }
        OrgCommand::Limits { name, limits } => {
            let now = describe(target, name.clone()).await?.limits.unwrap_or_default();
            let request = v1::SetLimitsRequest {
                name,
                limits: Some(changed(now, limits)),
            };
            let set = client.set_limits(request).await.map_err(explain)?;
            set.into_inner().org.unwrap_or_default()
        }
        OrgCommand::Enable { name } => {
            let request = v1::EnableOrgRequest { name };
            let enabled = client.enable_org(request).await.map_err(explain)?;
            enabled.into_inner().org.unwrap_or_default()
        }
        OrgCommand::Disable { name } => {
            let request = v1::DisableOrgRequest { name };
            let disabled = client.disable_org(request).await.map_err(explain)?.into_inner();
            if output == Output::Table {
                output::note(&format!("{} sessions were closed.", disabled.closed_sessions));
            }
            disabled.org.unwrap_or_default()
        }
    };
    show_org(output, &org);
    Ok(())
}

pub(super) async fn principal(target: &Target, output: Output, command: PrincipalCommand) -> Result<()> {
    match command {
        PrincipalCommand::DisablePrincipal(who) => set_disabled(target, output, who, true).await,
        PrincipalCommand::EnablePrincipal(who) => set_disabled(target, output, who, false).await,
    }
}

async fn set_disabled(target: &Target, output: Output, who: Who, disabled: bool) -> Result<()> {
    let request = v1::DisablePrincipalRequest {
        principal: who.principal.clone(),
        disabled,
        org: who.org.unwrap_or_default(),
    };
    let closed = client::orgs(target)
        .await?
        .disable_principal(request)
        .await
        .map_err(explain)?
        .into_inner()
        .closed_sessions;
    let state = if disabled { "disabled" } else { "enabled" };
    let mut fields = vec![("principal", who.principal.clone()), ("state", state.to_owned())];
    if disabled {
        fields.push(("closed sessions", closed.to_string()));
    }
    let json = json!({"principal": who.principal, "disabled": disabled, "closed_sessions": closed});
    output::fields(output, &fields, &json);
    Ok(())
}

async fn describe(target: &Target, name: String) -> Result<v1::Org> {
    let described = client::orgs(target)
        .await?
        .describe_org(v1::DescribeOrgRequest { name })
        .await
        .map_err(explain)?
        .into_inner();
    Ok(described.org.unwrap_or_default())
}

/// The API replaces all limits together.
fn changed(limits: v1::Limits, wanted: LimitArgs) -> v1::Limits {
    v1::Limits {
        live_sessions_per_owner: wanted
            .live_sessions_per_owner
            .unwrap_or(limits.live_sessions_per_owner),
        live_sessions: wanted.live_sessions.unwrap_or(limits.live_sessions),
        creates_per_minute: wanted.creates_per_minute.unwrap_or(limits.creates_per_minute),
        labels: wanted.labels.unwrap_or(limits.labels),
        tokens_per_session: wanted.tokens_per_session.unwrap_or(limits.tokens_per_session),
    }
}

fn limits_of(org: &v1::Org) -> [(&'static str, u32); 5] {
    let limits = org.limits.unwrap_or_default();
    [
        ("live_sessions_per_owner", limits.live_sessions_per_owner),
        ("live_sessions", limits.live_sessions),
        ("creates_per_minute", limits.creates_per_minute),
        ("labels", limits.labels),
        ("tokens_per_session", limits.tokens_per_session),
    ]
}

fn state(org: &v1::Org) -> &'static str {
    if org.disabled { "disabled" } else { "enabled" }
}

fn show_org(output: Output, org: &v1::Org) {
    let limits = limits_of(org).map(|(name, limit)| format!("{name}={limit}"));
    let fields = [
        ("organization", org.name.clone()),
        ("state", state(org).to_owned()),
        ("limits", limits.join(" ")),
        ("shut out", org.disabled_principals.join(", ")),
        ("declared", output::declared(org.managed_by_config)),
    ];
    output::fields(output, &fields, org);
}

async fn list(target: &Target, output: Output) -> Result<()> {
    let orgs = client::orgs(target)
        .await?
        .list_orgs(v1::ListOrgsRequest {})
        .await
        .map_err(explain)?
        .into_inner()
        .orgs;
    let rows = orgs
        .iter()
        .map(|org| {
            let mut row = vec![org.name.clone(), state(org).to_owned()];
            row.extend(limits_of(org).map(|(_, limit)| limit.to_string()));
            row
        })
        .collect();
    let headings = [
        "ORGANIZATION",
        "STATE",
        "PER OWNER",
        "SESSIONS",
        "CREATES/MIN",
        "LABELS",
        "TOKENS",
    ];
    output::rows(output, &headings, rows, &orgs);
    Ok(())
}
