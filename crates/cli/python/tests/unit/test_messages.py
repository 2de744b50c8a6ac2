"""The messages of the package are those of proto/."""

import dataclasses
import pathlib
import re

import pytest

from berth import _messages as m
from berth._wire import Wire, decode, encode, wires

REPOSITORY = pathlib.Path(__file__).resolve().parents[5]
PROTOS = REPOSITORY / "proto" / "berth" / "v1"
#: Fields of google.protobuf and google.rpc, whose files are not in the repository.
FOREIGN = {"Duration", "Timestamp", "AnyMessage", "RpcStatus", "ErrorInfo", "RetryInfo"}
NUMBERS = {"int32", "int64", "uint32", "uint64", "bool"}


def protos():
    """Message = its fields: name = number, type."""
    text = "\n".join(file.read_text() for file in PROTOS.glob("*.proto"))
    text = re.sub(r"//[^\n]*", "", text)
    found = {}
    for name, body in re.findall(r"^message (\w+) \{(.*?)\}$", text, re.DOTALL | re.MULTILINE):
        fields = re.findall(r"((?:repeated |optional )?[\w.]+|map<string, string>) (\w+) = (\d+);", body)
        found[name] = {field: (int(number), kind.replace("optional ", "")) for kind, field, number in fields}
    enums = set(re.findall(r"^enum (\w+) \{", text, re.MULTILINE))
    return found, enums


def kind_of(wire: Wire) -> str:
    of = wire.of and wire.of.__name__
    name = {"string": "string", "map": "map<string, string>", "message": of}.get(wire.kind, "number")
    return f"repeated {name}" if wire.repeated else str(name)


def classes():
    found = [one for one in vars(m).values() if isinstance(one, type) and dataclasses.is_dataclass(one)]
    return [one for one in found if one.__name__ not in FOREIGN]


def test_every_message_is_that_of_the_proto():
    messages, enums = protos()
    assert len(classes()) > 20
    for of in classes():
        for field, wire in wires(of).items():
            number, kind = messages[of.__name__][field]
            repeated, _, last = kind.rpartition(" ")
            last = last.removeprefix("google.protobuf.")
            if last in NUMBERS | enums:
                last = "number"
            assert (number, f"{repeated} {last}".strip()) == (wire.number, kind_of(wire)), f"{of.__name__}.{field}"


def test_statuses_are_those_of_the_proto():
    text = (PROTOS / "session.proto").read_text()
    values = {name: int(number) for name, number in re.findall(r"SESSION_STATUS_(\w+) = (\d+);", text)}
    assert values == {one.name: one.value for one in m.Status}
    [active] = re.findall(r"CLUSTER_STATUS_ACTIVE = (\d+);", (PROTOS / "cluster.proto").read_text())
    assert m.CLUSTER_ACTIVE == int(active)


@pytest.mark.parametrize(
    "value",
    [
        m.CreateSessionRequest(cluster="sail", labels={"a": "b", "ä": ""}, idle_timeout=m.Duration(90, 5)),
        m.ListSessionsRequest(statuses=[1, 2, 300], owner="sa|ada", page_size=1000),
        m.DescribeSessionResponse(session=m.Session(id="s-1", version=2**64 - 1 - 2**63, status=2)),
        m.ListClustersResponse(clusters=[m.Cluster(name="a", client_versions=["1", ""]), m.Cluster()]),
        m.KeepSessionAliveRequest("s-1", m.Timestamp(-5, 1)),
        m.ListClustersRequest(),
    ],
)
def test_a_message_survives_its_encoding(value):
    assert decode(type(value), encode(value)) == value


def test_the_encoding_is_that_of_protobuf():
    """Against the protobuf library that PySpark brings."""
    from google.protobuf import duration_pb2, timestamp_pb2

    assert encode(m.Duration(3, 7)) == duration_pb2.Duration(seconds=3, nanos=7).SerializeToString()
    theirs = timestamp_pb2.Timestamp(seconds=-62135596800, nanos=999)
    assert decode(m.Timestamp, theirs.SerializeToString()) == m.Timestamp(-62135596800, 999)
    assert encode(m.Timestamp(-62135596800, 999)) == theirs.SerializeToString()


def test_unknown_fields_and_packed_numbers_are_read():
    # Field 9 as a varint, 10 fixed32, 11 fixed64, 12 bytes; then field 1 packed.
    data = b"\x48\x05" + b"\x55abcd" + b"\x59abcdefgh" + b"\x62\x01x" + b"\x0a\x03\x01\xac\x02"
    assert decode(m.ListSessionsRequest, data) == m.ListSessionsRequest(statuses=[1, 300])


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\x0b", b"\x80", b"\xff" * 11, b"\x08\x01"])
def test_what_is_no_message_is_a_value_error(data):
    with pytest.raises(ValueError, match="the reply"):
        decode(m.Cluster, data)
