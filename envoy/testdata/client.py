"""Asks a running server by generated stubs and prints what is answered, a line for each question.

    python client.py HOST:PORT TOKEN
"""

import queue
import sys

import grpc
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

address, token = sys.argv[1:]
channel = grpc.insecure_channel(address)
authz = external_auth_pb2_grpc.AuthorizationStub(channel)
health = health_pb2_grpc.HealthStub(channel)
log = als_pb2_grpc.AccessLogServiceStub(channel)
of_member = {"metadata": [("authorization", "Bearer " + token)], "timeout": 20}


def request(path, **headers):
    m = external_auth_pb2.CheckRequest()
    http = m.attributes.request.http
    http.method, http.path, http.host = "GET", path, "a.test"
    http.headers.update(headers)
    return m


def told(answer):
    if answer.HasField("ok_response"):
        added = {h.header.key: h.header.value for h in answer.ok_response.headers}
        return "allowed " + added["x-keyporter-user"]
    return f"denied {answer.denied_response.status.code} {answer.denied_response.body}"


def entries(receipt):
    m = als_pb2.StreamAccessLogsMessage()
    e = m.http_logs.log_entry.add()
    e.common_properties.access_log_type = accesslog_pb2.DownstreamEnd
    facts = e.common_properties.metadata.filter_metadata["envoy.filters.http.ext_authz"]
    facts.get_or_create_struct("keyporter").update({"user": "ada", "charge": receipt})
    e.request.path = "/a"
    e.response.response_code.value = 200
    e.response.response_code_details = "via_upstream"
    return m


def say(name, ask):
    try:
        print(f"{name}: {ask()}")
    except grpc.RpcError as e:
        print(f"{name}: {e.code().name}")


say("without the token", lambda: told(authz.Check(request("/now"))))
say("now", lambda: told(authz.Check(request("/now"), **of_member)))
say("later", lambda: told(authz.Check(request("/later"), **of_member)))
say("no", lambda: told(authz.Check(request("/no"), **of_member)))
say("compressed", lambda: told(authz.Check(request("/now", a="a" * 100_000), compression=grpc.Compression.Gzip, **of_member)))

calls = [authz.Check.future(request("/later" if i % 3 else "/now"), **of_member) for i in range(300)]
say("300 at once", lambda: {told(call.result()) for call in calls})

say("health", lambda: health.Check(health_pb2.HealthCheckRequest(), **of_member).status)
say("health of another", lambda: health.Check(health_pb2.HealthCheckRequest(service="other"), **of_member).status)
watch = health.Watch(health_pb2.HealthCheckRequest(), **of_member)
say("watch", lambda: next(watch).status)

say("a log that ends", lambda: log.StreamAccessLogs(iter([entries(f"ended{i}") for i in range(50)]), **of_member))

# The server ends a log when it stops.
sent = queue.SimpleQueue()
open_log = log.StreamAccessLogs.future(iter(sent.get, None), **of_member)
for i in range(50):
    sent.put(entries(f"open{i}"))
say("drain", lambda: told(authz.Check(request("/drain"), **of_member)))
say("watch", lambda: next(watch).status)
say("stop", lambda: told(authz.Check(request("/stop"), **of_member)))
say("a log that the server ends", open_log.result)
say("watch", lambda: next(watch).status)
sent.put(None)
channel.close()
