//! WatchSessions: what changes, for whoever may read it, on every manager.
//!
//! One task per manager follows the change feed and reads each changed session
//! once, however many watch. A watcher that falls behind is told to begin
//! anew; nothing of it is kept but a place in that queue.

use super::Api;
use crate::admission::concurrency::{ConcurrencyLimit, ConcurrencyPermit, Full};
use crate::change_feed::ChangeFanOut;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, pin_mut};
use session_core::access::{self, Rpc, SessionAction};
use session_core::{
    EventRecord, OrgId, Principal, PrincipalId, Quota, Reason, Role, Session, SessionKey, Use,
};
use session_proto::convert;
use session_proto::error::Refused;
use session_proto::v1::{self, watch_sessions_response::Update};
use session_store::{Feed, ListQuery, Scope, SessionStore};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;

/// Streams of one caller.
const EACH: usize = 20;
/// Streams of one organization.
const OF_ORG: usize = 400;
/// Streams of this manager.
const ALL: usize = 2000;
/// Changes that a watcher may lag behind before it begins anew.
const BACKLOG: usize = 1024;
/// Changed sessions that are read at once.
const READS: usize = 32;
/// Sessions that are read at once when a watcher begins.
const PAGE: usize = 200;
/// How often it is looked whether the caller is still let in.
const CHECK: Duration = Duration::from_secs(10);
/// A watcher begins anew no more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// A session that changed, as it was read after the change.
#[derive(Debug)]
struct Changed {
    session: Session,
    used: Use,
    record: EventRecord,
}

#[derive(Debug, Clone)]
enum Sighting {
    Changed(Arc<Changed>),
    Gap,
}

/// Spreads changed sessions to the watchers of this process.
#[derive(Debug)]
pub(crate) struct Watches {
    sightings: broadcast::Sender<Sighting>,
    callers: Arc<ConcurrencyLimit<PrincipalId>>,
    orgs: Arc<ConcurrencyLimit<OrgId>>,
}

impl Watches {
    pub(crate) fn new() -> Self {
        Self {
            sightings: broadcast::Sender::new(BACKLOG),
            callers: ConcurrencyLimit::new(EACH, ALL),
            orgs: ConcurrencyLimit::new(OF_ORG, ALL),
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
        let seen = feed.map(|feed| self.see(&*store, feed)).buffered(READS);
        pin_mut!(seen);
        loop {
            let sighting = tokio::select! {
                () = stop.cancelled() => return,
                sighting = seen.next() => sighting,
            };
            match sighting {
                // Nobody listening is fine.
                Some(Some(sighting)) => drop(self.sightings.send(sighting)),
                Some(None) => {}
                None => return,
            }
        }
    }

    async fn see(&self, store: &dyn SessionStore, feed: Feed) -> Option<Sighting> {
        // Whoever begins to listen after this reads it in the beginning.
        if self.sightings.receiver_count() == 0 {
            return None;
        }
        let change = match feed {
            Feed::Change(change) => change,
            Feed::Reset => return Some(Sighting::Gap),
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
            Ok(Some((session, used))) => Some(Sighting::Changed(Arc::new(Changed {
                session,
                used,
                record: change.record,
            }))),
            Err(error) => {
                tracing::warn!(%error, "a changed session cannot be read for those who watch");
                Some(Sighting::Gap)
            }
        }
    }
}

type Answer = Result<v1::WatchSessionsResponse, tonic::Status>;

/// Begins to watch.
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
    let slot = callers.take(&who.id);
    let slot = slot.map_err(|full| too_many(full, EACH, "You watch"))?;
    let of_org = orgs.take(&who.org);
    let of_org = of_org.map_err(|full| too_many(full, OF_ORG, "Your organization watches"))?;
    let watch = Watch {
        // From here on nothing is missed.
        sightings: api.watches.sightings.subscribe(),
        api: Arc::clone(api),
        metadata,
        who: who.into_principal(),
        only,
        beginning: Beginning::Due,
        begun: None,
        ready: VecDeque::new(),
        checked: Instant::now(),
        over: false,
        _slots: (slot, of_org),
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
        Full::All => (ALL, "All callers together watch"),
    };
    Refused::new(
        Reason::QuotaExceeded,
        format!("{text} {limit} times already, the most at one time. End a watch that is not needed."),
    )
    .with("quota", Quota::Watches.as_str())
    .with("limit", limit.to_string())
}

/// How far the sessions that are have been told.
#[derive(Debug)]
enum Beginning {
    Due,
    Page(Option<String>),
    Told,
}

