//! Tenant isolation: random principals try every call of the APIs on each
//! other's sessions, through the real servers. Exactly the calls that `rules`
//! states are allowed. The error for a session of another owner equals
//! the error for a session that does not exist, byte for byte, and
//! (`existence_oracle`) after the same work.
mod rules;

use crate::support::{Manager, on, route, until};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use service_kit::caller::{NewKey, generate_key};
use service_kit::shutdown::Shutdown;
use session_core::access::Rpc;
use session_core::{
    Clock as _, Principal, Reason, Role, Session, SessionId, SessionKey, SystemClock, Timestamp,
};
use session_proto::error::reason_of;
use session_proto::internal::{self as ledger, token_ledger_client::TokenLedgerClient};
use session_proto::v1;
use session_proto::v1::audit_service_client::AuditServiceClient;
use session_proto::v1::catalog_service_client::CatalogServiceClient;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use session_proto::v1::org_service_client::OrgServiceClient;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use session_store::Kind;
use session_store::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

const ORGS: [&str; 3] = ["one", "two", "three"];
const TEAMS: [&str; 3] = ["data", "ops", "web"];
const PRINCIPALS: usize = 14;
const CASES: usize = 900;

struct Who {
    principal: Principal,
    key: NewKey,
}

struct Stage {
    manager: Manager,
    tokens: Channel,
    issuer: Shutdown,
    people: Vec<Who>,
    sessions: Vec<Session>,
}

/// A random principal; every role, team and combination occurs.
fn random_principal(rng: &mut StdRng, index: usize) -> Who {
    let some = |rng: &mut StdRng, chance: f64| -> BTreeSet<String> {
        let picked = TEAMS.iter().filter(|_| rng.random_bool(chance));
        picked.map(ToString::to_string).collect()
    };
    // The first two of each organization are a member and an admin, so that
    // there is always something to reject.
    let roles: BTreeSet<Role> = match index / ORGS.len() {
        0 => [Role::Member].into(),
        1 => [Role::Member, Role::OrgAdmin].into(),
        _ => [Role::Member, Role::OrgAdmin, Role::PlatformAdmin]
            .into_iter()
            .filter(|role| rng.random_bool(if *role == Role::Member { 0.7 } else { 0.2 }))
            .collect(),
    };
    let principal = Principal {
        // Names differ between organizations, because account names are unique.
        id: format!("sa|p{index}").parse().unwrap(),
        org: ORGS[index % ORGS.len()].parse().unwrap(),
        roles,
        teams: some(rng, 0.5),
        team_admin_of: some(rng, 0.25),
    };
    Who {
        principal,
        key: generate_key(),
    }
}

fn account(who: &Who) -> String {
    let Principal {
        id,
        org,
        roles,
        teams,
        team_admin_of,
    } = &who.principal;
    let name = id.as_str().trim_start_matches("sa|");
    let roles = serde_json::to_string(roles).unwrap();
    let teams = serde_json::to_string(teams).unwrap();
    let admin = serde_json::to_string(team_admin_of).unwrap();
    let hash = &who.key.sha256;
    format!(
        "[[service_accounts]]\nname = \"{name}\"\norg = \"{org}\"\nroles = {roles}\nteams = {teams}\n\
         team_admin_of = {admin}\nkey_sha256 = \"{hash}\"\n"
    )
}

impl Stage {
    async fn set(rng: &mut StdRng) -> Self {
        let people: Vec<Who> = (0..PRINCIPALS)
            .map(|index| random_principal(rng, index))
            .collect();
        let mut config = String::from(
            "[limits]\ncalls_per_second_per_principal = 0\ncalls_per_second_per_address = 0\n\
             [[clusters]]\nname = \"for-one\"\nengine = \"sail\"\ngranted_orgs = [\"one\"]\nprocess = { program = \"/opt/sail\" }\n",
        );
        for (org, teams) in [
            ("one", "[\"data\"]"),
            ("two", "[]"),
            ("three", "[\"ops\", \"web\"]"),
        ] {
            write!(
                config,
                "[[catalogs]]\nname = \"lake\"\norg = \"{org}\"\nengine = \"sail\"\nallowed_teams = {teams}\n\
                 properties = {{ type = \"memory\", initial_database = [\"lab\"] }}\n"
            )
            .unwrap();
        }
        config.extend(people.iter().map(account));
        let manager = Manager::start_with(&config).await;
        let (tokens, issuer) = issuer(&manager).await;
        let mut stage = Self {
            manager,
            tokens,
            issuer,
            people,
            sessions: Vec::new(),
        };
        for index in 0..PRINCIPALS {
            stage.create(rng, index).await;
        }
        stage
    }

