"""A contact sheet of masks over their radiographs, for review by a person."""

import heapq
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from boneage_jax.storage.safe_write import in_one_piece

_SIDE, _COLUMNS = 200, 8  # pixels of a thumbnail; thumbnails per line
_CAPTION = 30  # pixels below a thumbnail
_DOUBTFUL, _OTHERS = 40, 24  # maximum number of thumbnails
_OUTLINE, _LOOK = (0, 165, 255), (60, 60, 255)  # BGR


class ContactSheet:
    """Collects thumbnails, doubtful masks first, in bounded memory.

    Which of the other masks are shown depends only on their names, not on order or threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Heaps of (minus hash, name, reasons, thumbnail): the largest hash is dropped first.
        self._kept: dict[bool, list[tuple[int, str, str, np.ndarray]]] = {True: [], False: []}
        self._counts = {True: 0, False: 0}

    def add(self, name: str, image: np.ndarray, mask: np.ndarray, reasons: Sequence[str]) -> None:
        """Adds a radiograph, uint8 [H, W], with its mask, bool [H, W]; thread-safe."""
        doubtful, rank = bool(reasons), -zlib.crc32(os.fsencode(name))
        with self._lock:
            self._counts[doubtful] += 1
            heap, limit = self._kept[doubtful], _DOUBTFUL if doubtful else _OTHERS
            if len(heap) == limit and rank <= heap[0][0]:
                return
        item = (rank, name, "; ".join(reasons), _thumbnail(image, mask, doubtful))
        with self._lock:
            (heapq.heappushpop if len(heap) == limit else heapq.heappush)(heap, item)

    def save(self, path: Path) -> None:
        """Writes the sheet as PNG; does nothing if no mask was added."""
        shown = [item for key in (True, False) for item in sorted(self._kept[key])]
        if not shown:
            return
        lines = -(-len(shown) // _COLUMNS)
        head = 24
        sheet = np.full(
            (head + lines * (_SIDE + _CAPTION), _COLUMNS * _SIDE, 3), 255, dtype=np.uint8
        )
        doubtful = min(self._counts[True], _DOUBTFUL)
        title = (
            f"{self._counts[True]} to look at (first {doubtful} shown, red frame), "
            f"{len(shown) - doubtful} of {self._counts[False]} others"
        )
        _write(sheet, title, 6, 17, 0.5)
        for number, (_, name, reasons, thumbnail) in enumerate(shown):
            top = head + number // _COLUMNS * (_SIDE + _CAPTION)
            left = number % _COLUMNS * _SIDE
            sheet[top : top + _SIDE, left : left + _SIDE] = thumbnail
            _write(sheet, name[-28:], left + 3, top + _SIDE + 11, 0.36)
            _write(sheet, reasons[:38], left + 3, top + _SIDE + 24, 0.33)
        encoded = cv2.imencode(".png", sheet)[1].tobytes()
        with in_one_piece(path) as part:
            part.write_bytes(encoded)


def _thumbnail(image: np.ndarray, mask: np.ndarray, doubtful: bool) -> np.ndarray:
    """Returns [_SIDE, _SIDE, 3] with dimmed background and the outline of the mask."""
    height, width = image.shape
    scale = (_SIDE - 4) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    colour = cv2.cvtColor(np.where(small > 0, grey, grey // 2 + 20), cv2.COLOR_GRAY2BGR)
    outlines, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(colour, outlines, -1, _OUTLINE, 1)
    tile = np.full((_SIDE, _SIDE, 3), _LOOK if doubtful else (255, 255, 255), dtype=np.uint8)
    top, left = (_SIDE - size[1]) // 2, (_SIDE - size[0]) // 2
    tile[2:-2, 2:-2] = 255
    tile[top : top + size[1], left : left + size[0]] = colour
    return tile


def _write(sheet: np.ndarray, text: str, x: int, y: int, scale: float) -> None:
    ascii_only = text.encode("ascii", "replace").decode()  # OpenCV's fonts have nothing else
    cv2.putText(sheet, ascii_only, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (40, 40, 40), 1, 16)
