//! A `static` cluster: an existing server that many sessions share.

use anyhow::Result;
use e2e::{Client, Stack, home};
use session_proto::v1;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
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
            granted_orgs: vec!["acme".to_owned()],
            provider: Some(v1::cluster::Provider::Static(v1::StaticProvider {
                endpoints: vec![v1::StaticEndpoint {
                    address: address.to_owned(),
                    ..v1::StaticEndpoint::default()
                }],
                allow_shared_untrusted: false,
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
async fn many_sessions_share_a_server_and_each_may_close() -> Result<()> {
    let stack = Stack::start().await?;
    let server = Server::start()?;
    define(&stack, "pat", "shared", &server.address).await?;
    let create = ["create", "--wait", "--cluster", "shared"];
    let mut urls = Vec::new();
    for who in ["ada", "bob", "ada"] {
        let id = stack.berth(who, &create)?["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        urls.push((who, stack.url(who, &id)?, id));
    }
    for (_, url, _) in &urls {
        let one = Client::Py41
            .run(stack.dir.path(), "client.py", &["select1", "--url", url], None)
            .await?;
        assert_eq!(one["value"], 1, "{one}");
    }
    let (who, _, first) = &urls[0];
    stack.berth(who, &["close", first])?;
    for (_, url, _) in &urls[1..] {
        let one = Client::Py41
            .run(stack.dir.path(), "client.py", &["select1", "--url", url], None)
            .await?;
        assert_eq!(one["value"], 1, "its neighbour's end harms nobody: {one}");
    }
    Ok(())
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
