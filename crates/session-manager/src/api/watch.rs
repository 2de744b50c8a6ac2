//! WatchSessions: streams of changed sessions to callers that may read them.
//!
//! One task per manager follows the change feed and reads each changed session
//! once for all watchers. A watcher that falls too far behind receives a reset and
//! the present sessions again; no state is kept for it but its position.

use super::{Api, session_page};
use crate::admission::concurrency::{ConcurrencyLimit, ConcurrencyPermit, Full};
use crate::change_feed::ChangeFanOut;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, pin_mut};
use session_core::access::{self, Rpc, SessionAction};
use session_core::{EventRecord, OrgId, Principal, PrincipalId, Quota, Reason, Session, SessionKey, Use};
use session_proto::convert;
use session_proto::error::Refused;
use session_proto::v1::{self, watch_sessions_response::Update};
use session_store::{Feed, ListQuery, SessionStore};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;

/// Streams of one caller.
const MAX_OF_CALLER: usize = 20;
/// Streams of one organization.
const MAX_OF_ORG: usize = 400;
/// Streams of this manager.
const MAX_STREAMS: usize = 2000;
/// Changes that a watcher may lag behind before it receives a reset.
const MAX_BACKLOG: usize = 1024;
/// Changed sessions that are read concurrently.
const MAX_CONCURRENT_READS: usize = 32;
/// Sessions of one page after a reset.
const PAGE: usize = 200;
/// Time between two authentications of the caller.
const AUTHENTICATION_INTERVAL: Duration = Duration::from_secs(3);
/// Shortest time between two resets of a watcher.
const MIN_RESET_INTERVAL: Duration = Duration::from_secs(1);

/// A changed session, read after the change.
#[derive(Debug)]
struct Changed {
    session: Session,
    used: Use,
    record: EventRecord,
}

#[derive(Debug, Clone)]
enum WatchEvent {
    Changed(Arc<Changed>),
    /// Changes were missed; watchers need a reset.
    Gap,
}

/// Distributes changed sessions to the watchers of this process.
#[derive(Debug)]
pub(crate) struct Watches {
    events: broadcast::Sender<WatchEvent>,
    callers: Arc<ConcurrencyLimit<PrincipalId>>,
    orgs: Arc<ConcurrencyLimit<OrgId>>,
}

impl Watches {
    pub(crate) fn new() -> Self {
        Self {
            events: broadcast::Sender::new(MAX_BACKLOG),
            callers: ConcurrencyLimit::new(MAX_OF_CALLER, MAX_STREAMS),
            orgs: ConcurrencyLimit::new(MAX_OF_ORG, MAX_STREAMS),
        }
    }

    /// Follows the feed until `stop`.
    pub(crate) async fn run(
        &self,
        fan_out: &ChangeFanOut,
        store: Arc<dyn SessionStore>,
        stop: CancellationToken,
    ) {
        let feed = stream::unfold(fan_out.subscribe(), |mut changes| async move {
            let next = match changes.recv().await {
                Ok(feed) => feed,
                Err(broadcast::error::RecvError::Lagged(_)) => Feed::Reset,
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            Some((next, changes))
        });
        let events = feed
            .map(|feed| self.read_changed(&*store, feed))
            .buffered(MAX_CONCURRENT_READS);
        pin_mut!(events);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                // An error only means that there is no watcher.
                Some(Some(event)) => drop(self.events.send(event)),
                Some(None) => {}
                None => return,
            }
        }
    }

    async fn read_changed(&self, store: &dyn SessionStore, feed: Feed) -> Option<WatchEvent> {
        // A watcher that subscribes later reads all sessions first.
        if self.events.receiver_count() == 0 {
            return None;
        }
        let change = match feed {
            Feed::Change(change) => change,
            Feed::Reset => return Some(WatchEvent::Gap),
        };
        let read = async {
            let Some(session) = store.get(&change.key).await? else {
                return Ok(None);
            };
            let uses = store.usage(std::slice::from_ref(&session)).await?;
            Ok::<_, session_store::Error>(Some((session, uses.first().copied().unwrap_or_default())))
        };
        match read.await {
            Ok(None) => None,
            Ok(Some((session, used))) => Some(WatchEvent::Changed(Arc::new(Changed {
                session,
                used,
                record: change.record,
            }))),
            Err(error) => {
                tracing::warn!(%error, "reading a changed session for watchers failed; they are reset");
                Some(WatchEvent::Gap)
            }
        }
    }
}

