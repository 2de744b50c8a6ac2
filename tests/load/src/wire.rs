//! Spark Connect as PySpark writes it: requests, responses, headers. Which
//! session a message belongs to can be read from its Spark session id, so that
//! the backend knows whom to expect without being told.

use crate::callers::{self, Caller};
use anyhow::Result;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use prost::Message;
use session_proto::spark::{
    AddArtifactsRequest, AnalyzePlanRequest, AnalyzePlanResponse, ConfigRequest, ConfigResponse,
    ExecutePlanRequest, ExecutePlanResponse, KeyValue, Plan, ReattachOptions, Relation, Sql, UserContext,
    add_artifacts_request as artifacts, analyze_plan_request as analyze, analyze_plan_response as analyzed,
    config_request as config, execute_plan_request as execute, execute_plan_response as executed, plan,
    relation,
};
use std::time::Duration;

/// The service.
pub const SERVICE: &str = "/spark.connect.SparkConnectService/";
const CLIENT: &str = "_SPARK_CONNECT_PYTHON spark/4.1.3 os/linux python/3.11.2";
const OPERATION: &str = "7d9c1a52-3a52-4a7e-9d55-0d6c3a1f2b11";
/// Clients write the name of the user of their machine, whoever that is.
const CLAIMED: &str = "analyst";

/// Which messages a call carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Unary: `Config(get_with_default)`, as before and after every query.
    Config,
    /// Unary: `AnalyzePlan(spark_version)`.
    Analyze,
    /// A query; the backend streams as many messages as its text asks for.
    Execute,
    /// An upload.
    AddArtifacts,
}

impl Method {
    /// The path of a call.
    pub fn path(self) -> &'static str {
        match self {
            Self::Config => "/spark.connect.SparkConnectService/Config",
            Self::Analyze => "/spark.connect.SparkConnectService/AnalyzePlan",
            Self::Execute => "/spark.connect.SparkConnectService/ExecutePlan",
            Self::AddArtifacts => "/spark.connect.SparkConnectService/AddArtifacts",
        }
    }

    /// The method that a path names.
    pub fn of(path: &str) -> Option<Self> {
        Some(match path.strip_prefix(SERVICE)? {
            "Config" => Self::Config,
            "AnalyzePlan" => Self::Analyze,
            "ExecutePlan" => Self::Execute,
            "AddArtifacts" => Self::AddArtifacts,
            _ => return None,
        })
    }
}

/// A gRPC message around an encoded protobuf.
pub fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(len + 5);
    out.put_u8(0);
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    // There is room: the length was asked for.
    let _ = message.encode(&mut out);
    out.freeze()
}

/// What the client says of its user; it may be anything, or nothing.
fn claimed(identified: bool) -> Option<UserContext> {
    identified.then(|| UserContext {
        user_id: CLAIMED.to_owned(),
        user_name: CLAIMED.to_owned(),
    })
}

/// The whole body of a unary call or query of session `index`.
pub fn request(method: Method, index: u64, stream: Shape) -> Bytes {
    let session_id = callers::spark_session(index);
    let user_context = claimed(true);
    let client_type = Some(CLIENT.to_owned());
    match method {
        Method::Config => framed(&ConfigRequest {
            session_id,
            user_context,
            client_type,
            operation: Some(config::Operation {
                op_type: Some(config::operation::OpType::GetWithDefault(
                    config::GetWithDefault {
                        pairs: vec![KeyValue {
                            key: "spark.sql.execution.pyspark.binaryAsBytes".to_owned(),
                            value: Some("true".to_owned()),
                        }],
                    },
                )),
            }),
            ..ConfigRequest::default()
        }),
        Method::Analyze => framed(&AnalyzePlanRequest {
            session_id,
            user_context,
            client_type,
            analyze: Some(analyze::Analyze::SparkVersion(analyze::SparkVersion {})),
            ..AnalyzePlanRequest::default()
        }),
        Method::Execute => framed(&ExecutePlanRequest {
            session_id,
            user_context,
            client_type,
            plan: Some(Plan {
                op_type: Some(plan::OpType::Root(Relation {
                    rel_type: Some(relation::RelType::Sql(Sql {
                        query: stream.query(),
                    })),
                    ..Relation::default()
                })),
            }),
            operation_id: Some(OPERATION.to_owned()),
            request_options: vec![execute::RequestOption {
                request_option: Some(execute::request_option::RequestOption::ReattachOptions(
                    ReattachOptions { reattachable: true },
                )),
            }],
            ..ExecutePlanRequest::default()
        }),
        Method::AddArtifacts => chunk(index, stream.size, true),
    }
}

/// One message of an upload, about `size` bytes long.
pub fn chunk(index: u64, size: usize, identified: bool) -> Bytes {
    framed(&AddArtifactsRequest {
        session_id: callers::spark_session(index),
        user_context: claimed(identified),
        client_type: Some(CLIENT.to_owned()),
        payload: Some(artifacts::Payload::Chunk(artifacts::ArtifactChunk {
            data: vec![0x5a; size],
            crc: 0x1234_5678,
        })),
        ..AddArtifactsRequest::default()
    })
}

