"""deepbrain's brain extraction network as weights, read from its TensorFlow graph.

Source: https://github.com/iitzco/deepbrain, ``deepbrain/models/graph.pb``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import Fault, UserError, nearest
from headstart.weights.conversion import TENSORS, converted_once, one_file
from headstart.weights.sources import Weights
from headstart.weights.tensors import file_sha256
from headstart_medical.graph import read_constants

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from headstart.weights.sources import SourceContext

SUFFIX = ".pb"
CLASSES = ("background", "brain")
MODULES = {
    "conv3d": "level0.conv1",
    "conv3d_1": "level0.conv2",
    "conv3d_2": "level1.conv1",
    "conv3d_3": "level1.conv2",
    "conv3d_4": "level2.conv1",
    "conv3d_5": "level2.conv2",
    "conv3d_transpose": "up2.up",
    "conv3d_6": "up2.conv",
    "conv3d_transpose_1": "up1.up",
    "conv3d_7": "up1.conv",
    "conv3d_transpose_2": "up0.up",
    "conv3d_8": "up0.conv",
    "conv3d_9": "output",
}
"""The graph's layers and the modules of ``medical/deepbrain-unet`` that they are."""
# Kernel and bias by the graph's layer: (depth, height, width, in, out), and
# (…, out, in) of a transposed convolution.
SHAPES = {
    "conv3d": (3, 3, 3, 1, 8),
    "conv3d_1": (3, 3, 3, 8, 8),
    "conv3d_2": (3, 3, 3, 8, 16),
    "conv3d_3": (3, 3, 3, 16, 16),
    "conv3d_4": (3, 3, 3, 16, 32),
    "conv3d_5": (3, 3, 3, 32, 32),
    "conv3d_transpose": (3, 3, 3, 32, 32),
    "conv3d_6": (3, 3, 3, 64, 32),
    "conv3d_transpose_1": (3, 3, 3, 16, 32),
    "conv3d_7": (3, 3, 3, 32, 16),
    "conv3d_transpose_2": (3, 3, 3, 8, 16),
    "conv3d_8": (3, 3, 3, 16, 8),
    "conv3d_9": (1, 1, 1, 8, 1),
}


def resolve_deepbrain(reference: str, context: SourceContext) -> Weights:
    """deepbrain's graph, from an asset or a file, as weights in float32.

    The network ends in one logit and a sigmoid; the weights have two rows, of which
    the first, the background's, is zero: their softmax is that sigmoid.

    Args:
        reference: ``asset:NAME``, or a file that ends in ``.pb``.
        context: Its registry knows the assets.

    Raises:
        UserError: There is no such file, it is no graph or another one, or the cache
            cannot be written.
    """
    path, licence = one_file("deepbrain", reference, SUFFIX, context)

    def write(folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file(deepbrain_tensors(path), folder / TENSORS)

    folder = converted_once(f"{file_sha256(path)}-deepbrain", write, path.name)
    return Weights(
        f"deepbrain:{reference}",
        folder,
        (folder / TENSORS,),
        licence=licence,
        classes=CLASSES,
    )


def deepbrain_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The graph's parameters, by the names and in the layout of the network in torch.

    Args:
        path: The frozen graph.

    Returns:
        Kernels (out, in, depth, height, width), of transposed convolutions
        (in, out, …), and biases; ``output`` has two rows, background and brain.

    Raises:
        UserError: It is no graph, or another network's; all that differs is named.
    """
    if path.stat().st_size > 2**28:
        raise UserError("is too large to be deepbrain's graph", where=str(path))
    constants = read_constants(path.read_bytes(), str(path))
    tensors: dict[str, NDArray[np.float32]] = {}
    faults: list[Fault] = []
    for layer, module in MODULES.items():
        shape = SHAPES[layer]
        transposed = "transpose" in layer
        expected = {"kernel": shape} | ({} if transposed else {"bias": shape[-1:]})
        for part, wanted in expected.items():
            name = f"{layer}/{part}"
            found = constants.get(name)
            if found is None:
                faults.append(
                    Fault(f"has no {name!r}", str(path), fix=nearest(name, constants))
                )
            elif found.shape != wanted:
                what = f"{name!r} has the shape {found.shape}, {wanted} expected"
                faults.append(Fault(what, str(path)))
            elif part == "kernel":
                # What is last in TensorFlow is first in torch, of either kind.
                kernel = found.transpose(4, 3, 0, 1, 2)
                tensors[f"{module}.weight"] = np.ascontiguousarray(kernel)
            else:
                tensors[f"{module}.bias"] = found
    if faults:
        raise UserError(*faults)
    for name in ("output.weight", "output.bias"):
        brain = tensors[name]
        tensors[name] = np.concatenate([np.zeros_like(brain), brain])
    return tensors
