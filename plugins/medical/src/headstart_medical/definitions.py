"""A MONAI bundle's network, from its definition to literal arguments; nothing runs.

MONAI's own parser imports what ``_target_`` names, evaluates ``$`` expressions, runs
``import`` statements and reads other files for ``%``. Here a definition is data: a
network of a list, arguments that are literals, references to literals, and sums of
integers. What ``network_def`` does not reach is not looked at.

Source of the syntax: "Config Syntax" in MONAI's documentation.
"""

from __future__ import annotations

import ast
import inspect
import operator
import re
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart.errors import UserError, nearest
from headstart_medical import catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEY = "network_def"
NUMBER_LIMIT = 4096
"""Largest number that an argument may have."""
LIST_LIMIT = 64
LAYER_LIMIT = 256
"""Most layers that one argument may ask for; DenseNet264 has 130."""
TEXT_LIMIT = 200
DEPTH_LIMIT = 20
ITEM_LIMIT = 1000
PARAMETER_LIMIT = 2_000_000_000

REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


class Network(NamedTuple):
    """A network of MONAI that a backbone can be built of.

    Attributes:
        name: Class or function in ``monai.networks.nets``.
        kind: The class that it is of, as the catalogue of backbones has it.
        arguments: What the name says of that class's arguments.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]

    @property
    def backbone(self) -> str:
        """Name of the backbone with the same stages."""
        return catalogue.backbone_of(self.kind)

    @property
    def output(self) -> str:
        """Prefix of the last layer's tensors in the state dict; empty where that is
        more than one convolution or matrix."""
        return catalogue.NETWORKS[self.backbone].output


def _residual(depth: int, layers: list[int]) -> Network:
    block = "basic" if depth < 50 else "bottleneck"
    sizes = {"block": block, "layers": layers, "block_inplanes": [64, 128, 256, 512]}
    return Network(f"resnet{depth}", "ResNet", sizes)


NETWORKS = {
    network.name.casefold(): network
    for network in (
        *(
            Network(kind, kind, {})
            for kind in ("UNet", "SegResNet", "DynUNet", "SwinUNETR", "UNETR", "ResNet")
        ),
        *(
            Network(f"DenseNet{depth}", "DenseNet", {"block_config": blocks})
            for depth, blocks in (
                (121, [6, 12, 24, 16]),
                (169, [6, 12, 32, 32]),
                (201, [6, 12, 48, 32]),
                (264, [6, 12, 64, 48]),
            )
        ),
        _residual(10, [1, 1, 1, 1]),
        _residual(18, [2, 2, 2, 2]),
        _residual(34, [3, 4, 6, 3]),
        _residual(50, [3, 4, 6, 3]),
        _residual(101, [3, 4, 23, 3]),
        _residual(152, [3, 8, 36, 3]),
    )
}
"""By lower-case name: MONAI has some under several spellings."""
# Counts of layers; what is built of them takes time even without memory.
REPEATED = {"blocks_down", "blocks_up", "block_config", "layers", "depths",
            "num_layers", "num_res_units"}  # fmt: skip
FETCHING = {"pretrained", "progress"}
"""Arguments that make MONAI download other weights; they are left out."""
# Arguments of earlier releases that say nothing about the parameters.
DROPPED = {"SwinUNETR": {"img_size"}}


class RefusedError(UserError):
    """A definition that is not plain data about a known network."""


@dataclass(frozen=True)
class Definition:
    """What a bundle says about its network.

    Attributes:
        network: Which one.
        arguments: Of its constructor, JSON-ready.
        count: Numbers in its parameters and buffers.
        where: The file that says so.
    """

    network: Network
    arguments: Mapping[str, Any]
    count: int
    where: str

    @property
    def config(self) -> dict[str, Any]:
        """What the backbone's ``config.json`` holds: ``network`` and the arguments."""
        arguments = {**self.network.arguments, **self.arguments}
        return {"network": self.network.kind, **arguments}

    @property
    def inputs(self) -> int | None:
        """Number of channels that it reads, if it says so."""
        return self._count("in_channels", "n_input_channels")

    @property
    def outputs(self) -> int | None:
        """Number of channels or classes that it predicts, if it says so."""
        return self._count("out_channels", "num_classes")

    def _count(self, *keys: str) -> int | None:
        found = (self.arguments.get(key) for key in keys)
        return next((value for value in found if isinstance(value, int)), None)


