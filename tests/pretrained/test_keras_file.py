"""Hostile and damaged weight files of Keras."""

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np

import boneage_jax
from boneage_jax.pretrained.keras_file import open_keras
from tests.support.weight_files import refused


def keras_stem(path: Path) -> h5py.File:
    file = h5py.File(path, "w")
    file["stem_conv/stem_conv/kernel:0"] = np.zeros((3, 3, 3, 32), np.float32)
    return file


def read_keras(path):
    with open_keras(path, "efficientnet_b0") as weights:
        return {name: weight.read() for name, weight in weights.items()}


def test_hostile_keras_files_are_refused(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel:0"] = np.ones(3, np.float32)
    cases = {}
    for kind in ("external", "soft", "storage", "virtual", "chunk", "cycle", "twice"):
        path = tmp_path / f"{kind}.h5"
        with keras_stem(path) as file:
            group = file.create_group("stem_bn/stem_bn")
            if kind == "external":
                group["gamma:0"] = h5py.ExternalLink(str(secret), "kernel:0")
            elif kind == "soft":
                group["gamma:0"] = h5py.SoftLink("/stem_conv/stem_conv/kernel:0")
            elif kind == "storage":
                outside = [(str(secret), 0, 12)]
                group.create_dataset("gamma:0", (3,), "<f4", external=outside)
            elif kind == "virtual":
                layout = h5py.VirtualLayout((3,), "<f4")
                layout[:] = h5py.VirtualSource(str(secret), "kernel:0", (3,))
                group.create_virtual_dataset("gamma:0", layout)
            elif kind == "chunk":
                group.create_dataset("gamma:0", (3,), "<f4", chunks=(9,), maxshape=(None,))
            elif kind == "cycle":
                group["again"] = group
            else:
                file["other/stem_conv/kernel:0"] = np.zeros(3, np.float32)
        cases[kind] = path
    refused(read_keras, cases["external"], match="link to elsewhere")
    refused(read_keras, cases["soft"], match="link to elsewhere")
    refused(read_keras, cases["storage"], match="in another file")
    refused(read_keras, cases["virtual"], match="in another file")
    refused(read_keras, cases["chunk"], match="in a way that Keras does not")
    refused(read_keras, cases["cycle"], match="more groups")
    refused(read_keras, cases["twice"], match="twice")


def test_damaged_keras_files_are_refused(tmp_path):
    def load_b0(path):
        return boneage_jax.load_pretrained("efficientnet_b0", path)

    path = tmp_path / "b0.h5"
    keras_stem(path).close()
    assert str(path) in refused(load_b0, path, match="lack")
    path.write_bytes(path.read_bytes()[:-200])
    refused(load_b0, path, match="no sound Keras file")
    with h5py.File(tmp_path / "resnet.h5", "w") as file:
        file["conv1/conv1/kernel:0"] = np.zeros(3)
    refused(load_b0, tmp_path / "resnet.h5", match="no EfficientNet of keras.applications")
    bomb = tmp_path / "bomb.keras"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10_000_000))
    refused(load_b0, bomb, match="beyond reason")
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("model.weights.h5", b"nothing")
    refused(load_b0, bomb, match="no sound Keras file")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["stem_conv/stem_conv/kernel:0"] = np.zeros((1, 1), np.float32)
        file.create_dataset("stem_bn/stem_bn/gamma:0", (2**40,), "<f4")
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("model.weights.h5", buffer.getvalue())
    refused(load_b0, bomb, match="lack|shape")
