//! Asking a Spark Connect server whether it is ready, and whether it lives.
//!
//! Ready means: it told its version to a new Spark session under the name of
//! the Berth session, and the default catalog, if there is one, answered too
//! (the right name of a catalog that cannot be reached must not look ready).

use crate::dial::{Dialer, Target};
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{self as sc, UserContext};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// One try to ask for the version.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// One question to the catalog: the first query of a cold JVM takes seconds.
const CATALOG_LIMIT: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const CLIENT_TYPE: &str = "berth-probe";
/// Of what an engine says, this much is passed on.
const ENGINE_TEXT: usize = 300;

/// What a probe asks.
#[derive(Debug, Clone)]
pub struct Question {
    /// In whose name: the Berth session's id, as the proxy will give it.
    pub user_id: String,
    /// What must be true of the catalog.
    pub catalog: Option<CatalogQuestion>,
}

/// The catalog that a session must find.
#[derive(Debug, Clone)]
pub struct CatalogQuestion {
    /// Its name.
    pub name: String,
    /// The database that unqualified names are looked up in.
    pub database: Option<String>,
    /// Choose it by calls, because the server was not started with it.
    pub select: bool,
}

/// Why a server is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReady {
    /// It may become so by itself.
    Yet(String),
    /// It will not.
    Ever(String),
}

/// Asks once, with a new Spark session that is released at the end.
///
/// # Errors
/// [`NotReady`] in words for users.
pub async fn ask(target: &Target, question: &Question) -> Result<String, NotReady> {
    let channel = connect(target).await?;
    let asker = Asker {
        channel,
        bearer: bearer(target)?,
        session_id: uuid::Uuid::new_v4().to_string(),
        user: UserContext {
            user_id: question.user_id.clone(),
            user_name: question.user_id.clone(),
        },
    };
    let version = within(TRY_LIMIT, asker.version()).await;
    let answer = match (version, &question.catalog) {
        (Ok(version), Some(catalog)) => within(CATALOG_LIMIT, asker.use_catalog(catalog))
            .await
            .map_err(|e| about_catalog(catalog, e))
            .map(|()| version),
        (Err(e), Some(catalog)) if catalog_is_unknown(e.text()) => Err(about_catalog(catalog, e)),
        (version, _) => version,
    };
    // Leaves nothing behind; the answer stands even if this fails.
    if let Err(e) = within(TRY_LIMIT, asker.release()).await {
        tracing::debug!(cause = %e.text(), "the probe's Spark session was not released");
    }
    answer
}