def read_definition(config: Mapping[str, Any], where: str) -> Definition:
    """The network of a bundle's configuration, which is data and stays it.

    Args:
        config: The configuration as JSON or YAML has it.
        where: The file, for errors.

    Raises:
        RefusedError: ``network_def`` is missing, names what is not a known network of
            MONAI, or reaches an expression, a macro, an object or a number that is
            not taken.
    """
    reader = _Reader(config, where)
    spec = config.get(KEY)
    seen: tuple[str, ...] = ()
    while isinstance(spec, str) and (found := REFERENCE.fullmatch(spec)):
        if found[1] in seen:
            raise reader.refused(KEY, f"refers to itself: {spec!r}")
        seen = (*seen, found[1])
        spec = reader.find(found[1], KEY)
    if not isinstance(spec, dict) or "_target_" not in spec:
        what = "is missing" if spec is None else f"is no definition: {_shown(spec)}"
        raise reader.refused(KEY, what)
    network = _network(spec["_target_"], reader)
    reader.check_keys(spec, KEY)
    for key in ("_requires_", "_mode_", "_disabled_", "_wrap_"):
        # MONAI runs `_requires_` first and starts a debugger by `_mode_`.
        if spec.get(key) not in ("default", False, None, ""):
            raise reader.refused(f"{KEY}::{key}", f"is {_shown(spec[key])}")
    arguments = {
        key: reader.value(value, f"{KEY}::{key}")
        for key, value in spec.items()
        if not (key.startswith("_") and key.endswith("_"))
        and key not in DROPPED.get(network.name, ())
    }
    count = _check(network, arguments, reader)
    kept = {k: v for k, v in arguments.items() if k not in FETCHING}
    return Definition(network, kept, count, where)


def _network(target: Any, reader: _Reader) -> Network:
    path, _, name = (target if isinstance(target, str) else "").rpartition(".")
    inside = re.fullmatch(r"(monai\.networks\.nets(\.\w+)?)?", path)
    known = NETWORKS.get(name.casefold())
    if not inside or known is None:
        raise reader.refused(
            f"{KEY}::_target_",
            f"names {_shown(target)}, which is not one of MONAI's networks with a "
            "backbone here; nothing else is imported",
            nearest(name, [network.name for network in NETWORKS.values()]),
        )
    return known


def _check(network: Network, arguments: dict[str, Any], reader: _Reader) -> int:
    """Hold the arguments against MONAI's signature; count parameters and buffers.

    Raises:
        RefusedError: There are others, or the network would be too large.
    """
    import torch
    from monai.networks import nets
    from torch.overrides import TorchFunctionMode

    build = getattr(nets, network.name)
    names = {*inspect.signature(getattr(nets, network.kind)).parameters}
    if network.name != network.kind:
        names |= FETCHING
        if network.kind == "ResNet":
            names -= network.arguments.keys()
    for key, value in arguments.items():
        if key not in names:
            raise reader.refused(
                f"{KEY}::{key}",
                f"is no argument of {network.name} in this release of MONAI",
                nearest(key, names),
            )
        if key in REPEATED and sum(map(abs, _numbers(value))) > LAYER_LIMIT:
            what = f"asks for more than {LAYER_LIMIT} layers"
            raise reader.refused(f"{KEY}::{key}", what)
    told = {k: v for k, v in arguments.items() if k not in FETCHING}

    class Readable(TorchFunctionMode):
        """SwinUNETR asks its drop rates for their values, which "meta" has not."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            place = {"device": "cpu"} if func is torch.linspace else {}
            return func(*args, **{**place, **(kwargs or {})})

    try:
        with torch.device("meta"), Readable():
            model = build(**told)
    except Exception as error:
        # Whatever MONAI finds wrong with arguments, by its own errors and torch's.
        reason = " ".join(str(error).split())
        raise reader.refused(
            KEY, f"MONAI cannot build {network.name} of it: {reason:.200}"
        ) from None
    count: int = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    if count > PARAMETER_LIMIT:
        raise reader.refused(KEY, f"has {count:,} parameters")
    return count


def _numbers(value: Any) -> list[float]:
    """All numbers in an argument."""
    if isinstance(value, list):
        return [n for item in value for n in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _shown(value: Any) -> str:
    """A value for an error, short whatever YAML's aliases or digits make of it."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 80, 80
    try:
        return short.repr(value)
    except ValueError:
        # Python writes no integer of more than 4,300 digits.
        return f"a very long {type(value).__name__}"


