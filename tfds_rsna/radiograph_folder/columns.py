"""Finds the table of a radiograph folder, and its columns of file, age, sex, split and id."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from boneage_jax.data.file_names import is_hidden
from boneage_jax.data.label_table import (
    FILE_COLUMNS,
    SEX_COLUMNS,
    TABLE_SUFFIXES,
    plain_name,
    read_table,
)
from boneage_jax.errors import InputError

MONTHS_PER = {"months": 1.0, "years": 12.0, "days": 12 / 365.25, "weeks": 7 * 12 / 365.25}

# Names of columns in the form of `plain_name`; the first that a table has is taken.
_AGE_NAMES = ("boneage", "skeletalage", "groundtruthboneage", "age")
_OTHER_AGES = ("chronologicalage", "patientage", "patientsage")  # not of the bones
_ID_NAMES = ("patientid", "subjectid", "personid", "patient", "subject", "id")
_UNIT = re.compile(r"(.*?)(?:in)?(month|year|yr|week|day)s?")
_UNIT_WORDS = {
    **{"month": "months", "mon": "months", "mo": "months", "m": "months"},
    **{"year": "years", "yr": "years", "yrs": "years", "y": "years"},
    **{"week": "weeks", "w": "weeks", "day": "days", "d": "days"},
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns to read; "" means guess it (`id`, `sex`, `split` may be absent).

    `sex_values` holds codes of the sex by `male`, `female`, `unknown`, e.g. `male=1,female=2`;
    several of one kind are separated by bars.
    """

    file: str = ""
    age: str = ""
    sex: str = ""
    split: str = ""
    id: str = ""
    age_unit: str = ""
    sex_values: str = ""


def find_table(raw_dir: Path, name: str, asked: Columns) -> tuple[Path, list[str]]:
    """Returns the table called `name` in `raw_dir`, or the only one there with fitting columns.

    Returns:
      (its path, names of other tables that are ignored).

    Raises:
      InputError: the folder or the table does not exist, or there are several to choose from.
    """
    if not raw_dir.is_dir():
        raise InputError(f"raw_dir {raw_dir} is not a folder")
    if name:
        if not (raw_dir / name).is_file():
            raise InputError(f"csv: {raw_dir / name} does not exist")
        return raw_dir / name, []
    found = sorted(
        path
        for path in raw_dir.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES and path.is_file() and not is_hidden(path.name)
    )
    tables = [path for path in found if path.suffix.lower() != ".txt"]
    # Where none fits, reading the only one tells what it lacks.
    chosen = [path for path in found if _fits(path, asked)] or tables
    if len(chosen) != 1:
        seen = ", ".join(path.name for path in chosen) or "none"
        raise InputError(
            f"{raw_dir} should hold one CSV or XLSX table, found {seen}; name it with csv=FILE"
        )
    return chosen[0], [path.name for path in tables if path != chosen[0]]


def _fits(path: Path, asked: Columns) -> bool:
    try:
        guess_columns(read_table(path).header, asked, path)
    except InputError:
        return False
    return True


def guess_columns(header: Iterable[str], asked: Columns, path: Path) -> Columns:
    """Completes the column names of a table from its header, and the unit of age.

    The unit comes from `asked`, else from the column's name (`age_years`), else it is months.

    Raises:
      InputError: a requested column is absent, none is recognised, or the unit is unknown.
    """
    names = [name for name in header if name.strip()]
    known = {plain_name(name): name for name in reversed(names)}
    by_stem = {split_unit(name)[0]: name for name in reversed(names)}

    def pick(
        kind: str, wanted: str, guesses: Iterable[str], where: Mapping[str, str], need: bool
    ) -> str:
        if wanted:
            if wanted in names or plain_name(wanted) in known:
                return wanted if wanted in names else known[plain_name(wanted)]
        else:
            for guess in guesses:
                if guess in where:
                    return where[guess]
            if not need:
                return ""
        problem = f"has no column {wanted!r}" if wanted else f"has no recognisable {kind} column"
        other = next((by_stem[age] for age in _OTHER_AGES if age in by_stem), "")
        hint = f" ({other!r} is no bone age)" if kind == "age" and other and not wanted else ""
        if kind == "age" and (unit := by_stem.get("")) and not wanted:  # a column called years
            hint = f" (age_column={unit} reads {unit!r} in that unit; age_unit names another)"
        raise InputError(
            f"{path} {problem}; it has {', '.join(map(repr, names)) or 'no column'}{hint}; "
            f"name one with the option {kind}_column"
        )

    file = pick("file", asked.file, FILE_COLUMNS, known, True)
    age = pick("age", asked.age, _AGE_NAMES, by_stem, True)
    others = {plain: name for plain, name in known.items() if name not in (file, age)}
    unit = asked.age_unit or split_unit(age)[1] or "months"
    if unit not in MONTHS_PER:
        raise InputError(f"age_unit is {unit!r}; choose {', '.join(MONTHS_PER)}")
    return Columns(
        file=file,
        age=age,
        sex=pick("sex", asked.sex, SEX_COLUMNS, others, False),
        split=pick("split", asked.split, ("split",), others, False),
        id=pick("id", asked.id, _ID_NAMES, others, False),
        age_unit=unit,
        sex_values=asked.sex_values,
    )


def split_unit(name: str) -> tuple[str, str]:
    """Returns the plain name of a column without its unit, and the unit, "" if it names none."""
    plain = plain_name(name)
    if match := _UNIT.fullmatch(plain):
        return match[1], _UNIT_WORDS[match[2]]
    *first, last = re.split(r"[\W_]+", re.sub(r"[\W_]+$", "", name.casefold()))
    if first and last in _UNIT_WORDS:
        return plain_name("".join(first)), _UNIT_WORDS[last]
    return plain, ""
