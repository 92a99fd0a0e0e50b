"""A predictor that tests can hold up, and the service around it."""

import threading

import numpy as np
import pytest


class HeldPredictor:
    """Gives the mean grey level of each image once `gate` is open; notes the sizes of its steps."""

    columns = ("mean",)
    takes_sex, judges_images, image_size = False, True, 8

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.gate, self.began = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def put_right_and_fit(self, image, stem):
        return image, ()

    def read(self, squares, male):
        self.sizes.append(len(squares))
        self.began.set()
        assert self.gate.wait(30)
        return {
            "mean": np.array([square.mean() for square in squares], np.float32),
            "note": np.array(["" for _ in squares]),
        }


@pytest.fixture
def held():
    predictor = HeldPredictor(batch_size=4)
    yield predictor
    predictor.gate.set()
