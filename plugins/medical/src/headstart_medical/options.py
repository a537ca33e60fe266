"""What ``headstart predict`` takes beside the scans; torch-free."""

from __future__ import annotations

from headstart.settings import PredictOptions


class SegmentationOptions(PredictOptions):
    """``headstart predict RUN scan.nii.gz --probabilities``."""

    probabilities: bool = False
    """Write the probability of the foreground as a volume too."""
