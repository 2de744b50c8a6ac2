//! Steps at session-manager, token-issuer and the console.

use super::call::{Answer, Call, Connection};
use super::connection_string::{self, ConnectionString};
use super::fault::{Checked, Fault};
use super::report::{Part, Report};
use super::settings::{MAX_CLOCK_DIFFERENCE, Settings};
use super::transport::Endpoint;
use crate::args::Doctor;
use http::Request;
use prost::Message as _;
use service_kit::http_client;
use service_kit::tls::{ClientTls, ClientTlsFiles, HTTP1};
use session_core::{Clock as _, SystemClock};
use session_proto::convert;
use session_proto::v1::{self, SessionStatus};
use std::time::Duration;

const DESCRIBE_SESSION: &str = "/berth.v1.SessionService/DescribeSession";
const LIST_SESSIONS: &str = "/berth.v1.SessionService/ListSessions";
const DESCRIBE_CLUSTER: &str = "/berth.v1.ClusterService/DescribeCluster";
const ISSUE_TOKEN: &str = "/berth.v1.TokenService/IssueSessionToken";
const LIST_TOKENS: &str = "/berth.v1.TokenService/ListSessionTokens";
const REVOKE_TOKEN: &str = "/berth.v1.TokenService/RevokeSessionToken";

/// An id of the right form that no session has.
const NO_SESSION: &str = "s-00000000000000000000";
/// Lifetime of the token for the check: the shortest.
const TOKEN_TTL: Duration = Duration::from_secs(60);
/// Maximum size of the console's page in bytes.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// A token for the check, and what was learned about its session.
pub(super) struct Issued {
    pub(super) string: ConnectionString,
    pub(super) cluster: Option<v1::Cluster>,
    session: String,
    token_id: String,
}

/// Checks the APIs, and the session if there is one. Returns a new token for
/// the check of the proxy.
pub(super) async fn check(settings: &Settings, args: &Doctor, report: &mut Report) -> Option<Issued> {
    let session = manager(settings, args, report).await;
    let live = session.as_ref().is_some_and(|(session, _)| {
        !matches!(session.status(), SessionStatus::Closed | SessionStatus::Failed)
    });
    let issued = issuer(settings, args, live, report).await;
    console(settings, args, report).await;
    let (string, token_id) = issued?;
    let (session, cluster) = session?;
    Some(Issued {
        string,
        cluster,
        session: session.id,
        token_id,
    })
}

/// The endpoint of an address that [`super::settings`] has checked.
fn endpoint(address: &str, settings: &Settings, args: &Doctor) -> Checked<Endpoint> {
    let invalid = || Fault::AddressInvalid.seen(format!("{address:?}"));
    let uri: http::Uri = address.parse().map_err(|_| invalid())?;
    let tls = uri.scheme_str() == Some("https");
    Ok(Endpoint {
        host: uri.host().ok_or_else(invalid)?.to_owned(),
        port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        tls,
        ca: settings.ca.clone(),
        limit: args.timeout,
    })
}

/// Goes to a server step by step.
pub(super) async fn reach(part: Part, endpoint: &Endpoint, report: &mut Report) -> Option<Connection> {
    let addresses = report.take(part, "name", endpoint.resolve().await)?;
    let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    report.ok(part, "name", format!("{} is {}", endpoint.host, shown.join(", ")));
    report.take(part, "connect", endpoint.connect().await)?;
    report.ok(
        part,
        "connect",
        format!("port {} accepts connections", endpoint.port),
    );
    if endpoint.tls {
        report.take(part, "tls", endpoint.open().await)?;
        report.ok(part, "tls", "the certificate is trusted, and h2 was chosen");
    }
    report.take(part, "http2", endpoint.check_http2().await)?;
    report.ok(part, "http2", "HTTP/2 is spoken");
    report.take(part, "http2", Connection::open(endpoint).await)
}

