//! Traces reach a real collector: a client's `traceparent` is the parent of the
//! proxy's, session-manager's and token-issuer's spans, and a call that is not
//! sampled or has no valid token has none.

use anyhow::{Context as _, Result, ensure};
use e2e::collector::{Collector, Span};
use e2e::{Engine, Stack, StackOptions};
use session_proto::spark::analyze_plan_request::{Analyze, SparkVersion};
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{AnalyzePlanRequest, UserContext};
use session_proto::v1::IssueSessionTokenRequest;
use session_proto::v1::token_service_client::TokenServiceClient;
use tonic::Request;
use tonic::transport::Endpoint;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ISSUE_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const REFUSED_TRACE: &str = "7c0ffee0c0ffee0c0ffee0c0ffee0c0f";
const UNSAMPLED_TRACE: &str = "deadbeefdeadbeefdeadbeefdeadbeef";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

fn traceparent(trace: &str, sampled: bool) -> String {
    format!("00-{trace}-{CLIENT_SPAN}-0{}", u8::from(sampled))
}

/// A small query of a new client in this trace.
async fn query(stack: &Stack, token: &str, traceparent: &str) -> Result<()> {
    let endpoint = Endpoint::from_shared(format!("http://{}", stack.proxy_address))?;
    let mut request = Request::new(AnalyzePlanRequest {
        session_id: uuid::Uuid::new_v4().to_string(),
        user_context: Some(UserContext::default()),
        analyze: Some(Analyze::SparkVersion(SparkVersion {})),
        ..AnalyzePlanRequest::default()
    });
    let headers = request.metadata_mut();
    headers.insert("authorization", format!("Bearer {token}").parse()?);
    headers.insert("traceparent", traceparent.parse()?);
    let mut client = SparkConnectServiceClient::new(endpoint.connect().await?);
    client.analyze_plan(request).await?;
    Ok(())
}

async fn issue(stack: &Stack, session: &str, traceparent: &str) -> Result<String> {
    let endpoint = Endpoint::from_shared(stack.issuer_uri().to_owned())?;
    let mut request = Request::new(IssueSessionTokenRequest {
        session_id: session.to_owned(),
        ttl: None,
    });
    let headers = request.metadata_mut();
    headers.insert(
        "authorization",
        format!("Bearer {}", stack.key_of("ada")).parse()?,
    );
    headers.insert("traceparent", traceparent.parse()?);
    let mut client = TokenServiceClient::new(endpoint.connect().await?);
    Ok(client.issue_session_token(request).await?.into_inner().token)
}

/// The span of this name in the trace.
fn span<'a>(spans: &'a [Span], trace: &str, name: &str) -> Result<&'a Span> {
    let mut of_trace = spans.iter().filter(|span| span.trace == trace);
    let found = of_trace.find(|span| span.name == name);
    found.with_context(|| format!("no span {name} of trace {trace} in {spans:#?}"))
}

#[tokio::test]
async fn a_clients_trace_goes_through_every_service() -> Result<()> {
    let collector = Collector::start().await?;
    let mut stack = Stack::prepare(&StackOptions::default()).await?;
    for service in [&mut stack.manager, &mut stack.issuer, &mut stack.proxy] {
        service.set_env("BERTH__TELEMETRY__OTLP_ENDPOINT", &collector.endpoint());
        service.set_env("BERTH__TELEMETRY__SAMPLE_RATIO", "0");
        service.set_env("BERTH__TELEMETRY__LEVEL", "info,spark_proxy=debug");
    }
    stack.manager.start()?;
    stack.issuer.start_ready().await?;
    stack.manager.ready().await?;
    stack.proxy.start_ready().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;

    let token = issue(&stack, &session, &traceparent(ISSUE_TRACE, true)).await?;
    let refused = query(&stack, "x.y.z", &traceparent(REFUSED_TRACE, true)).await;
    ensure!(refused.is_err(), "a forged token passed");
    // The first call with a valid token looks the route up.
    query(&stack, &token, &traceparent(TRACE, true)).await?;
    query(&stack, &token, &traceparent(UNSAMPLED_TRACE, false)).await?;

    // Each service sends its spans every few seconds.
    const ANALYZE: &str = "/spark.connect.SparkConnectService/AnalyzePlan";
    const RESOLVE: &str = "/berth.internal.v1.RouteService/ResolveRoute";
    const ISSUE: &str = "/berth.v1.TokenService/IssueSessionToken";
    const RECORD: &str = "/berth.internal.v1.TokenLedger/RecordToken";
    let wanted = [
        (TRACE, ANALYZE),
        (TRACE, RESOLVE),
        (ISSUE_TRACE, ISSUE),
        (ISSUE_TRACE, RECORD),
    ];
    let spans = collector
        .spans(|spans| {
            wanted
                .iter()
                .all(|(trace, name)| span(spans, trace, name).is_ok())
        })
        .await?;

    let call = span(&spans, TRACE, ANALYZE)?;
    assert_eq!(
        call.parent, CLIENT_SPAN,
        "the client's span is the parent of the proxy's"
    );
    let resolve = span(&spans, TRACE, "resolve")?;
    assert_eq!(resolve.parent, call.id, "the look-up is a part of the call");
    assert_eq!(
        span(&spans, TRACE, RESOLVE)?.parent,
        resolve.id,
        "session-manager answers the look-up"
    );
    for part in ["connect", "first_byte"] {
        assert_eq!(span(&spans, TRACE, part)?.parent, call.id, "{part}");
    }
    let issued = span(&spans, ISSUE_TRACE, ISSUE)?;
    assert_eq!(issued.parent, CLIENT_SPAN);
    assert_eq!(span(&spans, ISSUE_TRACE, RECORD)?.parent, issued.id);
    let ours = [TRACE, ISSUE_TRACE];
    let others: Vec<_> = spans
        .iter()
        .filter(|span| !ours.contains(&span.trace.as_str()))
        .collect();
    assert!(
        others.is_empty(),
        "not sampled or without a valid token, but exported: {others:#?}"
    );

    let log = stack.proxy.log();
    let line = log.lines().find(|line| line.contains("call refused"));
    let line = line.context("no log line of the refused call")?;
    assert!(
        line.contains(REFUSED_TRACE),
        "the log line names its trace: {line}"
    );
    Ok(())
}