    /// A session of this principal, of one of its teams if it has one.
    async fn create(&mut self, rng: &mut StdRng, index: usize) {
        let who = &self.people[index];
        let teams: Vec<&String> = who.principal.teams.iter().collect();
        let request = v1::CreateSessionRequest {
            team: teams.choose(rng).map(ToString::to_string).unwrap_or_default(),
            ..on("c")
        };
        let created = SessionServiceClient::new(self.manager.public.clone())
            .create_session(signed(request, who))
            .await;
        let may = rules::may(&who.principal, Rpc::CreateSession, None, "");
        assert_eq!(created.is_ok(), may, "{:?}: {created:?}", who.principal);
        let Ok(created) = created else { return };
        let id: SessionId = created.into_inner().session.unwrap().id.parse().unwrap();
        let key = SessionKey {
            org: who.principal.org.clone(),
            id,
        };
        until("the compute to be requested", async || {
            self.manager.sim.made(&key, 1) == 1
        })
        .await;
        self.manager.sim.ready(&key, 1, route("127.0.0.1:1"));
        until("the session to be active", async || {
            let session = self.manager.store.get(&key).await.unwrap();
            session.is_some_and(|session| session.status() == session_core::Status::Active)
        })
        .await;
        let session = self.manager.store.get(&key).await.unwrap().unwrap();
        self.sessions.push(session);
    }

