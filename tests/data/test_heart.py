from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bezoar.data import Natural, load, partition
from bezoar.data._heart import FEATURES, HOSPITALS
from bezoar.errors import DataError
from bezoar.models import make_model
from bezoar.seeding import numpy_generator

COLUMNS = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca"]
COLUMNS += ["thal", "num"]
CODES = {"cp": [1, 2, 3, 4], "restecg": [0, 1, 2], "slope": [1, 2, 3], "thal": [3, 6, 7]}


def line(rng: np.random.Generator) -> str:
    """A made-up patient; one cell in ten is missing."""
    cells: list[str] = []
    for name in COLUMNS:
        if name in CODES:
            cell = f"{rng.choice(CODES[name])}"
        elif name in ("sex", "fbs", "exang"):
            cell = f"{rng.integers(2)}.0"
        elif name == "num":
            cell = f"{rng.integers(5)}"
        elif name in ("trestbps", "chol"):
            cell = f"{rng.choice([0, rng.integers(90, 300)])}"
        else:
            cell = f"{rng.normal(50, 20):.2f}"
        cells.append("?" if name != "num" and rng.random() < 0.1 else cell)
    return ",".join(cells)


@pytest.fixture
def patients(tmp_path: Path) -> tuple[Path, dict[str, list[str]]]:
    rng = np.random.default_rng(0)
    files = {name: [line(rng) for _ in range(size)] for name, size in zip(HOSPITALS, (60, 45, 9, 130), strict=True)}
    (tmp_path / "heart-disease").mkdir()
    for name, lines in files.items():
        write(tmp_path, name, lines)
    return tmp_path, files


def write(root: Path, hospital: str, lines: list[str]) -> None:
    (root / "heart-disease" / f"processed.{hospital}.data").write_text("\n".join(lines) + "\n")


def raw(cell: str, column: str) -> float | None:
    value = None if cell == "?" else float(cell)
    return None if column in ("trestbps", "chol") and value == 0 else value


