"""Sections of the report for images: what was found, drawn beside what is there."""

from headstart_vision.sections.classification import classification_sections
from headstart_vision.sections.detection import detection_sections
from headstart_vision.sections.segmentation import segmentation_sections

__all__ = ["classification_sections", "detection_sections", "segmentation_sections"]
