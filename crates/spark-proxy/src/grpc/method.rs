//! Methods and their policy: which calls are forwarded, which wake a session, and which an expired
//! token may still make.

use http::{HeaderMap, header};
use session_token::Grace;

/// The forwarded service.
pub(crate) const SPARK_CONNECT: &str = "spark.connect.SparkConnectService";
const HEALTH: &str = "grpc.health.v1.Health";

/// A method of the Spark Connect service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    ExecutePlan,
    AnalyzePlan,
    Config,
    AddArtifacts,
    ArtifactStatus,
    CloneSession,
    ReattachExecute,
    ReleaseExecute,
    Interrupt,
    ReleaseSession,
    GetStatus,
    FetchErrorDetails,
    ListSqlExecutions,
    GetSqlExecution,
    /// Unknown to this release; treated as work.
    Unknown,
}

/// Destination of a request by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestTarget {
    /// Forwarded.
    Spark(Method),
    /// Answered by the proxy.
    HealthCheck,
    /// Not served.
    Unknown,
}

impl Method {
    fn named(name: &str) -> Self {
        match name {
            "ExecutePlan" => Self::ExecutePlan,
            "AnalyzePlan" => Self::AnalyzePlan,
            "Config" => Self::Config,
            "AddArtifacts" => Self::AddArtifacts,
            "ArtifactStatus" => Self::ArtifactStatus,
            "CloneSession" => Self::CloneSession,
            "ReattachExecute" => Self::ReattachExecute,
            "ReleaseExecute" => Self::ReleaseExecute,
            "Interrupt" => Self::Interrupt,
            "ReleaseSession" => Self::ReleaseSession,
            "GetStatus" => Self::GetStatus,
            "FetchErrorDetails" => Self::FetchErrorDetails,
            "ListSqlExecutions" => Self::ListSqlExecutions,
            "GetSqlExecution" => Self::GetSqlExecution,
            _ => Self::Unknown,
        }
    }

    /// Whether the call is work: it wakes released compute and keeps its session active. All other
    /// calls read or end existing work.
    pub(crate) const fn is_work(self) -> bool {
        match self {
            Self::ExecutePlan
            | Self::AnalyzePlan
            | Self::Config
            | Self::AddArtifacts
            | Self::ArtifactStatus
            | Self::CloneSession
            | Self::Unknown => true,
            Self::ReattachExecute
            | Self::ReleaseExecute
            | Self::Interrupt
            | Self::ReleaseSession
            | Self::GetStatus
            | Self::FetchErrorDetails
            | Self::ListSqlExecutions
            | Self::GetSqlExecution => false,
        }
    }

    /// Whether the call ends work or releases its results. It is not limited by open calls:
    /// otherwise nothing could end.
    pub(crate) const fn ends_work(self) -> bool {
        matches!(
            self,
            Self::Interrupt | Self::ReleaseExecute | Self::ReleaseSession
        )
    }

    /// Whether the request is always a single message.
    pub(crate) const fn has_one_message(self) -> bool {
        !matches!(self, Self::AddArtifacts | Self::Unknown)
    }

    /// Number of the field `client_type` in the requests with which clients begin.
    pub(crate) const fn client_type_field(self) -> Option<u64> {
        match self {
            Self::AnalyzePlan | Self::ArtifactStatus => Some(3),
            Self::ExecutePlan | Self::Config => Some(4),
            Self::AddArtifacts => Some(6),
            Self::CloneSession
            | Self::ReattachExecute
            | Self::ReleaseExecute
            | Self::Interrupt
            | Self::ReleaseSession
            | Self::GetStatus
            | Self::FetchErrorDetails
            | Self::ListSqlExecutions
            | Self::GetSqlExecution
            | Self::Unknown => None,
        }
    }

