"""Parquet files of a dataset on the Hub, which may come from a stranger."""

from typing import Any

from coco224.errors import DataError

MOST_GROUP = 2**30
"""Bytes that a row group may become in memory; those of `coco224.prepare` have 16 MB."""


def check_groups(metadata: Any, where: str) -> None:
    """Refuses a file that would take too much memory, by its `pyarrow.parquet.FileMetaData`.

    Raises:
        DataError: a row group is too large.
    """
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).total_byte_size
        if not 0 <= size <= MOST_GROUP:
            raise DataError(
                f"{where}: a row group has {size:,} bytes: upload the dataset again with python -m coco224.prepare"
            )