/// What a query streams back: so many messages of so many bytes, and then the
/// message that says it is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// How many messages.
    pub count: usize,
    /// How long each is, framing included.
    pub size: usize,
}

impl Shape {
    fn query(self) -> String {
        format!("SELECT /* load {} {} */ * FROM events", self.count, self.size)
    }

    /// What an ExecutePlan request asks for.
    pub fn asked(request: &[u8]) -> Option<Self> {
        let request = ExecutePlanRequest::decode(request).ok()?;
        let Some(plan::OpType::Root(root)) = request.plan?.op_type else {
            return None;
        };
        let Some(relation::RelType::Sql(sql)) = root.rel_type else {
            return None;
        };
        let mut words = sql.query.split(' ').skip(3);
        let mut number = || words.next()?.parse().ok();
        Some(Self {
            count: number()?,
            size: number()?,
        })
    }

    /// How long the whole response body is.
    pub fn body_len(self, index: u64) -> usize {
        self.count * self.size + complete(index).len()
    }
}

/// One message of a result, exactly `size` bytes long with its framing.
pub fn batch(index: u64, size: usize) -> Bytes {
    let sized = |data: usize| ExecutePlanResponse {
        response_type: Some(executed::ResponseType::ArrowBatch(executed::ArrowBatch {
            row_count: 1000,
            data: vec![0xa5; data],
            start_offset: None,
        })),
        ..response_head(index)
    };
    // Lengths are varints, so a message that is as long as wanted is sought from below.
    let fixed = framed(&sized(0)).len();
    let mut data = size.saturating_sub(fixed + 8);
    while data < size && framed_len(&sized(data)) < size {
        data += 1;
    }
    framed(&sized(data))
}

fn framed_len(message: &impl Message) -> usize {
    message.encoded_len() + 5
}

fn response_head(index: u64) -> ExecutePlanResponse {
    ExecutePlanResponse {
        session_id: callers::spark_session(index),
        server_side_session_id: callers::spark_session(index),
        operation_id: OPERATION.to_owned(),
        response_id: "5b1f6f0e-6f0c-4b25-8f0d-2f7f6d8f1a10".to_owned(),
        response_type: None,
    }
}

/// The last message of a result.
pub fn complete(index: u64) -> Bytes {
    framed(&ExecutePlanResponse {
        response_type: Some(executed::ResponseType::ResultComplete(
            executed::ResultComplete {},
        )),
        ..response_head(index)
    })
}

/// The answer to a unary call or an upload.
pub fn answer(method: Method, session_id: String) -> Bytes {
    let server_side_session_id = session_id.clone();
    match method {
        Method::Config => framed(&ConfigResponse {
            session_id,
            server_side_session_id,
            pairs: vec![KeyValue {
                key: "spark.sql.execution.pyspark.binaryAsBytes".to_owned(),
                value: Some("true".to_owned()),
            }],
            warnings: Vec::new(),
        }),
        Method::Analyze | Method::Execute => framed(&AnalyzePlanResponse {
            session_id,
            server_side_session_id,
            result: Some(analyzed::Result::SparkVersion(analyzed::SparkVersion {
                version: "4.1.3".to_owned(),
            })),
        }),
        Method::AddArtifacts => framed(&session_proto::spark::AddArtifactsResponse {
            session_id,
            server_side_session_id,
            artifacts: Vec::new(),
        }),
    }
}

/// The request's headers as gRPC's C core sends them.
///
/// # Errors
/// A token that is no header value.
pub fn head(method: Method, authority: &str, tls: bool, caller: Option<&Caller>) -> Result<Request<()>> {
    let scheme = if tls { "https" } else { "http" };
    let mut request = Request::post(format!("{scheme}://{authority}{}", method.path()))
        .version(http::Version::HTTP_2)
        .body(())?;
    let headers = request.headers_mut();
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(
            "_SPARK_CONNECT_PYTHON spark/4.1.3 os/linux python/3.11.2 grpc-python/1.76.0 grpc-c/51.0.0 (linux; chttp2)",
        ),
    );
    headers.insert(
        "grpc-accept-encoding",
        HeaderValue::from_static("identity, deflate, gzip"),
    );
    if let Some(caller) = caller {
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::try_from(format!("Bearer {}", caller.token))?,
        );
        headers.insert("x-session-id", HeaderValue::try_from(caller.session.as_str())?);
    }
    Ok(request)
}

/// The response's headers.
pub fn response_headers() -> Response<()> {
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The end of a response that went well.
pub fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

/// Nothing of the rig takes longer; what does is a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_long_as_they_are_asked_to_be() {
        for size in [1024, 32 << 10, 1 << 20] {
            assert_eq!(batch(3, size).len(), size);
        }
    }

    #[test]
    fn a_query_says_what_it_asks_for() {
        let shape = Shape { count: 7, size: 4096 };
        let request = request(Method::Execute, 5, shape);
        assert_eq!(Shape::asked(&request[5..]), Some(shape));
        assert_eq!(Shape::asked(b"\x0a\xff"), None);
    }
}
