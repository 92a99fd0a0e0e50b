"""Checks what a user wants beside the table of ages, before anything is compiled, and opens it."""

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boneage_jax.data.reference_table import ReferenceTable
from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import Background, UnneededMasks
from boneage_jax.inference.feature_file import FeatureFile
from boneage_jax.inference.outputs import Outputs
from boneage_jax.storage.hub import PREFIX
from boneage_jax.storage.published import fingerprint
from boneage_jax.storage.safe_write import check_replaces_nothing
from boneage_jax.storage.shipped import best_network, open_network

if TYPE_CHECKING:
    from boneage_jax.inference.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The outputs that were asked for, checked.

    Attributes:
      reference: gives standard-deviation scores.
      features: collects features.
      dicom_out, report: folders.
      references: folder of radiographs to show the nearest of in a report.
    """

    reference: ReferenceTable | None
    features: FeatureFile | None
    dicom_out: Path | None
    report: Path | None
    references: Path | None = None

    @classmethod
    def from_arguments(cls, args: Namespace) -> "Wanted":
        """Checks the arguments of these names, each may be None.

        Raises:
          InputError: a table that cannot be read, a file that cannot be written, or a package that
            is missing.
        """
        if args.dicom_out:
            from boneage_jax.inference.dicom_output import check_highdicom

            check_highdicom()
        if args.references and not args.report:
            raise InputError("--references is shown in the pages of --report; give both")
        for option in ("output", "features"):
            path = getattr(args, option)
            if path and args.reference:
                check_replaces_nothing(path, f"--{option}", [args.reference])
        if args.features and args.output and args.features.resolve() == args.output.resolve():
            raise InputError(f"--output and --features both name {args.output}; name two files")
        return cls(
            ReferenceTable(args.reference) if args.reference else None,
            FeatureFile(args.features) if args.features else None,
            args.dicom_out,
            args.report,
            args.references,
        )

    def load(
        self, workdir: str | None, masks: str, files: Sequence[Path]
    ) -> tuple["Predictor", Outputs]:
        """Loads the predictor and opens the outputs.

        Masks for a network that reads whole radiographs are for the DICOM output alone; without any
        they are those of the package's own U-Net.

        Args:
          workdir: see `load_predictor`.
          masks: likewise.
          files: all image files.

        Raises:
          InputError: see `load_predictor`; or a folder that cannot be written or holds the files.
        """
        from boneage_jax.inference.predictor import BATCH_SIZE, load_predictor

        # A full batch for one file costs 0.7 s more.
        size = 1 if len(files) == 1 and not self.references else BATCH_SIZE
        workdir, own_masks = best_network() if workdir is None else workdir, None
        try:
            predictor = load_predictor(workdir, batch_size=size, masks=masks)
        except UnneededMasks:
            if not self.dicom_out:
                raise
            predictor = load_predictor(workdir, batch_size=size)
            own_masks = Background(masks, "multiply")
        if self.dicom_out and not masks and predictor.background is None:
            own_masks = Background(best_network("hand_mask"), "multiply")
        network = workdir if workdir.startswith(PREFIX) else Path(workdir).name or workdir
        mark = fingerprint(open_network(workdir)) if self.dicom_out or self.report else ""
        return predictor, self._open(predictor, network, mark, own_masks, files)

    def _open(
        self,
        predictor: "Predictor",
        network: str,
        mark: str,
        masks: Background | None,
        files: Sequence[Path],
    ) -> Outputs:
        options = {
            "--reference": self.reference,
            "--features": self.features,
            "--dicom_out": self.dicom_out,
            "--report": self.report,
        }
        given = [option for option, value in options.items() if value]
        if given and "bone_age_months" not in predictor.columns:
            raise InputError(f"{given[0]} needs a network for bone age")
        others: list[Any] = []
        if self.dicom_out:
            from boneage_jax.inference.dicom_output import DicomOutput

            others.append(DicomOutput(self.dicom_out, files, predictor, network, mark, masks))
        if self.report:
            from boneage_jax.inference.nearest import References
            from boneage_jax.inference.radiograph_report import ReportOutput

            near = References(self.references, predictor) if self.references else None
            named = f"{network} (sha256 {mark[:12]})" if mark else network
            others.append(ReportOutput(self.report, files, predictor, named, near))
        return Outputs(self.reference, self.features, others, bool(self.references))