type Answer = Result<v1::WatchSessionsResponse, tonic::Status>;

/// Opens a stream.
pub(super) async fn watch(
    api: &Arc<Api>,
    request: tonic::Request<v1::WatchSessionsRequest>,
) -> Result<BoxStream<'static, Answer>, Refused> {
    let who = api.caller(&request)?;
    let metadata = request.metadata().clone();
    let request = request.into_inner();
    let only = match convert::non_empty(request.session_id) {
        None => None,
        Some(id) => Some(api.session_for(&who, &id, Rpc::WatchSessions).await?.0.key()),
    };
    let Watches { callers, orgs, .. } = &api.watches;
    let of_caller = callers.take(&who.id);
    let of_caller = of_caller.map_err(|full| too_many(full, MAX_OF_CALLER, "You watch"))?;
    let of_org = orgs.take(&who.org);
    let of_org = of_org.map_err(|full| too_many(full, MAX_OF_ORG, "Your organization watches"))?;
    let watch = Watch {
        // No change is missed from here on.
        events: api.watches.events.subscribe(),
        api: Arc::clone(api),
        metadata,
        who: who.into_principal(),
        only,
        progress: Progress::ResetDue,
        reset_at: None,
        ready: VecDeque::new(),
        authenticated_at: Instant::now(),
        ended: false,
        _permits: (of_caller, of_org),
    };
    let stream = stream::unfold(watch, |mut watch| async move {
        let answer = watch.next().await?;
        Some((answer, watch))
    });
    Ok(stream.take_until(api.stopping.clone().cancelled_owned()).boxed())
}

fn too_many(full: Full, each: usize, whose: &str) -> Refused {
    let (limit, text) = match full {
        Full::Each => (each, whose),
        Full::All => (MAX_STREAMS, "All callers together watch"),
    };
    Refused::new(
        Reason::QuotaExceeded,
        format!("{text} {limit} times already, the most at one time. End a watch that is not needed."),
    )
    .with("quota", Quota::Watches.as_str())
    .with("limit", limit.to_string())
}

/// Progress of sending the present sessions.
#[derive(Debug)]
enum Progress {
    ResetDue,
    Page(Option<String>),
    Complete,
}

struct Watch {
    api: Arc<Api>,
    metadata: MetadataMap,
    who: Principal,
    only: Option<SessionKey>,
    events: broadcast::Receiver<WatchEvent>,
    progress: Progress,
    reset_at: Option<Instant>,
    ready: VecDeque<v1::WatchSessionsResponse>,
    authenticated_at: Instant,
    ended: bool,
    _permits: (ConcurrencyPermit<PrincipalId>, ConcurrencyPermit<OrgId>),
}

impl Watch {
    async fn next(&mut self) -> Option<Answer> {
        loop {
            if let Err(refused) = self.authenticate().await {
                self.ended = true;
                self.ready.clear();
                return Some(Err(refused.into()));
            }
            if let Some(answer) = self.ready.pop_front() {
                return Some(Ok(answer));
            }
            if self.ended {
                return None;
            }
            let outcome = match &self.progress {
                Progress::ResetDue => self.reset().await,
                Progress::Page(token) => self.queue_page(token.clone()).await,
                Progress::Complete => self.next_event().await,
            };
            if let Err(refused) = outcome {
                self.ended = true;
                return Some(Err(refused.into()));
            }
        }
    }

