//! A browser: requests of its own origin, with a jar of cookies.

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(30);

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The cookies that the answer sets or removes, as whole lines.
    pub(crate) fn cookies(&self) -> Vec<&str> {
        let lines = self.headers.get_all(header::SET_COOKIE).iter();
        lines.map(|line| line.to_str().unwrap()).collect()
    }
}

/// A browser at one server.
#[derive(Debug)]
pub(crate) struct Browser {
    address: SocketAddr,
    path: String,
    jar: Mutex<BTreeMap<String, String>>,
}

impl Browser {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            path: "/".to_owned(),
            jar: Mutex::default(),
        }
    }

    /// At the server of an address `http://IP:PORT/…`.
    pub(crate) fn at_url(url: &str) -> Self {
        let rest = url.strip_prefix("http://").unwrap();
        let (host, _) = rest.split_once('/').unwrap();
        let mut browser = Self::new(host.parse().unwrap());
        browser.path = super::path_of(url).to_owned();
        browser
    }

    /// Reads the address that it was made with.
    pub(crate) async fn get_url(&self) -> Answer {
        self.get(&self.path).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path), "").await
    }

    /// A request of a page of the console.
    pub(crate) async fn post(&self, path: &str, json: &str) -> Answer {
        let request = Request::post(path)
            .header("x-berth-request", "1")
            .header("sec-fetch-site", "same-origin")
            .header(header::CONTENT_TYPE, "application/json");
        self.send(request, json).await
    }

    /// A request with these headers and the cookies, which follows no redirect.
    pub(crate) async fn send(&self, request: http::request::Builder, body: &str) -> Answer {
        let cookies = self.cookie_line();
        let mut request = request
            .header(header::HOST, self.address.to_string())
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        if !cookies.is_empty() {
            request
                .headers_mut()
                .insert(header::COOKIE, cookies.parse().unwrap());
        }
        let answer = tokio::time::timeout(LIMIT, exchange(self.address, request))
            .await
            .unwrap();
        self.keep(&answer);
        answer
    }

    /// The cookies as one header line.
    pub(crate) fn cookie_line(&self) -> String {
        let jar = self.jar.lock().unwrap();
        let pairs: Vec<String> = jar
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        pairs.join("; ")
    }

    /// The stored cookies.
    pub(crate) fn jar(&self) -> BTreeMap<String, String> {
        self.jar.lock().unwrap().clone()
    }

    /// Replaces the stored cookies.
    pub(crate) fn set_jar(&self, jar: BTreeMap<String, String>) {
        *self.jar.lock().unwrap() = jar;
    }

    fn keep(&self, answer: &Answer) {
        let mut jar = self.jar.lock().unwrap();
        for line in answer.cookies() {
            let (name, rest) = line.split_once('=').unwrap();
            let value = rest.split(';').next().unwrap();
            if line.contains("Max-Age=0;") {
                jar.remove(name);
            } else {
                jar.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    /// Who is signed in, by `auth/session`.
    pub(crate) async fn who(&self) -> Option<String> {
        let session = self.get("/auth/session").await;
        assert_eq!(session.status, 200, "{session:?}");
        let session = session.json();
        assert_eq!(session["signed_in"], !session["principal"].is_null());
        session["principal"]["id"].as_str().map(str::to_owned)
    }
}

async fn exchange(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    connection.abort();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        text: String::from_utf8(body.to_vec()).unwrap(),
    }
}
