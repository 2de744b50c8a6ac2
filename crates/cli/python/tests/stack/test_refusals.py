"""What goes wrong: each error comes quickly, names the next step, and shows no secret."""

import time

import pytest
from conftest import (
    ENGINE,
    STACK,
    START,
    as_notebook,
    assert_hidden,
    command,
    connect,
    on_sail,
    one,
    python,
    renderings,
    secrets_of,
    status_of,
    until,
    with_locals,
)

import berth

QUICK = 20


def caught(action, limit=QUICK):
    begun = time.monotonic()
    with pytest.raises(Exception) as info:
        action()
    assert time.monotonic() - begun < limit, f"{time.monotonic() - begun:.0f} s until {info.value}"
    return info.value


def wrong():
    """No variable of the tests, which a traceback would show."""
    return "berth_sa_" + "x" * 43


def test_a_wrong_key(environment):
    environment.delenv("BERTH_KEY")
    error = caught(lambda: berth.connect(cluster=ENGINE, credential=wrong()))
    assert isinstance(error, berth.CredentialError) and error.reason == "CALLER_UNKNOWN"
    assert "Next: check the credential" in str(error)
    assert_hidden([wrong()], *renderings(error))


def test_no_variable_of_the_package_holds_the_credential(environment):
    """As %xmode Verbose and error reporters show them: of connect(), session() and all below."""
    environment.delenv("BERTH_KEY")
    for make in (berth.connect, berth.session):
        error = caught(lambda make=make: make(cluster=ENGINE, credential=wrong()))
        assert_hidden([wrong()], *renderings(error))


def test_no_credential(environment):
    environment.delenv("BERTH_KEY")
    error = caught(lambda: berth.connect(cluster=ENGINE))
    assert isinstance(error, berth.CredentialError) and "Next: set BERTH_KEY" in str(error)


def test_a_session_of_another_account():
    made = command("session", "create", "--cluster", ENGINE, key="bob")["id"]
    error = caught(lambda: berth.connect(made))
    assert isinstance(error, berth.PermissionDenied) and "berth whoami" in str(error)
    command("session", "close", made, key="bob")


def test_an_unknown_cluster_and_an_invalid_argument():
    error = caught(lambda: berth.connect(cluster="nowhere"))
    assert isinstance(error, berth.BerthError) and "Next:" in str(error)
    error = caught(lambda: berth.connect(cluster=ENGINE, idle="10s"))
    assert isinstance(error, berth.ConfigurationError) and "idle_timeout" in str(error)
    error = caught(lambda: berth.connect("s-1", cluster=ENGINE))
    assert isinstance(error, berth.ConfigurationError) and "session=" in str(error)


def test_a_closed_session():
    spark = connect()
    session = spark.berth
    secrets = secrets_of(session)
    assert one(spark) == 10
    command("session", "close", session.id)
    time.sleep(1)
    error = caught(lambda: spark.range(5).collect())
    assert "closed" in str(error) and "berth create" in str(error)
    assert_hidden(secrets, *renderings(error))
    error = caught(lambda: berth.connect(session.id))
    assert isinstance(error, berth.SessionClosed) and "connect without session=" in error.next_step
    assert session.status == "closed"
    session.close()


def test_a_revoked_token_and_how_it_goes_on(name):
    spark = connect(name=name)
    session = spark.berth
    assert one(spark) == 10
    command("token", "revoke", session.id, "--all")
    time.sleep(1)
    error = caught(lambda: spark.range(5).collect())
    assert "revoked" in str(error)
    assert_hidden(secrets_of(session), *renderings(error))
    # The same SparkSession with a new token.
    assert connect(name=name) is spark and one(spark) == 10
    spark.stop()
    assert one(connect(name=name)) == 10
    session.close()


def test_an_address_where_nothing_is(environment):
    environment.setenv("BERTH_MANAGER", "http://127.0.0.1:9")
    error = caught(lambda: berth.connect(cluster=ENGINE))
    assert isinstance(error, berth.Unreachable) and "127.0.0.1:9" in str(error) and "berth doctor" in str(error)
    assert_hidden([STACK["keys"]["ada"]], *renderings(error))


