"""Uploads prepared datasets to the Hugging Face Hub, as Parquet with a card and a manifest."""

import json
from pathlib import Path

from coco224.files import read_regular
from coco224.making.card import dataset_card
from coco224.making.manifest import MANIFEST
from coco224.repository import reasons

# Size of a Parquet row group, which is read at once: small, so that a streaming reader can keep many in memory.
_ROW_GROUP = "16MB"


def upload(folder: Path, repo_id: str, private: bool) -> None:
    """Uploads a prepared dataset. Files that are already there are skipped, so a second call completes the first.

    Raises:
        DataError: the Hub refuses the upload or cannot be reached.
    """
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi

    datasets.config.MAX_ROW_GROUP_SIZE = _ROW_GROUP
    what = f"the dataset in {folder} is complete, but {repo_id} is not; run the same command to complete it"
    with reasons(what, DatasetsError):
        datasets.load_from_disk(str(folder)).push_to_hub(repo_id, private=private)
        manifest = read_regular(folder / MANIFEST)
        # The card keeps the header from `datasets`. The manifest comes last: a dataset without it counts as incomplete.
        card = dataset_card(repo_id, json.loads(manifest), DatasetCard.load(repo_id).data)
        files = {"README.md": card.encode(), MANIFEST: manifest}
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        HfApi().create_commit(repo_id, operations, commit_message="Card and manifest", repo_type="dataset")
