"""Upper bounds on speed, and lower bounds on cost, from the published peaks of a chip."""

from typing import Any

from boneage_jax.planning.chips import Chip


def bounds(plan: dict[str, Any], chip: Chip | None, dtype: str) -> dict[str, float]:
    """Returns upper bounds on images per second and chip, one per published peak of `chip`.

    Args:
      plan: holds `batch`, `flops_per_step` and, if compiled, `main_memory_bytes_per_chip`,
        `bytes_accessed_per_chip` and `collectives`.
      chip: the chip; None if its peaks are unknown, which gives no bounds.
      dtype: dtype of the matrix products, bfloat16 or float32.

    Returns:
      Images per second and chip under the key of each limit (`compute`, `main_memory`, `bandwidth`,
      `interconnect`).
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
    """Returns hours and US dollars of all training steps at the slowest of the bounds."""
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
