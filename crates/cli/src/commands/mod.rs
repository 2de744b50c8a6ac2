//! One function per command, by noun.

mod audit;
mod catalogs;
mod clusters;
mod completion;
mod contexts;
mod environment;
mod forward;
mod identity;
mod keys;
mod operations;
mod orgs;
mod sessions;
mod tokens;
mod watch;

use crate::args::{
    CatalogCommand, ClusterCommand, Command, FlatOperationCommand, FlatTokenCommand, OperationCommand,
    OrgCommand, SessionCommand, TokenCommand, TokenGroup,
};
use crate::settings::{self, Target};
use crate::{Cli, Given, Output, doctor, output};
use anyhow::{Result, bail};

pub(crate) async fn run(cli: Cli, given: &Given) -> Result<()> {
    let Cli { global, command } = cli;
    let output = global.output;
    if global.quiet {
        output::be_quiet();
    }
    let command = match command {
        // Commands that need no server, or work on broken settings.
        Command::Keys(command) => return keys::run(output, command).await,
        Command::Completion { shell } => return completion::run(shell),
        Command::Context(command) => return contexts::run(&global, given, command).await,
        Command::Doctor(doctor) => return doctor::run(&global, given, doctor).await,
        Command::Env(env) if env.unset => return environment::unset(&env),
        Command::Login(login) => return identity::login(&global, given, login).await,
        command => command,
    };
    let target = settings::resolve(&global, given)?;
    match command {
        Command::Session(command) | Command::FlatSession(command) => session(&target, output, command).await,
        Command::Token(group) => token(&target, output, group).await,
        Command::FlatToken(FlatTokenCommand::Tokens { session }) => {
            tokens::tokens(&target, output, session).await
        }
        Command::FlatToken(FlatTokenCommand::Revoke(revoke)) => tokens::revoke(&target, revoke).await,
        Command::Operation(OperationCommand::List { session })
        | Command::FlatOperation(FlatOperationCommand::Ops { session }) => {
            operations::list(&target, output, session).await
        }
        Command::Operation(OperationCommand::Interrupt(interrupt))
        | Command::FlatOperation(FlatOperationCommand::Interrupt(interrupt)) => {
            operations::interrupt(&target, output, interrupt).await
        }
        Command::Cluster { command } => {
            clusters::run(&target, output, command.unwrap_or(ClusterCommand::List)).await
        }
        Command::Catalog { command } => {
            catalogs::run(&target, output, command.unwrap_or(CatalogCommand::List)).await
        }
        Command::Org { command } => orgs::run(&target, output, command.unwrap_or(OrgCommand::List)).await,
        Command::FlatPrincipal(command) => orgs::principal(&target, output, command).await,
        Command::Audit(args) => audit::audit(&target, output, args).await,
        Command::Usage(args) => audit::usage(&target, output, args).await,
        Command::Connect(connect) => Box::pin(forward::connect(&target, output, *connect)).await,
        Command::Exec(exec) => Box::pin(forward::exec(&target, *exec)).await,
        Command::Env(env) => environment::print(&target, output, env).await,
        Command::Open { session } => environment::open(&target, output, session).await,
        Command::Logout => identity::logout(&target, output).await,
        Command::Whoami => identity::whoami(&target, output).await,
        Command::Keys(_)
        | Command::Completion { .. }
        | Command::Context(_)
        | Command::Doctor(_)
        | Command::Login(_) => Ok(()),
    }
}

async fn session(target: &Target, output: Output, command: SessionCommand) -> Result<()> {
    match command {
        SessionCommand::Create(create) => sessions::create_session(target, output, create).await,
        SessionCommand::List { all, limit } => sessions::list(target, output, all, limit).await,
        SessionCommand::Describe { session, wait } => sessions::show(target, output, session, wait).await,
        SessionCommand::Watch { session } => watch::watch(target, output, session).await,
        SessionCommand::Events { session } => sessions::events(target, output, session).await,
        SessionCommand::Close { sessions } => sessions::close(target, output, sessions).await,
        SessionCommand::Warm { session } => sessions::warm(target, output, session).await,
        SessionCommand::Extend { session, until } => sessions::extend(target, output, session, until).await,
        SessionCommand::KeepAlive { session, until } => {
            sessions::keep_alive(target, output, session, until).await
        }
        SessionCommand::Update(update) => sessions::update(target, output, update).await,
    }
}

async fn token(target: &Target, output: Output, group: TokenGroup) -> Result<()> {
    let (session, ttl) = match (group.command, group.session) {
        (Some(TokenCommand::Issue { session, ttl }), None) => (session, ttl),
        (Some(TokenCommand::List { session }), None) => return tokens::tokens(target, output, session).await,
        (Some(TokenCommand::Revoke(revoke)), None) => return tokens::revoke(target, revoke).await,
        (None, Some(session)) => (session, group.ttl),
        (Some(_), Some(_)) | (None, None) => {
            bail!(
                "use `berth token issue SESSION`, `berth token list SESSION` or `berth token revoke SESSION`"
            )
        }
    };
    tokens::token(target, output, session, ttl).await
}
