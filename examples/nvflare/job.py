"""Digits on NVFlare's simulator: four clients, one of them malicious, and a server that withstands it.

python job.py                       # FABA leaves one client out in every round
python job.py --rule mean           # what happens without a defence
python job.py --export /tmp/jobs    # the job's folder, for a deployment
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from client import TEST, accuracy, digits
from model import DigitsNet
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import TransferType
from nvflare.recipe import SimEnv
from safetensors.torch import load_file

from bezoar.aggregation import FABA, NNM, Mean, TrimmedMean
from bezoar.integrations.nvflare import RobustAggregator, forgive_errors, use_installed

RULES = {"mean": Mean(), "faba": FABA(f=1), "nnm-trimmed-mean": NNM(f=1) >> TrimmedMean(f=1)}


def main() -> None:
    """Make the job; run it here and say what came of it, or export it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", choices=RULES, default="faba")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--malicious", default="site-4", help="names of the clients that attack, with commas")
    parser.add_argument("--transfer", choices=["DIFF", "FULL"], default="DIFF", help="differences or whole models")
    parser.add_argument("--workspace", default="/tmp/nvflare/digits")
    parser.add_argument("--export", help="write the job here instead of running it")
    args = parser.parse_args()

    os.chdir(Path(__file__).resolve().parent)  # NVFlare looks for the client's script in the current directory.
    recipe = FedAvgRecipe(
        name="digits",
        model=DigitsNet(),
        min_clients=args.clients,
        num_rounds=args.rounds,
        train_script="client.py",
        train_args=f"--clients {args.clients} --malicious {args.malicious}",
        params_transfer_type=TransferType[args.transfer],
        aggregator=RobustAggregator(RULES[args.rule], out="bezoar", label=args.rule),
    )
    use_installed(recipe)
    forgive_errors(recipe)
    if args.export:
        recipe.export(args.export)
        print(f"job written to {args.export}")
        return

    recipe.run(SimEnv(num_clients=args.clients, workspace_root=args.workspace))
    records = Path(args.workspace) / "digits" / "server" / "simulate_job" / "bezoar"
    for line in (records / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "round":
            left_out = "; ".join(f"{name} {why}" for name, why in record["verdicts"].items())
            print(f"round {record['round']}: {left_out or 'all kept'}")
        else:
            print(f"    the model of round {record['round']}, as clients say: {record['test_accuracy']:.1%}")
    model = DigitsNet()
    model.load_state_dict(load_file(records / "weights.safetensors"))
    images, labels = digits()
    print(f"the last model, on {TEST} images of its own: {accuracy(model, images[:TEST], labels[:TEST]):.1%}")
    print(f"records: {records}")


if __name__ == "__main__":
    main()
