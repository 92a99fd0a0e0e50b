"""Standard-deviation scores from a table of the user's own."""

import math

import pytest

from boneage_jax.data.reference_table import NO_AGE, NO_SEX, OUTSIDE, ReferenceTable
from boneage_jax.errors import InputError

TABLE = """Sex;Age months;Mean;SD
M;144;140,0;12,0
M;120;118,0;10,0
F;120;124,0;8,0
F;132;130,0;10,0
"""


@pytest.mark.parametrize(
    ("bone_age", "age", "male", "score", "reason"),
    [
        (118, 120, 1, 0.0, ""),
        (152, 144, 1, 1.0, ""),
        # Half of the way from 120 to 144: mean 129, standard deviation 11.
        (118, 132, 1, -1.0, ""),
        (145, 126, 0, 2.0, ""),
        (145, 126, -1, math.nan, NO_SEX),
        (145, 119.9, 1, math.nan, OUTSIDE),
        (145, 132.1, 0, math.nan, OUTSIDE),
        (145, math.nan, 0, math.nan, NO_AGE),
        (math.nan, 126, 0, math.nan, ""),
    ],
)
def test_scores_are_interpolated(tmp_path, bone_age, age, male, score, reason):
    path = tmp_path / "reference.csv"
    path.write_text(TABLE)
    found = ReferenceTable(path).score(bone_age, age, male)
    assert found[0] == pytest.approx(score, nan_ok=True)
    assert found[1] == reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sex,age,mean,sd\nM,1,1,1\n", "needs rows with the columns sex,age_months,mean,sd"),
        ("sex,age_months,mean,sd\n", "needs rows"),
        ("sex,age_months,mean,sd\n?,1,1,1\n", "line 2: sex='\\?' must be M or F"),
        ("sex,age_months,mean,sd\nM,1,1,0\n", "line 2: age_months and mean must be numbers"),
        ("sex,age_months,mean,sd\nM,x,1,1\n", "line 2: age_months and mean must be numbers"),
        ("sex,age_months,mean,sd\nM,1,1,1\nM,1,2,1\n", "line 3: this age appears twice"),
        ("sex,age_months,mean,sd\nM,1,1,1\n", "one age of boys"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, message):
    path = tmp_path / "reference.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        ReferenceTable(path)
