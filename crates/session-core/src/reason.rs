//! Closed lists with fixed spellings: the reason of an error in a reply, and
//! the reason of a change of a session.

use crate::string_enum::string_enum;

string_enum! {
    /// Reason of a rejected call (`ErrorInfo.reason`, domain `berth`).
    Reason {
        /// The call has no credential.
        TokenMissing => "TOKEN_MISSING",
        /// The credential does not have the form of a session token.
        TokenMalformed => "TOKEN_MALFORMED",
        /// The token has expired.
        TokenExpired => "TOKEN_EXPIRED",
        /// The token is revoked.
        TokenRevoked => "TOKEN_REVOKED",
        /// The token was not issued by this installation, or not for this use.
        TokenInvalid => "TOKEN_INVALID",
        /// `x-session-id` is required here and missing.
        HeaderMissing => "HEADER_MISSING",
        /// A single-valued header occurs more than once.
        HeaderDuplicate => "HEADER_DUPLICATE",
        /// `x-session-id` names another session than the token.
        SessionMismatch => "SESSION_MISMATCH",
        /// Another session uses this Spark session id.
        SparkSessionTaken => "SPARK_SESSION_TAKEN",
        /// The object does not exist or belongs to somebody else; the two cases
        /// are indistinguishable.
        NotAuthorized => "NOT_AUTHORIZED",
        /// The organization is disabled.
        OrgDisabled => "ORG_DISABLED",
        /// The session is closed, or a valid token names a session that does
        /// not exist.
        SessionClosed => "SESSION_CLOSED",
        /// The session failed.
        SessionFailed => "SESSION_FAILED",
        /// The compute was released and this call does not wake the session.
        ComputeReleased => "COMPUTE_RELEASED",
        /// The default catalog cannot be used.
        CatalogUnavailable => "CATALOG_UNAVAILABLE",
        /// The cluster accepts no sessions.
        ClusterNotActive => "CLUSTER_NOT_ACTIVE",
        /// Plaintext connection where TLS is required.
        TlsRequired => "TLS_REQUIRED",
        /// The session is still warming at the end of the hold time.
        SessionWarming => "SESSION_WARMING",
        /// This proxy is draining.
        ProxyDraining => "PROXY_DRAINING",
        /// The backend refused the connection; the call was not forwarded.
        BackendUnavailable => "BACKEND_UNAVAILABLE",
        /// The manager or its state store is unavailable and no route is
        /// cached.
        ControlPlaneUnavailable => "CONTROL_PLANE_UNAVAILABLE",
        /// A quota is exhausted.
        QuotaExceeded => "QUOTA_EXCEEDED",
        /// Rate limit exceeded.
        RateLimited => "RATE_LIMITED",
        /// The limit of waiting calls for this session is reached.
        TooManyWaiting => "TOO_MANY_WAITING",
        /// The request bytes are not a message of this service.
        MalformedMessage => "MALFORMED_MESSAGE",
        /// The request message is compressed in a way, or beyond a limit, that is not accepted.
        CompressedRequest => "COMPRESSED_REQUEST",
        /// Not a method of the Spark Connect service.
        UnknownMethod => "UNKNOWN_METHOD",
        /// The backend was lost after the call was forwarded.
        BackendLost => "BACKEND_LOST",
        /// The operation was lost with its backend.
        OperationLost => "OPERATION_LOST",
        /// The same `request_id` was used with other fields.
        RequestIdReused => "REQUEST_ID_REUSED",
        /// The object is declared in the configuration, hence read-only in the
        /// API.
        ManagedByConfig => "MANAGED_BY_CONFIG",
        /// A field of the request is invalid.
        InvalidArgument => "INVALID_ARGUMENT",
        /// An API call without a credential, or with an unknown one.
        CallerUnknown => "CALLER_UNKNOWN",
        /// The object changed concurrently; read it again.
        Conflict => "CONFLICT",
        /// The object cannot be deleted while it is in use.
        InUse => "IN_USE",
        /// An object of this name already exists.
        AlreadyExists => "ALREADY_EXISTS",
        /// Internal error of Berth; the logs have the details.
        Internal => "INTERNAL",
    }
}

string_enum! {
    /// Reason of a change of a session.
    ChangeReason {
        /// The session was created (CreateSession).
        Created => "CREATED",
        /// Compute answered the readiness probe.
        ComputeReady => "COMPUTE_READY",
        /// Compute that is being created waits for something; the message names it.
        ComputeWaiting => "COMPUTE_WAITING",
        /// The first provisioning missed its deadline.
        ProvisioningTimeout => "PROVISIONING_TIMEOUT",
        /// Provisioning cannot succeed.
        ProvisioningFailed => "PROVISIONING_FAILED",
        /// No call in flight for `idle_timeout`.
        IdleTimeout => "IDLE_TIMEOUT",
        /// The compute of the idle session was released.
        IdleReleased => "IDLE_RELEASED",
        /// A call arrived while the session was idle.
        Activity => "ACTIVITY",
        /// A waking call, or WarmSession.
        Woken => "WOKEN",
        /// A warm-up failed; the session is idle again.
        WarmFailed => "WARM_FAILED",
        /// Five consecutive warm-ups failed, or one failed permanently.
        WarmBudgetSpent => "WARM_BUDGET_SPENT",
        /// Dedicated compute was lost.
        ComputeLost => "COMPUTE_LOST",
        /// Compute was lost too often.
        RestartBudgetSpent => "RESTART_BUDGET_SPENT",
        /// The session was closed by CloseSession.
        CloseRequested => "CLOSE_REQUESTED",
        /// The session was idle for `close_after_idle`.
        IdleClose => "IDLE_CLOSE",
        /// The session reached `max_lifetime`.
        MaxLifetime => "MAX_LIFETIME",
        /// The cluster was destroyed.
        ClusterDestroyed => "CLUSTER_DESTROYED",
        /// The organization was disabled.
        OrgDisabled => "ORG_DISABLED",
        /// The owner was disabled.
        OwnerDisabled => "OWNER_DISABLED",
        /// The session changed by UpdateSession, ExtendSession or
        /// KeepSessionAlive.
        Updated => "UPDATED",
        /// All tokens were revoked (RevokeAllSessionTokens).
        TokensRevoked => "TOKENS_REVOKED",
        /// The session will be closed by a deadline in five minutes.
        ClosingSoon => "CLOSING_SOON",
        /// A Spark session on shared compute was released to make room for a
        /// newer one.
        SparkSessionReleased => "SPARK_SESSION_RELEASED",
        /// A client is newer than the engine by a minor version; the message names
        /// both.
        ClientNewer => "CLIENT_NEWER",
    }
}