    /// Makes the call. None for methods that no principal calls.
    async fn call(&self, who: &Who, rpc: Rpc, id: &str, org: &str) -> Option<Result<(), Status>> {
        let session_id = id.to_owned();
        let mut sessions = SessionServiceClient::new(self.manager.public.clone());
        let mut clusters = ClusterServiceClient::new(self.manager.public.clone());
        let mut catalogs = CatalogServiceClient::new(self.manager.public.clone());
        let mut orgs = OrgServiceClient::new(self.manager.public.clone());
        let mut audit = AuditServiceClient::new(self.manager.public.clone());
        let mut tokens = TokenServiceClient::new(self.tokens.clone());
        let mut ledger = TokenLedgerClient::new(self.manager.internal.clone());
        let soon = SystemClock.now().after(Duration::from_secs(1800));
        let at = |at: Timestamp| Some(session_proto::convert::timestamp(at));
        let cluster = v1::Cluster {
            name: "gone".to_owned(),
            engine: v1::Engine::Sail.into(),
            provider: Some(v1::cluster::Provider::Process(v1::ProcessProvider {
                program: "/opt/sail".to_owned(),
                ..Default::default()
            })),
            ..Default::default()
        };
        let catalog = v1::Catalog {
            name: "lake".to_owned(),
            engine: v1::Engine::Sail.into(),
            properties: [(
                "type".to_owned(),
                v1::PropertyValue {
                    value: Some(v1::property_value::Value::Text("memory".to_owned())),
                },
            )]
            .into(),
            ..Default::default()
        };
        let (lake, gone) = ("lake".to_owned(), "gone".to_owned());
        macro_rules! call {
            ($client:ident . $method:ident ( $message:expr )) => {
                $client.$method(signed($message, who)).await.map(drop)
            };
        }
        Some(match rpc {
            Rpc::CreateSession => {
                // On a cluster that accepts none, so that nothing is created.
                call!(sessions.create_session(v1::CreateSessionRequest {
                    cluster: gone,
                    ..Default::default()
                }))
            }
            Rpc::DescribeSession => {
                call!(sessions.describe_session(v1::DescribeSessionRequest {
                    session_id,
                    wait_ready: None
                }))
            }
            Rpc::ListSessions => call!(sessions.list_sessions(v1::ListSessionsRequest::default())),
            Rpc::UpdateSession => call!(sessions.update_session(v1::UpdateSessionRequest {
                session_id,
                name: Some("named".to_owned()),
                labels: None,
                version: 0,
            })),
            Rpc::ExtendSession => {
                call!(sessions.extend_session(v1::ExtendSessionRequest {
                    session_id,
                    expires_at: at(soon)
                }))
            }
            Rpc::KeepSessionAlive => {
                call!(sessions.keep_session_alive(v1::KeepSessionAliveRequest {
                    session_id,
                    until: at(soon)
                }))
            }
            Rpc::WarmSession => call!(sessions.warm_session(v1::WarmSessionRequest { session_id })),
            Rpc::CloseSession => call!(sessions.close_session(v1::CloseSessionRequest { session_id })),
            Rpc::WatchSessions => {
                let request = v1::WatchSessionsRequest { session_id };
                call!(sessions.watch_sessions(request))
            }
            Rpc::ListSessionEvents => {
                call!(sessions.list_session_events(v1::ListSessionEventsRequest { session_id }))
            }
            Rpc::ListOperations => call!(sessions.list_operations(v1::ListOperationsRequest { session_id })),
            Rpc::InterruptOperations => {
                call!(sessions.interrupt_operations(v1::InterruptOperationsRequest {
                    session_id,
                    operation_ids: Vec::new(),
                }))
            }
            Rpc::CreateCluster => {
                call!(clusters.create_cluster(v1::CreateClusterRequest {
                    cluster: Some(cluster)
                }))
            }
            Rpc::DescribeCluster => {
                call!(clusters.describe_cluster(v1::DescribeClusterRequest {
                    name: "for-one".to_owned()
                }))
            }
            Rpc::ListClusters => call!(clusters.list_clusters(v1::ListClustersRequest::default())),
            Rpc::UpdateCluster => {
                call!(clusters.update_cluster(v1::UpdateClusterRequest {
                    cluster: Some(cluster)
                }))
            }
            Rpc::DrainCluster => call!(clusters.drain_cluster(v1::DrainClusterRequest { name: gone })),
            Rpc::DeleteCluster => {
                call!(clusters.delete_cluster(v1::DeleteClusterRequest {
                    name: gone,
                    force: false
                }))
            }
            Rpc::CreateCatalog => {
                call!(catalogs.create_catalog(v1::CreateCatalogRequest {
                    catalog: Some(catalog)
                }))
            }
            Rpc::DescribeCatalog => {
                call!(catalogs.describe_catalog(v1::DescribeCatalogRequest { name: lake }))
            }
            Rpc::ListCatalogs => call!(catalogs.list_catalogs(v1::ListCatalogsRequest::default())),
            Rpc::UpdateCatalog => {
                call!(catalogs.update_catalog(v1::UpdateCatalogRequest {
                    catalog: Some(catalog)
                }))
            }
            Rpc::DeleteCatalog => {
                call!(catalogs.delete_catalog(v1::DeleteCatalogRequest {
                    name: lake,
                    ..Default::default()
                }))
            }
            Rpc::TestCatalog => {
                call!(catalogs.test_catalog(v1::TestCatalogRequest {
                    name: lake,
                    cluster: gone
                }))
            }
            Rpc::CreateOrg => call!(orgs.create_org(v1::CreateOrgRequest {
                org: Some(v1::Org {
                    name: "made".to_owned(),
                    ..Default::default()
                }),
            })),
            Rpc::DescribeOrg => call!(orgs.describe_org(v1::DescribeOrgRequest { name: org.to_owned() })),
            Rpc::ListOrgs => call!(orgs.list_orgs(v1::ListOrgsRequest::default())),
            Rpc::DescribeCaller => call!(orgs.describe_caller(v1::DescribeCallerRequest::default())),
            Rpc::SetLimits => call!(orgs.set_limits(v1::SetLimitsRequest {
                name: "made".to_owned(),
                limits: None,
            })),
            Rpc::EnableOrg => call!(orgs.enable_org(v1::EnableOrgRequest { name: org.to_owned() })),
            Rpc::DisableOrg => call!(orgs.disable_org(v1::DisableOrgRequest {
                name: "nobodys".to_owned()
            })),
            Rpc::DisablePrincipal => call!(orgs.disable_principal(v1::DisablePrincipalRequest {
                principal: "sa|nobody".to_owned(),
                disabled: true,
                org: org.to_owned(),
            })),
            Rpc::ListAuditRecords => {
                call!(audit.list_audit_records(v1::ListAuditRecordsRequest {
                    org: org.to_owned(),
                    ..Default::default()
                }))
            }
            Rpc::ListUsage => call!(audit.list_usage(v1::ListUsageRequest {
                org: org.to_owned(),
                ..Default::default()
            })),
            Rpc::IssueSessionToken => {
                call!(tokens.issue_session_token(v1::IssueSessionTokenRequest {
                    session_id,
                    ttl: None
                }))
            }
            Rpc::ListSessionTokens => {
                call!(tokens.list_session_tokens(v1::ListSessionTokensRequest { session_id }))
            }
            Rpc::RevokeSessionToken => call!(tokens.revoke_session_token(v1::RevokeSessionTokenRequest {
                session_id,
                token_id: "t-01jdq8f2mxk7w3v9c5ba".to_owned(),
            })),
            Rpc::RevokeAllSessionTokens => {
                call!(tokens.revoke_all_session_tokens(v1::RevokeAllSessionTokensRequest { session_id }))
            }
            Rpc::RecordToken => call!(ledger.record_token(ledger::RecordTokenRequest {
                session_id,
                ..Default::default()
            })),
            Rpc::ListTokens => call!(ledger.list_tokens(ledger::ListTokensRequest { session_id })),
            Rpc::Revoke => call!(ledger.revoke(ledger::RevokeRequest {
                session_id,
                token_id: "t-01jdq8f2mxk7w3v9c5ba".to_owned(),
            })),
            Rpc::RevokeAll => call!(ledger.revoke_all(ledger::RevokeAllRequest { session_id })),
            // For services only: tested in `internal_port.rs`.
            Rpc::ResolveRoute
            | Rpc::ReportKeys
            | Rpc::WatchRoutes
            | Rpc::ReportActivity
            | Rpc::BindSparkSession => {
                return None;
            }
        })
    }

