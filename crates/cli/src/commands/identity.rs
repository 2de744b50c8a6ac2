//! `berth login`, `berth logout` and `berth whoami`.

use super::contexts::set_oidc;
use crate::args::Login;
use crate::client::{self, explain};
use crate::config_file::{self, Oidc};
use crate::login::{self, Flow, provider, store};
use crate::settings::{Credential, Target};
use crate::{Given, GlobalArgs, Output, output, settings};
use anyhow::{Context as _, Result, bail};
use serde_json::json;
use session_core::Timestamp;
use session_proto::v1;
use std::time::Duration;

/// Context that `berth login` creates where there is none.
const DEFAULT_CONTEXT: &str = "default";

/// Signs in, and checks that Berth accepts the token.
pub(super) async fn login(global: &GlobalArgs, given: &Given, args: Login) -> Result<()> {
    let flow = match (args.device, args.browser) {
        (true, _) => Flow::Device,
        (_, true) => Flow::Browser,
        (false, false) => Flow::best_here(),
    };
    let timeout = args.timeout;
    let (name, oidc) = provider_of(global, args).await?;
    let login = login::sign_in(&name, &oidc, flow, timeout).await?;
    let signed_in = Credential::Login {
        context: name.clone(),
        oidc: Box::new(oidc),
    };
    let organization = organization_of(signed_in, settings::resolve(global, given)?).await;
    show_login(global.output, name, login, organization);
    Ok(())
}

/// The organization that a new sign-in leads to; empty, with a note, if
/// session-manager is away or refuses.
async fn organization_of(signed_in: Credential, target: Target) -> String {
    let overridden = target.credential.as_ref().map(|source| source.value.describe());
    if let Some(source) = overridden.filter(|source| *source != signed_in.describe()) {
        output::note(&format!(
            "berth: {source} is set and is used in place of this sign-in"
        ));
    }
    let credential = settings::Setting {
        value: signed_in,
        origin: settings::Origin::Context,
    };
    let target = Target {
        credential: Some(credential),
        ..target
    };
    match caller(&target).await {
        Ok(caller) => caller.org,
        Err(error) => {
            output::error(&format!(
                "berth: signed in, but session-manager was not reached or refused: {error:#}"
            ));
            String::new()
        }
    }
}

fn show_login(output: Output, context: String, login: store::StoredLogin, organization: String) {
    let claims = provider::claims_of(&login.token).unwrap_or_default();
    let expires_at = Timestamp::ZERO
        .after(Duration::from_secs(login.expires_at))
        .to_string();
    let subject = claims.sub.unwrap_or_default();
    let renewable = login.refresh_token.is_some();
    let json = json!({
        "context": context, "subject": subject, "issuer": login.issuer, "organization": organization,
        "expires_at": expires_at, "renewable": renewable,
    });
    let renewed = if renewable {
        "automatically"
    } else {
        "no: sign in again then"
    };
    let fields = [
        ("context", context),
        ("subject", subject),
        ("signed in at", login.issuer),
        ("organization", organization),
        ("token expires", expires_at),
        ("renewed", renewed.to_owned()),
    ];
    output::fields(output, &fields, &json);
}

/// The context to sign in to and its provider; options are stored in it.
async fn provider_of(global: &GlobalArgs, args: Login) -> Result<(String, Oidc)> {
    let path = config_file::path()?;
    config_file::change(&path, |file| {
        let chosen = global.context.clone().filter(|name| !name.is_empty());
        let name = chosen.or_else(|| file.current.clone()).unwrap_or(DEFAULT_CONTEXT.to_owned());
        config_file::check_name(&name)?;
        let mut context = file.contexts.get(&name).cloned().unwrap_or_default();
        set_oidc(&mut context.oidc, args.oidc)?;
        let oidc = context.oidc.clone().with_context(|| {
            format!("context {name:?} has no identity provider: use --oidc-issuer and --oidc-client-id once")
        })?;
        if context.key_file.is_some() || context.token_file.is_some() {
            bail!("context {name:?} has a credential file: remove it with `berth context set {name} --unset key-file --unset token-file`");
        }
        file.contexts.insert(name.clone(), context);
        file.current.get_or_insert_with(|| name.clone());
        Ok((name, oidc))
    })
    .await
}

/// Who session-manager says the caller is.
async fn caller(target: &Target) -> Result<v1::Caller> {
    let response = client::orgs(target)
        .await?
        .describe_caller(v1::DescribeCallerRequest {})
        .await;
    Ok(response.map_err(explain)?.into_inner().caller.unwrap_or_default())
}

/// Deletes the stored sign-in, and revokes it at the provider.
pub(super) async fn logout(target: &Target, output: Output) -> Result<()> {
    let name = target.context.clone().unwrap_or_default();
    let file = config_file::load_in_use()?;
    let Some(login) = login::forget(&name).await? else {
        output::note("There was no sign-in.");
        return Ok(());
    };
    let oidc = file.contexts.get(&name).and_then(|context| context.oidc.clone());
    let revoked = match &oidc {
        Some(oidc) => login::revoke(oidc, &login).await,
        None => Ok(false),
    };
    let revoked = revoked.unwrap_or_else(|error| {
        output::error(&format!(
            "berth: the sign-in is deleted here; revoking it at the provider failed: {error:#}"
        ));
        false
    });
    let state = if revoked {
        "yes"
    } else {
        "no: tokens stay valid until they expire"
    };
    output::fields(
        output,
        &[("signed out of", name.clone()), ("revoked", state.to_owned())],
        &json!({"context": name, "revoked": revoked}),
    );
    Ok(())
}

/// Shows what a command would use, and whether Berth accepts it.
pub(super) async fn whoami(target: &Target, output: Output) -> Result<()> {
    let source = target
        .credential
        .as_ref()
        .context("no credential: sign in with `berth login`, or set BERTH_KEY or BERTH_TOKEN")?;
    let secret = source.value.secret().await?;
    let claims = provider::claims_of(&secret).unwrap_or_default();
    let expires_at = match &source.value {
        Credential::Login { context, .. } => store::load(context)?.map(|login| login.expires_at),
        Credential::Key(_) | Credential::Token(_) | Credential::KeyFile(_) | Credential::TokenFile(_) => {
            claims.exp.map(|exp| exp as u64)
        }
    };
    let expires_at = expires_at.map(|exp| Timestamp::ZERO.after(Duration::from_secs(exp)).to_string());
    let caller = caller(target).await?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let json = json!({
        "context": target.context, "manager": target.manager, "issuer": target.issuer,
        "credential": {
            "kind": source.value.kind(), "source": source.value.describe(), "origin": source.origin,
            "subject": claims.sub, "issuer": claims.iss, "expires_at": expires_at,
        },
        "principal": caller.principal, "organization": caller.org, "roles": caller.roles,
        "teams": caller.teams, "team_admin_of": caller.team_admin_of,
    });
    let fields = [
        ("context", text(&target.context)),
        (
            "manager",
            format!("{} ({})", target.manager.value, target.manager.origin),
        ),
        (
            "issuer",
            format!("{} ({})", target.issuer.value, target.issuer.origin),
        ),
        (
            "credential",
            format!("{} ({})", source.value.describe(), source.origin),
        ),
        ("subject", text(&claims.sub)),
        ("identity issuer", text(&claims.iss)),
        ("expires", text(&expires_at)),
        ("principal", caller.principal),
        ("organization", caller.org),
        ("roles", caller.roles.join(", ")),
        ("teams", caller.teams.join(", ")),
    ];
    output::fields(output, &fields, &json);
    Ok(())
}
