"""One measured line of a benchmark, and what follows from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from boneage_jax.benchmarking.peaks import Peaks, position
from boneage_jax.benchmarking.timing import summarize

# What makes two lines of two benchmarks the same measurement.
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
      case, name: what was measured, e.g. train and step.
      model, image_size (pixels), batch_size (images over all devices), dtype, parallel, devices:
        of what.
      unit: s or bytes, of the samples; less is better in both.
      samples: one per repetition.
      images: that a sample takes in, 0 where images per second mean nothing.
      flops: counted FLOPs of a sample, 0 for none.
      bytes_accessed: memory traffic of a sample as XLA counts it for the compiled program, over
        all devices; 0 where it is not known.
      note: what else is to be said, as numbers or words by name.
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
        """The line as it is written to JSON: what is not known or means nothing is absent.

        Args:
          peaks: of the devices of this line.
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
