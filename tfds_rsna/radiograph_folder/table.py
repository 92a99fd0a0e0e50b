"""Reads the CSV of a radiograph folder: id, age, sex and split of each image."""

import csv
import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from boneage_jax.data.files import find_images
from boneage_jax.errors import InputError

MONTHS_PER = {"months": 1.0, "years": 12.0, "days": 12 / 365.25}
# A DICOM age string such as 058Y (PS3.5, value representation AS) carries its own unit.
_DICOM_AGE = re.compile(r"(\d{3})([DWMY])")
_DICOM_MONTHS = {"D": 12 / 365.25, "W": 7 * 12 / 365.25, "M": 1.0, "Y": 12.0}
MAX_MONTHS = 1440.0  # 120 years, so that radiographs of adults are accepted too

_MALE = {"1", "1.0", "m", "male", "true", "boy", "man"}
_FEMALE = {"0", "0.0", "f", "female", "false", "girl", "woman"}
_UNKNOWN = {"", "-1", "u", "o", "unknown", "na", "n/a", "nan", "none", "null"}
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

# Names are compared in lower case, letters and digits only; the first match is taken.
_FILE_NAMES = (
    "file", "filename", "filepath", "path", "image", "imagefile", "imagefilename", "imagename",
    "imagepath", "imageindex", "imageid", "caseid", "id",
)  # fmt: skip
_AGE_NAMES = ("boneage", "skeletalage", "age", "patientage", "chronologicalage")
_SEX_NAMES = ("sex", "gender", "male", "ismale", "patientsex", "patientgender")
_ID_NAMES = ("patientid", "subjectid", "personid", "patient", "subject", "id")
_UNIT = re.compile(r"^(.+?)(?:in)?(month|year|yr|day)s?$")
_UNIT_WORDS = {"month": "months", "year": "years", "yr": "years", "day": "days"}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns to read; "" means guess it (`id`, `sex`, `split` may be absent)."""

    file: str = ""
    age: str = ""
    sex: str = ""
    split: str = ""
    id: str = ""
    age_unit: str = ""


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """One row: `key` is the path below the raw folder, `age` is in months, `male` 1, 0 or -1."""

    key: str
    path: Path
    id: str
    age: float
    male: int
    split: str
    line: int


def find_csv(raw_dir: Path, name: str) -> Path:
    """Returns the CSV called `name` in `raw_dir`, or the only one there.

    Raises:
      InputError: the folder or the CSV does not exist, or there are several to choose from.
    """
    if not raw_dir.is_dir():
        raise InputError(f"raw_dir {raw_dir} is not a folder")
    if name:
        if not (raw_dir / name).is_file():
            raise InputError(f"csv: {raw_dir / name} does not exist")
        return raw_dir / name
    found = sorted(p for p in raw_dir.iterdir() if p.suffix.lower() == ".csv" and p.name[0] != ".")
    if len(found) != 1:
        seen = ", ".join(p.name for p in found) or "none"
        raise InputError(f"{raw_dir} should hold one CSV file, found {seen}; name it with csv=FILE")
    return found[0]


def guess_columns(header: Iterable[str], asked: Columns, path: Path) -> Columns:
    """Completes the column names of a CSV from its header, and the unit of age.

    The unit comes from `asked`, else from the column's name (`age_years`), else it is months.

    Raises:
      InputError: a requested column is absent, none is recognised, or the unit is unknown.
    """
    names = [name for name in header if name.strip()]
    known = {_plain(name): name for name in reversed(names)}
    by_stem: dict[str, str] = {}
    for name in names:
        match = _UNIT.match(_plain(name))
        by_stem.setdefault(match[1] if match else _plain(name), name)

    def pick(
        kind: str, wanted: str, guesses: Iterable[str], where: Mapping[str, str], need: bool
    ) -> str:
        if wanted:
            if wanted in names or _plain(wanted) in known:
                return wanted if wanted in names else known[_plain(wanted)]
        else:
            for guess in guesses:
                if guess in where:
                    return where[guess]
            if not need:
                return ""
        problem = f"has no column {wanted!r}" if wanted else f"has no recognisable {kind} column"
        raise InputError(
            f"{path} {problem}; it has {', '.join(map(repr, names)) or 'no column'}; "
            f"name one with {kind}_column=NAME"
        )

    file = pick("file", asked.file, _FILE_NAMES, known, True)
    age = pick("age", asked.age, _AGE_NAMES, by_stem, True)
    others = {plain: name for plain, name in known.items() if name not in (file, age)}
    unit = asked.age_unit
    if not unit:
        match = _UNIT.match(_plain(age))
        unit = _UNIT_WORDS[match[2]] if match else "months"
    if unit not in MONTHS_PER:
        raise InputError(f"age_unit is {unit!r}; choose {', '.join(MONTHS_PER)}")
    return Columns(
        file=file,
        age=age,
        sex=pick("sex", asked.sex, _SEX_NAMES, others, False),
        split=pick("split", asked.split, ("split",), others, False),
        id=pick("id", asked.id, _ID_NAMES, others, False),
        age_unit=unit,
    )


def read_table(path: Path, raw_dir: Path, asked: Columns) -> tuple[list[Radiograph], Columns]:
    """Reads and checks all rows of a CSV.

    Args:
      path: the CSV: UTF-8, with a header, separated by commas, semicolons or tabs.
      raw_dir: folder of the images. A file name without folder is also searched for below it, and a
        name without suffix (an id) matches the stem of an image.
      asked: column names, where known.

    Returns:
      (rows sorted by `key` without duplicates, columns that were used). Without an id column the id
      of a row is the stem of its file.

    Raises:
      InputError: unreadable CSV, missing column or file, a file outside `raw_dir`, an age that is
        not a number within 0 and 1440 months, an unknown sex or split, or contradicting rows of one
        file or one id.
    """
    header, lines = _read_cells(path)
    columns = guess_columns(header, asked, path)
    find = _finder(raw_dir)
    inverted = bool(columns.sex) and "female" in _plain(columns.sex)
    rows, missing = [], []
    for number, cells in lines:
        place = f"{path} line {number}"
        name = cells[columns.file].strip()
        image = find(name, place)
        if image is None:
            missing.append(f"{name!r} (line {number})")
            continue
        rows.append(
            Radiograph(
                key=image.relative_to(raw_dir).as_posix(),
                path=image,
                id=(cells[columns.id].strip() if columns.id else "") or image.stem,
                age=_age(cells[columns.age], columns.age_unit, place),
                male=_sex(cells[columns.sex], inverted, place) if columns.sex else -1,
                split=_split(cells[columns.split], place) if columns.split else "",
                line=number,
            )
        )
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(lines)} images are not in {raw_dir}, first "
            f"{missing[0]}; correct column {columns.file!r} or name another with file_column=NAME"
        )
    if not rows:
        raise InputError(f"{path} has a header but no row")
    return _consistent(rows, path, by_person=bool(columns.id)), columns


def _read_cells(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, cells) for cells in reader if any(c.strip() for c in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} as a UTF-8 CSV: {error}") from error
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise InputError(f"{path} has two columns called {doubled[0]!r}; rename one")
    for number, cells in rows:
        if len(cells) != len(header):
            raise InputError(
                f"{path} line {number} has {len(cells)} cells, its header {len(header)}"
            )
    return header, [(number, dict(zip(header, cells, strict=True))) for number, cells in rows]


def _finder(raw_dir: Path) -> Callable[[str, str], Path | None]:
    """Returns a function that finds the image of a cell; walks the tree at most once, if needed."""
    index: dict[str, list[Path]] = defaultdict(list)

    def list_images() -> None:
        for file in find_images([raw_dir]):
            index[file.name].append(file)
            index[file.stem].append(file)

    def find(name: str, place: str) -> Path | None:
        if not name:
            raise InputError(f"{place} names no image")
        text = name.replace("\\", "/")
        relative = PurePosixPath(text)
        if relative.is_absolute() or PureWindowsPath(name).drive or ".." in relative.parts:
            raise InputError(f"{place}: {name!r} leaves raw_dir; give a path below {raw_dir}")
        if (raw_dir / relative).is_file():
            return raw_dir / relative
        if len(relative.parts) > 1:
            return None
        if not index:
            list_images()
        found = index.get(text, [])
        if len(found) > 1:
            shown = " and ".join(p.relative_to(raw_dir).as_posix() for p in found[:2])
            raise InputError(f"{place}: {name!r} may be {shown}; give the path below {raw_dir}")
        return found[0] if found else None

    return find


def _age(cell: str, unit: str, place: str) -> float:
    text = cell.strip()
    dicom = _DICOM_AGE.fullmatch(text.upper())
    try:
        months = (
            float(dicom[1]) * _DICOM_MONTHS[dicom[2]] if dicom else float(text) * MONTHS_PER[unit]
        )
    except ValueError:
        months = math.nan
    if math.isnan(months):
        raise InputError(f"{place}: age {cell!r} is not a number; correct or remove the row")
    if not 0 <= months <= MAX_MONTHS:
        raise InputError(
            f"{place}: age {cell!r} is {months:g} months (unit {unit}), outside 0 to "
            f"{MAX_MONTHS:g}; correct it or set age_unit"
        )
    return months


def _sex(cell: str, inverted: bool, place: str) -> int:
    text = cell.strip().lower()
    if text in _UNKNOWN:
        return -1
    if text in _MALE or text in _FEMALE:
        # In a column called `female` a yes means female; words such as male keep their meaning.
        code = text[0] in "01" or text in ("true", "false")
        return int((text in _MALE) != (inverted and code))
    raise InputError(f"{place}: sex {cell!r} is not M, F, male, female, 1, 0, true, false or blank")


def _split(cell: str, place: str) -> str:
    name = _SPLITS.get(cell.strip().lower())
    if name is None:
        raise InputError(f"{place}: split {cell!r} is not train, validation or test")
    return name


def _consistent(rows: list[Radiograph], path: Path, *, by_person: bool) -> list[Radiograph]:
    """Drops duplicate rows; rejects rows that contradict each other or leak between splits."""

    def clash(kind: str, name: str, a: Radiograph, b: Radiograph, what: str, remedy: str) -> None:
        if getattr(a, what) != getattr(b, what):
            raise InputError(
                f"{path} lines {a.line} and {b.line}: {kind} {name!r} has {what} "
                f"{getattr(a, what)} and {getattr(b, what)}; {remedy}"
            )

    files: dict[str, Radiograph] = {}
    people: dict[str, Radiograph] = {}
    for row in rows:
        same = files.setdefault(row.key, row)
        for what in ("id", "age", "male", "split"):
            clash("file", row.key, same, row, what, "keep the right row")
        # A person may be imaged at several ages; without an id column, equal stems must agree.
        first = people.setdefault(row.id, row)
        for what in ("male", "split") if by_person else ("age", "male", "split"):
            clash("id", row.id, first, row, what, "correct it or set id_column")
    return sorted(files.values(), key=lambda row: row.key)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