def test_features_are_encoded_as_an_oracle_does_it(patients: tuple[Path, dict[str, list[str]]]) -> None:
    root, files = patients
    data = load("heart-disease", root, verify=False)
    assert data.shape == (22,) == (len(FEATURES),)
    assert data.train.inputs.dtype == torch.float32
    rows = [(place, text.split(",")) for place, name in enumerate(HOSPITALS) for text in files[name]]
    splits = {"train": data.train, "test": data.test}

    medians = {}
    split_of = membership(data.natural["hospital"], rows)
    for column in COLUMNS[:-1]:
        known = sorted(
            value
            for (_, row), split in zip(rows, split_of, strict=True)
            if split == "train" and (value := raw(row[COLUMNS.index(column)], column)) is not None
        )
        medians[column] = known[(len(known) - 1) // 2]
    position = {"train": 0, "test": 0}
    for (_, row), split in zip(rows, split_of, strict=True):
        expected: list[float] = []
        for column in COLUMNS[:-1]:
            value = raw(row[COLUMNS.index(column)], column)
            if column in CODES:
                expected += [float(value == code) for code in CODES[column]]
            else:
                expected.append(medians[column] if value is None else value)
        i = position[split]
        assert splits[split].inputs[i].tolist() == pytest.approx(expected, rel=1e-6), row
        assert int(splits[split].targets[i]) == int(float(row[-1]) > 0)
        position[split] += 1
    assert position == {"train": len(data.train), "test": len(data.test)}


def membership(hospital_of_train: np.ndarray, rows: list[tuple[int, list[str]]]) -> list[str]:
    """Which split each patient is in: the documented draw, spelt out."""
    rng = numpy_generator(0, "heart-disease split")
    split = ["train"] * len(rows)
    for place in range(4):
        for kind in (False, True):
            mine = [i for i, (where, row) in enumerate(rows) if where == place and (row[-1] != "0") == kind]
            shuffled = [mine[i] for i in rng.permutation(len(mine))]
            for i in shuffled[: round(0.2 * len(mine))]:
                split[i] = "test"
    left = [where for (where, _), kind in zip(rows, split, strict=True) if kind == "train"]
    assert hospital_of_train.tolist() == left
    return split


def test_inputs_are_normalised_by_the_training_patients(patients: tuple[Path, dict[str, list[str]]]) -> None:
    data = load("heart-disease", patients[0], verify=False)
    whole = data.batch(data.train, slice(None)).double()
    assert whole.mean(0).abs().max() < 1e-5
    assert (whole.std(0, correction=0) - 1).abs().max() < 1e-5
    plain = load("heart-disease", patients[0], verify=False, normalise=False)
    assert torch.equal(plain.batch(plain.train, slice(None)), plain.train.inputs)


def test_a_column_that_is_missing_everywhere_is_no_division_by_zero(tmp_path: Path) -> None:
    (tmp_path / "heart-disease").mkdir()
    for hospital in HOSPITALS:
        write(tmp_path, hospital, ["50,1,?,120,?,0,?,150,0,1,?,?,?,1", "60,0,?,130,?,0,?,140,0,1,?,?,?,0"] * 5)
    data = load("heart-disease", tmp_path, verify=False)
    whole = data.batch(data.train, slice(None))
    assert torch.isfinite(whole).all()
    assert set(whole[:, FEATURES.index("ca")].tolist()) == {0.0}


def test_hospitals_and_wards_are_clients(patients: tuple[Path, dict[str, list[str]]]) -> None:
    data = load("heart-disease", patients[0], verify=False)
    by_hospital = partition(data, Natural("hospital"), seed=0)
    assert by_hospital.n == 4
    by_ward = partition(data, Natural("ward"), seed=0)
    for ward in range(by_ward.n):
        assert len(set(data.natural["hospital"][by_ward.client(ward)])) == 1
    sizes = by_ward.counts()
    # 48, 36, 7 and 104 training patients.
    assert sorted(sizes.tolist()) == sorted([48, 36, 7, 35, 35, 34])


def test_models_take_the_rows(patients: tuple[Path, dict[str, list[str]]]) -> None:
    data = load("heart-disease", patients[0], verify=False)
    inputs = data.batch(data.test, slice(None))
    for name in ("linear", "mlp"):
        assert make_model(name, data.shape, 2, seed=0)(inputs).shape == (len(data.test), 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3", "line 2: 3 cells, expected 14"),
        ("50,1,1,120,200,0,0,150,0,1,1,0,3,yes", "line 2: num is 'yes', expected one of 0, 1, 2, 3, 4"),
        ("50,1,5,120,200,0,0,150,0,1,1,0,3,0", "line 2: cp is '5', expected one of 1, 2, 3, 4"),
        ("50,2,1,120,200,0,0,150,0,1,1,0,3,0", "line 2: sex is '2'"),
        ("50,1,1,120,200,0,0,150,0,1,1,0,4,0", "line 2: thal is '4'"),
        ("50,1,1,120,200,0,0,150,0,1,1,0,3,5", "line 2: num is '5'"),
        ("50,1,1,120,200,0,0,150,0,1,1,0,3,?", r"line 2: num is '\?'"),
        ("inf,1,1,120,200,0,0,150,0,1,1,0,3,0", "line 2: age is 'inf', expected a number"),
        ("nan,1,1,120,200,0,0,150,0,1,1,0,3,0", "line 2: age is 'nan'"),
        (",1,1,120,200,0,0,150,0,1,1,0,3,0", "line 2: age is ''"),
    ],
)
def test_damaged_lines_are_named(patients: tuple[Path, dict[str, list[str]]], text: str, words: str) -> None:
    root, files = patients
    write(root, "va", [files["va"][0], text])
    with pytest.raises(DataError, match=rf"processed.va.data, {words}"):
        load("heart-disease", root, verify=False)


def test_other_files_than_the_published_and_empty_ones_are_refused(
    patients: tuple[Path, dict[str, list[str]]],
) -> None:
    root, _ = patients
    with pytest.raises(DataError, match=r"processed.cleveland.data: content is not the published file"):
        load("heart-disease", root)
    (root / "heart-disease" / "processed.hungarian.data").write_text("")
    with pytest.raises(DataError, match=r"processed.hungarian.data: there are no patients"):
        load("heart-disease", root, verify=False)


@pytest.mark.data
def test_real_patients_and_what_logistic_regression_makes_of_them(data_dir: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    if not (data_dir / "heart-disease").is_dir():
        pytest.skip(f"no heart-disease in {data_dir}")
    data = load("heart-disease", data_dir)
    assert len(data.train) + len(data.test) == 920
    assert np.bincount(data.natural["hospital"]).tolist() == [242, 235, 98, 160]
    diseased = [float(data.train.targets[data.natural["hospital"] == place].float().mean()) for place in range(4)]
    assert diseased == pytest.approx([0.46, 0.36, 0.93, 0.74], abs=0.01)
    inputs = torch.cat([data.batch(part, slice(None)) for part in (data.train, data.test)]).numpy()
    targets = torch.cat([data.train.targets, data.test.targets]).numpy()
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    pooled = cross_val_score(LogisticRegression(max_iter=2000), inputs, targets, cv=folds).mean()
    assert pooled == pytest.approx(0.814, abs=0.02)
    n = len(data.train)
    for place, expected in enumerate((0.812, 0.854, 0.927, 0.725)):
        mine = data.natural["hospital"] == place
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        model = LogisticRegression(max_iter=2000)
        own = cross_val_score(model, inputs[:n][mine], targets[:n][mine], cv=folds).mean()
        assert own == pytest.approx(expected, abs=0.05)
