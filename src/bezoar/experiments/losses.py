"""Training losses of single clients at the global model, and the two readings of an expected loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bezoar.data.dataset import as_input
from bezoar.errors import ConfigError
from bezoar.experiments.setup import Setup, cross_entropy
from bezoar.priors.family import Floats


def client_losses(setup: Setup) -> Floats:
    """L_i, the mean loss of every client's own training samples with their true labels, at the model: float64 [n]."""
    federation, device = setup.federation, setup.device
    dataset = federation.dataset
    rows, owners = federation.samples_of(np.arange(federation.n))
    sums = torch.zeros(federation.n, dtype=torch.float64)
    setup.model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), setup.experiment.evaluation.batch_size):
            part = slice(start, start + setup.experiment.evaluation.batch_size)
            outputs = setup.model(as_input(dataset.batch(dataset.train, rows[part]), device))
            targets = dataset.train.targets[torch.from_numpy(rows[part])].to(device)
            losses = cross_entropy(outputs, targets).double().cpu()
            sums.index_add_(0, torch.from_numpy(owners[part]), losses)
    return np.asarray(sums.numpy() / federation.counts())


def prior_losses(setup: Setup) -> dict[str, Any]:
    r"""What an experiment with ``[prior]`` is scored by at its end, one number for each reading; they do not compare.

    ``honest_loss`` (R1) is :math:`L_S(\theta)`, the mean loss of the clients that are honest in this run: its mean over
    runs with different draws of S is what guarantees are about. ``expected_loss`` (R2) is
    :math:`\sum_i w_i L_i(\theta)` of this one model, whoever was honest when it was trained; None where the weights are
    not known exactly.
    """
    if setup.prior is None:
        return {}
    losses = client_losses(setup)
    honest = np.setdiff1d(np.arange(len(losses)), setup.malicious, assume_unique=True)
    try:
        expected = float(setup.prior.weights() @ losses)
    except ConfigError:
        expected = None
    return {"honest_loss": float(losses[honest].mean()) if len(honest) else None, "expected_loss": expected}


def who_was_bad(setup: Setup) -> dict[str, Any]:
    """The malicious clients of a run and the log-probability of that, for its summary; empty without any prior.

    ``log_probability`` is that under the prior they were drawn from (else under what rules are told), and
    ``log_probability_told`` that under what rules are told; minus infinity, and what is not known exactly, are None.
    """
    source = setup.source if setup.source is not None else setup.prior
    if source is None:
        return {}
    honest = np.ones(setup.federation.n, dtype=np.bool_)
    honest[setup.malicious] = False

    def log_probability(prior: Any) -> float | None:
        try:
            found = float(prior.log_prob(honest))
        except ConfigError:
            return None
        return found if np.isfinite(found) else None

    known: dict[str, Any] = {
        "bad": setup.malicious.tolist(),
        "bad_count": len(setup.malicious),
        "log_probability": log_probability(source),
    }
    if setup.prior is not None and setup.prior is not source:
        known["log_probability_told"] = log_probability(setup.prior)
    return known
