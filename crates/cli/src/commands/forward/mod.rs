//! `berth connect` and `berth exec`: a local Spark Connect port in plaintext, for any client.
//!
//! ```text
//! client -- h2c --> listener -> connection -> call -> exchange -- TLS, h2 --> spark-proxy
//!                                  |            |         both directions, frame by frame
//!                                access       tokens
//!                           secret or user    renewed in the background
//! ```
//!
//! Messages are not decoded. A call that spark-proxy provably did not process is sent again, while
//! the first bytes of its request are kept: after a lost connection, an expired token, or a wake-up
//! that takes longer than spark-proxy holds a call.

mod access;
mod call;
mod connection;
mod exchange;
mod exec;
mod listener;
mod peer;
mod readyz;
mod reply;
mod request_body;
mod server;
mod session;
mod signals;
mod tokens;
mod upstream;

pub(crate) use exec::exec;

use crate::args::{AccessArgs, Connect};
use crate::settings::Target;
use crate::{Output, output};
use access::Access;
use anyhow::{Result, anyhow, bail};
use listener::{Listener, Place};
use serde_json::json;
use server::Server;
use session::Session;
use signals::Signals;

/// Serves a session at a local port or socket until a signal or the end of the session.
pub(crate) async fn connect(target: &Target, output: Output, args: Connect) -> Result<()> {
    let mut signals = Signals::install()?;
    let access = access_of(&args.access, args.socket.is_some())?;
    let place = match args.socket {
        Some(path) => Place::Socket(path),
        None => Place::Port(args.port),
    };
    let listener = Listener::bind(place).await?;
    let session = Session::open(target, args.session, args.new, &mut signals).await?;
    let served = serve(
        target,
        output,
        &session,
        listener,
        access,
        &args.access,
        &mut signals,
    )
    .await;
    session.close(target).await;
    served
}

async fn serve(
    target: &Target,
    output: Output,
    session: &Session,
    listener: Listener,
    access: Access,
    args: &AccessArgs,
    signals: &mut Signals,
) -> Result<()> {
    let starting = Server::start(target, session.id(), listener, access, args);
    let server = signals.unless_stopped(starting).await?;
    announce(output, &server, session);
    let ended = tokio::select! {
        over = server.session_over() => Err(anyhow!(over)),
        _ = signals.stop() => Ok(()),
    };
    server.stop().await;
    ended
}

/// Prints the address for clients.
fn announce(output: Output, server: &Server, session: &Session) {
    let url = server.connection_url();
    match output {
        Output::Json => output::object(&json!({
            "session": session.id(),
            "address": server.address(),
            "connection_url": url,
        })),
        Output::Table => output::line(&url),
    }
    let end = if session.is_created() {
        "Ctrl-C ends it and closes the session"
    } else {
        "Ctrl-C ends it"
    };
    output::note(&format!(
        "Forwarding {} to session {}; {end}.",
        server.address(),
        session.id()
    ));
    server.print_access_note();
}

/// The rule for local clients.
fn access_of(args: &AccessArgs, is_socket: bool) -> Result<Access> {
    if args.trust_local_users {
        return Ok(Access::all_local_users());
    }
    if is_socket {
        return Ok(Access::socket());
    }
    if args.trust_own_processes {
        if !cfg!(target_os = "linux") {
            bail!(
                "--trust-own-processes needs Linux: give clients the secret, use --socket, or --trust-local-users"
            );
        }
        return Ok(Access::own_processes());
    }
    Ok(Access::secret())
}
