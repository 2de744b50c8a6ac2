//! Asking a Spark Connect server whether it is ready.
//!
//! Ready means: it told its version to a new Spark session under the name of
//! the Berth session, and the default catalog, if there is one, answered too
//! (the right name of a catalog that cannot be reached must not look ready).

use crate::connector::{Dialer, Target};
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

/// One try to ask for the version.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// One question to the catalog: the first query of a cold JVM takes seconds.
const CATALOG_LIMIT: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const CLIENT_TYPE: &str = "berth-probe";
/// Of what an engine says, this many characters are kept.
const ENGINE_CHARS: usize = 600;

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
    Yet(Cause),
    /// It will not.
    Ever(Cause),
}

/// Asks once, with a new Spark session that is released at the end.
///
/// # Errors
/// [`NotReady`] with the cause.
pub async fn ask(target: &Target, question: &Question) -> Result<String, NotReady> {
    let session_id = uuid::Uuid::new_v4().to_string();
    let asker = Asker::connect(target, question.user_id.clone(), session_id).await?;
    let version = within(TRY_LIMIT, asker.version()).await;
    let answer = match (version, &question.catalog) {
        (Ok(version), Some(catalog)) => within(CATALOG_LIMIT, asker.use_catalog(catalog))
            .await
            .map_err(|e| about_catalog(catalog, e))
            .map(|()| version),
        (Err(e), Some(catalog)) if catalog_is_unknown(&e.cause().detail) => Err(about_catalog(catalog, e)),
        (version, _) => version,
    };
    // Leaves nothing behind; the answer stands even if this fails.
    if let Err(e) = within(TRY_LIMIT, asker.release()).await {
        tracing::debug!(cause = %e.cause().detail, "the probe's Spark session was not released");
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
    mut waiting: impl FnMut(Cause),
) -> Result<String, Cause> {
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

/// Speaks to a server as one Spark session of one user.
#[derive(Clone)]
pub(crate) struct Asker {
    channel: Channel,
    bearer: Option<MetadataValue<Ascii>>,
    session_id: String,
    user: UserContext,
}

impl Asker {
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

    /// The same Spark session of another user.
    pub(crate) fn for_user(mut self, user_id: &str) -> Self {
        user_id.clone_into(&mut self.user.user_id);
        self
    }

    /// The same user's Spark session of this id, on the same connection.
    pub(crate) fn of(&self, session_id: String) -> Self {
        Self {
            session_id,
            ..self.clone()
        }
    }

    /// The same user, called otherwise.
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

    /// Makes a catalog current, and a database of it.
    pub(crate) async fn choose(&self, catalog: &str, database: Option<&str>) -> Result<(), Status> {
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

    /// Only a query makes an engine load its catalog and ask what is behind it.
    async fn use_catalog(&self, catalog: &CatalogQuestion) -> Result<(), Status> {
        use sc::catalog_operation::CatType;
        if catalog.select {
            self.choose(&catalog.name, catalog.database.as_deref()).await?;
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

    /// Sets settings.
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

    /// Interrupts one operation, or all of them; returns what was interrupted.
    /// The engine is told to give up after `limit` too.
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
        let answer = self.client().interrupt(request).await?;
        Ok(answer.into_inner().interrupted_ids)
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
        .map_err(|e| NotReady::Ever(user_message::cause("the address of its server is none", e)))?;
    let endpoint = match &target.tls {
        // The dialer does TLS itself; the server must still be told that it is.
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
        TRY_LIMIT,
        endpoint.connect_with_connector(Dialer::new(target.clone())),
    )
    .await
    {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(NotReady::Yet(no_connection(&e))),
        Err(_) => Err(too_late(TRY_LIMIT)),
    }
}

fn bearer(target: &Target) -> Result<Option<MetadataValue<Ascii>>, NotReady> {
    let Some(secret) = &target.credential else {
        return Ok(None);
    };
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", secret.expose())
        .parse()
        .map_err(|_| NotReady::Ever("the backend's token has characters that no token has".into()))?;
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
    NotReady::Yet(format!("it did not answer within {} s", limit.as_secs()).into())
}

fn classify(status: &Status) -> NotReady {
    let said = shorten(status.message());
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            NotReady::Ever(user_message::cause("it refuses the backend token", said))
        }
        Code::Unimplemented => NotReady::Ever(user_message::cause("it is no Spark Connect server", said)),
        Code::Unavailable => NotReady::Yet(user_message::cause("it does not answer", said)),
        _ => NotReady::Yet(user_message::cause_said("it answered with an error", &said)),
    }
}

fn about_catalog(catalog: &CatalogQuestion, why: NotReady) -> NotReady {
    let told = |said: &Cause| {
        user_message::cause_said(
            &format!("catalog {} cannot be used", catalog.name),
            detail_of(said),
        )
    };
    match why {
        NotReady::Yet(said) if catalog_is_unknown(&said.detail) => NotReady::Ever(told(&said)),
        NotReady::Yet(said) => NotReady::Yet(told(&said)),
        NotReady::Ever(said) => NotReady::Ever(told(&said)),
    }
}

/// All that is known of it.
fn detail_of(cause: &Cause) -> &str {
    if cause.detail.is_empty() {
        &cause.text
    } else {
        &cause.detail
    }
}

/// What engines say of a catalog or database that waiting will not bring.
pub(crate) fn catalog_is_unknown(said: &str) -> bool {
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
    match first.char_indices().nth(ENGINE_CHARS) {
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
