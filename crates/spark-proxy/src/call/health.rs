//! `grpc.health.v1.Health/Check`, answered without a token: whether this proxy accepts calls.

use crate::grpc::method::SPARK_CONNECT;
use crate::grpc::reply::{ClientGone, ClientStream};
use crate::grpc::{framed, payload};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use prost::Message as _;
use std::time::Duration;
use tonic::Status;

const MAX_REQUEST_BYTES: usize = 1024;
/// Time limit for the request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Reads the request and sends the health status.
pub(crate) async fn check(body: RecvStream, serving: bool, client: &ClientStream) -> Result<(), ClientGone> {
    let asked = tokio::time::timeout(REQUEST_TIMEOUT, read_service(body));
    let service = match asked.await {
        Ok(Some(service)) => service,
        Ok(None) => {
            client.fail(&Status::invalid_argument("not a health check"));
            return Ok(());
        }
        Err(_) => {
            client.fail(&Status::deadline_exceeded(
                "the health check's request did not end",
            ));
            return Ok(());
        }
    };
    if !service.is_empty() && service != SPARK_CONNECT {
        client.fail(&Status::not_found("unknown service"));
        return Ok(());
    }
    let response = CheckResponse {
        status: if serving { SERVING } else { NOT_SERVING },
    };
    client.reply(framed(&response))
}

async fn read_service(mut body: RecvStream) -> Option<String> {
    let mut whole = BytesMut::new();
    while let Some(data) = body.data().await {
        let data: Bytes = data.ok()?;
        body.flow_control().release_capacity(data.len()).ok()?;
        whole.put_slice(&data);
        if whole.len() > MAX_REQUEST_BYTES {
            return None;
        }
    }
    if whole.is_empty() {
        // Simple checkers send no message: it would say nothing that the path does not.
        return Some(String::new());
    }
    let message = payload(&whole)?;
    (whole[0] == 0).then_some(())?;
    Some(CheckRequest::decode(message).ok()?.service)
}
