"""Uses what openapi-python-client makes of the interface's document."""

import sys

sys.path.insert(0, sys.argv[3])

from capstan_client import AuthenticatedClient
from capstan_client.api.calls import invoke, list_calls, spawn
from capstan_client.api.functions import deploy_function, get_function, get_stats
from capstan_client.models import (
    CallState, Function, FunctionSpec, ListCallsState, Problem, Process, ProcessRuntime, Protocol, Spawned,
)

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
spec = FunctionSpec(runtime=ProcessRuntime(process=Process(command=["cat"])), protocol=Protocol.EXEC)
place = ("default", "generated-py")

deployed = deploy_function.sync(*place, client=client, body=spec)
assert isinstance(deployed, Function) and deployed.revision == 1, deployed
assert deployed.spec.resources.cpu == 0.125, deployed.spec
assert invoke.sync(*place, client=client, body={"a": 1}) == {"a": 1}
assert isinstance(spawn.sync(*place, client=client, body=[2]), Spawned)
calls = list_calls.sync(client=client, function="generated-py", state=ListCallsState.SUCCEEDED)
assert calls.calls[-1].state == CallState.SUCCEEDED, calls
assert get_stats.sync(*place, client=client).desired >= 0
absent = get_function.sync("default", "absent", client=client)
assert isinstance(absent, Problem) and absent.code == "not_found", absent
