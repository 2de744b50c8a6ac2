//! Effective settings of a command: option, then environment, then context,
//! then default, each setting on its own.

use crate::config_file::{self, Context, Oidc};
use crate::login;
use crate::{Given, GlobalArgs, private_file};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

const DEFAULT_MANAGER: &str = "http://127.0.0.1:8081";
const DEFAULT_ISSUER: &str = "http://127.0.0.1:8083";

/// Where a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    Option,
    Environment,
    Context,
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Option => "option",
            Self::Environment => "environment",
            Self::Context => "context",
            Self::Default => "default",
        })
    }
}

/// A setting and its origin.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// Addresses and credential of a command.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The context in use, if any.
    pub(crate) context: Option<String>,
    pub(crate) manager: Setting<String>,
    pub(crate) issuer: Setting<String>,
    pub(crate) console: Option<Setting<String>>,
    pub(crate) ca: Option<Setting<PathBuf>>,
    pub(crate) insecure: bool,
    pub(crate) credential: Option<Setting<Credential>>,
}

/// Source of the credential.
#[derive(Clone)]
pub(crate) enum Credential {
    /// BERTH_KEY.
    Key(String),
    /// BERTH_TOKEN.
    Token(String),
    KeyFile(PathBuf),
    TokenFile(PathBuf),
    /// The stored sign-in of a context.
    Login {
        context: String,
        oidc: Box<Oidc>,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Credential {
    /// The kind, for programs.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) | Self::KeyFile(_) => "service-account-key",
            Self::Token(_) | Self::TokenFile(_) => "token",
            Self::Login { .. } => "login",
        }
    }

    /// The source for people, without the secret.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Key(_) => "BERTH_KEY".to_owned(),
            Self::Token(_) => "BERTH_TOKEN".to_owned(),
            Self::KeyFile(file) | Self::TokenFile(file) => file.display().to_string(),
            Self::Login { context, oidc } => format!("sign-in of context {context} at {}", oidc.issuer),
        }
    }

    /// The secret itself; files are read again, and a sign-in is renewed.
    pub(crate) async fn secret(&self) -> Result<String> {
        match self {
            Self::Key(text) | Self::Token(text) => Ok(text.clone()),
            Self::KeyFile(file) | Self::TokenFile(file) => {
                let file = file.clone();
                // A network file system can take long.
                tokio::task::spawn_blocking(move || read_credential(&file)).await?
            }
            Self::Login { context, oidc } => login::current_token(context, oidc).await,
        }
    }
}

fn read_credential(file: &Path) -> Result<String> {
    // Opening a pipe would wait for its writer, and its text cannot be read again.
    if std::fs::metadata(file).is_ok_and(|metadata| !metadata.is_file()) {
        bail!(
            "{} is not a regular file: write the key or token to a file, or set BERTH_KEY or BERTH_TOKEN",
            file.display()
        );
    }
    let text = private_file::read(file)?
        .with_context(|| format!("there is no file {}", file.display()))?
        .trim()
        .to_owned();
    if text.is_empty() {
        bail!("{} is empty: it must contain a key or token", file.display());
    }
    Ok(text)
}

/// The settings in effect.
pub(crate) fn resolve(args: &GlobalArgs, given: &Given) -> Result<Target> {
    if args.key.is_some() || args.bearer.is_some() {
        bail!(
            "a secret is not accepted as an argument, because other users of this machine can read it: \
             use BERTH_KEY or --key-file, BERTH_TOKEN or --token-file"
        );
    }
    let file = config_file::load_in_use()?;
    let name = args.context.clone().filter(|name| !name.is_empty());
    let name = name.or_else(|| file.current.clone());
    let none = Context::default();
    let context = name.as_deref().map_or(Ok(&none), |name| file.context(name))?;

    let option = |id: &str| {
        if given.contains(id) {
            Origin::Option
        } else {
            Origin::Environment
        }
    };
    let text = |id: &str, arg: &Option<String>, of_context: &Option<String>| {
        let of_arg = arg.clone().filter(|value| !value.is_empty());
        of_arg
            .map(|value| (value, option(id)))
            .or_else(|| of_context.clone().map(|value| (value, Origin::Context)))
            .map(|(value, origin)| Setting { value, origin })
    };
    let default = |value: &str| Setting {
        value: value.to_owned(),
        origin: Origin::Default,
    };
    let ca = match (&args.ca, &context.ca) {
        (Some(ca), _) if !ca.as_os_str().is_empty() => Some((ca.clone(), option("ca"))),
        (_, of_context) => of_context.clone().map(|ca| (ca, Origin::Context)),
    };
    Ok(Target {
        manager: text("manager", &args.manager, &context.manager).unwrap_or_else(|| default(DEFAULT_MANAGER)),
        issuer: text("issuer", &args.issuer, &context.issuer).unwrap_or_else(|| default(DEFAULT_ISSUER)),
        console: text("console", &args.console, &context.console),
        ca: ca.map(|(value, origin)| Setting { value, origin }),
        insecure: args.insecure || context.insecure,
        credential: credential(args, given, name.as_deref(), context)?,
        context: name,
    })
}

/// The credential: that of the options, else the only one of the environment,
/// else that of the context.
fn credential(
    args: &GlobalArgs,
    given: &Given,
    name: Option<&str>,
    context: &Context,
) -> Result<Option<Setting<Credential>>> {
    let file = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
    let key_file = file(&args.key_file).map(Credential::KeyFile);
    let token_file = file(&args.token_file).map(Credential::TokenFile);
    let (mut options, mut environment) = (Vec::new(), Vec::new());
    for (id, found) in [("key_file", key_file), ("token_file", token_file)] {
        match found {
            Some(found) if given.contains(id) => options.push(found),
            Some(found) => environment.push(found),
            None => {}
        }
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    environment.extend(variable("BERTH_KEY").map(Credential::Key));
    environment.extend(variable("BERTH_TOKEN").map(Credential::Token));

    for (found, origin) in [(options, Origin::Option), (environment, Origin::Environment)] {
        if found.len() > 1 {
            bail!(
                "several credentials were given as {origin}: use one of BERTH_KEY, BERTH_KEY_FILE (--key-file), BERTH_TOKEN, BERTH_TOKEN_FILE (--token-file) and unset the others"
            );
        }
        if let Some(value) = found.into_iter().next() {
            return Ok(Some(Setting { value, origin }));
        }
    }
    let of_context = match (&context.key_file, &context.token_file, &context.oidc) {
        (Some(file), _, _) => Some(Credential::KeyFile(file.clone())),
        (None, Some(file), _) => Some(Credential::TokenFile(file.clone())),
        (None, None, Some(oidc)) => Some(Credential::Login {
            context: name.unwrap_or_default().to_owned(),
            oidc: Box::new(oidc.clone()),
        }),
        (None, None, None) => None,
    };
    Ok(of_context.map(|value| Setting {
        value,
        origin: Origin::Context,
    }))
}
