"""Many queries at once on one connection, and then one interrupt on the same connection.

Prints one JSON object: how the calls that were refused at once ended, how long the interrupt took, and
how all others ended. Run it with the Python of the Sail venv.
"""

import argparse
import collections
import faulthandler
import json
import threading
import time
import uuid

import grpc
from pyspark.sql.connect.proto import base_pb2 as base

SERVICE = "/spark.connect.SparkConnectService/"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--refused", type=int, default=0, help="so many are expected to be refused")
    args = parser.parse_args()
    faulthandler.dump_traceback_later(240, exit=True)

    session = str(uuid.uuid4())
    user = base.UserContext(user_id="tester", user_name="tester")
    metadata = [("authorization", f"Bearer {args.token}")]
    ended = collections.Counter()
    texts = {}
    lock = threading.Condition()

    with grpc.insecure_channel(args.target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        execute = channel.unary_stream(SERVICE + "ExecutePlan")
        calls = []

        def end(call):
            with lock:
                ended[call.code().name] += 1
                texts.setdefault(call.code().name, call.details())
                lock.notify_all()

        def drain(call):
            try:
                for _ in call:
                    pass
            except grpc.RpcError:
                pass
            end(call)

        for _ in range(args.calls):
            request = base.ExecutePlanRequest(session_id=session, user_context=user)
            request.operation_id = str(uuid.uuid4())
            # One partition: one slow task each.
            request.plan.root.sql.query = "SELECT sum(id) FROM range(0, 1000000000000, 1, 1)"
            call = execute(request.SerializeToString(), metadata=metadata, timeout=200)
            calls.append(call)
            threading.Thread(target=drain, args=(call,), daemon=True).start()

        with lock:
            lock.wait_for(lambda: ended.total() >= args.refused, timeout=60)
            refused = dict(ended)
        time.sleep(3)
        still = args.calls - ended.total()

        request = base.InterruptRequest(session_id=session, user_context=user)
        request.interrupt_type = base.InterruptRequest.INTERRUPT_TYPE_ALL
        began = time.monotonic()
        answer = channel.unary_unary(SERVICE + "Interrupt")(
            request.SerializeToString(), metadata=metadata, timeout=60
        )
        took = time.monotonic() - began
        interrupted = len(base.InterruptResponse.FromString(answer).interrupted_ids)
        with lock:
            lock.wait_for(lambda: ended.total() >= args.calls, timeout=60)
        print(
            json.dumps(
                {
                    "refused": refused,
                    "running": still,
                    "interrupt_s": round(took, 3),
                    "interrupted": interrupted,
                    "ended": dict(ended),
                    "texts": texts,
                }
            )
        )


main()
