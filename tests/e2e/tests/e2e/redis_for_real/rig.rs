//! Two session-managers, a token-issuer and a proxy on a Redis that the test owns, and callers
//! at work.

use super::callers::{Api, Caller, Shared};
use super::engine::Engine;
use super::history::{Done, Refusal, Refusals, Story, check_all};
use anyhow::{Context as _, Result, ensure};
use e2e::{AnotherManager, Service, Stack, StackOptions, wait};
use session_proto::spark as sc;
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::v1::SessionStatus;
use session_store::redis::{Credentials, Options, TlsFiles};
use session_store::{Memory, SessionStore};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use test_support::redis::Secured;
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Longer than any fail-over on a busy machine.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Calls after a fault that show that all services continue.
const ENOUGH: u64 = 40;
/// Callers, with their organizations: two partitions of the store.
const CALLERS: [(&str, &str); 4] = [
    ("ada", "acme"),
    ("bob", "acme"),
    ("olga", "acme"),
    ("eve", "umbrella"),
];

/// Everything that runs.
pub(super) struct Rig {
    stack: Stack,
    second: AnotherManager,
    url: String,
    options: Options,
    pids: [Option<u32>; 3],
    _engine: Engine,
}

impl Rig {
    pub(super) async fn start(url: String, secured: Option<&Secured>) -> Result<Self> {
        let engine = Engine::start().await?;
        let options = options(secured);
        let mut manager = store_config(&options);
        manager += "limits.calls_per_second_per_principal = 0\nlimits.calls_per_second_per_address = 0\n";
        for org in ["acme", "umbrella"] {
            manager += &format!(
                "[[orgs]]\nname = \"{org}\"\n[orgs.limits]\nlive_sessions_per_owner = 10000\n\
                 live_sessions = 10000\ncreates_per_minute = 10000\n"
            );
        }
        manager += &format!(
            "[[clusters]]\nname = \"shared\"\nengine = \"sail\"\ngranted_orgs = [\"acme\", \"umbrella\"]\nstatic.allow_shared_untrusted = true\n\
             static.endpoints = [{{ address = \"{}\" }}]\n",
            engine.address
        );
        let mut stack = Stack::prepare(&StackOptions {
            manager,
            issuer: "limits.calls_per_second_per_address = 0\n".to_owned(),
            store: Some(url.clone()),
            ..StackOptions::default()
        })
        .await?;
        stack.up().await?;
        let second = stack.another_manager().await?;
        let pids = [stack.manager.pid(), second.service.pid(), stack.issuer.pid()];
        Ok(Self {
            stack,
            second,
            url,
            options,
            pids,
            _engine: engine,
        })
    }

    fn apis(&self, who: &str) -> Result<Vec<Api>> {
        let managers = [
            self.stack.manager_uri.clone(),
            format!("http://{}", self.second.public),
        ];
        let api = |uri: &String| Api::new(self.stack.key_of(who), uri, self.stack.issuer_uri());
        managers.iter().map(api).collect()
    }

    /// The managers.
    pub(super) fn managers(&self) -> [&Service; 2] {
        [&self.stack.manager, &self.second.service]
    }

