//! Steps at the Spark Connect port.
//!
//! The call is `ReleaseSession` of a Spark session that does not exist: it is
//! authenticated and routed as every call, wakes nothing and creates nothing.

use super::apis::reach;
use super::call::{Answer, Call, Connection};
use super::connection_string::ConnectionString;
use super::fault::{Checked, Fault};
use super::report::{Part, Report};
use super::transport::Endpoint;
use crate::args::Doctor;
use prost::Message as _;
use session_proto::spark;
use std::path::Path;
use std::time::Duration;
use tonic::Code;

const RELEASE_SESSION: &str = "/spark.connect.SparkConnectService/ReleaseSession";
const ANALYZE_PLAN: &str = "/spark.connect.SparkConnectService/AnalyzePlan";
/// Limit of a query: longer than the proxy holds it while compute starts.
const QUERY_TIMEOUT: Duration = Duration::from_secs(120);
/// Limit of a call with a large message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(120);
/// How this command names itself in calls.
const CLIENT_TYPE: &str = "berth-doctor";

/// Checks a connection string at its proxy.
pub(super) async fn check(
    name: &'static str,
    string: &ConnectionString,
    ca: Option<&Path>,
    args: &Doctor,
    report: &mut Report,
) {
    let endpoint = Endpoint {
        host: string.host.clone(),
        port: string.port,
        tls: string.tls,
        ca: ca.map(Path::to_path_buf),
        limit: args.timeout,
    };
    let Some(mut connection) = reach(Part::Proxy, &endpoint, report).await else {
        return;
    };
    let message = release_session(CLIENT_TYPE.to_owned());
    let answer = call(
        &mut connection,
        string,
        RELEASE_SESSION,
        message,
        args.timeout.max(Duration::from_secs(20)),
    );
    match judge(answer.await) {
        Ok(()) => report.ok(Part::Proxy, name, "the token is accepted"),
        // More calls would end the same way.
        Err(finding) => return report.found(Part::Proxy, name, finding),
    }
    more(&mut connection, &endpoint, string, args, report).await;
}

/// The steps of options.
async fn more(
    connection: &mut Connection,
    endpoint: &Endpoint,
    string: &ConnectionString,
    args: &Doctor,
    report: &mut Report,
) {
    let part = Part::Proxy;
    if let Some(bytes) = args.message_bytes {
        let step = message_of(connection, string, bytes).await;
        if report.take(part, "message", step).is_some() {
            report.ok(part, "message", format!("a message of {bytes} bytes arrives"));
        }
    }
    if args.query {
        let step = query(connection, string).await;
        if let Some(version) = report.take(part, "query", step) {
            report.ok(
                part,
                "query",
                format!("the engine answers with version {version}"),
            );
        }
    }
    if let Some(time) = args.quiet_for {
        let step = quiet(endpoint, string, time).await;
        if report.take(part, "quiet", step).is_some() {
            report.ok(part, "quiet", format!("a quiet connection lives for {time:?}"));
        }
    }
}

fn release_session(client_type: String) -> Vec<u8> {
    spark::ReleaseSessionRequest {
        session_id: uuid::Uuid::new_v4().to_string(),
        client_type: Some(client_type),
        ..spark::ReleaseSessionRequest::default()
    }
    .encode_to_vec()
}

async fn call(
    connection: &mut Connection,
    string: &ConnectionString,
    path: &'static str,
    message: Vec<u8>,
    limit: Duration,
) -> Checked<Answer> {
    let call = Call {
        path,
        bearer: &string.token,
        session: string.session.as_deref(),
        message,
        limit,
    };
    connection.call(&call).await
}

/// Any answer of an engine shows that the way there is right.
fn judge(answer: Checked<Answer>) -> Checked<()> {
    let answer = answer?;
    let is_engines = answer.reason().is_none()
        && matches!(
            answer.status.code(),
            Code::Ok
                | Code::Internal
                | Code::InvalidArgument
                | Code::NotFound
                | Code::FailedPrecondition
                | Code::Unknown
        );
    if is_engines {
        return Ok(());
    }
    Err(answer.finding(Part::Proxy))
}

async fn message_of(connection: &mut Connection, string: &ConnectionString, bytes: u64) -> Checked<()> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let message = release_session("x".repeat(bytes));
    let answer = call(connection, string, RELEASE_SESSION, message, MESSAGE_TIMEOUT).await?;
    // Whatever Berth says about it, it has arrived.
    match answer.reason() {
        Some(session_core::Reason::MalformedMessage) => Ok(()),
        Some(_) | None => judge(Ok(answer)),
    }
}

async fn query(connection: &mut Connection, string: &ConnectionString) -> Checked<String> {
    use spark::analyze_plan_request::{Analyze, SparkVersion};
    use spark::analyze_plan_response::Result as Analyzed;
    let spark_session = uuid::Uuid::new_v4().to_string();
    let request = spark::AnalyzePlanRequest {
        session_id: spark_session.clone(),
        client_type: Some(CLIENT_TYPE.to_owned()),
        analyze: Some(Analyze::SparkVersion(SparkVersion {})),
        ..spark::AnalyzePlanRequest::default()
    };
    let answer = call(
        connection,
        string,
        ANALYZE_PLAN,
        request.encode_to_vec(),
        QUERY_TIMEOUT,
    )
    .await?;
    let analyzed: spark::AnalyzePlanResponse = answer.decode(Part::Proxy)?;
    let release = spark::ReleaseSessionRequest {
        session_id: spark_session,
        ..spark::ReleaseSessionRequest::default()
    };
    // The engine ends an unused Spark session by itself too.
    let _ = call(
        connection,
        string,
        RELEASE_SESSION,
        release.encode_to_vec(),
        Duration::from_secs(10),
    )
    .await;
    match analyzed.result {
        Some(Analyzed::SparkVersion(version)) => Ok(version.version),
        Some(_) | None => Err(Fault::Berth.seen("the engine's answer has no version")),
    }
}

/// Keeps a connection without calls, then uses it.
async fn quiet(endpoint: &Endpoint, string: &ConnectionString, time: Duration) -> Checked<()> {
    let mut connection = Connection::open(endpoint).await?;
    let begun = std::time::Instant::now();
    let cut = |text: &str| {
        let seconds = begun.elapsed().as_secs_f64();
        Fault::CutWhileQuiet.seen(format!("a quiet connection was cut after {seconds:.1} s: {text}"))
    };
    if let Ok(text) = tokio::time::timeout(time, connection.closed()).await {
        return Err(cut(&text));
    }
    let message = release_session(CLIENT_TYPE.to_owned());
    let answer = call(
        &mut connection,
        string,
        RELEASE_SESSION,
        message,
        Duration::from_secs(20),
    )
    .await;
    match answer {
        Ok(_) => Ok(()),
        Err(finding) => Err(cut(&finding.detail)),
    }
}
