//! `process` runs all children as one user, so it is rejected if callers may not
//! trust each other: at the start, and when accounts change at run time.

use crate::support::until;
use compute::SimCompute;
use service_kit::caller::{NewKey, generate_key};
use service_kit::config::{self, ConfigError, Sources};
use service_kit::shutdown::Shutdown;
use session_core::SystemClock;
use session_manager::{Config, Listeners, Providers};
use session_proto::v1;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_store::SessionStore;
use session_store::memory::MemoryStore;
use std::path::Path;
use std::sync::Arc;
use tonic::Request;
use tonic::transport::Endpoint;

const OIDC: &str = "[[oidc]]\nalias = \"corp\"\nissuer = \"https://corp.example\"\naudiences = [\"berth\"]\n\
                    org_claim = \"org\"\nroles_claim = \"roles\"\nteams_claim = \"groups\"\n";

fn account(name: &str, org: &str, key: &NewKey) -> String {
    format!(
        "[[service_accounts]]\nname = \"{name}\"\norg = \"{org}\"\nroles = [\"member\"]\nkey_sha256 = \"{}\"\n",
        key.sha256
    )
}

fn load(dir: &Path, public: &str, process: &str, more: &str) -> Result<Config, ConfigError> {
    let jwks = dir.join("jwks.json");
    std::fs::write(&jwks, "{\"keys\":[]}").unwrap();
    let text = format!(
        "listen.public.address = \"{public}\"\nlisten.public.insecure = true\nlisten.internal.address = \"127.0.0.1:0\"\n\
         admin.address = \"127.0.0.1:0\"\nstore.url = \"memory://\"\ntokens.keys.location = \"{}\"\n{process}{more}",
        jwks.display(),
    );
    let file = dir.join("config.toml");
    std::fs::write(&file, text).unwrap();
    config::load(&Sources {
        file: Some(file),
        ..Default::default()
    })
}