class _Reader:
    """Turns what a configuration says into literals."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config = config
        self._where = where
        self._items = 0

    def refused(self, key: str, what: str, fix: str = "") -> RefusedError:
        return RefusedError(
            f"{key} {what}",
            where=self._where,
            why="a bundle's network is read as data and nothing of it is run: a "
            "known network of MONAI with literal arguments",
            fix=fix,
        )

    def value(self, value: Any, key: str, seen: tuple[str, ...] = ()) -> Any:
        """What an entry stands for.

        Raises:
            RefusedError: It is no literal and leads to none.
        """
        self._items += 1
        if self._items > ITEM_LIMIT or len(seen) + key.count("::") > DEPTH_LIMIT:
            raise self.refused(KEY, "has too many entries, or they are too deep")
        if isinstance(value, str) and value.startswith("%"):
            raise self.refused(key, f"is the macro {_shown(value)} of another file")
        if isinstance(value, str) and value.startswith(("@", "$")):
            return self._expression(value, key, seen)
        if isinstance(value, list | tuple):
            if len(value) > LIST_LIMIT:
                raise self.refused(key, f"is a list of {len(value)} entries")
            return [self.value(v, f"{key}::{i}", seen) for i, v in enumerate(value)]
        if isinstance(value, dict):
            self.check_keys(value, key)
            if special := [k for k in value if k.startswith("_") and k.endswith("_")]:
                what = f"is an object: {special[0]} = {_shown(value[special[0]])}"
                raise self.refused(key, what)
            if len(value) > LIST_LIMIT:
                raise self.refused(key, f"is a table of {len(value)} entries")
            return {k: self.value(v, f"{key}::{k}", seen) for k, v in value.items()}
        return self._literal(value, key)

    def check_keys(self, table: Mapping[Any, Any], key: str) -> None:
        """Raises :class:`RefusedError` where a key is no text, which YAML allows."""
        if strange := [k for k in table if not isinstance(k, str)]:
            what = f"has a key that is no text: {_shown(strange[0])}"
            raise self.refused(key, what)

    def find(self, path: str, key: str) -> Any:
        """The entry that a reference names, as it stands in the configuration.

        Raises:
            RefusedError: There is none.
        """
        entry: Any = self._config
        for step in re.split("::|#", path):
            if isinstance(entry, dict) and step in entry:
                entry = entry[step]
            elif isinstance(entry, list) and step.isdigit() and int(step) < len(entry):
                entry = entry[int(step)]
            else:
                raise self.refused(key, f"refers to what is not there: '@{path}'")
        return entry

    def _expression(self, text: str, key: str, seen: tuple[str, ...]) -> Any:
        if found := REFERENCE.fullmatch(text.removeprefix("$").strip()):
            return self._follow(found[1], key, seen)
        if text.startswith("@") or len(text) > TEXT_LIMIT:
            raise self.refused(key, f"is {_shown(text)}, no plain reference")
        names: dict[str, str] = {}

        def hold(match: re.Match[str]) -> str:
            names[name := f"reference{len(names)}"] = match[1]
            return name

        try:
            tree = ast.parse(REFERENCE.sub(hold, text[1:]).strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            # Statements, such as imports, end here.
            raise self.refused(key, f"is the expression {_shown(text)}") from None

        def evaluate(node: ast.expr) -> Any:
            match node:
                case ast.Constant(value=int() | str() | bool() as constant):
                    return constant
                case ast.Name(id=name) if name in names:
                    return self._follow(names[name], key, seen)
                case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                    sides = [evaluate(left), evaluate(right)]
                    if all(type(s) is int and abs(s) <= NUMBER_LIMIT for s in sides):
                        if type(op) is ast.FloorDiv and sides[1] == 0:
                            raise self.refused(key, "divides by zero")
                        return OPERATORS[type(op)](*sides)
                case ast.Call(func=ast.Name(id="len"), args=[counted], keywords=[]):
                    found = evaluate(counted)
                    if isinstance(found, list | dict | str):
                        return len(found)
            raise self.refused(
                key,
                f"is the expression {_shown(text)}; taken are references, integers, "
                "+ - * // and len()",
            )

        return self._literal(evaluate(tree.body), key)

    def _follow(self, path: str, key: str, seen: tuple[str, ...]) -> Any:
        if path in seen:
            raise self.refused(key, f"refers to itself: '@{path}'")
        return self.value(self.find(path, key), key, (*seen, path))

    def _literal(self, value: Any, key: str) -> Any:
        if value is None or isinstance(value, bool | list | dict):
            return value
        if isinstance(value, int | float):
            # Not a number is not below it either.
            if not abs(value) <= NUMBER_LIMIT:
                raise self.refused(key, f"is {_shown(value)}, beyond {NUMBER_LIMIT}")
            return value
        if isinstance(value, str) and len(value) <= TEXT_LIMIT and value.isprintable():
            return value
        raise self.refused(key, f"is no literal that is taken: {_shown(value)}")
