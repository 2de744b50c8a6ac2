//! Context commands.

use crate::args::{ContextCommand, ContextSet, OidcArgs, UnsetField};
use crate::config_file::{self, ConfigFile, Context, Oidc, default_scopes};
use crate::{Given, GlobalArgs, Output, login, output};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub(super) async fn run(global: &GlobalArgs, given: &Given, command: ContextCommand) -> Result<()> {
    let path = config_file::path()?;
    let output = global.output;
    match command {
        ContextCommand::List => {
            list(output, &config_file::load(&path)?);
            Ok(())
        }
        ContextCommand::Show { name } => {
            let file = config_file::load(&path)?;
            let name = name.or_else(|| in_use(global, &file)).context(
                "no context is in use: `berth context use NAME` selects one, `berth context set NAME` creates one",
            )?;
            show(output, &name, file.context(&name)?);
            Ok(())
        }
        ContextCommand::Use { name } => {
            config_file::change(&path, |file| {
                file.context(&name)?;
                file.current = Some(name.clone());
                Ok(())
            })
            .await?;
            output::fields(output, &[("current", name.clone())], &json!({"current": name}));
            Ok(())
        }
        ContextCommand::Set(set) => {
            let name = set.name.clone();
            let context = config_file::change(&path, |file| change(file, global, given, *set)).await?;
            show(output, &name, &context);
            Ok(())
        }
        ContextCommand::Delete { name } => {
            config_file::change(&path, |file| {
                file.context(&name)?;
                file.contexts.remove(&name);
                file.current.take_if(|current| *current == name);
                Ok(())
            })
            .await?;
            login::forget(&name).await?;
            output::fields(output, &[("deleted", name.clone())], &json!({"deleted": name}));
            Ok(())
        }
    }
}

fn in_use(global: &GlobalArgs, file: &ConfigFile) -> Option<String> {
    let chosen = global.context.clone().filter(|name| !name.is_empty());
    chosen.or_else(|| file.current.clone())
}

/// Changes a context by the options on the command line; variables of the
/// environment are not stored.
fn change(file: &mut ConfigFile, global: &GlobalArgs, given: &Given, set: ContextSet) -> Result<Context> {
    config_file::check_name(&set.name)?;
    let mut context = file.contexts.get(&set.name).cloned().unwrap_or_default();
    for field in &set.unset {
        unset(&mut context, *field);
    }
    let text = |id: &str, value: &Option<String>| value.clone().filter(|_| given.contains(id));
    for (field, value) in [
        (&mut context.manager, text("manager", &global.manager)),
        (&mut context.issuer, text("issuer", &global.issuer)),
        (&mut context.console, text("console", &global.console)),
    ] {
        if let Some(value) = value {
            check_address(&value)?;
            *field = Some(value);
        }
    }
    for (id, field, value) in [
        ("ca", &mut context.ca, &global.ca),
        ("key_file", &mut context.key_file, &global.key_file),
        ("token_file", &mut context.token_file, &global.token_file),
    ] {
        if let Some(value) = value.as_ref().filter(|_| given.contains(id)) {
            *field = Some(absolute(value)?);
        }
    }
    context.insecure |= given.contains("insecure");
    set_oidc(&mut context.oidc, set.oidc)?;
    let credentials = [
        context.key_file.is_some(),
        context.token_file.is_some(),
        context.oidc.is_some(),
    ];
    if credentials.into_iter().filter(|set| *set).count() > 1 {
        bail!("a context has one credential: remove the other with --unset key-file, token-file or oidc");
    }
    file.contexts.insert(set.name.clone(), context.clone());
    if set.make_current || file.current.is_none() {
        file.current = Some(set.name);
    }
    Ok(context)
}

fn unset(context: &mut Context, field: UnsetField) {
    match field {
        UnsetField::Manager => context.manager = None,
        UnsetField::Issuer => context.issuer = None,
        UnsetField::Console => context.console = None,
        UnsetField::Ca => context.ca = None,
        UnsetField::Insecure => context.insecure = false,
        UnsetField::KeyFile => context.key_file = None,
        UnsetField::TokenFile => context.token_file = None,
        UnsetField::Oidc => context.oidc = None,
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is not a path", path.display()))
}

/// An address of a service: scheme, host, and nothing that could be a secret.
fn check_address(address: &str) -> Result<()> {
    let uri: Option<http::Uri> = address.parse().ok();
    let good = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("https" | "http"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && !uri
                .authority()
                .is_some_and(|authority| authority.as_str().contains('@'))
    });
    if !good {
        bail!("{address:?} is not an address like https://berth.example.org:8081");
    }
    Ok(())
}

