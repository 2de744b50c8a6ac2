"""Settings and credentials: argument, environment, context, projected token, in this order."""

import http.client
import os
import pathlib
import traceback

import pytest

import berth
from berth import _credential, _settings
from berth._channel import is_loopback

CONTEXTS = """
current = "prod"

[contexts.prod]
manager = "https://berth.example.org:8081"
issuer = "https://berth.example.org:8083"
ca = "/etc/berth/ca.pem"
later_field = true

[contexts.prod.oidc]
issuer = "https://login.example.org"
client_id = "berth-cli"
token = "id_token"
audience = "berth"

[contexts.ci]
manager = "https://ci.example.org:8081"
key_file = "FOLDER/key"
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.toml").write_text(CONTEXTS.replace("FOLDER", str(tmp_path)))
    (tmp_path / "key").write_text("berth_sa_of_the_file\n")
    (tmp_path / "key").chmod(0o600)
    return tmp_path


def test_defaults_are_those_of_the_command(clean_environment):
    settings = _settings.resolve()
    assert (settings.manager, settings.issuer) == ("http://127.0.0.1:8081", "http://127.0.0.1:8083")
    assert settings.ca is None and not settings.insecure


def test_each_setting_comes_from_argument_variable_context(clean_environment, config):
    settings = _settings.resolve()
    assert settings.manager == "https://berth.example.org:8081" and settings.ca == pathlib.Path("/etc/berth/ca.pem")
    assert settings.context.oidc.token == "id_token" and settings.context.oidc.audience == "berth"
    clean_environment.setenv("BERTH_MANAGER", "https://other.example.org:1")
    clean_environment.setenv("BERTH_CA", "/tmp/other.pem")
    settings = _settings.resolve(issuer="https://mine.example.org:2")
    assert settings.manager == "https://other.example.org:1"
    assert settings.issuer == "https://mine.example.org:2"
    assert settings.ca == pathlib.Path("/tmp/other.pem")
    clean_environment.setenv("BERTH_CONTEXT", "ci")
    assert _settings.resolve().context.name == "ci"
    assert _settings.resolve(context="prod").context.name == "prod"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"context": "lab"}, ["'lab'", "there are ci, prod", "Next: choose another"]),
        ({"manager": "berth.example.org"}, ["manager is 'berth.example.org'", "BERTH_MANAGER"]),
        ({"manager": "https://berth.example.org"}, ["manager is", "scheme, host and port"]),
        ({"manager": "ftp://berth.example.org:1"}, ["manager is"]),
        ({"issuer": "http://berth.example.org:8083"}, ["plaintext", "Next: use TLS", "BERTH_INSECURE"]),
    ],
)
def test_a_bad_setting_names_itself_and_the_fix(clean_environment, config, settings, words):
    with pytest.raises(berth.ConfigurationError) as caught:
        _settings.resolve(**settings)
    for word in words:
        assert word in str(caught.value)


def test_insecure_is_read_as_the_command_reads_it(clean_environment):
    for value, allowed in (("", False), ("0", False), ("no", False), ("false", False), ("1", True), ("true", True)):
        clean_environment.setenv("BERTH_INSECURE", value)
        assert _settings.resolve().insecure is allowed, value
    assert _settings.resolve(insecure=True, manager="http://berth.example.org:8081").insecure


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("current = 3\n[contexts.a]\n", "config.toml"),
        ("[contexts", "config.toml"),
        ("current = 'a'\n[contexts.a]\nmanager = 3\n", "manager"),
    ],
)
def test_a_broken_file_of_contexts_is_named(clean_environment, config, text, word):
    (config / "config.toml").write_text(text)
    with pytest.raises(berth.ConfigurationError) as caught:
        _settings.resolve()
    assert word in str(caught.value) and "Next:" in str(caught.value)


def test_a_container_without_a_home_has_no_contexts(clean_environment):
    clean_environment.setenv("BERTH_CONFIG_DIR", "/proc/self/no-such-folder")
    assert _settings.resolve().context == _settings.Context()


def secret(**settings):
    return str(_credential.resolve(_settings.resolve(**settings)).secret())


def test_credentials_come_in_order(clean_environment, config, tmp_path):
    projected = tmp_path / "projected"
    projected.write_text("of-the-platform")
    clean_environment.setattr(_credential, "PROJECTED_TOKEN", projected)
    # The context of a sign-in without one: the token of the platform is used.
    assert secret() == "of-the-platform"
    assert secret(context="ci") == "berth_sa_of_the_file"
    clean_environment.setenv("BERTH_KEY", "of-the-variable")
    assert secret(context="ci") == "of-the-variable"
    assert secret(context="ci", credential="of-the-argument") == "of-the-argument"
    assert secret(credential=lambda: "of-the-function") == "of-the-function"
    assert secret(credential=tmp_path / "key") == "berth_sa_of_the_file"
    (config / "config.toml").unlink()
    clean_environment.delenv("BERTH_KEY")
    assert secret() == "of-the-platform"
    projected.unlink()
    with pytest.raises(berth.CredentialError, match="There is no credential.*BERTH_KEY.*berth login"):
        secret()


def test_a_credential_is_read_at_each_use(clean_environment, tmp_path):
    file = tmp_path / "token"
    file.write_text("first")
    clean_environment.setenv("BERTH_TOKEN_FILE", str(file))
    credential = _credential.resolve(_settings.resolve())
    assert credential.secret() == "first"
    file.write_text("second")
    assert credential.secret() == "second"


@pytest.mark.parametrize("text", ["", "  \n", "two\nlines", "ä" * 3, "x" * 60000])
def test_what_is_no_credential_is_refused_before_it_is_sent(clean_environment, text):
    with pytest.raises(berth.CredentialError, match="Next: set it to a service-account key"):
        secret(credential=lambda: text)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (TimeoutError("the vault"), berth.Unreachable),
        (http.client.IncompleteRead(b"s3cr3t"), berth.Unreachable),
        (KeyError("s3cr3t"), berth.CredentialError),
    ],
)
def test_an_error_of_the_function_becomes_one_of_the_package(clean_environment, failure, kind):
    def function():
        raise failure

    with pytest.raises(kind, match=f"The function credential= raised {type(failure).__name__}.*Next: ") as caught:
        secret(credential=function)
    assert caught.value.__cause__ is failure and "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 5, b"bytes"])
def test_a_function_that_returns_no_text_is_an_error(clean_environment, value):
    with pytest.raises(berth.CredentialError, match=f"is of type {type(value).__name__}, not text.*Next: return"):
        secret(credential=lambda: value)


def test_bytes_of_a_function_are_not_in_the_traceback(clean_environment):
    with pytest.raises(berth.CredentialError) as caught:
        secret(credential=lambda: bytes.fromhex("733363723374"))
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    assert "s3cr3t" not in "".join(shown)


def test_a_credential_of_another_type_is_an_error_without_its_value(clean_environment):
    with pytest.raises(berth.ConfigurationError, match="credential= is of type bytes.*Next: give") as caught:
        secret(credential=b"s3cr3t")
    assert "s3cr3t" not in str(caught.value)


def test_two_credentials_in_the_environment_are_an_error(clean_environment):
    clean_environment.setenv("BERTH_KEY", "a")
    clean_environment.setenv("BERTH_TOKEN", "b")
    with pytest.raises(berth.ConfigurationError, match="BERTH_KEY, BERTH_TOKEN.*unset the others"):
        secret()


def test_a_sign_in_that_others_can_read_is_refused(clean_environment, config):
    tokens = config / "tokens"
    tokens.mkdir()
    (tokens / "prod.json").write_text("{}")
    os.chmod(tokens / "prod.json", 0o644)
    with pytest.raises(berth.CredentialError, match="chmod 600"):
        secret()
    os.chmod(tokens / "prod.json", 0o600)
    with pytest.raises(berth.LoginRequired, match="damaged.*berth login"):
        secret()
    (tokens / "prod.json").unlink()
    with pytest.raises(berth.LoginRequired, match="not signed in at https://login.example.org.*berth login"):
        secret()


def test_loopback_is_judged_by_the_spelling():
    for host in ("localhost", "127.8.0.1", "[::1]", "::1"):
        assert is_loopback(host), host
    for host in ("localhost.example.org", "10.0.0.1", "0.0.0.0", ""):
        assert not is_loopback(host), host
