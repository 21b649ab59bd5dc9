"""Plays two nodes on one etcd: reads one command per line, answers in one line of JSON.

Arguments: the agent, the scope, etcd's address, and "mended" or "as-installed".
Commands: <node> <step>, with the steps of step().
"""
import importlib.util
import json
import sys

agent_file, scope, etcd, state = sys.argv[1:]
spec = importlib.util.spec_from_file_location('agent', agent_file)
agent = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agent)

from patroni.dcs.etcd3 import Etcd3  # noqa: E402
from patroni.version import __version__  # noqa: E402

replaced = agent.mend(__version__) if state == 'mended' else []
print(json.dumps({'version': agent.release(__version__), 'replaced': replaced}), flush=True)
nodes = {}


def node(name):
    if name not in nodes:
        nodes[name] = Etcd3({'name': name, 'scope': scope, 'namespace': '/fournines/', 'hosts': [etcd],
                             'ttl': 30, 'loop_wait': 1, 'retry_timeout': 5})
    return nodes[name]


def step(dcs, what, *args):
    if what == 'look':  # what every round of Patroni begins with
        leader = dcs.get_cluster().leader
        return leader.name if leader else ''
    if what == 'acquire':
        return bool(dcs.attempt_to_acquire_leader())
    if what == 'update':
        return bool(dcs._update_leader())
    if what == 'release':
        return bool(dcs.delete_leader())
    if what == 'sync':
        return bool(dcs.write_sync_state(args[0], None, index=dcs.cluster.sync.index))
    if what == 'lease':
        return str(dcs._lease)
    raise ValueError(what)


for line in sys.stdin:
    name, *command = line.split()
    print(json.dumps(step(node(name), *command)), flush=True)
