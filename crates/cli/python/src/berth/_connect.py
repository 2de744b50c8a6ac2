"""``connect()``: finds or creates a session, waits for its compute, and makes the SparkSession."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Mapping

from . import _credential, _pyspark, _session, _settings, _versions
from . import _messages as m
from ._channel import Security, host_of, is_loopback
from ._control import Api, ControlPlane
from ._progress import Progress
from ._secret import Secret, hidden
from ._session import Session, described
from ._time import Time, parse_time
from ._tokens import Issued, SessionTokens
from .errors import (
    BerthError,
    ConfigurationError,
    ServerError,
    SessionClosed,
    SessionFailed,
    SessionMismatch,
    StartTimeout,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger("berth")

_USE_SSL = re.compile(r";use_ssl=true(;|$)")
#: One call waits so long; the phase that is shown is at most so old.
_POLL = timedelta(seconds=1)
_WARM_PAUSE = 1.0
_PAGE = 1000


@dataclass(frozen=True)
class Wanted:
    """The session that the arguments describe."""

    session: str | None = None
    cluster: str | None = None
    catalog: str | None = None
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    idle: timedelta | None = None
    profile: str | None = None
    team: str | None = None


def connect(
    session: str | None = None,
    *,
    cluster: str | None = None,
    catalog: str | None = None,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    idle: Time | None = None,
    profile: str | None = None,
    team: str | None = None,
    timeout: Time = 300,
    token_ttl: Time | None = None,
    context: str | None = None,
    manager: str | None = None,
    issuer: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    insecure: bool | None = None,
    credential: _settings.CredentialArgument | None = None,
    progress: bool = True,
    check_versions: bool = True,
) -> "SparkSession":
    """A SparkSession on a session of Berth, whose token renews itself.

    With ``name`` your live session of this name is used, or a new one is created. With ``session`` (an id) that
    session is used. Else a new session is created, and closed when Python exits. ``spark.berth`` is the
    :class:`Session`. ``with berth.connect() as spark:`` closes the session if this call created it; of a session
    that it found it only stops the SparkSession.

    cluster, catalog, profile, team: of a new session. One cluster needs no name.
    labels, idle (the idle timeout, "30m"): of a new session only.
    timeout: how long to wait for compute. token_ttl: lifetime of each token, at least 60 s.
    context, manager, issuer, ca, insecure, credential: as the options of the ``berth`` command; without them its
    variables and contexts are used.
    progress: show the phases on stderr. check_versions: compare PySpark and Python with the engine.
    """
    # As the first statement: from here on no traceback shows it.
    credential = hidden(credential)
    _pyspark.check()
    idle_timeout = None if idle is None else parse_time("idle", idle)
    wanted = Wanted(session, cluster, catalog, name, dict(labels or {}), idle_timeout, profile, team)
    _check(wanted)
    settings = _settings.resolve(context, manager, issuer, ca, insecure, credential)
    limit, ttl = parse_time("timeout", timeout), None if token_ttl is None else parse_time("token_ttl", token_ttl)
    shown = Progress(progress)
    try:
        source = _credential.resolve(settings)
        source.ensure(shown.note)
        connector = _Connector(ControlPlane(settings, source), wanted, limit, ttl, shown, check_versions)
        made = connector.connect()
    except BaseException:
        shown.close()
        raise
    return made.spark


def session(session: str | None = None, **options: object) -> Session:
    """As :func:`connect`, but returns the :class:`Session`, whose ``spark`` is the SparkSession."""
    # As the first statement: the options are a variable of this frame, which tracebacks can show.
    options["credential"] = hidden(options.get("credential"))
    spark = connect(session, **options)  # type: ignore[arg-type]
    return _session.session_of(spark)


def _check(wanted: Wanted) -> None:
    others = [key for key in ("cluster", "catalog", "name", "labels", "idle", "profile", "team") if getattr(wanted, key)]
    if wanted.session and others:
        raise ConfigurationError(
            f"session= names an existing session, so {', '.join(others)} cannot be chosen.",
            next_step="use session= alone, or leave it out",
        )
    for key in ("session", "cluster", "catalog", "name", "profile", "team"):
        if getattr(wanted, key) == "":
            raise ConfigurationError(f"{key} is empty.", next_step=f"leave {key}= out, or give it a value")


@dataclass
class _Connector:
    control: ControlPlane
    wanted: Wanted
    limit: timedelta
    ttl: timedelta | None
    progress: Progress
    check_versions: bool

    def connect(self) -> Session:
        with self.control.manager() as api:
            record, created = self._find_or_create(api)
            # The id of such a session was not returned yet, so only this call can close it.
            unnamed = created and self.wanted.name is None
            try:
                record = self._wait(api, record)
                with _session.opening():
                    made = self._renewed(_session.find(record.id)) or self._open(api, record, created)
                    made.add_use()
            except StartTimeout:
                if unnamed:
                    _session.close_at_exit(self.control, record.id)
                raise
            except BaseException:
                if unnamed:
                    self._discard(api, record.id)
                raise
        name = f" {made.name!r}" if made.name else ""
        engine = "Sail" if made.engine == "sail" else "Apache Spark"
        self.progress.close(
            f"session {made.id}{name} on {made.cluster} ({engine}, Spark {made.engine_version}) "
            f"after {self.progress.seconds:.1f} s"
        )
        return made

    def _renewed(self, found: Session | None) -> Session | None:
        """An open session of this process, with a new token of this credential: the last one may be revoked."""
        if found is not None:
            self.progress.show("issuing a token")
            found.renew(self.control, lambda: issue(self.control, found.id, self.ttl))
        return found

    def _discard(self, api: Api, session_id: str) -> None:
        """Closes a session that cannot be returned, now or when Python exits."""
        _session.forget(session_id)
        try:
            api.call("SessionService", m.CloseSessionRequest(session_id), m.CloseSessionResponse)
        except BerthError:
            _session.close_at_exit(self.control, session_id)

    def _open(self, api: Api, record: m.Session, created: bool) -> Session:
        self.progress.show("issuing a token")
        tokens = SessionTokens(record.id, lambda: issue(self.control, record.id, self.ttl))
        issued = tokens.issued
        security = Security(issued.tls, self.control.settings.ca, self.control.settings.insecure)
        spark = _pyspark.new_session(record.id, issued.endpoint, security, tokens)
        made = Session(self.control, record, tokens, spark, created)
        _pyspark.attach(spark, made)
        _session.remember(made)
        _session.close_at_exit(self.control, record.id if created and self.wanted.name is None else None)
        if self.check_versions:
            self._advise(api, made)
        return made

    def _advise(self, api: Api, made: Session) -> None:
        supported: list[str] = []
        with contextlib.suppress(BerthError):
            reply = api.call("ClusterService", m.DescribeClusterRequest(made.cluster), m.DescribeClusterResponse)
            supported = reply.cluster.client_versions if reply.cluster is not None else []
        client = _pyspark.version()
        for line in _versions.advice(client, made.engine, made.engine_version, made.cluster, supported):
            self.progress.note(line)
        if made.engine == "sail":
            _versions.check_python(made.spark, self.progress.note)

    # ---- which session -------------------------------------------------------------------------------------

    def _find_or_create(self, api: Api) -> tuple[m.Session, bool]:
        wanted = self.wanted
        if wanted.session is not None:
            request = m.DescribeSessionRequest(wanted.session)
            return described(api.call("SessionService", request, m.DescribeSessionResponse)), False
        if wanted.name is None:
            return self._create(api), True
        owner = (api.call("OrgService", m.DescribeCallerRequest(), m.DescribeCallerResponse).caller or m.Caller()).principal
        found = self._live_of_name(api, owner)
        if found is not None:
            return found, False
        mine = self._create(api)
        # Another program may have created one of this name meanwhile: both take the older one.
        oldest = self._live_of_name(api, owner) or mine
        if oldest.id != mine.id:
            api.call("SessionService", m.CloseSessionRequest(mine.id), m.CloseSessionResponse)
        return oldest, oldest.id == mine.id

    def _live_of_name(self, api: Api, owner: str) -> m.Session | None:
        """The oldest live session of this name that fits the arguments."""
        self.progress.show(f"looking for session {self.wanted.name!r}")
        named, page = [], ""
        while True:
            request = m.ListSessionsRequest([int(one) for one in m.LIVE], owner, _PAGE, page)
            reply = api.call("SessionService", request, m.ListSessionsResponse)
            named += [one for one in reply.sessions if one.name == self.wanted.name]
            page = reply.next_page_token
            if not page:
                break
        fitting = [one for one in named if not self._differences(one)]
        if named and not fitting:
            differs = ", ".join(self._differences(named[0]))
            raise SessionMismatch(
                f"Your session {self.wanted.name!r} ({named[0].id}) has {differs}.",
                next_step="give it the same arguments, another name=, or close it: "
                f"`berth session close {named[0].id}`",
            )
        return min(fitting, key=_age, default=None)

    def _differences(self, one: m.Session) -> list[str]:
        """The properties of a session that the arguments want otherwise."""
        keys = ("cluster", "catalog", "profile", "team")
        wanted = [(key, getattr(self.wanted, key), getattr(one, key)) for key in keys]
        return [f"{key} {there!r}, not {here!r}" for key, here, there in wanted if here is not None and here != there]

    def _create(self, api: Api) -> m.Session:
        wanted = self.wanted
        cluster = wanted.cluster or self._only_cluster(api)
        self.progress.show(f"creating a session on {cluster}")
        request = m.CreateSessionRequest(
            request_id=str(uuid.uuid4()),
            cluster=cluster,
            catalog=wanted.catalog or "",
            name=wanted.name or "",
            team=wanted.team or "",
            labels=dict(wanted.labels),
            idle_timeout=None if wanted.idle is None else m.Duration.of(wanted.idle),
            profile=wanted.profile or "",
        )
        return described(api.call("SessionService", request, m.CreateSessionResponse))

    def _only_cluster(self, api: Api) -> str:
        clusters = api.call("ClusterService", m.ListClustersRequest(), m.ListClustersResponse).clusters
        names = sorted(one.name for one in clusters if one.status == m.CLUSTER_ACTIVE)
        if len(names) == 1:
            return names[0]
        there = f"there are {', '.join(names)}" if names else "no cluster accepts sessions of yours"
        raise ConfigurationError(
            f"No cluster was chosen, and {there}.",
            next_step="choose one with cluster=" if names else "ask your platform team for a cluster",
        )

    # ---- until it is ready -----------------------------------------------------------------------------------

    def _wait(self, api: Api, record: m.Session) -> m.Session:
        end = time.monotonic() + self.limit.total_seconds()
        next_warm = 0.0
        while record.status != m.Status.ACTIVE:
            if record.status in (m.Status.CLOSED, m.Status.FAILED):
                raise _ended(record)
            if time.monotonic() > end:
                raise StartTimeout(
                    f"Session {record.id} did not start within {self.limit.total_seconds():.0f} s: "
                    f"{record.phase}. {record.status_message}",
                    next_step=f"berth.connect({record.id!r}) waits again, `berth session close {record.id}` ends it",
                )
            why = f": {record.status_message.rstrip('.')}" if record.status_message else ""
            self.progress.show(f"session {record.id} is {record.phase}{why}")
            if record.status == m.Status.IDLE and time.monotonic() >= next_warm:
                next_warm = time.monotonic() + self._warm(api, record)
            left = timedelta(seconds=max(end - time.monotonic(), 0))
            request = m.DescribeSessionRequest(record.id, m.Duration.of(min(_POLL, left)))
            record = described(api.call("SessionService", request, m.DescribeSessionResponse))
            if record.status == m.Status.IDLE:
                time.sleep(_WARM_PAUSE / 5)
        return record

    def _warm(self, api: Api, record: m.Session) -> float:
        """Wakes an idle session; returns the seconds until that may be tried again."""
        try:
            api.call("SessionService", m.WarmSessionRequest(record.id), m.WarmSessionResponse, patient=False)
        except BerthError as error:
            if not error.is_temporary:
                raise
            # The pause after a start that failed, or of a rate limit.
            return error.retry_after or _WARM_PAUSE
        return _WARM_PAUSE


def _age(one: m.Session) -> tuple[int, int, str]:
    at = one.created_at or m.Timestamp()
    return (at.seconds, at.nanos, one.id)


def _ended(record: m.Session) -> BerthError:
    closed = record.status == m.Status.CLOSED
    text = f"Session {record.id} {'is closed' if closed else 'failed'} ({record.reason}): {record.status_message}"
    if record.status_detail and not closed:
        _log.info("session %s: %s", record.id, record.status_detail)
    kind = SessionClosed if closed else SessionFailed
    return kind(
        text,
        next_step="connect without session= to create another"
        if closed
        else f"correct the cause (`berth session describe {record.id}` has details), and connect again",
    )


def issue(control: ControlPlane, session_id: str, ttl: timedelta | None) -> Issued:
    """A new token of a session."""
    request = m.IssueSessionTokenRequest(session_id, None if ttl is None else m.Duration.of(ttl))
    with control.issuer() as api:
        reply = api.call("TokenService", request, m.IssueSessionTokenResponse)
    if not reply.token or not reply.grpc_endpoint or reply.issued_at is None or reply.expires_at is None:
        raise ServerError("Berth returned no token.", next_step="tell your platform team the text and the time")
    lifetime = reply.expires_at.to_datetime() - reply.issued_at.to_datetime()
    # Without use_ssl a host beyond loopback means TLS, as for PySpark, unless plaintext is allowed.
    plaintext = is_loopback(host_of(reply.grpc_endpoint)) or control.settings.insecure
    tls = _USE_SSL.search(reply.connection_url) is not None or not plaintext
    return Issued(Secret(reply.token), lifetime.total_seconds(), reply.grpc_endpoint, tls)