/// Asks again until the server is ready or never will be. `waiting` hears why
/// it is not ready yet.
///
/// # Errors
/// The cause that makes waiting useless.
pub async fn until_ready(
    target: &Target,
    question: &Question,
    mut waiting: impl FnMut(String),
) -> Result<String, String> {
    let mut pause = FIRST_PAUSE;
    loop {
        match ask(target, question).await {
            Ok(version) => return Ok(version),
            Err(NotReady::Ever(cause)) => return Err(cause),
            Err(NotReady::Yet(cause)) => waiting(cause),
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// Is somebody there who speaks Spark Connect? Asks for a method that does not
/// exist, which makes no Spark session and costs under a millisecond.
///
/// # Errors
/// [`NotReady`] in words.
pub async fn is_alive(target: &Target) -> Result<(), NotReady> {
    let channel = connect(target).await?;
    let bearer = bearer(target)?;
    let unknown = async move {
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let path = http::uri::PathAndQuery::from_static("/spark.connect.SparkConnectService/BerthLiveness");
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        grpc.unary(with_bearer((), bearer.as_ref()), path, codec).await
    };
    match timeout(TRY_LIMIT, unknown).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(()),
        Ok(Err(status)) => Err(classify(&status)),
        Err(_) => Err(too_late(TRY_LIMIT)),
    }
}

struct Asker {
    channel: Channel,
    bearer: Option<MetadataValue<Ascii>>,
    session_id: String,
    user: UserContext,
}

impl Asker {
    fn client(&self) -> SparkConnectServiceClient<Channel> {
        SparkConnectServiceClient::new(self.channel.clone())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        with_bearer(message, self.bearer.as_ref())
    }

    async fn version(&self) -> Result<String, Status> {
        use sc::{analyze_plan_request as ask, analyze_plan_response as answer};
        let message = sc::AnalyzePlanRequest {
            session_id: self.session_id.clone(),
            user_context: Some(self.user.clone()),
            client_type: Some(CLIENT_TYPE.to_owned()),
            analyze: Some(ask::Analyze::SparkVersion(ask::SparkVersion {})),
            ..Default::default()
        };
        match self
            .client()
            .analyze_plan(self.request(message))
            .await?
            .into_inner()
            .result
        {
            Some(answer::Result::SparkVersion(version)) => Ok(version.version),
            Some(_) | None => Err(Status::unimplemented("it gave no version")),
        }
    }

    /// Only a query makes an engine load its catalog and ask what is behind it.
    async fn use_catalog(&self, catalog: &CatalogQuestion) -> Result<(), Status> {
        use sc::catalog_operation::CatType;
        if catalog.select {
            self.run(CatType::SetCurrentCatalog(sc::SetCurrentCatalog {
                catalog_name: catalog.name.clone(),
            }))
            .await?;
            if let Some(database) = &catalog.database {
                self.run(CatType::SetCurrentDatabase(sc::SetCurrentDatabase {
                    db_name: database.clone(),
                }))
                .await?;
            }
        }
        let current = self.run(CatType::CurrentCatalog(sc::CurrentCatalog {})).await?;
        // The reply is an Arrow stream of one text, uncompressed.
        if !contains(&current, catalog.name.as_bytes()) {
            return Err(Status::not_found(format!(
                "{} is not the current catalog",
                catalog.name
            )));
        }
        let look = if catalog.database.is_some() {
            CatType::ListTables(sc::ListTables::default())
        } else {
            CatType::ListDatabases(sc::ListDatabases::default())
        };
        match self.run(look).await {
            // Some catalogs of Spark have no databases: nothing to list, no fault.
            Err(status) if status.message().contains("does not support namespaces") => Ok(()),
            Err(status) => Err(status),
            Ok(_) => Ok(()),
        }
    }

    async fn run(&self, operation: sc::catalog_operation::CatType) -> Result<Vec<u8>, Status> {
        let relation = sc::Relation {
            common: None,
            rel_type: Some(sc::relation::RelType::Catalog(sc::CatalogOperation {
                cat_type: Some(operation),
            })),
        };
        let message = sc::ExecutePlanRequest {
            session_id: self.session_id.clone(),
            user_context: Some(self.user.clone()),
            client_type: Some(CLIENT_TYPE.to_owned()),
            plan: Some(sc::Plan {
                op_type: Some(sc::plan::OpType::Root(relation)),
            }),
            ..Default::default()
        };
        let mut answers = self
            .client()
            .execute_plan(self.request(message))
            .await?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(answer) = answers.message().await? {
            if let Some(sc::execute_plan_response::ResponseType::ArrowBatch(batch)) = answer.response_type {
                bytes.extend(batch.data);
            }
        }
        Ok(bytes)
    }

    async fn release(&self) -> Result<(), Status> {
        let message = sc::ReleaseSessionRequest {
            session_id: self.session_id.clone(),
            user_context: Some(self.user.clone()),
            client_type: Some(CLIENT_TYPE.to_owned()),
            allow_reconnect: false,
        };
        self.client()
            .release_session(self.request(message))
            .await
            .map(drop)
    }
}

impl NotReady {
    fn text(&self) -> &str {
        match self {
            Self::Yet(text) | Self::Ever(text) => text,
        }
    }
}

async fn connect(target: &Target) -> Result<Channel, NotReady> {
    let endpoint = Endpoint::from_shared(format!("http://{}", target.address))
        .map_err(|e| NotReady::Ever(format!("{} is no address: {e}", target.address)))?;
    let endpoint = match &target.tls {
        // The dialer does TLS itself; the server must still be told that it is.
        Some(_) => match format!("https://{}", target.address).parse() {
            Ok(origin) => endpoint.origin(origin),
            Err(_) => endpoint,
        },
        None => endpoint,
    };
    let refusal = target.check().await;
    if let Err(e) = refusal {
        return Err(if e.is_permanent() {
            NotReady::Ever(e.to_string())
        } else {
            NotReady::Yet(e.to_string())
        });
    }
    match timeout(
        TRY_LIMIT,
        endpoint.connect_with_connector(Dialer::new(target.clone())),
    )
    .await
    {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(NotReady::Yet(format!("it does not answer: {}", innermost(&e)))),
        Err(_) => Err(too_late(TRY_LIMIT)),
    }
}

fn bearer(target: &Target) -> Result<Option<MetadataValue<Ascii>>, NotReady> {
    let Some(secret) = &target.credential else {
        return Ok(None);
    };
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", secret.expose())
        .parse()
        .map_err(|_| NotReady::Ever("the backend's token has characters that no token has".to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn with_bearer<T>(message: T, bearer: Option<&MetadataValue<Ascii>>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(bearer) = bearer {
        request.metadata_mut().insert("authorization", bearer.clone());
    }
    request
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, NotReady> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(|status| classify(&status)),
        Err(_) => Err(too_late(limit)),
    }
}

fn too_late(limit: Duration) -> NotReady {
    NotReady::Yet(format!("it did not answer within {} s", limit.as_secs()))
}

fn classify(status: &Status) -> NotReady {
    let said = shorten(status.message());
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            NotReady::Ever(format!("it refuses the backend token: {said}"))
        }
        Code::Unimplemented => NotReady::Ever(format!("it is no Spark Connect server: {said}")),
        Code::Unavailable => NotReady::Yet(format!("it does not answer: {said}")),
        _ => NotReady::Yet(said),
    }
}

fn about_catalog(catalog: &CatalogQuestion, why: NotReady) -> NotReady {
    let text = format!("catalog {} cannot be used: {}", catalog.name, why.text());
    match why {
        NotReady::Yet(said) if catalog_is_unknown(&said) => NotReady::Ever(text),
        NotReady::Yet(_) => NotReady::Yet(text),
        NotReady::Ever(_) => NotReady::Ever(text),
    }
}

/// What engines say of a catalog or database that waiting will not bring.
fn catalog_is_unknown(said: &str) -> bool {
    const SAYINGS: [&str; 8] = [
        "Catalog not found",
        "catalog not found",
        "Database not found",
        "database not found",
        "CATALOG_NOT_FOUND",
        "SCHEMA_NOT_FOUND",
        "CANNOT_LOAD_CATALOG",
        "is not the current catalog",
    ];
    SAYINGS.iter().any(|saying| said.contains(saying))
}

/// The first lines: engines append whole stack traces.
fn shorten(text: &str) -> String {
    let first = text.split("\n\n").next().unwrap_or_default().replace('\n', " ");
    match first.char_indices().nth(ENGINE_TEXT) {
        Some((cut, _)) => format!("{}…", &first[..cut]),
        None => first,
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
