//! Why: the reason of an error that a caller sees, and of a change that a
//! session went through. Both are closed lists with fixed spellings.

use crate::spelled::spelled;

spelled! {
    /// Why a call was refused (`ErrorInfo.reason`, domain `berth`).
    Reason {
        /// No credential came with the call.
        TokenMissing => "TOKEN_MISSING",
        /// The credential is not a session token by its form.
        TokenMalformed => "TOKEN_MALFORMED",
        /// The token's time is over.
        TokenExpired => "TOKEN_EXPIRED",
        /// The token was taken back.
        TokenRevoked => "TOKEN_REVOKED",
        /// The token is not one of ours, or not for this use.
        TokenInvalid => "TOKEN_INVALID",
        /// `x-session-id` is mandatory here and missing.
        HeaderMissing => "HEADER_MISSING",
        /// A header that must be single came twice.
        HeaderDuplicate => "HEADER_DUPLICATE",
        /// `x-session-id` names another session than the token.
        SessionMismatch => "SESSION_MISMATCH",
        /// Another session uses this Spark session id.
        SparkSessionTaken => "SPARK_SESSION_TAKEN",
        /// Not the caller's, or no such thing: both alike.
        NotAuthorized => "NOT_AUTHORIZED",
        /// The organization is disabled.
        OrgDisabled => "ORG_DISABLED",
        /// The session is closed, or unknown to a good token.
        SessionClosed => "SESSION_CLOSED",
        /// The session failed.
        SessionFailed => "SESSION_FAILED",
        /// The compute was given back and this call does not wake it.
        ComputeReleased => "COMPUTE_RELEASED",
        /// The default catalog cannot be used.
        CatalogUnavailable => "CATALOG_UNAVAILABLE",
        /// The cluster accepts no sessions.
        ClusterNotActive => "CLUSTER_NOT_ACTIVE",
        /// Plaintext where TLS is required.
        TlsRequired => "TLS_REQUIRED",
        /// Still warming after the hold.
        SessionWarming => "SESSION_WARMING",
        /// This proxy is going away.
        ProxyDraining => "PROXY_DRAINING",
        /// The backend refused the connection; nothing was done.
        BackendUnavailable => "BACKEND_UNAVAILABLE",
        /// The manager or its state is away and nothing is cached.
        ControlPlaneUnavailable => "CONTROL_PLANE_UNAVAILABLE",
        /// A quota is used up.
        QuotaExceeded => "QUOTA_EXCEEDED",
        /// Too many requests in too short a time.
        RateLimited => "RATE_LIMITED",
        /// Too many calls wait for this session already.
        TooManyWaiting => "TOO_MANY_WAITING",
        /// The request's bytes are not a message of this service.
        MalformedMessage => "MALFORMED_MESSAGE",
        /// A compressed request message.
        CompressedRequest => "COMPRESSED_REQUEST",
        /// Not a method of the Spark Connect service.
        UnknownMethod => "UNKNOWN_METHOD",
        /// The backend was lost after the call was forwarded.
        BackendLost => "BACKEND_LOST",
        /// The operation was lost with its backend.
        OperationLost => "OPERATION_LOST",
        /// The same `request_id` came with other fields.
        RequestIdReused => "REQUEST_ID_REUSED",
        /// Declared in configuration, hence read-only in the API.
        ManagedByConfig => "MANAGED_BY_CONFIG",
        /// A field of the request is not acceptable.
        InvalidArgument => "INVALID_ARGUMENT",
        /// No credential, or none that is known, on an API call.
        CallerUnknown => "CALLER_UNKNOWN",
        /// The thing was changed meanwhile; read it again.
        Conflict => "CONFLICT",
        /// It cannot go while something uses it.
        InUse => "IN_USE",
        /// A thing of this name exists already.
        AlreadyExists => "ALREADY_EXISTS",
        /// Something in Berth is broken; the logs say more.
        Internal => "INTERNAL",
    }
}

spelled! {
    /// Why a session changed.
    ChangeReason {
        /// CreateSession.
        Created => "CREATED",
        /// Compute answered the readiness probe.
        ComputeReady => "COMPUTE_READY",
        /// The first provisioning missed its deadline.
        ProvisioningTimeout => "PROVISIONING_TIMEOUT",
        /// Provisioning cannot succeed.
        ProvisioningFailed => "PROVISIONING_FAILED",
        /// Nothing in flight for `idle_timeout`.
        IdleTimeout => "IDLE_TIMEOUT",
        /// The idle session's compute was given back.
        IdleReleased => "IDLE_RELEASED",
        /// A call came while the session was idle.
        Activity => "ACTIVITY",
        /// A waking call, or WarmSession.
        Woken => "WOKEN",
        /// Warming failed; the session is idle again.
        WarmFailed => "WARM_FAILED",
        /// Five warm-ups in a row failed, or one for good.
        WarmBudgetSpent => "WARM_BUDGET_SPENT",
        /// Dedicated compute was lost.
        ComputeLost => "COMPUTE_LOST",
        /// Compute was lost too often.
        RestartBudgetSpent => "RESTART_BUDGET_SPENT",
        /// CloseSession.
        CloseRequested => "CLOSE_REQUESTED",
        /// Idle for `close_after_idle`.
        IdleClose => "IDLE_CLOSE",
        /// `max_lifetime` is over.
        MaxLifetime => "MAX_LIFETIME",
        /// The cluster was destroyed.
        ClusterDestroyed => "CLUSTER_DESTROYED",
        /// The organization was disabled.
        OrgDisabled => "ORG_DISABLED",
        /// The owner was disabled.
        OwnerDisabled => "OWNER_DISABLED",
        /// UpdateSession, ExtendSession or KeepSessionAlive.
        Updated => "UPDATED",
        /// RevokeAllSessionTokens.
        TokensRevoked => "TOKENS_REVOKED",
        /// A clock will close the session in five minutes.
        ClosingSoon => "CLOSING_SOON",
        /// A Spark session on shared compute made room for a newer one.
        SparkSessionReleased => "SPARK_SESSION_RELEASED",
    }
}
