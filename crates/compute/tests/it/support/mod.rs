//! Real engines, and inspection of what they leave on the machine; an API server
//! and an engine in memory.

pub(crate) mod fake_engine;
pub(crate) mod fake_kube;

use compute::{ComputeProvider, ComputeSpec, ProcessConfig, ProcessProvider};
use session_core::catalog::PropertyValue;
use session_core::machine::{Cause, Observation};
use session_core::{Catalog, Cluster, Engine, Provider, Route};
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{self as sc};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use test_support::fixtures;
pub(crate) use test_support::fixtures::session_key as key;

/// Much longer than any step takes, so that only a real fault exceeds it.
pub(crate) const LONG: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);

fn installed(variable: &str, default: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = std::env::var_os(variable).map_or_else(|| root.join(default), PathBuf::from);
    assert!(
        path.exists(),
        "{} is missing: run deploy/local/setup.sh test, or set {variable}",
        path.display()
    );
    // Not canonical: the python of a venv is a link that must not be resolved.
    std::path::absolute(path).unwrap().to_string_lossy().into_owned()
}

pub(crate) fn sail() -> String {
    installed("BERTH_SAIL", ".berth/venv-sail/bin/sail")
}

pub(crate) fn spark_home() -> String {
    installed("BERTH_SPARK_HOME", ".berth/venv-spark/spark-home")
}

pub(crate) fn spark_java() -> String {
    installed("BERTH_SPARK_JAVA", ".berth/java-spark")
}

pub(crate) fn spark_python() -> String {
    installed("BERTH_SPARK_PYTHON", ".berth/venv-spark/bin/python")
}

pub(crate) fn sail_python() -> String {
    installed("BERTH_SAIL_PYTHON", ".berth/venv-sail/bin/python")
}

pub(crate) fn process_cluster(engine: Engine) -> Cluster {
    let provider = match engine {
        Engine::Sail => fixtures::processes(&sail(), &[]),
        Engine::Spark => Provider::Process {
            program: spark_home(),
            java_home: Some(spark_java()),
            properties: [("spark.master".to_owned(), "local[2]".to_owned())].into(),
            python: Some(spark_python()),
            driver_memory: None,
        },
    };
    cluster(engine, provider)
}

pub(crate) fn cluster(engine: Engine, provider: Provider) -> Cluster {
    fixtures::cluster("local", engine, provider)
}

pub(crate) fn spec(engine: Engine, n: u64) -> ComputeSpec {
    spec_on(process_cluster(engine), n)
}

pub(crate) fn spec_on(cluster: Cluster, n: u64) -> ComputeSpec {
    ComputeSpec {
        key: key(n),
        generation: 1,
        cluster,
        catalog: None,
    }
}

pub(crate) fn catalog(engine: Engine, name: &str, properties: &[(&str, &str)]) -> Catalog {
    let mut texts = Vec::new();
    for (key, value) in properties {
        texts.push((*key, PropertyValue::Text((*value).to_owned())));
    }
    fixtures::catalog(engine, name, &texts)
}

pub(crate) fn config(state_dir: &Path) -> ProcessConfig {
    let mut config = ProcessConfig::new(state_dir);
    config.supervise = env!("CARGO_BIN_EXE_berth-supervise").into();
    config
}

pub(crate) fn provider(state_dir: &Path) -> ProcessProvider {
    ProcessProvider::new(config(state_dir)).unwrap()
}

/// Observes until `wanted` is true; the failure text has the last observation.
pub(crate) async fn until(
    provider: &dyn ComputeProvider,
    spec: &ComputeSpec,
    wanted: impl Fn(&Observation) -> bool,
) -> Observation {
    let begun = Instant::now();
    loop {
        let seen = provider.observe(spec).await.unwrap();
        if wanted(&seen) {
            return seen;
        }
        assert!(begun.elapsed() < LONG, "after {LONG:?} still {seen:?}");
        tokio::time::sleep(POLL).await;
    }
}

pub(crate) async fn until_ready(provider: &dyn ComputeProvider, spec: &ComputeSpec) -> Route {
    let over = |o: &Observation| matches!(o, Observation::Ready { .. } | Observation::Failed { .. });
    match until(provider, spec, over).await {
        Observation::Ready { route } => route,
        other => panic!("not ready but {other:?}"),
    }
}

/// The text of a cause, after a check that it is public.
pub(crate) async fn until_failed(provider: &dyn ComputeProvider, spec: &ComputeSpec) -> (String, bool) {
    let (cause, permanent) = until_failed_with(provider, spec).await;
    let places = ["/", "127.0.0.1", "://", "\n"];
    assert!(
        !places.iter().any(|place| cause.text.contains(place)),
        "{cause:?}"
    );
    (cause.text, permanent)
}

pub(crate) async fn until_failed_with(provider: &dyn ComputeProvider, spec: &ComputeSpec) -> (Cause, bool) {
    match until(provider, spec, |o| matches!(o, Observation::Failed { .. })).await {
        Observation::Failed { cause, permanent } => (cause, permanent),
        other => panic!("not failed but {other:?}"),
    }
}

pub(crate) async fn until_missing(provider: &dyn ComputeProvider, spec: &ComputeSpec) {
    until(provider, spec, |o| *o == Observation::Missing).await;
}

