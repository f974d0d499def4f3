"""What the server does with an aggregate."""

from bezoar.registry import Registry
from bezoar.servers.base import Server, State, Step
from bezoar.servers.fetchsgd import FetchSGD
from bezoar.servers.model_post import MODEL_POSTS, ModelPost
from bezoar.servers.sgd import SGD
from bezoar.servers.sparsefed import SparseFed
from bezoar.servers.traffic import Traffic

SERVERS: Registry[Server] = Registry("server", {"sgd": SGD, "sparsefed": SparseFed, "fetchsgd": FetchSGD})

__all__ = [
    "MODEL_POSTS",
    "SERVERS",
    "SGD",
    "FetchSGD",
    "ModelPost",
    "Server",
    "SparseFed",
    "State",
    "Step",
    "Traffic",
]
