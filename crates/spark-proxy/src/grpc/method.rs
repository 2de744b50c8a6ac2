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
    /// One that this release does not know: taken for work.
    Unknown,
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

    /// Is the call work? Then it brings compute back that was released, and
    /// keeps its session from going idle. All others ask about, or end, what
    /// exists already.
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

    /// Does it end work, or give back what work has left? Such a call passes
    /// whatever else is open: without it nothing would end.
    pub(crate) const fn ends_work(self) -> bool {
        matches!(
            self,
            Self::Interrupt | Self::ReleaseExecute | Self::ReleaseSession
        )
    }

    /// Is its request surely one message?
    pub(crate) const fn has_one_message(self) -> bool {
        !matches!(self, Self::AddArtifacts | Self::Unknown)
    }

    /// How far past its expiry a token may make this call.
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

    /// Its name, for reports.
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

/// Is it the path of a call that [`Method::ends_work`]?
pub(crate) fn ends_work(path: &str) -> bool {
    let name = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    name.is_some_and(|(service, name)| service == SPARK_CONNECT && Method::named(name).ends_work())
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
            Target::Spark(Method::ExecutePlan)
        );
        assert_eq!(
            of("POST", &spark("NotYetInvented"), "application/grpc+proto"),
            Target::Spark(Method::Unknown)
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
    fn what_ends_work_starts_none() {
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
    fn what_starts_work_has_no_grace_and_wakes() {
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
