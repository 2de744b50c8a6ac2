"""One hand-made Spark Connect call, for what a well-behaved client never sends.

Sends one RPC with exactly the metadata given (doubled, missing, in any spelling) and prints one JSON
object with the gRPC status, the ErrorInfo reason and the trailers. Exit code 0 whatever the status
is; other codes mean that the call could not be made. Run it with the Python of the Sail venv.
"""

import argparse
import base64
import faulthandler
import json
import os
import sys
import time
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pyspark.sql.connect.proto import base_pb2 as base

SERVICE = "/spark.connect.SparkConnectService/"


def user(args):
    return base.UserContext(user_id=args.user, user_name=args.user)


def execute(args):
    request = base.ExecutePlanRequest(session_id=args.session, user_context=user(args))
    request.plan.root.sql.query = args.sql
    if args.operation:
        request.operation_id = args.operation
    if args.reattachable:
        option = request.request_options.add()
        option.reattach_options.reattachable = True
    return request, base.ExecutePlanResponse


def config(args):
    request = base.ConfigRequest(session_id=args.session, user_context=user(args))
    request.operation.get_option.keys.append(args.key)
    return request, base.ConfigResponse


def analyze(args):
    request = base.AnalyzePlanRequest(session_id=args.session, user_context=user(args))
    request.spark_version.SetInParent()
    return request, base.AnalyzePlanResponse


def interrupt(args):
    request = base.InterruptRequest(session_id=args.session, user_context=user(args))
    request.interrupt_type = base.InterruptRequest.INTERRUPT_TYPE_ALL
    return request, base.InterruptResponse


def reattach(args):
    request = base.ReattachExecuteRequest(session_id=args.session, user_context=user(args))
    request.operation_id = args.operation or str(uuid.uuid4())
    if args.last_response:
        request.last_response_id = args.last_response
    return request, base.ExecutePlanResponse


def release_execute(args):
    request = base.ReleaseExecuteRequest(session_id=args.session, user_context=user(args))
    request.operation_id = args.operation or str(uuid.uuid4())
    request.release_all.SetInParent()
    return request, base.ReleaseExecuteResponse


def release_session(args):
    request = base.ReleaseSessionRequest(session_id=args.session, user_context=user(args))
    return request, base.ReleaseSessionResponse


def artifact_status(args):
    request = base.ArtifactStatusesRequest(session_id=args.session, user_context=user(args))
    request.names.append("cache/none")
    return request, base.ArtifactStatusesResponse


def add_artifacts(args):
    request = base.AddArtifactsRequest(session_id=args.session, user_context=user(args))
    artifact = request.batch.artifacts.add(name=f"files/{args.artifact}")
    artifact.data.data = b"raw"
    import zlib

    artifact.data.crc = zlib.crc32(b"raw")
    return request, base.AddArtifactsResponse


# name: (method, how to build it, client streams?, server streams?)
RPCS = {
    "execute": ("ExecutePlan", execute, False, True),
    "config": ("Config", config, False, False),
    "analyze": ("AnalyzePlan", analyze, False, False),
    "interrupt": ("Interrupt", interrupt, False, False),
    "reattach": ("ReattachExecute", reattach, False, True),
    "release-execute": ("ReleaseExecute", release_execute, False, False),
    "release-session": ("ReleaseSession", release_session, False, False),
    "artifact-status": ("ArtifactStatus", artifact_status, False, False),
    "add-artifacts": ("AddArtifacts", add_artifacts, True, False),
}


def open_channel(args):
    options = [
        ("grpc.max_receive_message_length", 128 << 20),
        ("grpc.max_send_message_length", 256 << 20),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
    ]
    if args.server_name:
        options.append(("grpc.ssl_target_name_override", args.server_name))
    compression = getattr(grpc.Compression, args.compression.capitalize()) if args.compression else None
    if not args.tls:
        return grpc.insecure_channel(args.target, options=options, compression=compression)
    roots = None
    ca = args.ca or os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
    if ca:
        with open(ca, "rb") as file:
            roots = file.read()
    credentials = grpc.ssl_channel_credentials(root_certificates=roots)
    return grpc.secure_channel(args.target, credentials, options=options, compression=compression)


def pairs(metadata):
    """Metadata as a list: the same key may come twice."""
    shown = []
    for key, value in metadata or []:
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        shown.append([key, value])
    return shown