    /// Waits until each manager answers `text` at an admin page.
    pub(super) async fn managers_show(&self, page: &str, text: &str) -> Result<()> {
        for manager in self.managers() {
            wait::until(&format!("{text:?} at {page}"), LIMIT, async || {
                match manager.admin(page).await {
                    Ok(answer) if answer.contains(text) => Ok(()),
                    Ok(answer) if page == "/metrics" => Err(store_metrics(&answer)),
                    other => Err(format!("{other:?}")),
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until each manager is ready.
    pub(super) async fn managers_are_ready(&self) -> Result<()> {
        self.managers_show("/readyz", "HTTP/1.1 200").await?;
        self.managers_show("/metrics", "session_manager_store_unavailable{cause=\"disk\"} 0")
            .await
    }

    /// The state, read without Berth's services.
    pub(super) async fn store(&self) -> Result<Arc<dyn SessionStore>> {
        Ok(session_store::open(&self.url, &self.options).await?)
    }

    /// The options of its connections.
    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Memory as the store knows it.
    pub(super) async fn memory(&self) -> Result<Option<Memory>> {
        Ok(self.store().await?.memory().await?)
    }

    /// Each manager reads a session that the callers made.
    pub(super) async fn reads_go_on(&self) -> Result<()> {
        for api in self.apis("olga")? {
            ensure!(api.count().await? > 0, "no session is listed");
        }
        Ok(())
    }

    /// Starts the second manager again during a fault: it waits, and says for what. `over` ends
    /// the fault; then it is ready by itself.
    pub(super) async fn a_manager_starts(
        &mut self,
        cause: &str,
        over: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let manager = &mut self.second.service;
        manager.kill9().await?;
        manager.start()?;
        self.pids[1] = manager.pid();
        wait::until("the manager waits", LIMIT, async || {
            let log = manager.log();
            let waits = log
                .lines()
                .any(|line| line.contains("start delayed") && line.contains(cause));
            waits.then_some(()).ok_or(log)
        })
        .await?;
        let ready = manager.admin("/readyz").await?;
        ensure!(ready.contains("503") && ready.contains("started"), "{ready}");
        over()?;
        self.second.service.ready().await
    }

    /// Creates a session and closes it.
    pub(super) async fn creates(&self, request_id: &str) -> Result<()> {
        let api = self.apis("ada")?.swap_remove(0);
        let id = api.create(request_id, "one more").await?.id;
        api.close(&id).await?;
        Ok(())
    }

    /// Starts the callers, and the user of a session that stays in use.
    pub(super) async fn work(&self) -> Result<Work> {
        let shared = Arc::new(Shared::default());
        let (spark, user) = self.user(Arc::clone(&shared)).await?;
        let mut tasks = JoinSet::new();
        for (who, org) in CALLERS {
            let caller = Caller {
                who,
                org,
                apis: self.apis(who)?,
                shared: Arc::clone(&shared),
            };
            tasks.spawn(caller.work());
        }
        Ok(Work {
            shared,
            tasks,
            spark,
            user,
        })
    }

    /// A session that is called through the proxy all the time.
    async fn user(&self, shared: Arc<Shared>) -> Result<(Spark, JoinHandle<Result<(Story, u64)>>)> {
        let api = self.apis("ada")?.swap_remove(0);
        let id = api.create(&uuid::Uuid::new_v4().to_string(), "in use").await?.id;
        wait::until("the session is active", LIMIT, async || {
            match api.describe(&id).await {
                Ok(session) if session.status() == SessionStatus::Active => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        let token = api.issue(&id).await?;
        let channel =
            tonic::transport::Endpoint::from_shared(format!("http://{}", self.stack.proxy_address))?;
        let spark = Spark {
            client: SparkConnectServiceClient::new(channel.connect_lazy()),
            bearer: format!("Bearer {}", token.token),
        };
        let (caller, session_id) = (spark.clone(), uuid::Uuid::new_v4().to_string());
        // The first call binds the Spark session.
        caller.call(&session_id).await?;
        let story = Story {
            org: "acme",
            id,
            names: vec!["in use".to_owned()],
            closed: Done::No,
            tokens: BTreeMap::from([(token.token_id, Done::No)]),
        };
        let user = tokio::spawn(async move {
            let mut calls = 0;
            while !shared.is_over() {
                let called = caller.call(&session_id).await;
                called.context("a session in use was disturbed")?;
                calls += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok((story, calls))
        });
        Ok((spark, user))
    }

    /// All calls succeed again in the same processes, and the store has what was acknowledged.
    pub(super) async fn settled(&self, stories: &[Story]) -> Result<()> {
        self.managers_are_ready().await?;
        let pids = [
            self.stack.manager.pid(),
            self.second.service.pid(),
            self.stack.issuer.pid(),
        ];
        ensure!(pids == self.pids, "a service was started again");
        for service in [&self.stack.manager, &self.second.service, &self.stack.issuer] {
            ensure!(
                !service.has_ended(),
                "{} ended: {}",
                service.name(),
                service.log()
            );
        }
        check_all(stories, &*self.store().await?).await
    }
}

/// A Spark client of one session, through the proxy.
#[derive(Clone)]
struct Spark {
    client: SparkConnectServiceClient<Channel>,
    bearer: String,
}

impl Spark {
    async fn call(&self, session_id: &str) -> Result<(), Status> {
        let mut request = Request::new(version_of(session_id));
        let bearer = self.bearer.parse();
        let bearer = bearer.map_err(|_| Status::internal("the token"))?;
        request.metadata_mut().insert("authorization", bearer);
        request.set_timeout(LIMIT);
        self.client.clone().analyze_plan(request).await.map(drop)
    }
}

/// Callers at work.
pub(super) struct Work {
    pub(super) shared: Arc<Shared>,
    tasks: JoinSet<Result<Vec<Story>>>,
    spark: Spark,
    user: JoinHandle<Result<(Story, u64)>>,
}

impl Work {
    /// Waits until some more calls were acknowledged.
    pub(super) async fn goes_on(&self) -> Result<()> {
        let before = self.shared.acknowledged();
        wait::until("calls are acknowledged", LIMIT, async || {
            let more = self.shared.acknowledged() - before;
            if more >= ENOUGH {
                Ok(())
            } else {
                Err(format!("{more}; errors: {:?}", self.shared.refused()))
            }
        })
        .await
    }

    /// A new client of the session in use gets an error with this text: its Spark session
    /// would be written.
    pub(super) async fn a_new_client_is_refused(&self, text: &str) -> Result<()> {
        let refused = self.spark.call(&uuid::Uuid::new_v4().to_string()).await;
        let refused = refused.err().context("a new client was served")?;
        Refusal::of("connect", &refused).check()?;
        ensure!(refused.message().contains(text), "{refused:?}");
        Ok(())
    }

    /// Waits until this call got an error with this text.
    pub(super) async fn is_refused(&self, deed: &str, text: &str) -> Result<()> {
        wait::until(&format!("{deed}: {text}"), LIMIT, async || {
            let refused = self.shared.refused();
            let found = refused
                .keys()
                .any(|refusal| refusal.deed == deed && refusal.text.contains(text));
            found.then_some(()).ok_or_else(|| format!("{refused:?}"))
        })
        .await
    }

    /// Ends the work; returns all that was done. Every error named cause and advice.
    pub(super) async fn end(mut self, what: &str, begun: Instant) -> Result<Vec<Story>> {
        self.shared.end();
        let mut stories = Vec::new();
        while let Some(done) = self.tasks.join_next().await {
            stories.extend(done??);
        }
        let (story, calls) = self.user.await??;
        stories.push(story);
        let refused = self.shared.refused();
        report(what, begun, &self.shared, &refused, stories.len(), calls);
        for refusal in refused.keys() {
            refusal.check()?;
        }
        Ok(stories)
    }
}

fn report(what: &str, begun: Instant, shared: &Shared, refused: &Refusals, sessions: usize, calls: u64) {
    println!(
        "{what}: {:.0?}, {} calls acknowledged, {} refused, the longest {:.1?}; {sessions} sessions; \
         {calls} calls of a session in use, none failed",
        begun.elapsed(),
        shared.acknowledged(),
        refused.values().sum::<u64>(),
        shared.longest(),
    );
    for (refusal, count) in refused {
        println!(
            "  {count} × {}: {} {}",
            refusal.deed, refusal.reason, refusal.text
        );
    }
}

/// The lines of metrics about the store.
fn store_metrics(answer: &str) -> String {
    let lines = answer
        .lines()
        .filter(|line| line.starts_with("session_manager_store"));
    lines.collect::<Vec<_>>().join("\n")
}

fn version_of(session_id: &str) -> sc::AnalyzePlanRequest {
    use sc::analyze_plan_request::{Analyze, SparkVersion};
    sc::AnalyzePlanRequest {
        session_id: session_id.to_owned(),
        user_context: Some(sc::UserContext::default()),
        analyze: Some(Analyze::SparkVersion(SparkVersion {})),
        ..Default::default()
    }
}

fn options(secured: Option<&Secured>) -> Options {
    let Some(secured) = secured else {
        return Options::default();
    };
    let credentials = |password: &str| Credentials {
        username: Some(Secured::USER.to_owned()),
        password: Some(password.to_owned()),
    };
    let (certificate, key) = secured.certificates.client();
    Options {
        credentials: credentials(Secured::PASSWORD),
        sentinel_credentials: credentials(Secured::SENTINEL_PASSWORD),
        tls: TlsFiles {
            ca: Some(secured.certificates.ca()),
            certificate: Some(certificate),
            key: Some(key),
        },
        ..Options::default()
    }
}

/// The same options in session-manager's configuration.
fn store_config(options: &Options) -> String {
    let mut config = String::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            config += &format!("store.{name} = \"{value}\"\n");
        }
    };
    add("username", options.credentials.username.clone());
    add("password", options.credentials.password.clone());
    add("sentinel_username", options.sentinel_credentials.username.clone());
    add("sentinel_password", options.sentinel_credentials.password.clone());
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    add("tls.ca", path(&options.tls.ca));
    add("tls.certificate", path(&options.tls.certificate));
    add("tls.key", path(&options.tls.key));
    config
}