async fn call(
    connection: &mut Connection,
    settings: &Settings,
    args: &Doctor,
    path: &'static str,
    message: Vec<u8>,
) -> Checked<Answer> {
    let call = Call {
        path,
        bearer: &settings.secret,
        session: None,
        message,
        // The services themselves wait for each other.
        limit: args.timeout.max(Duration::from_secs(20)),
    };
    connection.call(&call).await
}

async fn manager(
    settings: &Settings,
    args: &Doctor,
    report: &mut Report,
) -> Option<(v1::Session, Option<v1::Cluster>)> {
    let part = Part::Manager;
    let endpoint = report.take(part, "address", endpoint(&settings.manager, settings, args))?;
    let mut connection = reach(part, &endpoint, report).await?;
    let Some(session_id) = &args.session else {
        let list = v1::ListSessionsRequest {
            page_size: 1,
            ..v1::ListSessionsRequest::default()
        };
        let answer = call(
            &mut connection,
            settings,
            args,
            LIST_SESSIONS,
            list.encode_to_vec(),
        )
        .await;
        let listed = answer.and_then(|answer| answer.decode::<v1::ListSessionsResponse>(part));
        report.take(part, "call", listed)?;
        report.ok(part, "call", "the credential is accepted");
        return None;
    };
    let request = v1::DescribeSessionRequest {
        session_id: session_id.clone(),
        wait_ready: None,
    };
    let answer = call(
        &mut connection,
        settings,
        args,
        DESCRIBE_SESSION,
        request.encode_to_vec(),
    )
    .await;
    let described = answer.and_then(|answer| answer.decode::<v1::DescribeSessionResponse>(part));
    let session = report.take(part, "call", described)?.session.unwrap_or_default();
    report.ok(part, "call", "the credential is accepted");
    match state(&session) {
        Ok(text) => report.ok(Part::Session, "state", text),
        Err(finding) => report.found(Part::Session, "state", finding),
    }
    let request = v1::DescribeClusterRequest {
        name: session.cluster.clone(),
    };
    let answer = call(
        &mut connection,
        settings,
        args,
        DESCRIBE_CLUSTER,
        request.encode_to_vec(),
    )
    .await;
    let cluster = answer.and_then(|answer| answer.decode::<v1::DescribeClusterResponse>(part));
    Some((session, cluster.ok().and_then(|described| described.cluster)))
}

/// What the state of a session means for a client.
fn state(session: &v1::Session) -> Checked<String> {
    let message = if session.status_message.is_empty() {
        session.reason.clone()
    } else {
        format!("{}: {}", session.reason, session.status_message)
    };
    match session.status() {
        SessionStatus::Active => Ok("active".to_owned()),
        SessionStatus::Pending => Err(Fault::SessionStarting.seen(format!("{}; {message}", session.phase))),
        SessionStatus::Idle => Err(Fault::SessionIdle.seen(message)),
        SessionStatus::Closed => Err(Fault::SessionClosed.seen(message)),
        SessionStatus::Failed => Err(Fault::SessionFailed.seen(message)),
        SessionStatus::Unspecified => {
            Err(Fault::WrongService
                .seen("the status is unknown to this command, which is older than the server"))
        }
    }
}

/// Asks for the tokens of a session that does not exist: this refusal shows
/// that all else is right.
async fn without_session(
    connection: &mut Connection,
    settings: &Settings,
    args: &Doctor,
    report: &mut Report,
) {
    let part = Part::Issuer;
    let request = v1::ListSessionTokensRequest {
        session_id: NO_SESSION.to_owned(),
    };
    let answer = call(connection, settings, args, LIST_TOKENS, request.encode_to_vec()).await;
    let Some(answer) = report.take(part, "call", answer) else {
        return;
    };
    let finding = answer.finding(part);
    if finding.fault == Fault::SessionNotFound {
        report.ok(part, "call", "the credential is accepted");
    } else {
        report.found(part, "call", finding);
    }
}

