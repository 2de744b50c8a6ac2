//! Sail keep-alive. Sail ends a Spark session some time after the *start* of its last call, even
//! while a query runs (900 s by default, measured on 0.7.2). Where Berth starts Sail it sets that
//! time; on a shared server it cannot. So while a query runs there, the proxy makes a small call in
//! its Spark session at intervals. The small calls do not count as activity; the query itself does.

use crate::call::forward::Exchange;
use crate::grpc::framed;
use crate::grpc::method::Method;
use crate::upstream::headers::toward_backend;
use bytes::Bytes;
use http::{Request, header};
use service_kit::http2::request_capacity;
use session_core::Engine;
use session_proto::spark::config_request::{Get, Operation, operation::OpType};
use session_proto::spark::{ConfigRequest, UserContext};
use std::convert::Infallible;
use std::time::Duration;

/// Time limit for a keep-alive call.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A setting that every Sail session has.
const SETTING: &str = "spark.sql.session.timeZone";
/// Maximum size of the response.
const MAX_RESPONSE_BYTES: usize = 16 * 1024;

/// Whether the Spark session of the call must be kept alive while the call runs.
pub(crate) fn is_needed(exchange: &Exchange<'_>) -> bool {
    let every = exchange.worker.shared.config.backend.sail_keep_alive;
    let runs = matches!(
        exchange.open.method(),
        Method::ExecutePlan | Method::ReattachExecute
    );
    runs && exchange.backend.engine == Engine::Sail && !exchange.backend.dedicated && !every.is_zero()
}

/// Keeps the Spark session of the call alive until dropped, together with other calls of the
/// session on this worker.
pub(crate) async fn run(exchange: &Exchange<'_>) -> Infallible {
    let every = exchange.worker.shared.config.backend.sail_keep_alive;
    loop {
        tokio::time::sleep(every).await;
        let session = exchange.open.session();
        // A released Spark session may belong to another session by now.
        if !session.still_binds(exchange.route.version, &exchange.spark_session)
            || !session.take_keep_alive(&exchange.spark_session, every / 2)
        {
            continue;
        }
        match tokio::time::timeout(KEEP_ALIVE_TIMEOUT, send_keep_alive(exchange)).await {
            Ok(Some(())) => exchange.worker.shared.metrics.calls.kept_alive.inc(),
            Ok(None) | Err(_) => tracing::debug!("Sail keep-alive failed"),
        }
    }
}

/// Makes one small call in the Spark session.
async fn send_keep_alive(exchange: &Exchange<'_>) -> Option<()> {
    let (pools, backend) = (&exchange.worker.pools, exchange.backend);
    // A new connection would need a fresh route; the running query already has a connection.
    let pool = pools.pool(&exchange.open.session().id, backend);
    if !pools.is_connected(&pool, Method::Config) {
        return None;
    }
    let mut lease = pools.lease(pool, backend, Method::Config).await.ok()?;
    let (mut head, ()) = Request::post("/spark.connect.SparkConnectService/Config")
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(())
        .ok()?
        .into_parts();
    toward_backend(&mut head, backend, Method::Config);
    let mut upstream = lease.send(Request::from_parts(head, ())).ok()?;
    let message = request(exchange)?;
    request_capacity(&mut upstream.sender, 0, message.len())
        .await
        .ok()?;
    let message = bytes::Buf::chain(message, Bytes::new());
    upstream.sender.send_data(message, true).ok()?;
    let mut body = upstream.response.await.ok()?.into_body();
    let mut answered = 0;
    while let Some(data) = body.data().await {
        let len = data.ok()?.len();
        answered += len;
        if answered > MAX_RESPONSE_BYTES {
            return None;
        }
        let _ = body.flow_control().release_capacity(len);
    }
    let trailers = body.trailers().await.ok()??;
    (trailers.get("grpc-status")?.as_bytes() == b"0").then_some(())
}

/// Request that reads a setting under the user id of the query.
fn request(exchange: &Exchange<'_>) -> Option<Bytes> {
    let request = ConfigRequest {
        session_id: exchange.spark_session.as_str().to_owned(),
        user_context: Some(UserContext {
            user_id: exchange.open.user_id(exchange.backend).to_owned(),
            user_name: exchange.open.caller().claims.sub.as_str().to_owned(),
        }),
        operation: Some(Operation {
            op_type: Some(OpType::Get(Get {
                keys: vec![SETTING.to_owned()],
            })),
        }),
        ..ConfigRequest::default()
    };
    Some(framed(&request))
}
