//! A Spark Connect server that only tells its version: compute of sessions that run nothing.

use anyhow::Result;
use futures::stream::BoxStream;
use session_proto::spark as sc;
use session_proto::spark::spark_connect_service_server::{SparkConnectService, SparkConnectServiceServer};
use std::net::SocketAddr;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

/// The server; ends when dropped.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Engine {
    pub(super) async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tonic::transport::Server::builder().add_service(SparkConnectServiceServer::new(Version));
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let task = tokio::spawn(async move {
            // It serves until the test ends.
            let _ = server.serve_with_incoming(incoming).await;
        });
        Ok(Self { address, task })
    }
}

#[derive(Debug)]
struct Version;

type Answers = BoxStream<'static, Result<sc::ExecutePlanResponse, Status>>;

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("it only tells its version"))
}

#[tonic::async_trait]
impl SparkConnectService for Version {
    type ExecutePlanStream = Answers;
    type ReattachExecuteStream = Answers;

    async fn analyze_plan(
        &self,
        request: Request<sc::AnalyzePlanRequest>,
    ) -> Result<Response<sc::AnalyzePlanResponse>, Status> {
        let version = sc::analyze_plan_response::SparkVersion {
            version: "4.1.0".to_owned(),
        };
        Ok(Response::new(sc::AnalyzePlanResponse {
            session_id: request.into_inner().session_id,
            result: Some(sc::analyze_plan_response::Result::SparkVersion(version)),
            ..Default::default()
        }))
    }

    async fn release_session(
        &self,
        _: Request<sc::ReleaseSessionRequest>,
    ) -> Result<Response<sc::ReleaseSessionResponse>, Status> {
        Ok(Response::new(sc::ReleaseSessionResponse::default()))
    }

    async fn execute_plan(&self, _: Request<sc::ExecutePlanRequest>) -> Result<Response<Answers>, Status> {
        no()
    }

    async fn config(&self, _: Request<sc::ConfigRequest>) -> Result<Response<sc::ConfigResponse>, Status> {
        no()
    }

    async fn add_artifacts(
        &self,
        _: Request<tonic::Streaming<sc::AddArtifactsRequest>>,
    ) -> Result<Response<sc::AddArtifactsResponse>, Status> {
        no()
    }

    async fn interrupt(
        &self,
        _: Request<sc::InterruptRequest>,
    ) -> Result<Response<sc::InterruptResponse>, Status> {
        no()
    }

    async fn reattach_execute(
        &self,
        _: Request<sc::ReattachExecuteRequest>,
    ) -> Result<Response<Answers>, Status> {
        no()
    }

    async fn release_execute(
        &self,
        _: Request<sc::ReleaseExecuteRequest>,
    ) -> Result<Response<sc::ReleaseExecuteResponse>, Status> {
        no()
    }
}
