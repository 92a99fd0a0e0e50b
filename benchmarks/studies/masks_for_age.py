"""Do hand masks pay? Age networks at equal FLOPs, with and without background.

usage: python -m benchmarks.studies.masks_for_age --raw_dir=RSNA --unet=WORKDIR --output=FOLDER
           [--size=128] [--budget=6e12] [--seeds=3]

Arms, all of configs/cls.py:subset at one size:
  none        whole radiographs, the whole budget
  none_short  whole radiographs, the FLOPs that the masked arms have left for the age network
  multiply, crop, upright   without background; the U-Net's training and masks are paid from the
                            budget
Writes FOLDER/runs.csv (one line per run; runs already there are kept) and FOLDER/runs.json.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.provenance import write_provenance

COLUMNS = (
    *("arm", "seed", "size", "budget", "mae", "mae_low", "mae_high", "bias", "sex_accuracy"),
    *("train_flops", "mask_flops", "steps", "images_per_second", "seconds"),
)


def command(args: argparse.Namespace, arm: str, seed: int, spent: int) -> list[str]:
    """The command of one run; `spent` is what masks cost the others."""
    budget = args.budget - (spent if arm == "none_short" else 0)
    line = [
        *(sys.executable, "-m", "boneage_jax.main", "--config=configs/cls.py:subset"),
        f"--config.data.raw_dir={args.raw_dir}",
        f"--config.data.config={args.size}",
        f"--config.seed={seed}",
        f"--config.budget_flops={budget}",
        "--config.evaluate_every=1000.0",
        f"--workdir={args.workdirs / f'{arm}-{args.size}-{seed}'}",
    ]
    if not arm.startswith("none"):
        line += [f"--config.data.masks={args.unet}", f"--config.data.mask_mode={arm}"]
    return line


def main() -> None:
    """Runs what is missing, arm by arm within a seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--raw_dir", required=True)
    parser.add_argument("--unet", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--workdirs", type=Path, default=Path("runs/masks_for_age"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--budget", type=float, default=6e12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="crop,multiply,none,none_short")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    table = args.output / "runs.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    done = {(row["arm"], int(row["seed"]), int(row["size"])) for row in rows}
    for seed in range(args.seeds):
        for arm in args.arms.split(","):
            if (arm, seed, args.size) in done:
                continue
            spent = max(
                (int(r["mask_flops"]) for r in rows if r["size"] == str(args.size)), default=0
            )
            if arm == "none_short" and not spent:
                sys.exit("none_short needs a masked arm before it")
            subprocess.run(command(args, arm, seed, spent), check=True)
            folder = args.workdirs / f"{arm}-{args.size}-{seed}"
            report = json.loads((folder / "report.json").read_text())
            compute, age = report["compute"], report["age"]
            row = {"arm": arm, "seed": seed, "size": args.size, "budget": f"{args.budget:.4g}"}
            row |= {key: age[key] for key in ("mae", "mae_low", "mae_high", "bias")}
            row |= {key: compute[key] for key in ("train_flops", "mask_flops", "seconds")}
            row |= {"steps": report["curve"][-1]["step"]}
            row |= {"sex_accuracy": report["sex"]["accuracy"]}
            row |= {"images_per_second": compute["images_per_second"]}
            rows.append({key: str(value) for key, value in row.items()})
            with table.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            facts = {key: compute[key] for key in ("hardware", "versions")}
            write_provenance(table, vars(args), **facts)


if __name__ == "__main__":
    main()
