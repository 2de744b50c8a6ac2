//! What is being called, and what that means: which requests are forwarded,
//! which of them wake a session, and which a token may still make after its
//! time.

use http::{HeaderMap, header};
use session_token::Grace;

/// The service whose calls are forwarded.
pub(crate) const SPARK_CONNECT: &str = "spark.connect.SparkConnectService";
const HEALTH: &str = "grpc.health.v1.Health";

/// A method of the Spark Connect service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    ReattachExecute,
    ReleaseExecute,
    Interrupt,
    /// Others that ask about, or end, what exists already.
    Housekeeping,
    /// All the rest, also methods that this release does not know.
    Working,
}

/// What a request asks for by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// To be forwarded.
    Spark(Method),
    /// Answered here.
    HealthCheck,
    /// Nothing that is served here.
    Unknown,
}

impl Method {
    fn named(name: &str) -> Self {
        match name {
            "ReattachExecute" => Self::ReattachExecute,
            "ReleaseExecute" => Self::ReleaseExecute,
            "Interrupt" => Self::Interrupt,
            "ReleaseSession" | "GetStatus" | "FetchErrorDetails" | "ListSqlExecutions"
            | "GetSqlExecution" => Self::Housekeeping,
            _ => Self::Working,
        }
    }

    /// Does the call bring compute back that was released?
    pub(crate) const fn wakes(self) -> bool {
        match self {
            Self::ReattachExecute | Self::ReleaseExecute | Self::Interrupt | Self::Housekeeping => false,
            Self::Working => true,
        }
    }

    /// How far past its expiry a token may make this call.
    pub(crate) const fn grace(self) -> Grace {
        match self {
            Self::ReattachExecute | Self::ReleaseExecute => Grace::Reattach,
            Self::Interrupt => Grace::Interrupt,
            Self::Housekeeping | Self::Working => Grace::None,
        }
    }
}

/// Reads method, path and content type of a request.
pub(crate) fn target(request: &http::request::Parts) -> Target {
    let Some((service, name)) = request
        .uri
        .path()
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
    else {
        return Target::Unknown;
    };
    if request.method != http::Method::POST
        || !is_grpc(&request.headers)
        || name.is_empty()
        || name.contains('/')
    {
        return Target::Unknown;
    }
    match (service, name) {
        (SPARK_CONNECT, name) => Target::Spark(Method::named(name)),
        (HEALTH, "Check") => Target::HealthCheck,
        _ => Target::Unknown,
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return false;
    };
    let Some(rest) = value.as_bytes().strip_prefix(b"application/grpc") else {
        return false;
    };
    matches!(rest.first(), None | Some(b'+' | b';'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, path: &str, content_type: &str) -> Target {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type);
        target(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn only_calls_of_the_service_are_forwarded() {
        let grpc = "application/grpc";
        let spark = |name: &str| format!("/{SPARK_CONNECT}/{name}");
        assert_eq!(
            of("POST", &spark("ExecutePlan"), grpc),
            Target::Spark(Method::Working)
        );
        assert_eq!(
            of("POST", &spark("NotYetInvented"), "application/grpc+proto"),
            Target::Spark(Method::Working)
        );
        assert_eq!(
            of("POST", &spark("ReattachExecute"), grpc),
            Target::Spark(Method::ReattachExecute)
        );
        assert_eq!(
            of("POST", "/grpc.health.v1.Health/Check", grpc),
            Target::HealthCheck
        );
        for (method, path, content_type) in [
            ("GET", spark("ExecutePlan"), grpc),
            ("POST", spark(""), grpc),
            ("POST", spark("a/b"), grpc),
            ("POST", spark("Config"), "application/grpc-web"),
            ("POST", spark("Config"), "application/json"),
            (
                "POST",
                "/spark.connect.SparkConnectServiceX/Config".to_owned(),
                grpc,
            ),
            ("POST", "/".to_owned(), grpc),
        ] {
            assert_eq!(
                of(method, &path, content_type),
                Target::Unknown,
                "{method} {path} {content_type}"
            );
        }
    }

    #[test]
    fn what_starts_work_has_no_grace_and_wakes() {
        for name in [
            "ExecutePlan",
            "AnalyzePlan",
            "Config",
            "AddArtifacts",
            "CloneSession",
            "NotYetInvented",
        ] {
            assert!(Method::named(name).wakes());
            assert_eq!(Method::named(name).grace(), Grace::None);
        }
        assert_eq!(Method::named("ReleaseExecute").grace(), Grace::Reattach);
        assert_eq!(Method::named("Interrupt").grace(), Grace::Interrupt);
        assert!(!Method::named("GetStatus").wakes());
    }
}
