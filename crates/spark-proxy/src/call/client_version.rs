//! Versions of clients: noted at the first call of a Spark session, with advice for a client that is
//! newer than its engine.

use crate::call::forward::Exchange;
use crate::grpc::identity::ClientType;
use crate::metrics::{ClientLanguage, ClientVersion};
use http::HeaderValue;
use service_kit::metrics::Label as _;
use session_core::SparkVersion;
use session_core::spark_version::printable_version;

/// A client as it names itself in `client_type`, such as `_SPARK_CONNECT_PYTHON spark/4.1.3 os/linux
/// python/3.11.7`. Clients for Go and Rust name no version of Spark.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Client<'a> {
    pub(crate) language: ClientLanguage,
    pub(crate) spark: Option<&'a str>,
    /// Version of the language, or of the client's package.
    pub(crate) runtime: Option<&'a str>,
}

impl<'a> Client<'a> {
    /// Parses the words after the prefix that users can choose; the last of equal ones counts.
    pub(crate) fn parse(client_type: &'a str) -> Self {
        let mut client = Client {
            language: ClientLanguage::Other,
            spark: None,
            runtime: None,
        };
        for word in client_type.split_ascii_whitespace() {
            let Some((name, version)) = word.split_once('/') else {
                if word == "_SPARK_CONNECT_RUST" {
                    client.language = ClientLanguage::Rust;
                }
                continue;
            };
            let language = match name {
                "spark" => {
                    client.spark = Some(version);
                    continue;
                }
                "python" => ClientLanguage::Python,
                "scala" => ClientLanguage::Scala,
                "go" => ClientLanguage::Go,
                "spark_connect_rs" | "spark_connect" => ClientLanguage::Rust,
                _ => continue,
            };
            client.language = language;
            client.runtime = Some(version);
        }
        client
    }

    fn version(&self) -> ClientVersion {
        match self.spark.map(SparkVersion::parse) {
            None => ClientVersion::Unknown,
            Some(None) => ClientVersion::Other,
            Some(Some(SparkVersion { major, minor })) => match (major, minor) {
                (3, 4) => ClientVersion::V34,
                (3, 5) => ClientVersion::V35,
                (4, 0) => ClientVersion::V40,
                (4, 1) => ClientVersion::V41,
                (4, 2) => ClientVersion::V42,
                (4, 3) => ClientVersion::V43,
                _ => ClientVersion::Other,
            },
        }
    }
}

/// Notes the client of the call's Spark session, and sets the advice.
pub(crate) fn note(exchange: &Exchange<'_>, client_type: &ClientType) {
    let session = exchange.open.session();
    let mut known = session.known_clients.get();
    if known.contains(&exchange.spark_session) {
        // Another call of the Spark session was faster.
        return;
    }
    known.insert(&exchange.spark_session);
    session.known_clients.set(known);
    let text = printable_ascii(client_type.as_bytes());
    let client = Client::parse(&text);
    exchange
        .metrics()
        .clients
        .at((client.language, client.version()))
        .inc();
    tracing::debug!(
        spark_session = exchange.spark_session.as_str(),
        language = client.language.as_str(),
        spark = client.spark,
        runtime = client.runtime,
        engine = %exchange.backend.engine,
        newest_client = exchange.backend.newest_client.map(|newest| tracing::field::display(newest.version)),
        "client of a Spark session"
    );
    let Some((newest, spark)) = exchange.backend.newest_client.zip(client.spark) else {
        return;
    };
    let Some(advice) = newest.advice(spark) else {
        return;
    };
    tracing::debug!(advice, "client newer than its engine");
    exchange
        .open
        .usage()
        .record_newer_client(printable_version(spark), newest);
    // Printable ASCII.
    exchange
        .advice
        .set(HeaderValue::try_from(advice).ok().map(Box::new));
}

fn printable_ascii(bytes: &[u8]) -> String {
    let printable = |byte: &u8| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '?',
    };
    bytes.iter().map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_name_their_versions() {
        use ClientLanguage::{Go, Other, Python, Rust, Scala};
        for (text, language, spark, runtime, version) in [
            (
                "_SPARK_CONNECT_PYTHON spark/4.1.3 os/linux python/3.11.7",
                Python,
                Some("4.1.3"),
                Some("3.11.7"),
                ClientVersion::V41,
            ),
            (
                "_SPARK_CONNECT_SCALA spark/4.3.0-SNAPSHOT scala/2.13.17 jvm/17.0.15 os/linux",
                Scala,
                Some("4.3.0-SNAPSHOT"),
                Some("2.13.17"),
                ClientVersion::V43,
            ),
            (
                "_SPARK_CONNECT_GO os/linux go/1.23.1",
                Go,
                None,
                Some("1.23.1"),
                ClientVersion::Unknown,
            ),
            (
                "_SPARK_CONNECT_RUST os/linux spark_connect_rs/0.0.2",
                Rust,
                None,
                Some("0.0.2"),
                ClientVersion::Unknown,
            ),
            ("_SPARK_CONNECT_RUST", Rust, None, None, ClientVersion::Unknown),
            (
                "my tool spark/9.9.9 spark/3.5.6 os/darwin python/3.9.0",
                Python,
                Some("3.5.6"),
                Some("3.9.0"),
                ClientVersion::V35,
            ),
            ("spark/5.0.0", Other, Some("5.0.0"), None, ClientVersion::Other),
            (
                "python/3 spark/dev",
                Python,
                Some("dev"),
                Some("3"),
                ClientVersion::Other,
            ),
            ("", Other, None, None, ClientVersion::Unknown),
            (
                "\u{fffd}\u{fffd} / // spark",
                Other,
                None,
                None,
                ClientVersion::Unknown,
            ),
        ] {
            let client = Client::parse(text);
            assert_eq!(
                client,
                Client {
                    language,
                    spark,
                    runtime
                },
                "{text}"
            );
            assert_eq!(client.version(), version, "{text}");
        }
    }
}
