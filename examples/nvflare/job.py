"""Four hospitals' worth of digits on NVFlare's simulator, one client malicious, and a server that withstands it.

python job.py                          # trimmed mean with f=1
python job.py --rule mean              # what happens without a defence
python job.py --export /tmp/job        # the job's folder, for a deployment
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from model import DigitsNet
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import TransferType
from nvflare.recipe import SimEnv

from bezoar.aggregation import NNM, Mean, TrimmedMean
from bezoar.integrations.nvflare import RobustAggregator, use_installed

RULES = {"mean": Mean(), "trimmed-mean": TrimmedMean(f=1), "nnm-trimmed-mean": NNM(f=1) >> TrimmedMean(f=1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", choices=RULES, default="trimmed-mean")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--malicious", default="site-4")
    parser.add_argument("--transfer", choices=["DIFF", "FULL"], default="DIFF")
    parser.add_argument("--workspace", default="/tmp/nvflare/digits")
    parser.add_argument("--export", help="write the job here instead of running it")
    args = parser.parse_args()

    here = Path(__file__).resolve().parent
    os.chdir(here)  # NVFlare looks for the client's script beside the current directory.
    recipe = FedAvgRecipe(
        name="digits",
        model=DigitsNet(),
        min_clients=args.clients,
        num_rounds=args.rounds,
        train_script="client.py",
        train_args=f"--clients {args.clients} --malicious {args.malicious}",
        params_transfer_type=TransferType[args.transfer],
        aggregator=RobustAggregator(RULES[args.rule], out="bezoar"),
    )
    use_installed(recipe)
    if args.export:
        recipe.export(args.export)
        print(f"job written to {args.export}")
        return
    recipe.run(SimEnv(num_clients=args.clients, workspace_root=args.workspace))
    records = Path(args.workspace) / "digits" / "server" / "simulate_job" / "bezoar"
    for line in (records / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "round":
            print(f"round {record['round']}: {record['verdicts'] or 'all kept'}")
        else:
            print(f"model after round {record['round']}: accuracy {record['test_accuracy']:.3f} (median of clients)")
    print(f"records: {records}")


if __name__ == "__main__":
    main()