    async fn end(self) {
        self.issuer.stop();
        self.manager.stop().await;
    }
}

/// A real token-issuer before the manager.
async fn issuer(manager: &Manager) -> (Channel, Shutdown) {
    let pem = manager.dir.path().join("signing.pem");
    std::fs::write(&pem, session_token::generate_key_pem().unwrap()).unwrap();
    let file = manager.dir.path().join("issuer.toml");
    let config = format!(
        "listen.grpc.address = \"127.0.0.1:0\"\nlisten.jwks.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\n\
         keys.signing = \"{}\"\nmanager.uri = \"{}\"\nlimits.failures_per_minute_per_address = 0\n\
         limits.calls_per_second_per_address = 0\n",
        pem.display(),
        manager.internal_uri
    );
    std::fs::write(&file, config).unwrap();
    let sources = service_kit::config::Sources {
        file: Some(file),
        ..Default::default()
    };
    let config: token_issuer::Config = service_kit::config::load(&sources).unwrap();
    let listeners = token_issuer::Listeners::bind(&config).await.unwrap();
    let uri = format!("http://{}", listeners.grpc.local_addr());
    let shutdown = Shutdown::new();
    tokio::spawn(token_issuer::run(config, listeners, shutdown.clone()));
    (Endpoint::from_shared(uri).unwrap().connect_lazy(), shutdown)
}

fn signed<T>(message: T, who: &Who) -> Request<T> {
    let mut request = Request::new(message);
    let credential = format!("Bearer {}", who.key.key).parse().unwrap();
    request.metadata_mut().insert("authorization", credential);
    request
}

/// Everything of a rejection that a client can observe.
fn seen(status: &Status) -> (Code, String, String, Vec<String>) {
    let mut metadata: Vec<String> = status
        .metadata()
        .clone()
        .into_headers()
        .iter()
        .filter(|(name, _)| *name != "date" && *name != "grpc-status-details-bin")
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    metadata.sort();
    (
        status.code(),
        status.message().to_owned(),
        details(status),
        metadata,
    )
}

