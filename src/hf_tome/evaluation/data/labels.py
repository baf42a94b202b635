"""Match a data set's labels to a model's by name or by WordNet id, never by index."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files.text_files import composed, read_csv, read_lines

CLASSES_FILE = "classes.csv"
NAMES_FILE = "classnames.txt"
_WNID = re.compile(r"\bn\d{8}\b")
SHOWN = 5
"""Labels listed in an error before it says how many more there are."""


class LabelError(ValueError):
    """A label of the data set has no counterpart, or no single one, among the model's."""


@dataclass(frozen=True)
class ClassNames:
    """What a labels file says: the name of each label, for instance of each wnid, in the file's order.

    `by_index` are the labels by the number that the data may have instead, none where the file does
    not number all.
    """

    path: Path
    names: Mapping[str, str]
    by_index: Sequence[str] = ()


def read_class_names(path: str | Path) -> ClassNames:
    """Read a CSV with a column `name`, a column `wnid` or `label`, and maybe `index`, which numbers them from 0.

    The numbers count only where the data has numbers instead of labels. A text file holds names alone, a line each, in
    the order of the numbers.

    Raises:
        LabelError: there is no such file, or it lacks a column.
    """
    path = Path(path)
    try:
        if path.suffix == ".txt":
            listed = read_lines(path)
            return ClassNames(path, {name: name for name in listed}, listed)
        columns, rows = read_csv(path)
    except (OSError, ValueError) as error:
        raise LabelError(f"Cannot read the labels file {path}: {error}.") from error
    key = next((column for column in ("wnid", "label") if column in columns), None)
    if key is None or "name" not in columns:
        raise LabelError(f"{path} has the columns {columns}; a labels file needs 'name' and either 'wnid' or 'label'.")
    short = next((row for row in rows if row.get(key) is None or row.get("name") is None), None)
    if short is not None:
        raise LabelError(f"{path} has a row without a {key} or a name: {list(short.values())}.")
    by_index = _by_index(rows, key) if "index" in columns else []
    return ClassNames(path, {str(row[key]): str(row["name"]) for row in rows}, by_index)


def _by_index(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Return the labels in the order of their numbers, none where these are not 0, 1, 2, ..."""
    numbered = {(row["index"] or "").strip(): row[key] for row in rows}
    wanted = [str(number) for number in range(len(rows))]
    return [numbered[number] for number in wanted] if set(numbered) == set(wanted) else []


def find_class_names(data_folder: Path, split: str) -> ClassNames | None:
    """Read the labels file beside the class folders, beside the split folder or one folder up, if there is one."""
    for folder in (data_folder / split, data_folder, data_folder.parent):
        for name in (CLASSES_FILE, NAMES_FILE):
            if (folder / name).is_file():
                return read_class_names(folder / name)
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
        LabelError: a label of the data set is not among the model's, could be any of several, or is the same one as
            another label, without the labels file saying so.
    """
    described = class_names.names if class_names else {}
    names = dict(described) if any(label in described for label in data_labels) else {}
    for label in data_labels:
        names.setdefault(label, label)
    matches = _resolve_same_names(_look_up(names, model_labels))
    wrong = [label for label in data_labels if len(matches[label]) != 1]
    if wrong:
        raise LabelError(_explain(wrong, names, matches, model_labels, class_names))
    _refuse_shared(data_labels, names, matches, model_labels)
    return {label: matches[label][0] for label in data_labels}


def _exact(name: str) -> str:
    return composed(name)


def _normalised(name: str) -> str:
    return composed(" ".join(name.replace("_", " ").split()).casefold())


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


def _resolve_same_names(matches: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Deal out the indices of a name that the model has several times, where as many labels claim it."""
    claims = defaultdict(list)
    for label, indices in matches.items():
        if len(indices) > 1:
            claims[indices].append(label)
    resolved = dict(matches)
    for indices, labels in claims.items():
        if len(labels) == len(indices):
            resolved.update({label: (index,) for label, index in zip(labels, indices)})
    return resolved


def _refuse_shared(
    data_labels: Sequence[str],
    names: Mapping[str, str],
    matches: Mapping[str, tuple[int, ...]],
    model_labels: Mapping[Any, str],
) -> None:
    """Refuse two labels of the data that are one of the model's, unless the labels file gives both the same name."""
    first: dict[int, str] = {}
    by_index = {int(index): label for index, label in model_labels.items()}
    for label in data_labels:
        other = first.setdefault(matches[label][0], label)
        if _normalised(names[other]) != _normalised(names[label]):
            shared = by_index[matches[label][0]]
            raise LabelError(
                f"The labels {other!r} and {label!r} of the data could both be the model's {shared!r}. If they are, "
                "give both that name in a labels file with --labels; else give a model that tells them apart."
            )


def _explain(
    wrong: Sequence[str],
    names: Mapping[str, str],
    matches: Mapping[str, tuple[int, ...]],
    model_labels: Mapping[Any, str],
    class_names: ClassNames | None,
) -> str:
    described = [repr(label) if names[label] == label else f"{label!r} ({names[label]!r})" for label in wrong]
    if matches[wrong[0]]:
        problem = f"{_some(described)} could be any of several of the model's labels of the same name"
    else:
        problem = f"The model has no label {_some(described)}"
    source = f" (named by {class_names.path.name})" if class_names else ""
    advice = "Give a labels file with --labels: a CSV with the columns 'label' (or 'wnid') and 'name'"
    if class_names is None and any(_WNID.fullmatch(label) for label in wrong):
        advice = (
            f"These are wnids: put a {CLASSES_FILE} (columns index,wnid,name) beside the split folder, or use --labels"
        )
    names_of_labels = _some([repr(str(label)) for _, label in sorted(model_labels.items())])
    return f"{problem}{source}. Its {len(model_labels)} labels are {names_of_labels}. {advice}."


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
