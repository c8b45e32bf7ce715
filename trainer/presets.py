"""`--preset=NAME`: flag files of a model, in `presets/` beside its module.

`NAME.flags` has one flag per line, after a comment that describes the suitable data.
`NAME.cpu.flags`, if it exists, is added if no GPU is visible. Flags of the command line override
both.
"""

import os
from types import ModuleType

from trainer.commandline import expand_flag_files
from trainer.config import UserError, did_you_mean


def names(model: ModuleType) -> list[str]:
    """Returns the names of a model's presets."""
    try:
        found = os.listdir(_folder(model))
    except OSError:
        return []
    return sorted(f.removesuffix(".flags") for f in found if f.count(".") == 1)


def flags_of(model: ModuleType, name: str) -> list[str]:
    """Returns the flags of a preset.

    Raises:
      UserError: the model has no such preset.
    """
    known = names(model)
    if name not in known:
        have = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(
            f"--preset={name}: {model.__name__} has no such preset; {have}."
            + did_you_mean(name, known)
        )
    import tensorflow as tf

    files = [os.path.join(_folder(model), f"{name}.flags")]
    if not tf.config.list_physical_devices("GPU"):
        files.append(os.path.join(_folder(model), f"{name}.cpu.flags"))
    return expand_flag_files([f"--flagfile={file}" for file in files if os.path.exists(file)])


def listing(model: ModuleType) -> list[str]:
    """Returns lines for `--help`: each preset, its data, and its flags without a GPU."""
    lines = [f"  --preset={name}: {_meaning(model, name)}" for name in names(model)]
    return (
        ["", "Presets, complete recipes that need only the data's flags:", *lines] if lines else []
    )


def _folder(model):
    return os.path.join(os.path.dirname(os.path.abspath(model.__file__ or "x")), "presets")


def _meaning(model, name):
    """The comment at the top of a preset, and the flags that it adds without a GPU, on one line."""
    words, small = [], os.path.join(_folder(model), f"{name}.cpu.flags")
    with open(os.path.join(_folder(model), f"{name}.flags"), encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("#"):
                break
            words.append(line.lstrip("#").strip())
    added = expand_flag_files([f"--flagfile={small}"]) if os.path.exists(small) else ()
    return " ".join([*words, *(["Without a GPU:"] if added else ()), *added])