#[test]
fn every_untrusted_configuration_is_rejected_unless_permitted() {
    let dir = tempfile::tempdir().unwrap();
    let keys = [generate_key(), generate_key()];
    let one = account("ada", "acme", &keys[0]);
    let two = account("eve", "umbrella", &keys[1]);
    let provider = |orgs: &str| format!("{OIDC}orgs = {orgs}\n");
    let loopback = "127.0.0.1:0";
    let process = format!("compute.process.state_dir = \"{}\"\n", dir.path().display());
    let trusting = format!("{process}compute.process.trust_all_users = true\n");
    for (case, public, more) in [
        ("two organizations", loopback, format!("{one}{two}")),
        (
            "an account and a provider of another organization",
            loopback,
            format!("{one}{}", provider("[\"umbrella\"]")),
        ),
        (
            "a provider of two organizations",
            loopback,
            provider("[\"acme\", \"umbrella\"]"),
        ),
        ("every address", "0.0.0.0:0", one.clone()),
        ("every IPv6 address", "[::]:0", one.clone()),
        ("a private address", "10.0.0.1:8081", one.clone()),
        ("a public address", "203.0.113.7:8081", one.clone()),
        ("no account yet, at every address", "0.0.0.0:0", String::new()),
    ] {
        let refused = load(dir.path(), public, &process, &more).unwrap_err().to_string();
        assert!(
            refused.contains("compute.process") && refused.contains("trust_all_users = true"),
            "{case}: {refused}"
        );
        load(dir.path(), public, &trusting, &more).unwrap_or_else(|error| panic!("{case}: {error}"));
        // Without the provider no trust is required.
        load(dir.path(), public, "", &more).unwrap_or_else(|error| panic!("{case}: {error}"));
    }
    for (case, public, more) in [
        ("one organization", loopback, one.clone()),
        ("IPv6 loopback", "[::1]:0", one.clone()),
        (
            "a provider of the same organization",
            loopback,
            format!("{one}{}", provider("[\"acme\"]")),
        ),
    ] {
        load(dir.path(), public, &process, &more).unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}

async fn start(config: Config) -> Result<(String, Shutdown), String> {
    let listeners = Listeners::bind(&config).await.unwrap();
    let uri = format!("http://{}", listeners.public.local_addr());
    let (shutdown, sim) = (Shutdown::new(), SimCompute::new());
    let store: Arc<dyn SessionStore> = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
    let computes = Providers::new(sim.registry());
    let mut run = tokio::spawn(session_manager::run_with(
        config,
        listeners,
        shutdown.clone(),
        store,
        computes,
    ));
    // It serves, or it ends with an error.
    let serving = Endpoint::from_shared(uri.clone()).unwrap();
    loop {
        tokio::select! {
            biased;
            ended = &mut run => return Err(format!("{:#}", ended.unwrap().unwrap_err())),
            () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
        }
        if answers(&serving).await {
            return Ok((uri, shutdown));
        }
    }
}

/// Whether it rejects an unknown caller, that is, serves.
async fn answers(endpoint: &Endpoint) -> bool {
    let Ok(channel) = endpoint.connect().await else {
        return false;
    };
    let mut sessions = SessionServiceClient::new(channel);
    let answer = sessions.list_sessions(v1::ListSessionsRequest::default()).await;
    answer.is_err_and(|status| status.code() == tonic::Code::Unauthenticated)
}

async fn may(uri: &str, key: &NewKey) -> bool {
    let channel = Endpoint::from_shared(uri.to_owned())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut request = Request::new(v1::ListSessionsRequest::default());
    let bearer = format!("Bearer {}", key.key).parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    SessionServiceClient::new(channel)
        .list_sessions(request)
        .await
        .is_ok()
}

#[tokio::test]
async fn accounts_of_another_organization_are_not_accepted_at_run_time() {
    let dir = tempfile::tempdir().unwrap();
    let [ada, bob, eve] = [generate_key(), generate_key(), generate_key()];
    let accounts = dir.path().join("accounts.toml");
    let file = format!("service_accounts_file = \"{}\"\n", accounts.display());
    let process = format!("compute.process.state_dir = \"{}\"\n", dir.path().display());
    let own = account("ada", "acme", &ada);
    let foreign = account("eve", "umbrella", &eve);

    // At the start it is an error.
    std::fs::write(&accounts, &foreign).unwrap();
    let config = load(dir.path(), "127.0.0.1:0", &format!("{file}{process}"), &own).unwrap();
    let refused = start(config).await.unwrap_err();
    assert!(refused.contains("several organizations"), "{refused}");
    let trusting = format!("{file}{process}compute.process.trust_all_users = true\n");
    let config = load(dir.path(), "127.0.0.1:0", &trusting, &own).unwrap();
    let (uri, shutdown) = start(config).await.unwrap();
    assert!(may(&uri, &ada).await && may(&uri, &eve).await);
    shutdown.stop();

    // At run time the last valid accounts stay, and the whole change is ignored.
    std::fs::write(&accounts, account("bob", "acme", &bob)).unwrap();
    let config = load(dir.path(), "127.0.0.1:0", &format!("{file}{process}"), &own).unwrap();
    let (uri, shutdown) = start(config).await.unwrap();
    assert!(may(&uri, &ada).await && may(&uri, &bob).await);
    let carol = generate_key();
    let changed = account("carol", "acme", &carol);
    std::fs::write(&accounts, format!("{changed}{foreign}")).unwrap();
    // The file is read every 2 s; the new account is rejected throughout.
    for _ in 0..30 {
        assert!(!may(&uri, &eve).await && !may(&uri, &carol).await && may(&uri, &bob).await);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    std::fs::write(&accounts, changed).unwrap();
    until("the good change", async || may(&uri, &carol).await).await;
    assert!(!may(&uri, &eve).await && !may(&uri, &bob).await);
    shutdown.stop();
}
