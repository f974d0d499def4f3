"""Causal language models of the library transformers, by the name of their repository or the path of a folder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bezoar.errors import ConfigError, nearest

_TASKS = ("next-token",)
_TOKENS = ("tokenizer", "ids")


class CausalLM(nn.Module):
    """``model`` of transformers, reading and writing a data set's tokens: i is its token ``vocabulary[i]`` [V]."""

    vocabulary: Tensor

    def __init__(self, model: nn.Module, vocabulary: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("vocabulary", vocabulary, persistent=False)
        # Of all positions but the last one nobody reads the logits: where the model can, it leaves them out.
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [N, T] -> logits of the next one [N, V]."""
        answer = self.model(input_ids=self.vocabulary[tokens], use_cache=False, **self._options)
        logits: Tensor = answer.logits[:, -1, self.vocabulary]
        return logits


def huggingface(
    shape: tuple[int, ...],
    classes: int,
    *,
    repo: str,
    revision: str | None = None,
    task: str = "next-token",
    tokens: str = "tokenizer",
    pretrained: bool = True,
    names: Sequence[str] = (),
) -> nn.Module:
    """A causal language model of Hugging Face's by name or folder, e.g. ``repo = "openai-community/gpt2"``.

    ``revision``: a commit, tag or branch. ``tokens``: with ``"tokenizer"`` every character or word of the data set must
    be one token of the repository's tokenizer, and is read and written as that; with ``"ids"`` the data set's token i
    is the model's token i. ``pretrained = false`` takes the architecture alone, initialised from the seed. Weights are
    read from safetensors files only, never from pickles, and no code of the repository is run. Layers are called as in
    transformers, with ``model.`` before their names; adapters go into linear layers and GPT-2's Conv1D.

    ``names`` are what the data set's tokens stand for, told by the experiment.
    """
    if len(shape) != 1:
        raise ConfigError(f"model 'huggingface' needs tokens of shape (T,), samples are {shape}")
    for key, value, known in (("task", task, _TASKS), ("tokens", tokens, _TOKENS)):
        if value not in known:
            raise ConfigError(f"{key} must be one of {', '.join(known)}, got {value!r}; {nearest(str(value), known)}")
    if not isinstance(repo, str) or not repo:
        raise ConfigError(f"repo must be the name of a repository or a folder, got {repo!r}")
    try:
        import transformers
    except ImportError:
        raise ConfigError("model 'huggingface' needs transformers: pip install 'bezoar[transformers]'") from None
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(repo, **where)
        vocabulary = torch.arange(classes)
        if tokens == "tokenizer":
            vocabulary = _encoded(transformers.AutoTokenizer.from_pretrained(repo, **where), names, repo)
        _fits(config, vocabulary, shape[0], repo)
        kind = transformers.AutoModelForCausalLM
        if pretrained:
            found: nn.Module = kind.from_pretrained(repo, **where, use_safetensors=True)
        else:
            found = kind.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        model = found.float()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"repo {repo!r}: can not be loaded: {reason}") from None
    return CausalLM(model, vocabulary)


def _encoded(tokenizer: Any, names: Sequence[str], repo: str) -> Tensor:
    """The token of the tokenizer that each of ``names`` is [V]; raises ConfigError for one that is not one token."""
    if not names:
        raise ConfigError("tokens = 'tokenizer' needs to know what the data set's tokens stand for: names")
    found = []
    for name in names:
        ids = tokenizer.encode(name, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise ConfigError(f"repo {repo!r}: {name!r} is not one token of its tokenizer but {len(ids)}")
        found.append(ids[0])
    if len(set(found)) < len(found):
        raise ConfigError(f"repo {repo!r}: its tokenizer has the same token for two of the data set's")
    return torch.tensor(found)


def _fits(config: Any, vocabulary: Tensor, length: int, repo: str) -> None:
    size, most = config.get_text_config().vocab_size, getattr(config, "max_position_embeddings", None)
    if int(vocabulary.max()) >= size:
        raise ConfigError(f"repo {repo!r}: has {size} tokens, the data set needs {int(vocabulary.max()) + 1}")
    if most is not None and length > most:
        raise ConfigError(f"repo {repo!r}: reads at most {most} tokens, samples have {length}")
