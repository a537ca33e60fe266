"""Names of tensors in torchvision's older files of detectors.

Its modules changed in version 0.13, most of its files did not; loading renames them
(``_load_from_state_dict`` of the modules named below).
"""

from __future__ import annotations

import re

# Old name, new name; in order: pyramid, region proposals, RetinaNet's towers.
_NESTED = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"(rpn\.head\.conv)\.(weight|bias)", r"\1.0.0.\2"),
)
_TOWER = r"(head\.(?:classification|regression)_head\.conv)\.(\d)\.(weight|bias)"
_MASKS = r"(roi_heads\.mask_head)\.mask_fcn(\d)\.(weight|bias)"


def current_name(name: str) -> str:
    """What torchvision of today calls a tensor of one of its detection files.

    A name that is not old, or that is no detector's, comes back as it is.
    """
    for old, new in _NESTED:
        if re.fullmatch(old, name):
            return re.sub(old, new, name)
    if match := re.fullmatch(_TOWER, name):
        # Convolutions and ReLUs stood in one list; now each pair is a block.
        path, index, kind = match.groups()
        return f"{path}.{int(index) // 2}.0.{kind}"
    if match := re.fullmatch(_MASKS, name):
        path, number, kind = match.groups()
        return f"{path}.{int(number) - 1}.0.{kind}"
    return name