/// The details with their maps in order.
fn details(status: &Status) -> String {
    let all = status.get_error_details();
    let info = all.error_info().map(|info| {
        let metadata: BTreeMap<_, _> = info.metadata.iter().collect();
        format!("{} {} {metadata:?}", info.reason, info.domain)
    });
    format!(
        "{} bytes: {info:?} {:?}",
        status.details().len(),
        all.retry_info()
    )
}

/// "You have no access to this, or it does not exist."
fn is_refusal(outcome: &Result<(), Status>) -> bool {
    outcome
        .as_ref()
        .is_err_and(|status| reason_of(status) == Some(Reason::NotAuthorized))
}

fn nobodys_session(rng: &mut StdRng) -> String {
    SessionId::generate(SystemClock.now(), rng.random()).to_string()
}

#[tokio::test]
async fn calls_are_allowed_by_the_table_and_rejections_reveal_nothing() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let stage = Stage::set(&mut rng).await;
    let (mut allowed, mut refused, mut reached) = (0, 0, BTreeSet::new());
    for case in 0..CASES {
        // Every method occurs in turn, with a random principal and target.
        let rpc = Rpc::ALL[case % Rpc::ALL.len()];
        let who = stage.people.choose(&mut rng).unwrap();
        let session = stage.sessions.choose(&mut rng).unwrap();
        let org = *ORGS.choose(&mut rng).unwrap();
        let Some(outcome) = stage.call(who, rpc, session.id.as_str(), org).await else {
            continue;
        };
        let may = rules::may(&who.principal, rpc, Some(session), org);
        let case = format!(
            "seed {seed}: {rpc:?} by {:?} on {} of {} ({}), org {org}: {outcome:?}",
            who.principal, session.id, session.owner, session.org
        );
        assert_eq!(may, !is_refusal(&outcome), "{case}");
        // An allowed call may fail for other reasons only.
        let code = outcome.as_ref().err().map(Status::code);
        let odd = [
            Code::Unauthenticated,
            Code::Internal,
            Code::Unknown,
            Code::Unimplemented,
        ];
        assert!(code.is_none_or(|code| !odd.contains(&code)), "{case}");
        if may {
            allowed += 1;
            reached.insert(rpc);
        } else {
            refused += 1;
            let nobodys = nobodys_session(&mut rng);
            let other = stage.call(who, rpc, &nobodys, org).await.unwrap().unwrap_err();
            assert_eq!(seen(&outcome.unwrap_err()), seen(&other), "{case}");
        }
    }
    println!(
        "{allowed} allowed, {refused} refused, {} of {} RPCs reached",
        reached.len(),
        Rpc::ALL.len()
    );
    assert!(
        allowed > CASES / 10 && refused > CASES / 10,
        "{allowed} and {refused}"
    );
    stage.end().await;
}

#[tokio::test]
async fn lists_contain_exactly_what_the_caller_may_read() {
    let seed = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    let stage = Stage::set(&mut rng).await;
    for who in &stage.people {
        let listed = SessionServiceClient::new(stage.manager.public.clone())
            .list_sessions(signed(v1::ListSessionsRequest::default(), who))
            .await
            .unwrap()
            .into_inner();
        let listed: BTreeSet<String> = listed.sessions.into_iter().map(|session| session.id).collect();
        let readable = stage
            .sessions
            .iter()
            .filter(|session| rules::may(&who.principal, Rpc::DescribeSession, Some(session), ""))
            .map(|session| session.id.to_string())
            .collect();
        assert_eq!(listed, readable, "seed {seed}: {:?}", who.principal);
        let orgs = OrgServiceClient::new(stage.manager.public.clone())
            .list_orgs(signed(v1::ListOrgsRequest::default(), who))
            .await
            .unwrap()
            .into_inner();
        let foreign = orgs.orgs.iter().any(|org| org.name != who.principal.org.as_str());
        assert!(
            !foreign || who.principal.has(Role::PlatformAdmin),
            "{:?}",
            who.principal
        );
    }
    stage.end().await;
}

