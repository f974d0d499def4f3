"""What the server does with an aggregate."""

from bezoar.registry import Registry
from bezoar.servers.base import Server, State, Step
from bezoar.servers.model_post import MODEL_POSTS, ModelPost
from bezoar.servers.sgd import SGD
from bezoar.servers.sparsefed import SparseFed

SERVERS: Registry[Server] = Registry("server", {"sgd": SGD, "sparsefed": SparseFed})

__all__ = ["MODEL_POSTS", "SERVERS", "SGD", "ModelPost", "Server", "SparseFed", "State", "Step"]
