"""`helm test`: creates a session, runs a query through spark-proxy, closes the session.

The image has Python with pyspark-client, as the image of Sail has; grpc and protobuf come with it. The addresses and
the service-account key come from the environment.
"""

import os
import sys
import time

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from pyspark.sql.connect.client import DefaultChannelBuilder
from pyspark.sql.connect.session import SparkSession

ROWS = 1000
CALL_LIMIT = 30  # seconds
WAIT = 20  # seconds; of one call
# The deadline of the pod is longer, so that a hang ends with its cause.
START_LIMIT = 200
PENDING, ACTIVE = 1, 2
TEXT, NUMBER = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, descriptor_pb2.FieldDescriptorProto.TYPE_INT64

# The part of proto/berth/v1 that the test uses: field = number, type (a name is a message).
MESSAGES = {
    "Duration": {"seconds": (1, NUMBER)},
    "Session": {"id": (1, TEXT), "status": (9, NUMBER), "status_message": (12, TEXT)},
    "CreateSessionRequest": {"cluster": (2, TEXT), "name": (4, TEXT)},
    "CreateSessionResponse": {"session": (1, "Session")},
    "DescribeSessionRequest": {"session_id": (1, TEXT), "wait_ready": (2, "Duration")},
    "DescribeSessionResponse": {"session": (1, "Session")},
    "CloseSessionRequest": {"session_id": (1, TEXT)},
    "CloseSessionResponse": {"session": (1, "Session")},
    "IssueSessionTokenRequest": {"session_id": (1, TEXT)},
    "IssueSessionTokenResponse": {"token": (1, TEXT)},
}


def message_classes():
    """A class for each of MESSAGES."""
    file = descriptor_pb2.FileDescriptorProto(name="helm-test.proto", package="helm_test", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            made = message.field.add(name=field, number=number, label=1)
            if isinstance(kind, str):
                made.type, made.type_name = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, f".helm_test.{kind}"
            else:
                made.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"helm_test.{name}")) for name in MESSAGES}


CLASSES = message_classes()


def channel(address):
    scheme, _, target = address.partition("://")
    return grpc.insecure_channel(target) if scheme == "http" else grpc.secure_channel(target, grpc.ssl_channel_credentials())


def call(on, service, method, **fields):
    request = CLASSES[f"{method}Request"](**fields)
    rpc = on.unary_unary(
        f"/berth.v1.{service}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=CLASSES[f"{method}Response"].FromString,
    )
    return rpc(request, timeout=CALL_LIMIT, metadata=[("authorization", f"Bearer {os.environ['BERTH_KEY']}")])


class Plaintext(DefaultChannelBuilder):
    """PySpark sends a token in plaintext to the literal localhost only; the proxy of a trial is elsewhere."""

    def __init__(self, url, token):
        super().__init__(url)
        self.bearer = token

    def metadata(self):
        return [*super().metadata(), ("authorization", f"Bearer {self.bearer}")]


def query(session, token):
    url = f"sc://{os.environ['BERTH_PROXY']}/;x-session-id={session}"
    if os.environ["BERTH_MANAGER"].startswith("https"):
        builder = SparkSession.builder.remote(f"{url};use_ssl=true;token={token}")
    else:
        builder = SparkSession.builder.channelBuilder(Plaintext(url, token))
    spark = builder.getOrCreate()
    try:
        return spark.sql(f"SELECT sum(id) FROM range({ROWS})").collect()[0][0]
    finally:
        spark.stop()


def started_session(manager, session):
    """The session, when it is active or has failed, or after START_LIMIT."""
    wait = CLASSES["Duration"](seconds=WAIT)
    end = time.monotonic() + START_LIMIT
    while True:
        found = call(manager, "SessionService", "DescribeSession", session_id=session, wait_ready=wait).session
        if found.status != PENDING or time.monotonic() > end:
            return found


def main():
    manager, issuer = channel(os.environ["BERTH_MANAGER"]), channel(os.environ["BERTH_ISSUER"])
    session = call(manager, "SessionService", "CreateSession", cluster=os.environ["BERTH_CLUSTER"], name="helm test").session.id
    print(f"session {session} is created", flush=True)
    try:
        started = started_session(manager, session)
        if started.status != ACTIVE:
            return f"session {session} is not active: {started.status_message}"
        token = call(issuer, "TokenService", "IssueSessionToken", session_id=session).token
        found, wanted = query(session, token), ROWS * (ROWS - 1) // 2
        print(f"the sum of {ROWS} rows is {found}", flush=True)
        return 0 if found == wanted else f"the sum should be {wanted}"
    finally:
        call(manager, "SessionService", "CloseSession", session_id=session)


if __name__ == "__main__":
    sys.exit(main())
