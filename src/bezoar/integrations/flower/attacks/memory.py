"""What attackers remember between rounds: in a client's state, or beside the server, in memory and in files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.experiments.records import guarded, load_tensors, save_tensors

State = Mapping[str, Tensor]

_FILE = re.compile(r"attack-(\d{8})\.safetensors")


def read_state(context: Context, name: str) -> dict[str, Tensor]:
    """What was put under ``name`` into the client's state, {} at first."""
    record = context.state.array_records.get(name)
    return {} if record is None else {key: torch.from_numpy(array.numpy()) for key, array in record.items()}


def write_state(context: Context, name: str, tensors: State) -> None:
    """Keep ``tensors`` under ``name`` in the client's state."""
    arrays = {key: Array(np.array(t.detach().cpu().numpy(), order="C")) for key, t in tensors.items()}
    context.state[name] = ArrayRecord(arrays)


@dataclass
class History:
    """State after each of the last ``keep`` rounds, also as files in ``folder``.

    A round takes the newest state from before it: a run that goes on after round t, in this process or another, finds
    what was remembered then.
    """

    folder: Path | None = None
    keep: int = 20
    _states: dict[int, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"keep must be at least 1 round, got {self.keep}")
        if self.folder is not None:
            with guarded(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)

    def before(self, number: int) -> State:
        """The newest state from before round ``number``, {} if there is none."""
        rounds = [known for known in self._states.keys() | self._files().keys() if known < number]
        if not rounds:
            return {}
        newest = max(rounds)
        return self._states[newest] if newest in self._states else load_tensors(self._files()[newest])[0]

    def after(self, number: int, state: State) -> None:
        """Remember ``state`` from after round ``number``; later ones are of a run that was given up."""
        self._states = {known: s for known, s in self._states.items() if number - self.keep < known < number}
        self._states[number] = state
        for known, path in self._files().items():
            if not number - self.keep < known < number:
                path.unlink(missing_ok=True)
        if self.folder is not None and state:
            save_tensors(self.folder / f"attack-{number:08d}.safetensors", state, {})

    def _files(self) -> dict[int, Path]:
        if self.folder is None:
            return {}
        found = ((path, _FILE.fullmatch(path.name)) for path in self.folder.iterdir())
        return {int(match[1]): path for path, match in found if match}
