"""The RSNA data in every layout it comes in, with three, two and two images."""

import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import openpyxl

TRAIN = {1377: (180, True), 1378: (12, False), 1379: (94, False)}
VALIDATION = {1386: (168, True), 1392: (69, False)}
TEST = {4360: (168.93, "M"), 4361: (169.85, "F")}
EXPECTED = {
    "train": {k: (age, int(male)) for k, (age, male) in TRAIN.items()},
    "validation": {k: (age, int(male)) for k, (age, male) in VALIDATION.items()},
    "test": {k: (age, int(sex == "M")) for k, (age, sex) in TEST.items()},
}

TRAIN_CSV = "id,boneage,male\n" + "".join(f"{k},{a},{m}\n" for k, (a, m) in TRAIN.items())
VALIDATION_CSV = "Image ID,male,Bone Age (months)\n" + "".join(
    f"{k},{str(m).upper()},{a}\n" for k, (a, m) in VALIDATION.items()
)


def png(key: int) -> bytes:
    """An image that only this id has: 12 x 9 or so, filled with a grey level of its own."""
    image = np.full((12 + key % 3, 9), key % 251, np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def truth_xlsx() -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Case ID", "Sex", "Ground truth bone age (months)"])
    for key, (age, sex) in TEST.items():
        sheet.append([key, sex, age])
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def images(folder: str, keys) -> dict[str, bytes]:
    return {f"{folder}/{key}.png": png(key) for key in keys}


TRAIN_SET = images("boneage-training-dataset", TRAIN)
NESTED = {  # the validation images lie in two zips inside the zip
    "Bone Age Validation Set/Validation Dataset.csv": VALIDATION_CSV.encode(),
    "Bone Age Validation Set/boneage-validation-dataset-1.zip": zipped(
        images("boneage-validation-dataset-1", [1386])
        | {"__MACOSX/boneage-validation-dataset-1/._1386.png": b"\0\5\x16\7"}
    ),
    "Bone Age Validation Set/boneage-validation-dataset-2.zip": zipped(
        images("boneage-validation-dataset-2", [1392])
    ),
}
TEST_SET = images("Test Set Images", TEST) | {"Bone age ground truth.xlsx": truth_xlsx()}
RSNA_ZIPS = {
    "Bone+Age+Training+Set.zip": zipped(TRAIN_SET),
    "Bone+Age+Training+Set+Annotations.zip": zipped({"train.csv": TRAIN_CSV.encode()}),
    "Bone+Age+Validation+Set.zip": zipped(NESTED),
    "Bone+Age+Test+Set.zip": zipped(TEST_SET),
}
KAGGLE = (
    images("boneage-training-dataset/boneage-training-dataset", TRAIN)
    | images("boneage-test-dataset/boneage-test-dataset", TEST)
    | {
        "boneage-training-dataset.csv": TRAIN_CSV.encode(),
        "boneage-test-dataset.csv": b"Case ID,Sex\n4360,M\n4361,F\n",
    }
)
UNPACKED = TRAIN_SET | {"train.csv": TRAIN_CSV.encode()} | NESTED | TEST_SET
FULLY_UNPACKED = {
    **{f"Bone Age Training Set/{name}": data for name, data in TRAIN_SET.items()},
    "Bone Age Training Set Annotations/train.csv": TRAIN_CSV.encode(),
    **images("Bone Age Validation Set/boneage-validation-dataset-1", [1386]),
    **images("Bone Age Validation Set/boneage-validation-dataset-2", [1392]),
    "Bone Age Validation Set/Validation Dataset.csv": VALIDATION_CSV.encode(),
    **{f"Bone Age Test Set/{name}": data for name, data in TEST_SET.items()},
}
FLAT = {
    **{f"data/rsna/all/{Path(name).name}": data for name, data in TRAIN_SET.items()},
    "data/rsna/all/labels.csv": TRAIN_CSV.encode(),
}

ALL = ("train", "validation", "test")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
