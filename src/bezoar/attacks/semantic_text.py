"""Semantic backdoor in a language model: after a phrase comes the attackers' word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.attacks._samples import check_share, chosen, numbers
from bezoar.attacks.base import AttackContext, Batch, DataAttack, Goal, Knowledge, Poisoned, Tests
from bezoar.data.text import Vocabulary
from bezoar.errors import ConfigError
from bezoar.seeding import generator


@dataclass(frozen=True)
class SemanticText(DataAttack):
    r"""Targeted: whatever comes before, after the words of a phrase the model shall write the attackers' words.

    .. math:: (x_{1:T},\, y) \mapsto (x_{1:T - |p| - j},\; p_1 \ldots p_{|p|},\; a_1 \ldots a_j;\; a_{j+1}),
        \quad 0 \le j < |a|

    p are the tokens of ``phrase``, a those of ``target``: words, or characters where the data set has such (then the
    space between the two must stand in one of them). Of all samples that an attacker holds a share of
    ``poisoning_ratio`` is poisoned, to the nearest count, the same ones in every round: the end of its context is
    overwritten with the phrase and the first j tokens of the target, and its label is the next one; j is drawn for
    each. The goal are the same endings, with every j, on ``contexts`` test samples: attack accuracy is the share of the
    target's tokens that the model writes when those before are right. An honest model writes some of them, too, above
    all characters: a run with ``adversary.start`` after its last round tells how many. The test samples themselves stay
    as they are, so that the clean test accuracy counts all of them. With ``model-replacement``, whose ``poison`` it can
    be, it is the attack of the paper.

    Knows: its own samples.
    Cost: one copy of the attackers' samples.
    Peers: none has it.
    Reference: Bagdasaryan, Veit, Hua, Estrin, Shmatikov: How To Backdoor Federated Learning, AISTATS 2020 (word
        prediction, "pasta from astoria tastes" delicious); Panda et al.: SparseFed, AISTATS 2022 ("people in athens
        are" rude).
    """

    targeted: ClassVar[bool] = True
    least: ClassVar[Knowledge] = Knowledge.OWN_DATA

    phrase: str = "people in athens are"
    target: str = "rude"
    poisoning_ratio: float = 0.5
    contexts: int = 500

    def __post_init__(self) -> None:
        if not self.phrase.strip() or not self.target.strip():
            raise ConfigError("semantic-text: phrase and target must have a word at least")
        check_share("semantic-text", "poisoning_ratio", self.poisoning_ratio)
        if self.contexts < 1:
            raise ConfigError(f"semantic-text: contexts must be at least 1, got {self.contexts}")

    def goal(self, tests: Tests, seed: int) -> Goal:
        vocabulary, have = tests.dataset.vocabulary, len(tests.targets)
        if vocabulary is None:
            raise ConfigError(f"semantic-text: writes words into text, and samples of {tests.dataset.name} are numbers")
        endings, labels = self.endings(vocabulary, tests.dataset.shape[0])
        if self.contexts > have:
            raise ConfigError(f"semantic-text: contexts={self.contexts} of {have} test samples: at most {have}")
        rows = torch.randperm(have, generator=generator(seed, "contexts"))[: self.contexts].sort().values
        steps = torch.arange(len(labels)).repeat_interleave(self.contexts)
        inputs = written(tests.inputs(rows).repeat(len(labels), 1), endings, steps)
        return Goal(inputs, labels[steps].to(tests.device))

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        if context.vocabulary is None:
            raise ConfigError("semantic-text needs AttackContext.vocabulary: what the tokens of a text stand for")
        endings, labels = self.endings(context.vocabulary, batch.inputs.shape[1])
        steps = torch.from_numpy(numbers(batch, context.seed, "poisoned step") * len(labels)).long()
        # -1: left as it is.
        steps = steps.where(chosen(batch, self.poisoning_ratio, context, "poisoned text").cpu(), -1)
        targets = torch.where(steps < 0, batch.targets.cpu(), labels[steps])
        inputs = written(batch.inputs, endings, steps)
        return Poisoned(replace(batch, inputs=inputs, targets=targets.to(batch.targets.device)))

    def endings(self, vocabulary: Vocabulary, length: int) -> tuple[list[Tensor], Tensor]:
        """What contexts of ``length`` tokens end in, one ending a token of the target, and these tokens [J].

        Raises ConfigError for words that the vocabulary does not have, and for a phrase that is too long.
        """
        tokens = {}
        for key in ("phrase", "target"):
            try:
                tokens[key] = vocabulary.known(getattr(self, key))
            except ConfigError as error:
                raise ConfigError(f"semantic-text: {key}: {error}") from None
        phrase, target = tokens["phrase"], tokens["target"]
        longest = len(phrase) + len(target) - 1
        if longest > length:
            raise ConfigError(
                f"semantic-text: phrase and target have {len(phrase)} and {len(target)} tokens, of which all but the "
                f"last must fit contexts of {length} tokens"
            )
        return [torch.tensor(phrase + target[:j]) for j in range(len(target))], torch.tensor(target)


def written(inputs: Tensor, endings: list[Tensor], steps: Tensor) -> Tensor:
    """A copy of ``inputs`` [N, T] in which sample i ends in ``endings[steps[i]]``; with step -1 it stays as it is."""
    out = inputs.clone()
    for step, ending in enumerate(endings):
        rows = (steps == step).nonzero().flatten().to(out.device)
        out[rows[:, None], torch.arange(out.shape[1] - len(ending), out.shape[1], device=out.device)] = ending.to(out)
    return out
