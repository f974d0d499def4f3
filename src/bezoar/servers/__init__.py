"""What the server does with an aggregate."""

from bezoar.registry import Registry
from bezoar.servers.base import Server, State, Step
from bezoar.servers.sgd import SGD
from bezoar.servers.sparsefed import SparseFed

SERVERS: Registry[Server] = Registry("server", {"sgd": SGD, "sparsefed": SparseFed})

__all__ = ["SERVERS", "SGD", "Server", "SparseFed", "State", "Step"]
