"""What of a config may change when a run is started again."""

from ml_collections import ConfigDict

from boneage_jax.config import flat_keys

# Keys that change how a run is executed but not what it learns; they may differ on a restart.
RUNTIME_KEYS = frozenset(
    {
        "parallel",
        "log_every",
        "max_seconds",
        "stall_seconds",
        "nonfinite",
        "nonfinite_limit",
        "compile_cache",
        "view_steps",
        "data.raw_dir",
        "data.data_dir",
        "data.threads",
        "data.buffer",
        "data.uncompressed",
    }
)

# Keys that change how a trained network reads; a restart with others evaluates once more.
READING_KEYS = frozenset({"test_flips", "test_zooms", "test_views", "test_atlas"})


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns the keys, other than runtime keys, whose values differ, as 'key: old -> new'."""
    before, after = dict(flat_keys(old)), dict(flat_keys(new))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if key not in RUNTIME_KEYS and before.get(key) != after.get(key)
    ]
