//! Readiness probe of a Spark Connect server.
//!
//! Ready means: a new Spark session with the user id of the Berth session received the
//! version, and the default catalog, if any, answered a query (a catalog with the right
//! name that is unreachable must not count as ready).

use crate::connector::{Connector, Target};
use crate::user_message;
use session_core::machine::Cause;
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{self as sc, UserContext};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Time limit of one request for the version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of the catalog query: the first query of a cold JVM takes seconds.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(20);
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_millis(500);
const CLIENT_TYPE: &str = "berth-probe";
/// Maximum number of characters of an engine's message.
const MAX_ENGINE_CHARS: usize = 600;

/// Parameters of a probe.
#[derive(Debug, Clone)]
pub struct Question {
    /// User id of the Spark session: the id of the Berth session, as the proxy sends
    /// it.
    pub user_id: String,
    /// The required catalog.
    pub catalog: Option<CatalogQuestion>,
}

/// The catalog that must be current.
#[derive(Debug, Clone)]
pub struct CatalogQuestion {
    /// Its name.
    pub name: String,
    /// Database of unqualified names.
    pub database: Option<String>,
    /// Select it by calls, because the server was not started with it.
    pub select: bool,
}

/// Reason why a server is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReady {
    /// It can become ready by itself.
    Yet(Cause),
    /// It will never become ready.
    Ever(Cause),
}

/// Probes once, with a new Spark session that is released afterwards. Returns the
/// version of the server. Must be called within a Tokio runtime.
///
/// # Errors
/// [`NotReady`] with the cause.
pub async fn ask(target: &Target, question: &Question) -> Result<String, NotReady> {
    let session_id = uuid::Uuid::new_v4().to_string();
    let client = SparkClient::connect(target, question.user_id.clone(), session_id).await?;
    let version = within(VERSION_TIMEOUT, client.version()).await;
    let reply = match (version, &question.catalog) {
        (Ok(version), Some(catalog)) => within(CATALOG_TIMEOUT, client.use_catalog(catalog))
            .await
            .map_err(|e| describe_catalog_failure(catalog, e))
            .map(|()| version),
        (Err(e), Some(catalog)) if catalog_is_unknown(&e.cause().detail) => {
            Err(describe_catalog_failure(catalog, e))
        }
        (version, _) => version,
    };
    // Cleanup; the result stands even if it fails.
    let release = async move {
        if let Err(e) = within(VERSION_TIMEOUT, client.release()).await {
            tracing::debug!(cause = %e.cause().detail, "releasing the Spark session of the probe failed");
        }
    };
    if reply.is_ok() {
        // A session that waits for this server is active at once.
        tokio::spawn(release);
    } else {
        release.await;
    }
    reply
}