/// Definitions of an organization are limited and invisible to others.
#[tokio::test]
async fn an_organization_has_a_limit_of_catalogs() {
    let manager = Manager::start().await;
    let create = async |name: String| {
        let text = v1::PropertyValue {
            value: Some(v1::property_value::Value::Text("memory".to_owned())),
        };
        let lake = v1::Catalog {
            name,
            engine: v1::Engine::Sail.into(),
            properties: [("type".to_owned(), text)].into(),
            ..Default::default()
        };
        let request = v1::CreateCatalogRequest { catalog: Some(lake) };
        manager.catalogs("olga").create_catalog(request).await
    };
    let quota = |status: &Status| {
        assert_eq!(reason_of(status), Some(Reason::QuotaExceeded), "{status:?}");
        let info = status.get_details_error_info().unwrap();
        (info.metadata["quota"].clone(), info.metadata["limit"].clone())
    };
    for n in 0..1000 {
        create(format!("c{n}")).await.unwrap();
    }
    let refused = create("more".to_owned()).await.unwrap_err();
    assert_eq!(quota(&refused), ("catalogs".to_owned(), "1000".to_owned()));
    assert!(refused.message().contains("1000"), "{}", refused.message());
    // They are listed in pages, by name.
    let pages = pages(&manager, 300).await;
    assert_eq!(
        pages.iter().map(Vec::len).collect::<Vec<_>>(),
        [300, 300, 300, 100]
    );
    let names = pages.concat();
    assert!(names.is_sorted() && names.iter().collect::<BTreeSet<_>>().len() == 1000);
    let request = |page_size, page_token: &str| v1::ListCatalogsRequest {
        page_size,
        page_token: page_token.to_owned(),
    };
    for (wrong, field) in [(request(1001, ""), "page_size"), (request(1, "{}"), "page_token")] {
        let refused = manager.catalogs("olga").list_catalogs(wrong).await.unwrap_err();
        assert!(refused.message().starts_with(field), "{refused}");
    }
    // Another organization is not affected.
    let listed = manager
        .catalogs("eve")
        .list_catalogs(v1::ListCatalogsRequest::default())
        .await;
    assert!(listed.unwrap().into_inner().catalogs.is_empty());
    let request = v1::DeleteCatalogRequest {
        name: "c0".to_owned(),
        force: false,
    };
    manager.catalogs("olga").delete_catalog(request).await.unwrap();
    create("more".to_owned()).await.unwrap();
    manager.stop().await;
}

/// The names of all catalogs, page by page.
async fn pages(manager: &Manager, page_size: i32) -> Vec<Vec<String>> {
    let (mut pages, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListCatalogsRequest {
            page_size,
            page_token,
        };
        let page = manager.catalogs("olga").list_catalogs(request).await;
        let page = page.unwrap().into_inner();
        pages.push(page.catalogs.into_iter().map(|catalog| catalog.name).collect());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return pages;
        }
    }
}

/// 6 MiB in all, while clients accept messages of 4 MiB.
#[tokio::test]
async fn a_page_of_large_catalogs_is_a_short_one() {
    let manager = Manager::start().await;
    let text = v1::PropertyValue {
        value: Some(v1::property_value::Value::Text("memory".to_owned())),
    };
    let first = v1::Catalog {
        name: "c0".to_owned(),
        engine: v1::Engine::Sail.into(),
        properties: [("type".to_owned(), text)].into(),
        default_database: "x".to_owned(),
        ..Default::default()
    };
    let request = v1::CreateCatalogRequest { catalog: Some(first) };
    manager.catalogs("olga").create_catalog(request).await.unwrap();
    let stored = manager.store.get_definition(Kind::Catalog, "acme/c0").await;
    let mut json: serde_json::Value = serde_json::from_str(&stored.unwrap().unwrap().json).unwrap();
    json["default_database"] = "x".repeat(200 << 10).into();
    for n in 1..30 {
        json["name"] = format!("c{n}").into();
        let name = format!("acme/c{n}");
        let (store, json) = (&manager.store, json.to_string());
        let put = store.put_definition(Kind::Catalog, &name, 0, &json).await;
        put.unwrap();
    }
    let pages = pages(&manager, 0).await;
    assert!(
        pages.iter().all(|page| (1..=16).contains(&page.len())),
        "{pages:?}"
    );
    assert_eq!(pages.concat().len(), 30);
    manager.stop().await;
}
