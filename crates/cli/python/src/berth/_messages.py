"""The part of ``proto/berth/v1`` that this package uses, and the details of gRPC errors."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Dict, List, Optional

from ._wire import integer, integers, mapping, message, messages, raw, string, strings


class Status(enum.IntEnum):
    """The state of a session."""

    UNSPECIFIED = 0
    PENDING = 1
    ACTIVE = 2
    IDLE = 3
    CLOSED = 4
    FAILED = 5


#: In which the session can still be used.
LIVE = (Status.PENDING, Status.ACTIVE, Status.IDLE)


@dataclass
class Duration:
    seconds: int = integer(1)
    nanos: int = integer(2)

    @classmethod
    def of(cls, value: timedelta) -> Duration:
        micros = value // timedelta(microseconds=1)
        return cls(micros // 1_000_000, micros % 1_000_000 * 1000)


@dataclass
class Timestamp:
    seconds: int = integer(1)
    nanos: int = integer(2)

    def to_datetime(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, timezone.utc) + timedelta(microseconds=self.nanos // 1000)

    @classmethod
    def of(cls, value: datetime) -> Timestamp:
        micros = (value - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
        return cls(micros // 1_000_000, micros % 1_000_000 * 1000)


@dataclass
class Session:
    id: str = string(1)
    org: str = string(2)
    owner: str = string(3)
    name: str = string(4)
    team: str = string(5)
    labels: Dict[str, str] = mapping(6)
    cluster: str = string(7)
    catalog: str = string(8)
    status: int = integer(9)
    phase: str = string(10)
    reason: str = string(11)
    status_message: str = string(12)
    version: int = integer(13)
    generation: int = integer(14)
    created_at: Optional[Timestamp] = message(16, Timestamp)
    idle_at: Optional[Timestamp] = message(21, Timestamp)
    closes_at: Optional[Timestamp] = message(22, Timestamp)
    expires_at: Optional[Timestamp] = message(23, Timestamp)
    active_operations: int = integer(25)
    engine: str = string(26)
    engine_version: str = string(27)
    status_detail: str = string(30)
    profile: str = string(31)


@dataclass
class CreateSessionRequest:
    request_id: str = string(1)
    cluster: str = string(2)
    catalog: str = string(3)
    name: str = string(4)
    team: str = string(5)
    labels: Dict[str, str] = mapping(6)
    idle_timeout: Optional[Duration] = message(7, Duration)
    profile: str = string(10)


@dataclass
class CreateSessionResponse:
    session: Optional[Session] = message(1, Session)


@dataclass
class DescribeSessionRequest:
    session_id: str = string(1)
    wait_ready: Optional[Duration] = message(2, Duration)


@dataclass
class DescribeSessionResponse:
    session: Optional[Session] = message(1, Session)


@dataclass
class ListSessionsRequest:
    statuses: List[int] = integers(1)
    owner: str = string(2)
    page_size: int = integer(6)
    page_token: str = string(7)


@dataclass
class ListSessionsResponse:
    sessions: List[Session] = messages(1, Session)
    next_page_token: str = string(2)


@dataclass
class KeepSessionAliveRequest:
    session_id: str = string(1)
    until: Optional[Timestamp] = message(2, Timestamp)


@dataclass
class KeepSessionAliveResponse:
    session: Optional[Session] = message(1, Session)


@dataclass
class WarmSessionRequest:
    session_id: str = string(1)


@dataclass
class WarmSessionResponse:
    session: Optional[Session] = message(1, Session)


@dataclass
class CloseSessionRequest:
    session_id: str = string(1)


@dataclass
class CloseSessionResponse:
    session: Optional[Session] = message(1, Session)


@dataclass
class InterruptOperationsRequest:
    session_id: str = string(1)
    operation_ids: List[str] = strings(2)


@dataclass
class InterruptOperationsResponse:
    interrupted_operation_ids: List[str] = strings(1)


@dataclass
class Cluster:
    name: str = string(1)
    status: int = integer(2)
    engine: int = integer(3)
    engine_version: str = string(4)
    client_versions: List[str] = strings(5)


CLUSTER_ACTIVE = 2


@dataclass
class DescribeClusterRequest:
    name: str = string(1)


@dataclass
class DescribeClusterResponse:
    cluster: Optional[Cluster] = message(1, Cluster)


@dataclass
class ListClustersRequest:
    pass


@dataclass
class ListClustersResponse:
    clusters: List[Cluster] = messages(1, Cluster)


@dataclass
class Caller:
    principal: str = string(1)
    org: str = string(2)


@dataclass
class DescribeCallerRequest:
    pass


@dataclass
class DescribeCallerResponse:
    caller: Optional[Caller] = message(1, Caller)


@dataclass
class IssueSessionTokenRequest:
    session_id: str = string(1)
    ttl: Optional[Duration] = message(2, Duration)


@dataclass(repr=False)
class IssueSessionTokenResponse:
    token: str = string(1)
    token_id: str = string(2)
    issued_at: Optional[Timestamp] = message(4, Timestamp)
    expires_at: Optional[Timestamp] = message(5, Timestamp)
    grpc_endpoint: str = string(6)
    connection_url: str = string(7)

    def __repr__(self) -> str:
        return f"IssueSessionTokenResponse(token_id={self.token_id!r})"


# google.rpc: what an error carries in the trailer grpc-status-details-bin.


@dataclass
class AnyMessage:
    type_url: str = string(1)
    value: bytes = raw(2)


@dataclass
class RpcStatus:
    code: int = integer(1)
    message: str = string(2)
    details: List[AnyMessage] = messages(3, AnyMessage)


@dataclass
class ErrorInfo:
    reason: str = string(1)
    domain: str = string(2)
    metadata: Dict[str, str] = mapping(3)


@dataclass
class RetryInfo:
    retry_delay: Optional[Duration] = message(1, Duration)
