"""Text form of a plan; every number names who counted it."""

from typing import Any

from boneage_jax.data.inputs import describe_shape

_SOURCES = {
    "ours": "our count",
    "compiler": "compiler's count",
    "bound": "bound, not a measurement",
    "paper": "on paper",
}


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """Returns the lines that `python -m boneage_jax.plan` prints for a plan of `plan_run`."""
    machine, batch, data = plan["machine"], plan["batch"], plan["data"]
    config = plan["config"]
    shape = describe_shape(data["input_shape"])
    lines = [
        f"{config['model']['name']} at {shape}, {config['model']['dtype']}, "
        f"{config['parallel']}, on {machine['topology']}: {_what(machine)}",
        _line("fits", *_fits(plan)),
        _line(
            "batch",
            f"{batch['images']} images, {batch['images_per_chip']} per chip"
            + (f", in {batch['micro_batches']} parts" if batch["micro_batches"] > 1 else ""),
        ),
        *_memory(plan),
        *_arithmetic(plan),
        *_collectives(plan),
        *_speeds(plan),
        *_cost(plan),
        _line("chosen for it", ", ".join(f"{k}={v}" for k, v in plan["forced"].items())),
    ]
    unknown = _unknown(plan)
    if unknown:
        lines.append(_line("not known", unknown))
    return lines


def _line(name: str, text: str, source: str = "") -> str:
    return f"{name:<16}{text}" + (f"  [{_SOURCES[source]}]" if source else "")


def _what(machine: dict[str, Any]) -> str:
    peaks = machine.get("peaks")
    if not peaks:
        return f"{machine['chips']} devices whose peaks are not in boneage_jax/planning/chips.py"
    return (
        f"{machine['chips']} x {peaks['name']} of {peaks['bfloat16'] / 1e12:.0f} TFLOP/s bfloat16, "
        f"{peaks['bandwidth'] / 1e9:.0f} GB/s, {peaks['memory'] / 1e9:.0f} GB ({peaks['source']})"
    )


def _fits(plan: dict[str, Any]) -> tuple[str, str]:
    if "fits" not in plan:
        return "not known: there is no CUDA compiler without a GPU", ""
    if plan["fits"]:
        return "yes, it compiles within the memory of a chip", "compiler"
    return f"NO: {plan['does_not_fit']}", "compiler"


def _memory(plan: dict[str, Any]) -> list[str]:
    lines = []
    memory = plan.get("memory_per_chip")
    if memory:
        parts = ", ".join(
            f"{name.replace('_', ' ')} {_gigabytes(memory[key])}"
            for name, key in (
                ("arguments", "argument"),
                ("output", "output"),
                ("donated (in both)", "alias"),
                ("temporary", "temp"),
                ("program", "generated_code"),
            )
        )
        lines.append(_line("memory / chip", f"{_gigabytes(memory['total'])}: {parts}", "compiler"))
    lines.append(
        _line(
            "state",
            f"{_gigabytes(plan['state_bytes_per_chip'])} per chip for {plan['parameters']:,} "
            f"parameters; a batch is {_gigabytes(plan['batch_bytes'])}",
            "ours",
        )
    )
    return lines


def _arithmetic(plan: dict[str, Any]) -> list[str]:
    images = plan["batch"]["images"]
    flops = plan["flops_per_step"]
    lines = [
        _line(
            "FLOPs / step",
            f"{_flops(flops)}, {_flops(flops / images)} per image",
            "ours",
        )
    ]
    if "compiler_flops_per_chip" in plan:
        theirs = plan["compiler_flops_per_chip"] * plan["machine"]["chips"]
        bytes_ = plan["bytes_accessed_per_chip"]
        lines.append(_line("", f"{_flops(theirs)}, element-wise ones too", "compiler"))
        lines.append(
            _line(
                "bytes / step",
                f"{_gigabytes(bytes_)} per chip read and written, on-chip memory included",
                "compiler",
            )
        )
    if "main_memory_bytes_per_chip" in plan:
        main = _gigabytes(plan["main_memory_bytes_per_chip"])
        lines.append(_line("", f"{main} of it to and from main memory, read from its text", "ours"))
    return lines


def _collectives(plan: dict[str, Any]) -> list[str]:
    lines = [
        _line(
            "collectives",
            f"{c['count']} x {c['kind']}, {c['payload_bytes'] / 1e6:.4g} MB per step; a ring sends "
            f"{c['wire_bytes_per_chip'] / 1e6:.4g} MB per chip",
            "compiler",
        )
        for c in plan.get("collectives", [])
    ]
    if plan["machine"]["chips"] > 1:
        paper = plan["all_reduce_on_paper"] / 1e6
        lines.append(
            _line(
                "" if lines else "collectives",
                f"gradients and BatchNorm statistics are {paper:.4g} MB",
                "paper",
            )
        )
    return lines


def _speeds(plan: dict[str, Any]) -> list[str]:
    how = {
        "compute": "at the peak of its products",
        "main_memory": "at the bandwidth of its main memory",
        "bandwidth": "if every byte counted above went to and from its memory",
        "interconnect": "if nothing but its links took time",
    }
    return [
        _line("images/s / chip" if not n else "", f"{speed:.4g} {how[name]}", "bound")
        for n, (name, speed) in enumerate(plan["bounds"].items())
    ]


def _cost(plan: dict[str, Any]) -> list[str]:
    run, data = plan["run"], plan["data"]
    networks = f" x {run['networks']} networks" if run["networks"] > 1 else ""
    lines = [
        _line(
            "run",
            f"{run['epochs']:.4g} epochs of {data['train_images']:,} images ({data['source']}): "
            f"{run['steps']:,} steps{networks}, {_flops(run['train_flops'])}",
            "ours",
        )
    ]
    if "evaluation_flops" in run:
        share = run["evaluation_flops"] / run["train_flops"]
        lines.append(_line("", f"its evaluations add {share:.1%} FLOPs, not counted below", "ours"))
    cost = plan.get("cost")
    if cost:
        each = ", ".join(
            f"{k.replace('_', ' ')} {_duration(v)}" for k, v in cost["hours_at_bound"].items()
        )
        lines += [
            _line("time", f"{_duration(cost['hours'])}, the longest of {each}", "bound"),
            _line(
                "price",
                f"${cost['dollars']:.2f}: {cost['chip_hours']:.3g} chip-hours at "
                f"${cost['price_per_chip_hour']:.2f} ({cost['price_source']})",
                "bound",
            ),
        ]
    return lines


def _unknown(plan: dict[str, Any]) -> str:
    if "fits" not in plan:
        return (
            "whether it fits, temporary memory, bytes moved and collectives; "
            "the step could be lowered for CUDA, no more. Time and price are those of the "
            "arithmetic alone; NVIDIA's EfficientNet-B4 reaches 4 % of the peak of an A100 "
            "(docs/costs.md)"
        )
    if not plan["fits"]:
        return "bytes moved and collectives, since the compiler gave up"
    return ""


def _duration(hours: float) -> str:
    for unit, size in (("hours", 1), ("minutes", 60)):
        if hours * size >= 1:
            return f"{hours * size:.3g} {unit}"
    return f"{hours * 3600:.3g} seconds"


def _flops(count: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count / 1e9:.4g} GFLOP"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
