"""The data of a split as rows: prepared, or cropped as it is read."""

from coco224.prepared import open_split
from coco224.rows import Rows
from coco224.unprepared import open_photographs

__all__ = ["Rows", "open_photographs", "open_split"]
