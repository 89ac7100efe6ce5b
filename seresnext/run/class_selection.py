"""The classes of a validation: which output of the model each class folder of the data stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seresnext.data.readers import shown_classes
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.errors import DataError, UsageError, printable
from seresnext.files import read_lines


@dataclass(frozen=True)
class ClassSelection:
    """The outputs of the model that a validation uses.

    labels: the output of each class folder. columns: the outputs that count, ascending, or None for all. The others are
    left out before the softmax, as usual for ImageNet-A and ImageNet-R. names: of the outputs that count.
    """

    labels: list[int]
    columns: list[int] | None
    names: list[str]
    notice: str | None = None


def select_classes(
    folders: Sequence[str],
    where: str,
    num_classes: int,
    model_names: Sequence[str] | None,
    class_map: Mapping[str, str] | None = None,
) -> ClassSelection:
    """Return the outputs for the class folders of the data `where`.

    `model_names` are the names of the model's outputs, None for a file without names. `class_map` gives the class of
    each folder, by name or by number. Raise DataError if the class of a folder is not known.
    """
    places = {row.wordnet_id: place for place, row in enumerate(imagenet_classes())}
    is_imagenet = num_classes == len(places) and (model_names is None or set(model_names) == places.keys())
    names = list(model_names or (places if is_imagenet else map(str, range(num_classes))))
    outputs = {name: place for place, name in enumerate(names)}
    found, notice, first = set(folders), None, ", ".join(printable(name) for name in folders[:3])
    numbers = [int(name) for name in folders if _is_number(name)]
    is_part_of_imagenet = is_imagenet and (found < outputs.keys() or len(set(numbers)) == len(folders))
    if class_map is not None:
        if missing := sorted(found - class_map.keys()):
            raise DataError(f"--class-map has no line for {printable(missing[0])}, a folder of {where}; add the line")
        labels = [_label(class_map[folder].strip(), folder, outputs, "--class-map") for folder in folders]
    elif is_part_of_imagenet or ((model_names or is_imagenet) and found == outputs.keys()):
        labels = [_label(folder, folder, outputs, where) for folder in folders]
    elif model_names is not None:
        raise _other_classes(folders, model_names, where)
    elif len(folders) != num_classes:
        raise DataError(
            f"{where} has {len(folders)} class folders, and the model has {num_classes} classes; give data of the "
            "model's classes with --data DIR, or the class of each folder with --class-map FILE"
        )
    elif is_imagenet:
        raise DataError(
            f"{where} has {num_classes} class folders such as {first}, and a file of weights without class names needs "
            f"ImageNet's WordNet ids or the numbers 0 to {num_classes - 1}; rename each folder to its WordNet id or "
            "label"
        )
    else:
        labels, meaning = numbers, f"are numbers: each number is the label, 0 to {num_classes - 1}"
        if sorted(numbers) != list(range(num_classes)):
            labels, meaning = list(range(num_classes)), f"are taken in text order: labels 0, 1 and so on are {first}"
        notice = f"the file of weights has no class names; the class folders of {where} {meaning}"
    used = sorted(set(labels))
    if len(used) == num_classes:
        return ClassSelection(labels, None, names, notice)
    if class_map is None:
        notice = f"the class folders of {where} are {len(folders)} of ImageNet's classes; only these classes count"
    return ClassSelection(labels, used, [names[place] for place in used], notice)


def read_class_names(words: str) -> list[str]:
    """Return names from a text file with a name a line, or from a list with commas. Raise UsageError or DataError."""
    names = read_lines(Path(words)) if Path(words).is_file() else [word.strip() for word in words.split(",")]
    if len(set(names)) < len(names) or len(names) < 2:
        raise UsageError(f"--classes {words} names {len(set(names))} different classes; name each class once")
    return names


def _label(name: str, folder: str, outputs: Mapping[str, int], where: str) -> int:
    """Return the output for a class, by name or by number."""
    if name in outputs:
        return outputs[name]
    if _is_number(name) and int(name) < len(outputs):
        return int(name)
    raise DataError(
        f"{where} gives {printable(folder)} the class {printable(name)}, which the model does not have; write a class "
        f"of the model or a number from 0 to {len(outputs) - 1}"
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 10


def _other_classes(folders: Sequence[str], model_names: Sequence[str], where: str) -> DataError:
    here, there = set(folders).difference(model_names), set(model_names).difference(folders)
    return DataError(
        f"{where} has other classes than the model was trained on ({len(folders)} here, {len(model_names)} there; only "
        f"here: {shown_classes(here)}; only there: {shown_classes(there)}), so labels would not mean the same; give "
        "data of the model's classes with --data DIR, or the class of each folder with --class-map FILE"
    )
