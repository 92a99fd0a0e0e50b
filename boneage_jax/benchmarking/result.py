"""One measured line of a benchmark and the values derived from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from boneage_jax.benchmarking.peaks import Peaks, position
from boneage_jax.benchmarking.timing import summarize

# Lines of two benchmarks with equal values here are the same measurement.
KEY = (
    *("case", "name", "model", "image_size", "batch_size", "dtype", "parallel", "devices"),
    "unit",
)
COLUMNS = (
    *KEY,
    *("n", "median", "low", "high"),
    *("images_per_second", "images_per_second_low", "images_per_second_high"),
    *("flops", "flops_per_second", "peak_share", "bytes_accessed", "intensity", "roof_share"),
    "note",
)
_BY_TRAFFIC = ("bytes_accessed", "intensity", "roof_share")


@dataclasses.dataclass(frozen=True)
class Result:
    """A line of a benchmark.

    Attributes:
      case: the case, e.g. train.
      name: what was measured in it, e.g. step.
      model: name of the model.
      image_size: pixels per side.
      batch_size: images over all devices.
      dtype: compute dtype of the model.
      parallel: jit or pmap.
      devices: number of devices.
      samples: one measurement per repetition; smaller is better.
      unit: unit of the samples, s or bytes.
      images: images per sample, 0 if images per second is meaningless.
      flops: counted FLOPs per sample, 0 for none.
      bytes_accessed: memory traffic per sample as XLA counts it for the compiled program, over all
        devices; 0 if unknown.
      note: further values, numbers or text by name.
    """

    case: str
    name: str
    model: str
    image_size: int
    batch_size: int
    dtype: str
    parallel: str
    devices: int
    samples: list[float]
    unit: str = "s"
    images: int = 0
    flops: int = 0
    bytes_accessed: float = 0.0
    note: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self, peaks: Peaks | None) -> dict[str, Any]:
        """Returns the line as it is written to JSON; unknown and meaningless values are absent.

        Args:
          peaks: peaks of the devices of this line.
        """
        row = {key: getattr(self, key) for key in KEY}
        spread = summarize(self.samples)
        row |= {"n": spread.n, "median": spread.median, "low": spread.low, "high": spread.high}
        if self.images:
            row["images_per_second"] = self.images / spread.median
            row["images_per_second_low"] = self.images / spread.high
            row["images_per_second_high"] = self.images / spread.low
        if self.flops and peaks:
            where = position(self.flops, self.bytes_accessed, spread.median, peaks)
            row |= {"flops": self.flops, "bytes_accessed": self.bytes_accessed}
            row |= dataclasses.asdict(where)
            if not self.bytes_accessed:
                row = {key: value for key, value in row.items() if key not in _BY_TRAFFIC}
        return row | {"note": dict(self.note), "samples": list(self.samples)}