pub(crate) async fn wait_for(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "after {limit:?} still not: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// The processes in folders below `dir`: supervisors and engines.
#[derive(Debug, Default)]
pub(crate) struct Running {
    pub(crate) helpers: Vec<i32>,
    pub(crate) engines: Vec<i32>,
}

impl Running {
    pub(crate) fn below(dir: &Path) -> Self {
        let dir = dir.canonicalize().unwrap();
        let mut running = Self::default();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let is_below =
                std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&dir));
            if !is_below {
                continue;
            }
            match std::fs::read_link(entry.path().join("exe")) {
                Ok(exe) if exe.ends_with("berth-supervise") => running.helpers.push(pid),
                Ok(_) => running.engines.push(pid),
                Err(_) => {}
            }
        }
        // Process ids start again at low numbers; an engine is older than its Python workers.
        running.engines.sort_by_key(|pid| started_at(*pid));
        running
    }

    pub(crate) fn is_none(&self) -> bool {
        self.helpers.is_empty() && self.engines.is_empty()
    }
}

/// Start of a process in clock ticks since boot: field 22 of proc_pid_stat(5).
fn started_at(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may contain spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let start = fields.split_whitespace().nth(19);
    start.and_then(|ticks| ticks.parse().ok()).unwrap_or(u64::MAX)
}

pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// A raw Spark Connect client of one Spark session.
pub(crate) struct RawClient {
    client: SparkConnectServiceClient<tonic::transport::Channel>,
    session_id: String,
    user_id: String,
    token: Option<String>,
}

impl RawClient {
    pub(crate) async fn connect(route: &Route) -> Self {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", route.endpoint)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self {
            client: SparkConnectServiceClient::new(channel),
            session_id: uuid::Uuid::new_v4().to_string(),
            user_id: "tester".to_owned(),
            token: route.credential.as_ref().map(|secret| secret.expose().to_owned()),
        }
    }

    pub(crate) fn speaking_as(mut self, user_id: &str, session_id: &str) -> Self {
        user_id.clone_into(&mut self.user_id);
        session_id.clone_into(&mut self.session_id);
        self
    }

    pub(crate) fn without_token(mut self) -> Self {
        self.token = None;
        self
    }

    /// Runs SQL like PySpark; returns the raw Arrow bytes of the result.
    pub(crate) async fn sql(&mut self, query: &str) -> Result<Vec<u8>, tonic::Status> {
        let relation = sc::Relation {
            common: Some(sc::RelationCommon { plan_id: Some(0) }),
            rel_type: Some(sc::relation::RelType::Sql(sc::Sql {
                query: query.to_owned(),
            })),
        };
        let command = sc::Command {
            command_type: Some(sc::command::CommandType::SqlCommand(sc::SqlCommand {
                input: Some(relation),
                ..Default::default()
            })),
        };
        let (answer, _) = self.execute(sc::plan::OpType::Command(command)).await?;
        let relation = answer.expect("SQL gives a relation");
        Ok(self.execute(sc::plan::OpType::Root(relation)).await?.1)
    }

    async fn execute(
        &mut self,
        plan: sc::plan::OpType,
    ) -> Result<(Option<sc::Relation>, Vec<u8>), tonic::Status> {
        use sc::execute_plan_response::ResponseType;
        let message = sc::ExecutePlanRequest {
            session_id: self.session_id.clone(),
            user_context: Some(sc::UserContext {
                user_id: self.user_id.clone(),
                user_name: self.user_id.clone(),
            }),
            plan: Some(sc::Plan { op_type: Some(plan) }),
            ..Default::default()
        };
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut answers = self.client.execute_plan(request).await?.into_inner();
        let (mut relation, mut bytes) = (None, Vec::new());
        while let Some(answer) = answers.message().await? {
            match answer.response_type {
                Some(ResponseType::SqlCommandResult(result)) => relation = result.relation,
                Some(ResponseType::ArrowBatch(batch)) => bytes.extend(batch.data),
                Some(_) | None => {}
            }
        }
        Ok((relation, bytes))
    }
}

pub(crate) fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Runs a user function in a real PySpark client; the venv of `python` contains
/// PySpark.
pub(crate) fn python_udf_runs(python: &str, route: &Route, dir: &Path) {
    let script = dir.join("udf.py");
    std::fs::write(&script, UDF).unwrap();
    let (_, port) = route.endpoint.rsplit_once(':').unwrap();
    let token = route
        .credential
        .as_ref()
        .map_or(String::new(), |secret| format!("/;token={}", secret.expose()));
    let ran = std::process::Command::new(python)
        .arg(script)
        .arg(format!("sc://localhost:{port}{token}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(said.trim(), "HELLO", "{}", String::from_utf8_lossy(&ran.stderr));
}

const UDF: &str = r#"
import sys
from pyspark.sql import SparkSession
from pyspark.sql.functions import lit, udf

spark = SparkSession.builder.remote(sys.argv[1]).getOrCreate()
shout = udf(lambda text: text.upper(), "string")
print(spark.range(1).select(shout(lit("hello"))).collect()[0][0])
spark.stop()
"#;