/// Probes until the server is ready or never can be. `waiting` is called with the cause
/// of each unready result.
///
/// # Errors
/// The permanent cause.
pub async fn until_ready(
    target: &Target,
    question: &Question,
    mut waiting: impl FnMut(Cause),
) -> Result<String, Cause> {
    let mut pause = MIN_PAUSE;
    loop {
        match ask(target, question).await {
            Ok(version) => return Ok(version),
            Err(NotReady::Ever(cause)) => return Err(cause),
            Err(NotReady::Yet(cause)) => waiting(cause),
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(MAX_PAUSE);
    }
}

/// A client with the identity of one Spark session of one user.
#[derive(Clone)]
pub(crate) struct SparkClient {
    channel: Channel,
    bearer: Option<MetadataValue<Ascii>>,
    session_id: String,
    user: UserContext,
}

impl SparkClient {
    pub(crate) async fn connect(
        target: &Target,
        user_id: String,
        session_id: String,
    ) -> Result<Self, NotReady> {
        Ok(Self {
            channel: connect(target).await?,
            bearer: bearer(target)?,
            session_id,
            user: UserContext {
                user_name: user_id.clone(),
                user_id,
            },
        })
    }

    /// The same Spark session id with another user id.
    pub(crate) fn for_user(mut self, user_id: &str) -> Self {
        user_id.clone_into(&mut self.user.user_id);
        self
    }

    /// Another Spark session id of the same user, on the same connection.
    pub(crate) fn of(&self, session_id: String) -> Self {
        Self {
            session_id,
            ..self.clone()
        }
    }

    /// The same user id with another user name.
    pub(crate) fn named(mut self, user_name: &str) -> Self {
        user_name.clone_into(&mut self.user.user_name);
        self
    }

    fn client(&self) -> SparkConnectServiceClient<Channel> {
        SparkConnectServiceClient::new(self.channel.clone())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        with_bearer(message, self.bearer.as_ref())
    }

    pub(crate) async fn version(&self) -> Result<String, Status> {
        use sc::{analyze_plan_request as ask, analyze_plan_response as reply};
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
            Some(reply::Result::SparkVersion(version)) => Ok(version.version),
            Some(_) | None => Err(Status::unimplemented("it gave no version")),
        }
    }

    /// Makes a catalog and a database of it current.
    pub(crate) async fn select(&self, catalog: &str, database: Option<&str>) -> Result<(), Status> {
        use sc::catalog_operation::CatType;
        self.run(CatType::SetCurrentCatalog(sc::SetCurrentCatalog {
            catalog_name: catalog.to_owned(),
        }))
        .await?;
        if let Some(database) = database {
            self.run(CatType::SetCurrentDatabase(sc::SetCurrentDatabase {
                db_name: database.to_owned(),
            }))
            .await?;
        }
        Ok(())
    }

    /// Runs a query: only a query makes an engine load its catalog and contact its
    /// backend.
    async fn use_catalog(&self, catalog: &CatalogQuestion) -> Result<(), Status> {
        use sc::catalog_operation::CatType;
        if catalog.select {
            self.select(&catalog.name, catalog.database.as_deref()).await?;
        }
        let current = self.run(CatType::CurrentCatalog(sc::CurrentCatalog {})).await?;
        // The reply is an Arrow stream with one text, uncompressed.
        if !contains(&current, catalog.name.as_bytes()) {
            return Err(Status::not_found(format!(
                "{} is not the current catalog",
                catalog.name
            )));
        }
        let query = if catalog.database.is_some() {
            CatType::ListTables(sc::ListTables::default())
        } else {
            CatType::ListDatabases(sc::ListDatabases::default())
        };
        match self.run(query).await {
            // Some catalogs of Spark have no databases, which is no error.
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
        let mut replies = self
            .client()
            .execute_plan(self.request(message))
            .await?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(reply) = replies.message().await? {
            if let Some(sc::execute_plan_response::ResponseType::ArrowBatch(batch)) = reply.response_type {
                bytes.extend(batch.data);
            }
        }
        Ok(bytes)
    }

    /// Changes settings.
    pub(crate) async fn set(&self, settings: &BTreeMap<String, String>) -> Result<(), Status> {
        use sc::config_request::{Operation, Set, operation::OpType};
        let pairs = settings.iter().map(|(key, value)| sc::KeyValue {
            key: key.clone(),
            value: Some(value.clone()),
        });
        let message = sc::ConfigRequest {
            session_id: self.session_id.clone(),
            user_context: Some(self.user.clone()),
            client_type: Some(CLIENT_TYPE.to_owned()),
            operation: Some(Operation {
                op_type: Some(OpType::Set(Set {
                    pairs: pairs.collect(),
                    ..Default::default()
                })),
            }),
            ..Default::default()
        };
        self.client().config(self.request(message)).await.map(drop)
    }

    /// Interrupts one operation, or all; returns the interrupted ids. `limit` is also
    /// the deadline that the engine receives.
    pub(crate) async fn interrupt(
        &self,
        operation: Option<String>,
        limit: Duration,
    ) -> Result<Vec<String>, Status> {
        use sc::interrupt_request::{Interrupt, InterruptType};
        let kind = match operation {
            None => InterruptType::All,
            Some(_) => InterruptType::OperationId,
        };
        let message = sc::InterruptRequest {
            session_id: self.session_id.clone(),
            user_context: Some(self.user.clone()),
            client_type: Some(CLIENT_TYPE.to_owned()),
            interrupt_type: kind.into(),
            interrupt: operation.map(Interrupt::OperationId),
            ..Default::default()
        };
        let mut request = self.request(message);
        request.set_timeout(limit);
        let reply = self.client().interrupt(request).await?;
        Ok(reply.into_inner().interrupted_ids)
    }

    pub(crate) async fn release(&self) -> Result<(), Status> {
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
    pub(crate) fn from_status(status: &Status) -> Self {
        classify(status)
    }

    pub(crate) fn into_cause(self) -> Cause {
        match self {
            Self::Yet(cause) | Self::Ever(cause) => cause,
        }
    }

    fn cause(&self) -> &Cause {
        match self {
            Self::Yet(cause) | Self::Ever(cause) => cause,
        }
    }
}

async fn connect(target: &Target) -> Result<Channel, NotReady> {
    let endpoint = Endpoint::from_shared(format!("http://{}", target.address))
        .map_err(|e| NotReady::Ever(user_message::cause("the address of its server is invalid", e)))?;
    let endpoint = match &target.tls {
        // The connector does TLS; the `:scheme` header must still be `https`.
        Some(_) => match format!("https://{}", target.address).parse() {
            Ok(origin) => endpoint.origin(origin),
            Err(_) => endpoint,
        },
        None => endpoint,
    };
    if let Err(e) = target.check().await {
        let cause = user_message::cause(e.public(), &e);
        return Err(if e.is_permanent() {
            NotReady::Ever(cause)
        } else {
            NotReady::Yet(cause)
        });
    }
    match timeout(
        VERSION_TIMEOUT,
        endpoint.connect_with_connector(Connector::new(target.clone())),
    )
    .await
    {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(NotReady::Yet(no_connection(&e))),
        Err(_) => Err(timed_out(VERSION_TIMEOUT)),
    }
}

fn bearer(target: &Target) -> Result<Option<MetadataValue<Ascii>>, NotReady> {
    let Some(secret) = &target.credential else {
        return Ok(None);
    };
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", secret.expose())
        .parse()
        .map_err(|_| NotReady::Ever("the backend's token has invalid characters".into()))?;
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
        Ok(reply) => reply.map_err(|status| classify(&status)),
        Err(_) => Err(timed_out(limit)),
    }
}

fn timed_out(limit: Duration) -> NotReady {
    NotReady::Yet(format!("it did not answer within {} s", limit.as_secs()).into())
}

fn classify(status: &Status) -> NotReady {
    let message = shorten(status.message());
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            NotReady::Ever(user_message::cause("it refuses the backend token", message))
        }
        Code::Unimplemented => {
            NotReady::Ever(user_message::cause("it is not a Spark Connect server", message))
        }
        Code::Unavailable => NotReady::Yet(user_message::cause("it does not answer", message)),
        _ => NotReady::Yet(user_message::cause_with_message(
            "it answered with an error",
            &message,
        )),
    }
}

