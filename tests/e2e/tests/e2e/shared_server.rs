//! A `static` cluster: an existing server that many sessions share.

use anyhow::Result;
use e2e::{Client, Server, Stack, StackOptions};
use session_proto::v1;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use tonic::Request;

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
    let server = Server::sail().await?;
    define(&stack, "pat", "shared", &server.address.to_string()).await?;
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

/// One server, two sessions of Berth's, ONE Spark session id.
async fn one_id_belongs_to_one_session(server: Server, engine: &str) -> Result<()> {
    const ID: &str = "6b1f7a52-43c1-4a43-9f0e-0d5ad3a3c777";
    let stack = Stack::start_with(StackOptions {
        manager: format!(
            "[[clusters]]\nname = \"shared\"\nengine = \"{engine}\"\ngranted_orgs = [\"acme\"]\nstatic.endpoints = [{{ address = \"{}\" }}]\n",
            server.address
        ),
        ..StackOptions::default()
    })
    .await?;
    let target = format!("localhost:{}", stack.proxy_address.port());
    let mut tokens = Vec::new();
    for who in ["ada", "bob"] {
        let session = stack.berth(who, &["create", "--wait", "--cluster", "shared"])?;
        tokens.push(stack.token(who, session["id"].as_str().unwrap_or_default())?);
    }
    let call = async |rpc: &'static str, token: &str, id: &str, sql: &str| {
        let args = [
            rpc,
            "--target",
            &target,
            "--token",
            token,
            "--session",
            id,
            "--sql",
            sql,
        ];
        Client::Py41.run(stack.dir.path(), "raw.py", &args, None).await
    };
    let own = call("execute", &tokens[0], ID, "SELECT 1").await?;
    assert_eq!(own["code"], "OK", "{own}");
    for rpc in ["execute", "config", "analyze"] {
        let foreign = call(rpc, &tokens[1], ID, "SELECT 1").await?;
        assert_eq!(foreign["code"], "PERMISSION_DENIED", "{rpc}: {foreign}");
        assert_eq!(foreign["reason"], "SPARK_SESSION_TAKEN", "{rpc}: {foreign}");
    }
    // What could end or disturb it does not reach it.
    for rpc in ["release-session", "interrupt", "release-execute"] {
        let foreign = call(rpc, &tokens[1], ID, "SELECT 1").await?;
        assert_eq!(foreign["code"], "OK", "{rpc}: {foreign}");
    }
    let own = call("execute", &tokens[0], ID, "SELECT 1").await?;
    assert_eq!(own["code"], "OK", "it is still there: {own}");
    let other = call("execute", &tokens[1], &ID.replace("777", "778"), "SELECT 1").await?;
    assert_eq!(other["code"], "OK", "{other}");
    Ok(())
}

/// Sail's own timer counts from the start of the last call and would end the
/// query, in which nothing is heard of its client for longer than that.
#[tokio::test]
async fn a_long_query_on_shared_sail_outlives_sails_own_timer() -> Result<()> {
    let server = Server::sail_with(&[("SAIL_SPARK__SESSION_TIMEOUT_SECS", "3")]).await?;
    let stack = Stack::start_with(StackOptions {
        manager: format!(
            "[[clusters]]\nname = \"shared\"\nengine = \"sail\"\ngranted_orgs = [\"acme\"]\nstatic.endpoints = [{{ address = \"{}\" }}]\n",
            server.address
        ),
        proxy: "backend.sail_keep_alive = \"1s\"".to_owned(),
        ..StackOptions::default()
    })
    .await?;
    let session = stack.berth("ada", &["create", "--wait", "--cluster", "shared"])?;
    let url = stack.url("ada", session["id"].as_str().unwrap_or_default())?;
    let args = ["stream", "--url", &url, "--kind", "sum", "--rows", "4000000000"];
    let seen = Client::Py41
        .run(stack.dir.path(), "client.py", &args, None)
        .await?;
    assert!(seen["error"].is_null(), "{seen}");
    assert_eq!(seen["rows"], 1, "{seen}");
    let long_enough = seen["seconds"].as_f64().is_some_and(|seconds| seconds > 4.0);
    assert!(long_enough, "it says nothing about Sail's timer: {seen}");
    Ok(())
}

#[tokio::test]
async fn one_spark_session_id_on_one_sail() -> Result<()> {
    one_id_belongs_to_one_session(Server::sail().await?, "sail").await
}

#[tokio::test]
async fn one_spark_session_id_on_one_spark() -> Result<()> {
    let server = Server::spark(std::env::temp_dir().as_path(), &[]).await?;
    one_id_belongs_to_one_session(server, "spark").await
}