def test_exchanged_addresses(environment):
    environment.setenv("BERTH_MANAGER", STACK["issuer"])
    error = caught(lambda: berth.connect(cluster=ENGINE))
    assert isinstance(error, berth.ConfigurationError) and "8081" in str(error)
    assert_hidden([STACK["keys"]["ada"]], *renderings(error))


@pytest.mark.skipif(not (STACK and STACK["tls"]), reason="for TLS")
def test_an_authority_that_is_not_trusted(environment, tmp_path):
    (tmp_path / "no.pem").write_text("nothing")
    error = caught(lambda: berth.connect(cluster=ENGINE, ca=tmp_path / "no.pem", timeout=120), 60)
    assert isinstance(error, berth.ConfigurationError) and "contains no certificate" in str(error)
    error = caught(lambda: berth.connect(cluster=ENGINE, ca=tmp_path / "missing.pem", timeout=120), 60)
    assert isinstance(error, berth.ConfigurationError) and "cannot be read" in str(error)


@on_sail
def test_a_quota_names_it_and_the_way_out(environment):
    """The organization of eve has one live session per owner."""
    environment.setenv("BERTH_KEY", STACK["keys"]["eve"])
    # Another run beside this one may have used it up.
    error = caught(lambda: [connect(), connect()])
    assert isinstance(error, berth.QuotaExceeded) and "berth session list" in str(error)
    assert_hidden([STACK["keys"]["eve"]], *renderings(error))


@on_sail
def test_a_start_that_takes_too_long():
    error = caught(lambda: berth.connect(cluster="sail", timeout=1e-6))
    assert isinstance(error, berth.StartTimeout)
    made = error.text.split()[1]
    assert f"berth.connect('{made}') waits again" in str(error)
    session = berth.session(made, timeout=START)
    assert one(session.spark) == 10
    session.close()


@on_sail
def test_a_session_that_never_started_is_closed_when_python_exits():
    program = (
        "import berth\n"
        "try: berth.connect(cluster='sail', timeout=1e-6)\n"
        "except berth.StartTimeout as error: print(error.text.split()[1])\n"
    )
    made = python(program).strip()
    until("closed", lambda: status_of(made) == "closed", 10)


def test_a_session_that_failed():
    """The default catalog does not exist there."""
    if ENGINE != "sail":
        pytest.skip("the stack has a broken catalog for Sail only")
    error = caught(lambda: berth.connect(cluster="sail", catalog="broken", timeout=120), 120)
    assert isinstance(error, berth.SessionFailed) and "Next: correct the cause" in str(error)


def test_nothing_shows_a_secret():
    spark = connect()
    session = spark.berth
    secrets = secrets_of(session)
    builder = spark._client._builder
    shown = [repr(one_) for one_ in (spark, session, builder, session._tokens, session._control.settings)]
    for one_ in (session, builder, session._tokens, session._control, session._control.credential, spark, spark._client):
        shown.append(repr(vars(one_)))
    shown.append(repr(dict(builder.metadata())))
    shown.append(repr(getattr(builder, "_params", None) or builder.params))
    shown.append(repr(builder._channel_options) + repr(builder.url))
    if ENGINE == "spark":
        shown.append(repr(spark.sql("SET").collect()))
    if hasattr(spark.conf, "getAll"):
        everything = spark.conf.getAll
        shown.append(repr(everything() if callable(everything) else everything))
    assert_hidden(secrets, *shown)
    error = caught(lambda: spark.sql("SELECT nowhere").collect())
    assert_hidden(secrets, *renderings(error))
    # All local variables of all frames down to gRPC, without a DataFrame among them.
    error = caught(lambda: spark.sql("SELEKT"))
    assert "execute_command" in as_notebook(error) and "rpc_error" in with_locals(error)
    assert_hidden(secrets, with_locals(error), as_notebook(error))
    error = caught(lambda: spark.sql("SELECT raise_error('no')").collect())
    assert_hidden(secrets, *renderings(error))
    session.close()
    error = caught(lambda: spark.range(1).collect())
    assert_hidden(secrets, *renderings(error))