fn describe_catalog_failure(catalog: &CatalogQuestion, why: NotReady) -> NotReady {
    let described = |cause: &Cause| {
        user_message::cause_with_message(
            &format!("catalog {} cannot be used", catalog.name),
            detail_of(cause),
        )
    };
    match why {
        NotReady::Yet(cause) if catalog_is_unknown(&cause.detail) => NotReady::Ever(described(&cause)),
        NotReady::Yet(cause) => NotReady::Yet(described(&cause)),
        NotReady::Ever(cause) => NotReady::Ever(described(&cause)),
    }
}

/// The detail, or the text without a detail.
fn detail_of(cause: &Cause) -> &str {
    if cause.detail.is_empty() {
        &cause.text
    } else {
        &cause.detail
    }
}

/// Messages of engines about a catalog or database that does not exist.
pub(crate) fn catalog_is_unknown(message: &str) -> bool {
    const MESSAGES: [&str; 8] = [
        "Catalog not found",
        "catalog not found",
        "Database not found",
        "database not found",
        "CATALOG_NOT_FOUND",
        "SCHEMA_NOT_FOUND",
        "CANNOT_LOAD_CATALOG",
        "is not the current catalog",
    ];
    MESSAGES.iter().any(|known| message.contains(known))
}

/// The first paragraph: engines append stack traces.
fn shorten(text: &str) -> String {
    let first = text.split("\n\n").next().unwrap_or_default().replace('\n', " ");
    match first.char_indices().nth(MAX_ENGINE_CHARS) {
        Some((cut, _)) => format!("{}…", &first[..cut]),
        None => first,
    }
}

fn no_connection(error: &(dyn std::error::Error + 'static)) -> Cause {
    let mut text = "it does not answer";
    let mut cause = error;
    loop {
        let tls = cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(_)) => text = "its TLS certificate is not accepted",
            Some(_) => text = "TLS with it failed",
            None => {}
        }
        match cause.source() {
            Some(inner) => cause = inner,
            None => return user_message::cause(text, cause),
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
