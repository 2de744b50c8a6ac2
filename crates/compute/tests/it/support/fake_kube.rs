//! An API server in memory: pods, Secrets, ConfigMaps and events with create,
//! get, list, delete, log and watch, as far as the provider uses them. Tests
//! play the scheduler and the kubelet by changing the status of pods.

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::sync::watch;

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;
/// Kind, namespace, name.
type ObjectId = (String, String, String);

/// The fake. Clones are the same server.
#[derive(Clone)]
pub(crate) struct FakeKube {
    state: Arc<Mutex<State>>,
    /// Resource version, and how often all watches were cut.
    changes: watch::Sender<(u64, u64)>,
    /// Held by requests whose conditions must hold until their write.
    patches: Arc<Mutex<()>>,
}

#[derive(Default)]
struct State {
    version: u64,
    uids: u64,
    objects: BTreeMap<ObjectId, Value>,
    history: Vec<(u64, ObjectId, &'static str, Value)>,
    /// Watches from before this version are refused with 410.
    oldest: u64,
    faults: VecDeque<(String, u16, String)>,
    away: bool,
    writes: Vec<String>,
    /// Objects that were created by a dry run only.
    dry_runs: Vec<Value>,
    log: String,
}

/// The parts of a request.
struct Asked {
    method: Method,
    kind: String,
    namespace: String,
    name: Option<String>,
    is_log: bool,
    query: BTreeMap<String, String>,
    body: Value,
}

impl FakeKube {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            changes: watch::Sender::new((0, 0)),
            patches: Arc::default(),
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// The next request whose method and kind are `what`, such as `POST pods`,
    /// is answered with this status.
    pub(crate) fn fail_next(&self, what: &str, code: u16, message: &str) {
        let fault = (what.to_owned(), code, message.to_owned());
        self.state.lock().unwrap().faults.push_back(fault);
    }

    /// Whether every request fails.
    pub(crate) fn set_away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
        if away {
            self.cut_watches();
        }
    }

    pub(crate) fn set_log(&self, log: &str) {
        log.clone_into(&mut self.state.lock().unwrap().log);
    }

    /// Ends all watches.
    pub(crate) fn cut_watches(&self) {
        self.changes.send_modify(|(_, cuts)| *cuts += 1);
    }

    /// Forgets the history: whoever watches must list again.
    pub(crate) fn compact(&self) {
        let mut state = self.state.lock().unwrap();
        state.oldest = state.version + 1;
        state.version += 1;
    }