    /// Authenticates the caller again, whose roles may have changed.
    async fn authenticate(&mut self) -> Result<(), Refused> {
        if self.ended || self.authenticated_at.elapsed() < AUTHENTICATION_INTERVAL {
            return Ok(());
        }
        self.authenticated_at = Instant::now();
        match self.api.admission.reauthenticate(self.metadata.as_ref()).await {
            Ok(who) if who == self.who => {}
            Ok(who) => {
                // Its roles or teams have changed: the present sessions are read again.
                self.who = who;
                self.ready.clear();
                self.progress = Progress::ResetDue;
            }
            // The stream continues while authentication is unavailable.
            Err(refused) if refused.reason == Reason::ControlPlaneUnavailable => {}
            Err(refused) => return Err(refused),
        }
        Ok(())
    }

    async fn reset(&mut self) -> Result<(), Refused> {
        if let Some(reset_at) = self.reset_at {
            tokio::time::sleep_until(reset_at + MIN_RESET_INTERVAL).await;
        }
        self.reset_at = Some(Instant::now());
        // The sessions that are read now are newer than all queued events.
        self.events = self.events.resubscribe();
        let update = Some(Update::Reset(v1::Reset {}));
        self.ready
            .push_back(v1::WatchSessionsResponse { update, event: None });
        self.progress = Progress::Page(None);
        Ok(())
    }

    async fn queue_page(&mut self, page_token: Option<String>) -> Result<(), Refused> {
        let store = &self.api.store;
        let (sessions, next) = match &self.only {
            Some(key) => {
                let session = store.get(key).await.map_err(crate::error::store)?;
                let may_read =
                    |session: &Session| access::on_session(&self.who, SessionAction::Read, session);
                if session.as_ref().is_some_and(|session| !may_read(session)) {
                    return Err(Refused::not_authorized());
                }
                (session.into_iter().collect(), None)
            }
            None => {
                let query = live_sessions(&self.who, page_token);
                let page = store.list(&query).await.map_err(crate::error::store)?;
                (page.sessions, page.next)
            }
        };
        let uses = store.usage(&sessions).await.map_err(crate::error::store)?;
        // The only watched session was deleted.
        self.ended |= self.only.is_some() && sessions.is_empty();
        for (session, used) in sessions.iter().zip(&uses) {
            self.queue(session, used, None);
        }
        self.progress = match next {
            Some(token) => Progress::Page(Some(token)),
            None => Progress::Complete,
        };
        Ok(())
    }

    async fn next_event(&mut self) -> Result<(), Refused> {
        let event = tokio::select! {
            event = self.events.recv() => event,
            () = tokio::time::sleep_until(self.authenticated_at + AUTHENTICATION_INTERVAL) => return Ok(()),
        };
        match event {
            Ok(WatchEvent::Changed(changed)) => {
                self.queue(&changed.session, &changed.used, Some(&changed.record))
            }
            Ok(WatchEvent::Gap) | Err(broadcast::error::RecvError::Lagged(_)) => {
                self.progress = Progress::ResetDue;
            }
            Err(broadcast::error::RecvError::Closed) => self.ended = true,
        }
        Ok(())
    }

    /// Queues a session if the request covers it and the caller may read it.
    fn queue(&mut self, session: &Session, used: &Use, record: Option<&EventRecord>) {
        let requested = match &self.only {
            None => true,
            Some(key) => key.id == session.id && key.org == session.org,
        };
        if !requested || !access::on_session(&self.who, SessionAction::Read, session) {
            return;
        }
        let with_detail = access::on_session(&self.who, SessionAction::Connect, session);
        let shown = convert::session(session, used, with_detail);
        self.ready.push_back(v1::WatchSessionsResponse {
            update: Some(Update::Session(shown)),
            event: record.map(convert::event),
        });
        // The stream of one session ends with the session.
        self.ended |= self.only.is_some() && session.status().is_terminal();
    }
}

fn live_sessions(who: &Principal, page_token: Option<String>) -> ListQuery {
    ListQuery {
        scope: session_page::visible(who),
        page_token,
        ..ListQuery::live_of_org(who.org.clone(), PAGE)
    }
}
