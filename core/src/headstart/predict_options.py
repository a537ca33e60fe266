"""What ``headstart predict`` takes beside the inputs; torch-free.

A head names its options in its spec, as settings; on the command line they are
``--name value``, in Python a mapping by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_origin

from pydantic import ValidationError

from headstart.errors import Fault, UserError, nearest
from headstart.explain import setting_faults, types_of
from headstart.specs import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.settings import PredictOptions
    from headstart.specs import HeadSpec


def options_model(spec: HeadSpec) -> type[PredictOptions] | None:
    """The settings that a head's predictions take; ``None``: none."""
    return resolve(spec.options) if spec.options else None


def split_options(
    words: Sequence[str], model: type[PredictOptions] | None
) -> tuple[list[str], dict[str, Any]]:
    """Inputs and options of a command line apart.

    ``--k 10`` and ``--k=10`` are the same; an option that is a list may be given more
    than once; one that is true or false stands alone, or as ``--no-NAME``. After ``--``
    all are inputs.

    Raises:
        UserError: There is no such option, or its value is missing; all of them.
    """
    inputs: list[str] = []
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            inputs += rest
            break
        if not word.startswith("--"):
            inputs.append(word)
            continue
        shown, equals, value = word.partition("=")
        name = shown[2:].replace("-", "_")
        kinds = types_of(model, name) if model else set()
        negated = name.removeprefix("no_")
        if not kinds and model and bool in types_of(model, negated):
            values[negated] = False
            if equals:
                positive = f"--{negated.replace('_', '-')}"
                fix = f"{shown} alone, or {positive}={value}"
                faults.append(Fault(f"{shown} takes no value", fix=fix))
        elif not kinds:
            faults.append(_unknown(shown, model))
        elif bool in kinds and not equals:
            values[name] = True
        else:
            given = value if equals else next(rest, None)
            if given is None:
                faults.append(Fault(f"{shown} needs a value", fix=f"{shown} VALUE"))
            elif any(get_origin(kind) is tuple for kind in kinds):
                values.setdefault(name, []).append(given)
            else:
                values[name] = given
    if faults:
        raise UserError(*faults)
    return inputs, values


def check_options(
    spec: HeadSpec, values: Mapping[str, Any] | None
) -> PredictOptions | None:
    """The options, validated.

    Raises:
        UserError: Everything that is wrong with them.
    """
    model = options_model(spec)
    if model is None:
        if values:
            raise UserError(*(_unknown(f"--{name}", None) for name in values))
        return None
    table = dict(values or {})

    def where(key: str) -> str:
        return f"--{key.replace('_', '-')}"

    try:
        return model.model_validate(table)
    except ValidationError as error:
        faults = setting_faults(
            error, model, table, where, lambda key: nearest(key, model.model_fields)
        )
        raise UserError(*faults) from None


def _unknown(option: str, model: type[PredictOptions] | None) -> Fault:
    fields = [name.replace("_", "-") for name in model.model_fields] if model else []
    names = [f"--{name}" for name in fields]
    why = f"this run's head takes {', '.join(names)}" if names else ""
    if model and option.startswith("--no-"):
        flags = (n for n in model.model_fields if bool in types_of(model, n))
        names += [f"--no-{name.replace('_', '-')}" for name in flags]
    fix = nearest(option, names) if names else "put -- before inputs that start so"
    return Fault(f"there is no option {option}", why=why, fix=fix)