struct Watch {
    api: Arc<Api>,
    metadata: MetadataMap,
    who: Principal,
    only: Option<SessionKey>,
    sightings: broadcast::Receiver<Sighting>,
    beginning: Beginning,
    begun: Option<Instant>,
    ready: VecDeque<v1::WatchSessionsResponse>,
    checked: Instant,
    over: bool,
    _slots: (ConcurrencyPermit<PrincipalId>, ConcurrencyPermit<OrgId>),
}

impl Watch {
    async fn next(&mut self) -> Option<Answer> {
        loop {
            if let Err(refused) = self.check().await {
                self.over = true;
                self.ready.clear();
                return Some(Err(refused.into()));
            }
            if let Some(answer) = self.ready.pop_front() {
                return Some(Ok(answer));
            }
            if self.over {
                return None;
            }
            let outcome = match &self.beginning {
                Beginning::Due => self.begin().await,
                Beginning::Page(token) => self.tell_page(token.clone()).await,
                Beginning::Told => self.hear().await,
            };
            if let Err(refused) = outcome {
                self.over = true;
                return Some(Err(refused.into()));
            }
        }
    }

    /// Is the caller still let in, and as whom?
    async fn check(&mut self) -> Result<(), Refused> {
        if self.over || self.checked.elapsed() < CHECK {
            return Ok(());
        }
        self.checked = Instant::now();
        match self.api.admission.reauthenticate(self.metadata.as_ref()).await {
            Ok(who) => self.who = who,
            // Not knowing is no reason to end it.
            Err(refused) if refused.reason == Reason::ControlPlaneUnavailable => {}
            Err(refused) => return Err(refused),
        }
        Ok(())
    }

    async fn begin(&mut self) -> Result<(), Refused> {
        if let Some(begun) = self.begun {
            tokio::time::sleep_until(begun + PAUSE).await;
        }
        self.begun = Some(Instant::now());
        // What is told now is newer than all that waits in the queue.
        self.sightings = self.sightings.resubscribe();
        let update = Some(Update::Reset(v1::Reset {}));
        self.ready
            .push_back(v1::WatchSessionsResponse { update, event: None });
        self.beginning = Beginning::Page(None);
        Ok(())
    }

    async fn tell_page(&mut self, page_token: Option<String>) -> Result<(), Refused> {
        let store = &self.api.store;
        let (sessions, next) = match &self.only {
            Some(key) => {
                let session = store.get(key).await.map_err(crate::error::store)?;
                (session.into_iter().collect(), None)
            }
            None => {
                let query = live_sessions(&self.who, page_token);
                let page = store.list(&query).await.map_err(crate::error::store)?;
                (page.sessions, page.next)
            }
        };
        let uses = store.usage(&sessions).await.map_err(crate::error::store)?;
        // It is gone for ever.
        self.over |= self.only.is_some() && sessions.is_empty();
        for (session, used) in sessions.iter().zip(&uses) {
            self.tell(session, used, None);
        }
        self.beginning = match next {
            Some(token) => Beginning::Page(Some(token)),
            None => Beginning::Told,
        };
        Ok(())
    }

    async fn hear(&mut self) -> Result<(), Refused> {
        let sighting = tokio::select! {
            sighting = self.sightings.recv() => sighting,
            () = tokio::time::sleep_until(self.checked + CHECK) => return Ok(()),
        };
        match sighting {
            Ok(Sighting::Changed(changed)) => {
                self.tell(&changed.session, &changed.used, Some(&changed.record))
            }
            Ok(Sighting::Gap) | Err(broadcast::error::RecvError::Lagged(_)) => {
                self.beginning = Beginning::Due;
            }
            Err(broadcast::error::RecvError::Closed) => self.over = true,
        }
        Ok(())
    }

    /// Tells of a session, if the caller may read it and asked for it.
    fn tell(&mut self, session: &Session, used: &Use, record: Option<&EventRecord>) {
        let asked = match &self.only {
            None => true,
            Some(key) => key.id == session.id && key.org == session.org,
        };
        if !asked || !access::on_session(&self.who, SessionAction::Read, session) {
            return;
        }
        let with_detail = access::on_session(&self.who, SessionAction::Connect, session);
        let shown = convert::session(session, used, with_detail);
        self.ready.push_back(v1::WatchSessionsResponse {
            update: Some(Update::Session(shown)),
            event: record.map(convert::event),
        });
        // Nothing comes after the end of the only one.
        self.over |= self.only.is_some() && session.status().is_terminal();
    }
}

fn live_sessions(who: &Principal, page_token: Option<String>) -> ListQuery {
    let scope = if who.has(Role::OrgAdmin) {
        Scope::Org
    } else {
        Scope::OwnAndTeams {
            owner: who.id.clone(),
            teams: who.team_admin_of.clone(),
        }
    };
    ListQuery {
        scope,
        page_token,
        ..ListQuery::live_of_org(who.org.clone(), PAGE)
    }
}