/// Applies the options about the identity provider.
pub(super) fn set_oidc(oidc: &mut Option<Oidc>, args: OidcArgs) -> Result<()> {
    let given = args.oidc_issuer.is_some()
        || args.oidc_client_id.is_some()
        || !args.oidc_scopes.is_empty()
        || args.oidc_audience.is_some()
        || args.oidc_resource.is_some()
        || args.oidc_token.is_some()
        || args.oidc_ca.is_some();
    if !given {
        return Ok(());
    }
    let before = oidc.take();
    let mut now = match (before, args.oidc_issuer, args.oidc_client_id) {
        (Some(before), issuer, client_id) => Oidc {
            issuer: issuer.unwrap_or(before.issuer.clone()),
            client_id: client_id.unwrap_or(before.client_id.clone()),
            ..before
        },
        (None, Some(issuer), Some(client_id)) => Oidc {
            issuer,
            client_id,
            scopes: default_scopes(),
            audience: None,
            resource: None,
            token: config_file::TokenKind::default(),
            ca: None,
        },
        (None, _, _) => bail!("an identity provider needs --oidc-issuer and --oidc-client-id"),
    };
    login::check_issuer(&now.issuer)?;
    if !args.oidc_scopes.is_empty() {
        now.scopes = args.oidc_scopes;
    }
    now.audience = args.oidc_audience.or(now.audience);
    now.resource = args.oidc_resource.or(now.resource);
    now.token = args.oidc_token.unwrap_or(now.token);
    now.ca = args.oidc_ca.as_deref().map(absolute).transpose()?.or(now.ca);
    *oidc = Some(now);
    Ok(())
}

fn credential(context: &Context) -> String {
    match (&context.key_file, &context.token_file, &context.oidc) {
        (Some(file), _, _) => format!("key in {}", file.display()),
        (None, Some(file), _) => format!("token in {}", file.display()),
        (None, None, Some(oidc)) => format!("sign-in at {}", oidc.issuer),
        (None, None, None) => String::new(),
    }
}

fn list(output: Output, file: &ConfigFile) {
    let current = |name: &String| file.current.as_ref() == Some(name);
    let rows = file.contexts.iter().map(|(name, context)| {
        vec![
            if current(name) { "*" } else { "" }.to_owned(),
            name.clone(),
            context.manager.clone().unwrap_or_default(),
            credential(context),
        ]
    });
    let objects: Vec<Value> = file
        .contexts
        .iter()
        .map(|(name, context)| object(name, context, current(name)))
        .collect();
    output::rows(
        output,
        &["CURRENT", "CONTEXT", "MANAGER", "CREDENTIAL"],
        rows.collect(),
        &objects,
    );
}

fn object(name: &str, context: &Context, current: bool) -> Value {
    let mut object = json!(context);
    object["name"] = json!(name);
    object["current"] = json!(current);
    object
}

fn show(output: Output, name: &str, context: &Context) {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let fields = [
        ("context", name.to_owned()),
        ("manager", text(&context.manager)),
        ("issuer", text(&context.issuer)),
        ("console", text(&context.console)),
        (
            "ca",
            context
                .ca
                .as_ref()
                .map(|ca| ca.display().to_string())
                .unwrap_or_default(),
        ),
        ("insecure", if context.insecure { "yes" } else { "" }.to_owned()),
        ("credential", credential(context)),
        (
            "client id",
            context
                .oidc
                .as_ref()
                .map(|oidc| oidc.client_id.clone())
                .unwrap_or_default(),
        ),
        (
            "scopes",
            context
                .oidc
                .as_ref()
                .map(|oidc| oidc.scopes.join(" "))
                .unwrap_or_default(),
        ),
    ];
    let mut json = json!(context);
    json["name"] = json!(name);
    output::fields(output, &fields, &json);
}
