//! One function per command, by noun.

mod catalogs;
mod clusters;
mod keys;
mod operations;
mod orgs;
mod sessions;
mod tokens;
mod watch;

use crate::Cli;
use crate::args::{Catalogs, Clusters, Command, Orgs};
use anyhow::Result;

pub(crate) async fn run(cli: Cli) -> Result<()> {
    let Cli {
        target,
        output,
        command,
    } = cli;
    match command {
        Command::Create(create) => sessions::create_session(&target, output, create).await,
        Command::List { all, limit } => sessions::list(&target, output, all, limit).await,
        Command::Show { session } => sessions::show(&target, output, session).await,
        Command::Watch { session } => watch::watch(&target, output, session).await,
        Command::Events { session } => sessions::events(&target, output, session).await,
        Command::Close { sessions } => sessions::close(&target, output, sessions).await,
        Command::Warm { session } => sessions::warm(&target, output, session).await,
        Command::Extend { session, until } => sessions::extend(&target, output, session, until).await,
        Command::KeepAlive { session, until } => sessions::keep_alive(&target, output, session, until).await,
        Command::Update(update) => sessions::update(&target, output, update).await,
        Command::Ops { session } => operations::list(&target, output, session).await,
        // An empty list means all operations.
        Command::Interrupt {
            session,
            operations,
            all: _,
        } => operations::interrupt(&target, output, session, operations).await,
        Command::Token { session, ttl } => tokens::token(&target, output, session, ttl).await,
        Command::Tokens { session } => tokens::tokens(&target, output, session).await,
        Command::Revoke {
            session,
            token,
            all: _,
        } => tokens::revoke(&target, session, token).await,
        Command::Clusters { command } => {
            clusters::run(&target, output, command.unwrap_or(Clusters::List)).await
        }
        Command::Catalogs { command } => {
            catalogs::run(&target, output, command.unwrap_or(Catalogs::List)).await
        }
        Command::Orgs { command } => orgs::run(&target, output, command.unwrap_or(Orgs::List)).await,
        Command::DisablePrincipal(who) => orgs::set_disabled(&target, output, who, true).await,
        Command::EnablePrincipal(who) => orgs::set_disabled(&target, output, who, false).await,
        Command::Keys(command) => keys::run(output, command).await,
    }
}
