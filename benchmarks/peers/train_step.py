"""The same step here and in other libraries, in turns.

usage: python -m benchmarks.peers.train_step --model=b4 --size=256 --batch=8 --rounds=5
           --output=FILE.csv [--mode=inference] [--dtype=bfloat16] [--only="NAME;NAME"]
           [--together]

Models: b0, b4, lite0 (Keras has no lite0), unet and unet_10 (not Keras). Needs
pip install 'boneage_jax[peers]'. Each contender is a process that is set up once; then one after
the other takes --steps steps, round after round. FILE.csv holds every round, FILE.json the medians,
the peak of each process's memory from its start, and what they were measured on. With --together
all are set up at the same time, which takes the time of the slowest; where few cores compile, one
after the other is no slower.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from benchmarks.peers.contender import HUGE_PAGES, Contender, Settings
from benchmarks.peers.rounds import print_summary, summary_rows, take_turns, write_rounds
from boneage_jax.runtime.cpu_memory import SWITCH

# name -> file, options, environment, package it needs. Ours first: the others are compared with it.
_SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
CONTENDERS = {
    "ours": ("ours.py", [], {"GLIBC_TUNABLES": None}, "jax"),
    "ours, default malloc": ("ours.py", [], {"GLIBC_TUNABLES": None, SWITCH: "0"}, "jax"),
    "ours, recomputed": ("ours.py", ["remat"], {"GLIBC_TUNABLES": None}, "jax"),
    "torch": ("torch_peer.py", [], {}, "timm"),
    "torch, channels last": ("torch_peer.py", ["channels_last"], {}, "timm"),
    "torch, compiled": ("torch_peer.py", ["compile"], {}, "timm"),
    "torch, compiled, channels last": (
        *("torch_peer.py", ["compile", "channels_last"], {}),
        "timm",
    ),
    "torch, channels last, huge pages": (
        *("torch_peer.py", ["channels_last"], {"GLIBC_TUNABLES": HUGE_PAGES}),
        "timm",
    ),
    "keras on jax": ("keras_peer.py", [], {"GLIBC_TUNABLES": None}, "keras"),
    "keras on jax, huge pages": ("keras_peer.py", [], {"GLIBC_TUNABLES": HUGE_PAGES}, "keras"),
}
_KERAS = ("b0", "b4")


def chosen(only: str, model: str) -> list[str]:
    """Names of contenders that can run here; says which cannot, and why."""
    asked = [name.strip() for name in only.split(";")] if only else list(CONTENDERS)
    unknown = [name for name in asked if name not in CONTENDERS]
    if unknown:
        sys.exit(f"error: --only: no contender {unknown[0]!r}; there are {'; '.join(CONTENDERS)}")
    names = []
    for name in asked:
        file, options, _, package = CONTENDERS[name]
        if "remat" in options and model.startswith("unet"):
            print(f"left out: {name}: model.remat is of EfficientNet")
        elif file == "keras_peer.py" and model not in _KERAS:
            print(f"left out: {name}: keras.applications has no {model}")
        elif importlib.util.find_spec(package) is None:
            print(f"left out: {name}: {package} is not installed")
        else:
            names.append(name)
    return names


def leave_out_failed(contenders: list[Contender]) -> None:
    """Waits for all, and removes those that did not get ready, with a word."""
    for contender in list(contenders):
        try:
            if not contender.facts:
                contender.wait()
        except RuntimeError as error:
            print(f"left out: {error}")
            contenders.remove(contender)
            contender.close()


def main() -> None:
    """Sets up, takes turns, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="b4", choices=("b0", "b4", "lite0", "unet", "unet_10"))
    parser.add_argument("--size", type=int, default=256, help="pixels; of a U-Net a multiple of 32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--mode", default="train", choices=("train", "inference"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of a contender in a round")
    parser.add_argument("--only", default="", help="contenders, with semicolons between")
    parser.add_argument("--together", action="store_true", help="set all up at the same time")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    for key in ("size", "batch", "rounds", "steps"):
        if getattr(args, key) < 1:
            parser.error(f"--{key} must be at least 1")
    if args.model.startswith("unet") and args.size % 32:
        parser.error("--size of a U-Net must be a multiple of 32")
    settings = Settings(args.model, args.size, args.batch, args.dtype, args.mode)
    contenders: list[Contender] = []
    try:
        for name in chosen(args.only, args.model):
            file, options, environment, _ = CONTENDERS[name]
            print(f"setting up {name}", flush=True)
            started = Contender(name, file, settings, options, _SHARED | environment)
            contenders.append(started)
            if not args.together:
                leave_out_failed(contenders)
        leave_out_failed(contenders)
        if not contenders:
            sys.exit("error: no contender can run here")
        times = take_turns(contenders, args.rounds, args.steps)
        facts = {
            contender.name: contender.facts | {"peak_mib": round(contender.peak_mib())}
            for contender in contenders
        }
    finally:
        for contender in contenders:
            contender.close()
    rows = summary_rows(times, args.batch)
    write_rounds(args.output, times, args.batch, vars(args), rows, contenders=facts)
    print_summary(rows)
    print("peak MiB:", {name: known["peak_mib"] for name, known in facts.items()})


if __name__ == "__main__":
    main()