    /// Time after its expiry for which a token may make this call.
    pub(crate) const fn grace(self) -> Grace {
        match self {
            Self::ReattachExecute | Self::ReleaseExecute => Grace::Reattach,
            Self::Interrupt => Grace::Interrupt,
            Self::ExecutePlan
            | Self::AnalyzePlan
            | Self::Config
            | Self::AddArtifacts
            | Self::ArtifactStatus
            | Self::CloneSession
            | Self::ReleaseSession
            | Self::GetStatus
            | Self::FetchErrorDetails
            | Self::ListSqlExecutions
            | Self::GetSqlExecution
            | Self::Unknown => Grace::None,
        }
    }

    /// The name for reports.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::ExecutePlan => "ExecutePlan",
            Self::AnalyzePlan => "AnalyzePlan",
            Self::Config => "Config",
            Self::AddArtifacts => "AddArtifacts",
            Self::ArtifactStatus => "ArtifactStatus",
            Self::CloneSession => "CloneSession",
            Self::ReattachExecute => "ReattachExecute",
            Self::ReleaseExecute => "ReleaseExecute",
            Self::Interrupt => "Interrupt",
            Self::ReleaseSession => "ReleaseSession",
            Self::GetStatus => "GetStatus",
            Self::FetchErrorDetails => "FetchErrorDetails",
            Self::ListSqlExecutions => "ListSqlExecutions",
            Self::GetSqlExecution => "GetSqlExecution",
            Self::Unknown => "other",
        }
    }
}

/// Whether the path is that of a call with [`Method::ends_work`].
pub(crate) fn ends_work(path: &str) -> bool {
    let name = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    name.is_some_and(|(service, name)| service == SPARK_CONNECT && Method::named(name).ends_work())
}

/// Determines the target from method, path and content type of a request.
pub(crate) fn target(request: &http::request::Parts) -> RequestTarget {
    let Some((service, name)) = request
        .uri
        .path()
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
    else {
        return RequestTarget::Unknown;
    };
    if request.method != http::Method::POST
        || !is_grpc(&request.headers)
        || name.is_empty()
        || name.contains('/')
    {
        return RequestTarget::Unknown;
    }
    match (service, name) {
        (SPARK_CONNECT, name) => RequestTarget::Spark(Method::named(name)),
        (HEALTH, "Check") => RequestTarget::HealthCheck,
        _ => RequestTarget::Unknown,
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

    fn of(method: &str, path: &str, content_type: &str) -> RequestTarget {
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
            RequestTarget::Spark(Method::ExecutePlan)
        );
        assert_eq!(
            of("POST", &spark("NotYetInvented"), "application/grpc+proto"),
            RequestTarget::Spark(Method::Unknown)
        );
        assert_eq!(
            of("POST", &spark("ReattachExecute"), grpc),
            RequestTarget::Spark(Method::ReattachExecute)
        );
        assert_eq!(
            of("POST", "/grpc.health.v1.Health/Check", grpc),
            RequestTarget::HealthCheck
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
                RequestTarget::Unknown,
                "{method} {path} {content_type}"
            );
        }
    }

    #[test]
    fn methods_that_end_work_are_not_work() {
        for name in ["Interrupt", "ReleaseExecute", "ReleaseSession"] {
            assert!(ends_work(&format!("/{SPARK_CONNECT}/{name}")), "{name}");
            assert!(!Method::named(name).is_work(), "{name}");
        }
        for path in [
            "/spark.connect.SparkConnectService/ExecutePlan",
            "/other/Interrupt",
            "",
            "/",
        ] {
            assert!(!ends_work(path), "{path}");
        }
    }

    #[test]
    fn methods_that_are_work_wake_and_have_no_grace() {
        for name in [
            "ExecutePlan",
            "AnalyzePlan",
            "Config",
            "AddArtifacts",
            "CloneSession",
            "NotYetInvented",
        ] {
            assert!(Method::named(name).is_work());
            assert_eq!(Method::named(name).grace(), Grace::None);
        }
        assert_eq!(Method::named("ReleaseExecute").grace(), Grace::Reattach);
        assert_eq!(Method::named("Interrupt").grace(), Grace::Interrupt);
        assert!(!Method::named("GetStatus").is_work());
    }
}
