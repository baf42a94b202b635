"""Match a data set's labels to a model's by name or by WordNet id, never by index."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLASSES_FILE = "classes.csv"
_WNID = re.compile(r"\bn\d{8}\b")
SHOWN = 5
"""Labels listed in an error before it says how many more there are."""


class LabelError(ValueError):
    """A label of the data set has no counterpart, or no single one, among the model's."""


@dataclass(frozen=True)
class ClassNames:
    """What a labels file says: the name of each label, for instance of each wnid, in the file's order."""

    path: Path
    names: Mapping[str, str]


def read_class_names(path: str | Path) -> ClassNames:
    """Read a CSV with a column `name` and a column `wnid` or `label`; other columns, such as `index`, are ignored.

    Raises:
        LabelError: there is no such file, or it lacks a column.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            key = next((column for column in ("wnid", "label") if column in columns), None)
            if key is None or "name" not in columns:
                raise LabelError(
                    f"{path} has the columns {list(columns)}; a labels file needs 'name' and either 'wnid' or 'label'."
                )
            return ClassNames(path, {row[key]: row["name"] for row in reader})
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"Cannot read the labels file {path}: {error}.") from error


def find_class_names(data_folder: Path, split: str) -> ClassNames | None:
    """Read the `classes.csv` beside the class folders, beside the split folder or one folder up, if there is one."""
    for folder in (data_folder / split, data_folder, data_folder.parent):
        if (folder / CLASSES_FILE).is_file():
            return read_class_names(folder / CLASSES_FILE)
    return None


def match_labels(
    data_labels: Sequence[str], model_labels: Mapping[Any, str], class_names: ClassNames | None = None
) -> dict[str, int]:
    """Return the model's index of each label of the data set.

    A wnid is looked up among the wnids in the model's labels. Else a label is given its name from `class_names`, if
    that lists it, and looked up among the model's labels: as it is, without regard to case and underscores, by the
    first synonym ("tench" of "tench, Tinca tinca"), and without a number at its end ("crane2", a second crane).
    Several labels of the same name (ImageNet has two cranes) are told apart by their order, which takes all of them to
    be there.

    Raises:
        LabelError: a label of the data set is not among the model's, or could be any of several.
    """
    names = dict(class_names.names) if class_names and any(label in class_names.names for label in data_labels) else {}
    for label in data_labels:
        names.setdefault(label, label)
    found = _resolve_same_names(_look_up(names, model_labels))
    wrong = [label for label in data_labels if len(found[label]) != 1]
    if wrong:
        raise LabelError(_explain(wrong, names, found, model_labels, class_names))
    return {label: found[label][0] for label in data_labels}


def _exact(name: str) -> str:
    return name


def _normalised(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _first_synonym(name: str) -> str:
    return _normalised(name.split(",")[0])


def _unnumbered(name: str) -> str:
    return re.sub(r"\s*\d+$", "", _first_synonym(name))


# From strict to lax; a laxer form counts only where no stricter one is found. ImageNet needs the order: "cardigan" is
# a jacket and "Cardigan" a dog.
_FORMS: tuple[Callable[[str], str], ...] = (_exact, _normalised, _first_synonym, _unnumbered)


def _look_up(names: Mapping[str, str], model_labels: Mapping[Any, str]) -> dict[str, tuple[int, ...]]:
    by_form: list[dict[str, list[int]]] = []
    for form in _FORMS[:3]:
        table: dict[str, list[int]] = defaultdict(list)
        for index, label in sorted(model_labels.items()):
            table[form(str(label))].append(int(index))
        by_form.append(table)
    by_form.append(by_form[-1])  # a number is taken off the data set's label, not off the model's
    by_wnid = {wnid: index for index, label in model_labels.items() for wnid in _WNID.findall(str(label))}
    return {
        label: (int(by_wnid[label]),) if label in by_wnid else _candidates(name, by_form)
        for label, name in names.items()
    }


def _candidates(name: str, by_form: Sequence[Mapping[str, list[int]]]) -> tuple[int, ...]:
    for form, table in zip(_FORMS, by_form):
        indices = table.get(form(name), [])
        if len(indices) > 1 or (indices and form is not _unnumbered):  # "class 2" is not the model's only "class"
            return tuple(indices)
    return ()


def _resolve_same_names(found: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Deal out the indices of a name that the model has several times, where as many labels claim it."""
    claims = defaultdict(list)
    for label, indices in found.items():
        if len(indices) > 1:
            claims[indices].append(label)
    resolved = dict(found)
    for indices, labels in claims.items():
        if len(labels) == len(indices):
            resolved.update({label: (index,) for label, index in zip(labels, indices)})
    return resolved


def _explain(
    wrong: Sequence[str],
    names: Mapping[str, str],
    found: Mapping[str, tuple[int, ...]],
    model_labels: Mapping[Any, str],
    class_names: ClassNames | None,
) -> str:
    described = [repr(label) if names[label] == label else f"{label!r} ({names[label]!r})" for label in wrong]
    if found[wrong[0]]:
        problem = f"{_some(described)} could be any of several of the model's labels of the same name"
    else:
        problem = f"The model has no label {_some(described)}"
    source = f" (named by {class_names.path.name})" if class_names else ""
    advice = "Give a labels file with --labels: a CSV with the columns 'label' (or 'wnid') and 'name'"
    if class_names is None and any(_WNID.fullmatch(label) for label in wrong):
        advice = (
            f"These are wnids: put a {CLASSES_FILE} (columns index,wnid,name) beside the split folder, or use --labels"
        )
    known = _some([repr(str(label)) for _, label in sorted(model_labels.items())])
    return f"{problem}{source}. Its {len(model_labels)} labels are {known}. {advice}."


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
