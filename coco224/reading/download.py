"""Downloads prepared datasets from the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coco224.errors import DataError
from coco224.files import FULL
from coco224.making.manifest import MANIFEST, checked_manifest
from coco224.reading.arrow import open_files
from coco224.reading.parquet import check_groups
from coco224.reading.rows import Rows
from coco224.repository import reasons


def manifest_of(repo_id: str) -> dict[str, Any]:
    """The manifest of a dataset on the Hub, or of its copy in the cache if the Hub cannot be reached.

    Raises:
        DataError: there is no manifest.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    with reasons(f"--coco_dir {repo_id} is not a local folder, and the Hub's dataset of that name cannot be read"):
        try:
            path = hf_hub_download(repo_id, MANIFEST, repo_type="dataset")
        except RepositoryNotFoundError:
            raise DataError(
                f"--coco_dir {repo_id} is neither a local folder nor a dataset on the Hub that this token may read: "
                "give a folder that python -m coco224.prepare made, or USER/NAME of a dataset that it uploaded"
            ) from None
        except LocalEntryNotFoundError as error:
            answer = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
            what = "cannot be reached"
            if answer is not None:
                what = f"answers with status {answer.response.status_code}: try again later"
            raise DataError(
                f"--coco_dir {repo_id} is not a local folder, and the Hub, which may have a dataset of that name, "
                f"{what}; the cache has no copy"
            ) from None
        except EntryNotFoundError:
            raise DataError(
                f"--coco_dir {repo_id} is a dataset on the Hub without {MANIFEST}: python -m coco224.prepare did not "
                "upload it, or the upload is incomplete; upload it again"
            ) from None
    return checked_manifest(Path(path), f"--coco_dir {repo_id}")


def download_split(repo_id: str, split: str) -> Rows | None:
    """`train` or `validation` of a dataset on the Hub, downloaded once to the cache; None if it has no such split.

    Raises:
        DataError: the dataset does not exist, or cannot be downloaded.
    """
    import datasets
    from huggingface_hub import snapshot_download
    from pyarrow.parquet import read_metadata

    manifest = manifest_of(repo_id)
    if split not in manifest["splits"]:
        return None
    with reasons(f"--coco_dir {repo_id} cannot be downloaded"):
        folder = Path(snapshot_download(repo_id, repo_type="dataset", allow_patterns=f"data/{split}-*.parquet"))
    parquet = sorted(str(file) for file in folder.glob(f"data/{split}-*.parquet"))
    with _cache_reasons(repo_id):
        for file in parquet:
            check_groups(read_metadata(file), f"--coco_dir {repo_id}: {Path(file).name}")
        data = datasets.Dataset.from_parquet(parquet)  # converts to Arrow, which can be mapped, in the datasets cache
    files = [str(entry["filename"]) for entry in data.cache_files]
    return open_files(Path(repo_id), split, files, manifest["splits"][split]["fingerprint"])


@contextmanager
def _cache_reasons(repo_id: str) -> Iterator[None]:
    """Turns exceptions of `datasets` while it fills its cache into one sentence."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, OSError, ValueError) as error:
        causes = [cause for cause in _causes(error) if isinstance(cause, OSError)]
        cache = datasets.config.HF_DATASETS_CACHE
        if any(cause.errno in FULL or "No space left" in str(cause) for cause in causes):
            raise DataError(
                f"--coco_dir {repo_id}: the cache {cache} is full (No space left on device): make room, set "
                "HF_DATASETS_CACHE, or give --streaming true"
            ) from None
        reason = " ".join(str(causes[-1] if causes else error).split())
        raise DataError(f"--coco_dir {repo_id} cannot be read into the cache {cache} ({reason})") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