    /// All requests that changed something, such as `POST pods`.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.state.lock().unwrap().writes.clone()
    }

    /// The objects of all dry runs that succeeded.
    pub(crate) fn dry_runs(&self) -> Vec<Value> {
        self.state.lock().unwrap().dry_runs.clone()
    }

    pub(crate) fn names(&self, kind: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let of_kind = state.objects.keys().filter(|(own, ..)| own == kind);
        of_kind.map(|(.., name)| name.clone()).collect()
    }

    pub(crate) fn object(&self, kind: &str, name: &str) -> Option<Value> {
        let state = self.state.lock().unwrap();
        let mut all = state.objects.iter();
        all.find(|((own, _, other), _)| own == kind && other == name)
            .map(|(_, object)| object.clone())
    }

    /// Puts an object, as somebody else than the provider.
    pub(crate) fn put(&self, kind: &str, namespace: &str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        object["metadata"]["namespace"] = json!(namespace);
        let id = (kind.to_owned(), namespace.to_owned(), name);
        self.write(id, Some(object));
    }

    /// Changes a pod as scheduler and kubelet do.
    pub(crate) fn edit_pod(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut pod = self.object("pods", name).unwrap();
        edit(&mut pod);
        let namespace = pod["metadata"]["namespace"].as_str().unwrap().to_owned();
        self.write(("pods".to_owned(), namespace, name.to_owned()), Some(pod));
    }

    /// Gives a pod its first status, if it exists and has none.
    pub(crate) fn place(&self, name: &str, status: &Value) {
        let _one_at_a_time = self.patches.lock().unwrap();
        if let Some(mut pod) = self.object("pods", name)
            && pod["status"].is_null()
        {
            pod["status"] = status.clone();
            let namespace = pod["metadata"]["namespace"].as_str().unwrap().to_owned();
            self.write(("pods".to_owned(), namespace, name.to_owned()), Some(pod));
        }
    }

    pub(crate) fn remove(&self, kind: &str, name: &str) {
        let object = self.object(kind, name).unwrap();
        let namespace = object["metadata"]["namespace"].as_str().unwrap().to_owned();
        self.write((kind.to_owned(), namespace, name.to_owned()), None);
    }

    /// Writes or, without an object, removes, and announces it.
    fn write(&self, id: ObjectId, object: Option<Value>) -> Value {
        let written = {
            let mut state = self.state.lock().unwrap();
            state.version += 1;
            let version = state.version;
            let (change, mut object) = match object {
                Some(object) if state.objects.contains_key(&id) => ("MODIFIED", object),
                Some(object) => ("ADDED", object),
                None => ("DELETED", state.objects[&id].clone()),
            };
            let metadata = &mut object["metadata"];
            metadata["resourceVersion"] = json!(version.to_string());
            if metadata["uid"].is_null() {
                state.uids += 1;
                metadata["uid"] = json!(format!("uid-{}", state.uids));
                metadata["creationTimestamp"] = json!(now());
            }
            if change == "DELETED" {
                state.objects.remove(&id);
            } else {
                state.objects.insert(id.clone(), object.clone());
            }
            state.history.push((version, id, change, object.clone()));
            object
        };
        let version = self.state.lock().unwrap().version;
        self.changes.send_modify(|(seen, _)| *seen = version);
        written
    }

    fn answer(&self, asked: Asked) -> Reply {
        let what = format!("{} {}", asked.method, asked.kind);
        let is_dry_run = asked.query.get("dryRun").is_some_and(|dry_run| dry_run == "All");
        {
            let mut state = self.state.lock().unwrap();
            if state.away {
                return failure(500, "the API server is away");
            }
            if state.faults.front().is_some_and(|(of, ..)| *of == what) {
                let (_, code, message) = state.faults.pop_front().unwrap();
                return failure(code, &message);
            }
            if is_dry_run {
                state.dry_runs.push(asked.body.clone());
                return done(201, &asked.body);
            }
            if matches!(asked.method, Method::POST | Method::PATCH | Method::DELETE) {
                state.writes.push(what);
            }
        }
        match (&asked.method, &asked.name) {
            (&Method::GET, Some(_)) if asked.is_log => text(self.state.lock().unwrap().log.clone()),
            (&Method::GET, Some(name)) => match self.object(&asked.kind, name) {
                Some(object) => done(200, &object),
                None => failure(404, "not found"),
            },
            (&Method::GET, None) if asked.query.contains_key("watch") => self.watch(asked),
            (&Method::GET, None) => self.list(&asked),
            (&Method::POST, None) => self.create(asked),
            (&Method::DELETE, Some(_)) => self.delete(asked),
            (&Method::PATCH, Some(_)) => self.patch(asked),
            (method, name) => panic!("{method} {name:?}"),
        }
    }

    fn create(&self, asked: Asked) -> Reply {
        let name = asked.body["metadata"]["name"].as_str().unwrap().to_owned();
        let id = (asked.kind, asked.namespace, name);
        if self.state.lock().unwrap().objects.contains_key(&id) {
            return failure(409, "already exists");
        }
        let mut object = asked.body;
        if let Some(texts) = object.get("stringData").and_then(Value::as_object).cloned() {
            use base64::Engine as _;
            let encode = |text: &Value| {
                json!(base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap()))
            };
            object["data"] = texts
                .iter()
                .map(|(key, text)| (key.clone(), encode(text)))
                .collect();
            object.as_object_mut().unwrap().remove("stringData");
        }
        done(201, &self.write(id, Some(object)))
    }

    /// A merge patch of the metadata, with uid and resource version as conditions.
    fn patch(&self, asked: Asked) -> Reply {
        let id = (asked.kind, asked.namespace, asked.name.unwrap());
        // As in the API server, the conditions and the write are one step.
        let _one_at_a_time = self.patches.lock().unwrap();
        let Some(mut object) = self.state.lock().unwrap().objects.get(&id).cloned() else {
            return failure(404, "not found");
        };
        for condition in ["uid", "resourceVersion"] {
            let wanted = &asked.body["metadata"][condition];
            if !wanted.is_null() && *wanted != object["metadata"][condition] {
                return failure(409, "the object has been modified");
            }
        }
        for map in ["labels", "annotations"] {
            for (key, value) in asked.body["metadata"][map].as_object().into_iter().flatten() {
                if value.is_null() {
                    object["metadata"][map].as_object_mut().unwrap().remove(key);
                } else {
                    object["metadata"][map][key] = value.clone();
                }
            }
        }
        done(200, &self.write(id, Some(object)))
    }

    /// Pods go at once here, and with them what they own.
    fn delete(&self, asked: Asked) -> Reply {
        let id = (asked.kind, asked.namespace, asked.name.unwrap());
        let _one_at_a_time = self.patches.lock().unwrap();
        let Some(object) = self.state.lock().unwrap().objects.get(&id).cloned() else {
            return failure(404, "not found");
        };
        let uid = &object["metadata"]["uid"];
        for condition in ["uid", "resourceVersion"] {
            let wanted = &asked.body["preconditions"][condition];
            if !wanted.is_null() && *wanted != object["metadata"][condition] {
                return failure(409, "the object is another or was changed");
            }
        }
        self.write(id, None);
        let owned: Vec<ObjectId> = {
            let state = self.state.lock().unwrap();
            let is_owned = |object: &Value| object["metadata"]["ownerReferences"][0]["uid"] == *uid;
            let all = state.objects.iter().filter(|(_, object)| is_owned(object));
            all.map(|(id, _)| id.clone()).collect()
        };
        for id in owned {
            self.write(id, None);
        }
        done(200, &object)
    }

    fn list(&self, asked: &Asked) -> Reply {
        let state = self.state.lock().unwrap();
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|((kind, namespace, _), object)| {
                *kind == asked.kind && *namespace == asked.namespace && selected(asked, object)
            })
            .map(|(_, object)| object)
            .collect();
        let version = state.version.to_string();
        done(
            200,
            &json!({"metadata": {"resourceVersion": version}, "items": items}),
        )
    }

    fn watch(&self, asked: Asked) -> Reply {
        let from: u64 = asked.query["resourceVersion"].parse().unwrap();
        let is_too_old = from < self.state.lock().unwrap().oldest;
        let lines: Pin<Box<dyn Stream<Item = Value> + Send>> = if is_too_old {
            let status = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
            stream::iter([json!({"type": "ERROR", "object": status})]).boxed()
        } else {
            self.changes_since(from, asked).boxed()
        };
        let frames = lines.map(|line| Ok(http_body::Frame::data(Bytes::from(format!("{line}\n")))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    fn changes_since(&self, from: u64, asked: Asked) -> impl Stream<Item = Value> + Send + use<> {
        let state = Arc::clone(&self.state);
        let mut changes = self.changes.subscribe();
        let cuts = changes.borrow_and_update().1;
        stream::unfold((from, changes), move |(from, mut changes)| {
            let next = {
                let state = state.lock().unwrap();
                let is_asked =
                    |(version, (kind, namespace, _), _, object): &&(u64, ObjectId, &'static str, Value)| {
                        *version > from
                            && *kind == asked.kind
                            && *namespace == asked.namespace
                            && selected(&asked, object)
                    };
                let mut history = state.history.iter();
                history
                    .find(is_asked)
                    .map(|(version, _, change, object)| (*version, json!({"type": change, "object": object})))
            };
            async move {
                if changes.borrow().1 != cuts {
                    return None;
                }
                if let Some((version, line)) = next {
                    return Some((Some(line), (version, changes)));
                }
                changes.changed().await.ok()?;
                Some((None, (from, changes)))
            }
        })
        .filter_map(|line| async { line })
    }
}

/// Whether an object has the labels that are asked for.
/// The time in whole seconds, as the API server notes it.
fn now() -> String {
    let seconds = k8s_openapi::jiff::Timestamp::now().as_second();
    k8s_openapi::jiff::Timestamp::new(seconds, 0).unwrap().to_string()
}

fn selected(asked: &Asked, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    let is_met = |wanted: &str| match wanted.split_once('=') {
        Some((key, value)) => match key.strip_suffix('!') {
            Some(key) => labels[key] != json!(value),
            None => labels[key] == json!(value),
        },
        None => !labels[wanted].is_null(),
    };
    let selector = asked.query.get("labelSelector");
    selector.is_none_or(|selector| selector.split(',').all(is_met))
}

fn reply(code: u16, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body).boxed_unsync());
    *reply.status_mut() = http::StatusCode::from_u16(code).unwrap();
    reply
}

