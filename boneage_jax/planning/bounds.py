"""Speed and price that published peaks of a chip allow for a planned step."""

from typing import Any

from boneage_jax.planning.chips import Chip


def bounds(plan: dict[str, Any], chip: Chip | None, dtype: str) -> dict[str, float]:
    """Images per second and chip that the published peaks of `chip` allow.

    Args:
      plan: with `batch`, `flops_per_step` and, where compiled, `bytes_accessed_per_chip` and
        `collectives`.
      chip: None where its peaks are not known; then there are no bounds.
      dtype: of the products.
    """
    if chip is None:
        return {}
    chips, images = plan["machine"]["chips"], plan["batch"]["images_per_chip"]
    found = {"compute": images / (plan["flops_per_step"] / chips / chip.flops(dtype))}
    if "main_memory_bytes_per_chip" in plan:
        found["main_memory"] = images / (plan["main_memory_bytes_per_chip"] / chip.bandwidth)
    if "bytes_accessed_per_chip" in plan:
        found["bandwidth"] = images / (plan["bytes_accessed_per_chip"] / chip.bandwidth)
    sent = sum(c["wire_bytes_per_chip"] for c in plan.get("collectives", []))
    if sent:
        found["interconnect"] = images / (sent / chip.interconnect)
    return found


def cost(plan: dict[str, Any], chip: Chip, price: float | None) -> dict[str, Any]:
    """Hours and dollars of the training steps at the slowest of the bounds."""
    per_hour = chip.price if price is None else price
    chips, steps = plan["machine"]["chips"], plan["run"]["steps_of_full_size"]
    images = steps * plan["batch"]["images"] * plan["run"]["networks"]
    hours = {name: images / speed / chips / 3600 for name, speed in plan["bounds"].items()}
    slowest = max(hours.values())
    return {
        "hours_at_bound": hours,
        "hours": slowest,
        "chip_hours": slowest * chips,
        "price_per_chip_hour": per_hour,
        "price_source": chip.price_source if price is None else "--price_per_chip_hour",
        "dollars": slowest * chips * per_hour,
    }
