//! No secret comes out: the whole of Berth at debug level, driven through good
//! and bad calls, and then every output is searched for every secret, as it is
//! and in the encodings that it could hide in.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use e2e::{Engine, Server, Stack, StackOptions, http, wait};
use session_proto::spark::analyze_plan_request::{Analyze, SparkVersion};
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{AnalyzePlanRequest, UserContext};
use session_token::{Signer, generate_key_pem};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::Request;
use tonic::transport::Endpoint;

const REDIS_PASSWORD: &str = "canary-of-redis-5d0fa6c1b2";
const BACKEND_TOKEN: &str = "canary-of-the-backend-7e1c09f3aa";

/// Things that must not be anywhere, by a name that may.
struct Secrets(Vec<(String, Vec<String>)>);

impl Secrets {
    fn add(&mut self, name: &str, secret: &[u8]) {
        let mut forms = vec![
            STANDARD.encode(secret),
            STANDARD_NO_PAD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
            hex::encode(secret),
            hex::encode_upper(secret),
        ];
        forms.extend(std::str::from_utf8(secret).ok().map(str::to_owned));
        self.0.push((name.to_owned(), forms));
    }

    /// A token is known by its signature; the first of it is enough to tell.
    fn add_token(&mut self, name: &str, token: &str) {
        let signature = token.rsplit('.').next().unwrap_or_default();
        self.add(name, token.as_bytes());
        self.0
            .push((format!("{name}: its signature"), vec![signature[..12].to_owned()]));
    }

    /// Where it is found in `text`, and what.
    fn found_in(&self, place: &str, text: &str) -> Vec<String> {
        let has = |forms: &Vec<String>| forms.iter().any(|form| text.contains(form.as_str()));
        let found = self.0.iter().filter(|(_, forms)| has(forms));
        found.map(|(name, _)| format!("{name} in {place}")).collect()
    }
}

/// Takes traces and keeps their bytes, whatever they say.
async fn trace_sink() -> Result<(SocketAddr, Arc<Mutex<Vec<u8>>>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeping = Arc::clone(&kept);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let kept = Arc::clone(&keeping);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await?;
                while let Some(Ok((request, mut answer))) = connection.accept().await {
                    let kept = Arc::clone(&kept);
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                            kept.lock().unwrap_or_else(PoisonError::into_inner).extend(data);
                        }
                        let head = ::http::Response::builder()
                            .header("content-type", "application/grpc")
                            .body(())
                            .unwrap_or_default();
                        let Ok(mut stream) = answer.send_response(head, false) else {
                            return;
                        };
                        let _ = stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 0]), false);
                        let mut trailers = ::http::HeaderMap::new();
                        trailers.insert("grpc-status", ::http::HeaderValue::from_static("0"));
                        let _ = stream.send_trailers(trailers);
                    });
                }
                Ok::<_, h2::Error>(())
            });
        }
    });
    Ok((address, kept))
}

/// One small query with any credential and session header; what it says if it fails.
async fn query(stack: &Stack, bearer: &str, session: Option<&str>) -> Result<String> {
    let channel = Endpoint::from_shared(format!("http://{}", stack.proxy_address))?
        .connect()
        .await?;
    let mut request = Request::new(AnalyzePlanRequest {
        session_id: uuid::Uuid::new_v4().to_string(),
        user_context: Some(UserContext::default()),
        analyze: Some(Analyze::SparkVersion(SparkVersion {})),
        ..AnalyzePlanRequest::default()
    });
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {bearer}").parse()?);
    if let Some(session) = session {
        request.metadata_mut().insert("x-session-id", session.parse()?);
    }
    let answer = SparkConnectServiceClient::new(channel)
        .analyze_plan(request)
        .await;
    Ok(answer
        .err()
        .map(|status| format!("{status:?}"))
        .unwrap_or_default())
}

