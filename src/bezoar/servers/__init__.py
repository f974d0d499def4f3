"""What the server does with an aggregate."""

from bezoar.registry import Registry
from bezoar.servers.base import Server, State, Step
from bezoar.servers.fetchsgd import FetchSGD
from bezoar.servers.sgd import SGD
from bezoar.servers.sparsefed import SparseFed
from bezoar.servers.traffic import Traffic

SERVERS: Registry[Server] = Registry("server", {"sgd": SGD, "sparsefed": SparseFed, "fetchsgd": FetchSGD})

__all__ = ["SERVERS", "SGD", "FetchSGD", "Server", "SparseFed", "State", "Step", "Traffic"]