fn text(text: String) -> Reply {
    reply(200, text.into())
}

fn done(code: u16, object: &Value) -> Reply {
    reply(code, object.to_string().into())
}

fn failure(code: u16, message: &str) -> Reply {
    let reason = match code {
        404 => "NotFound",
        409 => "AlreadyExists",
        403 => "Forbidden",
        _ => "InternalError",
    };
    done(
        code,
        &json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}),
    )
}

impl tower_service::Service<Request<Body>> for FakeKube {
    type Response = Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            // …/namespaces/NAMESPACE/KIND[/NAME[/log]]
            let (_, path) = head.uri.path().split_once("/namespaces/").unwrap();
            let path: Vec<&str> = path.split('/').collect();
            let query = head.uri.query().unwrap_or_default();
            let decode = |text: &str| {
                let pairs = [("%2F", "/"), ("%3D", "="), ("%2C", ","), ("%21", "!")];
                let replace = |text: String, (code, plain): (&str, &str)| text.replace(code, plain);
                pairs.into_iter().fold(text.to_owned(), replace)
            };
            let asked = Asked {
                method: head.method,
                namespace: path[0].to_owned(),
                kind: path[1].to_owned(),
                name: path.get(2).map(|name| (*name).to_owned()),
                is_log: path.get(3) == Some(&"log"),
                query: query
                    .split('&')
                    .filter_map(|pair| pair.split_once('='))
                    .map(|(key, value)| (key.to_owned(), decode(value)))
                    .collect(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            };
            Ok(fake.answer(asked))
        })
    }
}

/// A client of a process that is killed at one of its requests: that request and
/// all after it get no answer. Watches do not count.
#[derive(Clone)]
pub(crate) struct Mortal {
    fake: FakeKube,
    /// Requests until the end.
    left: Arc<AtomicI64>,
    /// Whether the last request still has its effect.
    is_served: bool,
}

impl Mortal {
    pub(crate) fn new(fake: &FakeKube, requests: i64, is_served: bool) -> Self {
        Self {
            fake: fake.clone(),
            left: Arc::new(AtomicI64::new(requests)),
            is_served,
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= 0
    }
}

impl tower_service::Service<Request<Body>> for Mortal {
    type Response = Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_watch = request
            .uri()
            .query()
            .is_some_and(|query| query.contains("watch="));
        let left = if is_watch {
            self.left.load(Ordering::SeqCst) + 1
        } else {
            self.left.fetch_sub(1, Ordering::SeqCst)
        };
        let (mut fake, is_served) = (self.fake.clone(), self.is_served);
        Box::pin(async move {
            if left > 1 {
                return fake.call(request).await;
            }
            if left == 1 && is_served {
                drop(fake.call(request).await);
            }
            std::future::pending().await
        })
    }
}