def details(call):
    """ErrorInfo and RetryInfo out of grpc-status-details-bin."""
    found = {"reason": None, "domain": None, "info": {}, "retry_delay_ms": None, "rich": False}
    try:
        status = rpc_status.from_call(call)
    except ValueError as error:  # code or message of the details contradict the plain ones
        found["details_error"] = str(error)
        return found
    if status is None:
        return found
    found["rich"] = True
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            found.update(reason=info.reason, domain=info.domain, info=dict(info.metadata))
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info = error_details_pb2.RetryInfo()
            detail.Unpack(info)
            found["retry_delay_ms"] = info.retry_delay.ToMilliseconds()
    return found


def run(args):
    method, build, client_streams, server_streams = RPCS[args.rpc]
    request, answer = build(args)
    body = bytes.fromhex(args.body_hex) if args.body_hex is not None else request.SerializeToString()
    body += bytes.fromhex(args.append_hex)
    path = args.path or SERVICE + method
    metadata = []
    for item in args.md:
        key, _, value = item.partition("=")
        metadata.append((key, base64.b64decode(value) if key.endswith("-bin") else value))
    if args.token:
        metadata.append(("authorization", f"Bearer {args.token}"))
    if args.session_header:
        metadata.append(("x-session-id", args.session_header))

    started = time.monotonic()
    first = None
    sizes, last = [], None
    with open_channel(args) as channel:
        settings = {"metadata": metadata, "timeout": args.timeout}
        if client_streams:
            call = channel.stream_stream(path)(iter([body] * args.repeat), **settings)
        else:
            call = channel.unary_stream(path)(body, **settings)
        # Server and unary answers look alike on the wire, so both are read as a stream.
        try:
            for message in call:
                first = first or time.monotonic() - started
                sizes.append(len(message))
                last = message
        except grpc.RpcError:
            pass
        result = {
            "rpc": args.rpc,
            "path": path,
            "code": call.code().name,
            "code_number": call.code().value[0],
            "message": call.details() or "",
            **details(call),
            "initial_metadata": pairs(call.initial_metadata()),
            "trailers": pairs(call.trailing_metadata()),
        }
    trailers = dict(result["trailers"])
    result["berth_reason"] = trailers.get("berth-reason")
    result["responses"] = len(sizes)
    result["bytes"] = sum(sizes)
    result["seconds"] = round(time.monotonic() - started, 3)
    result["first_seconds"] = round(first, 3) if first is not None else None
    result["session"] = args.session
    if last is not None and not server_streams and not args.path:
        decoded = answer.FromString(last)
        result["session_in_reply"] = getattr(decoded, "session_id", None)
        if args.rpc == "analyze":
            result["spark_version"] = decoded.spark_version.version
        if args.rpc == "config":
            result["config"] = {pair.key: pair.value for pair in decoded.pairs}
    return result


def burst(args):
    """The same call many times at once, each in a thread of its own; counts their codes."""
    import collections
    import threading

    codes, threads = collections.Counter(), []

    def one():
        codes[run(args)["code"]] += 1

    for _ in range(args.at_once):
        threads.append(threading.Thread(target=one))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"codes": dict(codes)}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("rpc", choices=sorted(RPCS))
    add("--target", required=True, help="host:port")
    add("--tls", action="store_true")
    add("--ca", help="PEM file with the CA (default: GRPC_DEFAULT_SSL_ROOTS_FILE_PATH)")
    add("--server-name", help="name to expect in the server's certificate")
    add("--md", action="append", default=[], metavar="KEY=VALUE", help="a metadata entry; may repeat")
    add("--token", help="short for --md 'authorization=Bearer TOKEN'")
    add("--session-header", help="short for --md x-session-id=VALUE")
    add("--session", default=str(uuid.uuid4()), help="Spark session id in the message")
    add("--user", default="someone")
    add("--sql", default="SELECT 1 AS one")
    add("--key", default="spark.sql.session.timeZone", help="what `config` reads")
    add("--operation", help="operation id")
    add("--last-response", help="last_response_id of `reattach`")
    add("--reattachable", action="store_true")
    add("--artifact", default="raw.bin")
    add("--repeat", type=int, default=1, help="messages of `add-artifacts`")
    add("--at-once", type=int, default=1, help="make the call so many times at once, print how they ended")
    add("--path", help="another method path, to be called with the same message")
    add("--body-hex", help="these bytes as the message")
    add("--append-hex", default="", help="bytes after the message")
    add("--compression", choices=["gzip", "deflate"])
    add("--timeout", type=float, default=60, help="the call's deadline in seconds")
    add("--limit", type=float, default=120, help="seconds until the program kills itself")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    faulthandler.dump_traceback_later(arguments.limit, exit=True)
    print(json.dumps(burst(arguments) if arguments.at_once > 1 else run(arguments)))
    sys.stdout.flush()
