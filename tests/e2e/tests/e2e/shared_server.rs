//! A `static` cluster: existing servers, one live session each for now.

use anyhow::Result;
use e2e::{Client, Stack, home, wait};
use session_proto::v1;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tonic::Request;

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start() -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let child = Command::new(home().join("venv-sail/bin/sail"))
            .args([
                "spark",
                "server",
                "--ip",
                "127.0.0.1",
                "--port",
                &port.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            child,
            address: format!("127.0.0.1:{port}"),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn define(stack: &Stack, who: &str, name: &str, address: &str) -> Result<v1::Cluster, tonic::Status> {
    let mut request = Request::new(v1::CreateClusterRequest {
        cluster: Some(v1::Cluster {
            name: name.to_owned(),
            engine: v1::Engine::Sail.into(),
            provider: Some(v1::cluster::Provider::Static(v1::StaticProvider {
                endpoints: vec![v1::StaticEndpoint {
                    address: address.to_owned(),
                    ..v1::StaticEndpoint::default()
                }],
            })),
            ..v1::Cluster::default()
        }),
    });
    let bearer = format!("Bearer {}", stack.key_of(who))
        .parse()
        .map_err(|_| tonic::Status::internal("key"))?;
    request.metadata_mut().insert("authorization", bearer);
    let channel = tonic::transport::Endpoint::from_shared(stack.manager_uri.clone())
        .map_err(|error| tonic::Status::internal(error.to_string()))?
        .connect_lazy();
    let answer = ClusterServiceClient::new(channel).create_cluster(request).await?;
    Ok(answer.into_inner().cluster.unwrap_or_default())
}

#[tokio::test]
async fn one_session_per_endpoint_and_the_next_after_it() -> Result<()> {
    let stack = Stack::start().await?;
    let server = Server::start()?;
    define(&stack, "pat", "shared", &server.address).await?;
    let create = ["create", "--wait", "--cluster", "shared"];
    let first = stack.berth("ada", &create)?["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let url = stack.url("ada", &first)?;
    let one = Client::Py41
        .run(stack.dir.path(), "client.py", &["select1", "--url", &url], None)
        .await?;
    assert_eq!(one["value"], 1, "{one}");

    let refused = stack.berth("bob", &create).unwrap_err().to_string();
    assert!(refused.contains("in use"), "{refused}");
    stack.berth("ada", &["close", &first])?;
    wait::until("the endpoint to be free", Duration::from_secs(30), async || {
        stack
            .berth("bob", &create)
            .map(|_| ())
            .map_err(|error| error.to_string())
    })
    .await
}

#[tokio::test]
async fn only_platform_admins_define_clusters_and_bad_ones_are_refused() -> Result<()> {
    let stack = Stack::start().await?;
    for who in ["ada", "olga", "eve"] {
        let refused = define(&stack, who, "mine", "127.0.0.1:15002").await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    }
    for (name, address) in [("Not_A_Label", "127.0.0.1:1"), ("fine", "no-port"), ("fine", "")] {
        let refused = define(&stack, "pat", name, address).await.unwrap_err();
        assert_eq!(
            refused.code(),
            tonic::Code::InvalidArgument,
            "{name} {address}: {refused}"
        );
    }
    let exists = define(&stack, "pat", "sail", "127.0.0.1:15002")
        .await
        .unwrap_err();
    assert_eq!(exists.code(), tonic::Code::AlreadyExists, "{exists}");
    Ok(())
}