#[tokio::test]
async fn no_output_holds_a_secret() -> Result<()> {
    let shared = Server::sail().await?;
    let manager = format!(
        "[[clusters]]\nname = \"shared\"\nengine = \"sail\"\ngranted_orgs = [\"acme\"]\n\
         [[clusters.static.endpoints]]\naddress = \"{}\"\ntoken_env = \"BERTH_SECRET_SHARED\"\n",
        shared.address
    );
    let options = StackOptions {
        manager,
        ..StackOptions::default()
    };
    let mut stack = Stack::prepare(&options).await?;
    let user = format!("ACL SETUSER canary on >{REDIS_PASSWORD} ~* &* +@all");
    stack.redis.command(&user).await?;
    let (sink, traces) = trace_sink().await?;
    let level = std::env::var("CANARY_LEVEL").unwrap_or_else(|_| "debug".to_owned());
    for service in [&mut stack.manager, &mut stack.issuer, &mut stack.proxy] {
        service.set_env("BERTH__TELEMETRY__LEVEL", &level);
        service.set_env("BERTH__TELEMETRY__OTLP_ENDPOINT", &format!("http://{sink}"));
        service.set_env("BERTH__TELEMETRY__SAMPLE_RATIO", "1");
    }
    let url = format!("redis://canary:{REDIS_PASSWORD}@{}/", stack.redis.address());
    stack.manager.set_env("BERTH__STORE__URL", &url);
    stack.manager.set_env("BERTH_SECRET_SHARED", BACKEND_TOKEN);
    stack.manager.start()?;
    stack.issuer.start_ready().await?;
    stack.manager.ready().await?;
    stack.proxy.start_ready().await?;

    let mut secrets = Secrets(Vec::new());
    secrets.add("the Redis password", REDIS_PASSWORD.as_bytes());
    secrets.add("the backend's credential", BACKEND_TOKEN.as_bytes());
    for who in ["ada", "bob", "olga", "pat", "eve"] {
        secrets.add(&format!("{who}'s key"), stack.key_of(who).as_bytes());
    }
    let pem = std::fs::read_to_string(stack.dir.path().join("signing.pem"))?;
    let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with('-')).collect();
    for line in &lines {
        secrets.add("a line of the signing key", line.as_bytes());
    }
    // The private number stands in the PKCS#8 text after the version and its mark.
    let der = STANDARD.decode(lines.concat())?;
    secrets.add("the signing key", &der);
    secrets.add(
        "the signing key's number",
        der.get(36..68).context("a private number")?,
    );

    // Good use, on both kinds of compute.
    let mut said = Vec::new();
    let session = stack.session("ada", Engine::Sail, &[])?;
    let on_shared = stack.berth("ada", &["create", "--wait", "--cluster", "shared"])?["id"]
        .as_str()
        .context("an id")?
        .to_owned();
    let mut tokens = Vec::new();
    for (name, id) in [
        ("ada's token", &session),
        ("her token on shared compute", &on_shared),
    ] {
        let token = stack.token("ada", id)?;
        secrets.add_token(name, &token);
        let failed = query(&stack, &token, Some(id)).await?;
        ensure!(failed.is_empty(), "{name}: {failed}");
        tokens.push(token);
    }
    // Bad use: each wrong credential is a secret of somebody, too.
    let stranger = Signer::from_pkcs8_pem(&generate_key_pem()?)?;
    let foreign = {
        let payload = tokens[0].split('.').nth(1).context("claims")?;
        let claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
        stranger.sign(&claims)?
    };
    secrets.add_token("a forged token", &foreign);
    let wrong_key = "berth_sa_canaryofakeythatnobodyhasmade0123456789abcd";
    secrets.add("a wrong key", wrong_key.as_bytes());
    for bearer in [foreign.as_str(), wrong_key, stack.key_of("ada"), "x.y.z"] {
        said.push(query(&stack, bearer, None).await?);
    }
    said.push(query(&stack, &tokens[0], Some(&on_shared)).await?);
    for credential in [wrong_key, tokens[0].as_str(), foreign.as_str()] {
        for args in [&["list"][..], &["token", session.as_str()]] {
            let refused = stack.berth_with(credential, args);
            said.push(format!("{:?}", refused.err().context("it was let in")?));
        }
    }
    for args in [
        &["token", session.as_str(), "--ttl", "1s"][..],
        &["show", "s-00000000000000000000"],
        &["create", "--cluster", "no-such"],
        &["create", "--cluster", "sail", "--catalog", "broken", "--wait"],
    ] {
        said.push(format!("{:?}", stack.berth("ada", args)));
    }
    for args in [
        &["show", session.as_str()][..],
        &["show", on_shared.as_str()],
        &["events", session.as_str()],
        &["tokens", session.as_str()],
        &["list", "--all"],
        &["clusters"],
        &["catalogs"],
        &["revoke", session.as_str(), "--all"],
    ] {
        said.push(stack.berth("ada", args)?.to_string());
    }
    wait::until(
        "the revoked token is refused",
        Duration::from_secs(20),
        async || {
            let answer = query(&stack, &tokens[0], None)
                .await
                .map_err(|error| error.to_string())?;
            if answer.is_empty() {
                Err("still good")
            } else {
                Ok(())
            }
            .map_err(str::to_owned)
        },
    )
    .await?;
    said.push(query(&stack, &tokens[0], None).await?);
    // The store away, and back.
    stack.redis.kill9()?;
    said.push(format!(
        "{:?}",
        stack.berth("ada", &["token", on_shared.as_str()]).err()
    ));
    stack.redis.restart().await?;
    stack.redis.command(&user).await?;
    stack.manager.ready().await?;
    wait::until("closing works again", Duration::from_secs(30), async || {
        stack
            .berth("ada", &["close", on_shared.as_str()])
            .map_err(|error| error.to_string())
    })
    .await?;
    // A compute that dies under a session.
    for pid in stack.children_matching("sail")? {
        let _ = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
    }
    let trail = wait::until("the trail is in the log", Duration::from_secs(20), async || {
        let log = stack.manager.log();
        if log.contains("tokens.revoked") && log.contains("caller.refused") {
            Ok(log)
        } else {
            Err("not yet".to_owned())
        }
    })
    .await?;
    ensure!(trail.contains("token.first-used"), "the first use is audited");

    let mut outputs = Vec::new();
    for (name, service) in [
        ("manager", &stack.manager),
        ("issuer", &stack.issuer),
        ("proxy", &stack.proxy),
    ] {
        for path in ["/metrics", "/readyz", "/livez", "/buildz"] {
            outputs.push((format!("{name} {path}"), service.admin(path).await?));
        }
        for argument in ["--print-config", "--check-config"] {
            outputs.push((format!("{name} {argument}"), service.print(argument)?));
        }
    }
    let set = http::get(stack.jwks_address, "/.well-known/jwks.json", "").await?;
    outputs.push(("the key set".to_owned(), set));
    for partition in 0..16 {
        let key = format!("berth:{{p{partition:02}}}:audit");
        let records = stack.redis.command(&format!("XRANGE {key} - +")).await?;
        outputs.push((format!("the audit trail {partition}"), records));
    }
    for service in [&mut stack.proxy, &mut stack.issuer, &mut stack.manager] {
        service.terminate().await?;
    }
    for (name, service) in [
        ("manager", &stack.manager),
        ("issuer", &stack.issuer),
        ("proxy", &stack.proxy),
    ] {
        let log = service.log();
        ensure!(log.contains("DEBUG"), "the log of the {name} is at debug level");
        outputs.push((format!("the log of the {name}"), log));
    }
    let traces = traces.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(traces.len() > 1000, "traces were exported");
    outputs.push((
        "the traces".to_owned(),
        String::from_utf8_lossy(&traces).into_owned(),
    ));
    outputs.push(("what callers were told".to_owned(), said.join("\n")));

    let found: Vec<String> = outputs
        .iter()
        .flat_map(|(place, text)| secrets.found_in(place, text))
        .collect();
    ensure!(found.is_empty(), "{found:#?}");
    // The search itself works: the token is where it was given out.
    ensure!(!secrets.found_in("a token", &tokens[1]).is_empty());
    ensure!(!secrets.found_in("a PEM file", &pem).is_empty());
    let sizes: Vec<_> = outputs
        .iter()
        .map(|(place, text)| format!("{place}: {}", text.len()))
        .collect();
    println!("{} secrets, searched in {sizes:?}", secrets.0.len());
    Ok(())
}