async fn issuer(
    settings: &Settings,
    args: &Doctor,
    live: bool,
    report: &mut Report,
) -> Option<(ConnectionString, String)> {
    let part = Part::Issuer;
    let endpoint = report.take(part, "address", endpoint(&settings.issuer, settings, args))?;
    let mut connection = reach(part, &endpoint, report).await?;
    let Some(session_id) = args.session.as_ref().filter(|_| live) else {
        without_session(&mut connection, settings, args, report).await;
        return None;
    };
    let request = v1::IssueSessionTokenRequest {
        session_id: session_id.clone(),
        ttl: Some(convert::duration(TOKEN_TTL)),
    };
    let before = SystemClock.now().as_secs();
    let answer = call(
        &mut connection,
        settings,
        args,
        ISSUE_TOKEN,
        request.encode_to_vec(),
    )
    .await;
    let after = SystemClock.now().as_secs();
    let issued = answer.and_then(|answer| answer.decode::<v1::IssueSessionTokenResponse>(part));
    let issued = report.take(part, "call", issued)?;
    report.ok(part, "call", "issued a token of 60 s for this check");
    let theirs = issued
        .issued_at
        .as_ref()
        .map_or(before, |at| convert::from_timestamp(at).as_secs());
    let difference = theirs.saturating_sub(after).max(before.saturating_sub(theirs));
    if difference > MAX_CLOCK_DIFFERENCE {
        let text = format!("the clock of this machine differs from token-issuer's by {difference} s");
        report.found(part, "clock", Fault::ClockOff.seen(text));
    } else {
        report.ok(part, "clock", "the clocks agree");
    }
    let string = report.take(part, "string", connection_string::parse(&issued.connection_url))?;
    Some((string, issued.token_id))
}

/// Revokes the token of the check; it expires soon in any case.
pub(super) async fn revoke(settings: &Settings, issued: &Issued) {
    let limit = Duration::from_secs(5);
    let uri: Option<http::Uri> = settings.issuer.parse().ok();
    let Some(uri) = uri else { return };
    let tls = uri.scheme_str() == Some("https");
    let endpoint = Endpoint {
        host: uri.host().unwrap_or_default().to_owned(),
        port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        tls,
        ca: settings.ca.clone(),
        limit,
    };
    let request = v1::RevokeSessionTokenRequest {
        session_id: issued.session.clone(),
        token_id: issued.token_id.clone(),
    };
    if let Ok(mut connection) = Connection::open(&endpoint).await {
        let call = Call {
            path: REVOKE_TOKEN,
            bearer: &settings.secret,
            session: None,
            message: request.encode_to_vec(),
            limit,
        };
        // What fails here is of no consequence after a minute.
        let _ = connection.call(&call).await;
    }
}

async fn console(settings: &Settings, args: &Doctor, report: &mut Report) {
    let Some(address) = &settings.console else { return };
    let got = tokio::time::timeout(args.timeout, get(address, settings)).await;
    let problem = match got {
        Ok(Ok(status)) if status.is_success() || status.is_redirection() => {
            report.ok(Part::Console, "call", format!("{address} answers"));
            return;
        }
        Ok(Ok(status)) => format!("{address}: HTTP status {status}"),
        Ok(Err(error)) => format!("{address}: {error:#}"),
        Err(_) => format!("{address} does not answer within {:?}", args.timeout),
    };
    report.found(Part::Console, "call", Fault::ConsoleUnreachable.seen(problem));
}

async fn get(address: &str, settings: &Settings) -> anyhow::Result<http::StatusCode> {
    let files = ClientTlsFiles {
        ca: settings.ca.clone(),
        ..ClientTlsFiles::default()
    };
    let tls = address
        .starts_with("https://")
        .then(|| ClientTls::load(&files, HTTP1))
        .transpose()?;
    let request = Request::get(address).body(bytes::Bytes::new())?;
    Ok(http_client::send(request, tls, MAX_PAGE_BYTES).await?.status())
}
